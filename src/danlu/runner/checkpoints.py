"""Checkpoints: which of the files under the checkpoint folder are whole, and which is the newest.

A checkpoint is an entry at the top of the folder, file or folder, whose name is not hidden and does not end in .tmp, .temp,
.part or .incomplete. TensorFlow's ``NAME.index`` and ``NAME.data-*`` are one checkpoint, ``NAME``. It is *sealed* once it was
seen unchanged for two seconds while its program ran, or was found sound by its structure afterwards; the seal holds its
files' sizes and times. What has a known format and is not sound is moved to ``.danlu/incomplete/``: never deleted, and no
longer in the way of a program that loads the newest file it sees.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
import zipfile
from typing import Dict, List, NamedTuple, Optional, Tuple

from .formats import write_atomically

UNFINISHED = (".tmp", ".temp", ".part", ".incomplete", ".tempstate")
SETTLED_NS = 2_000_000_000
MAX_ENTRIES = 1000
MAX_FILES = 10_000
MAX_JSON_BYTES = 64 << 20
ZIPS = (".npz", ".keras", ".zip")
STATE_FILE = "checkpoint"  # TensorFlow's list of checkpoints: not one itself

Stamp = List[List[object]]


class Settled(NamedTuple):
    """What was found: the newest whole checkpoint (a path) and the names that were set aside."""

    newest: Optional[str]
    set_aside: List[str]


def candidates(folder: str) -> Dict[str, List[str]]:
    """Returns each checkpoint's name with the paths of its top entries, at most MAX_ENTRIES."""
    found: Dict[str, List[str]] = {}
    try:
        names = sorted(os.listdir(folder))[: MAX_ENTRIES * 10]
    except OSError:
        return found
    for name in names:
        if name.startswith(".") or name.endswith(UNFINISHED) or name == STATE_FILE or ".tempstate" in name:
            continue
        if os.path.islink(os.path.join(folder, name)):
            continue
        match = re.match(r"^(.+)\.(index|data-\d+-of-\d+)$", name)
        key = match.group(1) if match else name
        if key in found or len(found) < MAX_ENTRIES:
            found.setdefault(key, []).append(os.path.join(folder, name))
    return found


def _stamp(paths: List[str]) -> Stamp:
    """Returns (path, size, mtime) of every file of a checkpoint."""
    stamps: Stamp = []
    for path in paths:
        if os.path.isdir(path):
            for base, _, names in os.walk(path):
                for name in sorted(names):
                    full = os.path.join(base, name)
                    status = os.lstat(full)
                    stamps.append([os.path.relpath(full, os.path.dirname(path)), status.st_size, status.st_mtime_ns])
                    if len(stamps) > MAX_FILES:
                        return stamps
        else:
            status = os.lstat(path)
            stamps.append([os.path.basename(path), status.st_size, status.st_mtime_ns])
    return stamps


