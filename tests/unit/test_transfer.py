"""Copying: what is sent arrives as it was; what is not sent by us is written nowhere else, and never half."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.runner import frames, transfer
from danlu.runner.transfer import Counts, Receiver, Sender, Target, TransferError
from tests.factories import write_files

FILES = {
    "a.txt": "alpha",
    "sub/b.bin": b"\0\xff" * 100_000,
    "sub/deep/c": "",
    "näme with space": "x",
    "run.sh": "#!/bin/sh",
}


def send(path: Path, progress: Any = None) -> bytes:
    sent = bytearray()
    Sender(str(path), sent.extend, progress).run()
    return bytes(sent)


def receive(data: bytes, target: Path | str, name: str = "", **fields: Any) -> Receiver:
    receiver = Receiver(Target(str(target), name, **fields))
    try:
        for at in range(0, len(data), 1000):
            receiver.feed(data[at : at + 1000])
        receiver.close()
    finally:
        receiver.abandon()
    return receiver


def contents(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def record(kind: bytes, **fields: Any) -> bytes:
    return frames.encode(kind, json.dumps(fields).encode())


def totals(**fields: Any) -> bytes:
    return record(transfer.TOTALS, **{"folder": True, "files": 1, "size_bytes": 10, **fields})


def file(path: str, data: bytes = b"x", **fields: Any) -> bytes:
    facts = {"path": path, "mode": 0o644, "size": len(data), "mtime_ns": 0, **fields}
    return record(transfer.FILE, **facts) + frames.encode(transfer.DATA, data) + frames.encode(transfer.FILE_END)


END = record(transfer.END, files=1, size_bytes=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = write_files(tmp_path / "source", FILES)
    (root / "run.sh").chmod(0o750)
    (root / "empty").mkdir()
    os.utime(root / "a.txt", ns=(10**18, 10**18))
    return root


def test_a_folder_arrives_as_it_was(source: Path, tmp_path: Path) -> None:
    done: list[tuple[Counts, Counts]] = []
    receiver = receive(send(source, lambda *counts: done.append(counts)), tmp_path / "new" / "target")
    assert contents(tmp_path / "new" / "target") == contents(source)
    assert receiver.done == done[-1][0] == done[-1][1] == Counts(5, 200_015)
    assert stat.S_IMODE((tmp_path / "new/target/run.sh").stat().st_mode) & 0o111
    assert not stat.S_IMODE((tmp_path / "new/target/a.txt").stat().st_mode) & 0o111
    assert (tmp_path / "new/target/a.txt").stat().st_mtime_ns == 10**18


def test_where_it_goes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.mkdir()
    receive(send(source), target, "source")
    assert contents(target / "source") == contents(source)
    receive(send(source / "a.txt"), target, "a.txt")
    assert (target / "a.txt").read_text() == "alpha"
    receive(send(source / "a.txt"), target / "other.txt", "a.txt")
    assert (target / "other.txt").read_text() == "alpha"
    receive(send(source / "a.txt"), f"{target}/made/", "a.txt")
    assert (target / "made" / "a.txt").read_text() == "alpha"
    with pytest.raises(TransferError, match="is a folder"):
        receive(send(source / "a.txt"), target, "source")
    with pytest.raises(TransferError):
        receive(send(source), target / "a.txt")


def test_what_is_there_is_replaced_and_the_rest_stays(source: Path, tmp_path: Path) -> None:
    target = write_files(tmp_path / "target", {"a.txt": "old and longer", "mine": "kept"})
    (target / "a.txt").chmod(0o400)
    receive(send(source), target)
    assert contents(target) == {**contents(source), "mine": b"kept"}


def test_links_pipes_and_what_cannot_be_read_are_left_out_and_told(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (source / "link").symlink_to(secret)
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe")
    receiver = receive(send(source), tmp_path / "target")
    assert receiver.skipped == ["link: a link", "loop: a link", "pipe: neither a file nor a folder"]
    assert "link" not in contents(tmp_path / "target")
    (tmp_path / "named").symlink_to(source)  # what the user names may be a link
    receive(send(tmp_path / "named"), tmp_path / "target2")
    assert (tmp_path / "target2" / "a.txt").exists()


def test_a_file_that_grows_or_shrinks_meanwhile_is_cut_at_what_was_announced(tmp_path: Path) -> None:
    root = write_files(tmp_path / "source", {"log": b"x" * 200_000})
    sent = bytearray()

    def write(data: bytes) -> None:
        with (root / "log").open("ab") as log:
            log.write(b"y" * 1000)
        sent.extend(data)

    Sender(str(root), write).run()
    receive(bytes(sent), tmp_path / "target")
    assert (tmp_path / "target" / "log").stat().st_size >= 200_000
    assert (tmp_path / "target" / "log").read_bytes().startswith(b"x" * 200_000)


@pytest.mark.parametrize("name", ["nothing", "pipe"])
def test_what_cannot_be_sent(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match=name):
        send(tmp_path / name)


HOSTILE = [
    "../evil", "/etc/evil", "a/../../evil", "..", ".", "", "a//b", "a/./b", "a\0b", "x" * 256, "/".join("d" * 200),
    "a/" * 3000 + "b",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    target = tmp_path / "inside" / "target"
    with pytest.raises(TransferError) as caught:
        receive(totals() + file(path), target)
    assert caught.value.foreign
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(TransferError):
        receive(totals() + record(transfer.FOLDER, path=path or "/") + file("b"), target)


def test_no_link_that_is_there_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "sub").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    with pytest.raises(TransferError):
        receive(totals() + file("sub/evil") + END, target)
    receive(totals() + file("file") + END, target)
    assert list(outside.iterdir()) == []
    assert not (target / "file").is_symlink()
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "out").symlink_to(outside)
    with pytest.raises(TransferError, match="is a link"):
        receive(totals() + file("evil") + END, tmp_path / "named", "out")


@pytest.mark.parametrize(
    "data",
    [
        file("a"),  # nothing was announced
        totals() + totals(),
        totals(files=-1),
        totals(files=True),
        totals(size_bytes=1 << 63),
        totals() + frames.encode(transfer.DATA, b"x"),
        totals() + file("a", b"xx", size=1),
        totals() + record(transfer.FILE, path="a", mode=0o644, size=1 << 40, mtime_ns=0),
        totals() + record(transfer.FILE, path="a", mode=0o644, size=1, mtime_ns=-1),
        totals() + record(transfer.FILE, path=["a"], mode=0o644, size=1, mtime_ns=0),
        totals() + record(transfer.FILE, path="a", mode=0o644, size=1, mtime_ns=0) + END,
        totals() + record(transfer.FILE, path="a", mode=0o644, size=1, mtime_ns=0) + file("b"),
        totals(folder=False) + file("a"),
        totals() + END + file("a"),
        totals() + b"\0\0\0\2?x",
        totals() + frames.encode(transfer.FILE, b"[]"),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_what_is_out_of_turn_or_too_much_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TransferError) as caught:
        receive(data, tmp_path / "target")
    assert caught.value.foreign
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_what_breaks_off_leaves_whole_files_only(source: Path, tmp_path: Path) -> None:
    data = send(source)
    with pytest.raises(TransferError, match="broke off"):
        receive(data[: len(data) // 2], tmp_path / "target")
    assert contents(tmp_path / "target").items() <= contents(source).items()
    with pytest.raises(TransferError, match="broke off"):
        receive(b"", tmp_path / "nothing")


def test_what_does_not_fit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="do not fit"):
        receive(totals(size_bytes=1 << 61), tmp_path / "target")


def test_names_are_shown_without_what_moves_a_cursor(tmp_path: Path) -> None:
    skipped = record(transfer.SKIPPED, path="a\x1b[2J\nb", why="\x07bell")
    assert receive(totals() + skipped + END, tmp_path / "target").skipped == ["a?[2J?b: ?bell"]


def test_a_system_may_refuse_names(tmp_path: Path) -> None:
    with pytest.raises(TransferError):
        receive(totals() + file("con") + END, tmp_path / "target", refuses=lambda name: name == "con")


PATHS = st.sampled_from(["a", "a/b", "b", "../x", "/x", "a/../b", "a\0", "c/d/e", ""])
RECORDS = st.one_of(
    st.builds(file, PATHS, st.binary(max_size=20)),
    st.builds(lambda path: record(transfer.FOLDER, path=path), PATHS),
    st.builds(lambda path: record(transfer.SKIPPED, path=path, why="x"), PATHS),
    st.builds(lambda kind, data: frames.encode(bytes([kind]), data), st.sampled_from(b"tdfbes.?"), st.binary(max_size=20)),
    st.just(END), st.binary(max_size=10),
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=8), numbers=st.integers(0, 10**9))
def test_whatever_arrives_stays_in_the_target(tmp_path: Path, records: list[bytes], numbers: int) -> None:
    target = tmp_path / f"box-{numbers}" / "target"
    with contextlib.suppress(TransferError):
        receive(totals() + b"".join(records), target)
    assert [path for path in target.parent.iterdir() if path != target] == []
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("box-")) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.name.startswith(".danlu")]
