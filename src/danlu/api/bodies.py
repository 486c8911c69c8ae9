"""Bodies and queries of the wire contract that are not records themselves."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from danlu.domain.actors import Role
from danlu.domain.environments import PYTHON_PATTERN
from danlu.domain.isolation import Layer
from danlu.domain.jobs import JobState
from danlu.domain.keys import AccessKey, Token
from danlu.domain.quotas import MAX_WEIGHT, Amounts, Guarantees
from danlu.domain.records import Flag, Value
from danlu.domain.resources import Seconds
from danlu.domain.splices import Splice
from danlu.domain.usage import By

MAX_PAGE: Final = 500
MAX_CHOSEN: Final = 1000
MAX_CURSOR: Final = 32_768
MAX_BLOB_BYTES: Final = 2**40
MAX_ADDRESSES: Final = 20_000
MAX_TREES: Final = 1_000
MAX_SPLICES: Final = 1_000


class Paging(Value):
    """Which part of a list."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=256)


class AllJobsQuery(Paging):
    """Which jobs, whichever project they are of."""

    state: JobState | None = None
    name: str | None = Field(default=None, max_length=63)
    folded: bool = Field(default=False, description="of each array only the first element")


class JobsQuery(AllJobsQuery):
    """Which jobs."""

    array: str | None = Field(default=None, max_length=63, description="only the elements of this array, by id or name")


class TraceQuery(Paging):
    """Which jobs: those submitted from a time on, newest first."""

    since: int | None = Field(default=None, ge=0, lt=2**63, description="ns UTC")
    platform: bool = Field(default=False, description="of all projects: for administrators")


class EventsQuery(Value):
    """Which events: those after ``after``, oldest first. Calls, which are who did what, only where they are asked for."""

    after: int = Field(default=0, ge=0)
    object_id: str | None = Field(default=None, max_length=80)
    kind: str | None = Field(default=None, max_length=32, description="job, attempt ...; call: for a project's admins")
    actor: str | None = Field(default=None, max_length=80, description="who asked for it")
    since: int | None = Field(default=None, ge=0, lt=2**63, description="ns UTC")
    platform: bool = Field(default=False, description="the platform's own, instead of a project's: for administrators")
    limit: int = Field(default=100, ge=1, le=MAX_PAGE)


class UsageQuery(Value):
    """Which usage, in lines for what."""

    by: By = Field(default=By.PROJECT, description="model: the job's label of that name; day: the date of UTC")
    since: int | None = Field(default=None, ge=0, lt=2**62, description="ns UTC; left out: 30 days before the end")
    until: int | None = Field(default=None, ge=0, lt=2**62, description="ns UTC; left out: now")
    platform: bool = Field(default=False, description="of all projects, instead of one: for administrators")
    limit: int = Field(default=1000, ge=1, le=10_000, description="at most so many lines")


class LogsQuery(Value):
    """Which part of a job's logs: of one attempt, or from the one ``beginning`` on (the newest when left out).

    Of the tasks, those that ``task``, ``role`` or ``rank`` name; all when none of them is given.
    """

    attempt: int | None = Field(default=None, ge=1)
    beginning: int | None = Field(default=None, ge=1, description="the first attempt of those that are wanted")
    task: tuple[str, ...] = Field(default=(), max_length=MAX_CHOSEN, description="these tasks, by name: worker-1")
    role: tuple[str, ...] = Field(default=(), max_length=MAX_CHOSEN, description="the tasks of these roles")
    rank: tuple[int, ...] = Field(default=(), max_length=MAX_CHOSEN, description="the tasks of these ranks")
    since: int | None = Field(default=None, ge=0, description="ns UTC")
    tail: int | None = Field(default=None, ge=0, le=1_000_000, description="only the last lines, of each task")
    cursor: str | None = Field(default=None, max_length=MAX_CURSOR)


class MetricsQuery(Value):
    """Which metrics, in how many points each."""

    name: str | None = Field(default=None, max_length=64)
    task: str | None = Field(default=None, max_length=100, description="of this task only, e.g. worker-0")
    points: int = Field(default=500, ge=2, le=100_000)
    system: bool = Field(default=False, description="what the platform measured (system/...), not what the program did")


class SessionQuery(Value):
    """Inside which task; the job's first one when left out."""

    task: str | None = Field(default=None, max_length=100, description="for example worker-1")


class TimeoutQuery(Value):
    """How long to wait before answering with the present state."""

    timeout_s: float = Field(default=30.0, ge=0, le=60)


class WaitQuery(TimeoutQuery):
    """How long to wait before answering with the present state."""

    state: JobState | None = Field(default=None, description="answer when it is in this state, too")


class OffsetQuery(Value):
    """Where to begin, in bytes."""

    offset: int = Field(default=0, ge=0)


class AppendQuery(OffsetQuery):
    """Where a piece of a stream begins, in bytes."""

    durable: bool = Field(default=False, description="answer when all of the stream outlives a power failure")


class WishesQuery(Value):
    """Answer at once where something else is wished than what is known, else when that happens, or the time is over."""

    known: str = Field(default="", max_length=64, description="the tag of the last answer")
    timeout_s: float = Field(default=25.0, ge=0, le=60)


class DoctorQuery(Value):
    """What to look at."""

    index: bool = Field(default=True, description="ask the package index too, which takes up to 8 s where it is away")


class StopRequest(Value):
    """How to stop a job."""

    grace: Seconds | None = Field(default=None, le=3600, description="instead of the job's own, e.g. 10s")


class RetryRequest(Value):
    """How to repeat an ended job: same specification, same checkpoints, some fields given anew."""

    id: str = Field(description="the new job's id, made by the client; of an array, what the new jobs' ids follow from")
    changes: dict[str, Any] = Field(default_factory=dict, description="fields of the job's specification")


