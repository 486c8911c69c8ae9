"""The files through which a runner speaks: written and read here only.

A *stamped log* is lines ``<ns> <stream><mark> <text>``. Streams: ``o`` stdout, ``e`` stderr, ``r`` the runner's notices.
Marks: ``.`` a whole line; ``+`` a piece of a line that the next record of its stream goes on with; ``~`` a progress line,
replaced by the next record of its stream. The time never decreases.

A *metrics* stream is JSON lines ``{"t":ns,"s":step or null,"m":{"loss":0.1}}``. Names that begin with ``system/`` are the
runner's own measurements (see usage.py): a program's are refused.

``status`` is JSON lines, one event each; a torn last line is not there yet. A job's specification may ask for so many tasks
and restarts only that it stays below MAX_STATUS_BYTES; of what is longer all the same, the beginning and the end are read.

``index`` says, in one record of fixed size, up to which byte the spools are consistent and which raw bytes they hold.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from . import procfs

FORMAT = 1
INDEX_BYTES = 512
SEAL_BYTES = 1 << 20
MAX_STATUS_BYTES = 4 << 20
LAST_STATUS_BYTES = 1 << 16
MAX_ERROR = 2000
MIN_BEGIN = 64
STDOUT, STDERR, NOTICE = b"o", b"e", b"r"
WHOLE, PIECE, PROGRESS = b".", b"+", b"~"
LOG, METRICS = "log", "metrics"
SYSTEM = "system/"
PROCESSES = "processes.json"
SAVED = "saved.json"
"""Which checkpoint is the newest proven one, and when it was complete."""
DELIVERED, KEPT = "delivered.json", "kept.json"
"""In a pod: which checkpoints have left it, as they were then; and what SAVED says, once that one has."""
NOTICES, PREEMPTION = "notice", "preemption.json"
"""The folder, and the file that appears in it, by which an attempt is told that it has to make way."""
UNFINISHED = ".part"
WELL, BADLY = "well", "badly"
"""How a gang has ended whose tasks have a runner each: what the stop file says of it."""


class Line(NamedTuple):
    """One record of a stamped log."""

    at: int
    stream: str
    mark: str
    text: str


def stamp(at: int, stream: bytes, mark: bytes, text: bytes) -> bytes:
    """Returns one record."""
    return b"%d %s%s %s\n" % (at, stream, mark, text)


def stamp_lines(at: int, stream: bytes, lines: bytes) -> bytes:
    """Returns whole lines (each ending in a newline) as records with one time, at the speed of bytes.replace."""
    head = b"%d %s. " % (at, stream)
    return head + lines[:-1].replace(b"\n", b"\n" + head) + b"\n"


def parse_lines(data: str) -> Iterator[Line]:
    """Yields the records of a stamped log; what is no record is passed over."""
    for raw in data.split("\n"):
        parts = raw.split(" ", 2)
        if len(parts) == 3 and parts[0].isdigit() and len(parts[1]) == 2:
            yield Line(int(parts[0]), parts[1][0], parts[1][1], parts[2])


class Index(NamedTuple):
    """What is consistent: lengths of the spooled streams, and of the raw files that they hold.

    A tail is the checksum of the last bytes of a raw file before that length; 0: not known.
    """

    log: int = 0
    metrics: int = 0
    stdout: int = 0
    stderr: int = 0
    raw_metrics: int = 0
    dropped: int = 0
    noticed: int = 0
    last_at: int = 0
    bad_metrics: int = 0
    open: int = 0
    metrics_noticed: int = 0
    stdout_tail: int = 0
    stderr_tail: int = 0


def pack_index(index: Index) -> bytes:
    """Returns the record, with a checksum, in INDEX_BYTES bytes."""
    body = json.dumps(list(index)).encode()
    text = b"%08x %s" % (zlib.crc32(body), body)
    return text.ljust(INDEX_BYTES - 1) + b"\n"


def parse_index(data: bytes) -> Index:
    """Returns the record; all zeros for no bytes. Raises ValueError where it is damaged."""
    checksum, _, body = data.strip().partition(b" ")
    if not body:
        return Index()
    if int(checksum, 16) != zlib.crc32(body):
        raise ValueError("the spool's index is damaged")
    fields = json.loads(body.decode())
    if not isinstance(fields, list) or len(fields) > len(Index._fields) or not all(map(_is_count, fields)):
        raise ValueError("the spool's index is none: %.200r" % fields)
    return Index(*fields)


def _is_count(field: object) -> bool:
    return type(field) is int and 0 <= field < 1 << 63


def read_index(path: str) -> Index:
    """Returns the record in a file; all zeros where there is none."""
    try:
        with open(path, "rb") as file:
            return parse_index(file.read(INDEX_BYTES))
    except FileNotFoundError:
        return Index()


def spool_files(folder: str, stream: str) -> List[Any]:
    """Returns (offset, path) of a stream's spool files, in order."""
    found = []
    for name in os.listdir(folder):
        head, _, tail = name.partition(".")
        if head == stream and tail.isdigit():
            found.append((int(tail), os.path.join(folder, name)))
    return sorted(found)


