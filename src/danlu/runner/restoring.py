"""The checkpoints that an attempt goes on from, brought into the folder of a pod before its task starts.

All is written aside, and only what is whole gets its name: a half of one is never seen. Files get the time at which their
checkpoint was written, so that the newest one is the newest here too. TensorFlow's list of checkpoints is written anew: it
may have been on another machine than they were, and names what was not brought.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from typing import Any, Dict, List, Tuple

from .channel import Channel, Torn
from .checkpoints import STATE_FILE, Stamp, age, candidates, series, stamp_of
from .formats import write_atomically
from .trees import (
    MAX_DEPTH,
    MAX_NODE_BYTES,
    MAX_TREE_ENTRIES,
    Entry,
    TreeError,
    decode,
    link_stays_inside,
    require_name,
)

MAX_STATE_BYTES = 1 << 20
TRIALS = 5
"""So often a download may break off without having got any further."""
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = r"\.(index|data-\d+-of-\d+)"


class Restoring:
    """Brings what the server says.

    Args:
        channel: the caller's own.
        folder: that of the checkpoints.
        task: the pod's, whose own files are preferred to others' of the same name.
    """

    def __init__(self, channel: Channel, folder: str, task: str) -> None:
        self._channel, self._folder, self._task = channel, folder, task
        self._aside = os.path.join(folder, ".danlu", "restoring")
        self._links: List[Tuple[str, str]] = []
        self._entries = 0

    def run(self) -> Dict[str, Stamp]:
        """Returns what is there now, by name.

        Raises:
            TreeError: it cannot be brought; the text says what, why, and what to do.
            Over, GaveUp, Refused: the server does not give it.
        """
        items = self._channel.json("GET", "/checkpoints")["items"]
        if not items:
            return {}
        try:
            return self._brought(items)
        except OSError as error:
            need = sum(int(item["size_bytes"]) for item in items)
            names = ", ".join(sorted({str(item["name"]) for item in items})[:3])
            raise TreeError(
                "the checkpoints to go on from (%s; %d bytes) cannot be brought to %s: %s; %d bytes are free there"
                % (names, need, self._folder, error.strerror or error, _free(self._folder))
            ) from error
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _brought(self, items: List[Dict[str, Any]]) -> Dict[str, Stamp]:
        shutil.rmtree(self._aside, ignore_errors=True)
        os.makedirs(self._aside, mode=0o700)
        for item in sorted(items, key=lambda item: item["task"] != self._task):
            require_name(item["name"])
            self._tree(str(item["tree"]), str(item["name"]), int(item["at"]))
        for path, target in self._links:
            if not os.path.lexists(path):
                os.symlink(target, path)
        self._write_state(items)
        for name in sorted(os.listdir(self._aside)):
            target = os.path.join(self._folder, name)
            if os.path.isdir(target) and not os.path.islink(target):
                shutil.rmtree(target)
            os.replace(os.path.join(self._aside, name), target)
        stamps = {name: stamp_of(paths) for name, paths in candidates(self._folder).items()}
        return {**stamps, **state_stamp(self._folder)}

    def _tree(self, root: str, name: str, at: int) -> None:
        """Brings what is not there yet of a checkpoint."""
        waiting: List[Tuple[str, str, int]] = [(root, self._aside, 0)]
        while waiting:
            address, folder, depth = waiting.pop()
            entries = decode(self._node(address))
            self._entries += len(entries)
            if self._entries > MAX_TREE_ENTRIES or depth > MAX_DEPTH:
                raise TreeError(
                    "checkpoint %s has more than %d names or %d levels" % (name, MAX_TREE_ENTRIES, MAX_DEPTH)
                )
            for entry in entries:
                if not depth and not belongs(entry.name, name):
                    raise TreeError("checkpoint %s holds %r, which is not of it" % (name, entry.name))
                path = os.path.join(folder, entry.name)
                if entry.kind == "link":
                    if not link_stays_inside(depth, entry.target):
                        raise TreeError("checkpoint %s: the link %r leaves it" % (name, entry.name))
                    self._links.append((path, entry.target))
                elif entry.kind == "dir":
                    if not os.path.lexists(path):
                        os.mkdir(path, 0o755)
                    if os.path.isdir(path):
                        waiting.append((entry.address, path, depth + 1))
                elif not os.path.lexists(path):
                    self._file(entry, path)
                    os.utime(path, ns=(at, at))

    def _node(self, address: str) -> bytes:
        for trial in range(TRIALS):
            data = bytearray()
            try:
                for piece in self._channel.download("/blobs/%s" % address):
                    data += piece
                    if len(data) > MAX_NODE_BYTES:
                        raise TreeError("%s is no folder of a checkpoint: it is too large" % address)
            except Torn:
                if trial == TRIALS - 1:
                    raise
                continue
            break
        if "sha256:" + hashlib.sha256(data).hexdigest() != address:
            raise TreeError("%s is not what its address says" % address)
        return bytes(data)

    def _file(self, entry: Entry, path: str) -> None:
        """Brings a file; what broke off goes on where it ended."""
        hasher, at, trials = hashlib.sha256(), 0, 0
        with open(os.open(path, WRITE, entry.mode), "wb", buffering=0) as file:
            while True:
                before = at
                try:
                    for piece in self._channel.download("/blobs/%s?offset=%d" % (entry.address, at)):
                        at += len(piece)
                        if at > entry.size:
                            break
                        hasher.update(piece)
                        _write_all(file.fileno(), piece)
                    break
                except Torn:
                    trials = trials + 1 if at == before else 0
                    if trials >= TRIALS:
                        raise
        if at != entry.size or "sha256:" + hasher.hexdigest() != entry.address:
            raise TreeError("file %s of a checkpoint is not what its address and its size say" % entry.name)

    def _write_state(self, items: List[Dict[str, Any]]) -> None:
        """Makes TensorFlow's list name the checkpoint that was brought: of the series that it named before, if it can."""
        path = os.path.join(self._aside, STATE_FILE)
        indexed = {name[: -len(".index")] for name in os.listdir(self._aside) if name.endswith(".index")}
        found = {str(item["name"]): int(item["at"]) for item in items if item["name"] in indexed}
        named = _named(path)
        if os.path.lexists(path):
            os.unlink(path)
        if found:
            alike = {name: at for name, at in found.items() if named and series(name) == series(named)} or found
            newest = max(alike, key=lambda name: age(name, alike[name]))
            text = 'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % ((_quoted(newest),) * 2)
            write_atomically(path, text.encode(), 0o644)
            os.utime(path, ns=(found[newest], found[newest]))


