"""``runner.pyz environment POD``: what a pod that needs an environment does first, in a container of its own.

It makes sure that the environment is in the node's folder, fetching and unpacking it if no pod of the node has yet. Its exit
status is 0 where it is there, OVER where the attempt is over, and TROUBLE where it is nobody's fault in the job: the last
words say which. It tells on standard output how it goes, and leaves in the attempt's folder how it went.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Callable, Dict, Iterator, Optional

from . import environments_cache
from .channel import Channel, ChannelError, Over, Torn, Way
from .environments_cache import HELD, Full, Gone, ensure, make_room
from .unpacking import Bounds, Damaged, unpack

ORDER, ATTEMPT = "/danlu/order", "/danlu/attempt"
TERMINATION = "/dev/termination-log"
TOLD = "environment.json"
OVER, TROUBLE = 3, 4
PATIENCE_S = 600.0
"""For so long without one more byte it goes on asking."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 10.0
TELL_EVERY_S = 5.0
MAX_WORDS = 2000

__all__ = ["Gone", "hold", "main"]


class Download:
    """The environment's archive from the server, from where it broke off wherever it does.

    Args:
        way: to the server. Nothing else is asked on it: for how long it is tried is counted from the last byte that came.
        size_bytes: of the archive.
    """

    def __init__(self, way: Way, size_bytes: int) -> None:
        self._way, self._channel = way, Channel(way)
        self._pieces: Optional[Iterator[bytes]] = None
        self._left = b""
        self.size_bytes, self.received = size_bytes, 0

    def read(self, most: int) -> bytes:
        """Returns the next bytes, none at the end.

        Raises:
            Over, Refused: the server does not send it.
            GaveUp: it did not send one more byte in PATIENCE_S.
        """
        if not self._left and self.received < self.size_bytes:
            self._left = self._next()[: self.size_bytes - self.received]
        piece, self._left = self._left[:most], self._left[most:]
        self.received += len(piece)
        return piece

    def _next(self) -> bytes:
        pause_s, self._way.until = FIRST_PAUSE_S, time.monotonic() + PATIENCE_S
        while True:
            if self._pieces is None:
                self._pieces = self._channel.download("/environment", query={"offset": self.received})
            try:
                piece = next(self._pieces, b"")
                if piece:
                    return piece
                raise Torn("it ended at byte %d of %d" % (self.received, self.size_bytes))
            except Torn as error:
                self._pieces = None
                self._way.failed("the environment's archive: %s" % error)
                self._way.pause(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def close(self) -> None:
        """Lets the connection go."""
        self._channel.close()


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
        asked = pod["environment"]
        download = Download(Way.of_order(order_folder, pod, say), asked["size_bytes"])
        found = fill(asked, name, download, say)
    except Over as error:
        return _failed(OVER, str(error))
    except (Full, Damaged, ChannelError, OSError) as error:
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
