"""Wheels of packages that were released as source only, made once and kept in the platform's cache.

What is built is the catalogue's choice alone: a lock names the source by hash, and what it is built against. uv fetches and
unpacks the source, while nothing of it runs (see unpacking.py); then setuptools builds it, in an environment of its own with
everything else that the lock names, as the build's user, with no network and none of the server's variables but PATH. The
wheel is kept under a digest over all that decides what is in it, and each environment that needs it, of any project, installs
it by its own hash. A wheel whose bytes are no longer those that were built is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from danlu.environments.catalogue import CatalogueEntry, SourceBuild
from danlu.environments.pythons import Python
from danlu.environments.uv_command import COMPILE_TIMEOUT_S, Report, Uv, new_file
from danlu.errors import EnvironmentFailed

WHEEL_RECIPE: Final = 1
"""Counts the ways of building a wheel; a new one makes every wheel anew."""
MAX_KEPT: Final = 32
MAX_WHEEL_BYTES: Final = 4_294_967_296
MAX_LINE_CHARACTERS: Final = 240
"""A compiler's command line is longer, and says little; the whole log is kept beside the wheel."""
MEMORY_PER_COMPILER_BYTES: Final = 2_147_483_648
FACTS: Final = "wheel.json"
LOG: Final = "build.log"
_COPY: Final = ".copy-"


@dataclass(frozen=True, slots=True)
class Origin:
    """All that decides what is in a wheel.

    Attributes:
        build: the catalogue's word on it.
        version: as the lock pins it.
        sha256: of its source, as the lock pins it.
        against: the rest of the lock, less what is built from source: installed where it is built.
        python: the interpreter; wheels are one minor version's.
    """

    build: SourceBuild
    version: str
    sha256: str
    against: str
    python: Python

    @property
    def name(self) -> str:
        """Package and version, for people."""
        return f"{self.build.package} {self.version}"

    @property
    def line(self) -> str:
        """The source as a line of requirements."""
        return f"{self.build.package}=={self.version} --hash=sha256:{self.sha256}\n"

    @property
    def key(self) -> str:
        """The digest that the wheel is kept under."""
        whole = {
            "recipe": WHEEL_RECIPE,
            "source": self.line,
            "against": self.against,
            "python": self.python.version[:2],
            "machine": [platform.machine(), *platform.libc_ver()],
            "variables": dict(self.build.variables),
        }
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that is there, in a folder where nothing else is a wheel."""

    origin: Origin
    path: Path
    sha256: str


def origins(entry: CatalogueEntry | None, lock: str, python: Python) -> tuple[Origin, ...]:
    """Returns what the packages are made of that an entry takes from source; none for what a user names."""
    builds = () if entry is None else entry.from_source
    against, found = lock, []
    for build in builds:
        pin = _pin(build.package).search(lock)
        if pin is None:
            raise EnvironmentFailed(
                f"the lock does not pin {build.package} to one source",
                next_step="this Danlu is broken: install it anew",
            )
        found.append((build, pin["version"], pin["sha256"]))
        against = against.replace(pin[0], "")
    return tuple(Origin(*parts, against=against, python=python) for parts in found)


def _pin(package: str) -> re.Pattern[str]:
    """Matches a package's lines in a lock, with one hash; the hash of a source is that of no wheel."""
    return re.compile(
        rf"^{re.escape(package)}==(?P<version>[0-9A-Za-z.!+]+)[^\n]*\\\n +--hash=sha256:(?P<sha256>[0-9a-f]{{64}})\n",
        re.M,
    )


def installable(lock: str, wheels: Sequence[Wheel]) -> str:
    """Returns the lock with each source's hash replaced by that of the wheel that was made of it."""
    for wheel in wheels:
        lock = lock.replace(wheel.origin.sha256, wheel.sha256)
    return lock


def uv_settings(wheels: Sequence[Wheel]) -> str:
    """Returns a uv.toml with which uv finds the wheels, besides what it finds elsewhere."""
    return f"find-links = {json.dumps([str(wheel.path.parent) for wheel in wheels])}\n" if wheels else ""


