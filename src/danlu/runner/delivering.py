"""What an attempt in a pod writes, brought to the server: logs and metrics as they come, and what its status says.

Everything lies on the pod's own disk until the server has it, and is freed when the server has it durably. A piece names its
offset, a report is all that there is to say: whatever is repeated is there once.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from . import formats
from .channel import Channel, Refused

PIECE_BYTES, SMALLEST_PIECE_BYTES = 1 << 20, 64 << 10
MAX_REPORT_BYTES, MAX_EVENTS = 60 << 10, 900
SHORT_WHY = 100
FIRST_PAUSE_S, LONGEST_PAUSE_S, CALM_S = 0.02, 0.5, 1.0
"""A line that comes alone is sent at once; where many come, they are sent twice a second."""
LOOK_S, QUIET_LOOK_S = 0.25, 1.0
MAX_FAILURES, FAILURE_PAUSE_S = 20, 0.5


class Stream:
    """The log, or the metrics, of the pod's task.

    Args:
        folder: the task's.
        task: its name.
        name: of the stream.
        channel: the caller's own.
        log: takes a line of text.
    """

    def __init__(self, folder: str, task: str, name: str, channel: Channel, log: Callable[[str], None]) -> None:
        self._spool, self._name, self._channel, self._log = os.path.join(folder, "spool"), name, channel, log
        self._path = "/streams/%s/%s" % (task, name)
        self._at = 0
        self._piece = PIECE_BYTES
        self._refused = False

    def step(self) -> bool:
        """Sends one piece of what is new; returns whether there was any.

        Raises:
            Over, GaveUp: it cannot be sent any more.
        """
        end = self._end()
        if self._refused or self._at >= end:
            return False
        files = formats.spool_files(self._spool, self._name)
        begins = [start for start, _ in files if start <= self._at]
        if not begins:  # the server has lost what was freed here: a power failure that lied about what was durable
            self._gap(files[0][0] if files else end)
            return True
        start = begins[-1]
        path = dict(files)[start]
        following = min([other for other, _ in files if other > start], default=end)
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), min(self._piece, min(following, end) - self._at), self._at - start)
        if not data:
            return False
        whole = following < end and self._at + len(data) >= following
        self._send(data, durable=whole)
        if self._at >= following and whole:
            for other, freed in files:
                if other < following:
                    os.unlink(freed)
        return True

    def finish(self) -> None:
        """Sends all that there is, and has it made durable."""
        while self.step():
            pass
        if not self._refused and self._at:
            self._send(b"", durable=True)

    def _end(self) -> int:
        index = formats.read_index(os.path.join(self._spool, "index"))
        return index.log if self._name == formats.LOG else index.metrics

    def _send(self, data: bytes, *, durable: bool) -> None:
        query = {"offset": self._at, "durable": "true" if durable else "false"}
        try:
            there = int(self._channel.json_of(self._channel.call("PUT", self._path, data, query=query))["offset"])
        except Refused as error:
            if error.code != "Conflict":
                self._refused = True
                self._log("the rest of the %s is not kept: %s" % (self._name, error))
                return
            # a server that was restored from a copy, say: it is told from where its own ends
            there = int(
                self._channel.json_of(self._channel.call("PUT", self._path, b"", query={"offset": 0}))["offset"]
            )
            self._log("the server has %d bytes of the %s, and not %d" % (there, self._name, self._at))
            if there > self._end():
                self._refused = True
                return
        else:
            # a server that looks for secrets takes a part of it, in whole lines
            taken = there - self._at
            self._piece = max(SMALLEST_PIECE_BYTES, taken) if 0 < taken < len(data) else PIECE_BYTES
            if data and taken <= 0:
                self._refused = True
                self._log("the rest of the %s is not kept: the server takes nothing of it at %d" % (self._name, there))
                return
        self._at = there

    def _gap(self, first: int) -> None:
        self._refused = True
        self._log("the %s from %d to %d are lost: the server had said that it had them" % (self._name, self._at, first))


class Deliverer:
    """Sends streams, until it is told that nothing more comes. For a thread of its own."""

    def __init__(self, streams: List[Stream], log: Callable[[str], None]) -> None:
        self._streams, self._log = streams, log
        self._failures = 0
        self.hinted, self.ended = threading.Event(), threading.Event()

    def run(self) -> None:
        """Returns when all is sent.

        Raises:
            Over, GaveUp: it cannot be.
        """
        pause_s, sent_at = FIRST_PAUSE_S, time.monotonic()
        while not self.ended.is_set():
            self.hinted.clear()
            if sum(map(self._step, self._streams)):
                now = time.monotonic()
                pause_s = FIRST_PAUSE_S if now - sent_at > CALM_S else min(LONGEST_PAUSE_S, pause_s * 2)
                sent_at = now
                self.ended.wait(pause_s)
            else:
                self.hinted.wait(LOOK_S if time.monotonic() - sent_at < CALM_S else QUIET_LOOK_S)
        for stream in self._streams:
            while self._step(stream):
                pass
            stream.finish()

    def _step(self, stream: Stream) -> bool:
        """Sends a piece, if there is one. What the disk cannot give now it may give later, and the others go on."""
        try:
            sent = stream.step()
            self._failures = 0
            return sent
        except (OSError, ValueError) as error:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            self._log("what the task writes cannot be read: %s" % error)
            time.sleep(FAILURE_PAUSE_S)
            return True

    def end(self) -> None:
        """Lets it send what is left, and return."""
        self.ended.set()
        self.hinted.set()


class Reporter:
    """Tells the server what the status says, when that changes and as a sign of life. For a thread of its own.

    Args:
        folder: the attempt's.
        task: the name of the pod's.
        channel: the caller's own.
        heartbeat_s: it is told at least so often.
        heard: takes what the server wishes.
        log: takes a line of text.
    """

    def __init__(
        self, folder: str, task: str, channel: Channel, heartbeat_s: float,
        heard: Callable[[Dict[str, Any]], None], log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._folder, self._path, self._channel, self._log = folder, "/tasks/" + task, channel, log
        self._heartbeat_s, self._heard = heartbeat_s, heard
        self.hinted, self.ended = threading.Event(), threading.Event()
        self._told: Optional[bytes] = None
        self._stamped: Any = None

    def run(self) -> None:
        """Returns when it has ended.

        Raises:
            Over, GaveUp: it cannot be told any more.
        """
        told_at = 0.0
        while not self.ended.is_set():
            self.hinted.clear()
            stamp = self._stamp()
            report = self._told if stamp == self._stamped else self.report()
            self._stamped = stamp
            if report is not None and (report != self._told or time.monotonic() - told_at >= self._heartbeat_s):
                try:
                    self._tell(report)
                except Refused as error:  # the next one may say something else
                    self._log("the server does not take what is reported: %s" % error)
                    self._told = report
                told_at = time.monotonic()
            self.hinted.wait(min(QUIET_LOOK_S, self._heartbeat_s))

    def end(self) -> None:
        """Lets it return."""
        self.ended.set()
        self.hinted.set()

    def last(self) -> None:
        """Tells that the attempt has ended: everything else must be with the server by now."""
        self._tell(self.report(ended=True))

    def report(self, *, ended: bool = False) -> bytes:
        """Returns what there is to tell; that it has ended only with ``ended``."""
        events, saved = formats.read_status(os.path.join(self._folder, "status")), self._saved()
        if not ended:
            events = [event for event in events if event["event"] != "ended"]
        # what its runner has sealed last may have been lost on its way
        events = [dict(event, saved=saved) if "saved" in event else event for event in events]
        # half characters, as a file's name may have, are no JSON for others
        text = json.dumps({"events": trimmed(events), "saved": saved}, ensure_ascii=False)
        return text.encode(errors="replace")

    def _stamp(self) -> List[Any]:
        """Returns what is another once there is more to report."""
        found = []
        for name in ("status", formats.KEPT):
            try:
                status = os.stat(os.path.join(self._folder, name))
                found.append((status.st_size, status.st_mtime_ns))
            except OSError:
                found.append((0, 0))
        return found

    def _saved(self) -> Optional[Dict[str, Any]]:
        try:
            with open(os.path.join(self._folder, formats.KEPT), "rb") as file:
                said = json.loads(file.read(MAX_REPORT_BYTES).decode())
            return {"name": str(said["name"])[:255], "at": int(said["at"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _tell(self, report: bytes) -> None:
        answer = self._channel.call("PUT", self._path, report, content="application/json")
        self._told = report
        self._heard(self._channel.json_of(answer))


def trimmed(events: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Returns events that fit a report: of a task that was started again and again, less of each time."""
    if _fits(events):
        return events
    first = next((event for event in events if event["event"] == "started"), None)
    events = [event for event in events if event["event"] != "started" or event is first]
    if not _fits(events):
        events = [dict(event, why="") if event["event"] == "restarted" else event for event in events]
    if not _fits(events):
        events = [dict(event, last_lines=str(event.get("last_lines", ""))[-SHORT_WHY:]) for event in events]
    while not _fits(events):
        events = events[: len(events) // 2 - 1] + events[len(events) // 2 :]
    return events


def _fits(events: List[Dict[str, Any]]) -> bool:
    return len(events) <= MAX_EVENTS and len(json.dumps(events)) <= MAX_REPORT_BYTES
