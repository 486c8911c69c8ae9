"""kill -9 of anything, at random, again and again: no job, no flushed line, no result is lost, and no process is left."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from danlu.database import ledger
from danlu.database.engine import Database
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Job, JobState
from danlu.runner import formats
from danlu.runner.processes import descendants
from tests.books import check_books, rows
from tests.process.platform import Server, processes_with, until

JOBS, KILLS = 20, 50
LINES = 400
END_TIMEOUT_S = 240.0
PROGRAM = """
import json, os, sys, time, danlu
folder, outputs = os.environ["DANLU_CHECKPOINT_DIR"], os.environ["DANLU_OUTPUT_DIR"]
newest = danlu.latest_checkpoint()
done = json.load(open(newest))["done"] if newest else 0
os.makedirs(os.path.join(folder, ".witness"), exist_ok=True)
path = os.path.join(folder, ".witness", os.environ["DANLU_ATTEMPT_ID"])
witness = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(3600)  # a daemon that nobody waits for
while done < LINES:
    line = "%s line %d\\n" % (os.environ["DANLU_ATTEMPT_ID"], done)
    os.write(1 if done % 3 else 2, line.encode())
    os.write(witness, line.encode())  # only what was surely written is testified
    done += 1
    if done % 20 == 0:
        path = os.path.join(folder, "step-%06d.json" % done)
        with open(path + ".tmp", "w") as file:
            json.dump({"done": done}, file)
        os.rename(path + ".tmp", path)
        danlu.log(step=done, done=done)
    time.sleep(0.02)
with open(os.path.join(outputs, "result.json"), "w") as file:
    json.dump({"done": done}, file)
""".replace("LINES", str(LINES))


def running(server: Server, jobs: list[Job]) -> list[tuple[int, list[int]]]:
    """Returns (runner, its processes) of every attempt that runs now."""
    found = []
    for job in jobs:
        for folder in (server.home / "attempts").glob(f"{job.id}-*"):
            events = formats.read_status(str(folder / "status"))
            runner = next((e for e in events if e["event"] == "runner"), None)
            if runner is None or events[-1]["event"] == "ended":
                continue
            if formats.start_time(runner["pid"]) == runner["start_time"]:
                found.append((runner["pid"], descendants(runner["pid"])))
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.slow
def test_kill_9_of_anything_loses_nothing(server: Server, home: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance, pause, killed = random.Random(seed), threading.Event(), Counter[str]()
    jobs = [
        server.submit(
            "python", "-c", PROGRAM, name=f"chaos-{number}", retry={"attempts": 100}, cpu=0.1, grace=1
        )
        for number in range(JOBS)
    ]  # fmt: skip
    until(lambda: len(running(server, jobs)) == JOBS, 60, "all jobs run")
    while sum(killed.values()) < KILLS:
        pause.wait(chance.uniform(0.0, 0.15))
        what = chance.choice(["server", "runner", "process"])
        if what == "server":
            server.kill()
            pause.wait(chance.uniform(0.0, 0.5))
            assert server.start().get("ready")
        else:
            alive = running(server, jobs)
            if not alive:
                continue
            runner, processes = chance.choice(alive)
            if what == "process" and not processes:
                continue
            kill(runner if what == "runner" else chance.choice(processes))
        killed[what] += 1
    ended = [server.wait(job.id, END_TIMEOUT_S) for job in jobs]
    assert [job.state for job in ended] == [JobState.SUCCEEDED] * JOBS, [(j.name, j.reason, j.message) for j in ended]
    witnessed = 0
    for job in ended:
        for number in range(1, job.attempts + 1):
            file = home / "checkpoints" / job.id / ".witness" / f"{job.id}-{number}"
            seen = file.read_text().splitlines() if file.exists() else []
            witnessed += len(seen)
            counted = Counter(server.lines(job.id, number))
            assert all(counted[line] == 1 for line in seen), f"{job.id}-{number}: seed {seed}"
            assert max(counted.values(), default=1) == 1
    assert witnessed >= JOBS * LINES
    with server.client() as client:
        for job in ended:
            newest = client.call("jobs.artifacts", {"job": job.id}).items[0]
            assert not newest.partial
            assert newest.files == 1
            metrics = client.call("jobs.metrics", {"job": job.id}).series
            assert metrics[0].largest == LINES
    assert sum(job.losses for job in ended) >= 1
    until(lambda: not any(processes_with(job.id) for job in jobs), 30, "no process of a job is left")
    assert list((home / "attempts").iterdir()) == []
    server.kill()
    database = Database.open(f"sqlite:///{home / 'danlu.db'}")
    try:
        check_books(database, time.time_ns(), (), exact=False)
        held = {entry.meter.object_id for entry in database.read(rows)}
        assert {attempt_id(job.id, number) for job in ended for number in range(1, job.attempts + 1)} <= held
        assert all(meter.account is not None for meter in database.read(ledger.open_meters))
    finally:
        database.close()
    print(json.dumps({"killed": killed, "attempts": sum(job.attempts for job in ended)}))
