"""What a runner does differently for being in a pod: devices that others give away, counters that are shared, who ends it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from danlu.domain.trees import Entry, address_of, encode, frames
from danlu.runner import formats, pod
from danlu.runner.counters import Counters
from danlu.runner.usage import gpus_of
from tests.factories import write_files
from tests.unit.test_runner_main import Life, life, python, until  # noqa: F401 - fixtures


def stopped(life: Life, said: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """Says something in the stop file once the task runs; returns the attempt's last word."""
    life.order("/bin/sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    with life.start() as runner:
        until(lambda: "ready" in life.log())
        formats.write_atomically(str(life.folder / "stop"), json.dumps(said).encode())
        assert runner.wait(30) == 0
    return life.events("ended")[0]


@pytest.mark.parametrize(
    ("more", "stops", "evicted", "message"),
    [({}, True, False, ""), ({"outcome": "well"}, False, False, ""), ({"outcome": "badly"}, False, False, ""),
     ({"evicted": True}, False, True, "its pod was told to end")],
)  # fmt: skip
def test_by_what_it_was_ended(life: Life, more: dict[str, Any], stops: bool, evicted: bool, message: str) -> None:  # noqa: F811
    ended = stopped(life, {"grace_s": 20, **more})
    assert (ended["stopped"], ended["evicted"], ended["lost"]) == (stops, evicted, False)
    assert ended["message"].startswith(message)
    (exited,) = life.events("exited")
    assert (exited["exit_code"], exited["stopped"]) == (7, True)


def test_devices_are_left_to_who_gives_them_away(life: Life) -> None:  # noqa: F811
    life.order("/bin/sh", "-c", "echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES")
    order = json.loads((life.folder / "order.json").read_text())
    order["tasks"][0].update(devices=None)
    order["tasks"][0]["env"].update(CUDA_VISIBLE_DEVICES="GPU-7", NVIDIA_VISIBLE_DEVICES="GPU-8")
    (life.folder / "order.json").write_text(json.dumps(order))
    assert life.run() == 0
    assert life.log() == ["GPU-7 GPU-8"]


def test_gpus_are_looked_at_whoever_gives_them_away() -> None:
    assert gpus_of({"devices": [1, 3]}) == (1, 3)
    assert gpus_of({"devices": [], "resources": {"gpus": 2}}) == ()
    assert gpus_of({"devices": None, "resources": {"gpus": 2}}) == (0, 1)
    assert gpus_of({"devices": None}) == ()


def test_a_shared_group_tells_counts_and_no_processes(tmp_path: Path) -> None:
    """In it is what delivers too: nobody may be killed for being in it."""
    write_files(tmp_path, {"one/memory.events": "oom_kill 2\n", "one/cgroup.procs": f"{os.getpid()}\n"})
    own = {"version": 2, "memory": str(tmp_path / "one"), "cpu": str(tmp_path / "one")}
    assert Counters(own).processes() == [os.getpid()]
    shared = Counters({**own, "shared": True})
    assert (shared.processes(), shared.oom_kills()) == (None, 2)


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"memory.current": "1"}, 2),
        ({"memory/memory.oom_control": "", "cpuacct/cpuacct.usage": "1"}, 1),
        ({"memory/memory.oom_control": "", "cpu,cpuacct/cpuacct.usage": "1"}, 1),
        ({"memory/memory.oom_control": "", "memory/release_agent": ""}, None),
        ({"cgroup.procs": ""}, None),
    ],
)
def test_the_containers_group_is_found_and_the_machines_is_none(
    tmp_path: Path, files: dict[str, str], version: int | None
) -> None:
    found = pod.counters(str(write_files(tmp_path, dict(files))))
    assert (None if found is None else found["version"]) == version
    if found is not None and version == 1:
        assert Counters(found).cpu_ns() == 1


def test_code_that_does_not_fit_leaves_room_to_tell_so(tmp_path: Path) -> None:
    small, large = b"small", b"x" * 10_000
    root = encode(
        [Entry("a", "file", address_of(small), 0o644, 5), Entry("b", "file", address_of(large), 0o644, 10_000)]
    )
    order = {
        "attempt_id": "j-1",
        "tasks": [{"name": "main-0"}],
        "pod": {"url": "http://x", "attempt_id": "j-1", "code": address_of(root)},
    }
    write_files(tmp_path, {"order/order.json": json.dumps(order), "order/token": "t"})
    (tmp_path / "attempt" / "work").mkdir(parents=True)

    def download(_path: str) -> Iterator[bytes]:
        yield b"".join(frames([root, small, large]))[:-1]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(pod.Pod):
        def channel(self) -> Any:
            return SimpleNamespace(download=download)

    made = Full(str(tmp_path), "main-0")
    with pytest.raises(OSError, match="No space left"):
        made._fetch_code()
    assert list((tmp_path / "attempt" / "work").iterdir()) == []
