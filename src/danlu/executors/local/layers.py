"""Large trees of code, kept once on this machine, of which each attempt sees a private copy.

A tree is a folder of hard links into the project's kept files, in a folder that no job can pass. An attempt's launcher mounts
an overlay in the attempt's own mount namespace: the tree below, above it a folder that takes what the attempt writes.
So a start costs as much as the links of what changed, not as the code; and what an attempt writes, no other sees. The kernel
empties folders that it is given for an overlay, and root gives them: no job must be able to put a link in their place.

::

    ROOT/uses/ATTEMPT                  a link to the tree that an attempt stands on
    ROOT/writes/ATTEMPT/upper          what it has written; its user's own, who cannot pass ROOT to reach it
    ROOT/writes/ATTEMPT/inner          the kernel's
    ROOT/writes/ATTEMPT/tmp            what it sees as /tmp, where it has one of its own
    ROOT/projects/PROJECT/files/ab/..  files by content
    ROOT/projects/PROJECT/trees/HASH   trees, removed by age once nothing stands on them
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol

from danlu.errors import DanluError, ExecutorUnavailable
from danlu.executors.base import LaunchOrder
from danlu.executors.local import folders, starting

LOG = logging.getLogger("danlu.executors")
COPIED_BYTES: Final = 8 * 2**20
COPIED_FILES: Final = 256
"""What is not larger is copied, which takes less than 0.1 s."""
KEPT_TREES: Final = 4
"""Of each project, besides those that attempts stand on."""
KEPT_BYTES: Final = 20 * 2**30
"""Of each project's files, once no attempt stands on them."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class CodeSource(Protocol):
    """Lays trees of code out as folders. See Code in blobs/code.py."""

    def size(self, project: str, tree: str) -> tuple[int, int]:
        """Returns a tree's (bytes, files)."""

    def copy(self, project: str, tree: str, folder: Path) -> None:
        """Writes a private copy of a tree into an empty folder."""

    def link(self, project: str, tree: str, folder: Path, files: Path, uid: int | None) -> None:
        """Makes a tree of hard links to files kept in ``files``, all of it of this user."""

    def names(self, project: str, tree: str) -> frozenset[str]:
        """Returns the names in a tree's topmost folder."""

    def change(self, project: str, old: str, new: str, folder: Path, files: Path, uid: int | None) -> None:
        """Makes the tree of links of ``old`` one of ``new``."""


