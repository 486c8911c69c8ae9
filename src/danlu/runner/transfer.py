"""Copying files through a session: one sender and one receiver, for both ends. Nothing that arrives is believed.

What is sent is records (see frames.py): what there is in all, then each folder and file by its path below the root, then an
end. Only regular files and folders are sent, and nothing else can come out: the receiver makes every name itself, opens each
folder relative to the one before without following links, and puts a file in its place only once all of it has arrived.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from . import frames

TOTALS, FOLDER, FILE, DATA, FILE_END, SKIPPED, END = b"t", b"d", b"f", b"b", b"e", b"s", b"."
RECORDS: Mapping[bytes, int] = {
    TOTALS: frames.JSON_BYTES, FOLDER: 65_536, FILE: 65_536, DATA: 65_536, FILE_END: 0, SKIPPED: 65_536,
    END: frames.JSON_BYTES,
}  # fmt: skip
MAX_ENTRIES = 1_000_000
MAX_DEPTH = 100
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_SKIPPED = 100
SLACK_BYTES = 64 << 20
"""A folder may grow while it is copied: to twice what was announced and this."""
BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
READ = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | getattr(os, "O_BINARY", 0)
OPEN_FOLDER = os.O_RDONLY | NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
Folder = Union[int, str]
"""An open folder: its descriptor, or its path where the system cannot open relative to one."""


class TransferError(Exception):
    """It cannot be copied; the text says why. ``foreign``: the other end sends what it may not send."""

    def __init__(self, text: str, *, foreign: bool = False) -> None:
        super().__init__(text)
        self.foreign = foreign


class Counts(NamedTuple):
    """How much there is, or was copied."""

    files: int = 0
    size_bytes: int = 0


def _at(folder: Folder, name: str) -> Tuple[str, Dict[str, Any]]:
    """Returns a name below an open folder, as arguments of a function of ``os``."""
    return (name, {"dir_fd": folder}) if isinstance(folder, int) else (os.path.join(folder, name), {})


def _open_folder(path: str, above: Optional[Folder] = None, *, follow: bool = False) -> Folder:
    """Opens a folder; raises OSError where it is none, or a link."""
    if BY_DESCRIPTOR:
        name, where = (path, {}) if above is None else _at(above, path)
        return os.open(name, OPEN_FOLDER & ~NOFOLLOW if follow else OPEN_FOLDER, **where)
    full = path if above is None else os.path.join(str(above), path)
    mode = (os.stat if follow else os.lstat)(full).st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, "it is not a folder", full)
    return full


def _close(folder: Folder) -> None:
    if isinstance(folder, int):
        os.close(folder)


def printable(text: str) -> str:
    """Returns a name as it can be shown on a terminal, whatever a job has called its files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# sending


