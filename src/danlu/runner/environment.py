"""``runner.pyz environment POD``: what a pod that needs an environment does first, in a container of its own.

It makes sure that the environment is in the node's folder, fetching and unpacking it if no pod of the node has yet. Its exit
status is 0 where it is there, OVER where the attempt is over, and TROUBLE where it is nobody's fault in the job: the last
words say which. It tells on standard output how it goes, and leaves in the attempt's folder how it went.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import time
import urllib.parse
from typing import Any, Callable, Dict, Optional

from . import environments_cache
from .environments_cache import HELD, Full, Gone, ensure, make_room
from .unpacking import Bounds, Damaged, unpack

ORDER, ATTEMPT = "/danlu/order", "/danlu/attempt"
TERMINATION = "/dev/termination-log"
TOLD = "environment.json"
OVER, TROUBLE = 3, 4
PATIENCE_S = 600.0
"""For so long without one more byte it goes on asking."""
TIMEOUT_S = 60.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 10.0
TELL_EVERY_S = 5.0
ENDS = frozenset({401, 403, 404, 409})
"""Answers that say that the attempt is over, or never was."""
MAX_WORDS = 2000

__all__ = ["Gone", "hold", "main"]


class Over(Exception):
    """The attempt is over."""


class Unreachable(Exception):
    """The server does not send it."""


class Download:
    """The environment's archive from the server, from where it broke off wherever it does.

    Args:
        pod: ``url`` and ``attempt_id`` of the order.
        token: the attempt's.
        size_bytes: of the archive.
        authority: a file with the server's certificate authority, if it has one of its own.
        tell: called with what keeps it.
    """

    def __init__(
        self, pod: Dict[str, Any], token: str, size_bytes: int, authority: Optional[str], tell: Callable[[str], None]
    ) -> None:
        self._url = urllib.parse.urlsplit(pod["url"])
        self._path = "%s/v1/attempts/%s/environment" % (self._url.path.rstrip("/"), pod["attempt_id"])
        self._token, self._authority, self._tell = token, authority, tell
        self._connection: Optional[http.client.HTTPConnection] = None
        self._answer: Optional[http.client.HTTPResponse] = None
        self.size_bytes, self.received = size_bytes, 0

    def read(self, most: int) -> bytes:
        """Returns the next bytes, none at the end.

        Raises:
            Over: the server says that the attempt is.
            Unreachable: it did not send one more byte in PATIENCE_S.
        """
        pause_s, until = FIRST_PAUSE_S, time.monotonic() + PATIENCE_S
        while self.received < self.size_bytes:
            try:
                if self._answer is None:
                    self._answer = self._ask()
                data = self._answer.read(min(most, self.size_bytes - self.received))
                if data:
                    self.received += len(data)
                    return data
                raise http.client.HTTPException("it ended at byte %d of %d" % (self.received, self.size_bytes))
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if time.monotonic() >= until:
                    raise Unreachable(
                        "the server at %s has not sent the environment's archive for %.0f s, byte %d of %d: %s"
                        % (self._url.geturl(), PATIENCE_S, self.received, self.size_bytes, error)
                    ) from error
                self._tell("%s; again in %.1f s" % (error, pause_s))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
        return b""

    def _ask(self) -> http.client.HTTPResponse:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":
            context = ssl.create_default_context(cafile=self._authority)
            self._connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        headers = {"Authorization": "Bearer " + self._token}
        self._connection.request("GET", "%s?offset=%d" % (self._path, self.received), headers=headers)
        answer = self._connection.getresponse()
        if answer.status == 200:
            return answer
        with contextlib.closing(answer):
            words = "%d %s" % (answer.status, answer.read(MAX_WORDS).decode(errors="replace"))
        if answer.status in ENDS:
            raise Over("the server answers for attempt's environment: " + words)
        raise http.client.HTTPException("the server answers " + words)

    def close(self) -> None:
        """Lets the connection go."""
        for one in (self._answer, self._connection):
            if one is not None:
                one.close()
        self._connection = self._answer = None


class Progress:
    """Tells every few seconds how far a download is."""

    def __init__(self, name: str, download: Download, say: Callable[[str], None]) -> None:
        self._name, self._download, self._say = name, download, say
        self._begun = self._told = time.monotonic()

    def read(self, most: int) -> bytes:
        """Reads on, and tells."""
        data, now = self._download.read(most), time.monotonic()
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            done, whole = self._download.received / 1e6, self._download.size_bytes / 1e6
            self._say(
                "environment %s: %.0f of %.0f MB, %.0f MB/s" % (self._name, done, whole, done / (now - self._begun))
            )
        return data


def fill(asked: Dict[str, Any], pod: str, download: Download, say: Callable[[str], None]) -> bool:
    """Makes sure that an environment is in the node's folder; returns whether it was there.

    Args:
        asked: the order's ``environment`` (see domain/environments.py: PodEnvironment.order).
        pod: whose first container this is.
        download: where it comes from.
        say: called with each line for whoever looks.
    """
    cache, digest, name = os.path.dirname(asked["path"]), asked["digest"], asked["name"]

    def make(folder: str) -> Dict[str, Any]:
        keep = asked["keep"]
        for gone in make_room(cache, asked["unpacked_bytes"], keep["max_bytes"], keep["unused_s"]):
            say("environment %s was not used for long and is removed from this node" % gone[:12])
        say("environment %s: fetching %.0f MB" % (name, asked["size_bytes"] / 1e6))
        progress = Progress(name, download, say)
        unpack(progress.read, asked["address"], folder, Bounds(asked["files"], asked["unpacked_bytes"]))
        return {"address": asked["address"], "unpacked_bytes": asked["unpacked_bytes"], "name": name}

    try:
        return ensure(
            cache, digest, pod, make, lambda: say("environment %s: another pod of this node unpacks it; waiting" % name)
        )
    finally:
        download.close()


def hold(asked: Dict[str, Any]) -> int:
    """Returns a descriptor; while it is open the order's environment stays on the node. For the task's container.

    Raises:
        Gone: it is not there any more.
    """
    cache = os.path.dirname(asked["path"])
    return environments_cache.hold(cache, asked["digest"], os.path.join(cache, HELD))


def main(name: str, order_folder: str = ORDER, attempt_folder: str = ATTEMPT) -> int:
    """Runs as the program above, for the pod of this name; returns the exit status."""
    begun = time.monotonic()
    try:
        with open(os.path.join(order_folder, "order.json"), "rb") as file:
            pod = json.loads(file.read().decode())["pod"]
        with open(os.path.join(order_folder, "token")) as file:
            token = file.read().strip()
        authority: Optional[str] = os.path.join(order_folder, "ca.crt")
        if not os.path.exists(str(authority)):
            authority = None
        asked = pod["environment"]
        download = Download(pod, token, asked["size_bytes"], authority, say)
        found = fill(asked, name, download, say)
    except Over as error:
        return _failed(OVER, str(error))
    except (Full, Damaged, Unreachable, OSError) as error:
        return _failed(TROUBLE, "the environment cannot be unpacked on this node: %s" % error)
    seconds = time.monotonic() - begun
    how = "is on this node already" if found else "fetched and unpacked in %.1f s" % seconds
    say("environment %s: %s" % (asked["name"], how))
    told = {"digest": asked["digest"], "found": found, "seconds": seconds, "bytes": download.received}
    with open(os.path.join(attempt_folder, TOLD), "w") as file:
        file.write(json.dumps(told))
    return 0


def say(line: str) -> None:
    """Tells whoever looks at the container's output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _failed(status: int, words: str) -> int:
    say(words)
    if os.path.exists(TERMINATION):
        with open(TERMINATION, "w") as file:
            file.write(words[:MAX_WORDS])
    return status
