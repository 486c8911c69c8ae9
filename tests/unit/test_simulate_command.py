"""``danlu simulate`` on a trace's file: what it shows, what it refuses; and the same from a program."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import danlu
from danlu.cli.main import main
from danlu.client.simulating import Scene, of_record, parse_nodes
from danlu.domain.views import TracedJob
from danlu.errors import InvalidRequest
from tests.traces import SECOND, job

TRACE = """job,submit_s,duration_s,gpus,project,priority
a,0,100,1,vision,0
b,10,3600,2,vision,0
c,20,50,1,speech,0
d,30,50,1,speech,0
large,40,60,8,speech,0
"""


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["simulate", *words]) == code
    read = capsys.readouterr()
    return read.out if code == 0 else read.out + read.err


def test_it_tells_waits_use_and_fairness(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    lines = shown(capsys, trace, "--nodes", "2x2", "--policy", "fifo-easy").splitlines()
    rows = [line.split() for line in lines]
    assert lines[0] == "5 jobs of 2 projects on 2 nodes with 4 GPUs"
    assert rows[2][:3] == ["POLICY", "JCT", "MEAN"]
    assert rows[3] == ["fifo-easy", "16m", "1m30s", "1h", "0.0s", "40s", "40s"]
    assert rows[6][0] == "fifo-easy"
    assert rows[6][-1] in ("speech", "vision")
    assert rows[9:11] == [["1", "3", "0.0s", "40s", "40s", "1m20s"], ["2-4", "1", "0.0s", "0.0s", "0.0s", "1h"]]
    assert [row[0] for row in rows[13:15]] == ["speech", "vision"]
    assert lines[16:] == ["1 job never started:", "  large: it asks for more than there is"]


def test_each_table_says_by_which_policy_and_fits(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    lines = shown(capsys, trace, "--nodes", "2x2", "--compare").splitlines()
    tables = [[line.split() for line in part.splitlines()] for part in "\n".join(lines).split("\n\n")[1:5]]
    assert all("POLICY" in head for head, *_ in tables)
    assert [row[2] for row in tables[2][1:]] == ["danlu", "fifo-easy", "srtf"] * 2
    assert [(row[0], row[2]) for row in tables[3][1:]] == [
        (project, policy) for project in ("speech", "vision") for policy in ("danlu", "fifo-easy", "srtf")
    ]
    assert lines.count("1 job never started by srtf:") == 1
    assert max(len(line) for line in lines if not line.startswith("  large: ")) <= 80


def test_what_changes_nothing_is_told(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    assert main(["simulate", trace, "--nodes", "2x2", "--quota", "speach.gpu=1", "--weight", "vision=2"]) == 0
    said = capsys.readouterr().err.strip()
    assert said == "no job is of speach, for which something is otherwise   did you mean speech?"


def test_policies_side_by_side(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    found = json.loads(shown(capsys, trace, "--nodes", "2x2", "--compare", "-o", "json"))["items"]
    assert [one["policy"] for one in found] == ["danlu", "fifo-easy", "srtf"]
    assert {one["ended"] for one in found} == {4}
    assert found[0]["never_started"][0].startswith("large: ")


def test_a_line_for_each_job(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    found = list(csv.DictReader(io.StringIO(shown(capsys, trace, "--nodes", "1x2", "--policy", "srtf", "-o", "csv"))))
    assert [(one["job"], one["first_start_s"], one["end_s"], one["starts"]) for one in found] == [
        ("a", "0", "170", "2"), ("b", "170", "3770", "1"), ("c", "20", "70", "1"), ("d", "30", "80", "1"),
        ("large", "", "", "0"),
    ]  # fmt: skip


def test_a_limit_holds(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    free, held = (
        json.loads(shown(capsys, trace, "--nodes", "4x2", *more, "-o", "json"))
        for more in ((), ("--quota", "speech.gpu=1", "--quota", "speech.jobs=5"))
    )
    waits = [next(size["wait_p99_s"] for size in one["sizes"] if size["size"] == "1") for one in (free, held)]
    assert waits == [0, 40]
    assert "large: asks" in held["never_started"][0]


def test_who_knows_nothing_of_quotas_is_named(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    said = []
    for more in (["--compare"], ["--quota", "speech.gpu=1"], ["--quota", "speech.gpu=1", "--compare"]):
        assert main(["simulate", trace, "--nodes", "2x2", *more]) == 0
        said.append(capsys.readouterr().err.strip())
    assert said == ["", "", "quotas and weights are unknown to fifo-easy and srtf: only danlu decides by them"]


def test_what_was_decided_is_recorded_and_decided_again(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    path = Path(trace).with_suffix(".jsonl")
    shown(capsys, trace, "--nodes", "2x2", "--record", str(path))
    assert shown(capsys, "--replay", str(path)).endswith("calls: all the same\n")
    text = path.read_text()
    path.write_text(text.replace('"node":"node-0000"', '"node":"node-0001"', 1))
    said = shown(capsys, "--replay", str(path), code=1)
    assert said.startswith("decided otherwise: line ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}"], "--nodes is missing: a trace does not tell on which nodes it runs"),
        (["/nowhere/trace.csv"], "/nowhere/trace.csv cannot be read: No such file"),
        (["{}", "--nodes", "16by8"], "'16by8' does not tell nodes"),
        (["{}", "--nodes", "1x8:H100"], "did you mean 1x8:h100?"),
        (["{}", "--nodes", "1x2", "--quota", "speech"], "write for example --quota team-a.gpu=16"),
        (["{}", "--nodes", "1x2", "--weight", "speech"], "--weight 'speech' is not PROJECT=WEIGHT"),
        (["{}", "--nodes", "20000x8"], "at most 10,000 nodes"),
        (["{}", "--nodes", "1x2", "--quota", "speech=3"], "'speech=3' is not PROJECT.RESOURCE=AMOUNT"),
        (["{}", "--nodes", "1x2", "--quota", "speech.storage=1TiB"], "no job waits for storage"),
        (["{}", "--nodes", "1x2", "--quota", "speech.gpus=3"], "'gpus' is nothing that a quota can limit"),
        (["{}", "--nodes", "1x2", "--guarantee", "speech.gpu=-3"], "gpu=-3 is no amount"),
        (["{}", "--nodes", "1x2", "--guarantee", "a.gpu=3", "--quota", "a.gpu=2"], "contradict one another"),
        (["{}", "--nodes", "1x2", "--weight", "speech=0"], "the weight of speech is 0"),
        (["{}", "--nodes", "1x2", "--weight", "speech=x"], "--weight takes a whole number; it is 'x'"),
        (["{}", "--nodes", "1x2", "--restart", "soon"], "restart: 'soon' is not a duration"),
        (["{}", "--nodes", "1x2", "--since", "7d"], "--since and --all-projects are of a platform"),
        (["/nowhere/trace.csv", "--nodes", "1x2"], "/nowhere/trace.csv cannot be read: No such file"),
        (["--replay", "/nowhere/x"], "/nowhere/x cannot be read: No such file"),
        (["{}", "--replay", "/nowhere/x"], "--replay needs no trace"),
        (["{}", "--nodes", "1x2", "--policy", "srft"], "takes one of"),
        (["{}", "--nodes", "1x2", "--record", "/nowhere/x"], "/nowhere/x cannot be written"),
    ],
)
def test_what_is_wrong_is_told(capsys: pytest.CaptureFixture[str], trace: str, words: list[str], said: str) -> None:
    assert said in shown(capsys, *[word.format(trace) for word in words], code=2)


def test_a_wrong_line_is_told_by_its_number(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    Path(trace).write_text(TRACE + "e,1,-2,1,vision,0\n")
    assert "line 7: duration_s: '-2'" in shown(capsys, trace, "--nodes", "1x2", code=2)


def test_from_a_program(trace: str) -> None:
    free = danlu.simulate(trace, "2x2", "srtf")
    assert (free.jobs, free.ended, free.preemptions) == (5, 4, 1)
    held = danlu.simulate(trace, "2x2", limits={"speech.gpu": 1}, restart="1m", checkpoint=60, notice=5)
    assert (free.jct_mean_s, held.jct_mean_s, held.preemptions) == (970, 960, 0)
    with pytest.raises(InvalidRequest, match="there is no policy 'srft'"):
        danlu.simulate(trace, "2x2", "srft")  # type: ignore[arg-type]


def test_nodes_of_kinds() -> None:
    nodes = parse_nodes("1x2:h100, 2x4:a100")
    assert [(len(node.gpus), node.gpus[0].kind) for node in nodes] == [(2, "h100"), (4, "a100"), (4, "a100")]
    assert len({node.name for node in nodes}) == 3
    assert parse_nodes("1x0")[0].gpus == ()


def test_what_is_otherwise_leaves_the_rest_as_it_was() -> None:
    scene = Scene((job("a", 0, 1),), parse_nodes("1x1")).changed(
        limits={"a.gpu": 1, "a.memory": "1GiB"}, weights={"a": 3}
    )
    again = scene.changed(limits={"a.gpu": "unlimited"}, guarantees={"b.cpu": "0.5"}, notice="0s")
    found = {quota.id: quota for quota in again.quotas}
    assert found["a"].limit == {"gpu": -1, "memory": 2**30}
    assert (found["a"].weight, found["b"].guarantee) == (3, {"cpu": 500})


def test_only_what_ran_and_ended_is_simulated() -> None:
    record = TracedJob(
        id="j1", project="p", priority=5, submitted_at=3, ended_at=9 * SECOND, ran_ns=2 * SECOND, attempts=1, tasks=2, gpus=4,
        cpu_milli=2000, memory_bytes=0, declared_ns=SECOND,
    )  # fmt: skip
    found = of_record(record)
    assert found is not None
    assert (found.submit, found.duration, found.gpus, found.tasks, found.declared) == (3, 2 * SECOND, 4, 2, SECOND)
    assert of_record(record.model_copy(update={"ended_at": None})) is None
    assert of_record(record.model_copy(update={"ran_ns": 0})) is None
