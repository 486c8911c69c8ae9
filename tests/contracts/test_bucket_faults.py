"""A store that fails: every fault is one error with its reason, nothing is half there, and all goes on once it ends."""

from __future__ import annotations

import io
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.blobs import bucket as buckets
from danlu.blobs import bucket_blobs
from danlu.blobs.bucket import Bucket, BucketPlace, bucket_checks
from danlu.blobs.bucket_blobs import PART_BYTES, BucketBlobs
from danlu.blobs.bucket_streams import BucketStreams
from danlu.blobs.streams import StreamKey
from danlu.domain.diagnosis import Verdict
from danlu.domain.trees import address_of
from danlu.errors import NotFound, PlatformError, StorageFull, StorageUnavailable
from tests.faults import FaultyProxy, answer
from tests.s3_server import S3Server
from tests.stores import Place

P = "default"
KEY = StreamKey(P, "j0-1", "main-0", "log")
RETRY_S, TIMEOUT_S = 1.0, 1.0
BOUND_S = 20.0
LARGE = random.Random(1).randbytes(3 * PART_BYTES + 1)
SMALL = b"small"


def refuses(proxy: FaultyProxy) -> None:
    proxy.refuses = True


def silent(proxy: FaultyProxy) -> None:
    proxy.silent = True


def cut(proxy: FaultyProxy) -> None:
    proxy.cut_after = 100_000


def says(status: str, code: str) -> Callable[[FaultyProxy], None]:
    def fault(proxy: FaultyProxy) -> None:
        proxy.says = answer(status, code)

    return fault


FAULTS = {
    "refuses": refuses, "silent": silent, "500": says("500 Internal Server Error", "InternalError"),
    "503": says("503 Slow Down", "SlowDown"), "expired": says("403 Forbidden", "ExpiredToken"),
    "no bucket": says("404 Not Found", "NoSuchBucket"), "400": says("400 Bad Request", "Something"),
}  # fmt: skip


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(*s3_server.address) as between:
        yield between


@pytest.fixture
def bucket(proxy: FaultyProxy, place: Place) -> Bucket:
    """The place, reached through the proxy."""
    environ = {**place.place.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
    through = BucketPlace(place.place.bucket, place.place.prefix, environ)
    return Bucket(through, retry_s=RETRY_S, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_that_says_why_and_ends(
    bucket: Bucket, proxy: FaultyProxy, place: Place, fault: str
) -> None:
    blobs, streams = BucketBlobs(bucket), BucketStreams(bucket)
    there, address = address_of(SMALL), address_of(LARGE)
    blobs.put(P, there, io.BytesIO(SMALL))
    streams.append(KEY, 0, b"one")
    before = place.names()
    proxy.fail(FAULTS[fault])
    for ask in (
        lambda: blobs.read(P, there), lambda: list(blobs.listed(P)),
        lambda: blobs.put(P, address_of(b"new"), io.BytesIO(b"new")), lambda: blobs.put(P, address, io.BytesIO(LARGE)),
        lambda: blobs.put_many(P, [(address_of(b"new"), b"new")]), lambda: blobs.received(P, address),
        lambda: blobs.append(P, address, io.BytesIO(LARGE[:9]), offset=0, size=len(LARGE)),
        lambda: streams.append(KEY, 3, b"two"), lambda: streams.read(KEY, 0, 10), lambda: streams.size(KEY),
    ):  # fmt: skip
        begun = time.monotonic()
        with pytest.raises(StorageUnavailable) as caught:
            ask()
        assert time.monotonic() - begun < BOUND_S
        assert str(place.place) in caught.value.message
        assert caught.value.status == 503
        assert caught.value.next_step
        if fault == "expired":
            assert "ExpiredToken" in caught.value.message or "403 Forbidden" in caught.value.message  # HEAD: no body
            assert "credentials" in caught.value.next_step
    if fault != "silent":  # there the store heard everything
        assert place.names() == before
    proxy.well()
    assert blobs.put(P, address, io.BytesIO(LARGE))[0] <= 1
    with blobs.open(P, address) as file:
        assert file.read() == LARGE
    assert streams.append(KEY, 0, b"onetwo") == 6
    assert place.streams().read(KEY, 0, 10) == b"onetwo"
    assert bucket.place.environ["AWS_SECRET_ACCESS_KEY"] not in repr(caught.value) + repr(bucket.place)


def test_an_upload_that_is_cut_is_not_there_and_the_next_one_is(
    bucket: Bucket, proxy: FaultyProxy, place: Place
) -> None:
    blobs, address = BucketBlobs(bucket), address_of(LARGE)
    proxy.fail(cut)
    with pytest.raises(StorageUnavailable):
        blobs.put(P, address, io.BytesIO(LARGE))
    assert proxy.faults
    with pytest.raises(NotFound):
        place.blobs().open(P, address)
    assert place.blobs().missing(P, [address]) == (address,)
    proxy.well()
    assert blobs.put(P, address, io.BytesIO(LARGE)) == (1, len(LARGE))
    with place.blobs().open(P, address) as file:
        assert file.read() == LARGE


def test_a_fault_that_ends_soon_is_not_noticed(place: Place, proxy: FaultyProxy) -> None:
    environ = {**place.place.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
    through = BucketPlace(place.place.bucket, place.place.prefix, environ)
    blobs = BucketBlobs(Bucket(through, retry_s=30.0, timeout_s=TIMEOUT_S))
    for fault in (cut, refuses, silent, FAULTS["500"], FAULTS["503"]):
        data = random.Random(fault.__name__).randbytes(2 * PART_BYTES)
        proxy.failed.clear()
        proxy.fail(fault)
        ended = threading.Thread(target=lambda: (proxy.failed.wait(30), proxy.well()))
        ended.start()
        blobs.put(P, address_of(data), io.BytesIO(data))
        ended.join()
        with blobs.open(P, address_of(data)) as file:
            assert file.read() == data
        if fault is silent:
            proxy.well()


def test_a_reader_that_is_cut_hears_of_it(bucket: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(bucket_blobs), "PARTS_AT_ONCE", 1)
    blobs, address = BucketBlobs(bucket), address_of(LARGE)
    blobs.put(P, address, io.BytesIO(LARGE))
    got = bytearray()

    def read() -> None:
        with blobs.open(P, address) as file:
            while chunk := file.read(100_000):
                got.extend(chunk)
                proxy.fail(refuses)

    with pytest.raises(StorageUnavailable):
        read()
    assert LARGE.startswith(got)
    assert len(got) < len(LARGE)


def test_a_full_store_is_full(bucket: Bucket, proxy: FaultyProxy) -> None:
    proxy.fail(says("507 Insufficient Storage", "InsufficientStorage"))
    with pytest.raises(StorageFull, match="nothing was stored"):
        BucketBlobs(bucket).put(P, address_of(SMALL), io.BytesIO(SMALL))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bucket": "absent"}, "NoSuchBucket"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "cannot be used"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Connect"),
    ],
)
def test_a_wrong_place_is_refused(place: Place, change: dict[str, str], why: str) -> None:
    environ = {**place.place.environ, **{name: value for name, value in change.items() if name != "bucket"}}
    wrong = Bucket(BucketPlace(change.get("bucket", "danlu"), "", environ), retry_s=RETRY_S, timeout_s=TIMEOUT_S)
    with pytest.raises(PlatformError, match=why) as caught:
        wrong.check()
    assert caught.value.next_step
    (told,) = bucket_checks(f"s3://{change.get('bucket', 'danlu')}", environ)
    assert told.verdict is Verdict.FAIL