class Addresses(Value):
    """Content addresses."""

    addresses: tuple[str, ...] = Field(default=(), max_length=MAX_ADDRESSES)


class AddressesAndTrees(Addresses):
    """Content addresses, some of them of trees."""

    trees: tuple[str, ...] = Field(
        default=(), max_length=MAX_TREES, description="folders' nodes that are meant with all that is below them"
    )


class Splices(Value):
    """Blobs to be made of others that are there."""

    splices: tuple[Splice, ...] = Field(max_length=MAX_SPLICES)


class PieceQuery(Value):
    """Which piece of a blob a request carries."""

    offset: int = Field(default=0, ge=0, le=MAX_BLOB_BYTES, description="where it begins; where the last one ended")
    size_bytes: int | None = Field(
        default=None, ge=0, le=MAX_BLOB_BYTES, description="of the whole blob; left out: this is its last piece"
    )


class Received(Value):
    """How much of a blob has arrived."""

    size_bytes: int


class Stored(Value):
    """What an upload added."""

    blobs: int
    size_bytes: int


class EnvironmentRequest(Value):
    """Which environment to build: a catalogue's name, or requirements; or which image to pull, again where it is there."""

    env: str = Field(default="python", max_length=63)
    requirements: str | None = Field(default=None, max_length=1_048_576)
    python: str | None = Field(default=None, pattern=PYTHON_PATTERN)
    image: str | None = Field(default=None, max_length=512, description="a container image, instead of the others")


class PruneRequest(Value):
    """Which of the project's environments to give up: those that no live job uses, and none has asked for in a while."""

    unused_for: Seconds = Field(default=30 * 86_400.0, description="since a job last asked for it, e.g. 30d")
    dry_run: Flag = Field(default=False, description="only say which")


class PruneBlobsRequest(Value):
    """Which of the project's blobs to remove: those that no job and no artifact refers to, and that are not new."""

    unused_for: Seconds = Field(
        default=7 * 86_400.0, ge=3600.0, description="since they were stored, e.g. 7d; an hour at least"
    )
    dry_run: Flag = Field(default=False, description="only say how many")


class ProjectRequest(Value):
    """A project to make."""


class ProjectChange(Value):
    """What to change of a project."""

    require: tuple[Layer, ...] = Field(
        max_length=len(Layer), description="layers of isolation without which no job of it may start"
    )


class QuotaChange(Value):
    """What to set of a quota: what is left out stays. Amounts are texts, as 1TiB, or numbers as answers have them."""

    group: Flag | None = Field(default=None, description="true for a new one that groups others: it has no project")
    parent: str | None = Field(
        default=None, max_length=63, description="the group above it; an empty text: the platform itself"
    )
    guarantee: Guarantees = Field(default={}, description="these resources' guarantees; 0: none any more")
    limit: Amounts = Field(default={}, description="these resources' limits; unlimited: none any more")
    weight: int | None = Field(
        default=None, ge=1, le=MAX_WEIGHT, description="its part of what is not guaranteed; 2: twice as much as 1"
    )


class UserRequest(Value):
    """A user to make."""

    administrator: Flag = Field(default=False, description="of the whole platform")


class UserChange(Value):
    """What to change of a user."""

    administrator: Flag


class MemberRequest(Value):
    """A user's role in the project."""

    role: Role = Role.DEVELOPER


class OwnerQuery(Paging):
    """Whose."""

    user: str | None = Field(
        default=None, max_length=63, description="a user's name: for administrators; else one's own"
    )


class KeyRequest(Value):
    """A new access key."""

    name: str = Field(default="", max_length=63, description="what it is for")
    valid_for: Seconds | None = Field(
        default=None,
        description="for example 90d, at most as long as that by which it is made; without it, as long as that",
    )
    user: str | None = Field(default=None, max_length=63, description="for this user: administrators only")
    replaces: str | None = Field(
        default=None, max_length=80,
        description="the key that signs this request: the new one has its name, lives as long as it from making to end, "
        "and is the only one to replace it; the other fields but overlap are left out",
    )  # fmt: skip
    overlap: Seconds | None = Field(
        default=None, description="for example 1d: so long the key that is replaced still works; without it, as it did"
    )


class KeyMade(Value):
    """An access key with its secret, which is shown only here."""

    key: AccessKey
    secret: str = Field(repr=False)


class KeyExpiry(Value):
    """From when on a key is refused."""

    after: Seconds = Field(description="from now, for example 1d: so long the old and the new one work side by side")


class TokenRequest(Value):
    """A new bearer token of one's own."""

    name: str = Field(min_length=1, max_length=63)
    project: str | None = Field(
        default=None, max_length=63, description="good for this project only; without it, for all of one's projects"
    )
    valid_for: Seconds | None = Field(
        default=None,
        description="for example 30d, at most as long as that by which it is made; without it, as long as that",
    )


class TokenMade(Value):
    """A token with its secret, which is shown only here."""

    token: Token
    secret: str = Field(repr=False)


class Membership(Value):
    """A project, and the caller's role in it; none for an administrator who is no member."""

    project: str
    role: Role | None = None


class Identity(Value):
    """Who calls, as the platform sees it."""

    name: str
    administrator: bool = False
    by: str = Field(description="the access key, the token or the attempt")
    projects: tuple[Membership, ...] = ()
    server_time: int = Field(description="ns UTC")


class PlatformStop(Value):
    """How to stop the platform."""

    jobs: Flag = Field(default=False, description="stop all jobs first; else they go on without the server")


class Accepted(Value):
    """It will be done."""

    message: str = ""
