"""A bucket as the platform uses it, beside boto3 and obstore's own multipart upload on the same server, and beside the disk.

The server is the one of the tests, versitygw over a folder of this machine: it shares the cores with its clients. It needs
boto3, which Danlu does not: pip install boto3.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.platform import Figure, Times, timed
from danlu.blobs.base import Blobs
from danlu.blobs.bucket import Bucket, BucketPlace
from danlu.blobs.bucket_blobs import BucketBlobs
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import address_of

LARGE_BYTES, SMALL_COUNT, SMALL_BYTES = 2**30, 10_000, 4096
TURNS, THREADS, CHUNK_BYTES = 3, 32, 2**20
P = "default"


class Counter:
    """Data that no store has seen yet: the same bytes, but for the first ones."""

    def __init__(self) -> None:
        self._block, self._number = os.urandom(2**24), 0

    def large(self) -> tuple[str, bytes]:
        self._number += 1
        data = b"".join([self._number.to_bytes(8, "big"), self._block * (LARGE_BYTES // len(self._block))])[
            :LARGE_BYTES
        ]
        return address_of(data), data

    def small(self) -> list[tuple[str, bytes]]:
        self._number += 1
        made = [self._number.to_bytes(8, "big") + number.to_bytes(8, "big") for number in range(SMALL_COUNT)]
        data = [head + self._block[number : number + SMALL_BYTES - 16] for number, head in enumerate(made)]
        return [(address_of(one), one) for one in data]


def drained(file: Any) -> None:
    """Reads all of a file as a server does that passes it on."""
    with file:
        while file.read(CHUNK_BYTES):
            pass


def each(work: Callable[[Any], object], things: list[Any]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, things))


def text(times: Times, amount: float, unit: str) -> str:
    return f"{times.median:.2f} s ({min(times.all):.2f} to {max(times.all):.2f}): {amount / times.median:,.0f} {unit}/s"


def measured(bucket: Blobs, folder: Blobs, client: Any, raw: Any, disk: Path) -> dict[str, Times]:
    """Returns the times of everything, taken in turns."""
    import obstore
    from boto3.s3.transfer import TransferConfig

    make, config = Counter(), TransferConfig(multipart_chunksize=8 * 2**20, max_concurrency=10)
    last: dict[str, Any] = {}

    def put(name: str, store: Callable[[str, bytes], object]) -> Callable[[], float]:
        def work() -> float:
            last[name] = address, data = make.large()
            return timed(lambda: store(address, data))

        return work

    def put_small(name: str, store: Callable[[list[tuple[str, bytes]]], object]) -> Callable[[], float]:
        def work() -> float:
            last[name] = found = make.small()
            return timed(lambda: store(found))

        return work

    def to_disk(_address: str, data: bytes) -> None:
        with (disk / "large").open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    def checked(body: Any) -> None:
        hasher = hashlib.sha256()
        while chunk := body.read(CHUNK_BYTES):
            hasher.update(chunk)

    works: dict[str, Callable[[], float]] = {
        "put": put("put", lambda address, data: bucket.put(P, address, io.BytesIO(data))),
        "put boto3": put("put boto3", lambda address, data: client.upload_fileobj(
            io.BytesIO(data), "danlu", f"b/{address}", Config=config)),
        "put obstore": put("put obstore", lambda address, data: obstore.put(
            raw, f"o/{address}", data, chunk_size=8 * 2**20)),
        "put folder": put("put folder", lambda address, data: folder.put(P, address, io.BytesIO(data))),
        "put disk": put("put disk", to_disk),
        "get": lambda: timed(lambda: drained(bucket.open(P, last["put"][0]))),
        "get boto3": lambda: timed(lambda: checked(
            client.get_object(Bucket="danlu", Key=f"b/{last['put boto3'][0]}")["Body"])),
        "get folder": lambda: timed(lambda: drained(folder.open(P, last["put folder"][0]))),
        "small": put_small("small", lambda found: bucket.put_many(P, found)),
        "small boto3": put_small("small boto3", lambda found: each(
            lambda one: client.put_object(Bucket="danlu", Key=f"s/{one[0]}", Body=one[1]), found)),
        "small folder": put_small("small folder", lambda found: folder.put_many(P, found)),
        "read": lambda: timed(lambda: each(lambda one: bucket.read(P, one[0]), last["small"])),
        "read boto3": lambda: timed(lambda: each(
            lambda one: client.get_object(Bucket="danlu", Key=f"s/{one[0]}")["Body"].read(), last["small boto3"])),
        "read folder": lambda: timed(lambda: each(lambda one: folder.read(P, one[0]), last["small folder"])),
        "missing": lambda: timed(lambda: bucket.missing(P, [address for address, _ in last["small"]])),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            took = work()
            if turn:
                found[name].append(took)
    return {name: Times(tuple(times)) for name, times in found.items()}


def figures() -> list[Figure]:
    """Measures."""
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        raise SystemExit("it is measured against boto3: pip install boto3") from None
    with (
        importlib.import_module("tests.s3_server").S3Server() as server,
        tempfile.TemporaryDirectory(dir="/tmp") as base,
    ):
        server.make_bucket("danlu")
        bucket = Bucket(BucketPlace("danlu", "platform", server.environment()))
        client = boto3.client(
            "s3", endpoint_url=server.endpoint, aws_access_key_id=server.access_key, region_name=server.region,
            aws_secret_access_key=server.secret_key,
            config=importlib.import_module("botocore.config").Config(max_pool_connections=THREADS),
        )  # fmt: skip
        times = measured(BucketBlobs(bucket), LocalBlobs(Path(base) / "blobs"), client, bucket._store, Path(base))
    mib = LARGE_BYTES / 2**20

    def row(name: str, key: str, amount: float, unit: str, *others: str) -> Figure:
        least = times[f"{key} boto3"].median
        peers = "; ".join(f"{other}: {text(times[f'{key} {other}'], amount, unit)}" for other in others)
        limit, least_possible = ("disk", "a file and fsync") if key == "put" else ("folder", "blobs in a folder")
        return Figure(
            name, text(times[key], amount, unit), "≤ 1.1 × boto3", times[key].median <= 1.1 * least, peers,
            f"{least_possible}: {text(times[f'{key} {limit}'], amount, unit)}",
        )  # fmt: skip

    large, small = f"{mib:,.0f} MiB", f"{SMALL_COUNT:,} blobs of 4 KiB"
    return [
        row(f"{large} stored in a bucket", "put", mib, "MiB", "boto3", "obstore"),
        row(f"{large} read from it, checked", "get", mib, "MiB", "boto3"),
        row(f"{small} stored in it", "small", SMALL_COUNT, "blob", "boto3"),
        row(f"{small} read from it, checked", "read", SMALL_COUNT, "blob", "boto3"),
        Figure(
            f"{SMALL_COUNT:,} blobs looked for in it", text(times["missing"], SMALL_COUNT, "blob"), "", True, "", ""
        ),
    ]