def spool_name(stream: str, offset: int) -> str:
    """Returns the name of the spool file that begins at ``offset``."""
    return "%s.%020d" % (stream, offset)


def parse_status(data: bytes) -> List[Dict[str, Any]]:
    """Returns the events in a status file's bytes, in order. A torn last line is not there yet."""
    events = []
    for raw in data.split(b"\n")[:-1]:
        try:
            event = json.loads(raw.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def share(order: Dict[str, Any]) -> None:
    """Moves what all tasks' environments have alike to the order itself, so that a large gang's file says it once.

    Whole variables become ``env``; where long ones begin alike (``TF_CONFIG``, which ends with the task), that is
    ``env_begins``, and a task has the rest.
    """
    every = [task["env"] for task in order["tasks"]]
    names = set(every[0]).intersection(*every[1:])
    alike = {name for name in names if all(env[name] == every[0][name] for env in every)}
    begins = {name: os.path.commonprefix([env[name] for env in every]) for name in names - alike}  # noqa: RUF071 - no paths
    order["env"] = {name: every[0][name] for name in sorted(alike)}
    order["env_begins"] = {name: text for name, text in sorted(begins.items()) if len(text) >= MIN_BEGIN}
    for task, env in zip(order["tasks"], every):
        task["env"] = {
            name: text[len(order["env_begins"].get(name, "")) :] for name, text in env.items() if name not in alike
        }


def environment(order: Dict[str, Any], task: Dict[str, Any]) -> Dict[str, str]:
    """Returns a task's whole environment of an order."""
    begins = order.get("env_begins", {})
    own = {name: begins.get(name, "") + text for name, text in task["env"].items()}
    return {**order.get("env", {}), **own}


def status_of(read: Callable[[int, int], bytes], size: int) -> List[Dict[str, Any]]:
    """Returns the events of a status file of ``size`` bytes, of which ``read`` returns so many from an offset."""
    data = read(MAX_STATUS_BYTES, 0)
    if size > MAX_STATUS_BYTES:  # the last word is there whatever comes before it; the newline ends a line that was cut
        data += b"\n" + read(LAST_STATUS_BYTES, max(MAX_STATUS_BYTES, size - LAST_STATUS_BYTES))
    return parse_status(data)


def read_status(path: str) -> List[Dict[str, Any]]:
    """Returns the events of a status file; nothing where there is no file."""
    try:
        with open(path, "rb") as file:
            descriptor = file.fileno()
            return status_of(lambda count, at: os.pread(descriptor, count, at), os.fstat(descriptor).st_size)
    except FileNotFoundError:
        return []


def mend_status(path: str) -> None:
    """Cuts off a line that was not written to its end, so that the next one stands alone."""
    try:
        with open(path, "r+b") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    except FileNotFoundError:
        return


def start_time(pid: int) -> Optional[int]:
    """Returns when a process started, in ticks since boot (field 22 of /proc/PID/stat); None if there is none."""
    try:
        fields = procfs.read(pid, "stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """Returns the id of this boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def write_atomically(path: str, data: bytes, mode: int = 0o600, durable: bool = False) -> None:
    """Writes a file so that a reader sees the old or the new one, never a part; also where there is no POSIX.

    With ``durable`` the new one is there after a loss of power too: its name is stored with its bytes.
    """
    unfinished = "%s.%d%s" % (path, os.getpid(), UNFINISHED)
    try:
        os.unlink(unfinished)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(unfinished, flags, mode)
    try:
        try:
            view = memoryview(data)
            while view:  # a disk that is nearly full takes a part and says so only the next time
                view = view[os.write(descriptor, view) :]
            getattr(os, "fdatasync", os.fsync)(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)
    except OSError:
        try:
            os.unlink(unfinished)
        except FileNotFoundError:
            pass
        raise
    if durable:
        sync(os.path.dirname(path) or ".")


def sweep(path: str) -> None:
    """Removes what writers of a file have left beside it that were killed; nobody else may be writing it now."""
    folder, name = os.path.split(path)
    for found in os.listdir(folder or "."):
        if (
            found.startswith(name + ".")
            and found.endswith(UNFINISHED)
            and found[len(name) + 1 : -len(UNFINISHED)].isdigit()
        ):
            try:
                os.unlink(os.path.join(folder, found))
            except FileNotFoundError:
                pass


def sync(path: str) -> None:
    """Makes a file, or the names in a folder, durable. Windows opens no folder, and keeps names by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
