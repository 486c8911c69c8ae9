"""What arrives as an environment's archive is unpacked whole and within its folder, or refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import danlu
from danlu.domain.trees import address_of
from danlu.runner.unpacking import Bounds, Damaged, unpack
from tests.unit.test_sdk import python38

MTIME = 1_600_000_000
Member = tuple[str, bytes, bytes | str]
"""A name, its type, and its content or target."""
GOOD: tuple[Member, ...] = (
    ("lib", tarfile.DIRTYPE, ""), ("lib/a.py", tarfile.REGTYPE, b"x = 1\n"), ("bin", tarfile.DIRTYPE, ""),
    ("bin/python", tarfile.SYMTYPE, "../lib/a.py"),
)  # fmt: skip


def archive(*members: Member, pieces: int = 1) -> bytes:
    """Returns an archive, cut into gzip members anywhere."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = kind, MTIME, 0o6775
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    whole = file.getvalue()
    step = -(-len(whole) // pieces)
    return b"".join(gzip.compress(whole[at : at + step], 1, mtime=0) for at in range(0, len(whole), step))


def unpacked(data: bytes, folder: Path, *, address: str = "", files: int = 100, size_bytes: int = 1000) -> Path:
    source = io.BytesIO(data)
    unpack(lambda most: source.read(min(most, 7)), address or address_of(data), str(folder), Bounds(files, size_bytes))
    return folder


def test_files_folders_and_links_come_out_as_they_were(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = unpacked(archive(*GOOD, pieces=3), tmp_path)
    finally:
        os.umask(before)
    made = folder / "lib" / "a.py"
    assert made.read_bytes() == b"x = 1\n"
    assert made.stat().st_mtime == MTIME, "else byte code is not known to be of it"
    assert stat.S_IMODE(made.stat().st_mode) == 0o755, "no other user may write, and nobody runs as its owner"
    assert (folder / "bin" / "python").readlink() == Path("../lib/a.py")


@pytest.mark.parametrize(
    "bad",
    [
        ("/etc/passwd", tarfile.REGTYPE, b"x"),
        ("../out", tarfile.REGTYPE, b"x"),
        ("lib/../../out", tarfile.REGTYPE, b"x"),
        ("nowhere/a", tarfile.REGTYPE, b"x"),
        ("lib/a.py", tarfile.REGTYPE, b"again"),
        ("bin/python/x", tarfile.REGTYPE, b"through a link"),
        ("out", tarfile.SYMTYPE, "/etc"),
        ("lib/out", tarfile.SYMTYPE, "../../out"),
        ("lib/out", tarfile.SYMTYPE, "a/../../.."),
        ("hard", tarfile.LNKTYPE, "lib/a.py"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
    ids=lambda member: f"{member[0]}-{member[1].decode()}",
)
def test_what_leads_out_or_is_no_file_is_refused(tmp_path: Path, bad: Member) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(Damaged):
        unpacked(archive(*GOOD, bad), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"x",
     lambda data: b"no gzip" + data],
    ids=["flipped", "short", "half", "empty", "longer", "no gzip"],
)  # fmt: skip
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = archive(*GOOD, pieces=2)
    with pytest.raises(Damaged):
        unpacked(damage(data), tmp_path, address=address_of(data))


def test_another_whole_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"came is sha256:\w+, not sha256:"):
        unpacked(archive(*GOOD), tmp_path, address=address_of(b"another"))


@pytest.mark.parametrize("bounds", [{"files": 3}, {"size_bytes": 5}])
def test_more_than_was_said_is_refused(tmp_path: Path, bounds: dict[str, int]) -> None:
    with pytest.raises(Damaged, match="more files or bytes"):
        unpacked(archive(*GOOD), tmp_path, **bounds)


UNPACK = """
import sys
from danlu.runner.unpacking import Bounds, unpack
with open(sys.argv[1], "rb") as file:
    unpack(file.read, sys.argv[2], sys.argv[3], Bounds(100, 1000))
"""


def test_the_oldest_python_of_an_image_unpacks_the_same(tmp_path: Path) -> None:
    long = "a-folder-of-a-long-name-" * 8  # its tarfile names those in another way
    data = archive(*GOOD, (long, tarfile.DIRTYPE, ""), (f"{long}/file", tarfile.REGTYPE, b"x"))
    (tmp_path / "archive").write_bytes(data)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = str(Path(danlu.__file__).parent.parent)
    command = [python38(), "-c", UNPACK, tmp_path / "archive", address_of(data), folder]
    subprocess.run(command, env={"PYTHONPATH": path}, check=True, timeout=120)
    assert (folder / long / "file").read_bytes() == b"x"
    assert (folder / "bin" / "python").readlink() == Path("../lib/a.py")


def test_what_the_source_raises_is_raised(tmp_path: Path) -> None:
    def broken(_most: int) -> bytes:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        unpack(broken, address_of(b""), str(tmp_path), Bounds(1, 1))
