"""Builds environments with uv: resolve, make, install, check, and only then give the folder its name.

A folder is built as ``.new-DIGEST`` and renamed to ``DIGEST`` when it is whole, so a folder with a name is a whole
environment, and a build that was killed at any line leaves nothing that anybody would use. The virtual environments are made
relocatable: their console scripts find their Python beside themselves, so they work after the rename, and wherever the data
folder moves.

A lock file per digest is held while a folder is built, by uv too: two builders, in one server or two, never write into the
same folder, and a uv that outlived its server is waited for. ``.new-`` folders whose lock is free are dead, and removed.

Where the server is root, files are linked from uv's cache and to other environments' (see sharing.py): jobs are other users,
and cannot write through. Elsewhere they are copied: a job that writes into its environment would else write into the cache,
and so into every environment that is built later.

Nothing of a user's runs while it is built, and where the server is root uv itself runs as a user of its own, with its own
cache, if that user can reach the interpreter. The whole folder is given to root before it gets its name.

Folders of environments are named by their locks and may serve several projects, so ``root`` can be passed but not listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from danlu.domain.environments import Archive, Environment, EnvironmentSource, Interpreter, PodEnvironment
from danlu.domain.records import Value
from danlu.environments import packing, pythons, sharing, sweeping
from danlu.environments.build_user import BUILD_UID
from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.folder_locks import NEW, remove, try_lock, unlock
from danlu.environments.pythons import Python
from danlu.environments.requirements import check
from danlu.environments.sources import RECIPE, hook_digest, hook_files, lock_text, source_digest
from danlu.environments.uv_command import BUILD_TIMEOUT_S, COMPILE_TIMEOUT_S, Report, Uv, new_file, storage_full
from danlu.environments.wheels import Origin, Wheel, Wheels, installable, origins, uv_settings
from danlu.errors import EnvironmentFailed, InvalidSpec, StorageFull

LOCK_POLL_S: Final = 0.1
FACTS: Final = "danlu.json"
LOCK: Final = "danlu-lock.txt"


class Built(Value):
    """What a build has made, or found."""

    lock_digest: str = Field(description="SHA-256 over lock, Python and recipe; the folder's name")
    packages: int = Field(ge=0)
    python_version: str
    size_bytes: int = Field(ge=0)
    build_s: float = Field(ge=0, description="how long this call took")
    lock: str = Field(default="", repr=False, description="every package with version and hashes")


@dataclass(frozen=True, slots=True)
class _Work:
    """One call of build: what, with what, until when."""

    source: EnvironmentSource
    python: Python
    uv: Uv
    report: Report
    deadline: float
    wheels: tuple[Wheel, ...] = ()

    def uv_for(self, lines: str) -> Uv:
        """Returns the uv that may fetch these lines: a host of the user's choice is sent none of the server's passwords."""
        return self.uv.without_passwords() if "://" in lines else self.uv


class Builder:
    """Makes and finds environments below one folder.

    Args:
        root: the folder.
        cache: uv's.
        images: by an environment's name or lock digest the container image that pods have it by, and need no archive.
        portable: whether what is built is to run on other machines too.
    """

    def __init__(
        self, root: Path, cache: Path, *, images: Mapping[str, str] | None = None, portable: bool = False
    ) -> None:
        self._root = root
        self._images, self._portable = images or {}, portable
        self._locks = root / ".locks"
        self._uv = Uv(cache, root / ".python")
        self._cache = cache
        self._build_cache = cache.with_name(f"{cache.name}-{BUILD_UID}")
        self._wheels = Wheels(
            cache.with_name("wheels")
        )  # several platforms may share a cache; so their locks are in it
        self._known: dict[str, tuple[Path, ...]] = {}

    def build(self, source: EnvironmentSource, report: Report) -> Built:
        """Builds an environment unless it is there. Idempotent; safe to call from several threads and processes at once.

        Args:
            source: what to build.
            report: called with each line of progress; what it raises ends the build.

        Raises:
            EnvironmentFailed: ``details["stage"]`` is resolve, install, python or compile; uv's or the compiler's own words
                are in the message.
            StorageFull: the disk is full; nothing is left of the build.
        """
        start = time.monotonic()
        deadline = start + BUILD_TIMEOUT_S
        try:
            self._prepare()
            with self._claimed(source_digest(source), report, deadline) as (folder, hold):
                find = pythons.portable if self._portable else pythons.find
                python = find(source.python, self._uv, folder, report, deadline=deadline)
                work = _Work(source, python, self._uv_as(folder, python, report), report, deadline)
                lock = self._lock(work, folder, hold)
            digest = _lock_digest(source, lock, python)
            facts = self._facts(digest)
            if facts is not None:
                report(
                    f"the environment is there already: {facts['packages']} packages, Python {facts['python_version']}"
                )
            else:
                facts = self._make(digest, lock, self._with_wheels(lock, work))
        except OSError as error:
            if storage_full(error):
                raise StorageFull(f"the platform's disk is full; the environment was not built: {error}") from error
            raise EnvironmentFailed(
                f"the environment could not be built: {error}", next_step="mend that on the server", stage="install"
            ) from error
        return Built(
            lock_digest=digest,
            packages=facts["packages"],
            python_version=facts["python_version"],
            size_bytes=facts["size_bytes"],
            build_s=time.monotonic() - start,
            lock=lock,
        )

    def interpreter(self, environment: Environment) -> Interpreter | None:
        """Returns where a built environment's Python is; None where the folder, or the Python that it stands on, is gone."""
        digest = environment.lock_digest
        if digest is None or not _usable(self._root / digest):
            return None
        if digest not in self._known:
            facts = self._facts(digest)
            if facts is None:
                return None
            self._known[digest] = tuple(Path(root) for root in facts["roots"])
        folder = self._root / digest
        return Interpreter(
            bin=folder / "bin",
            roots=(folder, *self._known[digest]),
            variables={**self._variables(environment), "VIRTUAL_ENV": str(folder)},
        )

    @contextlib.contextmanager
    def packed(self, digest: str, report: Report) -> Iterator[tuple[Path, Archive]]:
        """Yields the archive of a built environment, in a file that is removed at the end, and what it is.

        Raises:
            EnvironmentFailed: it cannot be packed, or is not there; ``details["stage"]`` is pack.
            StorageFull: the disk is full.
        """
        venv, deadline = self._root / digest, time.monotonic() + BUILD_TIMEOUT_S
        self._prepare()
        with self._claimed(f"archive-{digest}", report, deadline) as (folder, _):
            try:
                python = (venv / "bin" / "python").resolve(strict=True)
                if python.is_relative_to(self._root):  # uv's own, which comes without byte code
                    library = python.parent.parent / "lib" / python.name
                    self._uv.compile(python, library, report, deadline=deadline)
                path = folder / "archive"
                with path.open("xb") as file:
                    archive = packing.pack(venv, python, file)
            except OSError as error:
                if storage_full(error):
                    raise StorageFull(
                        f"the platform's disk is full; the environment was not packed: {error}"
                    ) from error
                raise EnvironmentFailed(f"the environment could not be packed: {error}", stage="pack") from error
            yield path, archive

    def image_of(self, name: str, digest: str | None) -> str:
        """Returns the image that pods have an environment by; empty: none, they need an archive."""
        return self._images.get(name) or self._images.get(digest or "") or ""

    def for_pods(self, environment: Environment) -> PodEnvironment | None:
        """Returns how a pod has a ready environment; None: neither as an image nor as an archive yet."""
        image = self.image_of(environment.name, environment.lock_digest)
        if environment.lock_digest is None or not (image or environment.archive):
            return None
        return PodEnvironment(
            name=environment.name, digest=environment.lock_digest, image=image,
            archive=None if image else environment.archive, variables=self._variables(environment),
        )  # fmt: skip

    @staticmethod
    def _variables(environment: Environment) -> dict[str, str]:
        entry = CATALOGUE.get(environment.source.catalogue or "")
        return {} if entry is None else dict(entry.variables)

    def folders(self) -> frozenset[str]:
        """Returns the digests of the environments that are there, of those that this platform alone uses."""
        return sweeping.folders(self._root)

    def doom(self, names: Collection[str]) -> Callable[[], None]:
        """Takes environments away, at once; the returned function then removes what they were, which takes long."""
        doomed = sweeping.doom(self._root, names)
        for name in names:
            self._known.pop(name, None)
        return lambda: sweeping.discard(self._root, doomed, (self._cache, self._build_cache))

    def bound_caches(self, limit_bytes: int = sweeping.CACHE_LIMIT_BYTES) -> None:
        """Empties uv's cache where it has grown past its limit."""
        sweeping.bound_cache(self._cache, self._uv, limit_bytes)
        if os.geteuid() == 0:
            sweeping.bound_cache(self._build_cache, self._build_uv(), limit_bytes)

    def host(self, executable: str) -> Interpreter:
        """Returns the interpreter for ``env: host``; raises LaunchRejected where it is none (see pythons.host)."""
        return pythons.host(executable)

    def _prepare(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o711)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        if not self._cache.parent.exists():
            self._cache.parent.mkdir(parents=True)
            self._cache.parent.chmod(0o711)
        self._cache.mkdir(mode=0o700, exist_ok=True)
        for left in (*self._root.glob(f"{NEW}*"), *self._wheels.root.glob(f"{NEW}*")):
            lock = left.parent / self._locks.name / left.name.removeprefix(NEW)
            descriptor = try_lock(lock)
            if descriptor is not None:
                remove(left)
                unlock(descriptor, lock)

    @contextlib.contextmanager
    def _claimed(
        self, key: str, report: Report, deadline: float, *, root: Path | None = None
    ) -> Iterator[tuple[Path, int]]:
        """Yields an empty folder for ``key`` and the lock's descriptor; removes what is left of the folder at the end."""
        root = root or self._root
        path = root / self._locks.name / key
        descriptor = try_lock(path)
        start = time.monotonic()
        if descriptor is None:
            report("the same is being built already: waiting for it")
        while descriptor is None:
            if time.monotonic() > deadline:
                raise EnvironmentFailed(
                    f"another build of the same did not end in {(deadline - start) / 60:.0f} min",
                    next_step="is a uv process left on the server? end it and build again",
                    stage="install",
                )
            time.sleep(LOCK_POLL_S)
            descriptor = try_lock(path)
        folder = root / f"{NEW}{key}"
        try:
            remove(folder)
            folder.mkdir(mode=0o755)
            yield folder, descriptor
        finally:
            remove(folder)
            unlock(descriptor, path)

    def _uv_as(self, folder: Path, python: Python, report: Report) -> Uv:
        """Returns the uv for a build: where the server is root, one of another user, if that can build here."""
        if os.geteuid() != 0:
            return self._uv
        self._build_cache.mkdir(mode=0o700, exist_ok=True)
        other = self._build_uv()
        other.give(self._build_cache)
        other.give(folder)
        hindrance = other.hindrance(python.executable, folder)
        if hindrance is None:
            return other
        os.chown(folder, os.geteuid(), os.getegid())
        report(f"building as the server's own user: {hindrance}")
        return self._uv

    def _build_uv(self) -> Uv:
        return Uv(self._build_cache, self._root / ".python", uid=BUILD_UID)

    def _lock(self, work: _Work, folder: Path, hold: int) -> str:
        """Returns the lock: the catalogue's own, or what uv resolves a user's requirements to."""
        if work.source.catalogue is not None:
            return lock_text(CATALOGUE[work.source.catalogue])
        given, made = folder / "requirements.txt", folder / "lock.txt"
        try:
            lines = check(work.source.requirements or "")
        except InvalidSpec as error:  # it was accepted by a version of Danlu that knew less
            raise EnvironmentFailed(error.message, next_step=error.next_step, stage="resolve") from error
        new_file(given, lines)
        if "://" in lines:
            work.report("wheels are named by address: no password that is saved on the server is used")
        work.report(f"resolving the requirements for Python {work.python.text}")
        work.uv_for(lines).run(
            "resolve",
            [
                "pip", "compile", given.name, "--output-file", made.name, "--quiet", "--generate-hashes", "--no-header",
                "--no-annotate", "--only-binary", ":all:", "--python", str(work.python.executable),
            ],
            folder, work.report, deadline=work.deadline, hold=hold,
        )  # fmt: skip
        return made.read_text(encoding="utf-8")

    def _with_wheels(self, lock: str, work: _Work) -> _Work:
        """Returns the work with a wheel for each package that has only a source; its time begins when they are there."""
        entry = CATALOGUE.get(work.source.catalogue or "")
        made = [self._wheel(origin, work) for origin in origins(entry, lock, work.python)]
        return (
            dataclasses.replace(work, wheels=tuple(made), deadline=time.monotonic() + BUILD_TIMEOUT_S) if made else work
        )

    def _wheel(self, origin: Origin, work: _Work) -> Wheel:
        found = self._wheels.find(origin)
        if found is None:
            deadline = time.monotonic() + COMPILE_TIMEOUT_S
            self._wheels.prepare(self._locks.name)
            with self._claimed(origin.key, work.report, deadline, root=self._wheels.root) as (folder, hold):
                found = self._wheels.find(origin)  # the other build made it
                if found is None:
                    work.uv.give(folder)
                    return self._wheels.make(origin, work.uv, folder, work.report, hold=hold)
        work.report(f"{origin.name}: the wheel that this server built of its source is used again")
        return found

    def _make(self, digest: str, lock: str, work: _Work) -> dict[str, Any]:
        """Makes the folder of an environment that is not there; returns its facts."""
        with self._claimed(digest, work.report, work.deadline) as (folder, hold):
            facts = self._facts(digest)
            if facts is not None:
                return facts  # the other build made it
            final = self._root / digest
            remove(final)  # its Python is gone
            inner = folder / "venv"
            work.uv.give(folder)
            _install(inner, lock, work, hold)
            size = _open_to_all(inner)
            if sharing.may_share():
                sharing.share(inner, self._root)
            facts = {
                "packages": sum(1 for _ in inner.glob("lib/python*/site-packages/*.dist-info")),
                "python_version": work.python.text,
                "roots": [str(root) for root in work.python.roots],
                "size_bytes": size,
            }
            new_file(inner / LOCK, lock)
            new_file(inner / FACTS, json.dumps(facts))
            os.sync()  # a folder with a name must be whole after a power failure too
            inner.rename(final)
            work.report(f"built: {facts['packages']} packages, {size / 1e6:.0f} MB, Python {work.python.text}")
            return facts

    def _facts(self, digest: str) -> dict[str, Any] | None:
        folder = self._root / digest
        if not _usable(folder):
            return None
        try:
            facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except ValueError:  # a damaged disk: as good as not there, and built anew
            return None
        return facts


