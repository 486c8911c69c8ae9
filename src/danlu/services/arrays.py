"""Job arrays: made of one submission, looked at, stopped, held and released as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from danlu.api.bodies import StopRequest
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.queries import Element
from danlu.database.records import ARRAYS, JOBS
from danlu.domain import arrays
from danlu.domain.arrays import ArrayPlace, ArrayState, JobArray
from danlu.domain.ids import is_id
from danlu.domain.jobs import Desired, Job, JobState
from danlu.domain.specs import JobSpec
from danlu.domain.validation import suggestion
from danlu.domain.views import ArrayWhy
from danlu.errors import InvalidSpec, NameTaken, NotFound
from danlu.services import explaining
from danlu.services.context import Call

AT_ONCE = 50
"""So many elements are written in one transaction, which takes some milliseconds."""
TOLD = 100
UNSUCCESSFUL: Final = (JobState.FAILED, JobState.CANCELLED)
MAX_NAME = 63


# --- making


def place(tx: Transaction, call: Call, first: str, name: str, spec: JobSpec) -> ArrayPlace:
    """Stores a new array, none of whose elements is there yet, and returns the place of its first one.

    Raises:
        InvalidSpec: its elements' names would be too long.
        NameTaken: a live job has the name of one of them.
    """
    assert spec.array is not None  # noqa: S101 - it asks for one
    indexes = spec.array.elements
    if len(element_name(name, indexes[-1])) > MAX_NAME:
        raise InvalidSpec(
            f"name: {element_name(name, indexes[-1])!r} would be longer than {MAX_NAME} characters: elements are called "
            "NAME-INDEX", next_step="take a shorter --name",
        )  # fmt: skip
    taken = queries.live_names_like(tx, call.project, f"{name}-")
    clash = next((one for one in (element_name(name, index) for index in indexes) if one in taken), None)
    if clash is not None:
        raise NameTaken(f"a live job of project {call.project} is already named {clash!r}")
    now = call.platform.clock.now()
    array = JobArray(
        id=arrays.array_id(first), project=call.project, name=name, first=first, size=len(indexes), held=spec.hold,
        created_at=now, updated_at=now,
    )  # fmt: skip
    ARRAYS.add(tx, array, actor=call.actor.name)
    return ArrayPlace(name=name, index=indexes[0], size=len(indexes), parallel=spec.array.parallel)


def element_name(name: str, index: int) -> str:
    """Returns what an element is called."""
    return f"{name}-{index}"


def complete(call: Call, first: Job) -> None:
    """Makes the elements that are not there yet, some in each transaction; where it was cut off, it goes on.

    Raises:
        NameTaken: somebody has taken the name of an element meanwhile. The array is stopped.
    """
    assert first.array_id is not None  # noqa: S101 - it is an array's first element
    identity = first.array_id
    try:
        while not call.write(lambda tx: _more(tx, call, identity)):
            call.platform.hub.notify("jobs")
    except NameTaken:
        stop(call, identity, StopRequest())
        raise
    finally:
        call.platform.hub.notify("jobs")


def _more(tx: Transaction, call: Call, identity: str) -> bool:
    """Adds some elements; returns whether that were all."""
    array = ARRAYS.require(tx, identity)
    if array.stored >= array.size:
        return True
    first = JOBS.require(tx, array.first)
    assert first.spec.array is not None  # noqa: S101 - it is an array's first element
    assert first.array is not None  # noqa: S101
    now, indexes = call.platform.clock.now(), first.spec.array.elements
    upto = min(array.size, array.stored + AT_ONCE)
    # first of all: of two who make them at once, one waits here and then sees what the other has made
    ARRAYS.put(tx, array, array.evolved(now=now, stored=upto))
    added: list[Job] = []
    for position in range(max(1, array.stored), upto):  # the first was submitted itself
        index = indexes[position]
        one = arrays.element_id(array.first, position, index)
        element = Job(
            id=one, project=array.project, name=element_name(array.name, index), spec=first.spec,
            priority=first.spec.priority, desired=Desired.STOP if array.stopped else Desired.RUN, held=array.held,
            after=first.after, array=first.array.model_copy(update={"index": index}), array_id=array.id,
            environment_id=first.environment_id,
            queued_at=first.created_at + position, checkpoint_owner=one, created_by=first.created_by,
            created_at=first.created_at, updated_at=max(now, first.created_at),
        )  # fmt: skip
        added.append(element)
    JOBS.add_all(tx, added, actor=first.created_by)
    return upto == array.size


# --- looking


def require(tx: Transaction, project: str, array: str) -> JobArray:
    """Returns an array of ``project`` by id or name, the newest of that name.

    Raises:
        NotFound: the project has no such array.
    """
    found = ARRAYS.get(tx, array) if is_id(array, arrays.LETTER) else queries.array_by_name(tx, project, array)
    if found is None or found.project != project:
        near = suggestion(array, queries.array_names(tx, project, TOLD))
        raise NotFound(
            f"there is no job array {array!r} in project {project}",
            next_step=f"{near}   all jobs: danlu get jobs --project {project}".strip(),
        )
    return found


def get(call: Call, array: str) -> ArrayState:
    """Returns an array, by id or name, and what became of it."""
    return call.platform.database.read(lambda tx: _state(tx, require(tx, call.project, array)))


def ended(call: Call, array: str) -> bool:
    """Says whether all of an array has ended, without reading all of it."""
    return call.platform.database.read(lambda tx: not queries.goes_on(tx, require(tx, call.project, array)))


def _state(tx: Transaction, array: JobArray) -> ArrayState:
    return _made_of(array, queries.array_elements(tx, array.id))


def _made_of(array: JobArray, elements: Mapping[int, Element]) -> ArrayState:
    bad = [index for index, one in elements.items() if one.state in UNSUCCESSFUL]
    return ArrayState(
        array=array,
        counts=dict(sorted(Counter(one.state for one in elements.values()).items())),
        held=sum(one.held for one in elements.values() if one.state == JobState.QUEUED),
        unsuccessful=tuple(element_name(array.name, index) for index in bad[:TOLD]),
    )


def unsuccessful(tx: Transaction, project: str, array: str) -> tuple[str, dict[int, str]]:
    """Returns an array's id and the ids of its jobs that failed or were cancelled and were not repeated since, by index."""
    found = require(tx, project, array)
    elements = queries.array_elements(tx, found.id)
    return found.id, {index: one.id for index, one in elements.items() if one.state in UNSUCCESSFUL}


