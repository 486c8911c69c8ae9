"""Images on this machine: pulled for a project, found again. Each project has a store of its own, written by its own user.

Who pulls is who runs: where the server is root, podman runs as the project's user even for that, so that no registry's bytes
are ever parsed by root, and no project can use what another one's password has pulled. Only images under ``localhost/``,
which somebody has built or loaded here with the server's user's own podman, are copied to whoever names them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from danlu.domain.images import Image, is_local
from danlu.domain.jobs import JobSpec
from danlu.errors import DataDamaged, EnvironmentFailed, ExecutorUnavailable, LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.local import beneath, engine_output, folders, leftovers, machine
from danlu.executors.local.cgroups import Group
from danlu.executors.local.containers import (
    RUNTIME_CHARACTERS,
    Place,
    container,
    environ,
    environment,
    limits_in_force,
    podman,
    runtime_name,
)
from danlu.executors.local.engine_output import Report
from danlu.executors.local.engines import PATH, Engine
from danlu.executors.local.observing import MAX_ORDER_BYTES
from danlu.executors.local.orders import Folders
from danlu.executors.local.starting import LAUNCHER
from danlu.runner.formats import write_atomically

ASK_TIMEOUT_S: Final = 60.0
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
HANDED_ON: Final = (
    *PROXIES, "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "CONTAINERS_REGISTRIES_CONF", "REGISTRY_AUTH_FILE",
)  # fmt: skip
"""What of the server's environment a pull needs to reach its registry."""
PULL_MEMORY_BYTES: Final = 2 << 30
PULL_CPU_MILLI: Final = 2000
PULL_PROCESSES: Final = 1024


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that was pulled, as an environment that was built."""

    lock_digest: str
    size_bytes: int
    build_s: float
    packages: int | None = None
    python_version: str | None = None


class ImageStore:
    """The images of each project below one folder; docker's are its daemon's own."""

    def __init__(
        self, folder: Path, runtime: Path, engine: Engine, *, uid_base: int | None, server: Mapping[str, str],
        group: Group | None = None,
    ) -> None:  # fmt: skip
        """Makes nothing yet.

        Args:
            folder: ``DANLU_HOME/images``.
            runtime: a folder with a short path, for what podman keeps while it runs.
            engine: what to pull with.
            uid_base: a project's user is this plus its number; None: all is the server's own user's.
            server: the server's own environment, as far as an engine may need it.
            group: below which each project's pulls get a control group; None: there are none here.
        """
        self.engine = engine
        self._folder = folder
        self._runtime = runtime
        self._uid_base = uid_base
        self._server = server
        self._group = group
        self._locks: dict[int, threading.Lock] = {}
        self._removals = leftovers.Removals(self._asked)

    def folder(self, project_number: int) -> Path:
        """Returns where a project's images are."""
        return self._folder / str(os.geteuid() if self._uid_base is None else self._uid_base + project_number)

    def pull(self, reference: str, project_number: int, report: Report) -> Pulled:
        """Fetches an image unless the newest one is there. Idempotent.

        Args:
            reference: its whole name.
            project_number: for which project.
            report: called with each line that the engine prints.

        Raises:
            EnvironmentFailed: there is none, or it could not be fetched; the engine's own words are in the message.
        """
        begun = time.monotonic()
        try:
            with self._locks.setdefault(
                project_number, threading.Lock()
            ):  # podman's processes of a store share one more
                found = self._pulled(reference, project_number, report)
        except OSError as error:
            raise EnvironmentFailed(f"image {reference} could not be fetched: {error}", stage="pull") from error
        return Pulled(found.id, found.size_bytes, time.monotonic() - begun)

    def find(self, image_id: str, project_number: int) -> Image | None:
        """Returns an image that was pulled for the project; None where it is no longer there.

        Raises:
            ExecutorUnavailable: the engine cannot tell now.
        """
        if self.engine.name == "docker":
            return self._inspect(image_id, project_number)
        if not any((self.folder(project_number) / "storage").glob(f"*-images/{image_id}")):
            return None
        try:
            return Image.model_validate_json(self._record(image_id, project_number).read_bytes())
        except (OSError, ValueError):
            return None  # it is pulled once more then, which writes it again

    def contain(self, content: dict[str, Any], order: LaunchOrder, where: Folders) -> None:
        """Has the tasks of an order's file run in containers of its image.

        Raises:
            LaunchRejected: they cannot be given what they ask for in one here.
        """
        if order.image is None:
            return
        number = order.project_number
        place = Place(where, self.folder(number), self.runtime(where.attempt.name, number), machine.memory_bytes())
        for task, asked, written in zip(order.attempt.tasks, order.job.spec.tasks, content["tasks"], strict=True):
            written["env"] = environment(written["env"], asked, order.image)
            written["container"] = container(self.engine, order.image, asked, task, place)

    def roots(self, project_number: int) -> list[Path]:
        """Returns the folders that a container's runner must be able to pass to."""
        return [] if self.engine.name == "docker" else [self.folder(project_number)]

    def begins(self, attempt_id: str) -> None:
        """Hears that an attempt may have containers from now on, whatever was known of earlier ones."""
        self._removals.forget(attempt_id)

    def limits(self, group: tuple[str, ...], spec: JobSpec) -> tuple[str, ...]:
        """Returns the limits in force for a container: of the attempt's ``group``, which holds all that podman starts."""
        if self.engine.name == "docker":
            group = limits_in_force(self.engine, spec)
        return (*group, f"container ({self.engine.name})")

    def swept(self, attempt: Path, *, grouped: bool) -> bool:
        """Ends what the engine still has of an attempt whose processes were killed; returns whether nothing is left.

        It waits for no daemon: as long as docker is at it, the answer is that something is left.

        Args:
            attempt: its folder.
            grouped: it had control groups, in which all that podman has started for it was.
        """
        if b'"container"' not in _order(attempt):
            return True
        if self.engine.name == "podman":
            return grouped or leftovers.end_monitors(attempt)
        return self._removals.done(attempt.name)

    def _asked(self, *words: str) -> str | None:
        """Returns what the engine prints as the server's own user, or None where it fails."""
        try:
            done = subprocess.run(
                [self.engine.path, *words], env={**self._server, "PATH": PATH}, cwd="/", stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=ASK_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    # pulling

    def _pulled(self, reference: str, project_number: int, report: Report) -> Image:
        try:
            if self.engine.name == "podman":
                self._prepare(project_number, report)
            if is_local(reference):
                self._copy(reference, project_number, report)
            else:
                words = [self.engine.path] if self.engine.name == "docker" else self._podman(project_number)
                pulling = self._start([*words, "pull", reference], project_number)
                engine_output.tell(pulling, report, reference, lambda: self._end_group(project_number))
            found = self._inspect(reference, project_number)
        finally:
            self._end_group(project_number)
            self._end_pause(project_number)
        if found is None:
            raise self._missing(reference)
        if self.engine.name == "podman":
            record = self._record(found.id, project_number)
            record.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(str(record), found.model_dump_json().encode())
        return found

    def _record(self, image_id: str, project_number: int) -> Path:
        """Returns where the server keeps what an image sets; asking podman would cost each launch a tenth of a second."""
        return self._folder / f"{self.folder(project_number).name}.known" / f"{image_id}.json"

    def _inspect(self, image: str, project_number: int) -> Image | None:
        """Returns an image by name or id, as the engine tells it."""
        words = [self.engine.path] if self.engine.name == "docker" else self._podman(project_number)
        try:
            done = self._start([*words, "image", "inspect", image], project_number, stderr=subprocess.PIPE)
            out, err = engine_output.answer(done, ASK_TIMEOUT_S)
        except OSError as error:
            raise ExecutorUnavailable(f"{self.engine.name} cannot be asked for image {image}: {error}") from error
        if done.returncode == 0:
            try:
                return _image(json.loads(out)[0])
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise ExecutorUnavailable(
                    f"what {self.engine.name} tells about image {image} cannot be read: {str(error)[:500]}"
                ) from error
        said = err.decode(errors="replace")
        if re.search(r"no such image|not known", said, re.IGNORECASE):
            return None
        raise ExecutorUnavailable(f"{self.engine.name} cannot tell about image {image}: {said.strip()[-500:]}")

    def _podman(self, project_number: int) -> list[str]:
        return podman(self.engine, self.folder(project_number), self._short(project_number))

    def _short(self, project_number: int) -> Path:
        return self._runtime / f"p{self.folder(project_number).name}"

    def _prepare(self, project_number: int, report: Report) -> None:
        own = self.folder(project_number)
        for folder in (own, self._short(project_number)):
            self._give(folder, project_number)
        group = self._pulls(project_number)
        if group is not None:
            self._end_group(project_number)  # of a server that was killed
            group.create(memory_bytes=PULL_MEMORY_BYTES, cpu_milli=PULL_CPU_MILLI, processes=PULL_PROCESSES)
        if self._uid_base is not None and any("@" in self._server.get(name, "") for name in PROXIES):
            report("the proxy is asked without its user and password: this project's jobs could read them")

    def _pulls(self, project_number: int) -> Group | None:
        """Returns the control group of all that a project's pulls start; docker's daemon does them itself."""
        if self._group is None or self.engine.name == "docker":
            return None
        return self._group.child(self.folder(project_number).name)

    def _end_group(self, project_number: int) -> None:
        group = self._pulls(project_number)
        if group is not None:
            group.kill()
            group.remove()

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
        """Returns an attempt's own runtime folder, which is made; docker needs none."""
        folder = self._runtime / runtime_name(attempt_id)
        if self.engine.name != "docker":
            if len(str(folder)) + len("/9999/s") > RUNTIME_CHARACTERS:
                raise LaunchRejected(
                    f"podman needs a short path for what it keeps while it runs, and {folder} is too long"
                )
            self._give(folder, project_number)
        return folder

    def forget(self, attempt_id: str) -> None:
        """Removes an attempt's runtime folder."""
        self._removals.forget(attempt_id)
        folders.remove(self._runtime / runtime_name(attempt_id))

    def _start(
        self, words: Sequence[str], project_number: int, *, stderr: int = subprocess.STDOUT, stdin: Any = None
    ) -> subprocess.Popen[bytes]:
        if self.engine.name == "docker":
            own: dict[str, str] = {**self._server, "PATH": PATH}
        else:
            folder = self.folder(project_number)
            own = {
                **self._handed_on(),
                **self._passwords(folder),
                **environ(folder, self._short(project_number)),
                "TMPDIR": str(folder),
            }
            words = self._as_user(words, project_number)
        return subprocess.Popen(
            words, env=own, cwd="/", stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=subprocess.PIPE,
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
        needed, group = [self.folder(project_number), self._short(project_number)], self._pulls(project_number)
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

    def _copy(self, reference: str, project_number: int, report: Report) -> None:
        """Copies an image from the store of the server's own user."""
        own = {**self._server, "PATH": PATH}
        wanted = self._asked("image", "inspect", "--format", "{{.Id}}", reference)
        if wanted is None:
            raise self._missing(reference)
        there = self._inspect(reference, project_number)
        if there is not None and there.id == wanted.strip():
            report(f"image {reference} is there already")
            return
        report(f"copying {reference} from this machine's own images")
        saving = subprocess.Popen(
            [self.engine.path, "save", "--format", "docker-archive", reference], env=own, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            load = [*self._podman(project_number), "load"]
            loading = self._start(load, project_number, stdin=saving.stdout)
            if saving.stdout is not None:
                saving.stdout.close()  # it is the other's now: should that one end, this one must notice
            engine_output.tell(loading, report, reference, lambda: self._end_group(project_number))
        finally:
            engine_output.kill(saving)

    def _missing(self, reference: str) -> EnvironmentFailed:
        who = (
            "docker"
            if self.engine.name == "docker"
            else f"the podman of {'root' if os.geteuid() == 0 else 'your user'}"
        )
        return EnvironmentFailed(
            f"there is no image {reference} on this machine",
            next_step=f"build or load it with {who}: {self.engine.name} build -t {reference} .",
            stage="pull",
        )

    def _end_pause(self, project_number: int) -> None:
        """Ends the process that podman leaves behind to keep a user's namespace."""
        if self.engine.name == "docker":
            return
        folder = self.folder(project_number)
        with contextlib.suppress(Exception):  # its number is the project's own word: it may be anything
            pid = int(beneath.read(self._short(project_number), "libpod", "tmp", "pause.pid", max_bytes=32))
            descriptor = os.pidfd_open(pid)
            try:
                if Path(f"/proc/{pid}").stat().st_uid == folder.stat().st_uid and pid != os.getpid():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _order(attempt: Path) -> bytes:
    try:
        return beneath.read(attempt, "order.json", max_bytes=MAX_ORDER_BYTES, ours=True)
    except (OSError, DataDamaged):
        return b""


def _image(said: dict[str, Any]) -> Image:
    """Returns an image from what ``image inspect`` says: podman and docker name the same fields alike."""
    pairs = ((said.get("Config") or {}).get("Env") or []) or []
    variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Image(id=str(said["Id"]).removeprefix("sha256:"), variables=variables, size_bytes=int(said.get("Size") or 0))
