"""Requests to the API server as its administrator, by the standard library: what set-up and tests need of a client."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from tests.kubernetes.cluster import keys, layout

TIMEOUT_S = 30.0
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Refused(Exception):
    """The API server's answer that is no success."""

    def __init__(self, status: int, what: str, body: bytes) -> None:
        super().__init__(f"{what}: {status}: {body.decode(errors='replace')[:2000]}")
        self.status = status


class Api:
    """One connection, kept open; not to be shared between threads. It asks for answers of a type, such as `METADATA`."""

    def __init__(self, accept: str = "application/json") -> None:
        self._accept = accept
        self._context = ssl.create_default_context(cafile=str(layout.keys() / "authority.crt"))
        self._context.load_cert_chain(layout.keys() / "admin.crt", layout.keys() / "admin.key")
        self._connection: http.client.HTTPSConnection | None = None

    def text(self, method: str, path: str, body: object = None, type: str = "application/json", **query: object) -> str:
        """Sends one request; returns the answer's text. Raises `Refused`, or OSError where nobody answers."""
        target = f"{path}?{urlencode(query)}" if query else path
        sent = None if body is None else json.dumps(body)
        kept = self._connection is not None
        try:
            status, content = self._exchange(method, target, sent, type)
        except OSError:
            if not kept:
                raise
            # the API server was killed since the last request, and with it the connection
            status, content = self._exchange(method, target, sent, type)
        if status >= 300:
            raise Refused(status, f"{method} {target}", content)
        return content.decode(errors="replace")

    def _exchange(self, method: str, target: str, sent: str | None, type: str) -> tuple[int, bytes]:
        try:
            if self._connection is None:
                self._connection = http.client.HTTPSConnection(
                    layout.HOST, keys.PORT, context=self._context, timeout=TIMEOUT_S
                )
            self._connection.request(method, target, sent, {"Content-Type": type, "Accept": self._accept})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"{method} {target}: {error!r}") from error

    def __call__(
        self, method: str, path: str, body: object = None, type: str = "application/json", **query: object
    ) -> Any:
        """Sends one request; returns the answer's JSON."""
        return json.loads(self.text(method, path, body, type, **query))

    def apply(self, *things: dict[str, Any], namespace: str = "") -> None:
        """Makes or changes things by server-side apply."""
        for thing in things:
            path = f"{_collection(thing, namespace)}/{thing['metadata']['name']}"
            self("PATCH", path, thing, "application/apply-patch+yaml", fieldManager="danlu-tests", force="true")

    def answers(self) -> bool:
        """Returns whether the API server is ready."""
        try:
            return self.text("GET", "/readyz") == "ok"
        except (OSError, Refused):
            return False

    def pages(self, path: str, **query: object) -> Iterator[dict[str, Any]]:
        """Yields all items of a list, 500 at a time."""
        more = ""
        while True:
            found = json.loads(self.text("GET", path, None, **query, limit=500, **({"continue": more} if more else {})))
            yield from found["items"] or ()  # null where only metadata is asked for and there is none
            more = found["metadata"].get("continue", "")
            if not more:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


PLURALS = {"Endpoints": "endpoints", "NetworkPolicy": "networkpolicies", "Ingress": "ingresses",
           "PriorityClass": "priorityclasses"}  # fmt: skip


def _collection(thing: dict[str, Any], namespace: str) -> str:
    """Returns the path of the list that a thing is in."""
    version, kind = thing["apiVersion"], thing["kind"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    plural = PLURALS.get(kind, f"{kind.lower()}s")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
