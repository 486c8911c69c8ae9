"""uv as a child process: a clean environment, its output handed on line by line, a deadline, its own words when it fails."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from uv import find_uv_bin

from danlu.environments.build_user import hindrance, settings_files
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.mirrors import uv_variables, without_passwords
from danlu.errors import EnvironmentFailed, StorageFull

BUILD_TIMEOUT_S: Final = 1800.0
COMPILE_TIMEOUT_S: Final = 3600.0
CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 30
COMPILE_WARNING: Final = "some files could not be compiled ahead; Python compiles them when they are imported"
MAX_LINES_REPORTED: Final = 10_000
MAX_LINE_BYTES: Final = 2000
MAX_REASON_LINES: Final = 30
MAX_REASON_LINE_CHARACTERS: Final = 400
MAX_REASON_CHARACTERS: Final = 3000

Report = Callable[[str], None]

_NO_SPACE = re.compile(r"no space left on device|os error 28\b|disk quota exceeded|os error 122\b", re.IGNORECASE)
_NO_NETWORK = re.compile(
    r"error sending request|dns error|failed to lookup address|connection refused|operation timed out", re.I
)
_NO_WHEEL = re.compile(
    r"no usable wheels|no wheels|building from source is disabled|building source distributions", re.I
)
_COMPILER_ERROR = re.compile(r"\berror: |^CMake Error|undefined reference to|\bKilled\b|^\w*Error: ")
_UV_TRAILER = re.compile(r"error: Failed to build ")
_WHEEL_HINT = re.compile(r"^hint: .*building from source is disabled.*$", re.IGNORECASE | re.MULTILINE)


def storage_full(error: OSError) -> bool:
    """Whether the disk (or the quota on it) is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def new_file(path: Path, text: str) -> None:
    """Writes a file that all may read; raises FileExistsError rather than write through what is there."""
    with path.open("x", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)


