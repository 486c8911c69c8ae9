"""A node's environments: one fills at a time, what is there is whole, and what is used is never taken away."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.runner import environments_cache as cache
from danlu.runner.environments_cache import Full, Gone

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
POD, OTHER = "j1-1-main-0", "j2-1-worker-3"
DAY_S = 86_400.0


def make(folder: str) -> dict[str, Any]:
    Path(folder, "file").write_text("whole")
    return {"unpacked_bytes": 100}


def never(_folder: str) -> dict[str, Any]:
    raise AssertionError("it is there")


def nobody() -> None:
    raise AssertionError("nobody else is at work")


def fill(folder: Path, digest: str, *, unused_s: float = 0.0) -> None:
    """Has an environment there that was last asked for a while ago."""
    assert not cache.ensure(str(folder), digest, POD, make, nobody)
    lock = folder / cache.LOCKS / digest
    os.utime(lock, (at := lock.stat().st_mtime - unused_s, at))


def hold(folder: Path, digest: str, pod: str = POD) -> int:
    """As a job's container holds it."""
    return cache.hold(str(folder), digest, cache.file_of(str(folder), digest, pod))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {cache.LOCKS, cache.USES}


def room(folder: Path, *, wanted_bytes: int = 0, max_bytes: int = 1000, unused_s: float = 30 * DAY_S) -> list[str]:
    return cache.make_room(str(folder), wanted_bytes, max_bytes, unused_s)


def test_it_is_made_once_and_found_again(tmp_path: Path) -> None:
    fill(tmp_path, ONE)
    assert cache.ensure(str(tmp_path), ONE, POD, never, nobody)
    assert (tmp_path / ONE / "file").read_text() == "whole"
    assert names(tmp_path) == {ONE}


def test_of_two_at_a_time_one_makes_it(tmp_path: Path) -> None:
    begun, waits, may_end = threading.Event(), threading.Event(), threading.Event()
    found: list[bool] = []

    def slow(folder: str) -> dict[str, Any]:
        begun.set()
        assert may_end.wait(30)
        return make(folder)

    first = threading.Thread(target=lambda: found.append(cache.ensure(str(tmp_path), ONE, POD, slow, nobody)))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: found.append(cache.ensure(str(tmp_path), ONE, POD, never, waits.set)))
    second.start()
    assert waits.wait(30)
    may_end.set()
    first.join()
    second.join()
    assert sorted(found) == [False, True]


def test_who_runs_with_it_does_not_keep_others_waiting(tmp_path: Path) -> None:
    fill(tmp_path, ONE)
    descriptor = hold(tmp_path, ONE)
    assert cache.ensure(str(tmp_path), ONE, POD, never, nobody)
    os.close(descriptor)


KILLED = """
import os, signal, sys
from danlu.runner import environments_cache
def make(folder):
    open(folder + "/half", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
environments_cache.ensure(sys.argv[1], sys.argv[2], "pod", make, None)
"""


def test_what_a_killed_one_left_is_made_anew(tmp_path: Path) -> None:
    path = str(Path(danlu.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, ONE], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == {f"{cache.NEW}{ONE}"}
    assert not cache.ensure(str(tmp_path), ONE, POD, make, nobody)
    assert names(tmp_path) == {ONE}
    assert not (tmp_path / ONE / "half").exists()


def test_what_a_killed_one_left_goes_with_another_environment(tmp_path: Path) -> None:
    (tmp_path / f"{cache.NEW}{ONE}").mkdir()
    fill(tmp_path, TWO)
    assert room(tmp_path) == []
    assert names(tmp_path) == {TWO}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("damaged")])
def test_a_failure_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def fails(folder: str) -> dict[str, Any]:
        make(folder)
        raise error

    with pytest.raises(type(error)):
        cache.ensure(str(tmp_path), ONE, POD, fails, nobody)
    assert names(tmp_path) == set()
    with pytest.raises(Gone):
        hold(tmp_path, ONE)
    assert not cache.ensure(str(tmp_path), ONE, POD, make, nobody)


def test_what_nobody_asks_for_goes(tmp_path: Path) -> None:
    fill(tmp_path, ONE, unused_s=31 * DAY_S)
    fill(tmp_path, TWO, unused_s=29 * DAY_S)
    assert room(tmp_path) == [ONE]
    assert names(tmp_path) == {TWO}
    assert {path.name for path in (tmp_path / cache.LOCKS).iterdir()} == {TWO}
    with pytest.raises(Gone):
        hold(tmp_path, ONE)


