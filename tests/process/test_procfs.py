"""The whole list of processes: whole for each of those who look at the same time."""

from __future__ import annotations

import os

import pytest

from danlu.runner import procfs

LAST = 1 << 23
"""A place in Linux's list of /proc behind all processes."""


def test_whoever_looks_sees_all_though_another_looks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session is forked from its runner, has the same descriptor, and ends its own processes while the runner waits."""
    monkeypatch.setattr(procfs, "_whole", None)
    procfs.keep()
    (kept,) = procfs.kept()
    pid = os.fork()
    if pid == 0:
        os.lseek(kept, LAST, os.SEEK_SET)
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        assert os.getpid() in procfs.pids()
    finally:
        os.close(kept)
