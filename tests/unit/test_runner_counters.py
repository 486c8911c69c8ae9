"""The kernel's counters, as recorded on machines with either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.runner.counters import Counters
from tests.factories import write_files

V1 = {
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/memory.max_usage_in_bytes": "53477376\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "cpuacct/cpuacct.usage": "1234567890\n",
}
V2 = {
    "one/memory.events": "low 0\nhigh 0\nmax 13\noom 3\noom_kill 2\noom_group_kill 0\n",
    "one/memory.peak": "53477376\n",
    "one/memory.max": "67108864\n",
    "one/cpu.stat": "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
}


def _v1(root: Path) -> Counters:
    return Counters({"version": 1, "memory": str(root / "memory"), "cpu": str(root / "cpuacct")})


def _v2(root: Path) -> Counters:
    return Counters({"version": 2, "memory": str(root / "one"), "cpu": str(root / "one")})


@pytest.mark.parametrize(("files", "make", "cpu_ns"), [(V1, _v1, 1234567890), (V2, _v2, 1234567000)], ids=["v1", "v2"])
def test_counters_are_read(tmp_path: Path, files: dict[str, str], make: object, cpu_ns: int) -> None:
    counters = make(write_files(tmp_path, dict(files)))  # type: ignore[operator]
    assert counters.oom_kills() == 2
    assert counters.peak_memory_bytes() == 53477376
    assert counters.memory_limit_bytes() == 67108864
    assert counters.cpu_ns() == cpu_ns


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", "", "x"])
def test_no_limit_is_none(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {"one/memory.max": text, "memory/memory.limit_in_bytes": text})
    assert _v2(tmp_path).memory_limit_bytes() is None
    assert _v1(tmp_path).memory_limit_bytes() is None


@pytest.mark.parametrize("content", [None, "", "oom_kill\n", "oom_kill x\n", "\n\n"])
def test_what_the_kernel_does_not_tell_is_not_made_up(tmp_path: Path, content: str | None) -> None:
    names = ("one/memory.events", "one/memory.peak", "one/cpu.stat")
    write_files(tmp_path, {} if content is None else dict.fromkeys(names, content))
    counters = _v2(tmp_path)
    assert (counters.oom_kills(), counters.peak_memory_bytes(), counters.cpu_ns()) == (0, None, None)


@pytest.mark.parametrize("where", [None, {}, {"version": 1, "memory": None, "cpu": None}])
def test_without_control_groups_nothing_is_counted(where: dict[str, object] | None) -> None:
    counters = Counters(where)
    assert counters.oom_kills() == 0
    assert counters.peak_memory_bytes() is None
    assert counters.memory_limit_bytes() is None
    assert counters.cpu_ns() is None
