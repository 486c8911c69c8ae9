"""One task of an attempt: its files, its process, its own control group, and what was agreed of it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from . import contained, formats, ports, processes
from .counters import Counters
from .follow import Follower, size
from .gang import Member
from .handed import Handed

AFTER_TIMEOUT_S = 120.0
RESTART_PAUSE_S = 1.0
LEFT_ROUNDS = 200


class Task:
    """One process of the attempt, started again by itself where that was agreed."""

    def __init__(
        self,
        folder: str,
        order: Dict[str, Any],
        spec: Dict[str, Any],
        handed: Handed,
        cgroup_procs: Sequence[int] = (),
    ) -> None:
        self.cgroup_procs = cgroup_procs
        self.name, self.spec = str(spec["name"]), spec
        self.order = order
        self.folder = os.path.join(folder, self.name)
        self.notice_file = os.path.join(folder, formats.NOTICES, formats.PREEMPTION)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.handed = handed
        if spec.get("container"):
            spec["container"]["secret"] = handed.names
        self.follower = Follower(
            self.folder, int(order["log_limit_bytes"]), bool(order.get("parse_metrics")), handed.redaction
        )
        self.counters = Counters(spec.get("counters"))
        self.world_size = int(order.get("world_size", len(order["tasks"])))
        self.env: Dict[str, str] = {}
        self.pid: Optional[int] = None
        self.done = self.failed = self.killed = False
        self.ended_at: Optional[float] = None
        self.restarts = 0
        self.failure: Optional[Dict[str, Any]] = None
        self.due_at = time.monotonic()
        self.after_until = self.due_at + AFTER_TIMEOUT_S
        self.oom_before = 0
        self.noted: Dict[int, int] = {}

    def member(self) -> Member:
        """Returns what the gang's rule needs of it."""
        spec = self.spec
        return Member(
            bool(spec.get("decides", True)), float(spec.get("linger_s", 0)), self.ended_at, self.failed and self.done
        )

    @property
    def waiting(self) -> bool:
        """Whether its process is still to be started, for the first time or again."""
        return self.pid is None and not self.done

    def hindrance(self, now: float, doors: ports.Doors) -> Optional[str]:
        """Returns None where it can start now, "" where it has to wait, and why it never will once its time is over."""
        if now < self.due_at:
            return ""
        missing = next((address for address in self.spec.get("after", ()) if not doors.open(address)), None)
        if missing is None:
            return None
        if now < self.after_until:
            return ""
        return "%s did not accept connections within %.0f s, which it waits for" % (missing, AFTER_TIMEOUT_S)

    def begin(self, resume_from: Optional[str]) -> Callable[[], processes.Started]:
        """Starts its process; returns what ``processes.begin`` does."""
        spec = self.spec
        env = {
            **formats.environment(self.order, spec),
            **self.handed.environment(),
            "DANLU_TASK": self.name,
            "DANLU_ROLE": str(spec["role"]),
            "DANLU_INDEX": str(spec["index"]),
            "DANLU_RANK": str(spec["rank"]),
            "DANLU_WORLD_SIZE": str(self.world_size),
            "DANLU_RESTART": str(self.restarts),
            "DANLU_PREEMPTION_FILE": self.notice_file,
            "DANLU_METRICS_FILE": os.path.join(self.folder, "metrics"),
        }
        if spec.get("devices", ()) is not None:  # else somebody else gives them away, and says so
            devices = ",".join(str(device) for device in spec.get("devices", ()))
            env.update({"CUDA_VISIBLE_DEVICES": devices, "NVIDIA_VISIBLE_DEVICES": devices or "void"})
        if resume_from:
            env["DANLU_RESUME_FROM"] = resume_from
        self.env = env
        self.oom_before = self.counters.oom_kills()
        files = processes.Files(
            spec["cwd"], os.path.join(self.folder, "stdout"), os.path.join(self.folder, "stderr"),
            self.cgroup_procs, host_name=str(spec.get("host_name", "")),
        )  # fmt: skip
        if spec.get("container"):
            env.update(contained.devices(len(spec.get("devices") or ())))
            return contained.Guard(spec["container"], self.folder, files).begin(spec["argv"], env)
        return processes.begin(spec["argv"], env, files)

    def may_restart(self) -> bool:
        """Whether a failure starts it again instead of ending the gang."""
        return self.restarts < int(self.spec.get("restarts", 0))

    def running(self) -> List[int]:
        """Returns the processes of its program, itself the first; of a container those in it."""
        if self.pid is None:
            return []
        if self.spec.get("container"):
            return contained.running(self.spec["container"], self.pid, self.order["attempt_id"], self.name)
        return [self.pid, *processes.descendants(self.pid)]

    def note(self) -> None:
        """Notes the processes below its own: one that makes itself a session of its own can lose its parent too."""
        known = {pid: born for pid, born in self.noted.items() if formats.start_time(pid) == born}
        below = {pid: formats.start_time(pid) for pid in processes.descendants(self.pid or 0)} if self.pid else {}
        self.noted = {**known, **{pid: born for pid, born in below.items() if born is not None}}

    def left(self, session: Optional[int], spared: Callable[[], Iterable[int]]) -> List[int]:
        """Returns what its ended process has left: all in its control group, or what is known to come from it."""
        found = self.counters.processes()
        if found is None:
            found = [
                pid
                for pid in processes.descendants(os.getpid())
                if processes.session(pid) == session
                or (pid in self.noted and self.noted[pid] == formats.start_time(pid))
                or processes.variable(pid, "DANLU_TASK") == self.name
            ]
        kept = {os.getpid(), *spared()}  # looked for later: what they have started by then is among theirs
        return [pid for pid in found if pid not in kept]

    def restart(self, failure: Dict[str, Any], spared: Callable[[], Iterable[int]]) -> None:
        """Ends what its process has left behind, and makes it wait for its next start.

        Args:
            failure: how it ended.
            spared: returns the processes that go on: what others do beside the task.
        """
        self.failure = failure
        session = self.pid
        self.pid = None
        self.restarts += 1
        self.due_at = time.monotonic() + RESTART_PAUSE_S
        for _ in range(LEFT_ROUNDS):
            if not processes.kill(self.left(session, spared)):
                break
            time.sleep(0.005)
        self.noted = {}

    def facts(self, ended: processes.Exit) -> Dict[str, Any]:
        """Returns what the status tells of its end."""
        killed = ended.signal == signal.SIGKILL or ended.exit_code == 128 + signal.SIGKILL  # itself, or a shell's child
        oom = killed and self.counters.oom_kills() > self.oom_before
        peak = self.counters.peak_memory_bytes() or ended.max_rss_bytes
        error = ""
        if self.spec.get("container") and ended.exit_code != 0:
            error, by_engine = contained.refused(self.folder)
            error = self.handed.redaction.text(error)  # an engine quotes what it was given
            oom = oom or by_engine
        if oom and not error:
            limit = self.counters.memory_limit_bytes()
            error = "killed by the kernel: it used %s" % size(peak) + (" of its %s" % size(limit) if limit else "")
        elif ended.signal is not None:
            error = "killed by %s" % processes.signal_name(ended.signal)
        return {
            "exit_code": ended.exit_code, "signal": ended.signal, "oom": oom, "error": error[: formats.MAX_ERROR],
            "peak_memory_bytes": peak, "cpu_ns": self.counters.cpu_ns() or ended.cpu_ns, "restarts": self.restarts,
        }  # fmt: skip

    def over(self, *, failed: bool, killed: bool = False) -> None:
        """Notes that it has ended for good."""
        self.done, self.failed, self.killed = True, failed, killed
        self.ended_at = time.monotonic()

    def leased(self) -> List[Tuple[str, int]]:
        """Returns where it was to listen."""
        host = str(self.spec.get("host", ports.LOOPBACK))
        return [(host, int(port)) for port in self.spec.get("ports", [])]

    def started(self) -> Dict[str, Any]:
        """Returns what the status tells of its start."""
        pid = self.pid or 0
        return {"task": self.name, "pid": pid, "start_time": formats.start_time(pid), "restarts": self.restarts}
