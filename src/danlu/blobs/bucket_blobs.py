"""Blobs in a bucket, seen by all servers: ``PROJECT/sha256/ab/cdef...`` is a blob of at most 8 MiB, or the list of its parts.

Parts are objects of their own, ``PROJECT/parts/DIGEST/UPLOAD/OFFSET``, immutable as all here. A large blob is there once its
list is, which is put last and only if there is none: until then nobody sees anything of it, and of several who store it one
is first. What a client sends in pieces is made of such parts too, so that any server can take the next piece. An upload that
was given up is found by listing and removed by its age: nothing is hidden, as parts of S3's own multipart uploads would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from danlu.blobs.bucket import PROBE, Absent, Bucket, Object
from danlu.blobs.checked import Checked
from danlu.blobs.marks import MARK, read_mark
from danlu.blobs.parts import KEPT_S, Hashes
from danlu.blobs.unused import CONDEMNED, Condemnation, Condemned, Listed
from danlu.blobs.wholeness import Wholeness
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.trees import MAX_NODE_BYTES, address_of, require_address
from danlu.errors import (
    Conflict,
    DanluError,
    DataDamaged,
    InvalidRequest,
    NotFound,
    StorageUnavailable,
    TooLarge,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PART_BYTES: Final = 8 * 2**20
LEAST_BYTES: Final = PART_BYTES // 2
"""Pieces that are smaller on average are put together: each costs a request to read."""
MAX_PARTS: Final = 100_000
PARTS_AT_ONCE: Final = 8
READ_AHEAD: Final = 24
"""Parts, of all who read: many pods fetch an environment at the same time."""
ZEROS: Final = bytes(PART_BYTES)
PIECES: Final = "pieces"
"""The upload that clients' pieces belong to; others have random names."""
LAST: Final = ".last"
SAFETY_S: Final = 3600.0
"""So long before others could remove an upload as given up it is not gone on with."""
_NAME: Final = re.compile(NAME_PATTERN)


class _Part(NamedTuple):
    """Some bytes of a blob; ``key`` is empty where all of them are zero: a hole takes no room."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an object is that is not the blob itself."""

    upload: str
    parts: tuple[_Part, ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)

    def encoded(self) -> bytes:
        return json.dumps({"format": 1, "upload": self.upload, "parts": self.parts}, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, data: bytes) -> _Parts:
        """Raises ValueError, KeyError or TypeError for what is none."""
        read = json.loads(data)
        if read["format"] != 1:
            raise ValueError("format")
        return cls(str(read["upload"]), tuple(_Part(str(key), int(size)) for key, size in read["parts"]))


