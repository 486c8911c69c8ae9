"""What the terminal shows: folded progress lines, tables, times, plots, exit codes, errors."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from danlu.api.bodies import EventsQuery
from danlu.cli import exits, output, wording
from danlu.cli.commands import COMMANDS, build, overview
from danlu.cli.get import BY_NAME, Wanted, _with_project, show
from danlu.cli.lines import LogLines, Prefixes, Screen
from danlu.cli.main import _flags_after_command, main
from danlu.cli.metrics import _form
from danlu.cli.options import Common, again, one, pairs, several
from danlu.cli.plot import draw
from danlu.cli.retry import _set
from danlu.cli.submitting import submitted, tell_end
from danlu.cli.terminal import Messages
from danlu.client.history import newest_events
from danlu.client.submitting import changed
from danlu.domain.arrays import ArrayState
from danlu.domain.events import Event
from danlu.domain.jobs import Job, JobState, Reason, job_exit_code
from danlu.domain.specs import JobSpec
from danlu.domain.views import EnvironmentEntry, LogChunk, LogPage, Page
from danlu.errors import InvalidRequest, InvalidSpec, NeverFits, NotFound, PlatformError, Unavailable
from tests.factories import make_array, make_environment, make_job


def page(data: str, *, attempt: int = 1, task: str = "main-0") -> LogPage:
    return LogPage(chunks=(LogChunk(attempt=attempt, task=task, data=data),), cursor="c", done=False)


def shown(lines: LogLines, *pages: LogPage) -> tuple[str, str]:
    """Returns what stands on (out, err) at the end."""
    pieces = [piece for each in pages for piece in lines.take(each)] + lines.end()
    return tuple("".join(text for name, text in pieces if name == wanted) for wanted in ("out", "err"))


def plain() -> LogLines:
    return LogLines(Screen("out"), Screen("err"))


def test_whole_lines_go_to_their_streams():
    out, err = shown(plain(), page("1 o. a\n2 e. b\n3 o. \n4 r. cut\n"))
    assert (out, err) == ("a\n\n", "b\ndanlu: cut\n")


def test_only_the_last_of_a_row_of_progress_lines_is_kept_without_a_terminal():
    out, _ = shown(plain(), page("1 o~ 10%\n2 o~ 50%\n"), page("3 o. 100%\n4 o~ 1%\n5 o~ 2%\n"))
    assert out == "100%\n2%\n"


def test_progress_of_one_stream_does_not_swallow_another_stream():
    out, err = shown(plain(), page("1 e~ 10%\n2 o. a\n3 e~ 20%\n4 o. b\n5 e. done\n"))
    assert (out, err) == ("a\nb\n", "done\n")


def test_progress_is_replaced_in_place_on_a_terminal():
    screen = Screen("out", moving=True, columns=20)
    out, _ = shown(LogLines(screen, screen), page("1 o~ 10%\n2 o~ 20%\n3 e. oops\n4 o~ " + "x" * 50 + "\n"))
    assert out == "10%\x1b[K\r\x1b[K20%\x1b[K\r\x1b[Koops\n" + "x" * 19 + "\x1b[K\r\n"


def test_pieces_make_one_line():
    out, _ = shown(plain(), page("1 o+ ab\n"), page("2 o+ cd\n3 o. ef\n4 o. g\n"))
    assert out == "abcdef\ng\n"


def test_another_stream_on_the_same_terminal_ends_an_unfinished_line():
    screen = Screen("out", moving=True)
    out, _ = shown(LogLines(screen, screen), page("1 o+ ab\n2 e. err\n3 o. cd\n"))
    assert out == "ab\nerr\ncd\n"


def test_timestamps_and_tasks_stand_before_each_line():
    lines = LogLines(Screen("out"), Screen("err"), timestamps=True, prefixes=Prefixes(["main-0", "worker-12"]))
    out, _ = shown(lines, page("1795484642123000000 o. a\n"))
    assert out == "main-0    | 2026-11-24T01:44:02.123Z a\n"


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), min_size=1))
def test_the_short_way_and_the_long_way_show_the_same(texts):
    data = "".join(f"{at} o. {text}\n" for at, text in enumerate(texts))
    whole = "".join(text + "\n" for text in texts)
    assert shown(plain(), page(data)) == (whole, "")
    assert shown(plain(), page(data + "9 e. x\n")) == (whole, "x\n")


def test_a_table_is_as_wide_as_it_needs_to_be():
    lines = output.table_lines(["NAME", "STATE"], [["a", "running"], ["大炉", "-"]])
    assert lines == ["NAME   STATE", "a      running", "大炉   -"]


WIDE = ["NAME", "STATE", "ID", "MESSAGE"]
WIDE_ROW = ["a-rather-long-name", "failed", "j06h1jq02qgrtt9q43e73hfanfj", "image nix/da could not be pulled"]


@pytest.mark.parametrize(
    ("most", "line"),
    [
        (None, "a-rather-long-name   failed   j06h1jq02qgrtt9q43e73hfanfj   image nix/da could not be pulled"),
        (92, "a-rather-long-name   failed   j06h1jq02qgrtt9q43e73hfanfj   image nix/da could not be pulled"),
        (91, "a-rather-long-name  failed  j06h1jq02qgrtt9q43e73hfanfj  image nix/da could not be pulled"),
        (88, "a-rather-long-name  failed  j06h1jq02qgrtt9q43e73hfanfj  image nix/da could not be pull…"),
        (75, "a-rather-lo…  failed  j06h1jq02qgrtt9q43e73hfanfj  image nix/da could not…"),
        (62, "a-rather-…  failed  j06h1jq02qgrtt9q43e73hfanfj  image nix/da…"),
        (60, "a-rather-long-name  failed  j06h1jq02qgrtt9q43e73hfanfj  …"),
        (30, "a-rather-long-name  failed  …"),
    ],
)
def test_what_is_too_wide_is_taken_from_texts_then_from_names_then_from_the_right(most, line):
    assert output.table_lines(WIDE, [WIDE_ROW], with_head=False, most=most) == [line]


FAILED = "exit code 1: ValueError: the shapes (32, 10) and (32, 12) do not match in the loss of train.py"
EVENTS = [
    ["3m", "job", "j06h1jq02qgrtt9q43e73hfanfj", "queued", "waits-for-gpu", "-"],
    ["2m", "attempt", "j06h1jq02qgrtt9q43e73hfanfj-1", "ended", "command-failed", FAILED],
]


def test_a_message_stands_below_its_row_where_it_has_no_room_beside_it():
    headers = ["AGE", "KIND", "OBJECT", "STATE", "REASON", "MESSAGE"]
    lines = output.told_lines(headers, EVENTS, most=80)
    assert lines == [
        "AGE  KIND     OBJECT          STATE   REASON          MESSAGE",
        "3m   job      j06h…e73hfanfj  queued  waits-for-gpu   -",
        "2m   attempt  j06h…3hfanfj-1  ended   command-failed",
        "    exit code 1: ValueError: the shapes (32, 10) and (32, 12) do not match in",
        "    the loss of train.py",
    ]
    assert " ".join(" ".join(output.told_lines(headers, EVENTS, most=30)).split()).endswith(FAILED)
    assert FAILED in output.told_lines(headers, EVENTS, most=200)[2]


def test_from_where_a_call_came_has_room_beside_ids():
    headers = ["AGE", "ACTOR", "DID", "TO", "OUTCOME", "FROM"]
    row = ["3m", "administrator", "members.remove", "j06h1jq02qgrtt9q43e73hfanfj", "NotAllowed", "203.0.113.212"]
    (line,) = output.table_lines(headers, [row], with_head=False, most=80)
    assert line.endswith("  203.0.113.212")


CELLS = st.text(st.characters(categories=["L", "N", "P"]), max_size=60)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), max_size=4), st.integers(20, 200), st.booleans())
def test_no_line_of_a_table_is_wider_than_the_terminal(rows, most, with_head):
    lines = output.table_lines(WIDE, rows, with_head=with_head, most=most)
    assert len(lines) == len(rows) + with_head
    assert all(output.columns(line) <= most for line in lines)


def test_cells_cannot_move_the_cursor(capsys):
    output.table(["A", "B"], [["x\x1b[2Jy\nz", ""]])
    assert capsys.readouterr().out == "A          B\nx [2Jy z   -\n"


def test_what_was_asked_for_in_vain_is_listed_only_where_it_is_wanted():
    def entry(name, catalogue, state, digest=None):
        source = {"catalogue": name} if catalogue else {"image": name}
        made = make_environment(name=name, source=source, state=state, lock_digest=digest)
        return EnvironmentEntry(name=name, description="", python="", environment=made)

    class Platform:
        def call(self, _operation):
            had, ready = entry("had", False, "failed", "a" * 64), entry("ready", False, "ready", "a" * 64)
            return Page(items=(entry("python", True, "failed"), entry("nope", False, "failed"), had, ready))

    def listed(**wanted):
        return [item.name for item in BY_NAME["envs"].items(Platform(), Wanted(**wanted))[0]]

    assert listed() == ["python", "had", "ready"]
    assert listed(every=True) == ["python", "nope", "had", "ready"]
    assert listed(names=("nope",)) == ["nope"]


def test_jobs_of_all_projects_stand_with_their_project(capsys):
    first = make_job(name="many-0", project="b", array={"name": "many", "index": 0, "size": 2}, array_id="r" + "0" * 26)
    array = make_array(first, name="many", size=2)

    class Platform:
        def call(self, operation, *_, project=None, **__):
            if operation == "arrays.get":
                assert project == "b"
                return ArrayState(array=array, counts={"running": 1, "queued": 1}, unsuccessful=())
            assert operation == "jobs.list_all"
            return Page(items=(first, make_job(name="one", project="a")))

    wanted = Wanted(all_projects=True, folded=True)
    show(Platform(), _with_project(BY_NAME["jobs"]), wanted, "table", Messages())
    head, *rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert head == ["PROJECT", "NAME", "STATE"]
    assert rows == [["b", "many", "going"], ["a", "one", "queued"]]


@pytest.mark.parametrize(
    ("state", "gpus", "shown"),
    [("queued", None, "1..4"), ("starting", 3, "3"), ("running", 3, "3"), ("queued", 3, "1..4"), ("failed", 3, "3")],
)
def test_of_a_range_of_gpus_a_job_that_has_started_shows_what_it_got(state, gpus, shown):
    job = make_job(state=state, reason=None, gpus=gpus, spec={"gpu": "1..4"})
    assert BY_NAME["jobs"].row(job, 0)[5] == wording.gpu_count(job) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (4.2, "4.2s"),
        (58, "58s"),
        (60, "1m"),
        (192, "3m12s"),
        (3900, "1h5m"),
        (273600, "3d4h"),
    ],
)
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


def test_ages_are_whole_seconds():
    assert wording.age(0, 4_900_000_000) == "4s"
    assert wording.age(10, 0) == "0s"
    assert wording.age(None, 0) == "-"


def test_a_plot_has_its_size_and_its_corners():
    lines = draw([0, 1, 2, 3], [1, 0.5, float("nan"), 0], width=40, height=5)
    assert len(lines) == 7
    assert all(output.columns(line) <= 40 for line in lines)
    assert lines[0].startswith("1 ┤⠉")
    assert lines[4].startswith("0 ┤")
    assert lines[-1].split() == ["0", "3"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("system/memory_bytes", 303_562_752.0, "289.5 MiB"),
        ("system/gpu0_memory_bytes", float("nan"), "nan"),
        ("system/gpu0_percent", 87.26, "87.3 %"),
        ("system/cpu_cores", 1.5, "1.50"),
        ("size_bytes", 303_562_752.0, "3.036e+08"),
        ("loss", 0.01234567, "0.01235"),
    ],
)
def test_what_the_platform_measured_has_units(name, value, text):
    assert _form(name)(value) == text


@given(st.lists(st.floats(), max_size=50), st.integers(10, 200), st.integers(1, 20))
def test_a_plot_never_fails(values, width, height):
    lines = draw([float(at) for at in range(len(values))], values, width=width, height=height)
    assert len(lines) == height + 2


def job(state: JobState, exit_code: int | None = None) -> Job:
    return Job(
        id="j" + "0" * 26, project="default", name="a", spec=JobSpec(command="x"), state=state, created_at=0, updated_at=0,
        queued_at=0, exit_code=exit_code, checkpoint_owner="j" + "0" * 26, started_at=0, ended_at=3_000_000_000,
        reason=Reason.PROCESS_FAILED,
    )  # fmt: skip


def test_exit_codes():
    assert job_exit_code(job(JobState.SUCCEEDED, 0)) == exits.OK
    assert job_exit_code(job(JobState.FAILED, 3)) == 3
    assert job_exit_code(job(JobState.FAILED)) == exits.FAILED
    assert job_exit_code(job(JobState.CANCELLED, 143)) == exits.INTERRUPTED
    assert exits.code_of(InvalidSpec()) == exits.code_of(NeverFits()) == exits.USAGE
    assert exits.code_of(Unavailable()) == exits.code_of(PlatformError()) == exits.UNREACHABLE
    assert exits.code_of(NotFound()) == exits.FAILED


def test_an_outcome_is_a_sentence():
    assert wording.outcome(job(JobState.FAILED, 3)) == "failed: ProcessFailed, exit code 3, 3.0s after its start"


def test_what_waited_for_one_that_failed_is_run_again_after_another_one():
    failed = make_job(name="train", state="failed", reason="DependencyFailed")
    assert wording.again(failed) == "danlu retry train --after THE-NEW-ONE"


def test_what_to_do_next_names_the_project_that_was_named(capsys):
    flags = again(Common(project="speech"))
    waits, failed = make_job(name="train"), make_job(name="train", state="failed", reason="OutOfMemory")
    submitted(waits, Messages(), "table", flags)
    tell_end(failed, Messages(), flags=flags)
    said = capsys.readouterr().err
    assert "`danlu logs -f train --project speech`" in said
    assert (
        "more: danlu describe train --project speech     again: danlu retry train --memory MORE --project speech"
        in said
    )


def test_names_of_jobs_as_kubectl_takes_them():
    assert one(["x"]) == one(["job", "x"]) == one(["job/x"]) == one(["jobs", "x"]) == "x"
    assert one(["job"]) == "job"
    assert several(["array/x", "array", "job/y"]) == ["x", "array", "y"]  # as -o name prints them
    assert one(["array/x"], "env") == "array/x"
    assert several(["job", "x", "y"]) == several(["job/x", "y"]) == ["x", "y"]
    for wrong in ([], ["job/"], ["x", "y"]):
        with pytest.raises(InvalidRequest):
            one(wrong)


def test_pairs():
    assert pairs("--var", ["A=1", "B=x=y", "A="]) == {"A": "", "B": "x=y"}
    with pytest.raises(InvalidRequest, match="--var"):
        pairs("--var", ["=1"])


def test_flags_before_the_command_are_taken_behind_it():
    assert _flags_after_command(["--url", "U", "run", "--", "x"]) == ["run", "--url", "U", "--", "x"]
    assert _flags_after_command(["--project=p", "env", "ls"]) == ["env", "ls", "--project=p"]
    assert _flags_after_command(["run", "--url", "U"]) == ["run", "--url", "U"]


def test_the_overview_is_one_screen_and_names_every_command():
    lines = overview().splitlines()
    assert len(lines) <= 56
    assert max(map(len, lines)) <= 80
    assert all(any(line.split()[:1] == [command.name] for line in lines) for command in COMMANDS)


def test_every_commands_help_has_an_example(capsys):
    for command in COMMANDS:
        assert main([command.name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("Usage: danlu "), text
        assert "Example: danlu " in text or "Commands:" in text, text


def test_no_flag_is_there_only_to_empty_another_one():
    reference = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
    assert "--empty-" not in reference.read_text()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_is_no_wider_than_the_terminal_and_says_the_same(width):
    def said(words: list[str], columns: int) -> str:
        file = io.StringIO()
        build()([*words, "--help"], console=Console(file=file, width=columns))
        return file.getvalue()

    for words in (["run"], ["env"], ["metrics"], ["env", "build"], ["get"]):
        text = said(words, width)
        lines = [line for line in text.splitlines() if not line.startswith("Usage: danlu")]
        assert max(map(len, lines)) <= min(width, 100)
        assert text.split() == said(words, 100).split()


def danlu(words: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, with a data folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
    return subprocess.run(
        [sys.executable, "-m", "danlu.cli.main", *words], env={**kept, "DANLU_HOME": str(home)}, capture_output=True,
        text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "error", "step"),
    [
        (["rnu"], 'there is no command "rnu"', "did you mean run?"),
        (["run", "--detahc", "--", "x"], "--detahc is not a flag of danlu run", "did you mean --detach?"),
        (["run", "python", "a.py", "--lr", "3"], "--lr is not a flag of danlu run", "put -- before the command"),
        (["run"], "there is no command to run", "danlu run -- python train.py"),
        (["run", "--memory", "lots", "--", "x"], "memory: 'lots' is not an amount of memory", ""),
        (["get", "jbos"], 'there is no list of "jbos"', "did you mean jobs?"),
        (["retry"], "no job is named", "danlu get jobs"),
    ],
)
def test_wrong_usage_says_what_was_meant(words, error, step, tmp_path):
    done = danlu(words, tmp_path)
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"error: {error}")
    assert step in "\n".join(rest)
    assert not list(tmp_path.iterdir())


def test_no_platform_is_an_exit_code_of_its_own(tmp_path):
    done = danlu(["get", "jobs"], tmp_path)
    assert done.returncode == exits.UNREACHABLE
    assert "danlu is not running here" in done.stderr
    done = danlu(["status", "-o", "json"], tmp_path)
    assert done.returncode == exits.UNREACHABLE
    assert json.loads(done.stdout)["running"] is False


def test_a_wrong_field_in_a_file_is_told_with_its_line(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("name: a\ncommand: python a.py\nretry:\n  attempts: 2\n  bakoff: 3s\ngpus: 1\n")
    done = danlu(["apply", "-f", str(file)], tmp_path)
    assert done.returncode == exits.USAGE
    assert "line 5: retry.bakoff is not a field" in done.stderr
    assert "line 6: gpus is not a field" in done.stderr
    assert "did you mean gpu?" in done.stderr
    assert "did you mean backoff?" in done.stderr


class History:
    """Answers events.list as the platform does."""

    def __init__(self, seqs: list[int]) -> None:
        self.seqs, self.calls = seqs, 0

    def call(self, _operation: str, query: EventsQuery) -> Page[Event]:
        self.calls += 1
        found = [seq for seq in self.seqs if seq > query.after][: query.limit]
        return Page[Event](
            items=tuple(Event(seq=s, at=0, project="p", kind="job", object_id="j", state="s") for s in found)
        )


@given(st.sets(st.integers(1, 100_000), max_size=300), st.integers(1, 50))
def test_the_newest_events_are_found_without_reading_them_all(seqs, limit):
    history = History(sorted(seqs))
    events, more = newest_events(history, EventsQuery(), limit)
    assert [event.seq for event in events] == sorted(seqs)[-limit:]
    assert more == (len(seqs) > limit)
    assert history.calls < 80


def test_a_retry_changes_what_is_given_and_what_hangs_on_it():
    old = JobSpec(
        command="x", variables={"A": "1", "B": "2"}, env="host", interpreter="/bin/python", retry={"attempts": 3}
    )
    assert changed(old, {"variables": {"B": "3"}}) == {"variables": {"A": "1", "B": "3"}}
    nothing_else = {"requirements": None, "interpreter": None, "image": None}
    assert changed(old, {"env": "python"}) == {**nothing_else, "env": "python"}
    assert changed(old, {"requirements": "six"}) == {**nothing_else, "requirements": "six", "env": "python"}
    other = {**nothing_else, "python": None, "image": "python:3.12", "env": "python"}
    assert changed(old, {"image": "python:3.12"}) == other
    assert changed(old, {"retry": {"attempts": 5}}) == {"retry": {"attempts": 5}}
    assert _set(("priority=5", "name=b", 'labels={"a": "b"}')) == {"priority": 5, "name": "b", "labels": {"a": "b"}}
    with pytest.raises(InvalidRequest, match="priorty"):
        _set(("priorty=5",))
