"""Into a pod: a process beside its runner whose standard files are a web socket (``pods/exec``), as a stream of frames.

What comes out of a pod cannot be trusted, as on one machine: server/sessions.py checks each frame.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
from typing import Any, Final

from danlu.domain.sessions import SessionRequest
from danlu.errors import ExecutorUnavailable, NotRunning
from danlu.executors.kubernetes.client import Api, core
from danlu.executors.kubernetes.manifests import RUNNER
from danlu.runner import frames

LOG: Final = logging.getLogger("danlu.executors")
STDIN, STDOUT, STDERR, ERROR = 0, 1, 2, 3
CLOSE: Final = 255
PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""The channels of remote commands; only the newer one can say that nothing more comes in."""
PIECE_BYTES: Final = 64 << 10
ANSWER_TIMEOUT_S: Final = 15.0
WORDS_BYTES: Final = 2000


class Door:
    """Carries bytes between a socket of ours and a process in a pod, in threads of its own, until one end is gone."""

    def __init__(self, api: Api, path: str, command: tuple[str, ...], ours: socket.socket) -> None:
        self._api, self._path, self._command, self._ours = api, path, command, ours
        self._opened: queue.Queue[BaseException | None] = queue.Queue(1)
        self._said = b""

    def open(self) -> None:
        """Returns once the process in the pod is there.

        Raises:
            NotRunning: there is no such pod.
            ExecutorUnavailable: it cannot be reached now.
        """
        threading.Thread(target=self._carry, name="kubernetes-session", daemon=True).start()
        try:
            error = self._opened.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            self._ours.close()
            raise ExecutorUnavailable(
                f"the cluster does not open {self._path} within {ANSWER_TIMEOUT_S:.0f} s"
            ) from None
        if error is None:
            return
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (404, 400):
            raise NotRunning(f"there is no pod to go into at {self._path}: it has just ended, or not begun") from error
        raise ExecutorUnavailable(f"the cluster does not open {self._path} ({status or error})") from error

    def _carry(self) -> None:
        params = [("container", "task"), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
        params += [("command", word) for word in self._command]
        opened = False
        try:
            with self._api.socket(self._path, params, PROTOCOLS) as channel:
                opened = True
                self._opened.put(None)
                threading.Thread(target=self._give, args=(channel,), name="kubernetes-session-in", daemon=True).start()
                self._take(channel)
        except Exception as error:  # noqa: BLE001 - the transport's own errors: the session has ended
            if not opened:
                self._opened.put(error)
            LOG.debug("session at %s: %s", self._path, error)
        finally:
            if self._said:
                LOG.info("session at %s: %s", self._path, self._said.decode(errors="replace"))
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)
            self._ours.close()

    def _take(self, channel: Any) -> None:
        """Passes on what the process writes until it has ended."""
        while True:
            data = channel.receive_bytes()
            kind, rest = data[:1], data[1:]
            if kind == bytes([STDOUT]):
                self._ours.sendall(rest)
            elif kind == bytes([STDERR]):
                self._said = (self._said + rest)[:WORDS_BYTES]
            elif kind == bytes([ERROR]):
                return

    def _give(self, channel: Any) -> None:
        """Passes on what comes in, and that nothing more comes."""
        try:
            while data := self._ours.recv(PIECE_BYTES):
                channel.send_bytes(bytes([STDIN]) + data)
            if channel.subprotocol == PROTOCOLS[0]:
                channel.send_bytes(bytes([CLOSE, STDIN]))
            else:
                channel.close()
        except Exception as error:  # noqa: BLE001 - the transport's own errors: the other thread ends the session
            LOG.debug("session at %s: %s", self._path, error)


def enter(api: Api, namespace: str, pod: str, task: str, request: SessionRequest) -> socket.socket:
    """Returns a stream on which the request was made; see Executor.open_session."""
    theirs, ours = socket.socketpair()
    door = Door(api, core(namespace, "pods", pod, "exec"), (*RUNNER[:-1], "enter", task), ours)
    try:
        door.open()
        asked = {**request.model_dump(mode="json", exclude_none=True), "task": task}
        theirs.sendall(frames.encode_json(frames.REQUEST, asked))
    except OSError as error:
        theirs.close()
        raise ExecutorUnavailable(f"the runner of {pod} does not answer: {error}") from error
    except (NotRunning, ExecutorUnavailable):
        theirs.close()
        raise
    return theirs
