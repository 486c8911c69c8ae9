"""The seam to where bytes are kept: content-addressed blobs, each project for itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import BinaryIO, Protocol

from danlu.blobs.unused import Condemned, Listed


class Blobs(Protocol):
    """Bytes by content address. What one project has, no other can see or guess."""

    def mark(self) -> int | None:
        """Returns the number that tells which platform's store it is; None: nobody's yet."""

    def set_mark(self, mark: int) -> int:
        """Gives it a number unless it has one; returns the one that it has, for all who do so at the same time."""

    def empty(self) -> bool:
        """Says whether it has nothing of any project."""

    def missing(self, project: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """Returns those addresses that the project does not have, in the order given."""

    def absent(self, project: str, *roots: str, most: int) -> tuple[str, ...]:
        """Returns what of trees the project does not have, at most so many; below a folder that it lacks, nothing is known.

        Raises:
            InvalidRequest: what is there is no tree that could be checked out, or together they are larger than one may be.
        """

    def received(self, project: str, address: str) -> int:
        """Returns how many bytes of a blob have arrived in pieces; all of them where it is stored."""

    def append(self, project: str, address: str, piece: BinaryIO, *, offset: int, size: int) -> int:
        """Adds a piece to a blob that comes in order; returns how many bytes have arrived. What has arrived is kept.

        With the last piece the blob is stored, durably. Pieces for a stored blob change nothing.

        Raises:
            Conflict: it does not begin where the last piece ended; ``details["received"]`` says where that is.
            InvalidRequest: the bytes are not what the address says; nothing is stored, and nothing has arrived any more.
            StorageFull: the piece is not added.
        """

    def put(self, project: str, address: str, data: BinaryIO) -> tuple[int, int]:
        """Stores one blob and returns (1, its size), once it is durable; (0, 0) where it was there.

        Raises:
            InvalidRequest: the bytes are not what the address says; nothing is stored.
            StorageFull: nothing is stored.
            Unavailable: it is condemned, see ``condemned``; or the store is away.
        """

    def put_many(self, project: str, blobs: Iterable[tuple[str, bytes]]) -> tuple[int, int]:
        """Stores small blobs and returns (how many were new, their bytes), once all are durable.

        Of several who store the same at the same time it is new for one.
        """

    def stored_bytes(self, project: str) -> int:
        """Returns how many bytes all whole blobs of a project have, as ``listed`` tells them."""

    def listed(self, project: str) -> Iterator[Listed]:
        """Yields all whole blobs of a project, looked at one by one, which takes its time."""

    def condemned(self, project: str) -> Condemned:
        """Returns which blobs are to be removed, see blobs/unused.py: ``missing`` and ``absent`` name them too."""

    def condemning(self) -> tuple[str, ...]:
        """Returns the projects of which something is condemned, or was."""

    def condemn(self, project: str, addresses: Collection[str], at: int) -> None:
        """Condemns these blobs, and none else."""

    def remove(self, project: str, addresses: Collection[str]) -> int:
        """Removes blobs, whole or not at all; returns how many bytes they had. Absent is success."""

    def sweep(self) -> None:
        """Removes what is left of uploads that nobody has gone on with for long."""

    def open(self, project: str, address: str) -> BinaryIO:
        """Opens a blob for reading from its beginning to its end.

        What is read is checked: the last bytes of a damaged blob never come, DataDamaged is raised in their place, and the
        blob is set aside.

        Raises:
            NotFound: the project has no such blob.
        """

    def read(self, project: str, address: str) -> bytes:
        """Returns a blob's bytes, checked against its address; for small ones.

        Raises:
            NotFound: the project has no such blob.
            DataDamaged: the stored bytes are not what was stored; they are set aside.
        """
