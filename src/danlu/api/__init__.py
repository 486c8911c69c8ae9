"""The wire contract: every endpoint once, as data. The server binds it, the client calls it, the tests enumerate it.

Paths begin with ``/v1``, but for ``/metrics``, where Prometheus looks. ``Danlu-Project`` names the project (``default`` when
left out). ``{job}`` is an id or a name; other ids are ids. Lists come in pages by keyset. Errors are RFC 9457 problems.
``bytes`` as a body or an answer is ``application/octet-stream``, with ``TEXT`` the text format of Prometheus; ``STREAM`` is
``text/event-stream``, whose ``data`` is the operation's ``returns`` as JSON; ``SOCKET`` is a web socket: each message is a
frame of ``runner/frames.py``, the first one is the body, the last the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from danlu.api.bodies import (
    Accepted,
    Addresses,
    AddressesAndTrees,
    AllJobsQuery,
    AppendQuery,
    DoctorQuery,
    EnvironmentRequest,
    EventsQuery,
    Identity,
    JobsQuery,
    KeyExpiry,
    KeyMade,
    KeyRequest,
    LogsQuery,
    MemberRequest,
    MetricsQuery,
    OffsetQuery,
    OwnerQuery,
    Paging,
    PieceQuery,
    PlatformStop,
    ProjectChange,
    ProjectRequest,
    PruneBlobsRequest,
    PruneRequest,
    QuotaChange,
    Received,
    RetryRequest,
    SessionQuery,
    Splices,
    StopRequest,
    Stored,
    TimeoutQuery,
    TokenMade,
    TokenRequest,
    TraceQuery,
    UsageQuery,
    UserChange,
    UserRequest,
    WaitQuery,
    WishesQuery,
)
from danlu.domain.actors import Standing
from danlu.domain.arrays import ArrayState, JobArray
from danlu.domain.artifacts import Artifact, OutputsReport, TaskOutputs
from danlu.domain.checkpoints import Checkpoint, CheckpointReport
from danlu.domain.diagnosis import Diagnosis
from danlu.domain.environments import Environment
from danlu.domain.events import Event
from danlu.domain.jobs import Attempt, Job
from danlu.domain.keys import AccessKey, Revoked, Token
from danlu.domain.notices import Wishes
from danlu.domain.prices import Price, PriceRequest
from danlu.domain.projects import Project
from danlu.domain.records import Value
from danlu.domain.reports import TaskReport
from danlu.domain.secrets import HandedSecrets, Secret, SecretRequest
from danlu.domain.sessions import SessionEnd, SessionRequest
from danlu.domain.specs import JobSpec
from danlu.domain.usage import UsageReport
from danlu.domain.users import Member, User
from danlu.domain.views import (
    ArrayWhy,
    EnvironmentDetails,
    EnvironmentEntry,
    EnvironmentText,
    FrameworkOf2018,
    LogPage,
    Metrics,
    NodeUse,
    Page,
    PlatformStatus,
    Pruned,
    PrunedBlobs,
    QuotaUse,
    TextPage,
    Top,
    TracedJob,
    Why,
)

PROJECT_HEADER: Final = "Danlu-Project"
MAX_JSON_BYTES: Final = 4 * 2**20
MAX_PACK_BYTES: Final = 16 * 2**20
MAX_SPLICED_BYTES: Final = 64 * 2**20


class Permission(StrEnum):
    """What an operation needs. All but ``self`` and ``administer`` are needed in the project that it is about."""

    READ = "read"
    WRITE = "write"
    MANAGE = "manage"
    ADMINISTER = "administer"
    SELF = "self"
    ATTEMPT = "attempt"


_S = Standing
GRANTS: Final[dict[Permission, frozenset[Standing]]] = {
    Permission.READ: frozenset({_S.VIEWER, _S.DEVELOPER, _S.ADMIN, _S.ADMINISTRATOR}),
    Permission.WRITE: frozenset({_S.DEVELOPER, _S.ADMIN, _S.ADMINISTRATOR}),
    Permission.MANAGE: frozenset({_S.ADMIN, _S.ADMINISTRATOR}),
    Permission.ADMINISTER: frozenset({_S.ADMINISTRATOR}),
    Permission.SELF: frozenset({_S.USER, _S.ADMINISTRATOR}),
    Permission.ATTEMPT: frozenset({_S.ATTEMPT}),
}
"""The policy: who has which permission. What is not here is refused."""


class Kind(StrEnum):
    """How an operation answers."""

    JSON = "json"
    BYTES = "bytes"
    STREAM = "stream"
    SOCKET = "socket"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint. ``id`` is ``noun.verb``: the service's module and method.

    Attributes:
        reads: the kinds of records that the answer is made of, where it is made of nothing else: not of who asks, not of the
            time. It is the same then until one of them is written.
        audited: whether it is stored who did it. Not where a program moves bytes, many times a second: what uses them is.
        tells: the fields of the body that are stored with who did it: what was done to the thing. Never a secret.
    """

    id: str
    method: str
    path: str
    summary: str
    returns: Any
    body: Any = None
    query: type[Value] | None = None
    permission: Permission = Permission.READ
    kind: Kind = Kind.JSON
    status: int = 200
    reads: tuple[str, ...] = ()
    audited: bool = True
    tells: tuple[str, ...] = ()


