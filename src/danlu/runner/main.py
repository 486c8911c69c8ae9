"""The runner: one per attempt and node, the parent of its tasks' processes.

It holds the lock of the attempt's folder for its whole life, writes what happens to ``status``, follows what its processes
write, ends them when asked, and leaves nothing of them behind. It needs no server: one that restarts finds it by its lock.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Dict, FrozenSet, List, Optional

from . import attempt_folder, contained, formats, gang, ports, processes
from .checkpoints import Seals
from .handed import Handed
from .notices import Notice, parse
from .session import Sessions
from .tasks import Task
from .usage import Sampler

ACTIVE_S, IDLE_S = 0.02, 0.25
TICK_S = 1.0
RECORD_PART = 50
MAX_RECORDED = 4096
LEFTOVER_GRACE_S = 2.0
SESSIONS_GRACE_S = 5.0
"""So long sessions have to say how they ended: on a loaded machine that takes longer than ending."""
HINT_EVERY_S = 0.02
MAX_NAMED = 100
STARTED_AT_ONCE = 64
STOP_BYTES = 16_384
ALREADY = 3


class Runner:
    """One attempt's life.

    Args:
        folder: the attempt's.
        groups: for each task, the descriptors with which its process joins its control groups.
        handed: its secrets.
    """

    def __init__(self, folder: str, groups: Dict[str, List[int]], handed: Handed) -> None:
        self.folder, self.handed = folder, handed
        with open(os.path.join(folder, "order.json"), "rb") as file:
            self.order: Dict[str, Any] = json.loads(file.read().decode())
            self.server = os.fstat(file.fileno()).st_uid
        self.status = os.open(
            os.path.join(folder, "status"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self.seals = Seals(self.order["checkpoint_dir"], folder if self.order.get("pod") else "")
        self.tasks = [
            Task(folder, self.order, spec, handed, groups.get(spec["name"], ())) for spec in self.order["tasks"]
        ]
        self.stopping_until: Optional[float] = None
        self.notice: Optional[Notice] = None
        self.stopped = self.timed_out = self.unsure = self.preempted = False
        self.evicted = self.won = False
        self.lost = ""
        self.resume_from: Optional[str] = None
        self.last_at = 0
        self.recorded: List[List[int]] = []
        self.record_at = 0.0
        self.hints: Optional[socket.socket] = None
        self.hinted_at = 0.0
        self.usage = Sampler(self.order)
        self.doors = ports.Doors()
        if self.order.get("hint_socket"):
            self.hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self.hints.setblocking(False)

    # what others see

    def say(self, event: str, **facts: Any) -> None:
        """Appends an event to the status, durably; waits for room on a full disk."""
        self.last_at = max(time.time_ns(), self.last_at)
        line = json.dumps({"event": event, "at": self.last_at, **facts}).encode() + b"\n"
        while True:
            before = os.fstat(self.status).st_size
            try:
                if os.write(self.status, line) == len(line):
                    os.fdatasync(self.status)
                    break
                os.ftruncate(self.status, before)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            time.sleep(1.0)
        if event != "ended":  # that is hinted once the lock is free: until then nobody may believe it
            self.hint(at_once=True)

    def hint(self, at_once: bool = False) -> None:
        """Tells the server that there is something to see. It may not be there; that is no error."""
        now = time.monotonic()
        if self.hints is None or (not at_once and now - self.hinted_at < HINT_EVERY_S):
            return
        self.hinted_at = now
        try:
            self.hints.sendto(self.order["attempt_id"].encode(), self.order["hint_socket"])
        except OSError:
            return

    def tell_saved(self, newest: Optional[str]) -> Optional[Dict[str, Any]]:
        """Tells and returns which checkpoint is the newest proven one: what was done before it is kept."""
        facts = self.seals.tell(newest, os.path.join(self.folder, formats.SAVED), self.handed.redaction.text)
        self.hint()
        return facts

    # the life

    def run(self, hindrance: str = "") -> None:
        """Runs every task to its end; starts none where there is a hindrance."""
        processes.become_subreaper()
        self.say(
            "runner", pid=os.getpid(), start_time=formats.start_time(os.getpid()), boot_id=formats.boot_id(),
            version=formats.FORMAT,
        )  # fmt: skip
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        settled = self.seals.settle(self.order["attempt_id"])
        if settled.newest or settled.set_aside:
            hidden = self.handed.redaction.text  # a job may have named them by anything
            aside = [hidden(name) for name in settled.set_aside[:MAX_NAMED]]
            self.say("resumed", checkpoint=hidden(settled.newest) if settled.newest else None, set_aside=aside)
        for name in settled.set_aside[:MAX_NAMED]:
            self.tasks[0].follower.notice(
                "checkpoint %s was not complete: it was set aside in .danlu/incomplete" % name
            )
        deadline = None
        if self.order.get("max_time_s"):
            deadline = time.monotonic() + float(self.order["max_time_s"])
        self.resume_from = settled.newest
        self.tell_saved(settled.newest)
        self.sessions = Sessions(self.folder, self.server, self.tasks)
        self.look_for_stop()
        try:
            self.handed.write()
        except OSError as error:
            hindrance = hindrance or "the files of its secrets cannot be written: %s" % error
        if hindrance and not self.ending():
            for task in self.tasks:
                self.never(task, hindrance, None)
        self.start_waiting()
        self.loop(wake_read, deadline)
        self.finish()

    def start_waiting(self) -> None:
        """Starts what is to be started and can be; what is to end starts nothing any more."""
        startable, never = [], []
        for task in self.tasks:
            if not task.waiting or self.ending():
                continue
            if self.known():
                self.withdraw(task)
                continue
            hindrance = task.hindrance(time.monotonic(), self.doors)
            if hindrance is None:
                startable.append(task)
            elif hindrance:
                never.append((task, hindrance))
        for first in range(0, len(startable), STARTED_AT_ONCE):
            if self.stopping_until is None:
                self.start(startable[first : first + STARTED_AT_ONCE])
        for task, hindrance in never:
            self.never(task, hindrance, 1)

    def known(self) -> bool:
        """Says whether the gang's result is known."""
        return gang.known_at(task.member() for task in self.tasks) is not None

    def withdraw(self, task: Task) -> None:
        """Records that a task is not started any more; one that was to be started again has failed as it did before."""
        task.over(failed=True)
        before = {"signal": int(signal.SIGTERM), "error": "stopped before it began", "restarts": task.restarts}
        self.say("exited", task=task.name, stopped=True, **(task.failure or before))

    def start(self, tasks: List[Task]) -> None:
        """Starts some tasks' processes side by side: each waits for the kernel to move it into its control group."""
        begun = []
        for task in tasks:
            if task.restarts:
                self.resume_from = self.seals.newest() or self.resume_from  # the others may be writing one now
            begun.append(task.begin(self.resume_from))
        # all are asked before one is told: what ends the gang finds no process that does not hear it yet
        for task, (pid, error, code) in zip(tasks, [started() for started in begun]):
            task.pid = pid
            if pid is None:
                self.never(task, error, code)
            else:
                self.say("started", **task.started())

    def never(self, task: Task, error: str, code: Optional[int]) -> None:
        """Records that a task could not be started; the others would wait for it in vain. Without a code it is our fault."""
        error = self.handed.redaction.text(error)
        task.follower.notice(error)
        task.over(failed=True)
        if code is None and not self.lost:
            self.lost = "%s: %s" % (task.name, error)
        self.say("exited", task=task.name, exit_code=code, error=error[: formats.MAX_ERROR], restarts=task.restarts)
        self.end(float(self.order["grace_s"]))

    def loop(self, wake: int, deadline: Optional[float]) -> None:
        """Follows and waits until every task has ended; once it was asked to end, until nothing of them is left."""
        interval, tick = ACTIVE_S, 0.0
        while self.going_on() or self.winding_up():
            readable = self.readable([wake, *self.sessions.waiting()], interval)
            if wake in readable:
                os.read(wake, 4096)
            self.sessions.accept()
            for ended in processes.reap():
                self.ended(ended)
            self.start_waiting()
            active = behind = False
            for task in self.tasks:
                active = task.follower.step() or active
                behind = task.follower.behind or behind
            if active:
                self.hint()
            # quick while there is output; a quiet job costs four looks a second
            interval = 0.0 if behind else ACTIVE_S if active else min(IDLE_S, max(ACTIVE_S, interval * 1.3))
            now = time.monotonic()
            if readable or now - tick >= TICK_S:
                tick = now
                self.look_for_stop()
                self.doubt()
                if self.seals.watch(time.monotonic_ns()):
                    self.tell_saved(self.seals.newest())
                self.record()
                self.usage.step(self.tasks, now)
            if self.ending():
                interval = min(interval, 0.05)
            self.end_in_time(now, deadline)
            if self.stopping_until is not None and now > self.stopping_until:
                for ended in processes.kill_all():
                    self.ended(ended)

    def end_in_time(self, now: float, deadline: Optional[float]) -> None:
        """Ends what has to end by now, unless it does already. A gang that has heard a notice ends by that alone."""
        grace_s = float(self.order["grace_s"])
        if self.stopping_until is not None:
            return
        if self.notice is not None:
            if self.notice.over(self.seals, now):
                self.end(self.notice.grace_s(grace_s, now))
            return
        end_at = gang.end_at(task.member() for task in self.tasks)
        if deadline is not None and now > deadline:
            self.timed_out = True
            self.end(grace_s)
        elif end_at is not None and now >= end_at:
            self.end(grace_s)

    @staticmethod
    def readable(files: List[Any], timeout_s: float) -> List[int]:
        """Returns the descriptors that can be read, once there are some, or after a time; they may be thousands."""
        poll = select.poll()
        for file in files:
            poll.register(file, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(int(timeout_s * 1000 + 0.999))]

    def ending(self) -> bool:
        """Says whether it was asked to end, or told that it has to soon: nothing is started any more."""
        return self.stopping_until is not None or self.notice is not None

    def going_on(self) -> bool:
        """Says whether a task runs, or is still to be started."""
        return any(not task.done and not (self.ending() and task.pid is None) for task in self.tasks)

    def winding_up(self) -> bool:
        """Says whether processes that a task started still use the time that they were given to end."""
        if self.stopping_until is None:
            return self.notice is not None and self.notice.busy()
        return bool(processes.descendants(os.getpid()))

    def record(self) -> None:
        """Notes which processes there are, for the server to end should this one be killed; control groups tell it too.

        A daemon that has cleared its environment has nothing else that shows whose it is.
        """
        began = time.monotonic()
        if self.order.get("grouped") or began < self.record_at:
            return
        found = []
        for pid in processes.descendants(os.getpid())[:MAX_RECORDED]:
            born = formats.start_time(pid)
            if born is not None:
                found.append([pid, born])
        for task in self.tasks:
            if task.may_restart():
                task.note()
        if found != self.recorded:
            text = json.dumps({"boot_id": formats.boot_id(), "processes": found})
            try:
                formats.write_atomically(os.path.join(self.folder, formats.PROCESSES), text.encode())
                self.recorded = found
            except OSError:
                pass  # a full disk, or the job has put something there: the next time may be better
        # on a machine with very many processes it is looked less often
        self.record_at = began + max(TICK_S, RECORD_PART * (time.monotonic() - began))

    def look_for_stop(self) -> None:
        """Reads the stop file, if there is one. What the job has put in its place is none: the server ends it then."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(os.path.join(self.folder, "stop"), flags)
            with os.fdopen(descriptor, "rb") as file:
                said = json.loads(file.read(STOP_BYTES).decode())
            grace_s, notice, outcome = float(said["grace_s"]), parse(said), said.get("outcome")
        except (OSError, ValueError, TypeError, KeyError):
            return
        if notice is not None:
            self.give_way(notice)
            return
        if self.stopping_until is None:
            # of a gang in pods, each runner sees its own task alone: what became of the others it is told
            self.evicted, self.won = bool(said.get("evicted")), outcome == formats.WELL
            self.stopped = not self.evicted and not outcome
        self.end(grace_s)

    def give_way(self, told: Dict[str, Any]) -> None:
        """Gives the notice to whoever runs. Where nothing has begun, or all is done, there is nothing to save.

        It is told again and again, and heard once: how much time is left is known here, by a clock that nobody sets.
        """
        if self.stopping_until is not None or self.notice is not None:
            return
        if self.known():
            self.end(float(self.order["grace_s"]))
        elif all(task.pid is None for task in self.tasks):
            self.preempted = True
            self.end(0.0)
        else:
            self.preempted = True
            self.notice = Notice(told, time.monotonic())
            self.say("notice", signal=told["signal"], within_s=told["within_s"])
            self.notice.give(told, self.folder, self.tasks)
            self.tasks[0].follower.notice(self.notice.words())

    def end(self, grace_s: float) -> None:
        """Asks everything to end; a second call can only shorten the time that is left."""
        self.sessions.close()
        until = time.monotonic() + grace_s
        if self.stopping_until is None:
            self.stopping_until = until
            # who has heard SIGTERM as a notice is busy with it
            spared = self.notice.spared() if self.notice is not None and not self.stopped else frozenset()
            asked = [pid for pid in processes.descendants(os.getpid(), self.guards() | spared) if pid not in spared]
            processes.tell(signal.SIGTERM, asked)
            processes.send(signal.SIGCONT, self.guards())
        self.stopping_until = min(self.stopping_until, until)

    def guards(self) -> FrozenSet[int]:
        """Returns the processes that stand before running containers."""
        return frozenset(t.pid for t in self.tasks if t.pid and not t.done and t.spec.get("container"))

    def ended(self, ended: processes.Exit) -> None:
        """Records a child's end, if it is a task's; a task that may be started again waits for that."""
        self.sessions.ended(ended.pid)
        task = next((t for t in self.tasks if t.pid == ended.pid), None)
        if task is None or task.done:
            return
        if task.spec.get("container"):
            contained.end_orphans(self.guards() - {ended.pid})
        facts, failed = task.facts(ended), ended.exit_code != 0
        self.unsure = self.unsure or (failed and self.cut_short(ended))
        # what ends after the result is known, or because it was asked to, decides nothing any more
        over = self.ending() or self.known()
        if failed and not over and task.may_restart():
            what = "exit code %d" % ended.exit_code if ended.exit_code is not None else facts["error"]
            self.doors.shut("%s:%d" % at for at in task.leased())
            task.restart(facts, self.sessions.pids)
            task.follower.notice("%s failed (%s): it is started again" % (task.name, what))
            self.say("restarted", task=task.name, restarts=task.restarts, why=what)
            return
        if failed and not over:
            facts["port_taken"] = self.stolen()
            facts["last_lines"] = task.follower.last_lines()
        task.over(failed=failed, killed=ended.exit_code is None)
        self.say("exited", task=task.name, stopped=over, **facts)

    def stolen(self) -> Optional[int]:
        """Returns the port of one of the tasks on which a program listens that is not the gang's."""
        # whose container belongs to a daemon is not below this process: it cannot be told from a stranger
        leased = [
            at for task in self.tasks if not (task.spec.get("container") or {}).get("daemon") for at in task.leased()
        ]
        return ports.stranger(leased, lambda: [*processes.descendants(os.getpid()), os.getpid()])

    def cut_short(self, ended: processes.Exit) -> bool:
        """Says whether a task that failed may have been writing a checkpoint. One that was asked to end has its own code."""
        asked = (self.stopped or self.timed_out or self.preempted) and ended.exit_code is not None
        return not asked and not self.decided_well()

    def doubt(self) -> None:
        """Puts the checkpoints in doubt that a failed task may have been writing, before any is sealed."""
        if self.unsure:
            self.unsure = False
            self.seals.doubt()

    def decided_well(self) -> bool:
        """Says whether all tasks that decide have ended well."""
        return self.won or all(task.done and not task.failed for task in self.tasks if task.member().decides)

    def finish(self) -> None:
        """Ends what the tasks left behind, spools everything, and says so."""
        self.sessions.close()
        if processes.send(signal.SIGTERM):
            began = time.monotonic()
            while processes.descendants(os.getpid()):
                if time.monotonic() - began > (SESSIONS_GRACE_S if self.sessions.open else LEFTOVER_GRACE_S):
                    break
                for ended in processes.reap():
                    self.sessions.ended(ended.pid)
                time.sleep(0.01)
            processes.kill_all()
        processes.reap()
        self.handed.remove()
        for task in self.tasks:
            contained.remove(task.spec.get("container"))
        # what a program leaves that ended by itself, in good order or because it was asked to, is as it wanted it
        asked = self.ending() and not any(task.killed for task in self.tasks)
        self.doubt()
        settled = self.seals.settle(self.order["attempt_id"], trusted=asked or self.decided_well())
        for task in self.tasks:
            task.follower.drain()
            task.follower.close()
        for task in self.tasks:
            if task.waiting:
                self.withdraw(task)
        message = "it ran longer than its max_time of %g s" % float(self.order["max_time_s"]) if self.timed_out else ""
        message = "its pod was told to end: it was deleted or evicted, or its node drained" if self.evicted else message
        self.say(
            "ended", stopped=self.stopped, timed_out=self.timed_out, preempted=self.preempted, lost=bool(self.lost),
            message=self.lost or message, saved=self.tell_saved(settled.newest), evicted=self.evicted,
        )  # fmt: skip

    def salvage(self, seen_at: int) -> None:
        """Spools what a killed runner left, and says that the attempt is lost. Its processes are dead already.

        ``seen_at``: its last sign of life, ns UTC; 0 for none.
        """
        events = formats.read_status(os.path.join(self.folder, "status"))
        over = {event.get("task") for event in events if event["event"] == "exited"}
        self.last_at = max([at for at in (event.get("at") for event in events) if type(at) is int], default=0)
        for task in self.tasks:
            task.follower.drain()
            task.follower.close()
            if task.name not in over:
                self.say("exited", task=task.name, error="its runner was killed", lost=True)
        self.say(
            "ended", stopped=False, timed_out=False, lost=True, message="the runner was lost", seen_at=seen_at or None
        )