MOUNTED = """
import os, sys
from danlu.runner import environments_cache as cache
opened, path = os.open, cache.file_of(sys.argv[1], sys.argv[2], sys.argv[3])
own = opened(path, os.O_RDONLY)
os.unlink(path)
os.open = lambda *_: opened("/proc/self/fd/%d" % own, os.O_RDONLY)
try:
    cache.hold(sys.argv[1], sys.argv[2], path)
except cache.Gone:
    print("gone")
"""
"""As a container has a file that was mounted to it by itself, and was removed since."""


def test_a_file_that_was_removed_though_it_is_mounted_holds_nothing(tmp_path: Path) -> None:
    fill(tmp_path, ONE)
    path = str(Path(danlu.__file__).parent.parent)
    words = [sys.executable, "-c", MOUNTED, tmp_path, ONE, POD]
    done = subprocess.run(words, env={"PYTHONPATH": path}, check=False, capture_output=True, timeout=30)
    assert done.stdout == b"gone\n", done.stderr


def test_what_a_job_can_lock_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It can open what it sees, and hold it alone; another project's job has the same environment."""
    fill(tmp_path, ONE, unused_s=99 * DAY_S)
    own = os.open(cache.file_of(str(tmp_path), ONE, POD), os.O_RDONLY)
    fcntl.flock(own, fcntl.LOCK_EX)
    found: list[bool] = []

    def other() -> None:
        found.append(cache.ensure(str(tmp_path), ONE, OTHER, never, nobody))
        os.close(hold(tmp_path, ONE, OTHER))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join(30)
    assert found == [True]
    assert not thread.is_alive()
    os.close(own)


def test_files_of_pods_that_are_gone_do_not_pile_up(tmp_path: Path) -> None:
    fill(tmp_path, ONE)
    held = hold(tmp_path, ONE)
    for number in range(3):
        assert cache.ensure(str(tmp_path), ONE, f"gone-{number}", never, nobody)
    for path in (tmp_path / cache.USES / ONE).iterdir():
        os.utime(path, (0, 0))
    assert cache.ensure(str(tmp_path), ONE, OTHER, never, nobody)
    assert {path.name for path in (tmp_path / cache.USES / ONE).iterdir()} == {POD, OTHER}
    os.close(held)


def test_a_folder_in_the_place_of_a_lock_is_removed(tmp_path: Path) -> None:
    (tmp_path / cache.LOCKS / ONE).mkdir(parents=True)
    (tmp_path / ONE).mkdir()
    (tmp_path / cache.USES / ONE / OTHER).mkdir(parents=True)
    assert not cache.ensure(str(tmp_path), ONE, POD, make, nobody)
    os.close(hold(tmp_path, ONE))
    assert cache.ensure(str(tmp_path), ONE, POD, never, nobody)
    assert [path.name for path in (tmp_path / cache.USES / ONE).iterdir()] == [POD]


def test_where_there_are_too_many_the_oldest_go_but_the_young(tmp_path: Path) -> None:
    fill(tmp_path, TWO, unused_s=2 * DAY_S)
    fill(tmp_path, ONE, unused_s=3 * DAY_S)
    fill(tmp_path, THREE, unused_s=cache.YOUNG_S / 2)
    assert room(tmp_path, wanted_bytes=100, max_bytes=350) == [ONE]
    assert room(tmp_path, wanted_bytes=100, max_bytes=100) == [TWO]
    assert names(tmp_path) == {THREE}, "its pod may have been about to hold it"


def test_what_is_used_stays(tmp_path: Path) -> None:
    fill(tmp_path, ONE, unused_s=99 * DAY_S)
    descriptor = hold(tmp_path, ONE)
    assert room(tmp_path, wanted_bytes=100, max_bytes=0) == []
    assert names(tmp_path) == {ONE}
    os.close(descriptor)
    assert room(tmp_path, max_bytes=0) == [ONE]


def test_a_full_disk_is_made_room_on_or_told(tmp_path: Path) -> None:
    fill(tmp_path, ONE, unused_s=DAY_S)
    with pytest.raises(Full, match=r"needs \d+ MB, and the disk of .* has \d+ MB"):
        room(tmp_path, wanted_bytes=2**60, max_bytes=2**61)
    assert names(tmp_path) == set(), "what was not used made room first"


def test_only_digests_are_names(tmp_path: Path) -> None:
    for name in ("../x", "", ONE[1:], f"{ONE}/.."):
        with pytest.raises(ValueError, match="no environment's digest"):
            cache.ensure(str(tmp_path), name, POD, never, nobody)
        with pytest.raises(ValueError, match="no environment's digest"):
            cache.hold(str(tmp_path), name, str(tmp_path / "own"))
    for name in ("../x", "", "a/b", ".x"):
        with pytest.raises(ValueError, match="no pod's name"):
            cache.ensure(str(tmp_path), ONE, name, never, nobody)