class Wheels:
    """The wheels that are kept in one folder, each below its digest: made under another name, and renamed when whole."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, locks: str) -> None:
        """Makes the folder, and the one in it for locks."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        (self.root / locks).mkdir(mode=0o700, exist_ok=True)

    def find(self, origin: Origin) -> Wheel | None:
        """Returns a kept wheel, if it is still what was built."""
        folder = self.root / origin.key
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            path = folder / str(facts["file"])
            with path.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if not same:
            return None
        os.utime(folder)  # the last ones used are kept
        return Wheel(origin, path, facts["sha256"])

    def make(self, origin: Origin, uv: Uv, folder: Path, report: Report, *, hold: int) -> Wheel:
        """Builds a wheel and keeps it.

        Args:
            origin: what it is made of.
            uv: the one that may reach the package index; what is built may not.
            folder: an empty one, that is uv's user's. Nothing in it is needed afterwards.
            report: called with each line; what it raises ends the build.
            hold: as in ``Uv.run``.

        Raises:
            EnvironmentFailed: a program is missing, the source cannot be had, it does not compile, or not in time.
            StorageFull: the disk is full.
        """
        start = time.monotonic()
        deadline = start + COMPILE_TIMEOUT_S
        _check_programs(origin)
        report(f"{origin.name} was released as source only: building it, once on this server; that may take minutes")
        step = _Step(origin, uv, folder, report, deadline, hold)
        step.fetch()
        step.install()
        with tempfile.TemporaryFile(
            "w+", encoding="utf-8"
        ) as log:  # nothing of the build's user's is between it and us
            step.build(log)
            wheel = self._keep(origin, folder / "made", log)
        report(f"built {wheel.path.name} in {time.monotonic() - start:.0f} s")
        return wheel

    def _keep(self, origin: Origin, made: Path, log: TextIO) -> Wheel:
        for left in self.root.glob(f"{_COPY}*"):  # a server was killed while it copied
            if time.time() - left.stat().st_mtime > COMPILE_TIMEOUT_S:
                shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_COPY, dir=self.root))
        try:
            new.chmod(0o755)
            name = _taken(origin, made, new)
            log.seek(0)
            new_file(new / LOG, log.read())
            with (new / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            new_file(new / FACTS, json.dumps({"file": name, "sha256": digest, "of": origin.name}))
            final = self.root / origin.key
            if self.find(origin) is None:
                shutil.rmtree(final, ignore_errors=True)  # damaged
            with contextlib.suppress(OSError):  # another server on the same cache made it meanwhile
                new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        for old in sorted(self.root.glob("[0-9a-f]" * 64), key=lambda kept: -kept.stat().st_mtime)[MAX_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        kept = self.find(origin)
        if kept is None:
            raise EnvironmentFailed(
                f"the wheel of {origin.name} cannot be kept in {self.root}", next_step="mend that folder on the server",
                stage="compile",
            )  # fmt: skip
        return kept


@dataclass(frozen=True, slots=True)
class _Step:
    """The steps of one build, in one folder."""

    origin: Origin
    uv: Uv
    folder: Path
    report: Report
    deadline: float
    hold: int

    def fetch(self) -> None:
        """Has uv fetch the source, check its hash and unpack it to ``source``."""
        self._run(
            "python", ["venv", "--quiet", "--no-project", "--python", str(self.origin.python.executable), "fetch"]
        )
        place = next((self.folder / "fetch").glob("lib/python*/site-packages")) / "setuptools"
        place.mkdir()
        place.chmod(0o755)  # for the build's user, whatever the server's umask
        new_file(place / "__init__.py", "")
        new_file(place / "build_meta.py", Path(__file__).with_name("unpacking.py").read_text(encoding="utf-8"))
        new_file(self.folder / "source.txt", self.origin.line)
        # a cache of its own: what uv takes for the package's wheel here is none
        self._run(
            "install",
            [
                "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-build-isolation", "--no-binary",
                self.origin.build.package, "--requirement", "source.txt", "--python", "fetch/bin/python", "--cache-dir",
                "fetched", "--config-setting", f"destination={self.folder / 'source'}",
            ],
        )  # fmt: skip

    def install(self) -> None:
        """Makes the environment that it is built in."""
        new_file(self.folder / "against.txt", self.origin.against)
        self._run(
            "python", ["venv", "--quiet", "--no-project", "--python", str(self.origin.python.executable), "against"]
        )
        self._run(
            "install",
            [
                "pip", "sync", "--quiet", "against.txt", "--python", "against/bin/python", "--require-hashes",
                "--only-binary", ":all:", "--link-mode", "copy", "--no-compile-bytecode",
            ],
        )  # fmt: skip

    def build(self, log: TextIO) -> None:
        """Builds the wheel in ``made``; writes all that is said to the log."""
        at_once = max(1, min(len(os.sched_getaffinity(0)), _memory_bytes() // MEMORY_PER_COMPILER_BYTES))
        scratch = self.folder / "scratch"
        scratch.mkdir()
        self.uv.give(scratch)
        variables = {**self.origin.build.variables, "MAKEFLAGS": f"-j{at_once}"}

        def report(line: str) -> None:
            log.write(line + "\n")
            self.report(line if len(line) <= MAX_LINE_CHARACTERS else f"{line[:MAX_LINE_CHARACTERS]} ...")

        arguments = [
            "build", "--wheel", "--no-build-isolation", "--python", "against/bin/python", "--out-dir", "made",
            "--config-setting=--global-option=--quiet", "source",  # else each compiler's whole command line
        ]  # fmt: skip
        try:
            self.uv.sealed(scratch, variables).run(
                "compile", arguments, self.folder, report, deadline=self.deadline, hold=self.hold
            )
        except EnvironmentFailed as error:
            raise EnvironmentFailed(
                f"{self.origin.name}: {error.message}",
                next_step="the environment's log has all lines; mend the compiler or what it lacks on the server, "
                "then danlu env build tries again",
                stage="compile",
                package=self.origin.build.package,
            ) from error

    def _run(self, stage: str, arguments: Sequence[str]) -> None:
        self.uv.run(stage, arguments, self.folder, self.report, deadline=self.deadline, hold=self.hold)


def _check_programs(origin: Origin) -> None:
    missing = {name: package for name, package in origin.build.programs.items() if shutil.which(name) is None}
    if missing:
        raise EnvironmentFailed(
            f"{origin.name} was released as source only, and what builds it is not on this server: {', '.join(missing)}",
            next_step=f"on Debian: apt install {' '.join(missing.values())}; then danlu env build tries again",
            stage="compile",
            package=origin.build.package,
        )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _taken(origin: Origin, made: Path, target: Path) -> str:
    """Copies the wheel that another user has made into ``target``; follows no link of that user's. Returns its name."""
    folder = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".whl")]  # noqa: PTH208 - a descriptor
        stem = re.escape(f"{origin.build.package.replace('-', '_')}-{origin.version}")
        problem = f"its build made no wheel of that name, but: {', '.join(names)[:300]}"
        if len(names) == 1 and re.fullmatch(rf"{stem}-[\w.]+-[\w.]+-[\w.]+\.whl", names[0]):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(names[0], flags, dir_fd=folder), "rb") as source:
                status = os.fstat(source.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_WHEEL_BYTES:
                    with (target / names[0]).open("xb") as copy:
                        os.fchmod(copy.fileno(), 0o644)
                        shutil.copyfileobj(source, copy)
                    return names[0]
            problem = f"{names[0]} is no file of at most {MAX_WHEEL_BYTES:,} bytes"
    finally:
        os.close(folder)
    raise EnvironmentFailed(
        f"{origin.name}: {problem}", next_step="the environment's log has all lines", stage="compile"
    )
