"""Following output: every byte is kept exactly once, whatever comes in whatever pieces, and wherever the runner dies."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.runner import follow, formats
from danlu.runner.follow import LONG_LINE_BYTES, READ_BYTES, Follower, parse_point

GIB = 2**30


class Task:
    """A task's folder, what its process writes, and a follower that can be killed."""

    def __init__(self, folder: Path, *, limit_bytes: int = GIB, parse_metrics: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._made = (limit_bytes, parse_metrics)
        self.follower = self._follow()

    def _follow(self) -> Follower:
        return Follower(str(self.folder), *self._made)

    def write(self, data: bytes, stream: str = "stdout") -> None:
        with (self.folder / stream).open("ab") as file:
            file.write(data)

    def die(self) -> None:
        """Kills the follower: nothing is flushed, closed properly or said."""
        self.follower.close()
        self.follower = self._follow()

    def spooled(self, stream: str = formats.LOG) -> bytes:
        index = formats.read_index(str(self.folder / "spool" / "index"))
        pieces = []
        at = 0
        for offset, path in formats.spool_files(str(self.folder / "spool"), stream):
            assert offset == at
            pieces.append(Path(path).read_bytes())
            at += len(pieces[-1])
        return b"".join(pieces)[: getattr(index, stream)]

    def records(self, stream: str = "") -> list[tuple[str, str, bytes]]:
        """Returns (stream, mark, text) of what was spooled."""
        found = []
        last = 0
        for record in self.spooled().split(b"\n")[:-1]:
            at, marks, text = record.split(b" ", 2)
            assert int(at) >= last
            last = int(at)
            found.append((chr(marks[0]), chr(marks[1]), text))
        return [record for record in found if not stream or record[0] == stream]

    def text(self, stream: str = "o") -> bytes:
        """Returns the output as the records tell it."""
        return b"".join(text + b"\n" * (mark == ".") for _, mark, text in self.records(stream) if mark != "~")

    def notices(self) -> list[str]:
        return [text.decode() for _, _, text in self.records("r")]

    def points(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.spooled(formats.METRICS).splitlines()]

    def drained(self) -> Task:
        self.follower.drain()
        self.follower.close()
        return self


def waited(follower: Follower) -> bool:
    """Takes a step as if what is unfinished had stood for long."""
    for output in follower.outputs:
        output.rest_since = min(output.rest_since, 1)
        output.progress_at = 0
    return follower.step()


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr"]),
        st.binary(max_size=60).map(lambda data: data.replace(b"\r", b"")) | st.just(b"\n") | st.just(b"a\nb\n"),
        st.sampled_from(["", "step", "wait", "die"]),
    ),
    max_size=25,
)


@given(CHUNKS)
@settings(max_examples=150)
def test_the_records_give_the_bytes_back(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[str, bytes, str]]
) -> None:
    task = Task(tmp_path_factory.mktemp("task"))
    written = {"stdout": b"", "stderr": b""}
    for stream, data, then in chunks:
        task.write(data, stream)
        written[stream] += data
        if then == "step":
            task.follower.step()
        elif then == "wait":
            waited(task.follower)
        elif then == "die":
            task.die()
    task.drained()
    for stream, letter in (("stdout", "o"), ("stderr", "e")):
        whole = written[stream]
        assert task.text(letter) == whole + b"\n" * (bool(whole) and not task_ends_whole(task, letter, whole))


def task_ends_whole(task: Task, letter: str, whole: bytes) -> bool:
    """Whether no newline was added: the output ends in one, or its end was told as a piece."""
    records = [record for record in task.records(letter) if record[1] != "~"]
    return whole.endswith(b"\n") or records[-1][1] == "+"


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_write_nothing_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    task = Task(tmp_path)
    lines: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    index = tmp_path / "spool" / "index"
    for number in range(400):
        stream = chance.choice(["stdout", "stderr"])
        line = b"%d %s" % (number, b"x" * chance.choice([0, 10, 30_000]))
        lines[stream].append(line)
        task.write(line + b"\n", stream)
        if chance.random() < 0.7:
            continue
        before = index.read_bytes()
        task.follower.step()
        if chance.random() < 0.5:  # killed before the index was written: of the spool there is any part of what was new
            index.write_bytes(before)
            end = formats.parse_index(before).log
            offset, path = formats.spool_files(str(tmp_path / "spool"), formats.LOG)[-1]
            size = Path(path).stat().st_size
            os.truncate(path, chance.randint(min(size, max(0, end - offset)), size))
            task.die()
    task.drained()
    assert len(formats.spool_files(str(tmp_path / "spool"), formats.LOG)) > 1
    assert task.text("o") == b"".join(line + b"\n" for line in lines["stdout"])
    assert task.text("e") == b"".join(line + b"\n" for line in lines["stderr"])