def _install(venv: Path, lock: str, work: _Work, hold: int) -> None:
    """Makes the virtual environment and puts packages and hook into it, without running any of them."""
    python, report, folder = work.python, work.report, venv.parent
    report(f"making an environment with Python {python.text}")
    new_file(folder / "uv.toml", uv_settings(work.wheels))
    arguments = ["venv", "--quiet", "--relocatable", "--no-project", "--python", str(python.executable), venv.name]
    work.uv.run("python", arguments, folder, report, deadline=work.deadline, hold=hold)
    skeleton = _skeleton(venv)
    if _packages(lock):
        written = folder / LOCK
        new_file(written, installable(lock, work.wheels))
        # The one call of uv on this environment, while it is empty: uv asks its Python what it is before it installs.
        # From here on what is in it is the packages', and nothing of it is run here: uv's own compiling would.
        arguments = [
            "pip", "sync", written.name, "--python", f"{venv.name}/bin/python", "--require-hashes",
            "--only-binary", ":all:", "--link-mode",
            "hardlink" if sharing.may_share() else "copy", "--no-compile-bytecode",
        ]  # fmt: skip
        work.uv_for(lock).run("install", arguments, folder, report, deadline=work.deadline, hold=hold)
        _verify(venv, skeleton)
    entry = _entry(work.source)
    hooks = () if entry is None or entry.hook is None else hook_files(entry.hook)
    for path in hooks:
        target = next(venv.glob("lib/python*/site-packages")) / path.name
        shutil.copyfile(path, target)
        target.chmod(0o644)  # for the build's user, whatever the server's umask
    if _packages(lock) or hooks:
        work.uv.compile(python.executable, venv / "lib", report, deadline=work.deadline, hold=hold)


