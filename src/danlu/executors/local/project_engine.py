"""The container engine as one project runs it: as the project's own user, in folders and a control group of its own.

Podman's store, what it keeps while it runs and what it writes while it fetches are a project's own. Docker has a daemon that
does all of that: it is asked as the server's own user.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from danlu.errors import LaunchRejected
from danlu.executors.local import beneath, folders
from danlu.executors.local.cgroups import Group
from danlu.executors.local.containers import RUNTIME_CHARACTERS, environ, podman, runtime_name
from danlu.executors.local.engines import PATH, Engine
from danlu.executors.local.starting import LAUNCHER

DOCKER: Final = "docker"
ASK_TIMEOUT_S: Final = 60.0
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
HANDED_ON: Final = (
    *PROXIES, "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "CONTAINERS_REGISTRIES_CONF", "REGISTRY_AUTH_FILE",
)  # fmt: skip
"""What of the server's environment a pull needs to reach its registry."""
PULL_MEMORY_BYTES: Final = 2 << 30
PULL_CPU_MILLI: Final = 2000
PULL_PROCESSES: Final = 1024


class ProjectEngine:
    """Runs the engine for projects, by their numbers."""

    def __init__(
        self, images: Path, runtime: Path, engine: Engine, *, uid_base: int | None, server: Mapping[str, str],
        group: Group | None,
    ) -> None:  # fmt: skip
        """Makes nothing yet; see ImageStore. ``images`` is the folder of all stores."""
        self.engine = engine
        self._folder = images
        self._runtime = runtime
        self._uid_base = uid_base
        self._server = server
        self._group = group

    def folder(self, project_number: int) -> Path:
        """Returns where a project's podman keeps what it has."""
        return self._folder / str(os.geteuid() if self._uid_base is None else self._uid_base + project_number)

    def store(self, project_number: int) -> str:
        """Returns the name of the store that has a project's images: several projects may share one."""
        return DOCKER if self.engine.name == DOCKER else self.folder(project_number).name

    def stores(self) -> list[str]:
        """Returns the names of the stores of podman that are here."""
        if self._uid_base is None:
            return [self.store(0)]
        names = (path.name for path in self._folder.glob("*"))
        return [name for name in names if name.isdecimal() and int(name) >= self._uid_base]

    def number(self, store: str) -> int:
        """Returns the number of a project that has its images in a store."""
        return 0 if self._uid_base is None else int(store) - self._uid_base

    @contextlib.contextmanager
    def at_work(self, project_number: int, report: Callable[[str], None]) -> Iterator[None]:
        """Makes ready what a project's podman needs, and leaves nothing of what it has begun; docker needs nothing."""
        if self.engine.name == DOCKER:
            yield
            return
        try:
            self._prepare(project_number, report)
            yield
        finally:
            self.end_group(project_number)
            self._end_pause(project_number)
            folders.remove(self._temporary(project_number))

    def asked(self, *words: str) -> str | None:
        """Returns what the engine prints as the server's own user, or None where it fails."""
        try:
            done = subprocess.run(
                [self.engine.path, *words], env={**self._server, "PATH": PATH}, cwd="/", stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=ASK_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _short(self, project_number: int) -> Path:
        return self._runtime / f"p{self.folder(project_number).name}"

    def _temporary(self, project_number: int) -> Path:
        """Returns where podman writes what it fetches: where it is killed, it leaves that behind."""
        return self._folder / f"{self.folder(project_number).name}.tmp"

    def _prepare(self, project_number: int, report: Callable[[str], None]) -> None:
        temporary = self._temporary(project_number)
        folders.remove(temporary)
        for folder in (self.folder(project_number), self._short(project_number), temporary):
            self._give(folder, project_number)
        group = self._pulls(project_number)
        if group is not None:
            self.end_group(project_number)  # of a server that was killed
            group.create(memory_bytes=PULL_MEMORY_BYTES, cpu_milli=PULL_CPU_MILLI, processes=PULL_PROCESSES)
        if self._uid_base is not None and any("@" in self._server.get(name, "") for name in PROXIES):
            report("the proxy is asked without its user and password: this project's jobs could read them")

    def _pulls(self, project_number: int) -> Group | None:
        """Returns the control group of all that a project's pulls start; docker's daemon does them itself."""
        if self._group is None or self.engine.name == DOCKER:
            return None
        return self._group.child(self.folder(project_number).name)

    def end_group(self, project_number: int) -> None:
        """Kills all that was started for a project, and what that has left behind."""
        group = self._pulls(project_number)
        if group is not None:
            group.kill()
            group.remove()

    def forget(self, attempt_id: str) -> None:
        """Removes an attempt's runtime folder."""
        folders.remove(self._runtime / runtime_name(attempt_id))

    def _give(self, folder: Path, project_number: int) -> None:
        """Makes a folder, in one of the server's own, that is the project's user's, unless it is there."""
        folder.parent.mkdir(mode=0o711, exist_ok=True)
        folder.parent.chmod(0o711)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        # its parent is the server's, so that it is what was made here; one whose server was killed is given now
        if self._uid_base is not None and folder.lstat().st_uid == os.geteuid():
            uid = self._uid_base + project_number
            os.chown(folder, uid, uid, follow_symlinks=False)

    def runtime(self, attempt_id: str, project_number: int) -> Path:
        """Returns an attempt's own runtime folder, which is made; docker needs none.

        Raises:
            LaunchRejected: its path would be too long for podman.
        """
        folder = self._runtime / runtime_name(attempt_id)
        if self.engine.name != DOCKER:
            if len(str(folder)) + len("/9999/s") > RUNTIME_CHARACTERS:
                raise LaunchRejected(
                    f"podman needs a short path for what it keeps while it runs, and {folder} is too long"
                )
            self._give(folder, project_number)
        return folder

    def start(
        self, project_number: int, *words: str, stderr: int = subprocess.STDOUT, stdin: Any = None
    ) -> subprocess.Popen[bytes]:
        """Starts the engine with a command of its own, for a project that is at work; its output is to be read."""
        if self.engine.name == DOCKER:
            command, own = [self.engine.path, *words], {**self._server, "PATH": PATH}
        else:
            folder, short = self.folder(project_number), self._short(project_number)
            own = {
                **self._handed_on(), **self._passwords(folder), **environ(folder, short),
                "TMPDIR": str(self._temporary(project_number)),
            }  # fmt: skip
            command = self._as_user([*podman(self.engine, folder, short), *words], project_number)
        return subprocess.Popen(
            command, env=own, cwd="/", stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=subprocess.PIPE,
            stderr=stderr, start_new_session=True,
        )  # fmt: skip

    def _handed_on(self) -> dict[str, str]:
        """Returns what a pull is told: where it runs as a project's user, nothing that its jobs may not read in /proc."""
        passed = {name: self._server[name] for name in HANDED_ON if name in self._server}
        if self._uid_base is not None:
            passed.pop("REGISTRY_AUTH_FILE", None)
            for name in PROXIES:
                if name in passed:
                    scheme, found, rest = passed[name].rpartition("://")
                    passed[name] = f"{scheme}{found}{rest.rpartition('@')[2]}"
        return passed

    def _as_user(self, words: Sequence[str], project_number: int) -> list[str]:
        """Returns the command that runs ``words`` as the project's user, below folders that are closed to it too."""
        needed = [self.folder(project_number), self._short(project_number), self._temporary(project_number)]
        group = self._pulls(project_number)
        config = {
            "uid": None if self._uid_base is None else self._uid_base + project_number, "words": [*words],
            "needed": [{"path": str(path), "write": True} for path in needed],
            "cgroup_procs": [] if group is None else [str(path) for path in group.procs()],
        }  # fmt: skip
        return [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(config)]

    def _passwords(self, folder: Path) -> dict[str, str]:
        """Returns where the registries' passwords are: the project's own; where all is one user's, also that user's."""
        places = [folder / "auth.json"]
        if self._uid_base is None:
            home = Path(self._server.get("HOME", "/nonexistent"))
            places += [
                Path(self._server.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")) / "containers" / "auth.json",
                home / ".config" / "containers" / "auth.json",
                home / ".docker" / "config.json",
            ]
        found = next((place for place in places if place.is_file()), None)
        return {} if found is None else {"REGISTRY_AUTH_FILE": str(found)}

    def _end_pause(self, project_number: int) -> None:
        """Ends the process that podman leaves behind to keep a user's namespace."""
        folder = self.folder(project_number)
        with contextlib.suppress(Exception):  # its number is the project's own word: it may be anything
            pid = int(beneath.read(self._short(project_number), "libpod", "tmp", "pause.pid", max_bytes=32))
            descriptor = os.pidfd_open(pid)
            try:
                if Path(f"/proc/{pid}").stat().st_uid == folder.stat().st_uid and pid != os.getpid():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