class Sender:
    """Sends a file, or a folder with all below it.

    Args:
        path: what to send; a link is followed there, and nowhere below.
        write: takes the bytes.
        progress: told (files, bytes) done and in all.
    """

    def __init__(
        self, path: str, write: Callable[[bytes], Any], progress: Optional[Callable[[Counts, Counts], None]] = None
    ) -> None:
        self._path, self._write, self._progress = path, write, progress
        self.done = self.totals = Counts()
        self._entries = 0

    def run(self) -> Counts:
        """Sends all of it and returns how much that was.

        Raises:
            TransferError: it is not there, or no file and no folder, or larger than can be copied.
        """
        try:
            mode = os.stat(self._path).st_mode
            if stat.S_ISDIR(mode):
                self._folder(self._path, None, "", counting=True)
                self._say(TOTALS, {"folder": True, "files": self.totals.files, "size_bytes": self.totals.size_bytes})
                self._entries = 0
                self._folder(self._path, None, "", counting=False)
            elif stat.S_ISREG(mode):
                self._single()
            else:
                raise TransferError("%s is neither a file nor a folder" % self._path)
        except OSError as error:
            raise TransferError("%s: %s" % (self._path, error.strerror or error)) from error
        self._say(END, {"files": self.done.files, "size_bytes": self.done.size_bytes})
        return self.done

    def _single(self) -> None:
        descriptor = os.open(self._path, READ & ~NOFOLLOW)
        try:
            self.totals = Counts(1, os.fstat(descriptor).st_size)
            self._say(TOTALS, {"folder": False, "files": 1, "size_bytes": self.totals.size_bytes})
            self._file(descriptor, "")
        finally:
            os.close(descriptor)

    def _folder(self, name: str, above: Optional[Folder], relative: str, *, counting: bool) -> None:
        """Counts or sends what is in a folder, by name."""
        depth = relative.count("/") + bool(relative)
        if depth > MAX_DEPTH:
            raise TransferError("%s lies more than %d folders deep" % (relative, MAX_DEPTH))
        try:
            folder = _open_folder(name, above, follow=above is None)
        except OSError as error:
            if above is None:
                raise
            self._skip(relative, error, counting)
            return
        try:
            if not counting:
                self._say(FOLDER, {"path": relative})
            for inner in self._names(folder, relative, counting):
                self._entries += 1
                if self._entries > MAX_ENTRIES:
                    raise TransferError("there are more than %d names in %s" % (MAX_ENTRIES, self._path))
                self._entry(folder, inner, "%s/%s" % (relative, inner) if relative else inner, counting)
        finally:
            _close(folder)

    def _names(self, folder: Folder, relative: str, counting: bool) -> List[str]:
        try:
            with os.scandir(folder) as listing:
                return sorted(item.name for item in listing)
        except OSError as error:
            self._skip(relative, error, counting)
            return []

    def _entry(self, folder: Folder, name: str, relative: str, counting: bool) -> None:
        path, where = _at(folder, name)
        try:
            status = os.stat(path, follow_symlinks=False, **where)
            is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
            descriptor = os.open(path, READ, **where) if is_file and not counting else -1
        except OSError as error:
            self._skip(relative, error, counting)
            return
        if is_folder:
            self._folder(name, folder, relative, counting=counting)
        elif not is_file:
            link = stat.S_ISLNK(status.st_mode)
            self._skip(relative, "a link" if link else "neither a file nor a folder", counting)
        elif counting:
            self.totals = Counts(self.totals.files + 1, self.totals.size_bytes + status.st_size)
        else:
            try:
                self._file(descriptor, relative)
            finally:
                os.close(descriptor)

    def _file(self, descriptor: int, relative: str) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._skip(relative, "it is no file any more", False)
            return
        facts = {"path": relative, "mode": status.st_mode & 0o777, "size": status.st_size}
        self._say(FILE, {**facts, "mtime_ns": max(0, status.st_mtime_ns)})
        left = status.st_size  # no more, if it grows meanwhile
        while left > 0:
            try:
                data = os.read(descriptor, min(frames.DATA_BYTES, left))
            except OSError as error:
                raise TransferError("%s: %s" % (relative or self._path, error.strerror or error)) from error
            if not data:
                break
            left -= len(data)
            self._write(frames.encode(DATA, data))
            self._count(0, len(data))
        self._write(frames.encode(FILE_END))
        self._count(1, 0)

    def _count(self, files: int, size_bytes: int) -> None:
        self.done = Counts(self.done.files + files, self.done.size_bytes + size_bytes)
        if self._progress is not None:
            self._progress(self.done, self.totals)

    def _skip(self, relative: str, why: Union[str, OSError], counting: bool) -> None:
        if isinstance(why, OSError):
            why = why.strerror or str(why)
        if not counting:
            self._say(SKIPPED, {"path": relative, "why": why})

    def _say(self, kind: bytes, value: Dict[str, Any]) -> None:
        self._write(frames.encode_json(kind, value))


# receiving


class Target(NamedTuple):
    """Where received files go.

    ``name``: what is sent is called so where ``path`` is a folder that is there, or ends with a slash; empty: its content
    goes there itself. ``refuses``: says of a name whether this system takes it for something else.
    """

    path: str
    name: str = ""
    refuses: Callable[[str], bool] = lambda _name: False


