"""Logs of several tasks: which ones, completely, in the order of time, whatever arrives when."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import LogsQuery
from danlu.blobs.streams import StreamKey
from danlu.client.logs import in_time
from danlu.database.engine import Database
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.actors import Actor
from danlu.domain.jobs import AttemptState, JobState, Reason
from danlu.errors import NotFound
from danlu.services import logs
from danlu.services.context import Call
from tests.api.edge import Api
from tests.factories import NOW, Ids, make_attempt, make_job, make_task

NAMES = ["ps-0", "worker-0", "worker-1", "worker-2"]


class Gang:
    """An attempt of one ps and three workers whose logs grow as the test says."""

    def __init__(self, api: Api, replicas: int = 3) -> None:
        self.api = api
        self.call = Call(api.platform, Actor(id="k", name="admin", administrator=True), "default")
        roles = {"ps": {}, "worker": {"replicas": replicas}} if replicas == 3 else {"worker": {"replicas": replicas}}
        self.job = make_job(Ids(7)("j"), name="gang", spec={"roles": roles, "framework": "none"})
        names = [
            name for role, spec in roles.items() for name in (f"{role}-{n}" for n in range(spec.get("replicas", 1)))
        ]
        tasks = [
            make_task(role=name.split("-")[0], index=int(name.split("-")[1]), rank=rank, node="n1")
            for rank, name in enumerate(names)
        ]
        self.attempt = make_attempt(self.job, tasks=tasks)
        self.sizes = dict.fromkeys(names, 0)

        def work(tx: Any) -> None:
            JOBS.add(tx, self.job)
            JOBS.put(tx, self.job, admitted := self.job.moved(JobState.ADMITTED, now=NOW, reason=Reason.PLACED))
            JOBS.put(tx, admitted, admitted.moved(JobState.STARTING, now=NOW, reason=Reason.LAUNCHING, attempts=1))
            ATTEMPTS.add(tx, self.attempt)

        api.database.write(work)

    def write(self, name: str, data: bytes) -> None:
        key = StreamKey("default", self.attempt.id, name, "log")
        self.sizes[name] = self.api.platform.streams.append(key, self.sizes[name], data)

    def end(self) -> None:
        def work(tx: Any) -> None:
            job = JOBS.require(tx, self.job.id)
            JOBS.put(tx, job, job.moved(JobState.FAILED, now=NOW, reason=Reason.PROCESS_FAILED, ended_at=NOW))
            ended = self.attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.PROCESS_FAILED, collected=True)
            ATTEMPTS.put(tx, self.attempt, ended)

        self.api.database.write(work)

    def lines(self, **query: Any) -> list[str]:
        """Returns what there is, page by page until a page adds nothing, each page in time."""
        found: list[str] = []
        asked = LogsQuery(**query)
        while True:
            page = logs.read(self.call, "gang", asked)
            found += [line for chunk in in_time(page) for line in chunk.data.splitlines()]
            if page.done or not page.chunks:
                return found
            asked = asked.model_copy(update={"cursor": page.cursor})


@pytest.fixture
def gang(sqlite: Database, tmp_path: Path) -> Gang:
    return Gang(Api(sqlite, tmp_path))


def test_pages_one_after_the_other_are_in_the_order_of_time(gang: Gang) -> None:
    """Tasks that print at different times, at different speeds, much more than a page holds."""
    chance = random.Random(3)
    written: dict[str, list[str]] = {name: [] for name in NAMES}
    for name, (begin, step, count) in zip(
        NAMES, ((0, 50, 20_000), (900_000, 3, 60_000), (0, 900, 3_000), (5, 1, 40_000)), strict=True
    ):
        at = begin
        for number in range(count):
            at += chance.randrange(step + 1)
            written[name].append(f"{at} o. {name} {number} " + "x" * chance.randrange(60))
        gang.write(name, "".join(line + "\n" for line in written[name]).encode())
    gang.end()
    found = gang.lines()
    times = [int(line.split()[0]) for line in found]
    assert times == sorted(times)
    for name in NAMES:
        assert [line for line in found if line.split()[2] == name] == written[name]


def test_what_comes_later_is_added_and_nothing_waits_for_a_silent_task(gang: Gang) -> None:
    gang.write("ps-0", b"5 o. a\n9 o. torn")
    first = logs.read(gang.call, "gang", LogsQuery())
    assert [(chunk.task, chunk.data) for chunk in first.chunks] == [("ps-0", "5 o. a\n")]
    assert not first.done
    gang.write("worker-2", b"3 o. b\n")
    gang.write("ps-0", b" no more\n")
    second = logs.read(gang.call, "gang", LogsQuery(cursor=first.cursor))
    assert [(chunk.task, chunk.data) for chunk in second.chunks] == [
        ("ps-0", "9 o. torn no more\n"),
        ("worker-2", "3 o. b\n"),
    ]
    gang.end()
    assert logs.read(gang.call, "gang", LogsQuery(cursor=second.cursor)).done


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, NAMES),
        ({"task": ("worker-1",)}, ["worker-1"]),
        ({"role": ("worker",)}, NAMES[1:]),
        ({"rank": (0, 3)}, ["ps-0", "worker-2"]),
        ({"role": ("ps",), "task": ("worker-0", "worker-0"), "rank": (1,)}, ["ps-0", "worker-0"]),
    ],
)
def test_tasks_are_chosen(gang: Gang, query: dict[str, Any], names: list[str]) -> None:
    for at, name in enumerate(NAMES):
        gang.write(name, f"{at} o. {name}\n".encode())
    assert [line.split()[2] for line in gang.lines(**query)] == names


@pytest.mark.parametrize(
    ("query", "message", "step"),
    [
        ({"task": ("worker-9",)}, "has no task 'worker-9'", "worker-"),
        ({"role": ("workers",)}, "has no role 'workers'", "did you mean worker?"),
        ({"rank": (7,)}, "has no rank '7'", "there are: 0, 1, 2, 3"),
    ],
)
def test_what_is_not_there_is_named(gang: Gang, query: dict[str, Any], message: str, step: str) -> None:
    with pytest.raises(NotFound, match=message) as caught:
        logs.read(gang.call, "gang", LogsQuery(**query))
    assert step in caught.value.next_step


def test_tail_counts_for_each_task(gang: Gang) -> None:
    for name in NAMES[:2]:
        gang.write(name, b"".join(b"%d o. %d\n" % (n, n) for n in range(10)))
    assert gang.lines(tail=2) == ["8 o. 8", "8 o. 8", "9 o. 9", "9 o. 9"]


def test_long_lines_and_what_no_runner_wrote_never_hold_a_reader_up(gang: Gang) -> None:
    gang.write("ps-0", b"5 o+ " + b"x" * 65_000 + b"\n6 o. end\n")
    gang.write("worker-0", b"y" * 3_000_000 + b"\n")
    gang.write("worker-1", b"9 o. a\n1 o. back\n8 o. b\n" * 50_000)
    found = gang.lines()
    assert found[-1] != ""
    assert sum(line.startswith("5 o+ ") for line in found) == 1
    own = [line for line in found if line.split()[0] in ("9", "1", "8")]
    assert own == ["9 o. a", "1 o. back", "8 o. b"] * 50_000


def test_several_values_come_through_the_address(gang: Gang) -> None:
    for at, name in enumerate(NAMES):
        gang.write(name, f"{at} o. {name}\n".encode())
    answer = gang.api.call("jobs.logs", job="gang", query="?task=ps-0&task=worker-1&rank=3").json()
    assert [chunk["task"] for chunk in answer["chunks"]] == ["ps-0", "worker-1", "worker-2"]
    assert gang.api.call("jobs.logs", job="gang", query="?task=nobody").status == 404
    assert gang.api.call("jobs.logs", job="gang", query="?rank=x").status == 422


def test_a_gang_of_very_many_reads_a_little_of_each(sqlite: Database, tmp_path: Path) -> None:
    """1,000 tasks with lines as long as a runner writes them: each page stays small, and all of it comes."""
    gang = Gang(Api(sqlite, tmp_path), replicas=1000)
    for number in range(1000):
        gang.write(f"worker-{number}", b"%d o+ " % number + b"x" * 65_536 + b"\n%d o. end %d\n" % (number, number))
    query, ends = LogsQuery(), 0
    for _ in range(50):
        page = logs.read(gang.call, "gang", query)
        assert sum(len(chunk.data) for chunk in page.chunks) <= 1001 * logs.LINE_BYTES
        ends += sum(chunk.data.count(" o. end ") for chunk in page.chunks)
        query = LogsQuery.model_validate({"cursor": page.cursor})
        if not page.chunks:
            break
    assert ends == 1000