def test_a_prompt_is_shown_before_its_line_ends(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"name? ")
    assert not task.follower.step()
    assert waited(task.follower)
    assert task.records() == [("o", "+", b"name? ")]
    task.write(b"Ada\nhello\n")
    task.follower.step()
    assert task.records()[1:] == [("o", ".", b"Ada"), ("o", ".", b"hello")]


def test_a_progress_bar_is_folded(tmp_path: Path) -> None:
    task = Task(tmp_path)
    for percent in range(0, 101, 10):
        task.write(b"\r%3d%%" % percent)
    assert waited(task.follower) is False
    assert waited(task.follower)
    assert task.records() == [("o", "~", b"100%")]
    waited(task.follower)
    assert len(task.records()) == 1
    task.write(b"\n")
    task.follower.step()
    assert task.records()[1:] == [("o", ".", b"100%")]


@pytest.mark.parametrize("end", [b"", b"\r", b"\n", b"\r\n"])
def test_the_last_state_of_a_progress_bar_is_kept(tmp_path: Path, end: bytes) -> None:
    task = Task(tmp_path)
    task.write(b"  1/2\r  2/2" + end)
    assert task.drained().records() == [("o", ".", b"  2/2")]


def test_a_piece_that_is_overwritten_stays_a_line_of_its_own(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"1/10 [>...]")
    task.follower.step()
    waited(task.follower)
    task.write(b"\r2/10 [=>..]")
    task.die()
    task.follower.step()
    waited(task.follower)
    task.write(b"\r3/10 [==>.]\n")
    assert task.drained().records() == [
        ("o", "+", b"1/10 [>...]"), ("o", ".", b""), ("o", "~", b"2/10 [=>..]"), ("o", ".", b"3/10 [==>.]"),
    ]  # fmt: skip


def test_a_progress_bar_without_end_takes_no_room(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"".join(b"\r%9d" % number for number in range(1_000_000)))
    task.drained()
    assert task.records() == [("o", ".", b"   999999")]


def test_windows_lines(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"one\r\ntwo\r\n\r\n")
    assert task.drained().text() == b"one\ntwo\n\n"


