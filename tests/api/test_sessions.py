"""Sessions at the edge: who is let in, what is told of it, and that no end of it is believed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.api.bodies import EventsQuery
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.actors import Actor
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import AttemptState, JobState, Reason
from danlu.domain.sessions import SessionRequest
from danlu.errors import NotRunning
from danlu.runner import frames
from danlu.server.sessions import MAX_OF_A_JOB, MAX_OF_A_PROJECT, MAX_OPENING, MAX_SESSIONS, Sessions
from danlu.services import events
from danlu.services.context import Call
from danlu.services.sessions import Place
from tests.api.edge import Api
from tests.executors import SimulatedBench
from tests.factories import NOW, make_attempt, make_job, make_task

EXEC = frames.REQUEST + b'{"command": ["python", "--token", "s3cret"], "stdin": true}'
EXIT = frames.encode_json(frames.EXIT, {"exit_code": 3})


def session(api: Api, *sent: bytes, query: str = "", job: str = "job") -> list[tuple[bytes, Any]]:
    """Opens a session, and returns the frames that it was answered."""
    answer = api.connect(f"/v1/jobs/{api.ids[job]}/session{query}", *sent, stay=True)
    assert answer.status == 101, answer.json()
    return [(frame[:1], frame[1:]) for frame in answer.frames()]


def problem(answered: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    kind, data = answered[-1]
    assert kind == frames.PROBLEM
    found: dict[str, Any] = json.loads(data)
    return found


def refused(api: Api, path: str) -> tuple[int, dict[str, Any]]:
    answer = api.connect(path)
    return answer.status, answer.json()


def gang(api: Api) -> str:
    """Stores a running job of three tasks, the first of which has ended; returns its id."""

    def work(tx: Transaction) -> str:
        job = make_job(api.new_id("j"), name="gang")
        JOBS.add(tx, job)
        moves = (
            (JobState.ADMITTED, Reason.PLACED),
            (JobState.STARTING, Reason.LAUNCHING),
            (JobState.RUNNING, Reason.STARTED),
        )
        for state, reason in moves:
            moved = job.moved(state, now=NOW, reason=reason, attempts=1)
            JOBS.put(tx, job, moved)
            job = moved
        tasks = (
            make_task(role="chief", ended_at=NOW),
            *(make_task(role="worker", index=n, rank=n + 1) for n in (0, 1)),
        )
        attempt = make_attempt(job, tasks=tasks)
        ATTEMPTS.add(tx, attempt)
        for state, reason in ((AttemptState.LAUNCHING, Reason.LAUNCHING), (AttemptState.RUNNING, Reason.STARTED)):
            moved_attempt = attempt.moved(state, now=NOW, reason=reason)
            ATTEMPTS.put(tx, attempt, moved_attempt)
            attempt = moved_attempt
        return job.id

    return api.database.write(work)


def test_what_passes_and_how_it_ends(api: Api) -> None:
    said = [frames.encode_json(frames.STARTED, {"pid": 7}), frames.encode(frames.STDOUT, b"\x00out"),
            frames.encode(frames.STDERR, b"err"), EXIT]  # fmt: skip
    api.opener.says = b"".join(said)
    answered = session(api, EXEC, frames.STDIN + b"in", frames.EOF)
    assert [kind for kind, _ in answered] == [frames.STARTED, frames.STDOUT, frames.STDERR, frames.EXIT]
    assert json.loads(answered[0][1]) == {"task": "main-0", "tasks": 1}
    assert (answered[1][1], answered[2][1]) == (b"\x00out", b"err")
    assert json.loads(answered[3][1]) == {"exit_code": 3, "error": ""}
    assert api.opener.asked[0][:2] == (api.ids["attempt"], "main-0")
    assert api.opener.asked[0][2].command == ("python", "--token", "s3cret")


def test_it_is_an_event_of_the_job_without_what_may_be_secret(api: Api) -> None:
    api.opener.says = EXIT
    session(api, EXEC)
    session(api, frames.REQUEST + b'{"verb": "read", "path": "logs/a.csv"}')
    call = Call(api.platform, Actor(id="k", name="admin", administrator=True), "default")
    found = [e for e in events.list(call, EventsQuery(object_id=api.ids["job"])).items if e.reason == "SessionOpened"]
    assert [(e.message, e.actor, e.state) for e in found] == [
        ("exec in main-0: python", "admin", "running"),
        ("files from main-0: logs/a.csv", "admin", "running"),
    ]
    assert "s3cret" not in str(found)


def test_the_task_is_the_one_that_is_named_or_the_first_that_runs(api: Api) -> None:
    api.ids["gang"] = gang(api)
    api.opener.says = EXIT
    session(api, EXEC, job="gang")
    session(api, EXEC, job="gang", query="?task=worker-1")
    assert [asked[1] for asked in api.opener.asked] == ["worker-0", "worker-1"]


def test_a_task_that_cannot_be_entered_is_named(api: Api) -> None:
    path = f"/v1/jobs/{gang(api)}/session?task="
    status, said = refused(api, path + "chief-0")
    assert (status, said["code"]) == (409, "NotRunning")
    assert "danlu logs gang --task chief-0" in said["next_step"]
    status, said = refused(api, path + "worker1")
    assert (status, said["code"]) == (404, "NotFound")
    assert "did you mean worker-1?" in said["next_step"]
    assert refused(api, path + "x" * 101)[0] == 422
    assert refused(api, path + "worker-0&tsk=1")[1]["code"] == "InvalidSpec"


def test_a_job_that_does_not_run_says_what_to_use_instead(api: Api) -> None:
    status, said = refused(api, f"/v1/jobs/{api.ids['ended']}/session")
    assert (status, said["code"]) == (409, "NotRunning")
    assert "danlu artifacts get over" in said["next_step"]
    waiting = api.submit(name="later").json()["id"]
    assert "danlu why later" in refused(api, f"/v1/jobs/{waiting}/session")[1]["next_step"]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"", "InvalidRequest"),
        (frames.STDIN + b"early", "InvalidRequest"),
        (frames.REQUEST + b"{", "InvalidSpec"),
        (frames.REQUEST + b"{}", "InvalidSpec"),
        (frames.REQUEST + b'{"command": [""]}', "InvalidSpec"),
        (frames.REQUEST + b'{"command": ["a\\u0000"]}', "InvalidSpec"),
        (frames.REQUEST + b'{"command": ["ls"], "user": "root"}', "InvalidSpec"),
        (frames.REQUEST + b'{"verb": "read", "command": ["ls"]}', "InvalidSpec"),
        (frames.REQUEST + b'{"command": ["ls"], "terminal": {"term": "x;rm"}}', "InvalidSpec"),
        (frames.REQUEST + json.dumps({"command": ["x" * 140_000]}).encode(), "InvalidSpec"),
        (frames.REQUEST + b" " * (frames.REQUEST_BYTES + 1), "InvalidRequest"),
    ],
)
def test_a_wrong_request_reaches_no_runner(api: Api, first: bytes, code: str) -> None:
    answered = session(api, first)
    assert problem(answered)["code"] == code
    assert api.opener.asked == []


@pytest.mark.parametrize(
    "then",
    [
        frames.REQUEST + b"{}", frames.STDIN + b"x" * (frames.DATA_BYTES + 1), b"?", frames.CREDIT + b"\x00\x00\x00\x01",
        frames.CREDIT + b"\xff\xff\xff\xff", frames.RESIZE + b"too long",
    ],
)  # fmt: skip
def test_a_client_that_breaks_the_rules_is_told_so(api: Api, then: bytes) -> None:
    api.opener.says = frames.encode(frames.STDOUT, b"")
    answered = session(api, EXEC, then)
    assert problem(answered)["code"] in ("InvalidRequest", "Unavailable")  # the runner's end has gone too


def test_more_input_than_was_taken_is_refused(api: Api) -> None:
    api.opener.says = frames.encode_json(frames.STARTED, {})
    pieces = [frames.STDIN + b"x" * frames.DATA_BYTES] * (frames.WINDOW_BYTES // frames.DATA_BYTES + 1)
    answered = session(api, EXEC, *pieces)
    assert problem(answered)["code"] in ("InvalidRequest", "Unavailable")
    assert len(api.opener.heard()) <= frames.WINDOW_BYTES + 5 * len(pieces)


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xffo", frames.encode(frames.STDIN, b"x"),
        frames.encode(frames.EXIT, b"{"), frames.encode(frames.EXIT, b'{"exit_code": 4096}'),
        frames.encode(frames.EXIT, b'{"exit_code": 0, "html": "<b>"}'), frames.encode(frames.CREDIT, b"\0\0\0\1"),
        frames.encode(frames.CREDIT, b""), frames.encode(frames.STDOUT, b"x" * 65_536) * 17,
        frames.encode(frames.PROBLEM, b"[]"),
    ],
)  # fmt: skip
def test_what_a_job_puts_in_its_runners_place_is_not_believed(api: Api, said: bytes) -> None:
    api.opener.says = said
    answered = session(api, EXEC)
    assert problem(answered)["code"] == "Unavailable"
    assert sum(len(data) for kind, data in answered if kind == frames.STDOUT) <= frames.WINDOW_BYTES


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.binary(max_size=200) | st.lists(st.tuples(st.sampled_from(b"soecxpqz"), st.binary(max_size=40))))
def test_whatever_a_runner_says_a_client_gets_only_what_is_right(api: Api, said: Any) -> None:
    if not isinstance(said, bytes):
        said = b"".join(frames.encode(bytes([kind]), data) for kind, data in said)
    api.opener.says = said
    answered = session(api, EXEC)
    assert answered[-1][0] in (frames.PROBLEM, frames.EXIT)
    for kind, data in answered:
        frames.checked(kind + data, frames.FROM_RUNNER)
        if kind in (frames.STARTED, frames.EXIT, frames.PROBLEM):
            assert isinstance(json.loads(data), dict)


def test_a_runner_may_say_why_it_cannot(api: Api) -> None:
    api.opener.says = frames.encode_json(frames.PROBLEM, {"detail": "task main-0 has no process"})
    assert problem(session(api, EXEC))["detail"] == "task main-0 has no process"
    api.opener.says = None
    assert problem(session(api, EXEC))["detail"] == "nothing runs here"


def test_sessions_of_a_job_and_in_all_are_counted(api: Api) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_OF_A_JOB):
            stack.enter_context(api.edge.sessions._turn("default", api.ids["attempt"]))
        status, said = refused(api, f"/v1/jobs/{api.ids['job']}/session")
        assert (status, said["code"]) == (429, "TooManyRequests")
        for number in range(MAX_OF_A_PROJECT - MAX_OF_A_JOB):
            stack.enter_context(api.edge.sessions._turn("default", attempt_id(api.ids["job"], number + 2)))
        said = refused(api, f"/v1/jobs/{gang(api)}/session")[1]  # although none is open in it
        assert said["detail"].startswith(f"{MAX_OF_A_PROJECT} sessions are open in project default")
        for number in range(MAX_SESSIONS - MAX_OF_A_PROJECT):  # others have theirs
            stack.enter_context(api.edge.sessions._turn(f"p{number // 8}", attempt_id(api.ids["job"], number + 99)))
        assert refused(api, f"/v1/jobs/{api.ids['job']}/session")[1]["detail"].startswith(f"{MAX_SESSIONS} ")
    api.opener.says = EXIT
    session(api, EXEC)
    assert api.edge.sessions._open.total() == 0


class Deaf:
    """Plays jobs that listen in their runner's place, and do not read."""

    def __init__(self) -> None:
        self.asked, self.reads = threading.Semaphore(0), threading.Event()
        self.count = 0

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        self.count += 1
        self.asked.release()
        self.reads.wait(30)
        raise NotRunning(f"{attempt_id} {task} {request.verb}")


