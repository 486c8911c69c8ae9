"""A built environment in one file, with the interpreter that it stands on: for pods, which find it at another path.

The archive is a tar of folders, files and links in gzip members (see runner/unpacking.py); the same environment gives the
same bytes. The environment is at its top, its interpreter in ``.python``. What names a path of this machine names the pod's
instead: links become relative, ``pyvenv.cfg`` and what the interpreter knows of its own building name the folder below
MOUNTED, and the search paths of its libraries are relative to their file. Console scripts are relative already (builder.py).

uv's standalone interpreters bring their libraries. Another one needs those of the machine that it is from: the pod's image
must have them.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from danlu.domain.environments import MOUNTED, Archive
from danlu.errors import EnvironmentFailed

MEMBER_BYTES: Final = 4 * 2**20
LEVEL: Final = 1
"""Of gzip: see docs/decisions/0026-environments-in-pods.md."""
PYTHON: Final = ".python"
ELF: Final = b"\x7fELF"
_LEFT_OUT: Final = frozenset({"pyvenv.cfg", "lib64", ".lock", ".gitignore", "CACHEDIR.TAG", "danlu.json"})
"""At the top of an environment."""
_OF_SHELLS: Final = ("activate", "deactivate", "pydoc.bat")
_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})
_UNUSED: Final = frozenset({"test", "__phello__"})


class _Entry(NamedTuple):
    """One name in the archive. ``content``: instead of the source's; ``target``: of a link."""

    name: str
    source: Path | None = None
    content: bytes | None = None
    target: str = ""


def pack(venv: Path, python: Path, file: BinaryIO) -> Archive:
    """Writes the archive of an environment into a file; returns what it is.

    Args:
        venv: the environment's folder, named by its lock digest.
        python: the executable of the interpreter that it stands on, its links resolved.
        file: empty, to be written.

    Raises:
        EnvironmentFailed: it has what no archive can have; ``details["stage"]`` is pack.
    """
    out = _Members(file)
    files = size = 0
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, out), mode="w|", format=tarfile.GNU_FORMAT, bufsize=MEMBER_BYTES
        ) as archive:
            for entry in _with_folders(_entries(venv, python)):
                size += _add(archive, entry)
                files += 1
        out.finish()
    finally:
        out.close()
    return Archive(
        address=f"sha256:{out.hasher.hexdigest()}", size_bytes=out.size_bytes, unpacked_bytes=size, files=files
    )


def _entries(venv: Path, python: Path) -> Iterator[_Entry]:
    base, mounted = python.parent.parent, f"{MOUNTED}/{venv.name}/{PYTHON}"
    libraries = _libraries(base, python)
    version = next(venv.glob("lib/python3.*")).name
    yield _Entry("pyvenv.cfg", content=_configuration(venv, mounted))
    yield _Entry("bin/python", target=f"../{PYTHON}/bin/{python.name}")
    for name in ("python3", version):
        yield _Entry(f"bin/{name}", target="python")
    for path in _below(venv, leave=lambda name: name in _LEFT_OUT):
        name = path.relative_to(venv).as_posix()
        folder, _, last = name.rpartition("/")
        if folder == "bin" and (last.startswith(_OF_SHELLS) or last in ("python", "python3", version)):
            continue
        yield _entry(name, path)
    yield _Entry(f"{PYTHON}/bin/{python.name}", python, _relocated(python, base, mounted))
    for path in libraries:
        yield _entry(f"{PYTHON}/lib/{path.name}", path, None if path.is_symlink() else _relocated(path, base, mounted))
    for top in (base / "lib" / version, base / "include" / version):
        if not top.is_dir():
            continue
        for path in _below(top, leave=lambda name: name in _PACKAGES | _UNUSED):
            name = path.relative_to(base).as_posix()
            if path.suffix == ".a" or (path.name.startswith("_sysconfigdata") and path.suffix == ".pyc"):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(base):  # a distribution's own settings
                if path.is_file():
                    yield _Entry(f"{PYTHON}/{name}", path.resolve())
                continue
            yield _entry(f"{PYTHON}/{name}", path, _told_paths(path, base, mounted))


def _libraries(base: Path, python: Path) -> list[Path]:
    """Returns the interpreter's own libraries, if it does not consist of one file."""
    version = python.name.removeprefix("python")
    return sorted(
        path for path in (base / "lib").glob("libpython3*.so*") if version in path.name or ".so." not in path.name
    )


def _below(top: Path, leave: Callable[[str], bool]) -> Iterator[Path]:
    """Yields all files and links below a folder, and empty folders, in order; not what is to be left out at its top."""
    for at, folders, files in os.walk(top):
        here = Path(at)
        if here == top:
            folders[:] = [name for name in folders if not leave(name)]
            files = [name for name in files if not leave(name)]
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in links)
        yield from (here / name for name in sorted((*files, *links)))