def _skeleton(venv: Path) -> dict[str, str]:
    """Returns what makes a folder an environment: every link in it, and its configuration."""
    found = {"pyvenv.cfg": (venv / "pyvenv.cfg").read_text(encoding="latin-1")}
    for at, folders, files in os.walk(venv):
        for entry in (Path(at, name) for name in (*folders, *files)):
            if entry.is_symlink():
                found[str(entry.relative_to(venv))] = str(entry.readlink())
    return found


def _verify(venv: Path, skeleton: dict[str, str]) -> None:
    """Refuses packages that replaced a part of the environment itself, or brought links, which wheels do not have."""
    bad = sorted({name for name, _ in skeleton.items() ^ _skeleton(venv).items()})
    bad += [name for name in (FACTS, LOCK) if os.path.lexists(venv / name)]
    if bad:
        raise EnvironmentFailed(
            f"the packages cannot be installed: one of them brings or replaces {', '.join(bad)[:500]}, "
            "which belongs to the environment itself",
            next_step="leave out the package that does it",
            stage="install",
        )


def _usable(folder: Path) -> bool:
    """Whether a folder is whole, and the Python that it stands on is still there."""
    return (folder / FACTS).exists() and (folder / "bin" / "python").exists()


def _entry(source: EnvironmentSource) -> CatalogueEntry | None:
    return None if source.catalogue is None else CATALOGUE[source.catalogue]