def test_jobs_that_do_not_answer_leave_threads_for_other_requests() -> None:
    deaf = Deaf()
    place = Place(make_job(), "an attempt", "main-0", 1)

    async def go() -> None:
        sessions = Sessions(deaf)

        async def one() -> None:
            with pytest.raises(NotRunning):
                await sessions._connected(place, SessionRequest(command=("ls",)))

        async with anyio.create_task_group() as group:
            try:
                for _ in range(MAX_SESSIONS):
                    group.start_soon(one)
                with anyio.fail_after(10):
                    for _ in range(MAX_OPENING):
                        await anyio.to_thread.run_sync(deaf.asked.acquire, True, 10)
                    await anyio.to_thread.run_sync(lambda: None)  # any other request
                assert deaf.count == MAX_OPENING
            finally:
                deaf.reads.set()

    anyio.run(go)
    assert deaf.count == MAX_SESSIONS


def test_a_session_through_which_nothing_passes_is_ended(api: Api) -> None:
    api.opener.says, api.opener.stays = frames.encode_json(frames.STARTED, {}), True
    api.edge.sessions = Sessions(api.opener, idle_s=0.05)
    answered = session(api, EXEC)
    assert [kind for kind, _ in answered] == [frames.STARTED, frames.PROBLEM]
    assert "nothing has passed" in problem(answered)["detail"]
    assert api.opener.heard() == b""


def test_the_simulated_executor_has_none() -> None:
    executor = SimulatedBench().executor
    assert not executor.capabilities.sessions
    with pytest.raises(NotRunning):
        executor.open_session("x", "main-0", SessionRequest(command=("ls",)))
