"""Archives of environments, for executors whose nodes build none: made once of what was built, and kept as blobs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from danlu.blobs.base import Blobs
from danlu.database.engine import Store, Transaction
from danlu.database.records import ENVIRONMENTS
from danlu.domain.environments import Archive, Environment, EnvironmentReason, EnvironmentState
from danlu.errors import DanluError
from danlu.services import stored
from danlu.services.context import Clock, Hub

MAX_KNOWN: Final = 10_000


class Packer(Protocol):
    """Packs what was built."""

    def packed(self, digest: str, report: Callable[[str], None]) -> AbstractContextManager[tuple[Path, Archive]]:
        """Yields an archive in a file that is removed at the end, and what it is; raises EnvironmentFailed or StorageFull."""

    def image_of(self, name: str, digest: str | None) -> str:
        """Returns the image that pods have an environment by, which needs no archive; empty: none."""


@dataclass(slots=True)
class Packing:
    """Packs environments into blobs of their projects."""

    packer: Packer
    blobs: Blobs
    clock: Clock
    hub: Hub

    def image_of(self, environment: Environment) -> str:
        """Returns the image that pods have an environment by whatever is built here; empty: none."""
        return self.packer.image_of(environment.name, None)

    def pack(
        self, database: Store, environment: Environment, digest: str, report: Callable[[str], None]
    ) -> Archive | None:
        """Returns the archive of what was built for an environment; None where pods have it by an image.

        It is packed only if no environment of the same digest was: another project's is copied.

        Raises:
            EnvironmentFailed: it cannot be packed; ``details["stage"]`` is pack.
            StorageFull: the disk is full.
        """
        if self.packer.image_of(environment.name, digest):
            return None
        project = environment.project
        known = self._known(database, environment, digest)
        if known is not None and not self.blobs.missing(project, (known.address,)):
            return known
        self._tell(database, environment)
        if known is not None and self._copied(database, project, known, digest):
            report("packed before for another project: copied")
            return known
        report("packing it for the pods")
        with self.packer.packed(digest, report) as (path, archive), path.open("rb") as file:
            self._put(database, project, archive, file)
        report(f"packed: {archive.files:,} files, {archive.size_bytes / 1e6:.0f} MB")
        return archive

    @staticmethod
    def _others(database: Store, digest: str) -> list[Environment]:
        every = database.read(lambda tx: ENVIRONMENTS.find(tx, state=EnvironmentState.READY, limit=MAX_KNOWN))
        return [one for one in every if one.lock_digest == digest and one.archive is not None]

    def _known(self, database: Store, environment: Environment, digest: str) -> Archive | None:
        if environment.archive is not None and environment.lock_digest == digest:
            return environment.archive
        return next((one.archive for one in self._others(database, digest)), None)

    def _copied(self, database: Store, project: str, archive: Archive, digest: str) -> bool:
        """Copies an archive from another project that has it whole; returns whether one had."""
        for other in self._others(database, digest):
            if other.project == project or other.archive != archive:
                continue
            try:
                with self.blobs.open(other.project, archive.address) as file:
                    self._put(database, project, archive, file)
            except DanluError:
                continue  # it is damaged there, and packed anew here
            return True
        return False

    def _put(self, database: Store, project: str, archive: Archive, file: BinaryIO) -> None:
        with stored.results(database, self.clock, project, archive.size_bytes) as storing:
            _, storing.new_bytes = self.blobs.put(project, archive.address, file)

    def _tell(self, database: Store, environment: Environment) -> None:
        """Lets waiting jobs say what they wait for now."""

        def work(tx: Transaction) -> None:
            newest = ENVIRONMENTS.require(tx, environment.id)
            if newest.state is EnvironmentState.BUILDING:
                ENVIRONMENTS.put(tx, newest, newest.evolved(now=self.clock.now(), reason=EnvironmentReason.PACKING))

        database.write(work)
        self.hub.notify("jobs")