class Layers:
    """The trees that are kept, and who stands on them.

    Args:
        root: the folder of all this; nobody else's.
        source: lays trees out.
        possible: whether overlays can be mounted here; asked once, when it first matters.
    """

    def __init__(self, root: Path, source: CodeSource, possible: Callable[[], bool]) -> None:
        self.root, self.source = root, source
        self._ask, self._possible = possible, threading.Lock()
        self._answer: bool | None = None
        self._locks: dict[str, threading.RLock] = {}
        self._tidying: set[threading.Thread] = set()

    def start(self, present: Collection[str]) -> None:
        """Makes the folders; what attempts stood on that are no longer present is free. Half made trees are removed."""
        for folder in (self.root, self.root / "uses", self.root / "writes", self.root / "projects"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        for use in (self.root / "uses").iterdir():
            if use.name not in present:
                use.unlink()
        for writes in (self.root / "writes").iterdir():
            if writes.name not in present:
                folders.remove(writes)
        for unfinished in (self.root / "projects").glob("*/trees/.*"):
            folders.remove(unfinished)
        for unfinished in (self.root / "projects").glob("*/files/*/.*"):
            unfinished.unlink()
        for project in (self.root / "projects").iterdir():
            self._tidy(project.name)

    def refused(self) -> None:
        """A mount did not work although it had: from now on code is copied."""
        LOG.warning("an overlay could not be mounted: from now on the code of jobs is copied, which takes longer")
        self._answer = False

    def lay_out(self, order: LaunchOrder, uid: int | None, attempt: Path) -> None:
        """Fills the working folder in an attempt's folder as it is made, or makes what is needed to mount it."""
        job = order.job
        if job.spec.code is None:
            return
        if self.take(order.attempt.id, job.project, job.spec.code, uid) is None:
            self.source.copy(job.project, job.spec.code, attempt / "work")
            return
        writes = self.root / "writes" / order.attempt.id
        folders.remove(writes)  # of a launch that failed
        for folder in (writes, writes / "upper", writes / "inner"):
            folder.mkdir(mode=0o700)
        if uid is not None:
            os.chown(writes / "upper", uid, uid)

    def temporary(self, attempt_id: str) -> Path:
        """Returns a folder that an attempt has in the place of /tmp, as empty as it was left; no job can pass to it else."""
        folder = self.root / "writes" / attempt_id / "tmp"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o1777)
        return folder

    def overlay(self, attempt: Path) -> dict[str, str] | None:
        """Returns what the launcher mounts on the working folder of an attempt, by the attempt's folder; None for nothing."""
        lower = self.of(attempt.name)
        if lower is None:
            return None
        writes = self.root / "writes" / attempt.name
        found = {"lower": lower, "upper": writes / "upper", "inner": writes / "inner", "target": attempt / "work"}
        return {name: str(path) for name, path in found.items()}

    def take(self, attempt_id: str, project: str, tree: str, uid: int | None) -> Path | None:
        """Returns the tree that an attempt shall stand on, made if need be; None where its code is to be copied."""
        use = self.root / "uses" / attempt_id
        use.unlink(missing_ok=True)  # of a launch that failed
        size, files = self.source.size(project, tree)
        if (size <= COPIED_BYTES and files <= COPIED_FILES) or not self._mounts():
            return None
        with self._lock(project):
            use.symlink_to(self._tree(project, tree))
            try:
                self._make(project, tree, uid)
            except OSError as error:
                if error.errno not in FULL or not self._shrink(project, 0):
                    raise
                self._make(project, tree, uid)
        return self._tree(project, tree)

    def of(self, attempt_id: str) -> Path | None:
        """Returns the tree that an attempt stands on, if any."""
        try:
            return (self.root / "uses" / attempt_id).readlink()
        except FileNotFoundError:
            return None

    def leave(self, attempt_id: str) -> None:
        """Nothing of the attempt is left: it stands on nothing. What is too much then is removed beside."""
        folders.remove(self.root / "writes" / attempt_id)
        tree = self.of(attempt_id)
        if tree is None:
            return
        project = tree.parent.parent.name
        (self.root / "uses" / attempt_id).unlink(missing_ok=True)
        self._tidy(project)

    def _mounts(self) -> bool:
        with self._possible:
            if self._answer is None:
                self._answer = self._ask()
                if not self._answer:
                    LOG.info("overlays cannot be mounted here: the code of jobs is copied")
            return self._answer

    def _lock(self, project: str) -> threading.RLock:
        return self._locks.setdefault(project, threading.RLock())

    def _tree(self, project: str, tree: str) -> Path:
        return self.root / "projects" / project / "trees" / tree.partition(":")[2]

    def _make(self, project: str, tree: str, uid: int | None) -> None:
        target = self._tree(project, tree)
        if target.is_dir():
            os.utime(target)  # the trees that were not used for longest go first
            return
        files = target.parent.parent / "files"
        for folder in (files, target.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}")
        folders.remove(unfinished)
        try:
            if not self._change(project, tree, unfinished, files, uid):
                self.source.link(project, tree, unfinished, files, uid)
            unfinished.rename(target)
            os.utime(target)
        finally:
            folders.remove(unfinished)

    def _change(self, project: str, tree: str, unfinished: Path, files: Path, uid: int | None) -> bool:
        """Makes a tree out of one that nothing stands on and that is like it, if there is one."""
        names = self.source.names(project, tree)
        for idle in reversed(self._idle(project)):
            old = f"sha256:{idle.name}"
            try:
                before = self.source.names(project, old)
                if 2 * len(names & before) < len(names | before):
                    continue
                idle.rename(unfinished)
                self.source.change(project, old, tree, unfinished, files, uid)
            except (DanluError, OSError) as error:
                LOG.info("the tree %s of project %s is made anew: %s", tree, project, error)
                folders.remove(unfinished)
                return False
            return True
        return False

    def _idle(self, project: str) -> list[Path]:
        """Returns the trees that nothing stands on, the longest unused first."""
        used = {use.readlink() for use in (self.root / "uses").iterdir()}
        trees = (self.root / "projects" / project / "trees").glob("[!.]*")
        return sorted((tree for tree in trees if tree not in used), key=lambda tree: tree.stat().st_mtime)

    def _tidy(self, project: str) -> None:
        """Removes what is too much, beside: nobody waits for it."""

        def work() -> None:
            try:
                self._shrink(project, KEPT_TREES)
            except (DanluError, OSError) as error:
                LOG.warning("code that project %s no longer needs cannot be removed: %s", project, error)

            finally:
                self._tidying.discard(threading.current_thread())

        thread = threading.Thread(target=work, name="code", daemon=True)
        self._tidying.add(thread)
        thread.start()

    def settle(self) -> None:
        """Waits until all that is to be removed is."""
        for thread in tuple(self._tidying):
            thread.join()

    def _shrink(self, project: str, keep: int) -> bool:
        """Removes trees that nothing stands on, the longest unused first, and files of none; returns whether any went."""
        removed, too_much = False, True
        while too_much:
            with self._lock(project):
                idle = self._idle(project)
                gone = [(tree, tree.with_name(f".gone-{tree.name}")) for tree in idle[: max(0, len(idle) - keep)]]
                for tree, aside in gone:
                    tree.rename(aside)
            for _, aside in gone:
                folders.remove(aside)
            removed = removed or bool(gone)
            too_much = _sweep(self.root / "projects" / project / "files") > KEPT_BYTES and len(idle) > len(gone)
            keep = min(keep, len(idle)) - 1
        return removed


def can_mount(trial: Path) -> bool:
    """Tries an overlay where attempts would write to theirs."""
    folders.remove(trial)
    try:
        paths = {name: str(trial / name) for name in ("lower", "upper", "inner", "target")}
        for path in paths.values():
            Path(path).mkdir(parents=True)
        return bool(starting.ask({"trial": paths}, "a trial").get("mounted"))
    except (OSError, ExecutorUnavailable):
        return False
    finally:
        folders.remove(trial)


def _sweep(files: Path) -> int:
    """Removes files that no tree names; returns the bytes of the others."""
    kept = 0
    for folder in files.glob("*"):
        with os.scandir(folder) as listing:
            for file in listing:
                status = file.stat(follow_symlinks=False)
                if status.st_nlink > 1:
                    kept += status.st_size
                elif not file.name.startswith("."):  # else it is being stored
                    Path(file.path).unlink(missing_ok=True)
    return kept