def belongs(entry: str, name: str) -> bool:
    """Says whether something at the top of the folder is of the checkpoint of this name."""
    return not entry.startswith(".") and (entry == name or re.fullmatch(re.escape(name) + _PARTS, entry) is not None)


def state_stamp(folder: str) -> Dict[str, Stamp]:
    """Returns the stamp of TensorFlow's list by its name, if it is there and not absurdly large."""
    try:
        status = os.lstat(os.path.join(folder, STATE_FILE))
    except OSError:
        return {}
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_STATE_BYTES:
        return {}
    return {STATE_FILE: [[STATE_FILE, status.st_size, status.st_mtime_ns]]}


def _named(path: str) -> str:
    """Returns the name of the checkpoint that a list of TensorFlow's names first."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_STATE_BYTES).decode(errors="replace")
    except OSError:
        return ""
    found = re.search(r'^model_checkpoint_path: "([^"]*)"', text, re.MULTILINE)
    return found.group(1).rpartition("/")[2] if found else ""


def _quoted(name: str) -> str:
    """Returns a name as it stands between quotes in the text format of protocol buffers."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else "\\%03o" % byte for byte in name.encode())
    return "".join(plain)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a disk that is nearly full takes a part and says so only the next time
        view = view[os.write(descriptor, view) :]


def _free(folder: str) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def wall(at: int) -> int:
    """Returns a file's time as it can be told: a file can have any."""
    return max(0, min(at, time.time_ns()))
