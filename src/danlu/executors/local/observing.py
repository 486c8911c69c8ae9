"""From an attempt's folder to an observation: the status file, read again only when it has changed."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from danlu.errors import DanluError, DataDamaged, ExecutorUnavailable
from danlu.executors import told
from danlu.executors.base import Observation, Phase
from danlu.executors.local import beneath
from danlu.executors.orders import MAX_ORDER_BYTES
from danlu.runner import formats

MAX_SAVED_BYTES = 4096
TAMPERED = (DanluError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a folder raises whose owner may have written anything into it. It must not reach other attempts."""

PASSING = {
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOLCK, errno.ENOBUFS,
    errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS,
}  # fmt: skip
"""What the machine lacks or fails at: no job can make its own folder raise them."""


def passing(error: BaseException) -> bool:
    """Whether an error is the machine's, so that the same may succeed later: nothing may be ended for it."""
    return isinstance(error, ExecutorUnavailable) or (isinstance(error, OSError) and error.errno in PASSING)


class Seen:
    """What is known of one attempt's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = told.Status()
        self.clean = False
        self.salvages = 0
        self.salvage_at = 0.0
        self.kept = False
        self.lost: Observation | None = None
        self.collected: dict[tuple[str, str], int] = {}
        self._stamp: tuple[int, int] | None = None
        self._observed: tuple[object, Observation] | None = None
        self._order: dict[str, Any] | None = None

    def refresh(self) -> None:
        """Reads the status again, if it has changed."""
        try:
            status = (self.folder / "status").lstat()
        except FileNotFoundError:
            return
        stamp = (status.st_size, status.st_mtime_ns)
        if stamp != self._stamp:

            def read(count: int, at: int) -> bytes:
                return beneath.read(self.folder, "status", max_bytes=count, offset=at)

            self.status = told.Status(formats.status_of(read, status.st_size))
            self._stamp = stamp

    @property
    def events(self) -> tuple[told.Event, ...]:
        """What was read last."""
        return self.status.events

    def _last(self, event: str) -> told.Event | None:
        if not self.events:
            self.refresh()
        return self.status.latest(event)

    def observed(self) -> Observation:
        """Returns what the status says; the same one for as long as it says the same."""
        known = self._stamp, self.limits(), self._stamp_of(formats.SAVED)
        if self._observed is None or self._observed[0] != known:
            ended = self.ended()  # which may read the status: only then is it whole
            specs, saved = self.order()["tasks"], self._saved(ended)
            self._observed = known, told.observation(self.folder.name, specs, self.status, saved, known[1])
        return self._observed[1]

    def _stamp_of(self, name: str) -> tuple[int, int] | None:
        try:
            status = (self.folder / name).lstat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _saved(self, ended: told.Event | None) -> object:
        """Returns what was said last of the newest proven checkpoint."""
        if ended is not None and "saved" in ended:
            return ended["saved"]
        try:
            return json.loads(beneath.read(self.folder, formats.SAVED, max_bytes=MAX_SAVED_BYTES))
        except TAMPERED as error:
            if passing(error):
                raise
            return None

    def runner(self) -> told.Event | None:
        """Returns the runner's identity, if it has spoken in this boot of the machine."""
        found = self._last("runner")
        return found if found is not None and found.get("boot_id") == formats.boot_id() else None

    def ended(self) -> told.Event | None:
        """Returns the last word of the attempt, once it was said."""
        return self._last("ended")

    def order(self) -> dict[str, Any]:
        """Returns the order that the attempt was launched with; raises DataDamaged where the job has put another there."""
        if self._order is None:
            order = json.loads(beneath.read(self.folder, "order.json", max_bytes=MAX_ORDER_BYTES, ours=True))
            if order["attempt_id"] != self.folder.name:
                raise DataDamaged(f"{self.folder} has the order of {order['attempt_id']}")
            self._order = order
        return self._order

    def limits(self) -> tuple[str, ...]:
        """Returns what the launcher said is in force."""
        try:
            said = json.loads(beneath.read(self.folder, "launched.json", max_bytes=65_536, ours=True))
        except (OSError, ValueError, DataDamaged):
            return ()  # nothing is claimed that cannot be shown
        return tuple(str(name) for name in said.get("limits", ()))

    def running(self, message: str) -> Observation:
        """Returns that something of it is still there."""
        return Observation(attempt_id=self.folder.name, phase=Phase.RUNNING, limits=self.limits(), message=message)

    def unreadable(self, message: str) -> Observation:
        """Returns that it is lost: its folder cannot be read. The caller has made sure that nothing of it runs."""
        self.lost = Observation(
            attempt_id=self.folder.name, phase=Phase.LOST, message=message
        )  # that is never taken back
        return self.lost


def damage(seen: Seen) -> str:
    """Returns what in an attempt's folder keeps its output from being saved; empty where it looks as a runner left it."""
    try:
        owner = seen.folder.lstat().st_uid
        order = Seen(seen.folder).order()  # as it is now
        tasks = [Path(str(task["name"])) for task in order["tasks"]]
        for folder in [Path(), *tasks, *(task / "spool" for task in tasks)]:
            found = _foreign(seen.folder / folder, owner, stat.S_IFDIR, 0o700)
            if found:
                return found
        for task in tasks:
            if os.path.lexists(seen.folder / task / "spool" / "index"):
                data = beneath.read(seen.folder, str(task), "spool", "index", max_bytes=formats.INDEX_BYTES)
                formats.parse_index(data)
            spools = [task / "spool" / name for name in beneath.names(seen.folder, str(task), "spool")]
            for file in [Path("status"), Path("lock"), *(task / n for n in ("stdout", "stderr", "metrics")), *spools]:
                found = _foreign(seen.folder / file, owner, stat.S_IFREG, 0o600)
                if found:
                    return found
    except TAMPERED as error:
        if passing(error):
            raise
        return str(error)
    return ""


def _foreign(path: Path, owner: int, kind: int, bits: int) -> str:
    """Returns what is wrong with a file or folder that only the runner was to make; a missing file can be made again."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path} is gone" if kind == stat.S_IFDIR else ""
    right = stat.S_IFMT(status.st_mode) == kind and status.st_mode & bits == bits and status.st_uid == owner
    return "" if right else f"{path} is not as the runner made it"


def observation(seen: Seen) -> Observation:
    """Returns what the status says. ``ended`` must have been made sure of by the caller."""
    return seen.observed()
