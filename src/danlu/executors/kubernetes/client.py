"""A thin client of the Kubernetes API: paths and JSON. Lightkube finds the cluster and its keys, and carries the bytes.

What can pass (no connection, 429, 5xx, expired keys) is tried a few times and becomes ``ExecutorUnavailable``; what the API
refuses becomes ``Refused``, with its own words.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from danlu.errors import ExecutorUnavailable, PlatformError

LOG: Final = logging.getLogger("danlu.executors")
TRIES: Final = 4
PAUSES_S: Final = (0.1, 0.4, 1.5)
MOST_PAUSE_S: Final = 5.0
"""However long the API asks to wait: what is not done by then is tried again by whoever asked."""
TIMEOUT_S: Final = 10.0
PAGE: Final = 500
RELISTS: Final = 3
MAX_OBJECTS: Final = 200_000
WATCH_S: Final = 240
MESSAGE_CHARACTERS: Final = 1000
PASSING: Final = frozenset({429, 500, 502, 503, 504})
METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
INSTALL: Final = "pip install 'danlu[kubernetes]'"

Object = dict[str, Any]
Keep = Callable[[Object], Object | None]


class Refused(Exception):
    """The API has refused a request: it will again. ``reason`` is the API's own word, such as ``AlreadyExists``."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message[:MESSAGE_CHARACTERS]

    @property
    def exists(self) -> bool:
        """Whether there is such an object already."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """Whether what a list or a watch goes on from is too old."""
        return self.status == 410

    @property
    def missing(self) -> bool:
        """Whether there is no such object."""
        return self.status == 404


def connect(kubeconfig: Path | None, context: str | None) -> Any:
    """Returns an HTTP client of the cluster: of a file, else of the pod that this runs in, else of ``KUBECONFIG``.

    Raises:
        PlatformError: the library is not installed, or no cluster is configured.
    """
    try:
        from lightkube.config import client_adapter
        from lightkube.config.kubeconfig import KubeConfig
        from lightkube.core.exceptions import ConfigError
    except ImportError as error:
        raise PlatformError(f"jobs in Kubernetes need the package lightkube: {error}", next_step=INSTALL) from error
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else each request is a line
    try:
        found = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
        chosen: Any = found.get(context)
        seconds: Any = TIMEOUT_S  # which the transport takes too
        return client_adapter.Client(chosen, client_adapter.ConnectionParams(timeout=seconds))
    except (ConfigError, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise PlatformError(
            f"the cluster's configuration cannot be used: {error}",
            next_step="run in a pod with a service account, or set KUBECONFIG; kubectl version shows whether it works",
        ) from error


class Api:
    """The API of one cluster. Any thread may use it."""

    def __init__(self, connect: Callable[[], Any], sleep: Callable[[float], object] = time.sleep) -> None:
        """Connects when it is used first."""
        self._connect, self._sleep = connect, sleep
        self._http: Any = None
        self._lock = threading.Lock()

    def get(self, path: str) -> Object:
        """Returns an object."""
        return self._call("GET", path)

    def create(self, path: str, content: Object, *, dry_run: bool = False) -> Object:
        """Makes an object and returns it; ``Refused.exists`` where there is one of that name. A dry run only tells."""
        return self._call("POST", path, content=content, params={"dryRun": "All"} if dry_run else None)

    def patch(self, path: str, content: Object) -> Object:
        """Changes what ``content`` names of an object (RFC 7386), and returns it."""
        return self._call("PATCH", path, content=content, headers={"Content-Type": "application/merge-patch+json"})

    def delete(self, path: str, *, selector: str = "", grace_s: int | None = None) -> None:
        """Deletes an object and then what it owns, or with a selector all of a list. Absent is success."""
        options: Object = {"propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self._call("DELETE", path, params={"labelSelector": selector} if selector else None, content=options)
        except Refused as error:
            if not error.missing:
                raise

    def list_all(self, path: str, keep: Keep, *, metadata: bool = False, **selectors: str) -> tuple[list[Object], str]:
        """Returns of all objects of a list what ``keep`` keeps, and the version from which a watch goes on.

        What is read in pages and grows too old meanwhile is read from the beginning. One page is in memory as a whole.
        """
        for _ in range(RELISTS):
            try:
                return self._pages(path, keep, selectors, metadata=metadata)
            except Refused as error:
                if not error.gone:
                    raise
        raise ExecutorUnavailable(f"{path} changes faster than it can be listed")

    def _pages(
        self, path: str, keep: Keep, selectors: Mapping[str, str], *, metadata: bool
    ) -> tuple[list[Object], str]:  # fmt: skip
        found: list[Object] = []
        params: dict[str, Any] = {**selectors, "limit": PAGE}
        headers = {"Accept": METADATA} if metadata else None
        while True:
            page = self._call("GET", path, params=params, headers=headers)
            found += filter(None, map(keep, page.get("items") or []))
            token = page["metadata"].get("continue")
            if not token:
                return found, str(page["metadata"].get("resourceVersion", ""))
            if len(found) >= MAX_OBJECTS:
                raise ExecutorUnavailable(f"{path} has more than {MAX_OBJECTS:,} objects")
            params["continue"] = token

    def watch(self, path: str, version: str, **selectors: str) -> Iterator[Object]:
        """Yields the changes of a list since a version, for some minutes at most.

        Raises:
            Refused: the version is too old: list again.
            ExecutorUnavailable: it was cut.
        """
        params = {**selectors, "watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        http = self._client()
        try:
            request = http.build_request("GET", path, params=params, timeout=WATCH_S + TIMEOUT_S)
            answer = http.send(request, stream=True)
            try:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refused(answer)
                for line in answer.iter_lines():
                    event = json.loads(line)
                    if event.get("type") == "ERROR":
                        status = event.get("object") or {}
                        raise Refused(int(status.get("code", 500)), str(status.get("reason")), str(status))
                    yield event
            finally:
                answer.close()
        except Refused:
            raise
        except Exception as error:
            raise ExecutorUnavailable(f"the watch of {path} was cut: {error}") from error

    def lines(self, path: str, max_bytes: int, **params: str) -> Iterator[bytes]:
        """Yields the whole lines of what is no JSON, a container's log, as they come. What is longer is cut, and says so.

        Raises:
            Refused: it is not to be had.
            ExecutorUnavailable: it is not to be had now, or broke off.
        """
        held, cut = bytearray(), 0
        for chunk in self._streamed(path, params):
            parts = chunk.split(b"\n")
            for at, part in enumerate(parts):
                if at:
                    yield bytes(held) + (b" [and %d bytes more]" % cut if cut else b"")
                    held.clear()
                    cut = 0
                room = max(0, max_bytes - len(held))
                held += part[:room]
                cut += len(part) - len(part[:room])

    def _streamed(self, path: str, params: Mapping[str, str]) -> Iterator[bytes]:
        http = self._client()
        try:
            answer = http.send(http.build_request("GET", path, params=params), stream=True)
            try:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refused(answer)
                yield from answer.iter_bytes()
            finally:
                answer.close()
        except Refused:
            raise
        except Exception as error:
            raise ExecutorUnavailable(f"{path} broke off: {error}") from error

    def socket(self, path: str, params: Sequence[tuple[str, str]], protocols: Sequence[str]) -> Any:
        """Returns a context manager with a web socket: ``receive_bytes``, ``send_bytes``, ``subprotocol``."""
        return self._client().websocket(path, params=list(params), subprotocols=list(protocols), timeout=TIMEOUT_S)

    def close(self) -> None:
        """Closes the connections; what runs over them fails."""
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _call(self, method: str, path: str, **given: Any) -> Object:
        answer = self._answer(method, path, **given)
        try:
            found = answer.json()
        except ValueError as error:
            raise ExecutorUnavailable(f"the cluster's API has answered {method} {path} with what is no JSON") from error
        if not isinstance(found, dict):
            raise ExecutorUnavailable(f"the cluster's API has answered {method} {path} with {type(found).__name__}")
        return found

    def _answer(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, content: Object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """Returns the answer to a request that may be repeated: objects are made by name, and changed to a value."""
        body = None if content is None else json.dumps(content, separators=(",", ":"))
        said = {"Content-Type": "application/json", **(headers or {})}
        why, renewed = "", False
        for attempt in range(TRIES):
            pause_s = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
            try:
                answer = self._client().request(method, path, params=params, content=body, headers=said)
            except (PlatformError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - the transport's own errors, its helpers' and the keys' files'
                why = f"{type(error).__name__}: {error}"
            else:
                status = answer.status_code
                if status < 400:
                    return answer
                if status == 401 and not renewed:  # keys that were renewed in their files are read again
                    renewed = True
                    self.close()
                    continue
                if status == 401:
                    raise ExecutorUnavailable(
                        f"the cluster does not know this platform's credentials (401): {_refused(answer).message}",
                        next_step="renew them: what waits goes on by itself",
                    )
                if status not in PASSING:
                    raise _refused(answer)
                why = f"{status}: {_refused(answer).message}"
                pause_s = _asked_pause(answer.headers.get("Retry-After")) or pause_s
            if attempt + 1 < TRIES:
                self._sleep(min(pause_s, MOST_PAUSE_S))
        raise ExecutorUnavailable(f"the cluster's API does not answer {method} {path}: {why[:MESSAGE_CHARACTERS]}")

    def _client(self) -> Any:
        with self._lock:
            if self._http is None:
                self._http = self._connect()
            return self._http


def _asked_pause(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


def _refused(answer: Any) -> Refused:
    try:
        status = answer.json()
        return Refused(answer.status_code, str(status.get("reason", "")), str(status.get("message", "")))
    except (ValueError, AttributeError):
        return Refused(answer.status_code, "", str(answer.text)[:MESSAGE_CHARACTERS])


def core(namespace: str, kind: str, name: str = "", more: str = "") -> str:
    """Returns the path of objects of the core API, or of one of them."""
    return _path("/api/v1", namespace, kind, name, more)


def batch(namespace: str, kind: str, name: str = "") -> str:
    """Returns the path of objects of the batch API, or of one of them."""
    return _path("/apis/batch/v1", namespace, kind, name, "")


def _path(api: str, namespace: str, kind: str, name: str, more: str) -> str:
    parts = [api, *(["namespaces", quote(namespace, safe="")] if namespace else []), kind]
    return "/".join([*parts, *(quote(one, safe="") for one in (name, more) if one)])