@pytest.mark.parametrize("length", [LONG_LINE_BYTES, LONG_LINE_BYTES + 1, READ_BYTES, 3 * READ_BYTES + 17])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_very_long_line_comes_in_pieces(tmp_path: Path, length: int, end: bytes) -> None:
    task = Task(tmp_path)
    line = (b"0123456789" * (length // 10 + 1))[:length]
    task.write(b"before\n" + line + end + b"after\n" * bool(end))
    task.drained()
    assert task.text() == b"before\n" + line + b"\n" + b"after\n" * bool(end)
    assert max(len(text) for _, _, text in task.records()) <= LONG_LINE_BYTES


def test_a_long_line_is_not_cut_within_a_character(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"x" + "丹炉🔥".encode() * 40_000 + b"\n")
    task.drained()
    assert len(task.records()) > 3
    for _, _, text in task.records():
        text.decode()


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    task = Task(tmp_path)
    data = bytes(byte for byte in range(256) if byte != 13) * 3 + b"\n\xff\xfe\x00\n"
    task.write(data)
    assert task.drained().text() == data


def test_both_streams_are_kept_apart(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"out\n")
    task.write(b"err\n", "stderr")
    task.drained()
    assert (task.text("o"), task.text("e")) == (b"out\n", b"err\n")


def test_past_the_limit_bytes_are_counted_and_told_once(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=10_000)
    written = b""
    for number in range(50):
        piece = b"".join(b"line %d of %d\n" % (line, number) for line in range(100))
        written += piece
        task.write(piece)
        task.follower.step()
        if number % 7 == 0:
            task.die()
    task.write(b"the end")
    written += b"the end"
    task.drained()
    kept = task.text()
    assert written.startswith(kept)
    assert 3000 < len(kept) < 10_000
    limit, count = task.notices()
    assert "9.8 KiB" in limit
    assert count == f"{len(written) - len(kept)} bytes of output were dropped past the limit"


def test_nothing_short_slips_in_behind_what_was_dropped(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=200)
    task.write(b"first\n" + b"x" * 500 + b"\nlast\n")
    assert task.drained().text() == b"first\n"
    assert task.notices()[-1].startswith("506 bytes")


def test_the_end_is_counted_too_when_only_it_is_past_the_limit(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=100)
    task.write(b"first\n" + b"y" * 99)
    task.drained()
    assert task.text() == b"first\n"
    assert task.notices()[-1].startswith("99 bytes")


def test_what_is_past_the_limit_is_freed_unread(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=1000)
    task.write(b"z" * 99 + b"\n")
    for _ in range(40):
        task.write((b"z" * 99 + b"\n") * 10_000)
        task.follower.step()
    blocks = (tmp_path / "stdout").stat().st_blocks * 512
    task.drained()
    assert task.notices()[-1].startswith(f"{100 * 400_001 - len(task.text())} bytes")
    assert blocks < 20_000_000


def test_metrics_are_still_parsed_past_the_limit(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=3000, parse_metrics=True)
    task.write(b"".join(b"step=%d loss=%d %s\n" % (n, n, b"x" * 300) for n in range(20)))
    task.drained()
    assert [point["s"] for point in task.points()] == list(range(20))
    assert len(task.notices()) == 2


def test_metrics_have_a_limit_too(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=2000)
    for number in range(100):
        task.write(b"1\t%d\tloss=1.0\n" % number, "metrics")
        task.follower.step()
    task.drained()
    assert 20 < len(task.points()) < 100
    assert task.notices() == ["limit of 2.0 KiB reached: no more metrics are kept"]


def test_metrics_become_points(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"17\t3\tloss=0.5\tacc=nan\n18\t\tloss=inf\n19\t2.5\ta=b=1\n", "metrics")
    task.drained()
    first, second, third = task.points()
    assert (first["t"], first["s"]) == (17, 3)
    assert second == {"t": 18, "s": None, "m": {"loss": float("inf")}}
    assert third == {"t": 19, "s": 2.5, "m": {"a=b": 1.0}}
    assert task.notices() == []


@pytest.mark.parametrize("line", [
    b"", b"x", b"1", b"1\t", b"1\t2", b"1\t2\tloss", b"1\t2\tloss=", b"1\t2\t=3", b"1\t2\tloss=x", b"\xff\t1\ta=1",
    b"1\tx\ta=1", b"-1\t1\ta=1", b"1\t1\t" + b"n" * 65 + b"=1", b"1\t1\ta\x1b[2J=1",
    b"1\t1" + b"".join(b"\ta%d=1" % number for number in range(1001)), b"9" * 5000 + b"\t1\ta=1",
])  # fmt: skip
def test_what_is_no_metric_is_left_out(line: bytes) -> None:
    assert parse_point(line) is None


def test_bad_metrics_are_told_once(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"nonsense\n1\t1\ta=1\nmore\n", "metrics")
    task.follower.step()
    task.write(b"again\ntorn", "metrics")
    task.drained()
    assert task.notices() == ["2 metrics could not be read and were left out"]
    assert len(task.points()) == 1


def test_raw_metrics_are_freed(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=2**20)
    line = b"1\t1\t" + b"\t".join(b"name%d=0.125" % number for number in range(500)) + b"\n"
    task.write(line * 2000, "metrics")
    task.drained()
    assert len(line) * 2000 > 3 * follow.PUNCH_BYTES // 2
    assert (tmp_path / "metrics").stat().st_blocks * 512 < len(line) * 2000 // 2 + 2**20


def test_a_full_disk_loses_nothing(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(2 * 2**20)
    task = Task(disk / "task")
    lines = b"".join(b"line %06d\n" % number for number in range(30_000))
    task.write(lines)
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while _filled(file):
            pass
    for _ in range(3):
        assert not task.follower.step()
        assert task.follower.full
    ballast.unlink()
    task.follower.step()
    assert not task.follower.full
    task.drained()
    assert task.text() == lines
    assert [notice.startswith("the disk was full") for notice in task.notices()] == [True]


def _filled(file: object) -> bool:
    try:
        return bool(file.write(b"x" * 4096))  # type: ignore[attr-defined]
    except OSError:
        return False


def test_a_notice_outlives_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(2**20)
    task = Task(disk / "task")
    with (disk / "ballast").open("wb", buffering=0) as file:
        while _filled(file):
            pass
    task.follower.notice("set aside")
    task.follower.step()
    assert task.follower.full
    (disk / "ballast").unlink()
    task.follower.step()
    assert task.drained().notices()[0] == "set aside"


def test_an_output_that_its_program_has_shortened_does_no_harm(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"one\ntwo\n")
    task.follower.step()
    os.truncate(tmp_path / "stdout", 0)
    (tmp_path / "stderr").unlink()
    task.follower.step()
    task.write(b"three\n" * 10)
    assert task.drained().text().startswith(b"one\ntwo\n")


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * GIB // 2, "1.5 GiB")]
)
def test_sizes_are_told(amount: int, text: str) -> None:
    assert follow.size(amount) == text


# a program that empties its own file, or a clock that jumps


@pytest.mark.parametrize("die", [False, True])
@pytest.mark.parametrize("after", [b"x\n", b"a longer line than all that was there before\n" * 3, b"four\nfive\nsix\n"])
def test_what_follows_an_emptied_file_is_kept(tmp_path: Path, after: bytes, die: bool) -> None:
    task = Task(tmp_path)
    task.write(b"one\ntwo\nthree\n")
    assert task.follower.step()
    (tmp_path / "stdout").write_bytes(after)  # as echo x > /dev/stdout does
    if die:
        task.die()
    task.follower.step()
    task.write(b"last\n")
    task.drained()
    assert task.text() == b"one\ntwo\nthree\n" + after + b"last\n"
    assert [notice for notice in task.notices() if "emptied its stdout" in notice] == task.notices()


def test_it_is_said_once_that_a_file_was_emptied(tmp_path: Path) -> None:
    task = Task(tmp_path)
    for number in range(20):
        (tmp_path / "stderr").write_bytes(b"line %d\n" % number)
        task.follower.step()
    task.drained()
    assert task.text("e") == b"".join(b"line %d\n" % number for number in range(20))
    assert len(task.notices()) == 1


def test_a_piece_before_an_emptied_file_is_ended(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"name? ")
    task.follower.step()
    assert waited(task.follower)
    (tmp_path / "stdout").write_bytes(b"x\n")
    task.drained()
    assert task.text() == b"name? \nx\n"


def test_a_file_with_holes_is_not_taken_for_an_emptied_one(tmp_path: Path) -> None:
    task = Task(tmp_path)
    lines = b"".join(b"%063d\n" % number for number in range(3 * follow.PUNCH_BYTES // 64))
    for at in range(0, len(lines), READ_BYTES):
        task.write(lines[at : at + READ_BYTES])
        task.follower.step()
    task.die()
    task.write(b"last\n")
    task.drained()
    assert task.text() == lines + b"last\n"
    assert task.notices() == []


def test_emptied_metrics_are_read_from_their_new_beginning(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.write(b"1\t1\tloss=0.5\n2\t2\tloss=0.25\n", "metrics")
    task.follower.step()
    (tmp_path / "metrics").write_bytes(b"3\t3\tloss=0.125\n")
    task.drained()
    assert [point["s"] for point in task.points()] == [1, 2, 3]


def test_a_prompt_is_shown_while_the_clock_stands_still(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    ahead = formats.Index(last_at=time.time_ns() + 10**15)  # the wall clock was put back since
    (tmp_path / "spool" / "index").write_bytes(formats.pack_index(ahead))
    task = Task(tmp_path)
    task.write(b"name? ")
    deadline = time.monotonic() + 30
    while not task.follower.step():
        assert time.monotonic() < deadline
    task.follower.close()
    assert task.text() == b"name? "
