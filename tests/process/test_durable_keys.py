"""Files of keys: durable by name too, and replaced where there is no POSIX."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.client.credentials import write_private
from danlu.runner import formats
from danlu.server import keys


def _by_the_server(path: Path) -> None:
    keys.write(path, "text")


def _by_the_client(path: Path) -> None:
    write_private(path, "text")


@pytest.mark.parametrize("write", [_by_the_server, _by_the_client])
def test_the_name_of_a_key_is_durable_before_anybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync

    def replaced(source: str, target: str) -> None:
        replace(source, target)
        done.append("named")

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "fdatasync", synced)
    write(tmp_path / "key")
    assert done == ["file", "named", "folder"]
    assert (tmp_path / "key").read_text().strip() == "text"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_file_is_replaced_where_there_is_no_posix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "file")
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "fdatasync"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(os, "name", "nt")
    formats.write_atomically(path, b"new\n", durable=True)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"new\n"
