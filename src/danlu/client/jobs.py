"""A job as an object: what a program does with one that it has submitted or found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, Unpack

from pydantic import ValidationError

from danlu.api.bodies import LogsQuery, MetricsQuery, Paging, StopRequest
from danlu.client import describing, measured, submitting
from danlu.client.artifacts import fetch, left_by
from danlu.client.fields import JobFields
from danlu.client.logs import LogLine, lines, pages
from danlu.client.transport import FOLLOW_PATIENCE_S, Client
from danlu.client.waiting import until
from danlu.domain import jobs as domain
from danlu.domain.artifacts import Artifact
from danlu.domain.jobs import Attempt, JobState, Reason, reached
from danlu.domain.specs import JobSpec
from danlu.domain.validation import invalid_spec
from danlu.domain.views import Metrics, Series, Why
from danlu.errors import InvalidRequest, NotFound

POINTS: Final = 10_000


class Job:
    """A job of a platform. ``record`` and what is read from it are as of the last answer; ``refresh`` asks anew."""

    def __init__(self, client: Client, record: domain.Job) -> None:
        self._client, self.record = client, record

    def __repr__(self) -> str:
        reason = f", {self.reason}" if self.reason else ""
        return f"<danlu.Job {self.name}: {self.state}{reason}>"

    @property
    def id(self) -> str:
        """Its id, which is never used again."""
        return self.record.id

    @property
    def name(self) -> str:
        """Its name, unique among the project's live jobs."""
        return self.record.name

    @property
    def spec(self) -> JobSpec:
        """What was asked for."""
        return self.record.spec

    @property
    def state(self) -> JobState:
        """Where it is: ``queued``, ``running``, ``succeeded`` ...; a text that compares equal to these."""
        return self.record.state

    @property
    def reason(self) -> Reason | None:
        """Why it is there."""
        return self.record.reason

    @property
    def message(self) -> str:
        """The reason in words, with its numbers."""
        return self.record.message

    @property
    def exit_code(self) -> int | None:
        """The newest attempt's exit code; 128 + the signal when one ended it; None while there is none."""
        return self.record.exit_code

    @property
    def ended(self) -> bool:
        """Whether it can no longer change."""
        return not self.record.live

    @property
    def succeeded(self) -> bool:
        """Whether it has ended well."""
        return self.state is JobState.SUCCEEDED

    def refresh(self) -> Self:
        """Asks what has become of it, and returns it."""
        self.record = self._client.call("jobs.get", {"job": self.id})
        return self

    def wait(self, timeout_s: float | None = None, *, state: str | None = None) -> Self:
        """Waits until it has ended, and returns it; whether it succeeded is for the caller to look at.

        Args:
            timeout_s: None: for ever.
            state: return as soon as it is in this state, too; ``running`` counts for a job that has succeeded since.

        Raises:
            TimeoutError: the time is over. The job goes on.
            InvalidRequest: there is no such state.
        """
        try:
            wanted = None if state is None else JobState(state)
        except ValueError as error:
            raise InvalidRequest(
                f"{state!r} is not a job's state", next_step=f"one of: {', '.join(JobState)}"
            ) from error
        with self._client.patient(FOLLOW_PATIENCE_S) as client:
            self.record = until(client, self.record, state=wanted, timeout_s=timeout_s)
        if self.record.live and not reached(self.record, wanted):
            raise TimeoutError(
                f"job {self.name} has not {'ended' if wanted is None else f'become {wanted}'}: {self.state}"
            )
        return self

    def logs(
        self,
        *,
        follow: bool = False,
        attempt: int | None = None,
        task: str | Sequence[str] = (),
        role: str | Sequence[str] = (),
        rank: int | Sequence[int] = (),
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """Yields what it printed, line by line, all tasks in the order of time; each line is a str that knows its task.

        Args:
            follow: go on until the job has ended, attempt after attempt.
            attempt: of this attempt only; left out: of the newest one on.
            task: of the tasks of these names only, such as ``worker-1``.
            role: of the tasks of these roles, too.
            rank: of the tasks of these ranks, too.
            tail: only the last lines of each task.

        Raises:
            NotFound: it has no such attempt, task, role or rank.
        """
        try:
            query = LogsQuery(
                attempt=attempt,
                task=(task,) if isinstance(task, str) else tuple(task),
                role=(role,) if isinstance(role, str) else tuple(role),
                rank=(rank,) if isinstance(rank, int) else tuple(rank),
                tail=tail,
            )
        except ValidationError as error:
            raise invalid_spec(error, LogsQuery) from error

        def read() -> Iterator[LogLine]:
            with self._client.patient(FOLLOW_PATIENCE_S) as client:
                yield from lines(pages(client, self.id, query, follow=follow))

        return read()

    def series(self, *names: str, points: int = POINTS, system: bool = False) -> dict[str, Series]:
        """Returns its metrics by name; of a job of several tasks by ``TASK/NAME``.

        Args:
            names: only these.
            points: at most so many of each; no peak is left out.
            system: what the platform measured (``system/cpu_cores`` ...) instead of what the program recorded.
        """
        try:
            query = MetricsQuery(points=points, system=system, name=names[0] if len(names) == 1 else None)
        except ValidationError as error:
            raise invalid_spec(error, MetricsQuery) from error
        found: Metrics = self._client.call("jobs.metrics", {"job": self.id}, query=query)
        return measured.by_label(one for one in found.series if not names or one.name in names)

    def metrics(self, *names: str, points: int = POINTS, system: bool = False) -> Any:
        """Returns its metrics as a pandas DataFrame; where pandas is not installed, as ``series`` does.

        A column for each metric (of a job of several tasks ``TASK/NAME``), a row for each step, ascending: its index ``step``
        is the step as a float, or the point's number where it was recorded without one.
        """
        found = self.series(*names, points=points, system=system)
        try:
            return measured.table(found)
        except ImportError:
            return found

    def why(self) -> Why:
        """Returns why it is where it is, with the numbers."""
        found: Why = self._client.call("jobs.why", {"job": self.id})
        return found

    def describe(self) -> describing.Description:
        """Returns all about it: attempts, events, what it left."""
        return describing.describe(self._client, self.refresh().record)

    def attempts(self) -> list[Attempt]:
        """Returns its executions, newest first, at most 500."""
        return [*self._client.call("jobs.attempts", {"job": self.id}, query=Paging(limit=500)).items]

    def stop(self, grace: float | str | None = None) -> Self:
        """Asks it to stop, and returns it at once: SIGTERM, after the grace SIGKILL. One that has ended stays as it is."""
        try:
            request = StopRequest.model_validate({} if grace is None else {"grace": grace})
        except ValidationError as error:
            raise invalid_spec(error, StopRequest) from error
        self.record = self._client.call("jobs.stop", {"job": self.id}, body=request)
        return self

    def retry(self, *, code: str | Path | None = None, **changes: Unpack[JobFields]) -> Job:
        """Runs it again once it has ended, from its newest checkpoint, and returns the new job.

        Args:
            code: a folder to send instead of the code that it had.
            **changes: fields that are given anew; mappings add to what there was.

        Raises:
            Conflict: it has not ended.
            InvalidSpec: a field cannot be so.
        """
        fields = submitting.changed(self.spec, completed(changes))
        if code is not None:
            fields |= sent(self._client, code)
        return Job(self._client, submitting.retry(self._client, self.record, fields, submitting.new_job_id()))

    def artifacts(self) -> list[Artifact]:
        """Returns what its attempts left in ``$DANLU_OUTPUT_DIR``, newest first."""
        return left_by(self._client, self.id)

    def download(self, to: str | Path, *, attempt: int | None = None) -> Path:
        """Writes what it left into a folder that is empty or absent, and returns the folder.

        Args:
            to: the folder; it is there with all files or not at all.
            attempt: of this attempt; left out: of the newest that left anything.

        Raises:
            NotFound: it left nothing.
            InvalidSpec: the folder is not empty, or cannot be written.
        """
        left = [one for one in self.artifacts() if attempt is None or one.attempt_id == f"{self.id}-{attempt}"]
        if not left:
            step = "a job's files are kept that it writes to $DANLU_OUTPUT_DIR"
            raise NotFound(f"job {self.name} left nothing", next_step=step)
        folder = Path(to).expanduser().absolute()
        fetch(self._client, left[0], folder)
        return folder


def completed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments as JobSpec takes them: a file of requirements is read, ``env="host"`` is this Python."""
    given = dict(fields)
    if isinstance(given.get("requirements"), Path):
        given["requirements"] = submitting.read_requirements(given["requirements"])
    if given.get("env") == "host":
        given["interpreter"] = sys.executable
    return given


def sent(client: Client, code: str | Path) -> dict[str, Any]:
    """Sends a folder, only what the platform lacks of it; returns the fields that name it. An address stays as it is."""
    if isinstance(code, str) and code.startswith("sha256:"):
        return {"code": code}
    from danlu.client.code import send

    return send(client, submitting.code_folder(None if str(code) == "." else Path(code))).fields()
