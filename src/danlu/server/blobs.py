"""Opens the place where a platform's bytes are kept, of each kind."""

from __future__ import annotations

from danlu.blobs.base import Blobs
from danlu.blobs.bucket import open_bucket
from danlu.blobs.bucket_blobs import BucketBlobs
from danlu.blobs.bucket_streams import BucketStreams
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import Streams
from danlu.config import Settings


def open_blobs(settings: Settings) -> tuple[Blobs, Streams, str]:
    """Returns where blobs and streams are kept, and what that is called; a bucket was tried.

    Raises:
        PlatformError: it cannot be used.
    """
    if settings.blobs is not None:
        bucket = open_bucket(settings.blobs, settings.aws)
        return BucketBlobs(bucket), BucketStreams(bucket), str(bucket.place)
    folder = settings.home / "blobs"
    blobs = LocalBlobs(folder)
    blobs.start()
    return blobs, LocalStreams(folder), str(folder)
