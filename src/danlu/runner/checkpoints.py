"""Checkpoints: which of the files under the checkpoint folder are whole, and which is the newest.

A checkpoint is an entry at the top of the folder, file or folder, whose name is not hidden and does not end in .tmp, .temp,
.part or .incomplete. TensorFlow's ``NAME.index`` and ``NAME.data-*`` are one checkpoint, ``NAME``. It is *sealed* once it was
seen unchanged for two seconds while its program ran, or was found sound by its structure afterwards; the seal holds its
files' sizes and times. What an earlier attempt left without either proof is never sealed for its age alone. What has a known
format and is not sound is moved to ``.danlu/incomplete/``: never deleted, and no longer in the way of a program that loads
the newest file it sees.

On one machine what is sealed is kept. In a pod it is once it was delivered (carrying.py), which ``delivered.json`` tells.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import sys
import time
import zipfile
import zlib
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from .formats import DELIVERED, write_atomically

UNFINISHED = (".tmp", ".temp", ".part", ".incomplete", ".tempstate")
SETTLED_NS = 2_000_000_000
CLOCK_NS = 10_000_000
"""By so much a file's time may be earlier than the clock's when it was written."""
MAX_ENTRIES = 1000
MAX_FILES = 10_000
MAX_JSON_BYTES = 64 << 20
MAX_UNPACKED_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 20
MAX_NAME = 255
ZIPS = (".npz", ".keras", ".zip")
STATE_FILE = "checkpoint"  # TensorFlow's list of checkpoints: not one itself

Stamp = List[List[object]]


class Settled(NamedTuple):
    """What was found: the newest whole checkpoint (a path) and the names that were set aside."""

    newest: Optional[str]
    set_aside: List[str]


def candidates(folder: str) -> Dict[str, List[str]]:
    """Returns each checkpoint's name with the paths of its top entries; of too many those with the highest numbers."""
    found: Dict[str, List[str]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    if len(names) > MAX_ENTRIES:
        names = sorted(names, key=_last_number, reverse=True)[:MAX_ENTRIES]
    for name in sorted(names):
        if name.startswith(".") or name.endswith(UNFINISHED) or name == STATE_FILE or ".tempstate" in name:
            continue
        path = os.path.join(folder, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            match = re.match(r"^(.+)\.(index|data-\d+-of-\d+)$", name)
            found.setdefault(match.group(1) if match else name, []).append(path)
    return found


def _stem(name: str) -> str:
    """Returns a name without its ending, whose digits (``.h5``) count nothing."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and re.match(r"^[A-Za-z]\w{0,11}$", ending) else name


def _last_number(name: str) -> int:
    numbers = re.findall(r"\d+", re.sub(r"\.(index|data-\d+-of-\d+)$", "", _stem(name)))
    return int(numbers[-1][:18]) if numbers else -1


def stamp_of(paths: List[str]) -> Stamp:
    """Returns (path, size, mtime) of every regular file of a checkpoint."""
    stamps: Stamp = []
    for path in paths:
        top = os.path.dirname(path)
        for full in _files(path):
            status = os.lstat(full)
            if stat.S_ISREG(status.st_mode):
                stamps.append([os.path.relpath(full, top), status.st_size, status.st_mtime_ns])
    return stamps


def _files(path: str) -> List[str]:
    """Returns the files of an entry, in order, at most MAX_FILES."""
    if not os.path.isdir(path):
        return [path]
    found: List[str] = []
    for base, folders, names in os.walk(path):
        folders.sort()
        found += [os.path.join(base, name) for name in sorted(names)]
        if len(found) > MAX_FILES:
            return found[:MAX_FILES]
    return found


def written(stamp: Stamp) -> int:
    """Returns when the last of a checkpoint's files was written, ns UTC."""
    return max(int(str(entry[2])) for entry in stamp)


def _bytes(stamp: Stamp) -> int:
    return sum(int(str(entry[1])) for entry in stamp)


def series(name: str) -> str:
    """Returns what a name has in common with those that differ from it in numbers alone."""
    return re.sub(r"\d+", "#", name)


def age(name: str, at: int) -> Tuple[int, int]:
    """Returns what is larger for the newer one of a series: the number in its name if there is one only, else the time."""
    numbers = re.findall(r"\d+", _stem(name))
    return int(numbers[0][:18]) if len(numbers) == 1 else -1, at


def load_stamps(path: str) -> Dict[str, Stamp]:
    """Returns the stamps by name that a file holds; none where there is no such file, or something else in it."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_JSON_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Seals:
    """The sealed checkpoints of one folder, kept in ``.danlu/sealed.json``.

    Args:
        folder: it.
        pod: the folder of an attempt in a pod, where it is told which of them have left it; empty: it does not matter.
    """

    def __init__(self, folder: str, pod: str = "") -> None:
        self.folder = folder
        self._delivered = os.path.join(pod, DELIVERED) if pod else ""
        self._path = os.path.join(folder, ".danlu", "sealed.json")
        self._seen: Dict[str, Tuple[Stamp, int]] = {}
        self._doubtful: Dict[str, FrozenSet[Tuple[object, ...]]] = {}
        self.sealed: Dict[str, Stamp] = load_stamps(self._path)

    def watch(self, now: int) -> bool:
        """Seals what has not changed for two seconds; returns whether there was such. Called now and then while the job runs.

        ``now``: nanoseconds of a clock that nobody sets, so that a jump of the wall clock seals nothing half-written.
        """
        changed = False
        for name, paths in candidates(self.folder).items():
            try:
                stamp = stamp_of(paths)
            except OSError:
                continue
            known = self._seen.get(name)
            if known is None or known[0] != stamp:
                self._seen[name] = (stamp, now)
            elif now - known[1] >= SETTLED_NS and self.sealed.get(name) != stamp and not self._in_doubt(name, stamp):
                if _bytes(stamp) and _complete(paths) and all(probe(path, deep=False) is not False for path in paths):
                    self.sealed[name] = stamp
                    changed = True
                else:
                    self._seen[name] = (stamp, now)  # looked at again in two seconds
        if changed:
            self._store()
        return changed

    def doubt(self) -> None:
        """Notes that what is not sealed now may be half of something: a program that wrote here has failed.

        It stands still from now on, which proves nothing. Nothing is moved, since others may be writing.
        """
        for name, paths in candidates(self.folder).items():
            try:
                stamp = stamp_of(paths)
            except OSError:
                stamp = []
            if self.sealed.get(name) != stamp:
                self._doubtful[name] = frozenset(map(tuple, stamp))

    def _in_doubt(self, name: str, stamp: Stamp) -> bool:
        """Says whether any of it is as it was in doubt: of a folder, the others may have written their own parts since."""
        noted = self._doubtful.get(name)
        return noted is not None and (not noted or any(tuple(entry) in noted for entry in stamp))

    def settle(self, attempt_id: str, trusted: bool = False) -> Settled:
        """Looks at every checkpoint while nothing writes: seals the sound ones, sets the broken ones aside.

        ``trusted``: the program ended by itself, so what it left is as it wanted it.
        """
        aside: List[str] = []
        for name, paths in candidates(self.folder).items():
            try:
                stamp = stamp_of(paths)
                if self.sealed.get(name) == stamp or not stamp:
                    continue
                verdicts = [probe(path) for path in paths]
                sound = False not in verdicts and _complete(paths)
                # of a folder with whole files it is not known whether all of them are there
                proven = any(verdicts) and not any(os.path.isdir(path) for path in paths)
                if sound and _bytes(stamp) and (proven or (trusted and not self._in_doubt(name, stamp))):
                    self.sealed[name] = stamp
                elif sound:
                    self._doubtful[name] = frozenset(map(tuple, stamp))
                else:
                    self._set_aside(name, paths, attempt_id)
                    aside.append(name)
            except OSError as error:
                print("checkpoint %s cannot be looked at: %s" % (name, error), file=sys.stderr)
        self._store()
        return Settled(self.newest(), aside)

    def whole(self) -> Dict[str, Stamp]:
        """Returns the sealed checkpoints that are as they were sealed."""
        found = {}
        for name, paths in candidates(self.folder).items():
            sealed = self.sealed.get(name)
            try:
                stamp = stamp_of(paths) if sealed else []
            except OSError:
                continue
            if stamp and stamp == sealed and _bytes(stamp):
                found[name] = stamp
        return found

    def adopt(self) -> None:
        """Seals all that is there: it was brought from where it was proven. Nothing may be writing."""
        self.sealed = {name: stamp_of(paths) for name, paths in candidates(self.folder).items()}
        self._store()

    def newest(self) -> Optional[str]:
        """Returns the newest sealed checkpoint: by the number in the names where they differ in nothing else, or by time."""
        whole = [(written(stamp), name) for name, stamp in self.whole().items()]
        if not whole:
            return None
        series = {re.sub(r"\d+", "#", _stem(name)) for _, name in whole}
        if len(series) == 1 and series.pop().count("#") == 1:
            return os.path.join(self.folder, max(whole, key=lambda w: (_last_number(w[1]), w[0]))[1])
        return os.path.join(self.folder, max(whole)[1])

    def tell(self, newest: Optional[str], path: str, hidden: Callable[[str], str]) -> Optional[Dict[str, Any]]:
        """Writes to a file, and returns, the name and time (ns UTC) of the newest sealed checkpoint.

        Args:
            newest: as ``newest`` has returned it.
            path: of the file.
            hidden: makes a name fit to be told: a job may have named it by anything.
        """
        if newest is None:
            return None
        name = os.path.basename(newest)
        # a file can have any time
        facts = {"name": hidden(name)[:MAX_NAME], "at": max(0, min(written(self.sealed[name]), time.time_ns()))}
        try:
            write_atomically(path, json.dumps(facts).encode())
        except OSError:
            pass  # a full disk, or the job has put something there: the end tells it all the same
        return facts

    def saved_since(self, at: int) -> bool:
        """Says whether a checkpoint is kept that was completed after ``at`` (ns UTC), and none is being written now.

        By files' times: what was complete before, and is sealed only now, does not hold what was done since.
        """
        found = False
        delivered = load_stamps(self._delivered) if self._delivered else self.sealed
        for name, paths in candidates(self.folder).items():
            try:
                stamp = stamp_of(paths)
            except OSError:
                return False
            if stamp and written(stamp) > at - CLOCK_NS:
                if not self.sealed.get(name) == delivered.get(name) == stamp:
                    return False
                found = True
        return found

    def _set_aside(self, name: str, paths: List[str], attempt_id: str) -> None:
        target = os.path.join(self.folder, ".danlu", "incomplete", attempt_id)
        os.makedirs(target, exist_ok=True)
        for path in paths:
            os.replace(path, os.path.join(target, "%d-%s" % (time.time_ns(), os.path.basename(path))))
        self.sealed.pop(name, None)

    def _store(self) -> None:
        if not self.sealed and not os.path.exists(self._path):
            return
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            write_atomically(self._path, json.dumps(self.sealed).encode())
        except OSError as error:  # a full disk; what is in memory is stored with the next change
            print("seals of checkpoints cannot be written: %s" % error, file=sys.stderr)


def _complete(paths: List[str]) -> bool:
    """Says whether a TensorFlow checkpoint has all its parts; true for every other."""
    names = [os.path.basename(path) for path in paths]
    parts = [re.search(r"\.data-(\d+)-of-(\d+)$", name) for name in names]
    totals = {int(part.group(2)) for part in parts if part}
    if not totals and not any(name.endswith(".index") for name in names):
        return True
    return (
        len(totals) == 1 and len([p for p in parts if p]) == totals.pop() and any(n.endswith(".index") for n in names)
    )


def probe(path: str, deep: bool = True) -> Optional[bool]:
    """Says whether a file is sound by its format: True, False, or None for a format that is not known here.

    Of a folder it tells whether all of its files are. ``deep``: checksums too, which reads all of it.
    """
    if os.path.isdir(path):
        verdicts = [probe(file, deep) for file in _files(path)]
        return False if False in verdicts else (True if verdicts and all(verdicts) else None)
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            return _probe(path, file.read(16), status.st_size, deep)
    except (OSError, ValueError, struct.error, RecursionError):
        return False


def _probe(path: str, head: bytes, size: int, deep: bool) -> Optional[bool]:
    name = path.lower()
    if name.endswith(ZIPS) or (name.endswith((".pt", ".pth", ".ckpt", ".bin")) and head[:2] == b"PK"):
        return _zip(path, deep)
    if name.endswith(".safetensors"):
        return _safetensors(path, size)
    if name.endswith((".h5", ".hdf5")):
        return _hdf5(path, size)
    if name.endswith(".npy"):
        return _npy(path, size, head)
    if name.endswith(".json"):
        return _json(path, size)
    if name.endswith((".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt")) and not size:
        return False
    if name.endswith((".pkl", ".pickle")) and head[:1] == b"\x80":
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"."
    return None


def _zip(path: str, deep: bool) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            # what unpacks to far more than it is would keep the attempt from ending
            return not deep or unpacked > 8 * os.path.getsize(path) + MAX_UNPACKED_BYTES or archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False


def _safetensors(path: str, size: int) -> bool:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100 << 20):
            return False
        try:
            header = dict(json.loads(file.read(length).decode()))
            ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def _hdf5(path: str, size: int) -> bool:
    with open(path, "rb") as file:
        block = file.read(96)
    if block[:8] != b"\x89HDF\r\n\x1a\n":
        return False
    version, offset = block[8], 40 if block[8] in (0, 1) else 28
    if version == 1:
        offset += 4
    end: int = struct.unpack("<Q", block[offset : offset + 8])[0]
    return end <= size


def _npy(path: str, size: int, head: bytes) -> bool:
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        return False
    start = 12 if head[6] >= 2 else 10
    length = int.from_bytes(head[8:start], "little")
    with open(path, "rb") as file:
        file.seek(start)
        text = file.read(min(length, MAX_TEXT_BYTES)).decode("latin-1")
    shape = re.search(r"'shape':\s*\(([^)]*)\)", text)
    if shape is None or size < start + length:
        return False
    item = re.search(r"'descr':\s*'[<>|=]([a-zA-Z])(\d+)'", text)
    if item is None:
        return True  # objects or records: what follows is not counted
    count = int(item.group(2)) * (4 if item.group(1) == "U" else 1)
    for part in filter(None, (p.strip() for p in shape.group(1).split(","))):
        count *= int(part[:18])
    return size >= start + length + count


def _json(path: str, size: int) -> bool:
    if size > MAX_JSON_BYTES:
        return True
    try:
        with open(path, "rb") as file:
            json.loads(file.read().decode())
        return True
    except ValueError:
        return False