def test_a_right_place_is_well(place: Place) -> None:
    place.bucket.check()
    assert place.names() == []
    (told,) = bucket_checks(f"s3://danlu/{place.place.prefix}", place.place.environ)
    assert told.verdict is Verdict.OK
    assert list(bucket_checks(None, {})) == []


@pytest.mark.parametrize("url", ["", "s3://", "danlu", "s3://A", "s3://danlu/../x y", "https://host/danlu", "s3://d\n"])
def test_only_a_bucket_is_one(url: str) -> None:
    with pytest.raises(PlatformError, match="does not name a bucket"):
        BucketPlace.parsed(url, {})


def test_what_is_not_installed_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(PlatformError, match="s3://danlu/") as caught:
        Bucket(place.place)
    assert caught.value.next_step == "pip install 'danlu[s3]'"


@pytest.mark.parametrize("change", [{"AWS_CA_BUNDLE": "/absent"}, {"AWS_ENDPOINT_URL": "not a url"}])
def test_wrong_variables_are_refused(place: Place, change: dict[str, str]) -> None:
    with pytest.raises(PlatformError, match="cannot be used") as caught:
        Bucket(BucketPlace("danlu", "", {**place.place.environ, **change}), retry_s=RETRY_S).check()
    assert caught.value.next_step


def test_a_prefix_is_a_place_of_its_own(s3_server: S3Server) -> None:
    places = [BucketPlace.parsed(f"s3://danlu/{name}/", s3_server.environment()) for name in ("one", "one/two")]
    one, two = (BucketBlobs(Bucket(place)) for place in places)
    one.put(P, address_of(SMALL), io.BytesIO(SMALL))
    assert two.missing(P, [address_of(SMALL)]) == (address_of(SMALL),)
    assert str(places[0]) == "s3://danlu/one"


def test_renewed_credentials_are_taken_from_their_file(
    place: Place, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    environ = {name: value for name, value in place.place.environ.items() if "KEY" not in name}
    environ |= {"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "danlu"}

    def write(secret: str) -> None:
        file.write_text(f"[danlu]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {secret}\n")

    monkeypatch.setitem(vars(buckets), "CREDENTIALS_READ_S", 0.0)
    write("wrong")
    bucket = Bucket(BucketPlace("danlu", place.place.prefix, environ), retry_s=RETRY_S, timeout_s=TIMEOUT_S)
    with pytest.raises(PlatformError, match="SignatureDoesNotMatch"):
        bucket.check()
    write(s3_server.secret_key)
    bucket.check()
    file.unlink()
    with pytest.raises(PlatformError, match="AWS_SHARED_CREDENTIALS_FILE"):
        Bucket(BucketPlace("danlu", "", environ))