O = Operation  # noqa: E741 - one letter keeps the table readable
OPERATIONS: Final[tuple[Operation, ...]] = (
    O("platform.get", "GET", "/v1/platform", "The platform's state", PlatformStatus),
    O("platform.doctor", "GET", "/v1/platform/doctor", "What the server sees of itself and its machine, and what is not well",
      Diagnosis, query=DoctorQuery, permission=Permission.ADMINISTER),
    O("platform.stop", "POST", "/v1/platform/stop", "Stop the server; jobs go on unless asked otherwise", Accepted,
      body=PlatformStop, permission=Permission.ADMINISTER, status=202, tells=("jobs",)),
    O("jobs.list", "GET", "/v1/jobs", "Jobs, newest first", Page[Job], query=JobsQuery, reads=(JobArray.KIND, Job.KIND)),
    O("jobs.list_all", "GET", "/v1/all-projects/jobs", "Jobs of all the caller's projects, newest first", Page[Job],
      query=AllJobsQuery, permission=Permission.SELF),
    O("jobs.submit", "PUT", "/v1/jobs/{job}", "Submit a job under an id made by the client; twice is once", Job,
      body=JobSpec, status=201, permission=Permission.WRITE),
    O("jobs.get", "GET", "/v1/jobs/{job}", "One job, by id or name", Job, reads=(Job.KIND,)),
    O("jobs.wait", "GET", "/v1/jobs/{job}/wait", "The job, as soon as it has ended, is in a state, or the time is over", Job,
      query=WaitQuery),
    O("jobs.why", "GET", "/v1/jobs/{job}/why", "Why the job is where it is", Why),
    O("jobs.stop", "POST", "/v1/jobs/{job}/stop", "Stop the job", Job, body=StopRequest, status=202,
      permission=Permission.WRITE),
    O("jobs.hold", "POST", "/v1/jobs/{job}/hold", "Let a waiting job wait until it is released", Job,
      permission=Permission.WRITE),
    O("jobs.release", "POST", "/v1/jobs/{job}/release", "Let a held job go", Job, permission=Permission.WRITE),
    O("jobs.retry", "POST", "/v1/jobs/{job}/retry", "Run an ended job again", Job, body=RetryRequest, status=201,
      permission=Permission.WRITE),
    O("jobs.attempts", "GET", "/v1/jobs/{job}/attempts", "The job's attempts, newest first", Page[Attempt], query=Paging,
      reads=(Job.KIND, Attempt.KIND)),
    O("jobs.logs", "GET", "/v1/jobs/{job}/logs", "A part of the job's logs", LogPage, query=LogsQuery),
    O("jobs.logs_stream", "GET", "/v1/jobs/{job}/logs/stream", "The job's logs as they are written, until it has ended",
      LogPage, query=LogsQuery, kind=Kind.STREAM),
    O("jobs.metrics", "GET", "/v1/jobs/{job}/metrics", "The job's metrics", Metrics, query=MetricsQuery),
    O("jobs.artifacts", "GET", "/v1/jobs/{job}/artifacts", "What the job left, newest first", Page[Artifact], query=Paging,
      reads=(Job.KIND, Artifact.KIND)),
    O("arrays.get", "GET", "/v1/arrays/{array}", "A job array, by id or name: how many of its elements are in each state",
      ArrayState, reads=(Job.KIND, JobArray.KIND)),
    O("arrays.wait", "GET", "/v1/arrays/{array}/wait", "The array, as soon as all of it has ended, or the time is over",
      ArrayState, query=TimeoutQuery),
    O("arrays.why", "GET", "/v1/arrays/{array}/why", "How far the array is, and why the next one of its elements waits",
      ArrayWhy),
    O("arrays.stop", "POST", "/v1/arrays/{array}/stop", "Stop all elements of an array", ArrayState, body=StopRequest,
      status=202, permission=Permission.WRITE),
    O("arrays.retry", "POST", "/v1/arrays/{array}/retry", "Run the elements again that failed or were cancelled",
      ArrayState, body=RetryRequest, status=201, permission=Permission.WRITE),
    O("arrays.hold", "POST", "/v1/arrays/{array}/hold", "Let all waiting elements of an array wait until they are released",
      ArrayState, permission=Permission.WRITE),
    O("arrays.release", "POST", "/v1/arrays/{array}/release", "Let all held elements of an array go", ArrayState,
      permission=Permission.WRITE),
    O("sessions.open", "GET", "/v1/jobs/{job}/session", "Run a command, or copy files, inside a running job", SessionEnd,
      body=SessionRequest, query=SessionQuery, kind=Kind.SOCKET, status=101, permission=Permission.WRITE),
    O("artifacts.get", "GET", "/v1/artifacts/{artifact}", "One artifact", Artifact, reads=(Artifact.KIND,)),
    O("blobs.missing", "POST", "/v1/blobs/missing", "Which of these blobs and trees the project does not have yet", Addresses,
      body=AddressesAndTrees, permission=Permission.WRITE, audited=False),
    O("blobs.pack", "POST", "/v1/blobs", "Store many small blobs at once", Stored, body=bytes, status=201,
      permission=Permission.WRITE, audited=False),
    O("blobs.put", "PUT", "/v1/blobs/{address}", "Store one blob", Stored, body=bytes, status=201,
      permission=Permission.WRITE, audited=False),
    O("blobs.splice", "POST", "/v1/blobs/splices", "Store blobs that are others with a part replaced", Stored, body=Splices,
      status=201, permission=Permission.WRITE, audited=False),
    O("blobs.received", "GET", "/v1/blobs/{address}/received", "How much of a blob has arrived in pieces", Received,
      permission=Permission.WRITE),
    O("blobs.append", "PUT", "/v1/blobs/{address}/received", "Add a piece to a blob, which its last one completes", Received,
      body=bytes, query=PieceQuery, permission=Permission.WRITE, audited=False),
    O("blobs.prune", "POST", "/v1/blobs/prune", "Remove the project's blobs that nothing refers to", PrunedBlobs,
      body=PruneBlobsRequest, status=202, permission=Permission.MANAGE),
    O("blobs.get", "GET", "/v1/blobs/{address}", "One blob's bytes", bytes, kind=Kind.BYTES),
    O("environments.list", "GET", "/v1/environments", "The catalogue, and what was built from requirements",
      Page[EnvironmentEntry]),
    O("environments.build", "POST", "/v1/environments", "Build an environment unless it is there", Environment,
      body=EnvironmentRequest, status=202, permission=Permission.WRITE),
    O("environments.get", "GET", "/v1/environments/{environment}", "One environment", Environment),
    O("environments.log", "GET", "/v1/environments/{environment}/log", "What its build printed", TextPage,
      query=OffsetQuery),
    O("top.get", "GET", "/v1/top", "What is in use now, and what waits", Top),
    O("trace.get", "GET", "/v1/trace", "When jobs came, what they asked for, how long they ran: for simulations",
      Page[TracedJob], query=TraceQuery),
    O("trace.decisions", "GET", "/v1/trace/decisions", "What the scheduler was told and decided, for a replay",
      TextPage, query=OffsetQuery, permission=Permission.ADMINISTER),
    O("environments.show", "GET", "/v1/environments/{environment}/details",
      "All about an environment, by name or id: packages, variables, size, who uses it", EnvironmentDetails),
    O("environments.lock", "GET", "/v1/environments/{environment}/lock", "Its packages, each with version and hashes",
      EnvironmentText),
    O("environments.dockerfile", "GET", "/v1/environments/{environment}/dockerfile", "The same as a recipe for an image",
      EnvironmentText),
    O("environments.remove", "DELETE", "/v1/environments/{environment}",
      "Give an environment up that no live job uses; it is built again when a job asks for it", Environment,
      permission=Permission.WRITE),
    O("environments.prune", "POST", "/v1/environments/prune", "Give up the project's environments that nobody uses", Pruned,
      body=PruneRequest, permission=Permission.WRITE),
    O("environments.legacy", "GET", "/v1/frameworks-of-2018", "How each of 2018's thirteen frameworks runs today",
      Page[FrameworkOf2018]),
    O("nodes.list", "GET", "/v1/nodes", "Machines, what they have and what is free", Page[NodeUse]),
    O("events.list", "GET", "/v1/events", "What happened, oldest first", Page[Event], query=EventsQuery),
    O("events.stream", "GET", "/v1/events/stream", "What happens, as it happens", Event, query=EventsQuery,
      kind=Kind.STREAM),
    O("access.whoami", "GET", "/v1/whoami", "Who calls, and what of", Identity, permission=Permission.SELF),
    O("projects.list", "GET", "/v1/projects", "The caller's projects", Page[Project], query=Paging,
      permission=Permission.SELF),
    O("projects.make", "PUT", "/v1/projects/{name}", "Make a project; twice is once", Project, body=ProjectRequest,
      permission=Permission.ADMINISTER, status=201),
    O("projects.get", "GET", "/v1/project", "The project", Project),
    O("projects.change", "PATCH", "/v1/project", "Change what holds for the project's jobs from now on", Project,
      body=ProjectChange, permission=Permission.MANAGE, tells=("require",)),
    O("quotas.list", "GET", "/v1/quotas", "The project's quota and those of the groups above it; to administrators all",
      Page[QuotaUse], query=Paging),
    O("quotas.get", "GET", "/v1/quotas/{quota}", "One of them, with what is used of it", QuotaUse),
    O("quotas.set", "PUT", "/v1/quotas/{quota}", "Give a project or a group guarantees and limits, from now on", QuotaUse,
      body=QuotaChange, permission=Permission.ADMINISTER, tells=("group", "parent", "guarantee", "limit", "weight")),
    O("quotas.remove", "DELETE", "/v1/quotas/{quota}", "Remove a quota: nothing is guaranteed or limited by it any more",
      Accepted, permission=Permission.ADMINISTER),
    O("users.list", "GET", "/v1/users", "Everybody", Page[User], query=Paging, permission=Permission.ADMINISTER),
    O("users.make", "PUT", "/v1/users/{user}", "Make a user; twice is once", User, body=UserRequest,
      permission=Permission.ADMINISTER, status=201, tells=("administrator",)),
    O("users.change", "PATCH", "/v1/users/{user}", "Make a user an administrator, or not any more", User, body=UserChange,
      permission=Permission.ADMINISTER, tells=("administrator",)),
    O("users.remove", "DELETE", "/v1/users/{user}",
      "Take everything from a user: keys, tokens, memberships; jobs go on, and the name stays taken", User,
      permission=Permission.ADMINISTER),
    O("members.list", "GET", "/v1/members", "The project's members", Page[Member], query=Paging),
    O("members.set", "PUT", "/v1/members/{user}", "Give a user a role in the project", Member, body=MemberRequest,
      permission=Permission.MANAGE, tells=("role",)),
    O("members.remove", "DELETE", "/v1/members/{user}", "Take a user out of the project, at once", Accepted,
      permission=Permission.MANAGE),
    O("keys.list", "GET", "/v1/keys", "One's access keys", Page[AccessKey], query=OwnerQuery, permission=Permission.SELF),
    O("keys.make", "POST", "/v1/keys", "Make an access key", KeyMade, body=KeyRequest, permission=Permission.SELF,
      status=201, tells=("user", "name", "valid_for", "replaces", "overlap")),
    O("keys.expire", "POST", "/v1/keys/{key}/expire", "Let an access key end soon", AccessKey, body=KeyExpiry,
      permission=Permission.SELF, tells=("after",)),
    O("keys.revoke", "DELETE", "/v1/keys/{key}", "Revoke an access key, at once", Revoked, permission=Permission.SELF),
    O("tokens.list", "GET", "/v1/tokens", "One's bearer tokens", Page[Token], query=OwnerQuery, permission=Permission.SELF),
    O("tokens.make", "POST", "/v1/tokens", "Make a bearer token, for what cannot sign", TokenMade, body=TokenRequest,
      permission=Permission.SELF, status=201, tells=("name", "project", "valid_for")),
    O("tokens.revoke", "DELETE", "/v1/tokens/{token}", "Revoke a token, at once", Revoked, permission=Permission.SELF),
    O("secrets.list", "GET", "/v1/secrets", "The project's secrets: their names, never their values", Page[Secret],
      query=Paging),
    O("secrets.set", "PUT", "/v1/secrets/{secret}", "Give a secret a value, instead of the one before", Secret,
      body=SecretRequest, permission=Permission.WRITE),
    O("secrets.remove", "DELETE", "/v1/secrets/{secret}", "Remove a secret; what runs keeps what it began with", Accepted,
      permission=Permission.WRITE),
    O("usage.report", "GET", "/v1/usage", "Who held what, how much of it was not used, and what it costs", UsageReport,
      query=UsageQuery),
    O("prices.list", "GET", "/v1/prices", "What resources cost, from when until when", Page[Price], query=Paging,
      permission=Permission.SELF),
    O("prices.set", "POST", "/v1/prices", "Set a price; one that begins at the same time is replaced", Price,
      body=PriceRequest, permission=Permission.ADMINISTER, status=201,
      tells=("resource", "per_hour", "currency", "valid_from", "valid_until")),
    O("prices.remove", "DELETE", "/v1/prices/{price}", "Remove a price, as if it had never been", Accepted,
      permission=Permission.ADMINISTER),
    O("prometheus.get", "GET", "/metrics", "Figures in the text format of Prometheus", bytes,
      permission=Permission.ADMINISTER, kind=Kind.TEXT),
    O("attempts.append", "PUT", "/v1/attempts/{attempt}/streams/{task}/{stream}",
      "A runner ships a piece of a log or of metrics; the same piece twice is once", TextPage, body=bytes,
      query=AppendQuery, permission=Permission.ATTEMPT, audited=False),
    O("reports.put", "PUT", "/v1/attempts/{attempt}/tasks/{task}",
      "A runner in a pod says all there is to say of its task, and learns what is wished of it", Wishes, body=TaskReport,
      permission=Permission.ATTEMPT, audited=False),
    O("wishes.wait", "GET", "/v1/attempts/{attempt}/wishes",
      "What is wished of an attempt, as soon as that changes or the time is over", Wishes, query=WishesQuery,
      permission=Permission.ATTEMPT),
    O("handing.code", "GET", "/v1/attempts/{attempt}/code", "The attempt's code, as a pack", bytes,
      permission=Permission.ATTEMPT, kind=Kind.BYTES),
    O("handing.secrets", "GET", "/v1/attempts/{attempt}/secrets", "The secrets that the attempt begins with", HandedSecrets,
      permission=Permission.ATTEMPT),
    O("results.missing", "POST", "/v1/attempts/{attempt}/blobs/missing",
      "Which of these blobs and trees an attempt's project does not have yet", Addresses, body=AddressesAndTrees,
      permission=Permission.ATTEMPT, audited=False),
    O("results.pack", "POST", "/v1/attempts/{attempt}/blobs", "Store many small blobs of what an attempt leaves", Stored,
      body=bytes, status=201, permission=Permission.ATTEMPT, audited=False),
    O("results.received", "GET", "/v1/attempts/{attempt}/blobs/{address}/received",
      "How much of a blob of an attempt has arrived in pieces", Received, permission=Permission.ATTEMPT),
    O("results.append", "PUT", "/v1/attempts/{attempt}/blobs/{address}",
      "Add a piece to a blob of what an attempt leaves, which its last one completes", Received, body=bytes,
      query=PieceQuery, permission=Permission.ATTEMPT, audited=False),
    O("results.get", "GET", "/v1/attempts/{attempt}/blobs/{address}", "One blob's bytes, from one of them on", bytes,
      query=OffsetQuery, permission=Permission.ATTEMPT, kind=Kind.BYTES),
    O("artifacts.report", "PUT", "/v1/attempts/{attempt}/outputs/{task}",
      "A runner has sent what its task left in its output folder", TaskOutputs, body=OutputsReport,
      permission=Permission.ATTEMPT, audited=False),
    O("checkpoints.register", "PUT", "/v1/attempts/{attempt}/checkpoints/{name}",
      "A runner has sent a checkpoint; the same twice is once", Checkpoint, body=CheckpointReport,
      permission=Permission.ATTEMPT, audited=False),
    O("checkpoints.restorable", "GET", "/v1/attempts/{attempt}/checkpoints",
      "What the attempt goes on from: what those before it have left", Page[Checkpoint], permission=Permission.ATTEMPT),
    O("attempts.environment", "GET", "/v1/attempts/{attempt}/environment",
      "The archive of the attempt's environment from a byte on, for a node that has not unpacked it yet", bytes,
      query=OffsetQuery, permission=Permission.ATTEMPT, kind=Kind.BYTES),
)  # fmt: skip
BY_ID: Final = {operation.id: operation for operation in OPERATIONS}
OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz"})
"""What a stranger may ask: whether the server lives. Nothing else."""
