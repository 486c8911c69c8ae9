"""Attempts as processes of this machine: launched through the launcher, found again by their folders, ended to the last one.

The attempt's folder is the whole truth: order, lock, status, spools. This object holds nothing that it could not read again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from danlu import __version__
from danlu.domain.isolation import unasked
from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.domain.sessions import SessionRequest
from danlu.errors import DanluError, DataDamaged, ExecutorUnavailable, LaunchRejected, StorageFull, VaultLocked
from danlu.executors.base import Capabilities, Hint, LaunchOrder, Notice, Observation
from danlu.executors.local import (
    cgroups,
    engines,
    entering,
    folders,
    isolation,
    machine,
    memory,
    ports,
    starting,
    sweep,
)
from danlu.executors.local.groups import AttemptGroups
from danlu.executors.local.hints import HintSocket
from danlu.executors.local.images import ImageStore
from danlu.executors.local.layers import CodeSource, Layers, can_mount
from danlu.executors.local.observing import TAMPERED, Seen, damage, observation, passing
from danlu.executors.local.spools import LocalSpools
from danlu.executors.orders import Folders, framework_files, named, order_file, order_text
from danlu.runner import formats

LOG = logging.getLogger("danlu.executors")
QUICK_SALVAGES: Final = 3
SALVAGES: Final = 12
SALVAGE_PAUSE_S: Final = 60.0
PACKAGE: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Where the local executor works.

    Attributes:
        home: the data folder.
        runtime: a folder for sockets.
        gpus: declared GPUs; None: those that the driver shows.
        uid_base: as root, a project's processes run as this plus the project's number.
        engines: where container engines are looked for.
    """

    home: Path
    runtime: Path
    gpus: tuple[Gpu, ...] | None = None
    uid_base: int = isolation.UID_BASE
    engines: engines.Machine = field(default_factory=engines.Machine)