def run(
    folder: str, salvage: bool = False, groups: Optional[Dict[str, List[int]]] = None, handed: Optional[Handed] = None,
    hindrance: str = "",
) -> int:  # fmt: skip
    """Runs (or salvages) the attempt in ``folder``; returns 0, or 3 where that is done or being done already.

    ``groups`` and ``handed``: see Runner. ``hindrance``: why nothing of it can be started.
    """
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not attempt_folder.locked(lock):
        return ALREADY
    seen_at = attempt_folder.last_sign(folder) if salvage else 0  # before anything is written
    formats.mend_status(os.path.join(folder, "status"))
    events = formats.read_status(os.path.join(folder, "status"))
    if any(event["event"] == "ended" for event in events):
        return ALREADY
    if not salvage and events:
        return ALREADY  # another runner was here and died: only salvage may follow
    runner = Runner(folder, groups or {}, handed or Handed())
    if salvage:
        runner.salvage(seen_at)
    else:
        runner.run(hindrance)
    os.close(lock)
    runner.hint(at_once=True)
    if runner.hints is not None:
        runner.hints.close()
    return 0


def main(arguments: List[str]) -> int:
    """``[--salvage] FOLDER``."""
    salvage = arguments[:1] == ["--salvage"]
    if len(arguments) != 1 + salvage:
        print("usage: runner [--salvage] FOLDER", file=sys.stderr)
        return 2
    return run(arguments[-1], salvage)
