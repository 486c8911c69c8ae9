"""Checkpoints and outputs on their way between a pod and the server.

A checkpoint that is proven is sent, one at a time: of names that differ in numbers alone the newest, so that one that waits
gives way to the next. It is sent from hard links, so that its program may remove it meanwhile; what was written into
meanwhile is not told of. In ``delivered.json`` stands what the server has: the runner waits for that where it waits for a
checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import quote

from .channel import Refused
from .checkpoints import STATE_FILE, Seals, Stamp, age, candidates, load_stamps, series, stamp_of, written
from .formats import DELIVERED, KEPT, NOTICES, PREEMPTION, SAVED, write_atomically
from .restoring import Restoring, state_stamp, wall
from .sending import Sending
from .trees import Blob, Changed, Reading, TreeError, address_of, encode

AGAIN_S = 30.0
"""What is written again under the same name is sent no more often, unless time is short."""
TRIALS = 3
MAX_SAID_BYTES = 65_536
MAX_SAID = 100


def restore(pod: Any) -> None:
    """Brings the newest whole checkpoints, if there are any, into the folder that the order names.

    Raises:
        TreeError: they cannot be brought.
        Over, GaveUp, Refused: the server does not give them.
    """
    channel = pod.channel()
    try:
        found = Restoring(channel, pod.order["checkpoint_dir"], pod.task).run()
    finally:
        channel.close()
    if found:
        _Delivered(pod.folder).add(
            found, pod.order["checkpoint_dir"]
        )  # first: what is sealed, and not among these, is sent
        Seals(pod.order["checkpoint_dir"]).adopt()
        pod.log("%d saved things were brought, to go on from" % len(found))  # they may have been named by anything


class _Delivered:
    """What the server has, as it was when it was sent."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, DELIVERED)
        self.stamps: Dict[str, Stamp] = load_stamps(self._path)

    def add(self, stamps: Dict[str, Stamp], folder: str) -> None:
        """Notes what was sent, and forgets what is not in the folder any more."""
        there = {STATE_FILE, *candidates(folder)}
        self.stamps = {name: stamp for name, stamp in {**self.stamps, **stamps}.items() if name in there}
        write_atomically(self._path, json.dumps(self.stamps).encode())


