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


def test_what_a_killed_writer_has_left_of_a_key_is_gone_when_the_key_is_written_next(tmp_path: Path) -> None:
    kept = {tmp_path / name for name in ("key.part", "keys.7.part", "key.7.partly")}
    for path in (*kept, tmp_path / "key.7.part"):
        path.write_text("a secret")
    write_private(tmp_path / "key", "text")
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "key"}


def test_what_a_killed_writer_has_left_of_a_key_is_gone_when_the_server_starts(tmp_path: Path) -> None:
    for name in ("bootstrap.7.part", "master.7.part", "bootstrap"):
        keys.make_folder(tmp_path).joinpath(name).write_text("a secret")
    assert [path.name for path in keys.make_folder(tmp_path).iterdir()] == ["bootstrap"]
