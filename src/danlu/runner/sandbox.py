"""What keeps an attempt from the machine and from other attempts: layers, each used where the machine allows it.

The runner itself lives in the sandbox, so that tasks and sessions, which it starts, are in the same one: they see each
other's processes, shared memory and files, and nobody else's. Nothing of it is done when a task starts. The names of the
layers are those of domain/isolation.py. A layer that cannot be made is missing, and it is known why.
"""

from __future__ import annotations

import os
import resource
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from . import landlock, mounts, procfs, seccomp

TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - they are covered
SHARED_MEMORY, QUEUES = "/dev/shm", "/dev/mqueue"  # noqa: S108
EVERYBODYS = (*TEMPORARY, SHARED_MEMORY)
"""Where every user of a machine may make files."""
WRITABLE_FILES = ("/dev", "/proc")
"""Devices and the kernel's files: which of them a user may write to, their modes say."""
PR_SET_NO_NEW_PRIVS = 38
MAX_FILES = 1 << 20
"""A process may have so many open: with more, programs that close all that there may be take minutes."""
MAX_PROCESSES = 1 << 14
MOUNTED = ("mount-namespace", "closed-data-folder")
KEPT_APART = ("ipc-namespace", "private-tmp", "hidden-processes")


class Sandbox:
    """The layers of one attempt.

    Args:
        wanted: ``confine``: whether this is what isolates the attempt; ``tenants``: whether several people share the machine;
            ``hidden``: the platform's data folder; ``private``: a folder to have in the place of /tmp; ``missing``: layers
            that are known not to work here, and why; ``require``: layers without which the attempt must not start;
            ``naming``: the runner gives tasks host names.
        limits: what is in force already.
    """

    def __init__(self, wanted: Dict[str, Any], limits: List[str]) -> None:
        self.wanted = wanted
        self.confine, self.tenants = bool(wanted["confine"]), bool(wanted["tenants"])
        self.force = list(limits)
        self.missing: Dict[str, str] = dict(wanted["missing"])

    def possible(self, name: str) -> bool:
        """Whether a layer is not known to be missing here."""
        return name not in self.missing

    def layer(self, name: str, action: Callable[[], Any]) -> None:
        """Makes a layer, if it is possible."""
        if not self.possible(name):
            return
        try:
            action()
        except OSError as error:
            self.missing[name] = error.strerror or str(error)
        else:
            self.force.append(name)

    def set_up(self, needed: List[Dict[str, Any]], uid: Optional[int], overlay: Optional[Dict[str, str]]) -> None:
        """Makes what takes privilege: mounts of the attempt's own, and what is laid and put over folders.

        Args:
            needed: the paths that the job's user must be able to reach, and whether it writes to them.
            uid: that user; None for this process's own.
            overlay: see ``mounts.lay_over``.
        """
        self.set_up_mounts(needed, uid, overlay)
        if uid is not None and self.confine and self.wanted["naming"]:
            mounts.users_of(uid)  # one for all tasks: those of different ones cannot look into each other, as MPI does

    def set_up_mounts(
        self, needed: List[Dict[str, Any]], uid: Optional[int], overlay: Optional[Dict[str, str]]
    ) -> None:
        """Makes the attempt's own mounts, if it is to have some."""
        mounting = self.confine and self.possible("mount-namespace")
        several = mounting and self.tenants and self.possible("ipc-namespace")
        necessary = mounts.covers(needed, uid)
        if not (mounting or overlay or necessary):
            return
        try:
            mounts.own(mounts.CLONE_NEWIPC if several else 0)
        except OSError as error:
            if overlay:
                raise mounts.Unmounted("the code cannot be mounted: %s" % error) from error
            if necessary:
                raise mounts.unopened(necessary, error) from error
            self.missing.update(dict.fromkeys([*MOUNTED, *KEPT_APART], "no mounts: %s" % error.strerror))
            return
        self.force.append("mount-namespace")
        if overlay:
            mounts.lay_over(overlay)
        self.cover(needed, uid, mounting)
        if uid is None:
            mounts.give_up()

    def cover(self, needed: List[Dict[str, Any]], uid: Optional[int], mounting: bool) -> None:
        """Covers what is closed and, where that is ``mounting``'s wish, what is hidden and what all users share."""
        hidden = [self.wanted["hidden"]] if mounting and self.possible("closed-data-folder") else []
        private_too = mounting and self.tenants and self.possible("private-tmp")
        # a mount lies where a link leads; what is there is everybody's whether it is a mount already or not
        shared = _folders(TEMPORARY) if private_too else []
        memory = _folders((SHARED_MEMORY,)) if private_too else []
        before = {path: _identity(path) for path in EVERYBODYS}
        found = mounts.covers(needed, uid, [*hidden, *shared, *memory])
        private = (
            os.open(self.wanted["private"], os.O_PATH | os.O_CLOEXEC) if private_too else -1
        )  # it may be covered too
        for folder, back in found.items():
            instead = "/proc/self/fd/%d" % private if folder in shared else None
            mounts.cover(folder, back, instead, shared=folder in memory)
        if private_too:
            os.close(private)
            _make_again([*shared, *memory])
            self.not_private(before)
        for folder in hidden:
            above = [one.path for back in found.values() for one in back if folder.startswith(one.path + "/")]
            if above:
                self.missing["closed-data-folder"] = "it lies in %s, which jobs need" % above[0]
            self.layer("closed-data-folder", lambda: None)
        if mounting and self.tenants:
            self.layer("ipc-namespace", lambda: None)
            self.layer("private-tmp", self.own_queues)
            self.layer("hidden-processes", self.hide_processes)

    def not_private(self, before: Dict[str, Optional[Tuple[int, int]]]) -> None:
        """Says which of the folders that all users share is still the one that was there ``before``, if any is."""
        for path, identity in before.items():
            if os.path.lexists(path) and identity in (None, _identity(path)):
                where = os.path.realpath(path)
                led = "" if where == path else ", which leads to %s," % where
                self.missing["private-tmp"] = "%s%s cannot be covered" % (path, led)

    @staticmethod
    def own_queues() -> None:
        """Gives the attempt message queues of its own, which end with it."""
        place = os.path.realpath(QUEUES)
        if os.path.ismount(place):
            mounts.mount("mqueue", place, "mqueue", mounts.MS_NOSUID | mounts.MS_NODEV)

    @staticmethod
    def hide_processes() -> None:
        """Shows of the machine's processes only those that one may look into; the runner keeps the whole list."""
        procfs.keep()
        # the word is understood since Linux 5.8; before that, it would be the machine's own list that changes
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("proc", "/proc", "proc", flags, "hidepid=invisible")

    def close_off(self, needed: List[Dict[str, Any]]) -> None:
        """Makes what takes no privilege, and cannot be undone."""
        self.layer("no-new-privileges", lambda: mounts.libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        if not self.confine:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            return
        self.layer("rlimits", self.limit)
        self.landlock([item["path"] for item in needed if item["write"]])
        self.layer("seccomp", lambda: seccomp.refuse(tenants=self.tenants, naming=bool(self.wanted["naming"])))

    def limit(self) -> None:
        """Sets what a process may have: no core dumps, not endlessly many files; where nothing else counts, processes."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _at_most(resource.RLIMIT_NOFILE, MAX_FILES)
        if self.tenants and "pids-limit" not in self.force:
            _at_most(resource.RLIMIT_NPROC, MAX_PROCESSES)

    def landlock(self, folders: List[str]) -> None:
        """Lets the attempt signal only itself and, where several share the machine, write to its own folders only."""
        found = landlock.version()
        files = self.tenants and self.possible("landlock") and found >= landlock.FILES_VERSION
        signals = self.possible("scoped-signals") and found >= landlock.SCOPE_VERSION
        why = "Landlock %s" % ("is of version %d here" % found if found else "is not in this kernel")
        if not files:
            self.missing.setdefault("landlock", why if self.tenants else "all jobs run as you, and write where you may")
        if not signals:
            self.missing.setdefault("scoped-signals", why)
        if not (files or signals):
            return
        every = [*folders, *EVERYBODYS] if files else []
        led = [path for path in EVERYBODYS if os.path.realpath(path) not in EVERYBODYS]
        if files and led and "private-tmp" not in self.force:  # what lies there beside it could be written too
            where = os.path.realpath(led[0])
            self.missing["landlock"] = "%s leads to %s, which is not the attempt's own" % (led[0], where)
        try:
            landlock.enter(found, every, WRITABLE_FILES, scoped=signals)
        except OSError as error:
            self.missing.update(dict.fromkeys(("landlock", "scoped-signals"), error.strerror or str(error)))
        for name in ("landlock", "scoped-signals"):
            self.layer(name, lambda: None)

    def check(self) -> None:
        """Raises Refused where a layer that is required is not in force."""
        for name in self.wanted["require"]:
            if name not in self.force:
                other = (
                    "the platform has no such layer for it"
                    if self.confine
                    else "its container is isolated by the engine"
                )
                raise mounts.Refused("%s is required, and is not in force: %s" % (name, self.missing.get(name, other)))


def _folders(paths: Iterable[str]) -> List[str]:
    """Returns the folders that these are, or lead to; nothing can be laid over the topmost one."""
    return [path for path in map(os.path.realpath, paths) if os.path.isdir(path) and path != "/"]


def _identity(path: str) -> Optional[Tuple[int, int]]:
    """Returns what tells the folder at a path from any other; None where there is none."""
    if not os.path.isdir(path):
        return None
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _make_again(paths: Iterable[str]) -> None:
    """Makes the folders for all that were in another one, which is covered."""
    before = os.umask(0o022)  # what leads there is for the job to pass
    for path in paths:
        try:
            if not os.path.isdir(path):
                os.makedirs(path)
                os.chmod(path, 0o1777)  # noqa: S103 - as these folders are
        except OSError:
            continue  # it was in a folder that the job's user cannot pass
    os.umask(before)


def _at_most(what: int, most: int) -> None:
    soft, hard = resource.getrlimit(what)
    hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(what, (hard if soft == resource.RLIM_INFINITY else min(soft, hard), hard))
