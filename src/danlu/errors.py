"""Every error of Danlu: one tree, each class with a code, an HTTP status and a next step.

::

    DanluError
    ├── InvalidRequest 400            the request itself is malformed
    │   ├── UpgradeRequired 426       this is a web socket
    │   └── InvalidSpec 422           a job's fields are wrong, named one by one
    │       ├── NeverFits 422         no node could ever hold it
    │       └── UnknownEnvironment 422
    ├── NotAuthenticated 401
    ├── NotAllowed 403
    ├── QuotaExceeded 403             a limit of the project, or of a group above it, has no room left
    ├── NotFound 404
    ├── Conflict 409
    │   ├── NameTaken 409
    │   ├── NotRunning 409            the job has no process to look into
    │   ├── VersionConflict 409       somebody else changed it first
    │   ├── IllegalMove 409           the state machine has no such move
    │   └── StaleAttempt 409          a newer attempt took over
    ├── TooSlow 408
    ├── TooLarge 413
    ├── TooManyRequests 429
    ├── InternalError 500
    ├── Unavailable 503               try again
    │   ├── ExecutorUnavailable 503
    │   ├── DatabaseUnavailable 503
    │   ├── StorageUnavailable 503    the object store is away, slow, or refuses
    │   └── LeadershipLost 503        another server leads: what this one wanted to change, that one decides
    ├── StorageFull 507
    ├── LaunchRejected 422            an attempt could not be started; its reason goes to the user
    │   ├── LeasedPortTaken 422       a stranger listens on a port of it: it is tried with other ports
    │   └── SecretUnavailable 422     a secret that it needs is gone, or cannot be opened
    ├── EnvironmentFailed 422         an environment could not be built; uv's own words are kept
    ├── DataDamaged 500               stored bytes are not what was stored
    ├── VaultLocked 500               what was sealed cannot be opened: the master key is another one
    └── PlatformError                 the platform on this machine could not be started, found or reached
        ├── NotTrusted            its certificate is not the one that was pinned, and no authority vouches for it
        ├── PortTaken
        ├── AlreadyRunning
        ├── DatabaseDamaged
        ├── DatabaseMoved         it lies elsewhere by now
        └── DatabaseTooNew

A class's docstring is its message when none is given. The server answers with ``to_problem`` (RFC 9457), the SDK raises the
same class again with ``from_problem``.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class DanluError(Exception):
    """Something went wrong.

    Attributes:
        message: what happened, to which thing, with which value.
        next_step: what the reader can do now; may be empty.
        details: JSON-able facts for programs (``field``, ``value``, ``limit`` ...).
    """

    status: ClassVar[int] = 500
    step: ClassVar[str] = ""

    def __init__(self, message: str = "", *, next_step: str = "", **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.next_step = next_step or self.step
        self.details = details
        super().__init__(self.message)

    @classmethod
    def code(cls) -> str:
        """The name that programs compare with; it never changes once published."""
        return cls.__name__

    def to_problem(self) -> dict[str, Any]:
        """Returns the error as an RFC 9457 problem object."""
        return {
            "type": f"urn:danlu:error:{self.code()}",
            "title": (type(self).__doc__ or "").strip().splitlines()[0],
            "status": self.status,
            "code": self.code(),
            "detail": self.message,
            "next_step": self.next_step,
            "details": self.details,
        }


class InvalidRequest(DanluError):
    """The request is malformed."""

    status = 400


class UpgradeRequired(InvalidRequest):
    """This address is a web socket."""

    status = 426
    step = "danlu exec, danlu cp; or a web socket client, see docs/reference/api.md"


class InvalidSpec(InvalidRequest):
    """The specification has a field that cannot be right."""

    status = 422


class NeverFits(InvalidSpec):
    """The request is larger than any node here."""


class UnknownEnvironment(InvalidSpec):
    """There is no such environment."""

    step = "all of them: danlu env ls"


class NotAuthenticated(DanluError):
    """The request carries no valid credentials."""

    status = 401
    step = "log in: danlu login URL   in scripts: DANLU_ACCESS_KEY_ID and DANLU_SECRET_ACCESS_KEY, or DANLU_TOKEN"


class NotAllowed(DanluError):
    """These credentials do not allow this operation."""

    status = 403


class QuotaExceeded(DanluError):
    """There is no room left within a quota; nothing of this request was stored."""

    status = 403


class NotFound(DanluError):
    """There is no such thing here."""

    status = 404


class Conflict(DanluError):
    """The request conflicts with the present state."""

    status = 409


class NameTaken(Conflict):
    """A live job of this project already has that name."""

    step = "choose another --name, or stop the one that has it"


class NotRunning(Conflict):
    """The job has no process at this moment."""


class VersionConflict(Conflict):
    """The thing was changed by somebody else in the meantime."""

    step = "read it again and repeat"


class IllegalMove(Conflict):
    """The state machine has no such move."""


class StaleAttempt(Conflict):
    """This attempt is not the job's current one."""