class LocalExecutor(LocalSpools):
    """See Executor and Spools in executors/base.py."""

    def __init__(
        self,
        config: LocalConfig,
        *,
        code: CodeSource,
        hint: Hint,
        secrets: Callable[[str], Sequence[str]] = lambda _id: (),
    ) -> None:
        """Opens nothing yet; ``secrets`` returns the values that an attempt's output may hold, for when its runner died."""
        super().__init__(config.home / "attempts", config.home / "checkpoints")
        self.config, self._secrets = config, secrets
        shared = config.home / "cache" / "code"
        self._layers = Layers(shared, code, lambda: can_mount(shared / ".trial"))
        self._root = os.geteuid() == 0
        self._tree = cgroups.detect(Path("/sys/fs/cgroup"), cgroups.own())
        self._ours = hashlib.sha256(str(config.home.resolve()).encode()).hexdigest()[:8]
        self._memory = memory.Memory((config.runtime / "secrets", memory.SHARED / f"danlu-{self._ours}"))
        self._hints = HintSocket(config.runtime / "hints.sock", hint)
        self._launching: set[str] = set()
        self._lock = threading.Lock()
        self._sdk = config.home / "sdk" / __version__
        engine, no_images = engines.detect(config.home, config.engines)
        self.images: ImageStore | None = None
        if engine is not None:
            base, places = config.uid_base if self._root else None, (config.home, config.runtime / "c")
            group = None if self._tree is None else self._tree.group(f"{self._ours}/pulls")
            self.images = ImageStore(*places, engine, uid_base=base, server=config.engines.environ, group=group)
        offered = isolation.offered(config.uid_base if self._root else None).with_limits(self._tree)
        self.capabilities = Capabilities(
            name="local",
            layers=offered.layers,
            no_layers=dict(offered.missing),
            host_environment=True,
            sessions=True,
            images="" if engine is None else f"{engine.name} {engine.version}",
            no_images=no_images,
        )

    def start(self) -> None:
        """Prepares the folders and listens for hints. What a killed server left half made is removed."""
        for folder in (self.attempts, self.checkpoints):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder.chmod(0o711)
        for leftover in self.attempts.glob(".*"):
            folders.remove(leftover)
        self._layers.start({folder.name for folder in self.attempts.iterdir()})
        if self.images is not None:
            self.images.start()
        folders.install_sdk(PACKAGE, self._sdk)
        self._memory.start({folder.name for folder in self.attempts.iterdir()})
        self._hints.start()

    def close(self) -> None:
        """Stops listening; attempts go on."""
        self._hints.close()
        self._memory.close()

    # Executor

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """See Executor."""
        return (machine.capacity(self.config.gpus, name=machine.name(self.config.home)),)

    def launch(self, order: LaunchOrder) -> None:
        """See Executor."""
        attempt_id = order.attempt.id
        folder = self._folder(attempt_id)
        folders.check(order)
        with self._lock:
            if attempt_id in self._launching:
                return
            self._launching.add(attempt_id)
        try:
            if not folder.exists():
                ports.probe(order.attempt.tasks)
                self._prepare(order, folder)
            if not folders.begun(folder):
                self._start_runner(folder, order)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no room to start {attempt_id}") from error
            raise ExecutorUnavailable(f"{attempt_id} could not be prepared: {error}") from error
        finally:
            with self._lock:
                self._launching.discard(attempt_id)

    def observe(self) -> tuple[Observation, ...]:
        """See Executor."""
        found: list[Observation] = []
        present: set[str] = set()
        try:
            every = sorted(self.attempts.iterdir())
        except OSError as error:
            raise ExecutorUnavailable(f"the attempts of this machine cannot be listed: {error}") from error
        for folder in every:
            if folder.name.startswith("."):
                continue
            present.add(folder.name)
            one = self._observe_one(self._seen.setdefault(folder.name, Seen(folder)))
            if one is not None:
                found.append(one)
        for gone in set(self._seen) - present:
            del self._seen[gone]
        return tuple(found)

    def _observe_one(self, seen: Seen) -> Observation | None:
        try:
            try:
                return seen.lost or self._look(seen)
            except TAMPERED as error:
                if passing(error):
                    raise
                if self._clean(seen.folder.name):
                    return seen.unreadable(str(error))
                return seen.running(f"its folder cannot be read: {error}")
        except (ExecutorUnavailable, OSError) as error:  # the machine's trouble, not the attempt's
            return seen.running(f"it cannot be looked at now, which is tried again: {error}")

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """See Executor."""
        folder = self._folder(attempt_id)
        if not folder.exists():
            return
        said = {"grace_s": grace_s} | ({} if notice is None else {"notice": notice.model_dump()})
        try:
            formats.write_atomically(str(folder / "stop"), json.dumps(said).encode(), 0o644)
        except OSError as error:
            waits = notice is not None and notice.within_s > 0  # nobody asked for its end yet
            if waits or error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
                raise ExecutorUnavailable(f"{attempt_id} cannot be asked to stop now: {error}") from error
            self._clean(attempt_id)  # the disk is full, or the job has put something in the way: it gets no grace
            return
        try:
            runner = Seen(folder).runner()
        except TAMPERED as error:
            if not passing(error):  # else the runner sees the file by itself, a little later
                self._clean(attempt_id)
            return
        if runner is not None:
            sweep.wake(runner, folder.stat().st_uid)

    def forget(self, attempt_id: str) -> None:
        """See Executor."""
        folder = self._folder(attempt_id)
        with self._lock:
            launching = attempt_id in self._launching
        if launching or (folder.exists() and not self._is_over(folder)):
            return
        seen = self._seen.get(attempt_id)
        clean = seen is not None and seen.clean
        # also where there is no folder: a refused launch has made its control groups
        if not clean and not self._clean(attempt_id) and os.path.lexists(folder):
            return  # its folder tells what is left of it, and the next look at it forgets it
        gone = folder.with_name(f".gone-{attempt_id}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
        folders.remove(gone)
        if self.images is not None:
            self.images.forget(attempt_id)
        self._layers.leave(attempt_id)
        group = self._group(attempt_id)
        if group is not None:
            group.remove()
        self._seen.pop(attempt_id, None)

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        """See Executor."""
        return entering.enter(self._folder(attempt_id), task, request)

    def _is_over(self, folder: Path) -> bool:
        seen = self._seen.get(folder.name, Seen(folder))
        if seen.lost is not None:
            return not seen.kept  # what could not be saved is not thrown away
        try:
            seen.refresh()
            return folders.lock_is_free(folder) and (seen.ended() is not None or not folders.begun(folder))
        except TAMPERED:
            return False  # observe() will find out, and end it

    # launching

    def _uid(self, order: LaunchOrder) -> int | None:
        return self.config.uid_base + order.project_number if self._root else None

    def _prepare(self, order: LaunchOrder, folder: Path) -> None:
        unfinished = folder.with_name(f".new-{folder.name}")
        folders.remove(unfinished)
        try:
            self._fill(order, folder, unfinished)
            unfinished.rename(folder)
        except (OSError, DanluError):
            folders.remove(unfinished)  # on a full disk that is what makes room again
            raise

    def _fill(self, order: LaunchOrder, folder: Path, unfinished: Path) -> None:
        unfinished.mkdir(mode=0o700)
        for name in ("work", "outputs", "tmp", formats.NOTICES):
            (unfinished / name).mkdir(mode=0o700)
        checkpoint = self.checkpoints / order.job.checkpoint_owner
        checkpoint.mkdir(mode=0o700, exist_ok=True)
        where = Folders(folder, checkpoint, self._sdk, self._memory.folder(order))
        if order.job.spec.code is not None:
            try:
                self._layers.lay_out(order, self._uid(order), unfinished)
            except DataDamaged as error:
                raise LaunchRejected(f"the job's code cannot be read: {error.message}") from error
        group = self._group(folder.name)
        content = order_file(order, where)
        if order.image is not None:
            if self.images is None:
                raise LaunchRejected(f"this machine runs no container images: {self.capabilities.no_images}")
            self.images.contain(content, order, where)
        content["hint_socket"] = str(self._hints.path)
        content["grouped"] = group is not None
        if group is not None:
            for task in content["tasks"]:
                task.update(group.order(task["name"]))
        files = framework_files(order, where)
        for name, text in (("order.json", order_text(content)), ("token", order.token)):
            files[name] = text, 0o600
        for name, (text, mode) in files.items():
            (unfinished / name).parent.mkdir(mode=0o700, exist_ok=True)
            formats.write_atomically(str(unfinished / name), text.encode(), mode)
        uid = self._uid(order)
        if uid is not None:
            folders.give(unfinished, uid)
            os.chown(checkpoint, uid, uid)

    def _start_runner(self, folder: Path, order: LaunchOrder) -> None:
        group = self._group(folder.name)
        limits: tuple[str, ...] = ()
        if group is not None:
            limits = group.create(order.job.spec)
        roots = [] if order.interpreter is None else list(order.interpreter.roots)
        if order.image is not None and self.images is not None:
            self.images.begins(folder.name)
            roots = self.images.roots(order.project_number)
            limits = self.images.limits(limits, order.job.spec)
        checkpoint = self.checkpoints / order.job.checkpoint_owner
        given = self._memory.make(order, self._uid(order))
        answer = self._run_launcher(folder, self._uid(order), [str(checkpoint)], [*map(str, roots)], given, {
            "limits": limits, "overlay": self._layers.overlay(folder), "sandbox": self._sandbox(order),
        })  # fmt: skip
        if "error" in answer:
            self._clean(folder.name)
            if answer.get("unmounted"):
                self._layers.refused()
            if answer.get("rejected") or answer.get("unmounted"):  # else the next launch goes on with this folder
                folder.rename(folder.with_name(f".gone-{folder.name}"))
                folders.remove(folder.with_name(f".gone-{folder.name}"))
                self._layers.leave(folder.name)
            if answer.get("rejected"):
                raise LaunchRejected(answer["error"])
            raise ExecutorUnavailable(answer["error"])
        formats.write_atomically(str(folder / "launched.json"), json.dumps(answer).encode(), 0o644)
        if not starting.until(int(answer["pid"]), lambda: folders.begun(folder)):
            if os.statvfs(folder).f_bavail == 0:
                raise StorageFull(f"no room to start {folder.name}")
            raise ExecutorUnavailable(f"the runner of {folder.name} did not begin")

    def _run_launcher(
        self,
        folder: Path,
        uid: int | None,
        writable: list[str],
        readable: list[str],
        given: memory.Given,
        more: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs it for an attempt; without ``more``, to save what is left of one, and nothing of a job is started."""
        group = self._group(folder.name)
        writable = [str(folder), str(self.config.runtime), *writable, *([str(given.folder)] if given.folder else [])]
        readable = [str(self._sdk), sys.base_prefix, *readable]
        config = {
            "folder": str(folder), "uid": uid, "salvage": more is None, "limits": (), "overlay": None,
            "sandbox": isolation.sandbox(self.config.home, None, tenants=self._root, confine=False),
            "cgroup_procs": [] if group is None else group.runner_procs(),
            "task_procs": {} if group is None or more is None else group.task_procs(),
            "needed": [{"path": p, "write": True} for p in writable] + [{"path": p, "write": False} for p in readable],
            # the configuration goes through a pipe, and the launcher becomes the runner: nothing of it is written
            "secrets": [secret.model_dump() for secret in given.secrets], "secret_folder": str(given.folder or ""),
            **(more or {}),
        }  # fmt: skip
        return starting.ask(config, folder.name)

    def _sandbox(self, order: LaunchOrder) -> dict[str, Any]:
        return isolation.sandbox(
            self.config.home, self._layers.temporary(order.attempt.id) if self._root else None, tenants=self._root,
            missing={**unasked(order.job.spec), **self.capabilities.no_layers}, require=order.require,
            confine=order.image is None,
            naming=any(named(asked) for asked in order.job.spec.tasks),
        )  # fmt: skip

    # observing

    def _look(self, seen: Seen) -> Observation | None:
        attempt_id = seen.folder.name
        with self._lock:
            launching = attempt_id in self._launching
        seen.refresh()
        if seen.ended() is None and not launching and folders.lock_is_free(seen.folder):
            seen.refresh()  # it may have ended between the two looks
            if seen.ended() is None:
                with self._lock:
                    if attempt_id in self._launching:
                        return None
                self._clean(attempt_id)
                if not seen.events:
                    if not os.path.lexists(seen.folder / "order.json"):
                        raise DataDamaged(f"{attempt_id} has removed its own folder's files")
                    return None  # made ready but never started: as if it were not there; launch() goes on with it
                return self._salvage(seen)
        if seen.ended() is not None and not seen.clean:
            if not folders.lock_is_free(seen.folder) or not self._clean(attempt_id):
                return seen.running("it has ended, but some of its processes cannot be killed yet")
            seen.clean = True
        return observation(seen)

    def _salvage(self, seen: Seen) -> Observation:
        """Has saved what the attempt wrote. It is lost unsaved only where its folder is damaged, or in the end."""
        folder = seen.folder
        if seen.salvages >= QUICK_SALVAGES:
            found = damage(seen)
            if found:
                return seen.unreadable(f"its runner was killed, and what it wrote could not be read: {found}")
        if seen.salvages >= SALVAGES:
            LOG.error("what attempt %s wrote could not be saved: it is kept in %s", folder.name, folder)
            seen.kept = True
            return seen.unreadable("its runner was killed, and what it wrote could not be saved: its folder is kept")
        if time.monotonic() >= seen.salvage_at:
            uid = folder.stat().st_uid if self._root else None
            try:
                given = memory.to_redact(self._secrets(folder.name))
            except VaultLocked as error:
                return seen.unreadable(
                    "its runner was killed, and its last output is not kept, as its secrets cannot be hidden: "
                    + error.message
                )
            answer = self._run_launcher(folder, uid, [], [], given)
            if "pid" not in answer:
                raise ExecutorUnavailable(f"what {folder.name} wrote cannot be saved now: {answer.get('error')}")
            # until it holds the lock, the next look would take it for what is left and kill it
            starting.until(int(answer["pid"]), lambda: not folders.lock_is_free(folder))
            seen.salvages += 1
            if seen.salvages >= QUICK_SALVAGES:
                seen.salvage_at = time.monotonic() + min(SALVAGE_PAUSE_S, 2.0**seen.salvages)
        return seen.running("its runner was killed; what it wrote is being saved")

    def _clean(self, attempt_id: str) -> bool:
        """Kills whatever is left of an attempt; returns whether nothing is left, and has removed its secrets then."""
        folder = self.attempts / attempt_id  # which may be a stranger's name, as it was found there
        group = self._group(attempt_id)
        grouped = group is not None and group.exists()
        if group is not None and grouped:
            gone = group.kill()
        else:
            uid = folder.lstat().st_uid if os.path.lexists(folder) else None
            gone = sweep.kill(attempt_id, sweep.recorded(folder), uid)
        gone = gone and (self.images is None or self.images.swept(folder, grouped=grouped))
        if gone:  # before that, what runs could miss them, or put some back
            self._memory.remove(attempt_id)
        return gone

    def _group(self, attempt_id: str) -> AttemptGroups | None:
        if self._tree is None:
            return None
        return AttemptGroups(self._tree, f"{self._ours}/{attempt_id}")
