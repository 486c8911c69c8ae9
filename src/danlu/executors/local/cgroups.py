"""Control groups: limits and counters of an attempt, and the certainty that nothing of it is left.

Version 1 has one tree per controller, version 2 one tree for all. Which of them this machine has, and where this process may
make groups, is read from a mounted tree (``root``) and ``/proc/self/cgroup`` as text, so that any machine can be recorded.
A controller that cannot be used is absent: its limit is then not set, and not claimed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CONTROLLERS: Final = ("memory", "cpu", "cpuacct", "pids")
KILL_ROUNDS: Final = 400
CPU_PERIOD_US: Final = 100_000
MAX_PROCESSES: Final = 16_384
OURS: Final = "danlu"
ASIDE: Final = "danlu-aside"


@dataclass(frozen=True, slots=True)
class Tree:
    """Where groups are made: the version, and a folder for each controller that can be used."""

    version: int
    bases: dict[str, Path]

    def group(self, name: str) -> Group:
        """Returns the group of that name; it need not exist."""
        return Group(self.version, {controller: base / OURS / name for controller, base in self.bases.items()})


def detect(root: Path, own: str) -> Tree | None:
    """Returns where this process can make groups, or None where it cannot.

    Args:
        root: where the trees are mounted, ``/sys/fs/cgroup``.
        own: the text of ``/proc/self/cgroup``.
    """
    paths: dict[str, str] = {}
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(",") or [""]:
            paths[name] = path
    bases: dict[str, Path] = {}
    for controller in CONTROLLERS:
        mounted = root / controller
        if controller not in paths or not (mounted / "cgroup.procs").exists():
            continue
        for base in (mounted / paths[controller].lstrip("/"), mounted):
            if base.is_dir() and os.access(base, os.W_OK):
                bases[controller] = base
                break
    if "memory" in bases:
        return Tree(1, bases)
    if not (root / "cgroup.controllers").exists() or "" not in paths:
        return None
    return _unified(root, paths[""])


def _unified(root: Path, own: str) -> Tree | None:
    parts = [part for part in own.split("/") if part]
    for depth in range(len(parts) + 1):  # the highest folder that is ours: below it controllers can be handed on
        base = root.joinpath(*parts[:depth])
        control = base / "cgroup.subtree_control"
        if not (os.access(base, os.W_OK) and os.access(control, os.W_OK)):
            continue
        offered = (base / "cgroup.controllers").read_text().split()
        usable = [name for name in ("memory", "cpu", "pids") if name in offered]
        if "memory" in usable:
            return Tree(2, dict.fromkeys(usable, base))
    return None


@dataclass(frozen=True, slots=True)
class Group:
    """One attempt's group: a folder for each controller (the same one in version 2)."""

    version: int
    folders: dict[str, Path]

    def child(self, name: str) -> Group:
        """Returns the group of that name below this one; it need not exist."""
        return Group(self.version, {controller: folder / name for controller, folder in self.folders.items()})

    def procs(self) -> list[Path]:
        """Returns the files through which a process joins it."""
        return [folder / "cgroup.procs" for folder in self.places if folder.is_dir()]

    def create(
        self, *, memory_bytes: int | None = None, cpu_milli: int | None = None, processes: int = MAX_PROCESSES
    ) -> tuple[str, ...]:
        """Makes the group, sets its limits, and returns the names of those that are in force."""
        force: list[str] = []
        for folder in self.places:
            with contextlib.suppress(OSError):
                if self.version == 2:
                    self._hand_on(folder)
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if memory_bytes is not None and self._limit_memory(memory_bytes):
            force.append("memory")
        if cpu_milli is not None and self._limit_cpu(cpu_milli):
            force.append("cpu")
        if self._write("pids", "pids.max", str(processes)):
            force.append("pids")
        return tuple(force)

    def _hand_on(self, folder: Path) -> None:
        """Hands the controllers down from the base to the folder's parent (version 2)."""
        above = list(itertools.takewhile(lambda parent: parent.name != OURS, folder.parents))
        ours = folder.parents[len(above)]
        for parent in (ours.parent, ours, *reversed(above)):
            parent.mkdir(mode=0o755, exist_ok=True)
            for name in self.folders:
                try:
                    write(parent / "cgroup.subtree_control", f"+{name}")
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        continue  # without this one; its limit is then not claimed
                    _make_way(parent)
                    with contextlib.suppress(OSError):
                        write(parent / "cgroup.subtree_control", f"+{name}")

    def _limit_memory(self, limit: int) -> bool:
        if self.version == 1:
            done = self._write("memory", "memory.limit_in_bytes", str(limit))
            self._write("memory", "memory.memsw.limit_in_bytes", str(limit))  # absent without swap accounting
            return done
        done = self._write("memory", "memory.max", str(limit))
        self._write("memory", "memory.swap.max", "0")
        return done

    def _limit_cpu(self, milli: int) -> bool:
        quota = max(1000, CPU_PERIOD_US * milli // 1000)
        if self.version == 1:
            return self._write("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)) and self._write(
                "cpu", "cpu.cfs_quota_us", str(quota)
            )
        return self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")

    def _write(self, controller: str, name: str, text: str) -> bool:
        folder = self.folders.get(controller)
        if folder is None:
            return False
        try:
            write(folder / name, text)
        except OSError:
            return False
        return True

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders, each once."""
        return tuple(dict.fromkeys(self.folders.values()))

    def counters(self) -> dict[str, Any] | None:
        """Returns the folders to read counters from, as the runner's order has them."""
        memory, cpu = self.folders.get("memory"), self.folders.get("cpuacct", self.folders.get("cpu"))
        if memory is None:
            return None
        return {"version": self.version, "memory": str(memory), "cpu": None if cpu is None else str(cpu)}

    def processes(self) -> set[int]:
        """Returns the ids of all processes in it and in the groups below it."""
        found: set[int] = set()
        for place in self.places:
            for folder in (place, *_below(place)):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        return found - {0}

    def kill(self) -> bool:
        """Kills every process in it until none is left; returns whether none is. Nothing can be started in it meanwhile."""
        self._write("pids", "pids.max", "0")  # create() lifts it again
        for _ in range(KILL_ROUNDS):
            left = self.processes()
            if not left:
                return True
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        return False

    def remove(self) -> None:
        """Removes the empty group and those below it. Absent is success."""
        for folder in (one for place in self.places for one in (*_below(place), place)):
            for _ in range(20):  # the kernel lets go of the last process a moment after its end
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.005)
                else:
                    break


def _below(folder: Path) -> list[Path]:
    """Returns the folders directly below one: an attempt's group has one level of groups."""
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def write(path: Path, text: str) -> None:
    """Writes a control file, which must be there: in a folder that is no control group, nothing is made."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _make_way(folder: Path) -> None:
    """Moves the processes of a folder to one below it: where processes are, no controller can be handed on."""
    aside = folder / ASIDE
    with contextlib.suppress(OSError):
        aside.mkdir(mode=0o755, exist_ok=True)
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):  # it has ended
                write(aside / "cgroup.procs", pid)


def own() -> str:
    """Returns the control groups of this process, as the kernel writes them; "" where it has none."""
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""