def _packages(lock: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in lock.splitlines())


def _lock_digest(source: EnvironmentSource, lock: str, python: Python) -> str:
    entry = _entry(source)
    hook = None if entry is None else entry.hook
    whole: dict[str, object] = {
        "recipe": RECIPE,
        "lock": lock,
        # an environment stands on one interpreter, not on any of that version
        "python": [python.text, str(python.executable)],
        "hook": None if hook is None else hook_digest(hook),
    }
    made = origins(CATALOGUE.get(source.catalogue or ""), lock, python)
    if made:
        whole["wheels"] = [origin.key for origin in made]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _open_to_all(folder: Path) -> int:
    """Makes ``folder`` the server's own, and readable to every user, whatever the wheels say; returns its files' bytes."""
    size, own = 0, (os.geteuid(), os.getegid())
    os.chown(folder, *own)
    folder.chmod(0o755)
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(at, name)  # noqa: PTH118 - tens of thousands of files
            status = os.lstat(path)
            if status.st_uid != own[0]:
                os.chown(path, *own, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
            if not stat.S_ISLNK(status.st_mode):
                wanted = 0o755 if status.st_mode & 0o111 or stat.S_ISDIR(status.st_mode) else 0o644
                os.chmod(path, wanted)  # noqa: PTH101
    return size
