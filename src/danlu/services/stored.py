"""What projects store, counted before it is stored and held against their quotas: see docs/decisions/0022-stored-bytes.md."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from danlu.blobs.base import Blobs
from danlu.database import stored
from danlu.database.engine import Store, Transaction
from danlu.database.stored import Thing
from danlu.domain.jobs import Attempt, Job
from danlu.domain.quotas import STORAGE
from danlu.domain.resources import MAX_BYTES
from danlu.errors import TooLarge
from danlu.services import quotas
from danlu.services.context import Call, Clock

UNFINISHED_NS: Final = 3600 * 1_000_000_000
"""For so long after its last piece an upload keeps the room for all of it; then only what has arrived counts."""

QUIET_NS: Final = 600 * 1_000_000_000
"""For so long nothing has been stored for a project whose blobs are counted; after an upload that lasts longer they are
counted again."""
CHECKPOINTS: Final = "checkpoints/"
MAX_UNREFERENCED_BYTES: Final = 4 << 40
"""So much may an attempt have sent that is in nothing it has told of: far more than all that its tasks send at a time."""
NODE_BYTES: Final = 1024
"""What a file's line in the description of its folder takes at most, but for absurd names."""


@dataclass(slots=True)
class Storing:
    """What is being stored: who stores it says how many bytes of it were new."""

    new_bytes: int = 0


@contextlib.contextmanager
def upload(call: Call, size_bytes: int) -> Iterator[Storing]:
    """Counts what a call is about to store, and stores its deed; what was not stored in the end is taken back.

    Args:
        call: whose project's.
        size_bytes: how many bytes of it are new, as far as can be told before.

    Raises:
        QuotaExceeded: there is no room within a limit; nothing is to be stored.
    """
    database, clock, project = call.platform.database, call.platform.clock, call.project

    def begin(tx: Transaction) -> None:
        quotas.require_left(tx, project, {STORAGE: size_bytes}, "an upload")
        stored.add_blobs(tx, project, size_bytes, clock.now())

    if size_bytes:
        call.write(begin)
    else:
        call.begin()
    with _settled(database, clock, project, size_bytes) as storing:
        yield storing


@contextlib.contextmanager
def results(
    database: Store, clock: Clock, project: str, size_bytes: int, *, attempt_id: str = ""
) -> Iterator[Storing]:  # fmt: skip
    """Counts what a job has left, as ``upload`` does. There is always room: what was computed is not lost for a number.

    Args:
        database: where it is counted.
        clock: tells when.
        project: whose it is.
        size_bytes: how many bytes of it are new, as far as can be told before.
        attempt_id: the attempt that sends it itself, and tells afterwards what it is.

    Raises:
        TooLarge: of what it has sent, too much is in nothing that it has told of.
    """
    size_bytes = min(size_bytes, MAX_BYTES)  # of files with holes that is told, whatever it is

    def begin(tx: Transaction) -> None:
        if attempt_id:
            _sent(tx, project, attempt_id, size_bytes, clock.now())
        stored.add_blobs(tx, project, size_bytes, clock.now())

    if size_bytes:
        database.write(begin)
    with _settled(database, clock, project, size_bytes) as storing:
        yield storing


def _sent(tx: Transaction, project: str, attempt_id: str, size_bytes: int, now: int) -> None:
    total = stored.add_unreferenced(tx, project, attempt_id, size_bytes, now)
    if total > MAX_UNREFERENCED_BYTES:
        raise TooLarge(
            f"attempt {attempt_id} would have sent {total:,} bytes that are in no checkpoint and no outputs it has told of; "
            f"{MAX_UNREFERENCED_BYTES:,} is the most",
            next_step="tell of what was sent: a checkpoint, outputs",
        )


def told(tx: Transaction, attempt: Attempt, size_bytes: int, files: int, now: int) -> None:
    """Notes that an attempt has told what something is that it may have sent: a tree with so much in it."""
    stored.add_unreferenced(tx, attempt.project, attempt.id, -(size_bytes + (files + 1) * NODE_BYTES), now)


def ended(tx: Transaction, attempt: Attempt) -> None:
    """Forgets what an attempt has sent and not told of, once it sends nothing any more."""
    stored.forget_unreferenced(tx, attempt.project, attempt.id)