class Receiver:
    """Writes what arrives. Fed in any pieces; ``close`` says whether all of it has come."""

    def __init__(self, target: Target, progress: Optional[Callable[[Counts, Counts], None]] = None) -> None:
        self._target, self._progress = target, progress
        self._decoder = frames.Decoder(RECORDS)
        self._folders: List[Tuple[str, Folder]] = []
        self._root: Optional[Folder] = None
        self._file: Optional[_Arriving] = None
        self._entries = 0
        self._single = self._over = False
        self.path = ""
        self.done = self.totals = Counts()
        self.skipped: List[str] = []

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            TransferError: they are not what a sender sends, or cannot be written.
        """
        try:
            for kind, content in self._decoder.feed(data):
                self._record(kind, content)
        except (frames.FrameError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise TransferError("what arrives is not what is sent: %s" % error, foreign=True) from error
        except OSError as error:
            raise TransferError("%s: %s" % (error.filename or self.path, error.strerror or error)) from error

    def close(self) -> None:
        """Ends it; raises TransferError where the sender's end did not come."""
        self.abandon()
        if not self._over:
            raise TransferError("it broke off after %d files; those are whole" % self.done.files)

    def abandon(self) -> None:
        """Removes what is half there."""
        if self._file is not None:
            self._file.discard()
            self._file = None
        for _, folder in self._folders:
            _close(folder)
        if self._root is not None:
            _close(self._root)
        self._folders, self._root = [], None

    def _record(self, kind: bytes, content: bytes) -> None:
        if self._over or (self._root is None) != (kind == TOTALS):
            raise frames.FrameError("record %r comes out of turn" % kind)
        if (self._file is not None) != (kind in (DATA, FILE_END)):
            raise frames.FrameError("record %r comes in the middle of a file" % kind)
        if kind == DATA and self._file is not None:
            self._file.write(content)
            self._count(0, len(content))
        elif kind == FILE_END and self._file is not None:
            self._file.finish()
            self._file = None
            self._count(1, 0)
        elif kind == TOTALS:
            self._begin(frames.parse_json(content))
        elif kind == FOLDER:
            self._enter(self._parts(frames.parse_json(content)["path"]))
        elif kind == FILE:
            self._open(frames.parse_json(content))
        elif kind == SKIPPED and len(self.skipped) < MAX_SKIPPED:
            said = frames.parse_json(content)
            self.skipped.append(printable("%.300s: %.100s" % (said["path"], said["why"])))
        elif kind == END:
            self._over = True

    def _begin(self, totals: Dict[str, Any]) -> None:
        """Makes the folder that all goes into, once it is known whether it is one file."""
        self.totals = Counts(_count_of(totals["files"]), _count_of(totals["size_bytes"]))
        path, name = self._target.path or ".", self._target.name
        joined = bool(name) and (path.endswith(("/", os.sep)) or os.path.isdir(path))
        self.path = os.path.join(path, name) if joined else path
        self._single = totals["folder"] is False
        above = os.path.dirname(os.path.abspath(self.path)) if self._single else os.path.abspath(self.path)
        if joined and os.path.islink(self.path) and not self._single:
            raise TransferError("%s is a link, which is not followed" % self.path)
        os.makedirs(above, exist_ok=True)
        if self._single and os.path.isdir(self.path):
            raise TransferError("%s is a folder, and what is sent is a file" % self.path)
        free = shutil.disk_usage(above).free
        if self.totals.size_bytes > free:
            raise TransferError("%d bytes do not fit into %s: %d are free" % (self.totals.size_bytes, above, free))
        self._root = _open_folder(above, follow=True)

    def _parts(self, path: Any) -> List[str]:
        """Returns the names of a path; raises FrameError where it could lead anywhere else, or is too long."""
        if not isinstance(path, str) or len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise frames.FrameError("a path is too long")
        if self._single:
            if path:
                raise frames.FrameError("one file was announced, and %r comes" % path)
            return [os.path.basename(self.path)]
        parts = path.split("/") if path else []
        if len(parts) > MAX_DEPTH + 1:
            raise frames.FrameError("%r lies too deep" % path)
        for part in parts:
            wrong = part in ("", ".", "..") or "\0" in part or (os.sep != "/" and os.sep in part)
            if wrong or len(os.fsencode(part)) > MAX_NAME_BYTES or self._target.refuses(part):
                raise frames.FrameError("%r is not a path that can be written here" % path)
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise frames.FrameError("more than %d names come" % MAX_ENTRIES)
        return parts

    def _enter(self, parts: List[str]) -> Folder:
        """Returns the open folder of that path, made where it is not there; no link is followed on the way."""
        same = 0
        while same < min(len(parts), len(self._folders)) and self._folders[same][0] == parts[same]:
            same += 1
        for _, folder in self._folders[same:]:
            _close(folder)
        del self._folders[same:]
        assert self._root is not None  # noqa: S101 - for the type checker
        for part in parts[same:]:
            above = self._folders[-1][1] if self._folders else self._root
            path, where = _at(above, part)
            try:
                os.mkdir(path, 0o777, **where)
            except FileExistsError:
                pass
            self._folders.append((part, _open_folder(part, above)))
        return self._folders[-1][1] if self._folders else self._root

    def _open(self, facts: Dict[str, Any]) -> None:
        parts = self._parts(facts["path"])
        if not parts:
            raise frames.FrameError("a file has no name")
        size = _count_of(facts["size"])
        if self.done.size_bytes + size > 2 * self.totals.size_bytes + SLACK_BYTES:
            raise frames.FrameError("more bytes come than were announced (%d)" % self.totals.size_bytes)
        mode = 0o755 if _count_of(facts["mode"]) & 0o100 else 0o644
        self._file = _Arriving(self._enter(parts[:-1]), parts[-1], size, mode, _count_of(facts["mtime_ns"]))

    def _count(self, files: int, size_bytes: int) -> None:
        self.done = Counts(self.done.files + files, self.done.size_bytes + size_bytes)
        if self._progress is not None:
            self._progress(self.done, self.totals)


