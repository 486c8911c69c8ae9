"""A pod's life: its runner, the threads that deliver what comes of it, and the order in which all that ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from typing import Callable, List

from . import carrying, delivering, formats, processes
from .channel import ChannelError, Over
from .pod import HEARTBEAT_S, Pod

ROOT, ROOT_VARIABLE = "/danlu", "DANLU_POD_ROOT"
ROLE, INDEX = "DANLU_POD_ROLE", "JOB_COMPLETION_INDEX"
CARRY_S = 1.0
DELIVER_S = 3600.0
FAILED, WRONG, OVER = 1, 2, 3


class Life:
    """A pod's life, in the process's own thread: signals, hints, the runner's end.

    Args:
        pod: it.
        told: has the signals that came.
    """

    def __init__(self, pod: Pod, told: List[int]) -> None:
        self._pod, self._told = pod, told
        self._hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._hints.setblocking(False)
        path = pod.order["hint_socket"]
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._hints.bind(path)
        self._wake, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        task = os.path.join(pod.folder, pod.task)
        streams = [
            delivering.Stream(task, pod.task, name, pod.channel(), pod.log) for name in (formats.LOG, formats.METRICS)
        ]
        self._deliverer = delivering.Deliverer(streams, pod.log)
        heartbeat_s = float(pod.settings.get("heartbeat_s", HEARTBEAT_S))
        self._reporter = delivering.Reporter(pod.folder, pod.task, pod.channel(), heartbeat_s, pod.heard, pod.log)
        self._carrier = carrying.Carrier(pod)
        self._carry, self._carry_ended = threading.Event(), threading.Event()
        self._failures: List[ChannelError] = []
        self._saved = 0

    def run(self, *, begun: bool) -> int:
        """Lives it; returns the exit code. ``begun``: a runner was here before and died."""
        pod = self._pod
        threads = [self._thread(self._reporter.run), self._thread(self._deliverer.run), self._thread(self._carrying)]
        self._thread(pod.listen)
        status = 0
        if not begun:
            fetching_thread = self._thread(self._fetching)
            status = self._wait()
            fetching_thread.join(1.0)
        else:
            self._thread(pod.fetch_secrets).join()
        if pod.way.over.is_set():
            pod.ended_at_once()
            return OVER
        pod.ended(status)
        pod.way.end_within(float(pod.settings.get("deliver_s", DELIVER_S)))
        self._deliverer.end()
        self._carry_ended.set()
        self._carry.set()
        for thread in threads[1:]:
            while thread.is_alive():
                thread.join(0.1)  # by parts, so that signals are heard
                self._heed()
        self._reporter.end()
        threads[0].join()
        if pod.way.over.is_set():
            return OVER
        try:
            self._reporter.last()
        except Over:
            pass  # what it was to learn from this it knows already
        except ChannelError as error:
            pod.log("that the attempt has ended cannot be told: %s" % error)
            return FAILED
        return 0 if pod.succeeded() else FAILED

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Over as error:
                self._pod.log(str(error))
                self._pod.kill()
            except Exception as error:  # noqa: BLE001 - the others go on, and the last report tells how it ended
                self._pod.log("%s: %s" % (type(error).__name__, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _fetching(self) -> None:
        try:
            self._pod.fetch()
        except BaseException:
            self._pod.kill()  # the runner would wait for ever for what is not coming
            raise

    def _carrying(self) -> None:
        while not self._carry_ended.is_set():
            self._carry.clear()
            try:
                self._carrier.step()
            except ChannelError:
                raise
            except Exception as error:  # noqa: BLE001 - the next step may do better, and the end is tried in any case
                self._pod.log("what it leaves cannot be kept now: %s: %s" % (type(error).__name__, error))
            self._carry.wait(CARRY_S)
        self._carrier.finish()

    def _heed(self) -> None:
        if self._told:
            self._told.clear()
            self._pod.log("the pod was told to end")
            self._pod.evicted()

    def _wait(self) -> int:
        """Returns the runner's status once it has ended; passes on signals and hints until then."""
        poll = select.poll()
        for file in (self._wake, self._hints.fileno()):
            poll.register(file, select.POLLIN)
        while True:
            self._heed()
            pid, status = os.waitpid(self._pod.child, os.WNOHANG)
            if pid:
                return status
            for file, _ in poll.poll(1000):
                if file == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self._hinted()

    def _hinted(self) -> None:
        try:
            while self._hints.recv(4096):
                pass
        except BlockingIOError:
            pass
        self._deliverer.hinted.set()
        self._reporter.hinted.set()
        try:
            saved = os.stat(os.path.join(self._pod.folder, formats.SAVED)).st_mtime_ns
        except OSError:
            return
        if saved != self._saved:
            self._saved = saved
            self._carry.set()


def main(child: int, go: int, told: List[int]) -> int:
    """Lives a pod's life; returns its exit code.

    Args:
        child: the process that becomes the runner.
        go: where it waits for what it needs.
        told: has the signals that came.
    """
    processes.become_subreaper()
    root = os.environ.get(ROOT_VARIABLE, ROOT)
    try:
        pod = Pod(root, "%s-%s" % (os.environ.get(ROLE, "main"), os.environ.get(INDEX, "0")))
        begun = bool(formats.read_status(os.path.join(pod.folder, "status")))
        if not begun:
            pod.make_folder()
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.write(2, ("danlu: the pod cannot begin: %s: %s\n" % (type(error).__name__, error)).encode())
        return WRONG
    if begun:
        os.close(go)
    else:
        pod.child, pod.go = child, go
    return Life(pod, told).run(begun=begun)
