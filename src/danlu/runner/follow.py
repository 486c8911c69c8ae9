"""From what a process wrote to what is kept: raw files become spools of stamped lines and metrics.

The process writes its output itself, into append-only files: nothing flushed is lost with whoever reads it. The follower
reads them from where its index ends, appends to the spools, then rewrites the index in one write. Killed at any line, the
next follower cuts the spools back to the index and goes on: every byte is there exactly once.

A program can empty its output file (``echo x > /dev/stdout`` does). A file that is shorter than what was read of it, or whose
last bytes before that point have changed, is read again from its beginning. The punched holes change none of those bytes.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import time
import zlib
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from . import formats, printed
from .redaction import NOTHING, Redaction

READ_BYTES = 1 << 20
LONG_LINE_BYTES = 1 << 16
FOLD_BYTES = 1 << 12
PROMPT_NS = 1_000_000_000
PROGRESS_NS = 2_000_000_000
PUNCH_BYTES = 4 << 20
TAIL_BYTES = 256
KEPT_BYTES = 4096
LAST_LINES, LAST_BYTES = 10, 2000
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
RETRY_FULL_S = 0.25
MAX_NAME_LETTERS = 64
MAX_VALUES = 1000


class _Records(NamedTuple):
    """Records with one time: their bytes, the length of each one's head, and how many newlines are not the program's."""

    data: bytes
    head_bytes: int
    own_newlines: int = 0


class _Output:
    """One raw output file and the unfinished line at its end."""

    def __init__(self, path: str, stream: bytes, offset: int) -> None:
        self.stream, self.offset = stream, offset
        self.open = False  # the last record was a piece of a line
        self.rest_since = 0
        self.shown = b""
        self.progress_at = 0
        self.punched = 0
        self.waiting = 0  # bytes at its end that may be the beginning of a secret
        self.emptied = False  # and said so
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.tail = self.before(offset)

    def before(self, offset: int) -> bytes:
        """Returns the last bytes of the file before ``offset``; none where it does not reach that far."""
        start = max(0, offset - TAIL_BYTES)
        tail = os.pread(self.descriptor, offset - start, start)
        return tail if len(tail) == offset - start else b""

    def is_another(self) -> bool:
        """Says whether the file was emptied, and perhaps written anew, since ``offset`` was reached."""
        return self.before(self.offset) != self.tail or os.fstat(self.descriptor).st_size < self.offset


class Follower:
    """Follows one task's files in ``folder`` (``stdout``, ``stderr``, ``metrics``, ``spool/``); hides secrets in them."""

    def __init__(self, folder: str, limit_bytes: int, parse_metrics: bool, redaction: Redaction = NOTHING) -> None:
        self.folder, self.redaction = folder, redaction
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
        self._measured: List[Dict[str, float]] = []
        self._punched_metrics = 0
        self._clock = 0
        self.full = False
        self.behind = False
        for bit, output in enumerate(self.outputs):
            output.open = bool(self.index.open & 1 << bit)
            known = (self.index.stdout_tail, self.index.stderr_tail)[bit]
            if known and zlib.crc32(output.tail) != known:
                output.tail = b"\0"  # emptied while nobody followed: the first step finds that
        self._cut()

    def _cut(self) -> None:
        for stream, end in ((formats.LOG, self.index.log), (formats.METRICS, self.index.metrics)):
            for offset, path in formats.spool_files(self.spool, stream):
                if offset >= end:
                    os.unlink(path)
                elif offset + os.path.getsize(path) > end:
                    os.truncate(path, end - offset)

    def step(self, final: bool = False) -> bool:
        """Spools what is new; ``final``: unfinished lines too. Returns whether the program had written anything.

        Afterwards ``behind`` says that there is more to take at once, ``full`` that the disk had no room: then nothing was
        taken from the raw files, and the next call tries it again.
        """
        now = max(time.time_ns(), self.index.last_at)
        self._clock = time.monotonic_ns()
        state = self.index._asdict()
        state["last_at"] = now
        self.behind = False
        log: List[_Records] = []
        points: List[bytes] = []
        told = len(self._notices)
        before = [dict(vars(output)) for output in self.outputs]
        for output, name in zip(self.outputs, ("stdout", "stderr")):
            if output.is_another():
                self._begin_again(output, name, now, log)
            if state["noticed"] and not self.parse_metrics:
                self._skip(output, state)
            else:
                self._take(output, now, final, log, points)
            state[name], state[name + "_tail"] = output.offset, zlib.crc32(output.tail)
        self._take_metrics(state, points, final)
        metrics = self._bounded(points, state)
        text = self._capped(log, state, now, final)
        # what the runner measured is kept past the program's limit: it has its own, which is its rate
        measured = b"".join(_point(now, None, values) for values in self._measured)
        state["open"] = sum(1 << bit for bit, output in enumerate(self.outputs) if output.open)
        raw = ("stdout", "stderr", "raw_metrics")
        moved = bool(text or metrics) or any(state[name] != getattr(self.index, name) for name in raw)
        if not moved and not measured:
            return False
        try:
            state["log"] = self._append(formats.LOG, self.index.log, text)
            state["metrics"] = self._append(formats.METRICS, self.index.metrics, metrics + measured)
            index = formats.Index(**state)
            os.pwrite(self._index_file, formats.pack_index(index), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            for output, kept in zip(self.outputs, before):
                vars(output).update(kept)
            self._forget_open()
            del self._notices[told:]
            self._measured.clear()  # of a moment that is over
            self.full, self.behind = True, False
            return final  # a final step is repeated until there is room: what was flushed must not be lost
        self._notices.clear()
        self._measured.clear()
        if self.full:
            self.full = False
            self.notice("the disk was full for a while: output was kept back, nothing of it is lost")
        self.index = index
        self._free()
        return moved

    def notice(self, text: str) -> None:
        """Puts a line of the runner's own into the log, with the next step."""
        self._notices.append(self.redaction.of(text.encode()))

    def last_lines(self) -> str:
        """Returns the last lines of stderr, or of stdout where there is nothing else: at most 10, at most 2,000 bytes."""
        for output in reversed(self.outputs):
            end = os.fstat(output.descriptor).st_size
            size_bytes = LAST_BYTES + self.redaction.longest  # what is cut at its beginning would not be known
            data = os.pread(output.descriptor, size_bytes, max(0, end - size_bytes))
            data = self.redaction.of(data)[-LAST_BYTES:].replace(b"\0", b"")
            lines = [shown(line).decode(errors="replace").rstrip() for line in data.split(b"\n")]
            kept = [line for line in lines if line][-LAST_LINES:]
            if kept:
                return "\n".join(kept)
        return ""

    def measured(self, values: Dict[str, float]) -> None:
        """Puts a measurement of the runner's own into the metrics, with the next step. It wakes nobody."""
        self._measured.append(values)

    def drain(self) -> None:
        """Spools everything up to the files' ends. The writers must be dead."""
        while self.step():
            pass
        while self.step(final=True):
            if self.full:
                time.sleep(RETRY_FULL_S)

    def close(self) -> None:
        """Closes every file."""
        self._forget_open()
        for descriptor in [o.descriptor for o in self.outputs] + [self.metrics, self._index_file]:
            os.close(descriptor)

    # output

    def _skip(self, output: _Output, state: Dict[str, int]) -> None:
        """Counts what is past the limit without reading it: what a program prints without end costs nothing."""
        end = os.fstat(output.descriptor).st_size
        if end > output.offset:
            state["dropped"] += end - output.offset
            output.offset, output.tail = end, output.before(end)

    def _begin_again(self, output: _Output, name: str, now: int, log: List[_Records]) -> None:
        """Goes back to the beginning of a file that its program has emptied; says so once."""
        if not output.emptied:
            self.notice(
                "the program emptied its %s (as > /dev/%s does, unlike >>): it is read from its new start"
                % (name, name)
            )
        self._end_piece(output, now, log)
        output.emptied = True
        output.offset = output.punched = output.rest_since = 0
        output.shown = output.tail = b""

    def _take(self, output: _Output, now: int, final: bool, log: List[_Records], points: List[bytes]) -> None:
        # the unfinished end of a line stays in the raw file and is read again: the index never points into a line
        # unless a piece of it was written as such
        begin = output.offset
        known = min(begin, self.redaction.longest)  # a piece may have ended within a secret
        data = os.pread(output.descriptor, READ_BYTES + known, begin - known)
        hidden, data = self.redaction.of(data)[known:], data[known:]
        output.waiting = len(data) - self.redaction.begun_at(data)
        if len(data) == READ_BYTES:
            self.behind = True
        self._take_data(output, hidden, now, final, log, points)
        taken = data[max(0, output.offset - begin - TAIL_BYTES) : output.offset - begin]
        output.tail = (output.tail + taken)[-TAIL_BYTES:]

    def _take_data(
        self, output: _Output, data: bytes, now: int, final: bool, log: List[_Records], points: List[bytes]
    ) -> None:
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
        if final and len(data) < READ_BYTES:
            if rest:
                self._line(output, now, rest, log, own_newline=True)
                output.offset += len(rest)
            return
        rest = rest[: len(rest) - output.waiting]
        if len(rest) > LONG_LINE_BYTES:
            output.offset += len(rest) - len(self._pieces(output, now, rest, log))
            output.rest_since = 0
        elif rest:
            self._unfinished(output, now, rest, log)

    def _unfinished(self, output: _Output, now: int, rest: bytes, log: List[_Records]) -> None:
        """Shows the end of a line that has stood for a second: a prompt, or a progress bar."""
        output.rest_since = output.rest_since or self._clock
        if self._clock - output.rest_since < PROMPT_NS:
            return
        line = shown(rest)
        if b"\r" in rest or output.shown:
            if self._clock - output.progress_at >= PROGRESS_NS and line != output.shown and line:
                self._end_piece(output, now, log)
                record = formats.stamp(now, output.stream, formats.PROGRESS, line)
                log.append(_Records(record, len(record)))
                output.progress_at, output.shown = self._clock, line
        else:
            self._piece(output, now, rest, log)
            output.offset += len(rest)
            output.rest_since = 0

    def _whole_lines(self, output: _Output, whole: bytes, now: int, log: List[_Records]) -> None:
        if output.open or b"\r" in whole or (len(whole) > LONG_LINE_BYTES and longest(whole) > LONG_LINE_BYTES):
            first, _, others = whole.partition(b"\n")
            if output.open:  # only its first line goes on with a piece
                self._line(output, now, first, log)
                if others:
                    self._whole_lines(output, others, now, log)
                return
            plain: List[bytes] = []
            for line in whole[:-1].split(b"\n"):
                line = shown(line)
                if len(line) <= LONG_LINE_BYTES:
                    plain.append(line)
                    continue
                self._plain(output, now, plain, log)
                plain = []
                self._line(output, now, line, log)
            self._plain(output, now, plain, log)
        else:
            records = formats.stamp_lines(now, output.stream, whole)
            log.append(_Records(records, records.index(b" ", records.index(b" ") + 1) + 1))

    def _plain(self, output: _Output, now: int, lines: List[bytes], log: List[_Records]) -> None:
        if lines:
            records = formats.stamp_lines(now, output.stream, b"\n".join(lines) + b"\n")
            log.append(_Records(records, records.index(b" ", records.index(b" ") + 1) + 1))

    def _line(self, output: _Output, now: int, line: bytes, log: List[_Records], own_newline: bool = False) -> None:
        """Adds the end of a line, in pieces where it is long."""
        if b"\r" in line:
            if line.rstrip(b"\r").find(b"\r") >= 0:
                self._end_piece(output, now, log)
            line = shown(line)
        line = self._pieces(output, now, line, log)
        record = formats.stamp(now, output.stream, formats.WHOLE, line)
        log.append(_Records(record, len(record) - len(line) - 1, int(own_newline)))
        output.open = False

    def _pieces(self, output: _Output, now: int, line: bytes, log: List[_Records]) -> bytes:
        """Adds pieces of a long line; returns what is left of it."""
        while len(line) > LONG_LINE_BYTES:
            cut = LONG_LINE_BYTES
            while cut > LONG_LINE_BYTES - 4 and line[cut] & 0xC0 == 0x80:  # not within a character of UTF-8
                cut -= 1
            self._piece(output, now, line[:cut], log)
            line = line[cut:]
        return line

    def _piece(self, output: _Output, now: int, piece: bytes, log: List[_Records]) -> None:
        if piece.startswith(b"\r"):
            self._end_piece(output, now, log)
            piece = piece.lstrip(b"\r")
        record = formats.stamp(now, output.stream, formats.PIECE, piece)
        log.append(_Records(record, len(record) - len(piece) - 1, 1))
        output.open = True

    def _end_piece(self, output: _Output, now: int, log: List[_Records]) -> None:
        """Ends the line of a piece that is about to be overwritten: it was shown already, and stays."""
        if output.open:
            record = formats.stamp(now, output.stream, formats.WHOLE, b"")
            log.append(_Records(record, len(record) - 1, 1))
            output.open = False

    def _printed(self, whole: bytes, now: int, points: List[bytes]) -> None:
        for line in whole[:-1].split(b"\n"):
            step, values = printed.parse(line.rpartition(b"\r")[2])
            if values:
                points.append(_point(now, step, values))

    # metrics

    def _take_metrics(self, state: Dict[str, int], points: List[bytes], final: bool) -> None:
        if os.fstat(self.metrics).st_size < state["raw_metrics"]:  # emptied by the program
            state["raw_metrics"] = self._punched_metrics = 0
        data = os.pread(self.metrics, READ_BYTES, state["raw_metrics"])
        if len(data) == READ_BYTES:
            self.behind = True
        end = data.rfind(b"\n") + 1
        if not end:
            if final or len(data) == READ_BYTES:
                state["raw_metrics"] += len(data)
            return
        bad = 0
        for line in data[: end - 1].split(b"\n"):
            point = parse_point(line, self.redaction)
            if point is not None:
                points.append(point)
            elif line:
                bad += 1
        state["raw_metrics"] += end
        if bad and not state["bad_metrics"]:
            self.notice("%d metrics could not be read and were left out" % bad)
        state["bad_metrics"] += bad

    def _bounded(self, points: List[bytes], state: Dict[str, int]) -> bytes:
        """Returns the points that there is room for: metrics have the same limit as the output."""
        if not points or state["metrics_noticed"]:
            return b""
        metrics = b"".join(points)
        room = self.limit_bytes - self.index.metrics
        if len(metrics) > room:
            metrics = metrics[: metrics.rfind(b"\n", 0, max(0, room)) + 1]
            state["metrics_noticed"] = 1
            self.notice("limit of %s reached: no more metrics are kept" % size(self.limit_bytes))
        return metrics

    # spool

    def _capped(self, log: List[_Records], state: Dict[str, int], now: int, final: bool) -> bytes:
        room = 0 if state["noticed"] else self.limit_bytes - self.index.log
        pieces: List[bytes] = []
        for records in log:
            kept = records.data
            if len(kept) > room:
                kept = kept[: kept.rfind(b"\n", 0, max(0, room)) + 1]
                lost = records.data[len(kept) :]
                state["dropped"] += len(lost) - lost.count(b"\n") * records.head_bytes - records.own_newlines
                room = 0  # no later and shorter line slips in
            else:
                room -= len(kept)
            pieces.append(kept)
        text = b"".join(pieces)
        if not state["noticed"] and len(text) < sum(len(records.data) for records in log):
            state["noticed"] = 1
            self.notice("output limit of %s reached: what follows is counted, not kept" % size(self.limit_bytes))
        if final and state["noticed"] == 1 and not self.behind and not text:
            state["noticed"] = 2
            self.notice("%d bytes of output were dropped past the limit" % state["dropped"])
        return text + b"".join(formats.stamp(now, formats.NOTICE, formats.WHOLE, notice) for notice in self._notices)

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
                output.punched = _punch(
                    output.descriptor, output.punched, output.offset - KEPT_BYTES - self.redaction.longest
                )
        if self.index.raw_metrics - self._punched_metrics >= PUNCH_BYTES:
            self._punched_metrics = _punch(self.metrics, self._punched_metrics, self.index.raw_metrics)


def _punch(descriptor: int, start: int, end: int) -> int:
    """Frees the blocks of a range; returns where the next range begins."""
    end -= end % 4096
    libc = ctypes.CDLL(None, use_errno=True)
    mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    libc.fallocate(ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_long(start), ctypes.c_long(end - start))
    return end


def shown(line: bytes) -> bytes:
    """Returns what a terminal would show last of a line in which a carriage return goes back to the beginning."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def longest(lines: bytes) -> int:
    """Returns the length of the longest line."""
    return max(map(len, lines.split(b"\n")))


def _point(at: int, step: Optional[float], values: Dict[str, float]) -> bytes:
    whole: Any = int(step) if step is not None and step == step and abs(step) < 2**53 and step == int(step) else step
    return json.dumps({"t": at, "s": whole, "m": values}, separators=(",", ":")).encode() + b"\n"


def parse_point(line: bytes, redaction: Redaction = NOTHING) -> Optional[bytes]:
    """Returns a line of ``danlu.log`` (``ns<TAB>step<TAB>name=value...``) as a point of the metrics stream; None if bad."""
    try:
        at, step, *pairs = line.decode().split("\t")
        values = {}
        for pair in pairs:
            name, _, value = pair.rpartition("=")
            if not name or len(name) > MAX_NAME_LETTERS or not name.isprintable() or name.startswith(formats.SYSTEM):
                return None
            values[redaction.text(name)] = float(value)  # a number may only look like a secret
        when, where = int(at), float(step) if step else None
        return _point(when, where, values) if values and len(values) <= MAX_VALUES and when >= 0 else None
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