class _Arriving:
    """One file, under a name of its own until it is whole."""

    def __init__(self, folder: Folder, name: str, size: int, mode: int, mtime_ns: int) -> None:
        self._folder, self._name, self._left, self._mtime_ns = folder, name, size, mtime_ns
        self._unfinished = ".danlu-cp-%d" % os.getpid()
        path, where = _at(folder, self._unfinished)
        try:
            os.unlink(path, **where)
        except FileNotFoundError:
            pass
        self._descriptor = os.open(path, WRITE, mode, **where)

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise frames.FrameError("%s is longer than was announced" % printable(self._name))
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        """Puts it in its place; what is there, a link too, is replaced."""
        source, where = _at(self._folder, self._unfinished)
        target, _ = _at(self._folder, self._name)
        if os.utime in os.supports_fd:
            os.utime(self._descriptor, ns=(self._mtime_ns, self._mtime_ns))
        os.close(self._descriptor)
        self._descriptor = -1
        if where:
            os.replace(source, target, src_dir_fd=where["dir_fd"], dst_dir_fd=where["dir_fd"])
        else:
            os.replace(source, target)

    def discard(self) -> None:
        """Removes it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        path, where = _at(self._folder, self._unfinished)
        try:
            os.unlink(path, **where)
        except OSError:
            return


def _count_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise frames.FrameError("%.100r is not a number of that kind" % (value,))
    return value


# the end in a job


def serve(request: Mapping[str, Any]) -> None:
    """Sends to standard output, or receives from standard input, in a process of its own; ends it."""
    os.close(3)  # which says that it has begun
    code = 0
    try:
        if request["verb"] == "read":
            Sender(str(request["path"]) or ".", _write_out).run()
        else:
            receiver = Receiver(Target(str(request["path"]), str(request.get("name", ""))))
            try:
                for data in _read_in():
                    receiver.feed(data)
            except TransferError:
                receiver.abandon()
                raise
            receiver.close()
            for skipped in receiver.skipped:
                os.write(2, ("left out: %s\n" % skipped).encode())
    except (TransferError, BrokenPipeError) as error:
        os.write(2, ("%s\n" % error).encode(errors="replace"))
        code = 1
    except Exception as error:  # noqa: BLE001 - the process ends here, and says why
        os.write(2, ("%s: %s\n" % (type(error).__name__, error)).encode(errors="replace"))
        code = 1
    finally:
        os._exit(code)


def _write_out(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _read_in() -> Iterator[bytes]:
    while True:
        data = os.read(0, frames.DATA_BYTES)
        if not data:
            return
        yield data
