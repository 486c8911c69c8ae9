"""What a platform's scheduler is told and decides is kept from the server's start on, as far as there is room for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import StreamKey
from danlu.controllers.recordings import Recording
from danlu.errors import StorageFull
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.recording import replay
from danlu.scheduler.simulator import simulate
from danlu.services.trace import DECISIONS
from tests.traces import cluster, random_trace, recorded


class Full(LocalStreams):
    """A disk that is full from some time on."""

    room = 10**9

    def append(self, key: StreamKey, offset: int, data: bytes) -> int:
        if offset + len(data) > self.room:
            raise StorageFull("no space is left")
        return super().append(key, offset, data)


def decide(recording: Recording, seed: int) -> None:
    """Lets a fresh scheduler decide, and keeps it every now and then."""
    recorder = recording.begin(Scheduler())
    simulate(random_trace(seed), cluster(2, 8), recorder, watch=lambda *_: recording.flush())
    recording.flush()


def test_a_start_forgets_what_was_kept_before(tmp_path: Path) -> None:
    streams = LocalStreams(tmp_path)
    recording = Recording(streams)
    decide(recording, 1)
    first = recorded(streams)
    decide(recording, 2)
    second = recorded(streams)
    assert first != second
    for lines in (first, second):
        assert replay(lines, Scheduler).difference is None
        assert len(lines) > 100


def test_another_server_begins_anew_too(tmp_path: Path) -> None:
    streams = LocalStreams(tmp_path)
    decide(Recording(streams), 1)
    again = Recording(LocalStreams(tmp_path))
    decide(again, 1)
    found = replay(recorded(streams), Scheduler)
    assert (found.difference, found.decisions > 40) == (None, True)


def test_it_is_bounded(tmp_path: Path) -> None:
    streams = LocalStreams(tmp_path)
    decide(Recording(streams, max_bytes=20_000), 1)
    assert 10_000 < streams.size(DECISIONS) <= 20_000
    assert replay(recorded(streams), Scheduler).difference is None


def test_a_full_disk_ends_it_and_not_the_scheduler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    streams = Full(tmp_path)
    streams.room = 20_000
    decide(Recording(streams), 1)
    streams.room = 10**9
    assert 5_000 < streams.size(DECISIONS) <= 20_000
    assert replay(recorded(streams), Scheduler).difference is None
    assert caplog.text.count("not recorded any more until the next start: no space is left") == 1