@contextlib.contextmanager
def _settled(database: Store, clock: Clock, project: str, counted: int) -> Iterator[Storing]:
    storing, began = Storing(), clock.now()
    try:
        yield storing
    finally:
        # what lasts for so long may have been half there when somebody counted what is
        long, more = clock.now() - began >= QUIET_NS, storing.new_bytes - counted
        if more or long:
            database.write(lambda tx: stored.add_blobs(tx, project, more, clock.now(), again=long))


def piece(call: Call, address: str, size_bytes: int, *, limited: bool = True) -> None:
    """Keeps the room for a whole blob that comes in pieces, from its first one on; stores the deed.

    Of what a job has left, which is not ``limited``, there is always room: see ``results``.

    What a later piece says of its size frees nothing: such a piece may be refused, and what has arrived is still there.

    Raises:
        QuotaExceeded: there is none within a limit.
        TooLarge: see ``results``.
    """
    now = call.platform.clock.now()

    def work(tx: Transaction) -> None:
        known = stored.thing(tx, call.project, address)
        kept = 0 if known is None else known.size_bytes
        if limited and size_bytes > kept:
            quotas.require_left(tx, call.project, {STORAGE: size_bytes - kept}, "an upload")
        elif size_bytes > kept and call.actor.attempt_id is not None:
            _sent(tx, call.project, call.actor.attempt_id, size_bytes - kept, now)
        new = Thing(call.project, address, max(size_bytes, kept), now + UNFINISHED_NS)
        stored.set_thing(tx, new, now, upload=True)

    call.write(work)


def whole(call: Call, address: str, size_bytes: int) -> None:
    """Counts a blob that came in pieces as stored."""
    arrived = Thing(call.project, address, size_bytes)
    now = call.platform.clock.now()
    call.platform.database.write(lambda tx: stored.arrived(tx, arrived, now))


def refused(call: Call, address: str) -> None:
    """Counts nothing any more of an upload in pieces that turned out not to be what its address says."""
    now = call.platform.clock.now()
    gone = Thing(call.project, address, 0)
    call.platform.database.write(lambda tx: stored.set_thing(tx, gone, now, upload=True))


def checkpoints(tx: Transaction, job: Job, size_bytes: int, now: int) -> None:
    """Counts what a job's checkpoints take, which its retries go on with: once for all of them."""
    name = f"{CHECKPOINTS}{job.checkpoint_owner}"
    stored.set_thing(tx, Thing(job.project, name, size_bytes), now, upload=False)


def checkpoints_counted(tx: Transaction, job: Job) -> int:
    """Returns what was counted of a job's checkpoints."""
    known = stored.thing(tx, job.project, f"{CHECKPOINTS}{job.checkpoint_owner}")
    return 0 if known is None else known.size_bytes


def checkpoint_owners(tx: Transaction) -> Iterable[str]:
    """Returns the ids of the jobs whose checkpoints are counted, and more than nothing."""
    return [name.removeprefix(CHECKPOINTS) for name in stored.names(tx, CHECKPOINTS)]


def unfinished(database: Store, blobs: Blobs, now: int) -> bool:
    """Looks for some uploads that nobody goes on with: only what has arrived counts then, and what is gone does not.

    Returns whether there were any.
    """
    found = database.read(lambda tx: stored.overdue(tx, now))
    for old in found:
        whole = not blobs.missing(old.project, (old.name,))
        new = old._replace(size_bytes=0 if whole else blobs.received(old.project, old.name), until=now + UNFINISHED_NS)

        def work(tx: Transaction, old: Thing = old, new: Thing = new) -> None:
            if stored.thing(tx, old.project, old.name) == old:
                stored.set_thing(tx, new, now, upload=True)

        database.write(work)
    return bool(found)


def blobs_again(database: Store, blobs: Blobs, since: int, now: int) -> bool:
    """Counts some projects' blobs on the disk that were not counted since then and rest; returns whether there were any."""
    found = database.read(lambda tx: stored.uncounted(tx, since=since, quiet_since=now - QUIET_NS))
    for one in found:
        size = blobs.stored_bytes(one.project)
        database.write(partial(stored.counted, found=one, blob_bytes=size, now=now))
    return bool(found)
