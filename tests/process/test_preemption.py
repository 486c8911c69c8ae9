"""A real server's real training makes way: what it loses, who hears of it, and what may happen meanwhile."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest

from danlu.api.bodies import StopRequest
from danlu.domain.jobs import Attempt, Job, JobState, Preemption, Reason
from tests.factories import SECOND
from tests.process.platform import Server, processes_with, until

TRAINING = """
import json, os, signal, sys, time
import danlu

told = []
say = print if os.environ["DANLU_RANK"] == "0" else lambda *_, **__: None
wanted = os.environ["NOTICE"]
if wanted in ("TERM", "USR1"):
    signal.signal(getattr(signal, "SIG" + wanted), lambda *_: told.append(1))
elif wanted == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = danlu.latest_checkpoint()
step = json.load(open(path))["step"] if path else 0
say("from", step, flush=True)


def save():
    if os.environ["DANLU_RANK"] == "0":
        time.sleep(float(os.environ.get("SLOW", 0)))
        final = os.path.join(danlu.checkpoint_dir(), "step-%04d.json" % step)
        with open(final + ".tmp", "w") as file:
            json.dump({"step": step}, file)
        os.replace(final + ".tmp", final)


last = int(os.environ["LAST"])
while step < last:
    time.sleep(0.02)
    step += 1
    say(step, flush=True)
    if step % 25 == 0:
        save()
    if told or (wanted == "poll" and danlu.preempted()):
        save()
        sys.exit(0)
say("done")
"""


def train(server: Server, hears: str, last: int = 200, slow: float = 0, **spec: Any) -> Job:
    variables = {"NOTICE": hears, "LAST": str(last), "SLOW": str(slow)}
    number = {"notice_signal": hears} if hears in ("TERM", "USR1") else {}
    job = server.submit("python", "-c", TRAINING, name="training", variables=variables, grace=1, **number, **spec)
    until(lambda: len(printed(server, job)) > 30, 30, "it trains")
    return job


def printed(server: Server, job: Job) -> list[str]:
    """Returns what the running first attempt has printed."""
    files = sorted((server.home / "attempts" / f"{job.id}-1").glob("*-0/stdout"))
    return files[0].read_text().splitlines() if files else []


def preempt(server: Server, job: Job, for_project: str = "default") -> None:
    """Stores that a job's attempt has to make way, as the scheduler does by its door, from outside of the server."""
    now = time.time_ns()
    said = Preemption(
        at=now, deadline=now + int(job.spec.notice * SECOND), for_job="j", for_project=for_project,
        for_name="big" if for_project == "default" else "", why="its guarantee",
    )  # fmt: skip
    with closing(sqlite3.connect(server.home / "danlu.db", timeout=20, isolation_level=None)) as connection:
        while True:
            found = "SELECT version, body FROM attempts WHERE id = ?"
            version, body = connection.execute(found, (f"{job.id}-1",)).fetchone()
            put = "UPDATE attempts SET version = ?, body = ? WHERE id = ? AND version = ?"
            text = json.dumps({**json.loads(body), "preemption": said.model_dump()})
            if connection.execute(put, (version + 1, text, f"{job.id}-1", version)).rowcount:
                return


def attempts(server: Server, job: Job) -> list[Attempt]:
    """Returns a job's attempts, the first one first."""
    with server.client() as client:
        return list(reversed(client.call("jobs.attempts", {"job": job.id}).items))


def steps(server: Server, job: Job, number: int) -> list[int]:
    """Returns the steps that an attempt made, after the one that it began from."""
    return [int(word) for line in server.lines(job.id, number) for word in line.split() if word.isdigit()]


def went_on(server: Server, job: Job) -> tuple[Attempt, int]:
    """Waits for the end of a job that made way once; returns its first attempt, and how many steps were made twice."""
    ended = server.wait(job.id)
    assert (ended.state, ended.attempts, ended.preemptions) == (JobState.SUCCEEDED, 2, 1), ended
    assert (ended.failures, ended.losses, ended.queued_at) == (0, 0, job.queued_at)
    first, _ = attempts(server, job)
    assert first.reason is Reason.PREEMPTED
    begin = steps(server, job, 2)[0]
    return first, steps(server, job, 1)[-1] - begin


@pytest.mark.parametrize("hears", ["TERM", "USR1", "poll"])
def test_who_saves_at_the_notice_loses_no_step(server: Server, hears: str) -> None:
    job = train(server, hears, notice="60s")
    preempt(server, job)
    first, lost = went_on(server, job)
    assert lost == 0
    assert first.message == "it made way for job big: its guarantee; lost: nothing: it wrote a checkpoint at the notice"
    assert first.exit_code == 0
    assert first.saved_as == f"step-{steps(server, job, 2)[0]:04d}.json"


def test_who_ignores_the_notice_is_killed_at_the_deadline_and_loses_one_interval(server: Server) -> None:
    job = train(server, "deaf", notice="1s")
    preempt(server, job, for_project="theirs")
    first, lost = went_on(server, job)
    assert 0 <= lost <= 25
    assert "it made way for a job of another project: its guarantee; lost: " in first.message
    assert first.preemption is not None
    assert (first.preemption.for_job, first.preemption.for_project) == ("", "")


def test_a_gang_makes_way_together(server: Server) -> None:
    job = train(server, "TERM", notice="60s", roles={"worker": {"replicas": 2}}, framework="none")
    preempt(server, job)
    first, lost = went_on(server, job)
    assert lost == 0
    assert [task.exit_code for task in first.tasks] == [0, 0]


def test_a_server_killed_during_the_notice_changes_nothing(server: Server) -> None:
    job = train(server, "TERM", slow=1.0, notice="60s")
    preempt(server, job)
    until(lambda: any(event["event"] == "notice" for event in server.events(f"{job.id}-1")), 30, "it is told")
    server.kill()
    assert server.start().get("ready")
    _, lost = went_on(server, job)
    assert lost == 0


def test_a_users_stop_during_the_notice_wins(server: Server) -> None:
    job = train(server, "host", last=100_000, notice="1h")
    preempt(server, job)
    until(lambda: server.job(job.id).reason is Reason.PREEMPTED, 30, "it is told")
    assert server.job(job.id).message == "it makes way for job big, and has 1 h to save: its guarantee"
    with server.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest())
    ended = server.wait(job.id)
    assert (ended.state, ended.attempts, ended.preemptions) == (JobState.CANCELLED, 1, 0)
    assert not processes_with(job.id)
