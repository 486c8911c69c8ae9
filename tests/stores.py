"""Where blobs and streams are kept, of each kind: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from danlu.blobs.base import Blobs
from danlu.blobs.bucket import Bucket, BucketPlace
from danlu.blobs.bucket_blobs import BucketBlobs
from danlu.blobs.bucket_streams import BucketStreams
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import SEGMENT_BYTES, Streams
from tests.s3_server import S3Server


class Store(Protocol):
    """A store, and what tests do to it behind its back. Each call of `blobs` or `streams` is another server of it."""

    def blobs(self) -> Blobs: ...

    def streams(self, segment_bytes: int = SEGMENT_BYTES) -> Streams: ...

    def names(self) -> list[str]:
        """Everything in it, by path."""

    def change(self, name: str, how: Callable[[bytes], bytes]) -> None:
        """Damages something."""

    def remove(self, name: str) -> None: ...


class Folder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blobs(self) -> Blobs:
        blobs = LocalBlobs(self.root)
        blobs.start()
        return blobs

    def streams(self, segment_bytes: int = SEGMENT_BYTES) -> Streams:
        return LocalStreams(self.root, segment_bytes=segment_bytes)

    def names(self) -> list[str]:
        return [str(path.relative_to(self.root)) for path in sorted(self.root.rglob("*")) if path.is_file()]

    def change(self, name: str, how: Callable[[bytes], bytes]) -> None:
        path = self.root / name
        path.write_bytes(how(path.read_bytes()))

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class Place:
    """A prefix of its own in a bucket."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.place = BucketPlace(bucket, secrets.token_hex(8), server.environment())
        self.bucket = Bucket(self.place, retry_s=5.0, timeout_s=10.0)

    def blobs(self) -> BucketBlobs:
        return BucketBlobs(self.bucket)

    def streams(self, segment_bytes: int = SEGMENT_BYTES) -> BucketStreams:
        return BucketStreams(self.bucket, segment_bytes=segment_bytes)

    def names(self) -> list[str]:
        return [one.key for folder in self.bucket.folders() for one in self.bucket.objects(folder)]

    def change(self, name: str, how: Callable[[bytes], bytes]) -> None:
        self.bucket.put(name, how(self.bucket.get(name)))

    def remove(self, name: str) -> None:
        self.bucket.delete([name])
