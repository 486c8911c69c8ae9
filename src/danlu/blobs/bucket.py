"""A bucket of an S3-compatible store: the only use of obstore. Objects have at most some MiB and are never changed.

All that is asked of a store: an object that is put is whole or absent, ``If-None-Match: *`` is honoured, and who lists or
reads after a put sees it. Each request is bounded in time, and repeated for a bounded time where the store fails.
"""

from __future__ import annotations

import configparser
import contextlib
import datetime
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from danlu.domain.diagnosis import Check, fail, ok
from danlu.errors import DanluError, PlatformError, StorageFull, StorageUnavailable

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store


A = TypeVar("A")
B = TypeVar("B")
CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 10.0
MAX_RETRIES: Final = 8
FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 2.0
AT_ONCE: Final = 32
LISTED_AT_ONCE: Final = 1000
DELETED_AT_ONCE: Final = 100
MAX_REASON: Final = 300
CREDENTIALS_READ_S: Final = 60.0
PROBE: Final = "danlu-check"
INSTALL: Final = "pip install 'danlu[s3]'"
PASSED_ON: Final = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID",
)  # fmt: skip
"""Variables that obstore is given as they are."""
_URL: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/[A-Za-z0-9._/-]{0,200})?")
_CODE: Final = re.compile(r"<Code>([^<]{1,80})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,200})</Message>")
_WHERE: Final = re.compile(r"Generic S3 error: | https?://\S+|Error performing list request: ")
_KIND: Final = re.compile(r"\bkind: (Connect|Timeout|Interrupted|Request|Decode)\b")
_FULL: Final = ("InsufficientStorage", "XMinioStorageFull", "StorageFull", "QuotaExceeded", "507 ")
_PERMISSION: Final = (
    "403 Forbidden",
    "401 Unauthorized",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "UserNotFound",
    "Signature",
)


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Where blobs are kept: ``s3://BUCKET/PREFIX``, and how it is reached: by the usual ``AWS_*`` variables."""

    bucket: str
    prefix: str = ""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @classmethod
    def parsed(cls, url: str, environ: Mapping[str, str]) -> BucketPlace:
        """Returns the place that a URL names.

        Raises:
            PlatformError: it names none.
        """
        found = _URL.fullmatch(url)
        if found is None:
            raise PlatformError(
                f"DANLU_BLOBS={url[:200]} does not name a bucket", next_step="s3://BUCKET or s3://BUCKET/PREFIX"
            )
        return cls(found[1], (found[2] or "").strip("/"), environ)

    @property
    def endpoint(self) -> str:
        """Returns the store's URL; empty: Amazon's."""
        return self.environ.get("AWS_ENDPOINT_URL_S3") or self.environ.get("AWS_ENDPOINT_URL") or ""


class Object(NamedTuple):
    """What a bucket holds under a key. ``modified_at``: ns UTC, by the store's clock. ``tag``: of its content (ETag)."""

    key: str
    size_bytes: int
    modified_at: int
    tag: str


class Absent(Exception):
    """There is no object under a key."""


