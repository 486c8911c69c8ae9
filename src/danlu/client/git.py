"""What git knows of a folder: commit, branch, remote, uncommitted changes. Read only and bounded, beside the code's scan.

The repository may be anybody's, and its configuration names programs that git runs: file monitors, filters, hooks, drivers
for differences. None of the repository's own is run. What the user's own configuration names is the user's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from danlu.domain.git import MAX_DIFF_BYTES, GitState
from danlu.domain.trees import address_of

TIMEOUT_S: Final = 10.0
"""For all of it."""
GRACE_S: Final = 0.5
"""For what is not known when the code has been read."""
MAX_LIST_BYTES: Final = 4 * 2**20
MAX_EXCLUDED: Final = 500
READ_BYTES: Final = 65536
KEPT_VARIABLES: Final = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM")
NOT_RUN: Final = (
    "core.fsmonitor=", f"core.hooksPath={os.devnull}", "core.untrackedCache=false", "core.pager=cat", "diff.external=",
    "status.submoduleSummary=false", "diff.submodule=short", "submodule.recurse=false", "core.quotePath=true",
)  # fmt: skip
STATUS: Final = (
    "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no", "--no-renames", "--no-ahead-behind",
    "--ignore-submodules=dirty", "--", ".",
)  # fmt: skip
DIFF: Final = (
    "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--submodule=short",
    "--ignore-submodules=dirty", "--full-index", "--src-prefix=a/", "--dst-prefix=b/", f"-O{os.devnull}", "HEAD", "--", ".",
)  # fmt: skip
_BY_SSH: Final = re.compile(r"(?:[\w.+-]+@)?[\w.-]+:(?!//)[\w./~+@-]+")
"""As in git@example.org:team/project.git, where no password can stand."""
Has = Callable[[str], bool]
"""Whether a path, relative to the folder, is part of the code that is sent."""


class _Failed(Exception):
    """Git said no, was stopped, or had too much to say."""


class Looking:
    """A look at a folder's repository that goes on in a thread of its own."""

    def __init__(self, folder: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._folder, self._deadline = folder, time.monotonic() + timeout_s
        self._program = shutil.which("git")
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._config: list[str] = []
        self._state: GitState | None = None
        self._changed: list[str] = []
        self._diff: bytes | None = None
        self._thread = threading.Thread(target=self._look, name="git", daemon=True)
        self._thread.start()

    def result(self, has: Has, *, grace_s: float = GRACE_S) -> tuple[GitState | None, bytes | None]:
        """Returns (what is known by now, or shortly; the differences). None: there is no repository, or no git.

        Args:
            has: what is not part of the code is not part of the differences either.
            grace_s: how long it may take from now on.
        """
        self._deadline = min(self._deadline, time.monotonic() + grace_s)
        self._thread.join(grace_s)
        self._stop()
        self._thread.join()
        state, diff = self._state, self._diff
        if state is None or diff is None:
            return state, None
        left_out = [name for name in self._changed if os.path.lexists(self._folder / name) and not has(name)]
        if left_out:
            self._deadline = time.monotonic() + grace_s
            try:
                if len(left_out) > MAX_EXCLUDED:
                    raise _Failed("too many changed files are left out of the code")
                diff = self._git(*DIFF, *(f":(exclude,literal){name}" for name in left_out), most_bytes=MAX_DIFF_BYTES)
            except _Failed as error:
                return state.model_copy(update={"note": f"without the differences: {error}"}), None
        if not diff:
            return state, None
        return state.model_copy(update={"diff": address_of(diff)}), diff

    def close(self) -> None:
        """Ends it: nobody wants to know any more."""
        self._deadline = 0.0
        self._stop()

    def _look(self) -> None:
        if self._program is None:
            return
        try:
            inside = self._git("rev-parse", "--is-inside-work-tree", "--show-prefix").split(b"\n", 1)
            if inside[0] != b"true":
                return
            folder = _text(inside[1].removesuffix(b"\n")).rstrip("/")
            if folder and not self._any_tracked():
                return  # it only lies within somebody's repository
            remote = self._read_config()
            commit = self._maybe("rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip().decode() or None
            self._state = GitState(commit=commit, remote=remote, folder=folder[:1000])
        except (_Failed, ValueError):  # no repository, another user's, damaged
            return
        try:
            self._look_for_changes(self._state)
        except _Failed as error:
            self._state = self._state.model_copy(update={"note": f"without the differences: {error}"})

    def _look_for_changes(self, state: GitState) -> None:
        branch, changed = _status(self._git(*STATUS, most_bytes=MAX_LIST_BYTES))
        start = len(state.folder) + 1 if state.folder else 0
        self._changed = [name[start:] for name in changed]
        self._state = state.model_copy(update={"branch": branch, "dirty": bool(changed) or state.commit is None})
        if changed and state.commit is not None:
            self._diff = self._git(*DIFF, most_bytes=MAX_DIFF_BYTES)
            self._state = self._state.model_copy(update={"dirty": True})

    def _any_tracked(self) -> bool:
        try:
            return bool(self._git("ls-files", "-z", "--", ".", most_bytes=0))
        except _TooMuch:
            return True

    def _read_config(self) -> str | None:
        """Returns the origin's address, and turns off the filters that the repository's own configuration names."""
        found = self._git("config", "--list", "-z", "--show-scope", most_bytes=MAX_LIST_BYTES).split(b"\0")
        remote = None
        for scope, entry in zip(found[::2], found[1::2], strict=False):
            name, _, value = _text(entry).partition("\n")
            if name == "remote.origin.url":
                remote = without_passwords(value)
            kind, _, rest = name.partition(".")
            if kind == "filter" and scope in (b"local", b"worktree"):
                driver = rest.rpartition(".")[0]
                if "=" in driver or "\ufffd" in driver:
                    raise _Failed(f"the filter {driver[:80]!r} cannot be turned off")
                off = (f"filter.{driver}.{what}" for what in ("clean=", "smudge=", "process=", "required=false"))
                self._config += [one for one in off if one not in self._config]
        return None if remote is None else remote[:1000]

    def _maybe(self, *arguments: str) -> bytes:
        try:
            return self._git(*arguments)
        except _Failed:
            return b""

    def _git(self, *arguments: str, most_bytes: int = READ_BYTES) -> bytes:
        """Runs git in the folder; returns what it printed.

        Raises:
            _TooMuch: that is more than ``most_bytes``.
            _Failed: it did not succeed, or not in time.
        """
        options = [word for one in (*NOT_RUN, *self._config) for word in ("-c", one)]
        with self._lock:
            if time.monotonic() >= self._deadline:
                raise _Failed("git took too long")
            try:
                started = self._running = subprocess.Popen(
                    [str(self._program), "--no-pager", *options, *arguments], cwd=self._folder, env=_environment(),
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise _Failed(f"git cannot be run: {error.strerror}") from error
        timer = threading.Timer(self._deadline - time.monotonic(), self._stop)
        timer.start()
        found = bytearray()
        out = started.stdout
        assert out is not None  # noqa: S101 - it is a pipe
        try:
            while len(found) <= most_bytes and (data := out.read(READ_BYTES)):
                found += data
        finally:
            timer.cancel()
            if len(found) > most_bytes:
                self._stop()
            code = started.wait()
            out.close()
        if len(found) > most_bytes:
            raise _TooMuch(f"they are larger than {most_bytes} bytes")
        if code:
            raise _Failed("git took too long" if code < 0 else f"git ended with {code}")
        return bytes(found)

    def _stop(self) -> None:
        """Ends a git that still runs, with all that it has started."""
        with self._lock:
            running = self._running
            if running is not None and running.poll() is None:
                with contextlib.suppress(OSError):
                    if hasattr(os, "killpg"):
                        os.killpg(running.pid, signal.SIGKILL)
                    else:
                        running.kill()


class _TooMuch(_Failed):
    """There is more than was asked for."""


def _environment() -> dict[str, str]:
    """Returns the user's environment, without what would lead git elsewhere, and with what keeps it reading only."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith("GIT_") or n.startswith(KEPT_VARIABLES)}
    return {
        **kept, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
    }  # fmt: skip


def _status(printed: bytes) -> tuple[str | None, list[str]]:
    """Returns (the branch, the paths of changed files) of ``git status --porcelain=v2 -z``."""
    branch, changed = None, []
    records = iter(printed.split(b"\0"))
    for record in records:
        kind = record[:2]
        if record.startswith(b"# branch.head "):
            head = _text(record.removeprefix(b"# branch.head "))
            branch = None if head == "(detached)" else head[:1000]
        elif kind in (b"1 ", b"2 ", b"u "):
            fields = {b"1 ": 8, b"2 ": 9, b"u ": 10}[kind]
            changed.append(os.fsdecode(record.split(b" ", fields)[fields]))
            if kind == b"2 ":
                next(records, None)  # where it was before
    return branch, changed


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "\ufffd")


def without_passwords(remote: str) -> str | None:
    """Returns a remote's address as far as it can be shown to others; None where that cannot be told."""
    if _BY_SSH.fullmatch(remote):
        return remote
    try:
        parts = urlsplit(remote)
        host = parts.hostname or ""
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return None
    if parts.scheme not in ("http", "https", "ssh", "git") or not re.fullmatch(r"[\w.-]+|[0-9a-f:]+", host):
        return None
    user = f"{parts.username}@" if parts.scheme == "ssh" and parts.username else ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{user}{host}{port}", parts.path, "", ""))
