"""Images on this machine: pulled for a project, found again. Each project has a store of its own, written by its own user.

Who pulls is who runs: where the server is root, podman runs as the project's user even for that, so that no registry's bytes
are ever parsed by root, and no project can use what another one's password has pulled. Only images under ``localhost/``,
which somebody has built or loaded here with the server's user's own podman, are copied to whoever names them.

::

    images/UID          a project's podman: ``storage``, and ``auth.json`` where it has passwords
    images/UID.known    what the server keeps of each image
    images/UID.tmp      what podman writes while it fetches
    images/*.gone       what is being removed; no store is ever found half removed
    images/docker.known which of docker's images this platform has brought (see docker_images.py)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from danlu.domain.images import IMAGE_ID, Image, is_local
from danlu.domain.specs import JobSpec
from danlu.errors import DanluError, DataDamaged, EnvironmentFailed, ExecutorUnavailable
from danlu.executors.base import LaunchOrder, StoredImage
from danlu.executors.local import beneath, engine_output, folders, leftovers, machine, orphan_layers
from danlu.executors.local.cgroups import Group
from danlu.executors.local.containers import Place, container, environment, limits_in_force, storage_driver
from danlu.executors.local.docker_images import DockerImages
from danlu.executors.local.engine_output import Report
from danlu.executors.local.engines import PATH, Engine
from danlu.executors.local.observing import TAMPERED, passing
from danlu.executors.local.project_engine import ASK_TIMEOUT_S, DOCKER, ProjectEngine
from danlu.executors.orders import MAX_ORDER_BYTES, Folders
from danlu.runner.formats import write_atomically

LOG: Final = logging.getLogger("danlu.executors")
REMOVAL_TIMEOUT_S: Final = 600.0
REMOVED_AT_ONCE: Final = 500
MAX_IMAGES: Final = 10_000
"""Of one store. Its folders are the project's own word: no more of their names are read."""
GONE: Final = ".gone"


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
        self, home: Path, runtime: Path, engine: Engine, *, uid_base: int | None, server: Mapping[str, str],
        group: Group | None = None,
    ) -> None:  # fmt: skip
        """Makes nothing yet.

        Args:
            home: ``DANLU_HOME``: images are in ``images``, attempts that use them in ``attempts``.
            runtime: a folder with a short path, for what podman keeps while it runs.
            engine: what to pull with.
            uid_base: a project's user is this plus its number; None: all is the server's own user's.
            server: the server's own environment, as far as an engine may need it.
            group: below which each project's pulls get a control group; None: there are none here.
        """
        self.engine = engine
        self._folder = home / "images"
        self._attempts = home / "attempts"
        self._own = ProjectEngine(self._folder, runtime, engine, uid_base=uid_base, server=server, group=group)
        self._server = server
        self._locks: dict[str, threading.Lock] = {}
        self._removals = leftovers.Removals(self._own.asked)
        self._docker = DockerImages(self._folder / f"{DOCKER}.known", self._own.asked)

    def start(self) -> None:
        """Has what a killed server left half removed or half fetched removed, beside: nobody waits for it."""
        for left in self._folder.glob("*.tmp"):
            self._aside(left)
        threading.Thread(target=self._clear, name="images", daemon=True).start()

    def folder(self, project_number: int) -> Path:
        """Returns where a project's images are."""
        return self._own.folder(project_number)

    def store(self, project_number: int) -> str:
        """Returns the name of the store that has a project's images: several projects may share one."""
        return self._own.store(project_number)

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
            with self._lock(self.store(project_number)):  # podman's processes of a store share one more
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
            return Image.model_validate_json(self._record(image_id, self.store(project_number)).read_bytes())
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
        runtime = self._own.runtime(where.attempt.name, number)
        place = Place(where, self.folder(number), runtime, machine.memory_bytes())
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

    # pulling

    def _pulled(self, reference: str, project_number: int, report: Report) -> Image:
        with self._own.at_work(project_number, report):
            if is_local(reference):
                self._copy(reference, project_number, report)
                found = self._inspect(reference, project_number)
            elif self.engine.name == "docker":
                with self._docker.bringing(reference) as brought:
                    self._fetch(reference, project_number, report)
                    found = self._inspect(reference, project_number)
                    if found is not None:
                        brought(found.id)
            else:
                self._fetch(reference, project_number, report)
                found = self._inspect(reference, project_number)
        if found is None:
            raise self._missing(reference)
        if self.engine.name == "podman":
            record = self._record(found.id, self.store(project_number))
            record.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(str(record), found.model_dump_json().encode())
        return found

    def _fetch(self, reference: str, project_number: int, report: Report) -> None:
        pulling = self._own.start(project_number, "pull", reference)
        engine_output.tell(pulling, report, reference, lambda: self._own.end_group(project_number))

    def _record(self, image_id: str, store: str) -> Path:
        """Returns where the server keeps what an image sets; asking podman would cost each launch a tenth of a second."""
        return self._folder / f"{store}.known" / f"{image_id}.json"

    def _inspect(self, image: str, project_number: int) -> Image | None:
        """Returns an image by name or id, as the engine tells it."""
        try:
            done = self._own.start(project_number, "image", "inspect", image, stderr=subprocess.PIPE)
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

    def forget(self, attempt_id: str) -> None:
        """Removes an attempt's runtime folder."""
        self._removals.forget(attempt_id)
        self._own.forget(attempt_id)

    def _copy(self, reference: str, project_number: int, report: Report) -> None:
        """Copies an image from the store of the server's own user."""
        own = {**self._server, "PATH": PATH}
        wanted = self._own.asked("image", "inspect", "--format", "{{.Id}}", reference)
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
            loading = self._own.start(project_number, "load", stdin=saving.stdout)
            if saving.stdout is not None:
                saving.stdout.close()  # it is the other's now: should that one end, this one must notice
            engine_output.tell(loading, report, reference, lambda: self._own.end_group(project_number))
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

    # removing

    def stored(self) -> frozenset[StoredImage]:
        """Returns what is there that may be removed: all that the projects' podman has; of docker's what was brought here.

        None where the folder may serve other platforms too.
        """
        if self._folder.is_symlink():
            return frozenset()
        if self.engine.name == "docker":
            return frozenset(StoredImage(DOCKER, image_id) for image_id in self._docker.brought())
        return frozenset(StoredImage(store, image_id) for store in self._own.stores() for image_id in self._kept(store))

    def doom(self, images: Collection[StoredImage]) -> Callable[[], None]:
        """Takes images that nobody wants, at once; the returned function then removes them, which takes long.

        Pulls into their stores wait until that has been called. An image that a running attempt began with stays, and so
        does what is in a store that is at work. What could not be removed is there still, to be taken again.
        """
        taken: dict[str, list[str]] = {}
        for store, image_id in sorted({*images} - self._in_use(images)):
            if store in taken or self._lock(store).acquire(blocking=False):
                taken.setdefault(store, []).append(image_id)
        return lambda: self._discard(taken)

    def _lock(self, store: str) -> threading.Lock:
        return self._locks.setdefault(store, threading.Lock())

    def _in_use(self, images: Collection[StoredImage]) -> set[StoredImage]:
        """Returns those that an attempt was launched with whose runner is alive, though its environment has a newer one.

        Raises:
            ExecutorUnavailable: that cannot be found out now.
        """
        used: set[StoredImage] = set()
        attempts = self._attempts.iterdir() if self._attempts.exists() else ()
        for attempt in attempts:
            if used == {*images} or folders.lock_is_free(attempt):
                continue
            try:
                order = beneath.read(attempt, "order.json", max_bytes=MAX_ORDER_BYTES, ours=True)
            except (OSError, DataDamaged) as error:
                if passing(error):
                    raise ExecutorUnavailable(f"which image {attempt.name} uses cannot be told now: {error}") from error
                continue  # the job has put something in its place, and harms itself alone
            used |= {one for one in images if one.image_id.encode() in order}
        return used

    def _kept(self, store: str) -> set[str]:
        """Returns the ids of a store's images, with those of which only a part is left."""
        ids = {path.stem for path in (self._folder / f"{store}.known").glob("*.json")}
        with contextlib.suppress(OSError):  # there is no such folder, or the project has put something in its place
            folder = beneath.open_folder(self._folder / store, "storage", f"{storage_driver(self.engine)}-images")
            try:
                with os.scandir(folder) as entries:
                    ids |= {entry.name for entry in itertools.islice(entries, MAX_IMAGES)}
            finally:
                os.close(folder)
        return {image_id for image_id in ids if re.fullmatch(IMAGE_ID, image_id)}

    def _discard(self, taken: Mapping[str, Sequence[str]]) -> None:
        for store, image_ids in taken.items():
            try:
                if store == DOCKER:
                    for image_id in image_ids:
                        self._docker.remove(image_id)
                else:
                    self._remove(store, image_ids)
            except (DanluError, OSError) as error:
                LOG.warning("images of %s cannot be removed now, which is tried again: %s", store, error)
            finally:
                self._lock(store).release()
        self._clear()

    def _remove(self, store: str, image_ids: Sequence[str]) -> None:
        """Removes images from a project's store; where none is to stay the whole of it, for which podman needs no room."""
        said = b""
        if self._kept(store) <= {*image_ids}:
            self._aside(self._folder / store / "storage")
        else:
            number = self._own.number(store)
            with self._own.at_work(number, lambda _: None):
                self._mark_orphans(store)
                removing = self._own.start(number, "image", "rm", "--force", *image_ids[:REMOVED_AT_ONCE])
                said, _ = engine_output.answer(removing, REMOVAL_TIMEOUT_S)
        for image_id in image_ids[:REMOVED_AT_ONCE]:
            if any((self._folder / store / "storage").glob(f"*-images/{image_id}")):
                words = said.decode(errors="replace").strip()[-500:]
                LOG.warning("podman has not removed image %s of %s: %s", image_id[:12], store, words)
            else:
                self._record(image_id, store).unlink(missing_ok=True)

    def _mark_orphans(self, store: str) -> None:
        try:
            orphan_layers.mark(self._folder / store, storage_driver(self.engine))
        except TAMPERED as error:
            LOG.warning("whether a killed removal has left layers in %s cannot be told: %s", store, error)

    def _aside(self, folder: Path) -> None:
        """Takes a folder out of use, at once."""
        with contextlib.suppress(FileNotFoundError):
            folder.rename(self._folder / f"{folder.name}-{secrets.token_hex(4)}{GONE}")

    def _clear(self) -> None:
        for gone in self._folder.glob(f"*{GONE}"):
            folders.remove(gone)


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
