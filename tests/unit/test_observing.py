"""What the local executor reads of an attempt's folder: every event once, and the last word whatever comes before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.roles import MAX_RESTARTS, MAX_TASKS
from danlu.executors.base import Phase
from danlu.executors.local.observing import Seen, observation
from danlu.runner import formats


class Folder:
    """An attempt's folder, as a runner writes it."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self.folder = folder
        folder.mkdir()
        order = {
            "attempt_id": folder.name,
            "tasks": [
                {"name": f"worker-{index}", "role": "worker", "index": index, "rank": index, "node": "n", "devices": []}
                for index in range(tasks)
            ],
        }
        (folder / "order.json").write_text(json.dumps(order))

    def say(self, *events: dict[str, Any]) -> None:
        with (self.folder / "status").open("a") as file:
            file.writelines(json.dumps({"at": 1, **event}) + "\n" for event in events)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "attempt-1", tasks=3)


def test_each_task_has_its_own_events(folder: Folder) -> None:
    seen = Seen(folder.folder)
    folder.say({"event": "runner"}, *({"event": "started", "task": f"worker-{n}", "at": n + 5} for n in range(2)))
    folder.say({"event": "restarted", "task": "worker-1"}, {"event": "started", "task": "worker-1", "at": 9})
    folder.say({"event": "exited", "task": "worker-0", "at": 10, "exit_code": 3}, {"event": "odd", "task": [1]})
    seen.refresh()
    found = observation(seen)
    assert [(task.started_at, task.exit_code, task.restarts) for task in found.tasks] == [
        (5, 3, 0),
        (6, None, 1),
        (None, None, 0),
    ]
    assert (found.phase, found.started_at) == (Phase.RUNNING, 5)


def test_what_has_not_changed_is_not_made_again(folder: Folder) -> None:
    seen = Seen(folder.folder)
    folder.say({"event": "started", "task": "worker-0"})
    seen.refresh()
    found = observation(seen)
    seen.refresh()
    assert observation(seen) is found
    (folder.folder / "launched.json").write_text(json.dumps({"limits": ["memory"]}))
    assert observation(seen).limits == ("memory",)
    folder.say({"event": "exited", "task": "worker-0", "exit_code": 0})
    seen.refresh()
    assert observation(seen).tasks[0].exit_code == 0


def test_the_last_word_is_seen_in_a_status_that_is_too_long(folder: Folder) -> None:
    with (folder.folder / "status").open("w") as file:
        file.write(json.dumps({"event": "started", "task": "worker-0", "at": 1}) + "\n")
        line = json.dumps({"event": "restarted", "task": "worker-0", "why": "x" * 10_000}) + "\n"
        file.writelines(line for _ in range(formats.MAX_STATUS_BYTES // len(line) + 50))
    folder.say({"event": "exited", "task": "worker-0", "exit_code": 0}, {"event": "ended", "at": 7})
    assert (folder.folder / "status").stat().st_size > formats.MAX_STATUS_BYTES
    seen = Seen(folder.folder)
    seen.refresh()
    ended = seen.ended()
    assert ended is not None
    assert ended["at"] == 7
    assert (observation(seen).phase, observation(seen).tasks[0].exit_code) == (Phase.ENDED, 0)
    assert formats.read_status(str(folder.folder / "status")) == list(seen.events)


def test_no_job_may_ask_for_a_status_that_is_too_long() -> None:
    name, at = "w" * 31 + "-1023", 10**19
    started = {"event": "started", "at": at, "task": name, "pid": 2**22, "start_time": 10**12, "restarts": 100}
    again = {"event": "restarted", "at": at, "task": name, "restarts": 100, "why": "killed by SIGKILL" * 8}
    exited = {
        "event": "exited", "at": at, "task": name, "stopped": False, "exit_code": 255, "signal": None, "oom": False,
        "error": "killed by the kernel: it used 100.0 GiB of its 100.0 GiB", "peak_memory_bytes": 2**63, "cpu_ns": 2**63,
        "restarts": 100, "port_taken": 65_535, "last_lines": "",
    }  # fmt: skip
    said = [len(json.dumps(event)) + 1 for event in (started, again, exited)]
    most = MAX_RESTARTS * (said[0] + said[1]) + MAX_TASKS * (said[0] + said[2])
    assert most < formats.MAX_STATUS_BYTES - 100_000  # what else is there: the runner's own, names, last lines
