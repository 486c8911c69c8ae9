"""Interpreters on this machine: found by version, asked what they are."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from danlu.domain.environments import Interpreter
from danlu.environments.sources import own_python
from danlu.environments.uv_command import Report, Uv
from danlu.errors import EnvironmentFailed, LaunchRejected

PROBE_TIMEOUT_S: Final = 20.0
FIND_TIMEOUT_S: Final = 60.0
OLDEST_HOST: Final = (3, 8)

_PROBE = (
    "import json,sys;"
    "print(json.dumps([list(sys.version_info[:3]),sys.implementation.name,sys.prefix,sys.base_prefix,sys.base_exec_prefix,"
    "getattr(sys,'_base_executable',None) or sys.executable]))"
)


@dataclass(frozen=True, slots=True)
class Python:
    """What an interpreter says of itself; paths have their links resolved, but for ``prefix``."""

    executable: Path
    version: tuple[int, int, int]
    implementation: str
    prefix: Path
    base_prefix: Path
    roots: tuple[Path, ...]

    @property
    def text(self) -> str:
        """The full version, e.g. ``3.11.7``."""
        return ".".join(map(str, self.version))


def ask(executable: str) -> Python:
    """Runs an interpreter and returns what it is.

    Raises:
        OSError: it cannot be run.
        ValueError: it is not a Python, or did not answer in time.
    """
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-c", _PROBE],
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it did not answer in {PROBE_TIMEOUT_S:.0f} s") from None
    try:
        version, implementation, prefix, base_prefix, base_exec_prefix, base = json.loads(done.stdout)
    except (ValueError, TypeError):
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[:300]
        raise ValueError(f"it does not answer as a Python does: {said or f'it ended with {done.returncode}'}") from None
    real = Path(base).resolve()
    # the executable's own tree too: a build may have been moved away from the prefix that it was made with
    roots = {Path(base_prefix).resolve(), Path(base_exec_prefix).resolve(), real.parent.parent}
    return Python(
        executable=real,
        version=(version[0], version[1], version[2]),
        implementation=implementation,
        prefix=Path(prefix),
        base_prefix=Path(base_prefix).resolve(),
        roots=tuple(sorted(r for r in roots if not any(r != other and r.is_relative_to(other) for other in roots))),
    )


def portable(wanted: str, uv: Uv, folder: Path, report: Report, *, deadline: float) -> Python:
    """Returns an interpreter that brings its libraries, so that it runs on other machines: uv's own, fetched if need be.

    Where uv cannot fetch it, one of this machine's, as ``find`` does: then other machines need its libraries.
    """
    try:
        return _managed(wanted, uv) or _fetched(wanted, uv, folder, report, deadline=deadline)
    except EnvironmentFailed as error:
        report(f"{error.message[:500]}: this machine's own is packed, and pods need an image with its libraries")
    return find(wanted, uv, folder, report, deadline=deadline)


def find(wanted: str, uv: Uv, folder: Path, report: Report, *, deadline: float) -> Python:
    """Returns an interpreter of a version such as ``3.11``; has uv fetch one where the machine has none.

    Raises:
        EnvironmentFailed: there is none, and none can be had.
    """
    for candidate in _candidates(wanted, uv):
        found = _fitting(candidate, wanted)
        if found is not None:
            return found
    report(f"there is no Python {wanted} on this machine: asking uv to fetch one")
    return _fetched(wanted, uv, folder, report, deadline=deadline)


def _fetched(wanted: str, uv: Uv, folder: Path, report: Report, *, deadline: float) -> Python:
    try:
        uv.run("python", ["python", "install", wanted, "--no-bin"], folder, report, deadline=deadline)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(
            f"this machine has no Python {wanted}, and uv could not fetch one: {error.message.partition(': ')[2]}",
            next_step=f"install python{wanted} on the server so that it is on PATH, or ask for Python {own_python()}",
            stage="python",
            python=wanted,
        ) from error
    found = _managed(wanted, uv)
    if found is None:
        raise EnvironmentFailed(
            f"uv fetched Python {wanted}, but it does not run here", next_step=f"install python{wanted} on the server",
            stage="python", python=wanted,
        )  # fmt: skip
    return found


def _managed(wanted: str, uv: Uv) -> Python | None:
    """Returns the interpreter that uv has fetched before."""
    path = uv.answer(["python", "find", "--managed-python", "--no-python-downloads", wanted], timeout_s=FIND_TIMEOUT_S)
    return None if path is None else _fitting(path, wanted)


def _candidates(wanted: str, uv: Uv) -> Iterator[str]:
    if wanted == own_python():
        yield str(getattr(sys, "_base_executable", None) or sys.executable)
    on_path = shutil.which(f"python{wanted}")
    if on_path is not None:
        yield on_path
    pyenv = Path(
        os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"
    )  # its shims on PATH run only the chosen versions
    with contextlib.suppress(PermissionError):  # another user's, named by a PYENV_ROOT that came along
        yield from map(str, sorted(pyenv.glob(f"versions/{wanted}.*/bin/python{wanted}"), reverse=True))
    by_uv = uv.answer(["python", "find", "--no-python-downloads", wanted], timeout_s=FIND_TIMEOUT_S)
    if by_uv is not None:
        yield by_uv


def _fitting(executable: str, wanted: str) -> Python | None:
    """Returns the interpreter if it runs and is a CPython of the wanted version."""
    try:
        found = _asked(executable, Path(executable).stat().st_mtime_ns)
    except (OSError, ValueError):
        return None  # a shim without a version behind it, a broken link: the next candidate may do
    fits = found.implementation == "cpython" and f"{found.version[0]}.{found.version[1]}" == wanted
    return found if fits else None


def host(executable: str) -> Interpreter:
    """Returns the interpreter that the user stands in, for ``env: host``.

    Raises:
        LaunchRejected: it is no absolute path, is not there, or is not a Python 3.8 or later.
    """
    if not executable.startswith("/") or "\0" in executable:
        raise LaunchRejected(
            f"interpreter: {executable[:200]!r} is not an absolute path", next_step="give the whole path"
        )
    try:
        changed = Path(executable).stat().st_mtime_ns
        return _host(executable, changed)
    except OSError as error:
        raise LaunchRejected(
            f"interpreter: {executable} cannot be run: {error.strerror or error}",
            next_step="give the path of a Python that is there: python -c 'import sys; print(sys.executable)'",
        ) from error
    except ValueError as error:
        raise LaunchRejected(
            f"interpreter: {executable} is not a Python: {error}", next_step="give a Python's path"
        ) from error


@functools.lru_cache(maxsize=256)
def _asked(executable: str, _changed: int) -> Python:
    """As ``ask``, once for each interpreter as it is: a start of Python costs more than all else of finding a build again."""
    return ask(executable)


@functools.lru_cache(maxsize=256)
def _host(executable: str, _changed: int) -> Interpreter:
    found = ask(executable)
    if found.version[:2] < OLDEST_HOST:
        raise LaunchRejected(
            f"interpreter: {executable} is Python {found.text}; Danlu needs {OLDEST_HOST[0]}.{OLDEST_HOST[1]} or later",
            next_step="use a later Python, or an environment: danlu env ls",
        )
    # without site, a Python of a virtual environment reports its base until 3.14; the file beside it says what it is
    place = Path(os.path.normpath(executable)).parent
    inside = next((p for p in (place, place.parent) if (p / "pyvenv.cfg").is_file()), None)
    variables = {} if inside is None else {"VIRTUAL_ENV": str(inside)}
    roots = {*found.roots, *([] if inside is None else [inside]), place if inside is None else place.parent}
    return Interpreter(bin=place, roots=tuple(sorted(roots)), variables=variables)