class Seals:
    """The sealed checkpoints of one folder, kept in ``.danlu/sealed.json``."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._path = os.path.join(folder, ".danlu", "sealed.json")
        self._seen: Dict[str, Tuple[Stamp, int]] = {}
        self.sealed: Dict[str, Stamp] = {}
        try:
            with open(self._path, "rb") as file:
                self.sealed = json.loads(file.read(MAX_JSON_BYTES).decode())
        except (OSError, ValueError):
            self.sealed = {}

    def watch(self, now: int) -> None:
        """Seals what has not changed for two seconds. Called now and then while the job runs."""
        changed = False
        for name, paths in candidates(self.folder).items():
            try:
                stamp = _stamp(paths)
            except OSError:
                continue
            known = self._seen.get(name)
            if known is None or known[0] != stamp:
                self._seen[name] = (stamp, now)
            elif now - known[1] >= SETTLED_NS and self.sealed.get(name) != stamp and stamp:
                self.sealed[name] = stamp
                changed = True
        if changed:
            self._store()

    def settle(self, attempt_id: str, trusted: bool = False) -> Settled:
        """Looks at every checkpoint while nothing writes: seals the sound ones, sets the broken ones aside.

        ``trusted``: the program ended by itself, so what it left is as it wanted it.
        """
        aside: List[str] = []
        for name, paths in candidates(self.folder).items():
            try:
                stamp = _stamp(paths)
                if self.sealed.get(name) == stamp:
                    continue
                sound = all(probe(path) is not False for path in paths) and _complete(paths)
                proven = trusted or any(probe(path) for path in paths) or any(os.path.isdir(path) for path in paths)
                if sound and proven and stamp:
                    self.sealed[name] = stamp
                elif not sound:
                    self._set_aside(name, paths, attempt_id)
                    aside.append(name)
            except OSError:
                continue
        self._store()
        return Settled(self.newest(), aside)

    def newest(self) -> Optional[str]:
        """Returns the newest sealed checkpoint: by the last number in the names if all have one, else by time."""
        whole = []
        for name, paths in candidates(self.folder).items():
            stamp = self.sealed.get(name)
            try:
                if stamp and stamp == _stamp(paths):
                    numbers = re.findall(r"\d+", name)
                    latest = max(int(str(entry[2])) for entry in stamp)
                    whole.append((int(numbers[-1]) if numbers else None, latest, name))
            except OSError:
                continue
        if not whole:
            return None
        if all(number is not None for number, _, _ in whole):
            return os.path.join(self.folder, max(whole, key=lambda w: (w[0] or 0, w[1]))[2])
        return os.path.join(self.folder, max(whole, key=lambda w: w[1])[2])

    def _set_aside(self, name: str, paths: List[str], attempt_id: str) -> None:
        target = os.path.join(self.folder, ".danlu", "incomplete", attempt_id)
        os.makedirs(target, exist_ok=True)
        for path in paths:
            os.replace(path, os.path.join(target, "%d-%s" % (time.time_ns(), os.path.basename(path))))
        self.sealed.pop(name, None)

    def _store(self) -> None:
        if not self.sealed and not os.path.exists(self._path):
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        write_atomically(self._path, json.dumps(self.sealed).encode())


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


def probe(path: str) -> Optional[bool]:
    """Says whether a file is sound by its format: True, False, or None for a format that is not known here."""
    if os.path.isdir(path):
        verdicts = []
        for base, _, names in os.walk(path):
            verdicts += [probe(os.path.join(base, name)) for name in names[:MAX_FILES]]
            if len(verdicts) > MAX_FILES:
                break
        return False if False in verdicts else (True if verdicts and all(verdicts) else None)
    name = path.lower()
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(16)
            if name.endswith(ZIPS) or (name.endswith((".pt", ".pth", ".ckpt", ".bin")) and head[:2] == b"PK"):
                return _zip(path)
            if name.endswith(".safetensors"):
                return _safetensors(path, size)
            if name.endswith((".h5", ".hdf5")):
                return _hdf5(path, size)
            if name.endswith(".npy"):
                return _npy(path, size, head)
            if name.endswith(".json"):
                return _json(path, size)
            if name.endswith((".pkl", ".pickle", ".joblib")) and size:
                file.seek(-1, os.SEEK_END)
                return file.read(1) == b"."
            if name.endswith((".pt", ".pth")):
                return None if size else False
    except OSError:
        return False
    return None if size or name.endswith(".txt") else False


def _zip(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False


def _safetensors(path: str, size: int) -> bool:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100 << 20):
            return False
        try:
            header = json.loads(file.read(length).decode())
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
    if head[:6] != b"\x93NUMPY":
        return False
    long_form = head[6] >= 2
    length = int.from_bytes(head[8:12] if long_form else head[8:10], "little")
    with open(path, "rb") as file:
        file.seek(12 if long_form else 10)
        text = file.read(length).decode("latin-1")
    shape = re.search(r"'shape':\s*\(([^)]*)\)", text)
    item = re.search(r"'descr':\s*'[<>|=][a-zA-Z](\d+)'", text)
    if shape is None or item is None:
        return len(text) == length and None is not shape
    count = 1
    for part in filter(None, (p.strip() for p in shape.group(1).split(","))):
        count *= int(part)
    return size == (12 if long_form else 10) + length + count * int(item.group(1))


def _json(path: str, size: int) -> bool:
    if size > MAX_JSON_BYTES:
        return True
    try:
        with open(path, "rb") as file:
            json.loads(file.read().decode())
        return True
    except ValueError:
        return False
