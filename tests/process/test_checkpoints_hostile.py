"""Checkpoints are counted in a folder that belongs to the job: what it does there harms nobody who counts."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.executors.local.beneath import MAX_DEPTH
from danlu.executors.local.spools import LocalSpools
from tests.factories import Ids
from tests.process.test_local_executor import opened

UID = 198_779
THERE = b"a checkpoint"
NAMES = 20_000
MAX_MEMORY_BYTES = 500_000


class Checkpoints:
    """A job's folder of checkpoints with one in it, beside a folder of somebody else's."""

    def __init__(self, home: Path) -> None:
        self.spools, self.job = LocalSpools(home / "attempts", home / "checkpoints"), Ids()()
        self.folder, self.elsewhere = home / "checkpoints" / self.job, home / "elsewhere"
        for folder in (self.folder, self.elsewhere):
            folder.mkdir(parents=True)
            (folder / "there").write_bytes(THERE)

    def size(self) -> int:
        return self.spools.checkpoint_bytes(self.job)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)


@pytest.fixture
def user(checkpoints: Checkpoints) -> Iterator[None]:
    """Runs the test as the job's user, as a platform of one user does: root may open everything."""
    root = os.geteuid() == 0
    if root:
        opened(checkpoints.folder.parent)
        os.chown(checkpoints.folder, UID, UID)
        os.seteuid(UID)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        checkpoints.folder.chmod(0o700)


@pytest.mark.usefixtures("user")
def test_a_folder_that_its_job_has_closed_keeps_nobody_from_counting(checkpoints: Checkpoints) -> None:
    inner = checkpoints.folder / "closed"
    inner.mkdir()
    inner.chmod(0)
    assert checkpoints.size() == len(THERE)
    inner.chmod(0o700)
    checkpoints.folder.chmod(0)
    assert checkpoints.size() == 0


def many(folder: Path, _elsewhere: Path) -> None:
    """Links of one file: it counts once."""
    for at in range(NAMES):
        os.link(folder / "there", folder / f"{at:06d}")


def links(folder: Path, elsewhere: Path) -> None:
    (folder / "file").symlink_to(elsewhere / "there")
    (folder / "folder").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)


def no_files(folder: Path, _elsewhere: Path) -> None:
    os.mkfifo(folder / "fifo")
    os.truncate(os.open(folder / "hole", os.O_CREAT | os.O_WRONLY), 2**40)


@pytest.mark.parametrize("work", [many, links, no_files])
def test_only_what_takes_room_counts_and_counting_takes_little(
    checkpoints: Checkpoints, work: Callable[[Path, Path], None]
) -> None:
    work(checkpoints.folder, checkpoints.elsewhere)
    tracemalloc.start()
    try:
        assert checkpoints.size() == len(THERE)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MAX_MEMORY_BYTES


def test_a_folder_that_was_replaced_by_a_link_is_empty(checkpoints: Checkpoints) -> None:
    checkpoints.folder.rename(checkpoints.folder.with_name("moved"))
    checkpoints.folder.symlink_to(checkpoints.elsewhere)
    assert checkpoints.size() == 0


def test_what_lies_deeper_than_anybody_looks_does_not_count(checkpoints: Checkpoints) -> None:
    folder = os.open(checkpoints.folder, os.O_RDONLY)
    for _ in range(MAX_DEPTH):
        os.mkdir("deeper", dir_fd=folder)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    with open(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=folder), "wb") as file:
        file.write(THERE)
    os.close(folder)
    assert checkpoints.size() == len(THERE)