class Bucket:
    """Objects by key, below a prefix of a bucket."""

    def __init__(self, place: BucketPlace, *, retry_s: float = RETRY_S, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.place = place
        self._retry_s = retry_s
        self._store = _open(place, retry_s, timeout_s)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="bucket")

    def each(
        self,
        work: Callable[[A], B],
        things: Iterable[A],
        *,
        ahead: int = AT_ONCE,
        shared: threading.Semaphore | None = None,
    ) -> Iterator[B]:
        """Yields what ``work`` returns of each thing, in their order, with so many at the same time.

        Where one fails, what was begun is waited for before its error is raised.

        Args:
            work: what is done.
            things: to what.
            ahead: how many are begun before the first is taken.
            shared: how many of all who share it are begun beside each one's next.
        """
        waiting, borrowed = list[Any](), 0
        try:
            for thing in things:
                while waiting and (len(waiting) >= ahead or not (shared is None or shared.acquire(blocking=False))):
                    yield waiting.pop(0).result()
                    borrowed = _given_back(shared, borrowed)
                borrowed += 1 if waiting and shared is not None else 0
                waiting.append(self._threads.submit(work, thing))
            while waiting:
                yield waiting.pop(0).result()
                borrowed = _given_back(shared, borrowed)
        finally:
            for one in waiting:
                one.cancel() or one.exception()
            while borrowed:
                borrowed = _given_back(shared, borrowed)

    def get(self, key: str) -> bytes:
        """Returns an object's bytes.

        Raises:
            Absent: there is none.
            StorageUnavailable: the store cannot tell.
        """
        import obstore

        return bytes(self._asked(key, lambda: obstore.get(self._store, key).bytes()))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Returns some of an object's bytes, which it must have. Raises as ``get`` does."""
        import obstore

        if not length:
            return b""
        return bytes(self._asked(key, lambda: obstore.get_range(self._store, key, start=start, length=length)))

    def size(self, key: str) -> int | None:
        """Returns an object's size; None where there is none."""
        import obstore

        try:
            return int(self._asked(key, lambda: obstore.head(self._store, key))["size"])
        except Absent:
            return None

    def put_new(self, key: str, data: bytes | memoryview) -> str:
        """Stores an object unless there is one under the key; returns its tag, or nothing. It is durable then.

        Where an answer was lost it may have been stored, and nothing is returned.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> str:
            try:
                return obstore.put(self._store, key, data, mode="create", use_multipart=False)["e_tag"] or "?"
            except (AlreadyExistsError, PreconditionError):
                return ""

        until, pause = time.monotonic() + self._retry_s, FIRST_PAUSE_S
        while True:  # obstore does not repeat what has a condition; here the key says what there is to be
            try:
                return self._asked(key, put)
            except Absent:
                raise StorageUnavailable(f"{self.place} does not exist any more") from None
            except StorageUnavailable as error:
                if error.details.get("refused") or time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    def put(self, key: str, data: bytes) -> None:
        """Stores an object, in the place of one that is there."""
        import obstore

        self._asked(key, lambda: obstore.put(self._store, key, data, use_multipart=False))

    def rename(self, key: str, other: str) -> None:
        """Moves an object. Absent is success."""
        import obstore

        with contextlib.suppress(Absent):
            self._asked(key, lambda: obstore.copy(self._store, key, other))
            self.delete([key])

    def objects(self, prefix: str) -> Iterator[Object]:
        """Yields the objects below a prefix, a folder in form, in the order of their keys."""
        import obstore

        pages = iter(obstore.list(self._store, prefix, chunk_size=LISTED_AT_ONCE))
        while True:
            page = self._asked(prefix, lambda: next(pages, None))
            if page is None:
                return
            for one in page:
                modified_at = int(one["last_modified"].timestamp() * 1e9)
                yield Object(str(one["path"]), int(one["size"]), modified_at, one["e_tag"] or "?")

    def folders(self) -> list[str]:
        """Returns the names at the top."""
        import obstore

        return list(self._asked("", lambda: obstore.list_with_delimiter(self._store)["common_prefixes"]))

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects. Absent is success."""
        import obstore

        def delete(some: Sequence[str]) -> None:
            with contextlib.suppress(Absent):
                self._asked(some[0], lambda: obstore.delete(self._store, list(some)))

        for _ in self.each(delete, (keys[at : at + DELETED_AT_ONCE] for at in range(0, len(keys), DELETED_AT_ONCE))):
            pass

    def check(self) -> None:
        """Stores an object, reads, lists and removes it again.

        Raises:
            PlatformError: the bucket is not there or cannot be written to, or the store does not do what is asked of it.
        """
        key, data = f"{PROBE}/{secrets.token_hex(8)}", b"danlu"
        try:
            first, second = self.put_new(key, data), self.put_new(key, data)
            found, listed = self.get(key), [one.key for one in self.objects(PROBE)]
            self.delete([key])
        except (DanluError, Absent) as error:
            step = getattr(error, "next_step", "") or _STEP
            raise PlatformError(f"{self.place} cannot be used: {error}", next_step=step) from error
        if not first or second:
            raise PlatformError(
                f"{self.place}: the store does not honour If-None-Match: two servers could overwrite each other's data",
                next_step="take a store, or a version of it, that knows conditional writes",
            )
        if found != data or key not in listed:
            raise PlatformError(
                f"{self.place}: what was stored there just now is not listed, or not what was stored",
                next_step="take a store that is strongly consistent",
            )

    def _asked(self, key: str, ask: Callable[[], A]) -> A:
        """Returns the store's answer, or raises what its refusal means."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            return ask()
        except (AlreadyExistsError, PreconditionError):
            raise
        except (FileNotFoundError, PermissionError, BaseError, OSError, ValueError) as error:
            text = str(error)
            code = _CODE.search(text)
            if isinstance(error, FileNotFoundError) and (code is None or code[1] == "NoSuchKey"):
                raise Absent(key) from None  # the answer to HEAD has no body that could say more
            if any(word in text for word in _FULL):
                raise StorageFull(f"{self.place} takes no more: {_reason(text)}; nothing was stored") from error
            refused = any(word in text for word in _PERMISSION)
            missing = "NoSuchBucket" in text
            step = _UNREACHED if "kind: Connect" in text else StorageUnavailable.step
            raise StorageUnavailable(
                f"{self.place} does not answer as it should: {_reason(text)}",
                next_step=_REFUSED if refused else _MISSING if missing else step,
                **({"refused": True} if refused or missing else {}),
            ) from error


def _given_back(shared: threading.Semaphore | None, borrowed: int) -> int:
    """Gives one back, if any was borrowed; returns how many are left."""
    if shared is not None and borrowed:
        shared.release()
    return max(0, borrowed - 1)


def open_bucket(url: str, environ: Mapping[str, str]) -> Bucket:
    """Returns the bucket that a URL names, tried. Raises PlatformError as ``Bucket.check`` does."""
    bucket = Bucket(BucketPlace.parsed(url, environ))
    bucket.check()
    return bucket


def bucket_checks(url: str | None, environ: Mapping[str, str]) -> Iterator[Check]:
    """Yields whether the bucket can be used, for ``danlu doctor``; nothing where there is none."""
    if url is None:
        return
    try:
        bucket = open_bucket(url, environ)
    except PlatformError as error:
        yield fail("blobs", error.message, error.next_step)
        return
    place = bucket.place
    yield ok("blobs", f"{place} at {place.endpoint or 'Amazon S3'}: an object was stored, read, listed and removed")


_STEP: Final = "look at DANLU_BLOBS and the AWS_* variables of the server: danlu doctor tells more"
_REFUSED: Final = (
    "renew the server's credentials for the bucket (AWS_*), or give them what docs/how-to/object-storage.md lists"
)
_UNREACHED: Final = "is it running, and AWS_ENDPOINT_URL of the server right? Then try again"
_MISSING: Final = "make the bucket, or correct DANLU_BLOBS"


def _reason(text: str) -> str:
    """Returns the part of obstore's message that says why."""
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        return f"{code[1]}{': ' + message[1] if message else ''}"
    first, _, debugging = text.partition("\n\n")
    kind = _KIND.search(debugging)
    first = re.sub(r"\s+", " ", _WHERE.sub("", first)).strip()
    return first[:MAX_REASON] + (f" ({kind[1]})" if kind else "")


