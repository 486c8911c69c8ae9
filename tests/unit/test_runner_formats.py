"""The runner's files: what is written is read again; what is damaged is told; what is torn is not there."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.runner import formats

TIMES = st.integers(min_value=0, max_value=2**63)
TEXTS = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)))
COUNTS = st.integers(min_value=0, max_value=2**63 - 1)
INDEXES = st.builds(formats.Index, *[COUNTS] * len(formats.Index._fields))


@given(TIMES, st.sampled_from([b"o", b"e", b"r"]), st.sampled_from([b".", b"+", b"~"]), TEXTS)
def test_a_record_is_read_as_it_was_stamped(at: int, stream: bytes, mark: bytes, text: str) -> None:
    (line,) = formats.parse_lines(formats.stamp(at, stream, mark, text.encode()).decode())
    assert line == formats.Line(at, stream.decode(), mark.decode(), text)


@given(TIMES, st.lists(TEXTS, min_size=1))
def test_many_lines_are_stamped_as_each_alone(at: int, texts: list[str]) -> None:
    lines = [text.encode() + b"\n" for text in texts]
    alone = b"".join(formats.stamp(at, formats.STDOUT, formats.WHOLE, line[:-1]) for line in lines)
    assert formats.stamp_lines(at, formats.STDOUT, b"".join(lines)) == alone


@given(st.text())
def test_what_is_no_record_is_passed_over(text: str) -> None:
    for line in formats.parse_lines(text):
        assert (len(line.stream), len(line.mark)) == (1, 1)


@given(INDEXES)
def test_an_index_is_read_as_it_was_packed(index: formats.Index) -> None:
    data = formats.pack_index(index)
    assert len(data) == formats.INDEX_BYTES
    assert formats.parse_index(data) == index


@given(INDEXES, st.integers(0, formats.INDEX_BYTES - 1), st.integers(1, 255))
def test_no_index_is_read_wrong(index: formats.Index, at: int, change: int) -> None:
    data = bytearray(formats.pack_index(index))
    data[at] ^= change
    with contextlib.suppress(ValueError):
        assert formats.parse_index(bytes(data)) == index  # white space, or the case of the checksum


@pytest.mark.parametrize(
    "body", [b'["a"]', b"[-1]", b"[1.5]", b"[true]", b"{}", b"7", b"[" + b"0," * 30 + b"0]", b"[[]]"]
)
def test_an_index_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="index"):
        formats.parse_index(b"%08x %s" % (zlib.crc32(body), body))


def test_no_index_is_the_beginning(tmp_path: Path) -> None:
    assert formats.read_index(str(tmp_path / "index")) == formats.Index()
    (tmp_path / "index").write_bytes(b"")
    assert formats.read_index(str(tmp_path / "index")) == formats.Index()


@given(st.integers(0, 200))
def test_a_torn_event_is_not_there_yet(cut: int) -> None:
    events = [{"event": "runner", "at": 1}, {"event": "started", "at": 2}, {"event": "ended", "at": 3}]
    data = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    whole = data[:cut].count(b"\n")
    assert formats.parse_status(data[:cut]) == events[:whole]


@pytest.mark.parametrize("line", [b"x", b"[]", b"3", b'{"event": 3}', b"{}", b"\xff\xfe", b"[" * 100_000, b""])
def test_a_line_that_is_no_event_is_passed_over(line: bytes) -> None:
    assert formats.parse_status(line + b'\n{"event":"ended"}\n') == [{"event": "ended"}]


def test_no_status_has_no_events(tmp_path: Path) -> None:
    assert formats.read_status(str(tmp_path / "status")) == []


def test_spool_files_come_in_order_and_others_do_not(tmp_path: Path) -> None:
    for offset in (10**12, 0, 5):
        (tmp_path / formats.spool_name("log", offset)).touch()
    for other in ("index", "log.x", "log", "metrics.0", ".log.3"):
        (tmp_path / other).touch()
    assert [offset for offset, _ in formats.spool_files(str(tmp_path), "log")] == [0, 5, 10**12]


def test_a_process_is_told_by_its_start() -> None:
    assert isinstance(formats.start_time(os.getpid()), int)
    assert formats.start_time(2**22 + 1) is None
    assert formats.boot_id() == formats.boot_id()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    formats.write_atomically(str(path), b"one", 0o640)
    formats.write_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "file").symlink_to("theirs")
    (tmp_path / f"file.{os.getpid()}.part").symlink_to("theirs")
    formats.write_atomically(str(tmp_path / "file"), b"mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "file").is_symlink()


def test_a_full_disk_leaves_the_old_file_and_no_part(small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(64 * 1024)
    path = folder / "file"
    formats.write_atomically(str(path), b"old")
    with pytest.raises(OSError, match="No space"):
        formats.write_atomically(str(path), b"x" * 1024 * 1024)
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


ENVIRONMENTS = st.dictionaries(st.sampled_from("ABCDE"), st.text("xy", max_size=3).map(lambda text: "x" * 70 + text))


@given(st.lists(ENVIRONMENTS, min_size=1, max_size=4))
def test_what_tasks_share_is_said_once_and_comes_back(environments: list[dict[str, str]]) -> None:
    order = {"tasks": [{"env": dict(env)} for env in environments]}
    formats.share(order)
    order = json.loads(json.dumps(order))
    assert [formats.environment(order, task) for task in order["tasks"]] == environments
    for name in set(environments[0]).intersection(*environments[1:]):
        assert name in order["env"] or name in order["env_begins"]


def test_an_order_of_before_has_no_shared_environment() -> None:
    assert formats.environment({"tasks": []}, {"env": {"A": "1"}}) == {"A": "1"}