def why(call: Call, array: str) -> ArrayWhy:
    """Returns how far an array is, and why that of its elements waits that is the next to start."""

    def work(tx: Transaction) -> ArrayWhy:
        found = require(tx, call.project, array)
        elements = queries.array_elements(tx, found.id)
        waiting = [one for one in elements.values() if one.state == JobState.QUEUED]
        following = min(waiting, key=lambda one: (one.held, one.queued_at, one.id), default=None)
        now = call.platform.clock.now()
        told = None if following is None else explaining.told(tx, JOBS.require(tx, following.id), now)
        return ArrayWhy(state=_made_of(found, elements), next=told)

    return call.platform.database.read(work)


# --- changing


def stop(call: Call, array: str, body: StopRequest) -> ArrayState:
    """Asks every element to stop that has not ended; those that are still being made stop at once."""
    return _each(call, array, {"stopped": True}, lambda job, now: job.asked_to_stop(now=now, grace_s=body.grace))


def hold(call: Call, array: str) -> ArrayState:
    """Holds every element that waits; those that run go on."""
    return _each(call, array, {"held": True}, lambda job, now: job.with_hold(True, now=now) if job.may_be_held else job)


def release(call: Call, array: str) -> ArrayState:
    """Lets every element go that is held."""
    return _each(call, array, {"held": False}, lambda job, now: job.with_hold(False, now=now))


def _each(call: Call, array: str, changes: dict[str, Any], change: Callable[[Job, int], Job]) -> ArrayState:
    """Changes an array and its live elements, some of them in each transaction."""
    platform = call.platform

    def begin(tx: Transaction) -> JobArray:
        old = require(tx, call.project, array)
        if all(getattr(old, name) == value for name, value in changes.items()):
            return old
        new = old.evolved(now=platform.clock.now(), **changes)
        ARRAYS.put(tx, old, new, actor=call.actor.name)
        return new

    found = call.write(begin)  # first of all: what is made from now on is changed already
    beyond: str | None = ""

    def some(tx: Transaction) -> str | None:
        live = queries.live_elements(tx, found.id, beyond or "", AT_ONCE)
        for old in live:
            new = change(old, platform.clock.now())
            if new is not old:
                JOBS.put(tx, old, new, actor=call.actor.name)
        return live[-1].id if len(live) == AT_ONCE else None

    while beyond is not None:
        beyond = call.write(some)
        platform.hub.notify("jobs")
    return get(call, found.id)
