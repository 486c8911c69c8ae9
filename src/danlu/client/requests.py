"""Requests, built purely: an operation and its values become a method, an address and bytes. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import quote, urlencode

from pydantic import BaseModel, TypeAdapter, ValidationError

from danlu import __version__
from danlu.api import BY_ID, Operation
from danlu.errors import (
    Conflict,
    DanluError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    PlatformError,
    TooLarge,
    TooManyRequests,
    Unavailable,
    from_problem,
)

VERSION_HEADER: Final = "Danlu-Version"
"""Each answer of a server says its version in it."""
REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
REPEATABLE_OPERATIONS: Final = frozenset(
    {"jobs.stop", "jobs.retry", "blobs.missing", "blobs.pack", "blobs.splice", "environments.build", "platform.stop"}
)
"""Their POST done twice is done once: by an id that the client made, by content, or by nature."""

_BY_STATUS: Final[Mapping[int, type[DanluError]]] = {
    400: InvalidRequest,
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class Deflated(bytes):
    """A body that is compressed: zlib's format, which HTTP calls deflate."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be sent. ``target`` is a path and a query."""

    operation: Operation
    method: str
    target: str
    content: bytes | None = None
    content_type: str = "application/json"

    @property
    def headers(self) -> dict[str, str]:
        """What its body is."""
        if self.content is None:
            return {}
        encoding = {"Content-Encoding": "deflate"} if isinstance(self.content, Deflated) else {}
        return {"Content-Type": self.content_type, **encoding}

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice is harmless."""
        return self.method in REPEATABLE or self.operation.id in REPEATABLE_OPERATIONS


def build(
    operation_id: str,
    path: Mapping[str, str] | None = None,
    *,
    query: BaseModel | None = None,
    body: BaseModel | bytes | None = None,
) -> Request:
    """Returns the request of an operation.

    Raises:
        InvalidRequest: a value cannot stand in a path.
    """
    operation = BY_ID[operation_id]
    target = operation.path
    for name, value in (path or {}).items():
        if value in ("", ".", ".."):
            raise InvalidRequest(f"{value!r} names no {name}")
        target = target.replace("{" + name + "}", quote(value, safe=":"))
    if query is not None and (fields := query.model_dump(mode="json", exclude_defaults=True)):
        target += "?" + urlencode(fields, doseq=True)
    if isinstance(body, bytes):
        return Request(operation, operation.method, target, body, "application/octet-stream")
    content = None if body is None else body.model_dump_json(exclude_defaults=True).encode()
    return Request(operation, operation.method, target, content)


def require_path(target: str) -> str:
    """Returns a path that is one: appended to an address it stays on that address. Else raises InvalidRequest."""
    if not target.startswith("/") or target.startswith("//") or not target.isprintable():
        raise InvalidRequest(f"{target!r} is not a path", next_step="a path begins with /v1/: danlu api GET /v1/jobs")
    return target


def parse(operation: Operation, data: bytes | str, url: str) -> Any:
    """Returns an operation's answer. Fields that only a newer server knows are passed over.

    Raises:
        PlatformError: it is not such an answer.
    """
    try:
        return _adapter(operation.id).validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise PlatformError(
            f"{url} answered {operation.id} with something else than this version of danlu expects: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            next_step="is that a danlu platform, and of the same version? danlu status",
        ) from error


@cache
def _adapter(operation_id: str) -> TypeAdapter[Any]:
    return TypeAdapter(BY_ID[operation_id].returns)


def failure(status: int, content: bytes, url: str, *, version: str = "") -> DanluError:
    """Returns the error that an answer stands for; says so where it came from a server of another ``version``."""
    error = _failure(status, content, url)
    if version and version != __version__:
        differ = f"the versions differ: this client {__version__}, the server {version[:40]}"
        error.next_step = f"{error.next_step}\n{differ}" if error.next_step else differ
    return error


def _failure(status: int, content: bytes, url: str) -> DanluError:
    problem: Any = None
    try:
        problem = TypeAdapter(dict[str, Any]).validate_json(content)
    except ValidationError:
        cls = _BY_STATUS.get(status, DanluError)
        said = " ".join(content[:300].decode(errors="replace").split())
        return cls(f"{url} answered {status}" + (f": {said}" if said else ""))
    error = from_problem(problem, status)
    if problem.get("request_id"):
        error.details.setdefault("request_id", problem["request_id"])
    if status == 401:
        error.message = f"401 from {url}: {error.message}"
        error.args = (error.message,)
    return error
