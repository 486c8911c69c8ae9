"""What a container engine prints, read with bounds: a project's own podman says whatever the project likes."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Final

from danlu.errors import EnvironmentFailed

PULL_TIMEOUT_S: Final = 3600.0
MAX_LINE_BYTES: Final = 4096
MAX_LINES_REPORTED: Final = 10_000
MAX_ANSWER_BYTES: Final = 8 << 20
KEPT_LINES: Final = 50
Report = Callable[[str], None]


def tell(process: subprocess.Popen[bytes], report: Report, what: str, end: Callable[[], object]) -> None:
    """Tells what a process prints until its end.

    Args:
        process: pulls an image, or loads it.
        report: called with each line.
        what: the image's name.
        end: called where it is not done in time: kills what may still hold its output open.

    Raises:
        EnvironmentFailed: it failed, or was not done in time.
    """

    def give_up() -> None:
        kill(process)
        end()

    watch = threading.Timer(PULL_TIMEOUT_S, give_up)
    watch.daemon = True
    watch.start()
    try:
        kept = _follow(process.stdout, report)
        process.wait()
    finally:
        late = not watch.is_alive()
        watch.cancel()
        kill(process)
        if process.stdout is not None:
            process.stdout.close()
    if process.returncode == 0:
        return
    if late:
        raise EnvironmentFailed(f"image {what} was not here within {PULL_TIMEOUT_S / 60:.0f} minutes", stage="pull")
    said = next((line for line in reversed(kept) if line.lower().startswith("error")), kept[-1] if kept else "")
    raise EnvironmentFailed(f"image {what} could not be pulled: {said[:2000]}", next_step=_advice(said), stage="pull")


def _follow(stream: IO[bytes] | None, report: Report) -> deque[str]:
    """Hands on lines, of which the longest come in pieces, to the end; returns the last ones."""
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    count = 0
    while stream is not None and (raw := stream.readline(MAX_LINE_BYTES)):
        line = raw.decode(errors="replace").rstrip()
        if not line:
            continue
        kept.append(line)
        count += 1
        if count <= MAX_LINES_REPORTED:
            report(line)
        elif count == MAX_LINES_REPORTED + 1:
            report(f"... more than {MAX_LINES_REPORTED:,} lines: the rest is left out")
    return kept


def answer(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
    """Returns all that a process prints on its two streams until its end, which comes now if it has not come itself.

    Raises:
        OSError: it prints more than may be read, or has not ended in time.
    """
    deadline = time.monotonic() + timeout_s
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    read = {stream.fileno(): bytearray() for stream in streams}
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in read:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(_left(deadline, timeout_s)):
                    piece = os.read(key.fd, 1 << 16)
                    read[key.fd] += piece
                    if not piece:
                        selector.unregister(key.fd)
                    if len(read[key.fd]) > MAX_ANSWER_BYTES:
                        raise OSError(f"it answers with more than {MAX_ANSWER_BYTES >> 20} MiB")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_left(deadline, timeout_s))
    finally:
        kill(process)
        for stream in streams:
            stream.close()
    out, err = ([bytes(data) for data in read.values()] + [b""])[:2]
    return out, err


def _left(deadline: float, timeout_s: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise OSError(f"it did not answer within {timeout_s:.0f} s")
    return left


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that has not ended, with its session."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _advice(said: str) -> str:
    """Returns what to do about an engine's error."""
    lower = said.lower()
    if any(word in lower for word in ("manifest unknown", "not found", "name unknown", "404")):
        return "look at the name and the tag after the colon"
    if any(word in lower for word in ("unauthorized", "requested access", "401", "403")):
        return "the registry asks for a password, or the name is wrong: docs/how-to/container-images.md"
    if any(word in lower for word in ("no such host", "connection refused", "timeout", "timed out", "dial tcp")):
        return "the server cannot reach that registry: build or load the image there as localhost/NAME:TAG"
    if "no space left" in lower:
        return "make room on the server's disk"
    return ""