class Carrier:
    """Keeps what the pod's task leaves. For one thread.

    Args:
        pod: see Pod in pod.py.
    """

    def __init__(self, pod: Any) -> None:
        self._pod = pod
        self._folder = str(pod.order["checkpoint_dir"])
        self._aside = os.path.join(self._folder, ".danlu", "sending")
        self._sent_at: Dict[str, float] = {}
        self._number = 0
        self._unfit: Dict[str, Stamp] = {}
        self._channel: Any = None
        self._told = b""
        self._said: List[Tuple[str, Stamp, bytes]] = []

    def step(self) -> None:
        """Sends what is proven and the server does not have, one after the other.

        Raises:
            Over, GaveUp: nothing can be sent any more.
        """
        self._send_all(ended=False)

    def finish(self) -> None:
        """Sends what is left, once nothing of the task runs any more; then its outputs.

        Raises:
            Over, GaveUp: it cannot be sent.
            TreeError, OSError, Refused: the outputs cannot be kept.
        """
        self._unfit = {}
        self._send_all(ended=True)
        self._send_outputs()

    # checkpoints

    def _send_all(self, *, ended: bool) -> None:
        self._channel = self._channel or self._pod.channel()
        delivered = _Delivered(self._pod.folder)  # again: what was restored meanwhile is among them
        while True:
            found = self._next(delivered.stamps, ended)
            self._hear()
            self._tell(delivered.stamps)
            if found is None:
                return
            name, stamp = found
            try:
                self._send(name, stamp)
                self._tell({name: stamp})  # now: its program may have removed it meanwhile
                delivered.add({name: stamp}, self._folder)
            except (TreeError, OSError, Refused) as error:
                self._unfit[name] = stamp
                self._pod.log("a checkpoint is not kept yet: %s" % str(error).replace(name, "..."))
            self._sent_at[name] = time.monotonic()

    def _next(self, delivered: Dict[str, Stamp], ended: bool) -> Optional[Tuple[str, Stamp]]:
        """Returns what is to be sent now: of the series that has waited longest; of those that were never sent the newest."""
        newest: Dict[str, Tuple[Tuple[int, int], str, Stamp]] = {}
        for name, stamp in {**Seals(self._folder).whole(), **state_stamp(self._folder)}.items():
            one = (age(name, written(stamp)), name, stamp)
            newest[series(name)] = max(newest.get(series(name), one), one)
        now, pressed = time.monotonic(), ended or self._pressed()
        due: List[Tuple[float, int, str, Stamp]] = []
        for alike, (_, name, stamp) in newest.items():
            if stamp in (delivered.get(name), self._unfit.get(name)):
                continue
            sent_at = self._sent_at.get(name)
            if pressed or sent_at is None or now - sent_at >= AGAIN_S:
                waits_since = max([at for other, at in self._sent_at.items() if series(other) == alike], default=0.0)
                due.append((waits_since, -written(stamp), name, stamp))
        return min(due)[2:] if due else None

    def _hear(self) -> None:
        """Notes what the runner says is saved, in its words, of what: it is passed on once that is delivered."""
        try:
            with open(os.path.join(self._pod.folder, SAVED), "rb") as file:
                said = file.read(MAX_SAID_BYTES)
            if self._said and said == self._said[-1][2]:
                return
            seals = Seals(self._folder)
            name = os.path.basename(seals.newest() or "")
            stamp = seals.whole().get(name)
            if stamp and wall(written(stamp)) == json.loads(said.decode())["at"]:
                self._said = [*self._said[-MAX_SAID:], (name, stamp, said)]
        except (OSError, ValueError, TypeError, KeyError):
            return  # there is none yet

    def _tell(self, delivered: Dict[str, Stamp]) -> None:
        """Passes on the newest of what the runner said that is delivered: the others would be lost with the pod."""
        for at in reversed(range(len(self._said))):
            name, stamp, said = self._said[at]
            if delivered.get(name) == stamp:
                del self._said[:at]
                if said != self._told:
                    with contextlib.suppress(OSError):  # the disk is full: the next one may be told
                        write_atomically(os.path.join(self._pod.folder, KEPT), said)
                        self._told = said
                return

    def _pressed(self) -> bool:
        """Says whether the attempt has to make way: its time is short."""
        return os.path.exists(os.path.join(self._pod.folder, NOTICES, PREEMPTION))

    def _send(self, name: str, stamp: Stamp) -> None:
        """Sends a checkpoint and tells the server of it.

        Raises:
            Changed: it is not what was proven any more.
        """
        paths = [os.path.join(self._folder, name)] if name == STATE_FILE else candidates(self._folder).get(name, [])
        names = [os.path.basename(path) for path in paths]
        try:
            folder = self._held(paths)
            held = [os.path.join(folder, one) for one in names]
            _require(held, stamp)
            sending = Sending(self._channel)
            whole = Reading(folder, sending.take, only=names, strict=True).run()
            sending.flush()
            _require(held, stamp)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
        # files may have any time, and a call that was given up may arrive after the next: what was sent later counts
        self._number = max(self._number + 1, time.time_ns())
        at = wall(written(stamp))
        said = {"task": self._pod.task, "tree": whole.address, "at": at, "sent_at": self._number}
        self._channel.json("PUT", "/checkpoints/%s" % quote(name, safe=""), said)

    def _held(self, paths: List[str]) -> str:
        """Links files where their program does not look, and returns that folder; theirs where that cannot be done."""
        shutil.rmtree(self._aside, ignore_errors=True)
        try:
            os.makedirs(self._aside, mode=0o700)
            for path in paths:
                target = os.path.join(self._aside, os.path.basename(path))
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.copytree(path, target, symlinks=True, copy_function=os.link)
                else:
                    os.link(path, target, follow_symlinks=False)
        except (OSError, shutil.Error) as error:
            if paths and os.path.lexists(paths[-1]):
                return self._folder
            raise Changed("it is gone: %s" % str(error)[:300]) from error
        return self._aside

    # outputs

    def _send_outputs(self) -> None:
        folder = str(self._pod.order["output_dir"])
        for trial in range(TRIALS):
            sending = Sending(self._channel)
            try:
                tree, skipped = self._outputs(folder, sending)
                sending.flush()
                said = {"tree": tree, "skipped": skipped}
                self._channel.json("PUT", "/outputs/%s" % quote(self._pod.task, safe=""), said)
                return
            except (Changed, Refused):  # what was there when it was asked for may have been removed as unused since
                if trial == TRIALS - 1:
                    raise

    @staticmethod
    def _outputs(folder: str, sending: Sending) -> Tuple[str, List[str]]:
        if os.path.islink(folder) or not os.path.isdir(folder):  # as on one machine: the job has removed it
            return _empty(sending), []
        reading = Reading(folder, sending.take)
        return reading.run().address, reading.skipped


def _require(paths: List[str], stamp: Stamp) -> None:
    try:
        found = stamp_of(paths)
    except OSError as error:
        raise Changed("it is gone: %s" % error.strerror) from error
    if sorted(found) != sorted(stamp):
        raise Changed("it was changed while it was sent")


def _empty(sending: Sending) -> str:
    node = encode([])
    sending.take(Blob(address_of(node), len(node), node=node))
    return address_of(node)
