"""Outputs that change while they are collected: what takes their place is neither followed nor waited for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.local import LocalBlobs
from danlu.controllers import collection
from danlu.controllers.collection import CollectionController
from danlu.errors import DanluError
from danlu.services.context import Hub
from tests.factories import NOW, Ids, make_attempt, make_job

CANARY = b"canary of another user"
UID = 198_778


class Clock:
    def now(self) -> int:
        return NOW


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """The outputs of an ended attempt, of a job's user where there are several, beside a file of somebody else's."""
    folder = tmp_path / "outputs"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "there", folder / "deep" / "secret"):
        path.write_text(f"a result in {path.name}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(CANARY)
    (tmp_path / "elsewhere" / "secret").chmod(0o600)
    if os.geteuid() == 0:
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o711)
        for path in (folder, folder / "deep", folder / "there", folder / "deep" / "secret"):
            os.chown(path, UID, UID)
    return folder


class Collector:
    """The part of the server that keeps outputs."""

    def __init__(self, blobs: Path) -> None:
        nothing: Any = None
        self.blobs = blobs
        self.attempt = make_attempt(make_job(Ids(1)()))
        self.controller = CollectionController(
            nothing, nothing, nothing, LocalBlobs(blobs), nothing, Clock(), Hub(), nothing
        )

    def keep(self, folder: Path) -> Any:
        """Keeps outputs; returns None where that would be tried again."""
        with contextlib.suppress(DanluError, OSError, ValueError):
            found = collection.scan(folder, code=False, now=NOW)
            for _ in self.controller._keep(self.attempt, found):
                pass
            return found
        return None

    def has(self, data: bytes) -> bool:
        return any(data in path.read_bytes() for path in self.blobs.rglob("*") if path.is_file())


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[1] / "elsewhere" / "secret")


def linked_hard(path: Path) -> None:
    path.unlink()
    path.hardlink_to(path.parents[1] / "elsewhere" / "secret")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def gone(path: Path) -> None:
    path.unlink()


def in_a_link(path: Path) -> None:
    deep = path.parent / "deep"
    deep.rename(path.parent / "away")
    deep.symlink_to(path.parents[1] / "elsewhere")


@pytest.mark.parametrize("swap", [linked, linked_hard, a_pipe, gone, in_a_link])
@pytest.mark.parametrize("when", ["before", "opened", "between"])
def test_what_takes_a_files_place_is_not_kept(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path], None], when: str
) -> None:
    """Before the folder is looked at, when a file was looked at and is opened, or when it is opened again to be kept."""
    collector, scan, opened = Collector(tmp_path / "blobs"), collection.scan, os.open
    due = [when]

    def now(moment: str) -> None:
        if due == [moment]:
            due.clear()
            swap(outputs / "there")

    def scanned(folder: Path, **fields: Any) -> Any:
        now("before")
        found = scan(folder, **fields)
        now("between")
        return found

    def opening(path: Any, *arguments: Any, **fields: Any) -> int:
        if path == "there":
            now("opened")
        return opened(path, *arguments, **fields)

    monkeypatch.setattr(collection, "scan", scanned)
    monkeypatch.setattr(os, "open", opening)
    found = collector.keep(outputs)
    assert not due
    if os.geteuid() == 0 or swap is not linked_hard:  # else it is one's own file
        assert not collector.has(CANARY)
    late = when == "between" or (when == "opened" and swap is in_a_link)
    assert (found is None) == late, "what has changed after it was looked at is looked at again"
