"""What a pod's task writes, on its way: in order, once, freed when it is kept; and what of a long status is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import formats
from danlu.runner.channel import Answer, Refused
from danlu.runner.delivering import MAX_REPORT_BYTES, Reporter, Stream, trimmed


class Server:
    """Plays the channel and the server's stream: what it keeps, and up to where that is durable."""

    def __init__(self) -> None:
        self.kept, self.durable = b"", 0
        self.most: int | None = None
        self.calls = 0

    def call(self, method: str, path: str, body: bytes, *, query: dict[str, Any]) -> Answer:
        assert (method, path) == ("PUT", "/streams/main-0/log")
        self.calls += 1
        offset = int(query["offset"])
        if offset > len(self.kept) or (
            body and self.kept[offset : offset + len(body)] != body[: len(self.kept) - offset]
        ):
            raise Refused(409, "Conflict", "it does not fit")
        whole = body if self.most is None else body[: self.most]
        self.kept = self.kept[:offset] + whole if offset + len(whole) > len(self.kept) else self.kept
        if query.get("durable") == "true":
            self.durable = len(self.kept)
        return Answer(200, json.dumps({"offset": len(self.kept)}).encode(), {})

    @staticmethod
    def json_of(answer: Answer) -> Any:
        return json.loads(answer.body)

    def lose(self) -> None:
        """Loses what was not durable: the power fails."""
        self.kept = self.kept[: self.durable]


class Spool:
    """A task's spool, in files of ten bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, b""
        (folder / "spool").mkdir(parents=True)

    def write(self, data: bytes) -> None:
        for at in range(len(data)):
            name = formats.spool_name("log", len(self.data) // 10 * 10)
            with (self.folder / "spool" / name).open("ab") as file:
                file.write(data[at : at + 1])
            self.data += data[at : at + 1]
        (self.folder / "spool" / "index").write_bytes(formats.pack_index(formats.Index(log=len(self.data))))

    def files(self) -> list[int]:
        return [start for start, _ in formats.spool_files(str(self.folder / "spool"), "log")]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "main-0")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def stream(spool: Spool, server: Server, told: list[str]) -> Stream:
    return Stream(str(spool.folder), "main-0", "log", server, told.append)  # type: ignore[arg-type]


def send(stream: Stream) -> None:
    while stream.step():
        pass


def test_all_is_sent_once_and_freed_when_it_is_durable(spool: Spool, server: Server, stream: Stream) -> None:
    assert not stream.step()
    spool.write(b"0123456789abcdefghijKLM")
    send(stream)
    assert server.kept == spool.data
    assert (server.durable, spool.files()) == (20, [20])
    spool.write(b"NOP")
    stream.finish()
    assert (server.kept, server.durable) == (spool.data, len(spool.data))
    calls = server.calls
    assert not stream.step()
    assert server.calls == calls


def test_what_a_power_failure_took_is_sent_again(spool: Spool, server: Server, stream: Stream, told: list[str]) -> None:
    spool.write(b"0123456789abcde")
    send(stream)
    server.lose()
    assert server.kept == b"0123456789"
    spool.write(b"fgh")
    send(stream)
    assert server.kept == spool.data
    assert "and not 15" in told[0]


def test_what_another_runner_has_sent_before_is_not_sent_again(spool: Spool, server: Server, stream: Stream) -> None:
    server.kept = b"0123456789abc"
    spool.write(b"0123456789abcdef")
    send(stream)
    assert server.kept == spool.data


def test_a_server_that_takes_a_part(spool: Spool, server: Server, stream: Stream) -> None:
    """One that looks for secrets takes whole lines, and not too many."""
    server.most = 3
    spool.write(b"0123456789abcdefghijKLM")
    stream.finish()
    assert (server.kept, spool.files()) == (spool.data, [20])


@pytest.mark.parametrize("most", [0])
def test_a_server_that_takes_nothing_is_not_asked_for_ever(
    spool: Spool, server: Server, stream: Stream, told: list[str], most: int
) -> None:
    server.most = most
    spool.write(b"0123456789")
    stream.finish()
    assert server.calls == 1
    assert "takes nothing" in told[0]


def test_what_is_lost_for_good_is_said(spool: Spool, server: Server, stream: Stream, told: list[str]) -> None:
    spool.write(b"0123456789abcdefghijKLM")
    send(stream)
    server.kept = b""
    spool.write(b"NOP")
    send(stream)
    assert "the log from 0 to 20 are lost" in told[-1]


def test_a_long_status_is_told_in_short() -> None:
    """Its first start, each new start and its end are in it."""
    begun = {"event": "started", "at": 1, "task": "main-0", "pid": 1}
    restarts = [
        one
        for n in range(400)
        for one in (
            {"event": "restarted", "at": 2, "task": "main-0", "restarts": n, "why": "y" * 100},
            {**begun, "at": 3, "pid": n},
        )
    ]
    ended = {"event": "exited", "at": 4, "task": "main-0", "last_lines": "z" * 4000}
    found = trimmed([{"event": "runner", "at": 0}, begun, *restarts, ended])
    assert len(json.dumps(found)) <= MAX_REPORT_BYTES
    assert found[1] == begun
    assert sum(event["event"] == "restarted" for event in found) == 400
    assert found[-1]["event"] == "exited"
    assert len(trimmed([{"event": "x", "at": n, "why": "w" * 200} for n in range(5000)])) <= 900
    short = [begun, ended]
    assert trimmed(short) is short


def test_that_it_has_ended_is_told_last(tmp_path: Path) -> None:
    events = [{"event": "exited", "at": 1, "error": "caf\u00e9"}, {"event": "ended", "at": 2}]
    (tmp_path / "status").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "kept.json").write_text('{"name": "a", "at": 5, "more": 1}')
    reporter = Reporter(str(tmp_path), "main-0", Server(), 15.0, print, print)  # type: ignore[arg-type]
    assert json.loads(reporter.report()) == {"events": events[:1], "saved": {"name": "a", "at": 5}}
    assert json.loads(reporter.report(ended=True))["events"] == events
    with (tmp_path / "status").open("a") as file:
        file.write(json.dumps({"event": "ended", "at": 3, "saved": {"name": "sealed-only", "at": 6}}) + "\n")
    assert json.loads(reporter.report(ended=True))["events"][-1]["saved"] == {"name": "a", "at": 5}
    (tmp_path / "kept.json").write_text("null")
    assert json.loads(reporter.report())["saved"] is None


def test_half_a_character_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(json.dumps({"event": "resumed", "at": 1, "checkpoint": "a\udcffb"}) + "\n")
    reporter = Reporter(str(tmp_path), "main-0", Server(), 15.0, print, print)  # type: ignore[arg-type]
    assert json.loads(reporter.report().decode())["events"][0]["checkpoint"] == "a?b"