def _open(place: BucketPlace, retry_s: float, timeout_s: float) -> S3Store:
    try:
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise PlatformError(f"{place} needs a package that is not installed", next_step=INSTALL) from error
    try:
        return _configured(place, retry_s, timeout_s)
    except (BaseError, OSError, ValueError) as error:
        raise PlatformError(f"{place} cannot be used: {_reason(str(error))}", next_step=_STEP) from error


def _configured(place: BucketPlace, retry_s: float, timeout_s: float) -> S3Store:
    from obstore.store import S3Store

    environ, endpoint = place.environ, place.endpoint
    config = {name.lower(): environ[name] for name in PASSED_ON if environ.get(name)}
    if "aws_region" not in config and "aws_default_region" not in config:
        config["aws_region"] = "us-east-1"
    if endpoint:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"the endpoint {endpoint[:200]!r} (AWS_ENDPOINT_URL) is not http://HOST or https://HOST")
        if environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true"):
            endpoint = url._replace(netloc=f"{place.bucket}.{url.netloc}").geturl()
        config["aws_endpoint_url"] = config["aws_endpoint_url_s3"] = endpoint
    options: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": datetime.timedelta(seconds=CONNECT_TIMEOUT_S),
        "timeout": datetime.timedelta(seconds=timeout_s),
    }
    if environ.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(environ["AWS_CA_BUNDLE"]).read_bytes()
    provider = None
    if "aws_access_key_id" not in config and environ.get("AWS_SHARED_CREDENTIALS_FILE"):
        provider = _FromFile(Path(environ["AWS_SHARED_CREDENTIALS_FILE"]), environ.get("AWS_PROFILE", "default"))
        provider()
    return S3Store(
        place.bucket, prefix=place.prefix or None, config=config, client_options=options,  # type: ignore[arg-type]
        retry_config={
            "max_retries": MAX_RETRIES, "retry_timeout": datetime.timedelta(seconds=retry_s),
            "backoff": {"init_backoff": datetime.timedelta(seconds=FIRST_PAUSE_S),
                        "max_backoff": datetime.timedelta(seconds=LAST_PAUSE_S), "base": 2},
        }, credential_provider=provider,
    )  # fmt: skip


class _FromFile:
    """Credentials of a file in AWS's form, read again each minute: who renews them there needs no restart."""

    def __init__(self, path: Path, profile: str) -> None:
        self._path, self._profile = path, profile

    def __call__(self) -> S3Credential:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            with self._path.open(encoding="utf-8") as file:
                parser.read_file(file)
            found = parser[self._profile]
            return {
                "access_key_id": found["aws_access_key_id"],
                "secret_access_key": found["aws_secret_access_key"],
                "token": found.get("aws_session_token"),
                "expires_at": datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=CREDENTIALS_READ_S),
            }
        except (OSError, configparser.Error, KeyError) as error:
            wrong = type(error).__name__  # what configparser says may hold a line of the file
            raise PlatformError(
                f"{self._path} (AWS_SHARED_CREDENTIALS_FILE) has no key of profile {self._profile}: {wrong}",
                next_step="a section [PROFILE] with aws_access_key_id and aws_secret_access_key",
            ) from None