class TooSlow(DanluError):
    """The request's body came too slowly."""

    status = 408


class TooLarge(DanluError):
    """The request is larger than this platform accepts."""

    status = 413


class TooManyRequests(DanluError):
    """Too many requests at once."""

    status = 429
    step = "wait a moment and repeat"


class InternalError(DanluError):
    """The server failed; the fault is in its log, under the request's id."""

    status = 500


class Unavailable(DanluError):
    """The platform cannot answer at the moment."""

    status = 503
    step = "try again; danlu status tells more"


class ExecutorUnavailable(Unavailable):
    """The executor cannot be reached at the moment."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached at the moment."""


class StorageUnavailable(Unavailable):
    """The object store cannot be used at the moment."""

    step = "try again; danlu doctor tells more"


class LeadershipLost(Unavailable):
    """This server does not lead any more."""


class StorageFull(DanluError):
    """The disk of the platform is full; nothing of this request was stored."""

    status = 507
    step = "free space on the platform's disk, then repeat"


class LaunchRejected(DanluError):
    """The attempt could not be started."""

    status = 422


class LeasedPortTaken(LaunchRejected):
    """A port that was leased to the attempt is taken by another program."""


class SecretUnavailable(LaunchRejected):
    """A secret that the attempt needs is gone, or cannot be opened."""


class EnvironmentFailed(DanluError):
    """The environment could not be built."""

    status = 422


class DataDamaged(DanluError):
    """Stored bytes are not what was stored."""

    status = 500


class VaultLocked(DanluError):
    """What was sealed cannot be opened: the master key is another one."""

    status = 500
    step = "restore the master key (keys/master of the data folder, or DANLU_MASTER_KEY_FILE); or seal the value anew"


class PlatformError(DanluError):
    """The platform on this machine could not be started, found or reached."""

    status = 503


class NotTrusted(PlatformError):
    """The server's certificate is not trusted."""


class PortTaken(PlatformError):
    """The port is taken by another program."""


class AlreadyRunning(PlatformError):
    """Another server owns this data folder."""


class DatabaseDamaged(PlatformError):
    """The database file is damaged; it was not written to."""


class DatabaseMoved(PlatformError):
    """The database of this platform lies elsewhere by now."""


class DatabaseTooNew(PlatformError):
    """The database was written by a newer version of Danlu; it was not written to."""


@contextlib.contextmanager
def storage_full_is_an_error(what: str) -> Iterator[None]:
    """Raises StorageFull, naming ``what``, where the system says that there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(f"no room on the disk for {what}: {error.strerror}; nothing of it was stored") from error
        raise


def _tree(root: type[DanluError]) -> Iterator[type[DanluError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def classes() -> dict[str, type[DanluError]]:
    """Returns every error class by its code."""
    return {cls.code(): cls for cls in _tree(DanluError)}


def from_problem(problem: Mapping[str, Any], status: int) -> DanluError:
    """Returns the error that a server's problem object stands for.

    An unknown code (a newer server's) becomes a plain DanluError that keeps the text; nothing is lost.
    """
    known = classes().get(str(problem.get("code", "")))
    details = problem.get("details")
    kwargs = {str(k): v for k, v in details.items()} if isinstance(details, Mapping) else {}
    for taken in ("message", "next_step", "self"):
        kwargs.pop(taken, None)
    message = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")
    return (known or DanluError)(message, next_step=str(problem.get("next_step") or ""), **kwargs)