class _Joined(io.RawIOBase):
    """Several pieces' bytes one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._left:
            self._left = memoryview(b"")  # of two pieces one is held
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        target = memoryview(buffer)
        size = min(len(target), len(self._left))
        target[:size], self._left = self._left[:size], self._left[size:]
        return size


class BucketBlobs:
    """Blobs in a bucket.

    Args:
        bucket: where.
        read_ahead: how many parts of large blobs are held in memory for all who read, beside the one that each reads.
    """

    def __init__(self, bucket: Bucket, *, read_ahead: int = READ_AHEAD) -> None:
        self._bucket, self._read_ahead = bucket, threading.Semaphore(read_ahead)
        self._wholeness = Wholeness(self)
        self._hashes = Hashes()
        self._condemnation = Condemnation(self._load_condemned, self._save_condemned)

    def mark(self) -> int | None:
        """See Blobs."""
        try:
            return read_mark(self._bucket.get(MARK), self._bucket.place)
        except Absent:
            return None

    def set_mark(self, mark: int) -> int:
        """See Blobs."""
        self._bucket.put_new(MARK, str(mark).encode())
        return read_mark(self._bucket.get(MARK), self._bucket.place)

    def empty(self) -> bool:
        """See Blobs."""
        return not any(map(_NAME.fullmatch, set(self._bucket.folders()) - {PROBE}))

    @staticmethod
    def _folder(project: str) -> str:
        if not _NAME.fullmatch(project):
            raise InvalidRequest(f"{project[:80]!r} is not a project's name")
        return project

    def _key(self, project: str, address: str) -> str:
        digest = require_address(address).removeprefix("sha256:")
        return f"{self._folder(project)}/sha256/{digest[:2]}/{digest[2:]}"

    def _parts(self, project: str, address: str) -> str:
        return f"{self._folder(project)}/parts/{require_address(address).removeprefix('sha256:')}"

    def missing(self, project: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """See Blobs."""
        asked = {address: self._key(project, address) for address in addresses}
        self._folder(project)
        condemned = self._condemnation.of(project).addresses if asked else frozenset()
        there = self._bucket.each(self._bucket.size, asked.values())
        return tuple(
            address for address, size in zip(asked, there, strict=True) if size is None or address in condemned
        )

    def absent(self, project: str, *roots: str, most: int) -> tuple[str, ...]:
        """See Blobs."""
        return self._wholeness.absent(project, *roots, most=most, condemned=self._condemnation.of(project))

    def put(self, project: str, address: str, data: BinaryIO) -> tuple[int, int]:
        """See Blobs."""
        key = self._key(project, address)
        self._condemnation.require_none(project, address)
        first = _filled(data)
        second = _filled(data) if len(first) == PART_BYTES else b""
        if not second:
            _require(address, hashlib.sha256(first).hexdigest())
            return (1, len(first)) if self._bucket.put_new(key, first) else (0, 0)
        if self._bucket.size(key) is not None:
            return 0, 0
        return self._put_large(project, address, itertools.chain((first, second), iter(lambda: _filled(data), b"")))

    def _put_large(self, project: str, address: str, chunks: Iterable[bytes]) -> tuple[int, int]:
        """Stores what comes in chunks of PART_BYTES; what of it was stored is removed where it does not become the blob."""
        folder, upload = self._parts(project, address), secrets.token_hex(8)
        hasher, begun = hashlib.sha256(), list[str]()

        def hashed() -> Iterator[tuple[str, bytes]]:
            for number, chunk in enumerate(chunks):
                if number >= MAX_PARTS:
                    raise TooLarge(f"blob {address} is larger than {MAX_PARTS * PART_BYTES} bytes")
                hasher.update(chunk)
                hole = number > 0 and ZEROS.startswith(chunk)  # the first part tells who lists that there are parts
                name = "" if hole else f"{upload}/{number * PART_BYTES:020d}"
                begun.extend([f"{folder}/{name}"] if name else [])
                yield name, chunk

        def store(one: tuple[str, bytes]) -> _Part:
            name, chunk = one
            if name:
                self._bucket.put_new(f"{folder}/{name}", chunk)
            return _Part(name, len(chunk))

        try:
            parts = _Parts(upload, tuple(self._bucket.each(store, hashed(), ahead=PARTS_AT_ONCE)))
            _require(address, hasher.hexdigest())
        except StorageUnavailable:
            raise  # nor would it remove them now
        except BaseException:
            self._give_up(begun)
            raise
        if self._named(project, address, parts):
            return 1, parts.size_bytes
        self._give_up(begun)
        return 0, 0

    def _named(self, project: str, address: str, parts: _Parts) -> bool:
        """Makes parts the blob unless it is there; returns whether they are it."""
        key, data = self._key(project, address), parts.encoded()
        return bool(self._bucket.put_new(key, data)) or self._bucket.get(key) == data  # an answer may have been lost

    def _give_up(self, keys: Sequence[str]) -> None:
        """Removes an upload's parts as far as that goes now; else ``sweep`` does."""
        with contextlib.suppress(DanluError):
            self._bucket.delete(keys)

    def put_many(self, project: str, blobs: Iterable[tuple[str, bytes]]) -> tuple[int, int]:
        """See Blobs. All are checked before the first is stored."""
        found: dict[str, bytes] = {}
        for address, data in blobs:
            self._key(project, address)
            if address not in found:
                _require(address, hashlib.sha256(data).hexdigest())
                found[address] = data
        if not found:
            return 0, 0

        def store(address: str) -> tuple[int, int]:
            data = found[address]
            if len(data) > PART_BYTES:
                chunks = (data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES))
                return self._put_large(project, address, chunks)
            return (1, len(data)) if self._bucket.put_new(self._key(project, address), data) else (0, 0)

        self._condemnation.require_none(project, *found)
        large = [address for address, data in found.items() if len(data) > PART_BYTES]
        small = [address for address in found if address not in large]
        stored = [*self._bucket.each(store, small), *map(store, large)]  # whose parts take the same threads
        return sum(count for count, _ in stored), sum(size for _, size in stored)

    def received(self, project: str, address: str) -> int:
        """See Blobs."""
        whole = self._whole(project, address)
        return sum(piece.size_bytes for piece in self._pieces(project, address)) if whole is None else whole

    def append(self, project: str, address: str, piece: BinaryIO, *, offset: int, size: int) -> int:
        """See Blobs."""
        self._condemnation.require_none(project, address)
        if (whole := self._whole(project, address)) is not None:
            return whole
        pieces = self._pieces(project, address)
        there = sum(one.size_bytes for one in pieces)
        if there != offset:
            raise Conflict(f"the piece begins at byte {offset}, but {there} bytes have arrived", received=there)
        data = _all_of(piece, size - offset)
        if len(data) > size - offset:
            raise InvalidRequest(f"the blob has {size} bytes; this piece goes on to byte {offset + len(data)} at least")
        tags, end = [one.tag for one in pieces], offset + len(data)
        hasher = self._hashes.taken(_upload_name(project, address, tags), offset)
        if end == size:
            return self._completed(project, address, pieces, data, hasher)
        tag = self._bucket.put_new(f"{self._parts(project, address)}/{PIECES}/{offset:020d}", data) if data else ""
        if data and not tag:  # somebody else sends it too; or an answer was lost
            there = self.received(project, address)
            if there != end:
                raise Conflict(f"another piece of this blob begins at byte {offset}", received=there)
        elif hasher is not None:
            hasher.update(data)
            self._hashes.remember(_upload_name(project, address, [*tags, *([tag] if tag else [])]), end, hasher)
        return end

    def _completed(
        self, project: str, address: str, pieces: Sequence[Object], last: bytes, hasher: hashlib._Hash | None
    ) -> int:
        """Checks what has arrived with its last piece, and makes it the blob."""
        folder = self._parts(project, address)
        parts = tuple(_Part(one.key.removeprefix(f"{folder}/"), one.size_bytes) for one in pieces)
        size = sum(part.size_bytes for part in parts) + len(last)
        try:
            if hasher is None:
                hasher = hashlib.sha256()
                for chunk in self._read(folder, parts):
                    hasher.update(chunk)
            hasher.update(last)
            _require(address, hasher.hexdigest())
            if pieces and size >= LEAST_BYTES * (len(pieces) + 1) and len(last) <= PART_BYTES:
                name = f"{PIECES}/{size - len(last):020d}{LAST}"
                self._bucket.put(f"{folder}/{name}", last)
                self._named(project, address, _Parts(PIECES, (*parts, _Part(name, len(last)))))
            else:
                chunks = itertools.chain(self._read(folder, parts), (last,))
                self.put(project, address, io.BufferedReader(_Joined(chunks)))
                self._give_up([one.key for one in pieces])
        except (Absent, InvalidRequest) as error:
            if (whole := self._whole(project, address)) is not None:
                return whole  # somebody else has completed it meanwhile
            if isinstance(error, Absent):
                raise Conflict("what had arrived of the blob was removed", received=0) from None
            self._bucket.delete([one.key for one in pieces])
            raise
        return size

    def _read(self, folder: str, parts: Iterable[_Part]) -> Iterator[bytes]:
        """Yields what parts hold, the next ones under way meanwhile. Raises Absent for one that is gone."""

        def get(part: _Part) -> bytes:
            return self._bucket.get(f"{folder}/{part.key}") if part.key else ZEROS[: part.size_bytes]

        return self._bucket.each(get, parts, ahead=PARTS_AT_ONCE, shared=self._read_ahead)

    def _pieces(self, project: str, address: str) -> list[Object]:
        """Returns the pieces that have arrived, up to the first gap. What is nearly given up is removed instead."""
        found = [
            one
            for one in self._bucket.objects(f"{self._parts(project, address)}/{PIECES}")
            if not one.key.endswith(LAST)
        ]
        if found and time.time() - max(one.modified_at for one in found) / 1e9 > KEPT_S - SAFETY_S:
            self._bucket.delete([one.key for one in found])
            return []
        end, pieces = 0, list[Object]()
        for one in found:
            if int(one.key.rpartition("/")[2]) != end:
                break
            pieces.append(one)
            end += one.size_bytes
        return pieces

    def stored_bytes(self, project: str) -> int:
        """See Blobs."""
        return sum(one.size_bytes for one in self.listed(project))

    def listed(self, project: str) -> Iterator[Listed]:
        """See Blobs."""
        folder = self._folder(project)
        in_parts = {one.key.split("/")[2] for one in self._bucket.objects(f"{folder}/parts")}
        for one in self._bucket.objects(f"{folder}/sha256"):
            digest = "".join(one.key.split("/")[2:])
            size = (self._whole(project, f"sha256:{digest}") or 0) if digest in in_parts else one.size_bytes
            if len(digest) == 64:
                yield Listed(f"sha256:{digest}", size, one.modified_at)

    def condemned(self, project: str) -> Condemned:
        """See Blobs."""
        return self._condemnation.now(project)

    def condemn(self, project: str, addresses: Collection[str], at: int) -> None:
        """See Blobs."""
        self._condemnation.set(project, addresses, at)

    def _load_condemned(self, project: str) -> bytes | None:
        try:
            return self._bucket.get(f"{CONDEMNED}/{self._folder(project)}")
        except Absent:
            return None

    def _save_condemned(self, project: str, data: bytes) -> None:
        self._bucket.put(f"{CONDEMNED}/{self._folder(project)}", data)

    def condemning(self) -> tuple[str, ...]:
        """See Blobs."""
        return tuple(one.key.rpartition("/")[2] for one in self._bucket.objects(CONDEMNED))

    def remove(self, project: str, addresses: Collection[str]) -> int:
        """See Blobs. A list goes before its parts."""
        sizes = [self._whole(project, address) for address in addresses]
        self._bucket.delete([self._key(project, address) for address in addresses])
        large = [address for address, size in zip(addresses, sizes, strict=True) if (size or 0) > PART_BYTES]
        self._bucket.delete(
            [one.key for address in large for one in self._bucket.objects(self._parts(project, address))]
        )
        return sum(size or 0 for size in sizes)

    def sweep(self) -> None:
        """See Blobs: parts that no list names, of uploads that nothing was added to for long."""
        uploads: dict[tuple[str, str, str], list[Object]] = defaultdict(list)
        for project in filter(_NAME.fullmatch, self._bucket.folders()):
            for one in self._bucket.objects(f"{project}/parts"):
                _, _, digest, upload, _ = one.key.split("/")
                uploads[project, digest, upload].append(one)
        for (project, digest, upload), objects in uploads.items():
            if time.time() - max(one.modified_at for one in objects) / 1e9 > KEPT_S:
                try:
                    kept = self._found(project, f"sha256:{digest}")
                except Absent:
                    kept = b""
                if isinstance(kept, bytes) or kept.upload != upload:
                    self._bucket.delete([one.key for one in objects])

    def _found(self, project: str, address: str) -> bytes | _Parts:
        """Returns a blob's bytes, or the list of its parts; what is neither is damaged. Raises Absent."""
        data = self._bucket.get(self._key(project, address))
        if address_of(data) == address:
            return data
        try:
            return _Parts.decoded(data)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self.damaged(project, address) from None

    def _whole(self, project: str, address: str) -> int | None:
        """Returns a whole blob's size."""
        try:
            found = self._found(project, address)
        except (Absent, DataDamaged):
            return None
        return len(found) if isinstance(found, bytes) else found.size_bytes

    def open(self, project: str, address: str) -> BinaryIO:
        """See Blobs."""
        try:
            found = self._found(project, address)
        except Absent:
            raise NotFound(f"project {project} has no blob {address}") from None
        if isinstance(found, bytes):
            return io.BytesIO(found)
        joined = _Joined(_until_gone(self._read(self._parts(project, address), found.parts)))
        checked = Checked(joined, found.size_bytes, address, lambda: self._damaged(project, address, found))
        return io.BufferedReader(checked, PART_BYTES)

    def read(self, project: str, address: str) -> bytes:
        """See Blobs."""
        with self.open(project, address) as file:
            data = file.read(MAX_NODE_BYTES + 1)
        if len(data) > MAX_NODE_BYTES:
            raise TooLarge(f"blob {address} is larger than {MAX_NODE_BYTES} bytes")
        return data

    def _damaged(self, project: str, address: str, read: _Parts) -> DataDamaged:
        """Does so, unless it was removed while it was read, and perhaps sent again: that is as it should be."""
        with contextlib.suppress(Absent):
            if self._found(project, address) == read:
                return self.damaged(project, address)
        return DataDamaged(
            f"blob {address} of project {project} was removed while it was read",
            next_step="read it from the beginning again",
        )

    def damaged(self, project: str, address: str) -> DataDamaged:
        """Sets a damaged blob aside, so that it can be sent again, and returns the error to raise."""
        key = self._key(project, address)
        aside = f"{self._folder(project)}/damaged/{address.removeprefix('sha256:')}"
        self._bucket.rename(key, aside)
        self._wholeness.forget(project)
        return DataDamaged(
            f"blob {address} of project {project} is damaged in {self._bucket.place}; it was set aside as {aside}"
        )


def _upload_name(project: str, address: str, tags: Sequence[str]) -> str:
    """Names an upload in pieces by what its pieces are: those of another server may be others at the same places."""
    return f"{project}~{address}~{hashlib.sha256(' '.join(tags).encode()).hexdigest()}"


def _until_gone(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields pieces until one is gone: who counts and hashes them sees that it is."""
    with contextlib.suppress(Absent):
        yield from pieces


def _require(address: str, digest: str) -> None:
    if address != "sha256:" + digest:
        raise InvalidRequest(f"the bytes sent are sha256:{digest}, not {address}; nothing was stored")


def _filled(data: BinaryIO) -> bytes:
    """Returns the next PART_BYTES of a file that may give fewer at once; fewer only at its end."""
    return _all_of(data, PART_BYTES - 1, PART_BYTES)


def _all_of(piece: BinaryIO, most: int, step: int = PART_BYTES) -> bytes:
    """Returns what there is to read, and no more than one byte past ``most``."""
    chunks, left = list[bytes](), max(most, 0) + 1
    while left and (chunk := piece.read(min(left, step))):
        chunks.append(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
