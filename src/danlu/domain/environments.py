"""An environment: an interpreter with packages, built once from a lock and shared by all jobs that ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field

from danlu.domain.records import Living, Value
from danlu.domain.trees import ADDRESS_PATTERN

HOST: Final = "host"
PYTHON_PATTERN: Final = r"^3\.\d{1,2}$"
PATH_PATTERN: Final = r"^/[^\x00]*$"
MOUNTED: Final = "/danlu/environments"
"""Where a pod has the environments of its node."""
KEPT_BYTES: Final = 100 * 2**30
"""What a node keeps of unpacked environments, beyond those in use."""
UNUSED_S: Final = 30 * 86_400.0
"""How long it keeps one that no pod asks for."""


class EnvironmentState(StrEnum):
    """Where a build is."""

    WANTED = "wanted"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    REMOVED = "removed"


class EnvironmentReason(StrEnum):
    """Why it is there."""

    REQUESTED = "Requested"
    BUILDING = "Building"
    PACKING = "Packing"
    BUILT = "Built"
    RESOLUTION_FAILED = "ResolutionFailed"
    INSTALL_FAILED = "InstallFailed"
    PULL_FAILED = "PullFailed"
    PACKING_FAILED = "PackingFailed"
    INTERRUPTED = "Interrupted"
    REBUILD = "Rebuild"
    REMOVED = "Removed"
    UNUSED = "Unused"


S = EnvironmentState


class EnvironmentSource(Value):
    """What an environment is made from: a catalogue entry, or requirements given by a user, or a container image.

    Exactly one of ``catalogue``, ``requirements`` and ``image`` is set. ``Environment.source_digest`` is the SHA-256 of it
    all, with the catalogue entry's lock.
    """

    catalogue: str | None = Field(default=None, description="a name of the catalogue, e.g. tensorflow-1")
    requirements: str | None = Field(default=None, max_length=1_048_576, description="a requirements.txt as text")
    python: str = Field(
        default="",
        pattern=rf"{PYTHON_PATTERN}|^$",
        description="the interpreter's version, e.g. 3.11; an image has its own",
    )
    image: str | None = Field(default=None, description="the whole name of a container image, which is pulled")


class Archive(Value):
    """An environment with its interpreter in one file, for machines that did not build it (see environments/packing.py)."""

    address: str = Field(pattern=ADDRESS_PATTERN, description="the blob of the environment's project")
    size_bytes: int = Field(ge=0)
    unpacked_bytes: int = Field(ge=0, description="of its files together")
    files: int = Field(ge=0, description="how many files, folders and links it has")


class Environment(Living):
    """An interpreter with packages, or an image. ``lock_digest`` names what was built."""

    KIND: ClassVar[str] = "environment"
    MOVES: ClassVar[Mapping[EnvironmentState, frozenset[EnvironmentState]]] = {
        S.WANTED: frozenset({S.BUILDING, S.READY, S.FAILED, S.REMOVED}),
        S.BUILDING: frozenset({S.READY, S.FAILED, S.WANTED}),
        S.READY: frozenset({S.WANTED, S.REMOVED}),
        S.FAILED: frozenset({S.WANTED, S.REMOVED}),
        S.REMOVED: frozenset({S.WANTED}),
    }

    state: EnvironmentState = S.WANTED
    reason: EnvironmentReason | None = EnvironmentReason.REQUESTED
    name: str = Field(description="the catalogue's name, or requirements-xxxxxxxx")
    source: EnvironmentSource
    source_digest: str = Field(description="SHA-256 over the source: one record per project and source")
    lock_digest: str | None = Field(default=None, description="SHA-256 over lock, Python and recipe; an image's id")
    packages: int | None = Field(default=None, ge=0, description="how many packages it has, once built")
    python_version: str | None = Field(default=None, description="the full version, once built")
    size_bytes: int | None = Field(default=None, ge=0)
    build_s: float | None = Field(default=None, ge=0)
    archive: Archive | None = Field(default=None, description="what pods unpack, where jobs run in pods")

    @property
    def in_vain(self) -> bool:
        """Whether it was asked for and never could be had."""
        return self.state is S.FAILED and self.lock_digest is None


class Interpreter(Value):
    """Where an attempt's Python is: the folder that goes first on PATH, and what must be readable for it to run."""

    bin: Path
    roots: tuple[Path, ...] = Field(default=(), description="folders that the job must be able to read")
    variables: dict[str, str] = Field(default_factory=dict, description="set for the job, e.g. VIRTUAL_ENV")


class PodEnvironment(Value):
    """How a pod has an environment: an image that has it already, or an archive that is unpacked once on each node."""

    name: str
    digest: str = Field(description="the environment's lock digest; the name of its folder on a node")
    image: str = Field(default="", description="the image; it needs no archive")
    archive: Archive | None = None
    variables: dict[str, str] = Field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where a pod has it."""
        return f"{MOUNTED}/{self.digest}"

    @property
    def interpreter(self) -> Interpreter | None:
        """Its Python, with paths as they are in the pod; None: the image's own."""
        if self.archive is None:
            return None
        return Interpreter(bin=Path(self.path, "bin"), variables={**self.variables, "VIRTUAL_ENV": self.path})

    def order(self, *, max_bytes: int = KEPT_BYTES, unused_s: float = UNUSED_S) -> dict[str, Any]:
        """Returns what the pod is told (see runner/environment.py); of one that is an image there is nothing to tell.

        Args:
            max_bytes: what the node is to keep of unpacked environments.
            unused_s: how long it is to keep one that no pod asks for.
        """
        assert self.archive is not None  # noqa: S101 - of an image nothing is unpacked
        return {
            "name": self.name,
            "digest": self.digest,
            **self.archive.model_dump(),
            "path": self.path,
            "bin": f"{self.path}/bin",
            "variables": self.variables,
            "keep": {"max_bytes": max_bytes, "unused_s": unused_s},
        }
