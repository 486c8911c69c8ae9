"""The logs that Kubernetes keeps of images without Python: each line is taken once, before a node removes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from danlu.executors.kubernetes.client import Api
from danlu.executors.kubernetes.spools import MAX_LINE_BYTES, PodSpools
from tests.pod_bench import PodBench

ATTEMPT, TASK, POD = "j1-1", "main-0", "j1-1-main-b-0"
PIECE_BYTES = 1 << 20


class Kept:
    """A pod's log, the node that has it, and a server that collects it."""

    def __init__(self) -> None:
        self.bench = PodBench()
        self.cluster, self.data = self.bench.cluster, b""
        self.api = Api(self.bench._connect)
        self.again()

    def again(self) -> None:
        """Another server leads."""
        self.spools = PodSpools(
            self.api, "jobs", lambda _a, _t, most: (len(self.data), self.data[-most:] if most else b"")
        )
        self.spools._bare[ATTEMPT] = {TASK: POD}

    def writes(self, second: int, *lines: str) -> None:
        """The program writes lines in a second, each a nanosecond later."""
        text = "".join(f"2023-11-14T22:13:{second:02d}.{at:09d}Z {line}\n" for at, line in enumerate(lines))
        self.cluster.log[POD] = self.cluster.log.get(POD, b"") + text.encode()

    def collects(self, most: int = 100) -> int:
        """Returns in how many pieces something came."""
        count = 0
        for piece in self.spools.pending(ATTEMPT, max_bytes=PIECE_BYTES):
            assert piece.offset == len(self.data)
            self.data += piece.data
            self.spools.collected(piece, durably=lambda: None)
            count += 1
            if count == most:
                break
        return count

    @property
    def lines(self) -> list[str]:
        return [line.split(" ", 2)[2] for line in self.data.decode().splitlines()]


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.api.close()
    made.bench.close()


@pytest.mark.parametrize("again", [False, True])
def test_what_a_node_removes_is_kept_once_it_was_seen(kept: Kept, again: bool) -> None:
    kept.writes(20, "one", "two")
    assert kept.collects() == 1
    assert kept.collects() == 0
    if again:
        kept.again()
    kept.cluster.log[POD] = b""  # a new file was begun
    kept.writes(21, "three")
    assert kept.collects() == 1
    kept.writes(22, "four")
    kept.collects()
    assert kept.lines == ["one", "two", "three", "four"]


def test_what_was_taken_is_not_read_again(kept: Kept) -> None:
    for second in range(20, 30):
        kept.writes(second, *(f"{second}-{number}" for number in range(100)))
    kept.collects()
    kept.cluster.answered = 0
    kept.writes(30, "more")
    kept.collects()
    assert kept.cluster.answered < len(kept.cluster.log[POD]) / 5
    assert len(kept.lines) == len(set(kept.lines)) == 1001


def test_much_comes_in_pieces_that_can_be_gone_on_with(kept: Kept) -> None:
    kept.writes(20, *(f"{number:06d}" + "x" * 100_000 for number in range(30)))
    while kept.collects(most=1):
        kept.again()
    assert [int(line[:6]) for line in kept.lines] == list(range(30))


def test_a_line_without_end_is_cut_and_says_so(kept: Kept) -> None:
    kept.writes(20, "x" * 3_000_000, "short")
    kept.collects()
    long, short = kept.lines
    assert short == "short"
    assert len(long) < MAX_LINE_BYTES + 100
    assert long.endswith("bytes more]")


def test_what_could_not_be_kept_comes_again(kept: Kept) -> None:
    kept.writes(20, "one", "two")
    (piece,) = kept.spools.pending(ATTEMPT, max_bytes=PIECE_BYTES)
    kept.data = piece.data[:-3]  # the disk was full
    (again,) = kept.spools.pending(ATTEMPT, max_bytes=PIECE_BYTES)
    assert kept.data[: again.offset] + again.data == piece.data
