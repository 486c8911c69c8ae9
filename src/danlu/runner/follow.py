"""From what a process wrote to what is kept: raw files become spools of stamped lines and metrics.

The process writes its output itself, into append-only files: nothing flushed is lost with whoever reads it. The follower
reads them from where its index ends, appends to the spools, then rewrites the index in one write. Killed at any line, the
next follower cuts the spools back to the index and goes on: every byte is there exactly once.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from . import formats, printed

READ_BYTES = 1 << 20
LONG_LINE_BYTES = 1 << 16
FOLD_BYTES = 1 << 12
PROMPT_NS = 1_000_000_000
PROGRESS_NS = 2_000_000_000
PUNCH_BYTES = 4 << 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RETRY_FULL_S = 1.0


class _Output:
    """One raw output file and the unfinished line at its end."""

    def __init__(self, path: str, stream: bytes, offset: int) -> None:
        self.path, self.stream, self.offset = path, stream, offset
        self.rest_since = 0
        self.shown = b""
        self.progress_at = 0
        self.punched = 0
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Follower:
    """Follows one task's files in ``folder`` (``stdout``, ``stderr``, ``metrics``, ``spool/``)."""

    def __init__(self, folder: str, limit_bytes: int, parse_metrics: bool) -> None:
        self.folder = folder
        self.spool = os.path.join(folder, "spool")
        os.makedirs(self.spool, mode=0o700, exist_ok=True)
        self.limit_bytes, self.parse_metrics = limit_bytes, parse_metrics
        self.index_path = os.path.join(self.spool, "index")
        self.index = formats.read_index(self.index_path)
        self.outputs = [
            _Output(os.path.join(folder, "stdout"), formats.STDOUT, self.index.stdout),
            _Output(os.path.join(folder, "stderr"), formats.STDERR, self.index.stderr),
        ]
        self.metrics = os.open(
            os.path.join(folder, "metrics"), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._index_file = os.open(self.index_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._open: Dict[str, Tuple[int, int]] = {}
        self._notices: List[bytes] = []
        self._full = False
        self._cut()

    def _cut(self) -> None:
        for stream, end in ((formats.LOG, self.index.log), (formats.METRICS, self.index.metrics)):
            for offset, path in formats.spool_files(self.spool, stream):
                if offset >= end:
                    os.unlink(path)
                elif offset + os.path.getsize(path) > end:
                    os.truncate(path, end - offset)

    def step(self, final: bool = False) -> bool:
        """Spools what is new; ``final``: unfinished lines too. Returns whether there was anything.

        With a full disk nothing is taken from the raw files; it is tried again with the next call.
        """
        now = max(time.time_ns(), self.index.last_at)
        state = self.index._asdict()
        state["last_at"] = now
        log: List[bytes] = []
        points: List[bytes] = []
        before = [(o.offset, o.rest_since, o.shown, o.progress_at) for o in self.outputs]
        for output, name in zip(self.outputs, ("stdout", "stderr")):
            self._take(output, now, final, log, points)
            state[name] = output.offset
        self._take_metrics(state, points, final, log, now)
        text = self._capped(b"".join(log), state, now, final)
        metrics = b"".join(points)
        raw = ("stdout", "stderr", "raw_metrics")
        if not text and not metrics and all(state[name] == getattr(self.index, name) for name in raw):
            return False
        try:
            state["log"] = self._append(formats.LOG, self.index.log, text)
            state["metrics"] = self._append(formats.METRICS, self.index.metrics, metrics)
            index = formats.Index(**state)
            os.pwrite(self._index_file, formats.pack_index(index), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            for output, kept in zip(self.outputs, before):
                output.offset, output.rest_since, output.shown, output.progress_at = kept
            self._forget_open()
            self._full = True
            time.sleep(RETRY_FULL_S)
            return final  # a final step is repeated until there is room: what was flushed must not be lost
        if self._full:
            self._full = False
            self.notice("the disk was full for a while: output was kept back, nothing of it is lost")
        self.index = index
        self._free()
        return True

    def notice(self, text: str) -> None:
        """Puts a line of the runner's own into the log, with the next step."""
        self._notices.append(text.encode())

    def drain(self) -> None:
        """Spools everything up to the files' ends. The writers must be dead."""
        while self.step():
            pass
        while self.step(final=True):
            pass

    def close(self) -> None:
        """Closes every file."""
        self._forget_open()
        for descriptor in [o.descriptor for o in self.outputs] + [self.metrics, self._index_file]:
            os.close(descriptor)

    # output

    def _take(self, output: _Output, now: int, final: bool, log: List[bytes], points: List[bytes]) -> None:
        # the unfinished end of a line stays in the raw file and is read again: the index never points into a line
        # unless a piece of it was written as such
        data = os.pread(output.descriptor, READ_BYTES, output.offset)
        end = data.rfind(b"\n") + 1
        if end:
            whole = data[:end]
            self._whole_lines(output, whole, now, log)
            if self.parse_metrics:
                self._printed(whole, now, points)
            output.offset += end
            output.rest_since = 0
            output.shown = b""
        rest = data[end:]
        if len(rest) > FOLD_BYTES and (overwritten := rest.rstrip(b"\r").rfind(b"\r")) > 0:
            rest = rest[overwritten:]  # a progress bar without a newline: what was overwritten is not kept
            output.offset += overwritten
        if not rest:
            return
        if len(rest) > LONG_LINE_BYTES or final:
            cut = rest[:LONG_LINE_BYTES]
            last = final and len(cut) == len(rest)
            folded = cut.rpartition(b"\r")[2] if last else cut
            log.append(formats.stamp(now, output.stream, formats.WHOLE if last else formats.PIECE, folded))
            output.offset += len(cut)
            output.rest_since = 0
            return
        output.rest_since = output.rest_since or now
        if now - output.rest_since < PROMPT_NS:
            return
        line = rest.rstrip(b"\r").rpartition(b"\r")[2]
        if b"\r" in rest or output.shown:
            if now - output.progress_at >= PROGRESS_NS and line != output.shown and line:
                log.append(formats.stamp(now, output.stream, formats.PROGRESS, line))
                output.progress_at, output.shown = now, line
        elif rest:
            log.append(formats.stamp(now, output.stream, formats.PIECE, rest))
            output.offset += len(rest)
            output.rest_since = 0

    def _whole_lines(self, output: _Output, whole: bytes, now: int, log: List[bytes]) -> None:
        if b"\r" in whole:
            lines = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in whole[:-1].split(b"\n")]
            whole = b"\n".join(lines) + b"\n"
        if len(whole) > LONG_LINE_BYTES and max(map(len, whole.split(b"\n"))) > LONG_LINE_BYTES:
            for line in whole[:-1].split(b"\n"):
                while len(line) > LONG_LINE_BYTES:
                    log.append(formats.stamp(now, output.stream, formats.PIECE, line[:LONG_LINE_BYTES]))
                    line = line[LONG_LINE_BYTES:]
                log.append(formats.stamp(now, output.stream, formats.WHOLE, line))
        else:
            log.append(formats.stamp_lines(now, output.stream, whole))

    def _printed(self, whole: bytes, now: int, points: List[bytes]) -> None:
        for line in whole[:-1].split(b"\n"):
            step, values = printed.parse(line.rpartition(b"\r")[2])
            if values:
                points.append(_point(now, step, values))

    # metrics

    def _take_metrics(
        self, state: Dict[str, int], points: List[bytes], final: bool, log: List[bytes], now: int
    ) -> None:
        data = os.pread(self.metrics, READ_BYTES, state["raw_metrics"])
        end = data.rfind(b"\n") + 1
        if not end:
            if final or len(data) == READ_BYTES:
                state["raw_metrics"] += len(data)
            return
        bad = 0
        for line in data[:end].splitlines():
            point = parse_point(line)
            if point is None:
                bad += 1
            else:
                points.append(point)
        state["raw_metrics"] += end
        if bad and not state["bad_metrics"]:
            log.append(
                formats.stamp(
                    now, formats.NOTICE, formats.WHOLE, b"%d metrics could not be read and were left out" % bad
                )
            )
        state["bad_metrics"] += bad

    # spool

    def _capped(self, text: bytes, state: Dict[str, int], now: int, final: bool) -> bytes:
        room = self.limit_bytes - self.index.log
        notices = b"".join(formats.stamp(now, formats.NOTICE, formats.WHOLE, n) for n in self._notices)
        self._notices = []
        if len(text) > room:
            kept = text[: text.rfind(b"\n", 0, max(0, room)) + 1]
            state["dropped"] += len(text) - len(kept)
            text = kept
            if not state["noticed"]:
                state["noticed"] = 1
                words = "output limit of %s reached: what follows is counted, not kept" % size(self.limit_bytes)
                notices += formats.stamp(now, formats.NOTICE, formats.WHOLE, words.encode())
        if final and state["noticed"] == 1 and not text:
            state["noticed"] = 2
            words = "%d bytes of output were dropped past the limit" % state["dropped"]
            notices += formats.stamp(now, formats.NOTICE, formats.WHOLE, words.encode())
        return text + notices

    def _append(self, stream: str, at: int, data: bytes) -> int:
        if not data:
            return at
        start, descriptor = self._open.get(stream, (-1, -1))
        if descriptor < 0 or at - start >= formats.SEAL_BYTES:
            if descriptor >= 0:
                os.close(descriptor)
            start = at
            known = [offset for offset, _ in formats.spool_files(self.spool, stream)]
            if known and at - known[-1] < formats.SEAL_BYTES:
                start = known[-1]
            path = os.path.join(self.spool, formats.spool_name(stream, start))
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._open[stream] = (start, descriptor)
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], at - start + written)
        return at + len(data)

    def _forget_open(self) -> None:
        for _, descriptor in self._open.values():
            os.close(descriptor)
        self._open = {}

    def _free(self) -> None:
        """Gives the disk back what the spools hold; best effort, since not every file system can."""
        for output in self.outputs:
            if output.offset - output.punched >= PUNCH_BYTES:
                _punch(output.descriptor, output.offset)
                output.punched = output.offset


def _punch(descriptor: int, end: int) -> None:
    end -= end % 4096
    if end:
        libc = ctypes.CDLL(None, use_errno=True)
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        libc.fallocate(ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_long(0), ctypes.c_long(end))


def _point(at: int, step: Optional[float], values: Dict[str, float]) -> bytes:
    whole: Any = int(step) if step is not None and step == step and abs(step) < 2**53 and step == int(step) else step
    return json.dumps({"t": at, "s": whole, "m": values}, separators=(",", ":")).encode() + b"\n"


def parse_point(line: bytes) -> Optional[bytes]:
    """Returns a line of ``danlu.log`` (``ns<TAB>step<TAB>name=value...``) as a point of the metrics stream; None if bad."""
    try:
        at, step, *pairs = line.decode().split("\t")
        values = {}
        for pair in pairs:
            name, _, value = pair.rpartition("=")
            if not name or len(name) > 64:
                return None
            values[name] = float(value)
        return _point(int(at), float(step) if step else None, values) if values and len(values) <= 1000 else None
    except (ValueError, OverflowError):
        return None


def size(amount: int) -> str:
    """Returns ``1.0 GiB``."""
    number = float(amount)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return "%d B" % amount if units[0] == "B" else "%.1f %s" % (number, units[0])
