"""Following a job: its output, why it waits, where it runs, how it ends; with a client that answers from lists."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from danlu.cli.follow import Detached, Following
from danlu.cli.submitting import conclude
from danlu.cli.terminal import Messages
from danlu.domain.events import Event
from danlu.domain.jobs import Attempt, AttemptState, Job, JobState, Reason, Task
from danlu.domain.resources import Resources
from danlu.domain.specs import JobSpec
from danlu.domain.views import LogChunk, LogPage, Page
from danlu.errors import NotAllowed, Unavailable

ID = "j" + "0" * 26


def job(state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    return Job(
        id=ID, project="p", name="a-1", spec=JobSpec(command="x"), state=state, created_at=0, updated_at=0, queued_at=0,
        checkpoint_owner=ID, **fields,
    )  # fmt: skip


def attempt(number: int) -> Attempt:
    return Attempt(
        id=f"{ID}-{number}", project="p", created_at=0, updated_at=0, job_id=ID, number=number, executor="local",
        tasks=(Task(node="n1", resources=Resources(), devices=(0, 1)),), state=AttemptState.RUNNING,
        resumed_from="/c/step-3" if number > 1 else None,
    )  # fmt: skip


def page(text: str, number: int = 1) -> LogPage:
    return LogPage(chunks=(LogChunk(attempt=number, task="main-0", data=text),), cursor="c", done=False)


class Platform:
    """Answers as a client of a platform on which one job runs."""

    def __init__(self, pages: list[LogPage | Exception], events: list[Event], end: Job) -> None:
        self.pages, self.events, self.end = pages, events, end
        self.patience_s, self.notice = 0.0, None
        self.newest = max((p.chunks[0].attempt for p in pages if isinstance(p, LogPage) and p.chunks), default=1)

    def stream(self, operation: str, *_: object, **__: object) -> Iterator[Any]:
        for item in self.events if operation == "events.stream" else self.pages:
            if isinstance(item, Exception):
                raise item
            yield item

    def call(self, operation: str, *_: object, **__: object) -> Any:
        if operation == "jobs.attempts":
            return Page[Attempt](items=(attempt(self.newest),))
        return self.end


def event(state: str, reason: str, message: str = "") -> Event:
    return Event(seq=1, at=0, project="p", kind="job", object_id=ID, state=state, reason=reason, message=message)


def test_output_goes_to_its_streams_and_the_exit_code_is_the_jobs(capfd):
    end = job(
        JobState.FAILED, exit_code=3, reason=Reason.PROCESS_FAILED, message="exit code 3", started_at=0, attempts=1
    )
    platform = Platform([page("1 o. out\n2 e. err\n")], [], end)
    assert conclude(platform, job(), Messages(), "table") == 3
    said = capfd.readouterr()
    assert said.out == "out\n"
    lines = said.err.splitlines()
    assert lines[0].split() == [
        "job",
        "a-1",
        "queued",
        "→",
        "running",
        "on",
        "n1",
        "gpu",
        "0,1",
        "·",
        "cold",
        *lines[0].split()[-2:],
    ]
    assert lines[1:] == [
        "err",
        "  a-1 failed: ProcessFailed, exit code 3",
        "    more: danlu describe a-1     again: danlu retry a-1 --code .",
    ]


def test_a_later_attempt_is_announced_once_with_where_it_resumed(capfd):
    end = job(JobState.SUCCEEDED, exit_code=0, started_at=0, attempts=2)
    platform = Platform([page("1 o. b\n", 2), page("2 o. c\n", 2)], [], end)
    assert Following(platform, job(), Messages()).run() == end
    said = capfd.readouterr()
    assert said.out == "b\nc\n"
    assert said.err.count("attempt 2 · from step-3") == 1


def test_why_it_waits_is_told(capfd):
    events = [event("queued", "PendingEvaluation"), event("queued", "WaitingForResources", "short of gpu")]
    platform = Platform([], events, job(JobState.CANCELLED, reason=Reason.STOPPED))
    following = Following(platform, job(), Messages())
    for each in events:
        following._take("event", each)
    assert capfd.readouterr().err == "  a-1 waits: WaitingForResources: short of gpu   (more: danlu why a-1)\n"


def test_that_it_makes_way_is_told_and_that_it_waits_again(capfd):
    events = [
        event("running", "Preempted", "it makes way for job big, and has 30 s to save"),
        event("queued", "Preempted", "attempt 1: Preempted, it made way for job big; lost: nothing"),
    ]
    following = Following(Platform([], [], job()), job(), Messages())
    for each in events:
        following._take("event", each)
    assert capfd.readouterr().err.splitlines() == [
        "  a-1: it makes way for job big, and has 30 s to save",
        "  a-1 waits again: attempt 1: Preempted, it made way for job big; lost: nothing   (more: danlu why a-1)",
    ]


def test_a_limit_that_is_not_in_force_is_told_once(capfd):
    class Unlimited(Platform):
        def call(self, operation: str, *_: object, **__: object) -> Any:
            if operation != "jobs.attempts":
                return self.end
            started = attempt(self.newest).model_copy(
                update={"started_at": 1, "limits": ("cpu-limit", "separate-user")}
            )
            return Page[Attempt](items=(started,))

    asked = JobSpec.model_validate({"command": "x", "memory": "1GiB", "cpu": 1})
    queued = job().model_copy(update={"spec": asked})
    end = job(JobState.SUCCEEDED, exit_code=0, started_at=0, attempts=2).model_copy(update={"spec": asked})
    platform = Unlimited([page("1 o. b\n"), page("2 o. c\n", 2)], [event("running", "Started")], end)
    Following(platform, queued, Messages()).run()
    assert capfd.readouterr().err.count("  memory: this machine sets no such limit: danlu doctor\n") == 1


def test_json_is_one_object_and_nothing_else(capfd):
    end = job(JobState.SUCCEEDED, exit_code=0, started_at=0, attempts=1)
    assert conclude(Platform([page("1 o. out\n")], [], end), job(), Messages(quiet=True), "json") == 0
    said = capfd.readouterr()
    assert Job.model_validate_json(said.out) == end
    assert said.err == ""


def test_what_the_platform_refuses_is_raised_where_it_can_be_told():
    with pytest.raises(Unavailable, match="gone"):
        Following(Platform([Unavailable("gone")], [], job()), job(), Messages()).run()


def test_notices_are_told_once_and_never_block(capfd):
    following = Following(Platform([], [], job()), job(), Messages())

    def hear() -> None:
        for _ in range(100):
            following._heard("the platform is away")

    hear()  # in the thread that prints: told at once
    other = threading.Thread(target=hear)
    other.start()
    other.join(60)
    assert not other.is_alive()
    following._take(*following._news.get_nowait())
    assert capfd.readouterr().err == "  the platform is away\n"


class Held(Platform):
    """A platform that does not take the stop before it is let go."""

    def __init__(self) -> None:
        super().__init__([], [], job())
        self.go = threading.Event()

    def call(self, operation: str, *rest: object, **named: object) -> Any:
        if operation == "jobs.stop":
            assert self.go.wait(60)
        return super().call(operation, *rest, **named)


def test_ctrl_c_while_the_platform_is_away_never_waits_for_it(capfd):
    platform = Held()
    following = Following(platform, job(), Messages())
    following._interrupted()
    with pytest.raises(Detached, match=r"a-1 is NOT stopped.*danlu stop a-1") as left:
        following._interrupted()
    assert left.value.code == 130
    following._unheard_at = 0.0
    following._tick()
    following._tick()
    assert capfd.readouterr().err.count("a-1 is stopped when the platform answers") == 1
    platform.go.set()
    following._take(*following._news.get(timeout=60))
    assert "a-1 is asked to stop" in capfd.readouterr().err
    with pytest.raises(Detached, match="a-1 is still being stopped: danlu wait a-1"):
        following._interrupted()


def test_a_stop_that_is_refused_is_raised_where_it_can_be_told():
    class Refusing(Platform):
        def call(self, *_: object, **__: object) -> Any:
            raise NotAllowed("not yours")

    following = Following(Refusing([], [], job()), job(), Messages())
    following._interrupted()
    with pytest.raises(NotAllowed, match="not yours"):
        following._take(*following._news.get(timeout=60))