def _entry(name: str, path: Path, content: bytes | None = None) -> _Entry:
    if not path.is_symlink():
        return _Entry(name, path, content)
    target = path.readlink()
    inside = Path(os.path.normpath(Path("/", name).parent / target))
    if target.is_absolute() or target.parts.count("..") > len(Path(name).parent.parts):
        raise EnvironmentFailed(
            f"the environment cannot be packed for pods: the link {name} leads to {target}, outside of it", stage="pack"
        )
    return _Entry(name, target=os.path.relpath(inside, Path("/", name).parent))


def _configuration(venv: Path, mounted: str) -> bytes:
    """Returns pyvenv.cfg for the pod: where the interpreter is there."""
    lines = (venv / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    home = [f"home = {mounted}/bin" if line.partition("=")[0].strip() == "home" else line for line in lines]
    kept = [line for line in home if line.partition("=")[0].strip() not in ("executable", "command", "base-executable")]
    return ("\n".join(kept) + "\n").encode()


def _relocated(path: Path, base: Path, mounted: str) -> bytes | None:
    """Returns an executable or a library that finds the interpreter's other libraries beside it, wherever that is.

    The search path (RUNPATH) that it was linked with is overwritten in its place, as chrpath does, by one that begins at the
    file. None: it names no path of this machine.
    """
    with path.open("rb") as file:
        if file.read(4) != ELF:
            return _told_paths(path, base, mounted)
        file.seek(0)
        data = file.read()
    old = os.fsencode(base / "lib")
    new = b"$ORIGIN/" + os.fsencode(os.path.relpath(base / "lib", path.parent))
    at = data.find(b"\0" + old + b"\0")
    if at < 0:
        return None
    if len(new) > len(old):
        raise EnvironmentFailed(
            f"the environment cannot be packed for pods: {path} looks for its libraries in {base / 'lib'}, "
            f"which is too short to be replaced by {new.decode()}",
            next_step="let the server use uv's Python: set UV_PYTHON_INSTALL_MIRROR, or let it reach GitHub",
            stage="pack",
        )
    return data[: at + 1] + new.ljust(len(old), b"\0") + data[at + 1 + len(old) :]


def _told_paths(path: Path, base: Path, mounted: str) -> bytes | None:
    """Returns what tells where the interpreter is (sysconfig's data, its Makefile) as it is in the pod; else None."""
    if path.is_symlink():
        return None
    if path.suffix == ".so":
        return _relocated(path, base, mounted)
    if not (path.name.startswith("_sysconfigdata") or path.name == "Makefile"):
        return None
    data = path.read_bytes()
    old = os.fsencode(base)
    return data.replace(old, mounted.encode()) if len(old) > 1 and base != Path("/usr") and old in data else None


def _with_folders(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    """Yields the folders that the names are in before them."""
    made: set[str] = set()
    for entry in entries:
        parts = entry.name.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            if folder not in made:
                made.add(folder)
                yield _Entry(folder)
        yield entry


def _add(archive: tarfile.TarFile, entry: _Entry) -> int:
    """Adds one entry; returns the bytes of a file."""
    info = tarfile.TarInfo(entry.name)
    if entry.target:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    elif entry.source is None and entry.content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        return _add_file(archive, info, entry)
    archive.addfile(info)
    return 0


def _add_file(archive: tarfile.TarFile, info: tarfile.TarInfo, entry: _Entry) -> int:
    if entry.source is None:
        info.size, info.mode = len(entry.content or b""), 0o644
        archive.addfile(info, io.BytesIO(entry.content or b""))
        return info.size
    with entry.source.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise EnvironmentFailed(f"the environment cannot be packed for pods: {entry.name} is no file", stage="pack")
        info.size, info.mtime = status.st_size, int(status.st_mtime)
        info.mode = 0o755 if status.st_mode & 0o111 else 0o644
        if entry.content is None:
            archive.addfile(info, file)
        else:
            info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))
    return info.size


class _Members:
    """A file that writes what it is given as gzip members, deflated side by side, and hashes what comes of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.hasher, self.size_bytes = hashlib.sha256(), 0
        self._file, self._held = file, bytearray()
        workers = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
        self._most = 2 * workers
        self._waiting: deque[Future[bytes]] = deque()

    def write(self, data: bytes) -> int:
        """See BinaryIO."""
        self._held += data
        while len(self._held) >= MEMBER_BYTES:
            self._begin(bytes(self._held[:MEMBER_BYTES]))
            del self._held[:MEMBER_BYTES]
        return len(data)

    def _begin(self, data: bytes) -> None:
        self._waiting.append(self._pool.submit(_deflated, data))
        if len(self._waiting) > self._most:
            self._end()

    def _end(self) -> None:
        member = self._waiting.popleft().result()
        self.hasher.update(member)
        self._file.write(member)
        self.size_bytes += len(member)

    def finish(self) -> None:
        """Writes what is left."""
        self._begin(bytes(self._held))
        self._held.clear()
        while self._waiting:
            self._end()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)


def _deflated(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, LEVEL, mtime=0)