class Uv:
    """Runs uv with its cache, and the Pythons that it has fetched itself, in folders of the platform."""

    def __init__(self, cache: Path, pythons: Path, *, uid: int | None = None) -> None:
        """Takes the folders that uv writes into.

        Args:
            cache: uv's, of this user alone.
            pythons: where the Pythons are that uv fetches.
            uid: the user, and group, that uv runs as; None: the server's own.
        """
        self._uid = uid
        self._before: tuple[str, ...] = ()
        variables = uv_variables(os.environ)
        self._read = (Path(find_uv_bin()), *settings_files(variables))
        self._cache = cache
        self._environment = {
            "UV_HTTP_CONNECT_TIMEOUT": str(CONNECT_TIMEOUT_S),
            "UV_HTTP_TIMEOUT": str(READ_TIMEOUT_S),
            **variables,
            "UV_CACHE_DIR": str(cache),
            "UV_PYTHON_INSTALL_DIR": str(pythons),
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }
        if uid is not None:
            self._environment["TMPDIR"] = str(cache)
            if not any(path.is_relative_to(variables.get("HOME", "/")) for path in self._read[1:]):
                self._environment["HOME"] = "/nonexistent"  # the server's is closed, and has nothing that uv needs

    def hindrance(self, python: Path, folder: Path) -> str | None:
        """Returns why this uv's user cannot build in ``folder`` with ``python``, or None."""
        if self._uid is None:
            return None
        return hindrance(self._uid, python, read=self._read, write=(self._cache, folder))

    def give(self, folder: Path) -> None:
        """Lets this uv's user write into a folder."""
        if self._uid is not None:
            os.chown(folder, self._uid, self._uid)

    def without_passwords(self) -> Uv:
        """Returns a uv that sends no saved password to anybody."""
        other = copy.copy(self)
        other._environment = without_passwords(self._environment)
        return other

    def sealed(self, scratch: Path, variables: Mapping[str, str]) -> Uv:
        """Returns a uv for what runs others' code: where the server is root it has no network, and it knows no index.

        Args:
            scratch: a folder of this uv's user, for home and temporary files.
            variables: besides PATH, all that is set.
        """
        other = copy.copy(self)
        other._before = (
            sys.executable, "-I", "-S", str(Path(__file__).with_name("sealed.py")),
            str(-1 if self._uid is None else self._uid),
        )  # fmt: skip
        other._environment = {
            **variables,
            "PATH": self._environment.get("PATH", os.defpath),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "UV_CACHE_DIR": str(scratch / "uv"),
            "UV_OFFLINE": "1",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }
        return other

    def run(
        self,
        stage: str,
        arguments: Sequence[str],
        folder: Path,
        report: Report,
        *,
        deadline: float,
        hold: int | None = None,
    ) -> None:
        """Runs ``uv ARGUMENTS`` in ``folder`` to its end.

        Args:
            stage: ``resolve``, ``install``, ``python`` or ``compile``; goes into the error.
            arguments: uv's, without ``uv``.
            folder: where it runs; hidden in what it prints. A configuration of a project above it is not looked for.
            report: called with each line; what it raises ends uv.
            deadline: on the monotonic clock.
            hold: a descriptor that uv holds open to its end: a lock on ``folder`` outlives a killed server.

        Raises:
            EnvironmentFailed: uv failed, or was not done in time.
            StorageFull: uv found the disk full.
        """
        with contextlib.suppress(FileExistsError):
            # an empty one: uv looks no further up, but still reads the machine's and the user's
            new_file(folder / "uv.toml", "")
        status, kept = self._follow_to_end(
            stage, [find_uv_bin(), *arguments], folder, report, deadline=deadline, hold=hold
        )
        if status != 0:
            raise failure(stage, status, kept)

    def compile(self, python: Path, folder: Path, report: Report, *, deadline: float, hold: int | None = None) -> None:
        """Compiles the modules below ``folder`` to bytecode, which only saves time: what does not compile is left alone.

        Args:
            python: the interpreter that the environment stands on. The environment's own would run what was installed:
                ``.pth`` files and sitecustomize.
            folder: an environment.
            report: called where not all could be compiled.
            deadline: on the monotonic clock.
            hold: as in ``run``.

        Raises:
            EnvironmentFailed: it was not done in time.
        """
        program = Path(__file__).with_name("compiling.py").read_text(encoding="utf-8")  # a file that user may not reach
        command = [str(python), "-I", "-S", "-W", "ignore", "-c", program, str(folder)]
        # its words would show lines of source files, and are not handed on
        status, _ = self._follow_to_end("install", command, folder.parent, lambda _: None, deadline=deadline, hold=hold)
        if status != 0:
            report(COMPILE_WARNING)

    def _follow_to_end(
        self, stage: str, command: Sequence[str], folder: Path, report: Report, *, deadline: float, hold: int | None
    ) -> tuple[int, deque[str]]:
        """Runs a command; returns its exit status and its last lines."""
        limit_s = COMPILE_TIMEOUT_S if stage == "compile" else BUILD_TIMEOUT_S
        uid = None if self._before else self._uid  # what comes before changes the user itself
        child = subprocess.Popen(
            [*self._before, *command],
            cwd=folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if hold is None else (hold,),
            start_new_session=True,
            umask=0o022,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
        late = threading.Event()
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _end, (child.pid, late))
        timer.daemon = True
        timer.start()
        try:
            kept = _follow(child, str(folder) + "/", report)
            status = child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                _kill(child.pid)
                child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if late.is_set():
            raise EnvironmentFailed(
                f"the environment was not built in {limit_s / 60:.0f} min, the most that a build may take; "
                f"it was ended. Its last words:\n{_tail(kept)}",
                next_step="is the package index, or a wheel's address, slow? ask for the environment again: "
                "what was fetched whole is kept",
                stage=stage,
            )
        return status, kept

    def answer(self, arguments: Sequence[str], *, timeout_s: float) -> str | None:
        """Returns what ``uv ARGUMENTS`` prints on standard output, or None where it fails."""
        try:
            done = subprocess.run(
                [find_uv_bin(), *arguments],
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                user=self._uid,
                group=self._uid,
                extra_groups=None if self._uid is None else [],
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _end(group: int, late: threading.Event) -> None:
    late.set()
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _follow(child: subprocess.Popen[bytes], hidden: str, report: Report) -> deque[str]:
    """Hands on the child's lines to the end; returns the last ones."""
    assert child.stdout is not None  # noqa: S101 - it was asked for
    kept: deque[str] = deque(maxlen=4 * MAX_REASON_LINES)
    count = 0
    while raw := child.stdout.readline(MAX_LINE_BYTES):
        line = raw.decode(errors="replace").rstrip().replace(hidden, "")
        kept.append(line)
        count += 1
        if count <= MAX_LINES_REPORTED and line:
            report(line)
        elif count == MAX_LINES_REPORTED + 1:
            report(f"... more than {MAX_LINES_REPORTED:,} lines: the rest is left out")
    return kept


def _tail(lines: Sequence[str]) -> str:
    return "\n".join(list(lines)[-MAX_REASON_LINES:])[-MAX_REASON_CHARACTERS:]


def failure(stage: str, status: int, lines: Sequence[str]) -> EnvironmentFailed | StorageFull:
    """Returns the error that uv's last lines stand for, with uv's own words in it."""
    listed = list(lines)
    if stage == "compile":
        return _not_compiled(status, listed)
    start = next(
        (i for i, line in enumerate(listed) if re.match(r"error\b|\s*×", line)), max(0, len(listed) - MAX_REASON_LINES)
    )
    words = "\n".join(line for line in listed[start : start + MAX_REASON_LINES] if line.strip())[:MAX_REASON_CHARACTERS]
    words = words.removeprefix("error: ")
    if _NO_SPACE.search(words):
        return StorageFull(f"the platform's disk is full; the environment was not built: {words[:500]}")
    doing = {"resolve": "the packages cannot be resolved", "install": "the packages cannot be installed"}.get(
        stage, "there is no such Python here"
    )
    step = "mend the requirements and submit again" if stage == "resolve" else "danlu env build tries again"
    if stage != "python" and _NO_NETWORK.search(words):
        doing += ": the package index cannot be reached from the server"
        step = "set the server's index or proxy (UV_DEFAULT_INDEX, HTTPS_PROXY, /etc/uv/uv.toml or pip.conf), then try again"
    elif _NO_WHEEL.search(words):
        hint = "hint: this platform installs wheels only and builds nothing from source"
        words = _WHEEL_HINT.sub(hint, words) if _WHEEL_HINT.search(words) else f"{words}\n{hint}"
        step = "choose a version (or a Python version) for which the package has a wheel, or give a wheel's https:// address"
        step = "; ".join((step, *_ready_made(words)))
    if status < 0:
        words = f"uv was ended by signal {-status}\n{words}"
    return EnvironmentFailed(
        f"{doing}: {words}" if words.strip() else f"{doing}: uv ended with {status}", next_step=step, stage=stage
    )


def _ready_made(words: str) -> list[str]:
    """Returns where the catalogue has the packages without wheels that uv's words name."""
    return [
        f"{build.package} is in the environment {entry.name}: --env {entry.name}"
        for entry in CATALOGUE.values()
        for build in entry.from_source
        if re.search(rf"\b{re.escape(build.package)}\b", words)
    ]


def _not_compiled(status: int, listed: list[str]) -> EnvironmentFailed | StorageFull:
    """Returns the error for a build that ran a compiler: its words from its first error on, less uv's about them."""
    end = next((i for i, line in enumerate(listed) if _UV_TRAILER.match(line)), len(listed)) or len(listed)
    first = next(
        (i for i, line in enumerate(listed[:end]) if _COMPILER_ERROR.search(line)), max(0, end - MAX_REASON_LINES)
    )
    shown = [line[:MAX_REASON_LINE_CHARACTERS] for line in listed[first:end] if line.strip()][:MAX_REASON_LINES]
    words = "\n".join(shown)[:MAX_REASON_CHARACTERS]
    if _NO_SPACE.search(words):
        return StorageFull(f"the platform's disk is full; the environment was not built: {words[:500]}")
    ended = f"ended by signal {-status}" if status < 0 else f"it ended with {status}"
    return EnvironmentFailed(
        f"it cannot be built from its source: {words or ended}",
        next_step="danlu env build tries again",
        stage="compile",
    )
