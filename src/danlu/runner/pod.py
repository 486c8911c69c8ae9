"""The runner in a pod: fetches what its task needs, runs it as on one machine, and brings what comes of it to the server.

The runner itself is a child that was forked before anything else (entry.py), and waits until everything is there. This one
delivers meanwhile, hears what the server wishes, and ends last: that the attempt has ended is told when all else is kept.

::

    /danlu/order         order.json, token, ca.crt      from the platform, read-only
    /danlu/attempt       the attempt's folder, as on one machine
    /danlu/checkpoints   the job's
    /danlu/secrets       in memory
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipimport
from typing import Any, Callable, Dict, Iterator, List, Optional

from . import carrying, fetching, formats
from .channel import TIMEOUT_S, Channel, ChannelError, GaveUp, Over, Refused, Torn, Way

HEARTBEAT_S, WISHES_S = 15.0, 25.0
EVICTED_DELIVER_S = 25.0
SALVAGE_S = 60.0
TORN_TRIALS = 5
NAMES = "names"
"""In the zip file: the names of what jobs may import of it."""
OWN_VARIABLES = ("DANLU_POD_ROLE", "DANLU_POD_ROOT", "JOB_COMPLETION_INDEX", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_")
CGROUPS = "/sys/fs/cgroup"


class Pod:
    """One task's pod. What carrying.py may use has no underscore.

    Attributes:
        order: the attempt's, with this pod's task alone.
        settings: what of it is for pods.
        task: the task's name.
        folder: the attempt's.
        child: the process that becomes the runner, once it reads from ``go`` that all is there.
    """

    def __init__(self, root: str, task: str) -> None:
        self.root, self.task = root, task
        self.folder = os.path.join(root, "attempt")
        with open(os.path.join(root, "order", "order.json"), "rb") as file:
            self.order: Dict[str, Any] = json.loads(file.read().decode())
        tasks = [spec for spec in self.order["tasks"] if spec["name"] == task]
        if not tasks:
            raise ValueError("attempt %s has no task %s" % (self.order["attempt_id"], task))
        self.order["tasks"] = tasks
        self.settings: Dict[str, Any] = self.order["pod"]
        self.attempt_id = str(self.order["attempt_id"])
        self.way = Way.of_order(os.path.join(root, "order"), self.settings, self.log)
        self.way.timeout_s = float(self.settings.get("timeout_s", TIMEOUT_S))
        self.child = self.go = -1
        self._stop: Optional[bytes] = None
        self._lock = threading.Lock()
        self._tag: Optional[str] = None
        self._handed: List[Dict[str, Any]] = []
        self._held = -1
        self._failed_to_fetch: List[str] = []

    def log(self, text: str) -> None:
        """Writes a line for whoever looks into the pod."""
        os.write(2, ("danlu: %s\n" % text).encode(errors="replace"))

    def channel(self) -> Channel:
        """Returns a channel of the caller's own: one is used by one thread."""
        return Channel(self.way)

    # the beginning

    def make_folder(self) -> None:
        """Makes the attempt's folder what it is on one machine."""
        folders = [os.path.join(self.folder, name) for name in ("work", "outputs", "tmp")]
        for folder in (*folders, self.order["checkpoint_dir"], os.path.join(self.root, "secrets")):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self.order["hint_socket"] = os.path.join(self.folder, "hints")
        self.order["grouped"] = True  # nothing outlives a pod
        counted = counters()
        if counted is not None:
            self.order["tasks"][0]["counters"] = counted
        self._write("order.json", json.dumps(self.order).encode())
        self._write("token", self.way.token.encode())
        for name, (text, mode) in self.settings.get("files", {}).items():
            path = os.path.normpath(os.path.join(self.folder, name))
            if not path.startswith(self.folder + os.sep):
                raise ValueError("the file %s would lie outside the attempt's folder" % name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            formats.write_atomically(path, text.encode(), mode)

    def _write(self, name: str, data: bytes) -> None:
        formats.write_atomically(os.path.join(self.folder, name), data)

    def fetch(self) -> None:
        """Fetches everything side by side, and lets the runner go.

        Raises:
            Over, GaveUp: it cannot be had.
        """
        errors: List[ChannelError] = []

        def guarded(work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    work()
                except (Over, GaveUp) as error:
                    errors.append(error)
                except Exception as error:  # noqa: BLE001 - whatever it is, the server hears of it
                    self._failed_to_fetch.append(str(error) or type(error).__name__)

            return run

        wanted = [
            self._fetch_secrets,
            self._fetch_code,
            lambda: carrying.restore(self),
            self._hold_environment,
            lambda: install_sdk(os.path.join(self.folder, "sdk")),
        ]
        threads = [threading.Thread(target=guarded(work), daemon=True) for work in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not self._stopping_at_once():
                thread.join(0.05)
        if errors:
            raise errors[0]
        task = self.order["tasks"][0]
        given = image_environment()
        asked = formats.environment(self.order, task)
        if given.get("PYTHONPATH") and "PYTHONPATH" in asked:
            asked["PYTHONPATH"] = os.pathsep.join([given["PYTHONPATH"], asked["PYTHONPATH"]])
        task["env"] = {**given, **asked}
        self.order.update(env={}, env_begins={})
        self._write("order.json", json.dumps(self.order).encode())
        hindrance = "; ".join(self._failed_to_fetch)
        if hindrance:
            self.log("the task cannot be started: %s" % hindrance)
        go = {"attempt": self.folder, "secrets": self._handed, "memory": os.path.join(self.root, "secrets"),
              "hindrance": hindrance}  # fmt: skip
        _write_all(self.go, json.dumps(go).encode())
        os.close(self.go)

    def _stopping_at_once(self) -> bool:
        """Says whether the attempt is to end before it has begun: what is fetched is not needed then."""
        return self._stop is not None or self.way.over.is_set()

    def _hold_environment(self) -> None:
        """Keeps the task's environment on the node for as long as the pod lives: the first container has brought it."""
        if self.settings.get("environment"):
            from . import environment

            self._held = environment.hold(self.settings["environment"])

    def _fetch_secrets(self) -> None:
        channel = self.channel()
        self._handed = list(channel.json("GET", "/secrets")["secrets"])
        channel.close()

    def _fetch_code(self) -> None:
        tree = self.settings.get("code")
        if not tree:
            return
        work, channel = os.path.join(self.folder, "work"), self.channel()
        most, trials = 0, 0
        while True:
            received = [0]
            try:
                fetching.Unpacking(tree, work).run(_counted(channel.download("/code"), received))
                channel.close()
                return
            except OSError:
                fetching.empty(work)  # on a full disk that makes the room to tell so
                raise
            except Torn as error:
                # it may be large, and the network bad; what breaks off at the same place again and again is damaged there
                trials, most = (0 if received[0] > most else trials + 1), max(most, received[0])
                if trials >= TORN_TRIALS:
                    raise
                self.way.failed(str(error))
                self.way.pause(1.0)
                fetching.empty(work)

    # what the server wishes

    def heard(self, wishes: Dict[str, Any]) -> None:
        """Passes on to the runner that it is to stop, or that it has to make way."""
        stop, tag = wishes.get("stop"), str(wishes.get("tag", ""))
        if stop is not None and tag != self._tag:
            self._tag = tag
            self._tell_stop({name: value for name, value in stop.items() if value is not None})

    def evicted(self) -> None:
        """Passes on that the pod is told to end."""
        grace_s = float(self.order["grace_s"])
        self.way.end_within(grace_s + EVICTED_DELIVER_S)
        self._tell_stop({"grace_s": grace_s, "evicted": True})

    def _tell_stop(self, said: Dict[str, Any]) -> None:
        text = json.dumps(said, sort_keys=True).encode()
        with self._lock:
            if text == self._stop:
                return
            try:
                self._write("stop", text)
            except OSError as error:  # a full disk: it cannot be told, and must end all the same
                self.log("the runner cannot be told to stop (%s): it is killed" % error)
                self.kill()
            self._stop = text
            self._signal(signal.SIGUSR1)

    def _signal(self, number: int) -> None:
        if self.child > 0:
            try:
                os.kill(self.child, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """Kills the runner; what it has started goes with it, or is killed after it."""
        self._signal(signal.SIGKILL)

    def listen(self) -> None:
        """Hears what the server wishes. For a thread of its own.

        Raises:
            Over, GaveUp: it wishes nothing any more.
        """
        channel, tag = self.channel(), ""
        while True:
            began = time.monotonic()
            query = {"known": tag, "timeout_s": WISHES_S}
            try:
                wishes = channel.json("GET", "/wishes", query=query, timeout_s=WISHES_S + 20.0)
            except Refused as error:
                self.log("the server does not say what it wishes: %s" % error)
                self.way.pause(HEARTBEAT_S)
                continue
            self.heard(wishes)
            same, tag = tag == wishes.get("tag"), str(wishes.get("tag", ""))
            if same and time.monotonic() - began < 1.0:  # a server that is just ending answers at once
                self.way.pause(1.0)

    # the end

    def fetch_secrets(self) -> None:
        """Fetches what is to be hidden in what a runner has left that was here before.

        Raises:
            ChannelError: it cannot be had.
        """
        self._fetch_secrets()

    def ended_at_once(self) -> None:
        """Sees to it that nothing is left; what it has written is nobody's concern."""
        from . import processes

        processes.kill_all()

    def ended(self, status: int) -> None:
        """Sees to it that nothing is left, and that the status says how it ended."""
        from . import processes

        self.child = -1
        processes.kill_all()
        events = formats.read_status(os.path.join(self.folder, "status"))
        if any(event["event"] == "ended" for event in events):
            return
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self.log("the runner has ended by itself (%s): what it has written is kept" % (killed or status >> 8))
        given = json.dumps({"secrets": self._handed}).encode()
        words = [sys.executable, "-I", "-S", program(), "salvage", self.folder]
        try:
            subprocess.run(words, input=given, timeout=SALVAGE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.log("what the runner has left cannot all be kept: %s" % error)

    def succeeded(self) -> bool:
        """Says whether the task has ended well."""
        events = formats.read_status(os.path.join(self.folder, "status"))
        exited = [event for event in events if event["event"] == "exited"]
        return bool(exited) and exited[-1].get("exit_code") == 0


def _counted(chunks: Iterator[bytes], received: List[int]) -> Iterator[bytes]:
    for chunk in chunks:
        received[0] += len(chunk)
        yield chunk


def image_environment() -> Dict[str, str]:
    """Returns the variables that the image, and what gives away GPUs, have set for the container."""
    return {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}


def counters(groups: str = CGROUPS) -> Optional[Dict[str, Any]]:
    """Returns where the kernel counts for the pod's container; None where that cannot be seen.

    The group holds this process too, and all tasks' processes without telling them apart.
    """
    if os.path.exists(os.path.join(groups, "memory.current")):
        return {"version": 2, "memory": groups, "cpu": groups, "shared": True}
    memory = os.path.join(groups, "memory")
    # the root of a hierarchy is the machine's: it alone names who is told of what is left behind
    if os.path.exists(os.path.join(memory, "memory.oom_control")) and not os.path.exists(
        os.path.join(memory, "release_agent")
    ):
        cpu = next((os.path.join(groups, name) for name in ("cpuacct", "cpu,cpuacct")
                    if os.path.exists(os.path.join(groups, name, "cpuacct.usage"))), None)  # fmt: skip
        return {"version": 1, "memory": memory, "cpu": cpu, "shared": True}
    return None


def program() -> str:
    """Returns the file that this program came in."""
    return os.path.abspath(sys.argv[0])


def install_sdk(folder: str) -> None:
    """Lays out what jobs may import of Danlu, and what launchers of gangs are started from."""
    archive = zipimport.zipimporter(program())  # as it is open already, which zipfile would take its time for
    for name in archive.get_data(NAMES).decode().split():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(archive.get_data(name))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
