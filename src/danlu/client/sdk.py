"""Danlu for programs: ``danlu.run(...)``, ``danlu.connect(...)``. ``import danlu`` loads it when it is first used."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from pydantic import ValidationError

from danlu.api.bodies import JobsQuery, UsageQuery
from danlu.client import submitting
from danlu.client.connection import data_folder, find, require
from danlu.client.fields import JobFields
from danlu.client.jobs import Job, completed, sent
from danlu.client.lists import listed
from danlu.client.opening import open_client
from danlu.client.transport import Client
from danlu.domain.usage import UsageReport
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest

if TYPE_CHECKING:
    from danlu.client.simulating import PolicyName, WhatIf
    from danlu.scheduler.report import Report

LOG: Final = logging.getLogger("danlu")
VARIABLES: Final = (
    "DANLU_HOME", "DANLU_URL", "DANLU_PROFILE", "DANLU_PROJECT", "DANLU_TOKEN", "DANLU_TOKEN_FILE", "XDG_CONFIG_HOME",
    "DANLU_ACCESS_KEY_ID", "DANLU_SECRET_ACCESS_KEY", "DANLU_FINGERPRINT",
)  # fmt: skip


class Platform:
    """One platform and one project of it. It may be used by several threads, and closed or left in a ``with``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<danlu.Platform {self.url}, project {self._client.project or 'default'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its address."""
        return self._client.url

    def close(self) -> None:
        """Closes its connections; its jobs go on."""
        self._client.close()

    def run(self, command: str | Sequence[str], *, code: str | Path | None = ".", **fields: Unpack[JobFields]) -> Job:
        """Submits a job, and returns it at once.

        Args:
            command: a list of words, or one line for /bin/sh.
            code: the folder to send, or the address of a tree that was sent; None for none.
            **fields: see JobFields and docs/reference/jobs.md.

        Raises:
            InvalidSpec: a field cannot be so; nothing was sent.
            NeverFits, UnknownEnvironment, NameTaken: the platform refused it.
        """
        given: dict[str, Any] = {"command": command if isinstance(command, str) else list(command), **completed(fields)}
        spec = submitting.spec_of(given)  # before anything is sent
        if code is not None:
            spec = submitting.spec_of({**given, **sent(self._client, code)})
        return Job(self._client, submitting.submit(self._client, spec, submitting.new_job_id()))

    def job(self, name: str) -> Job:
        """Returns a job by id or name; a name means the live one that has it, else the newest.

        Raises:
            NotFound: the project has no such job.
        """
        return Job(self._client, self._client.call("jobs.get", {"job": name}))

    def jobs(self, *, state: str | None = None, limit: int = 100) -> list[Job]:
        """Returns jobs, newest first: all, or those in one state; at most ``limit``, 0 for all."""
        try:
            query = JobsQuery.model_validate({"state": state})
        except ValidationError as error:
            raise invalid_spec(error, JobsQuery) from error
        records, _ = listed(self._client, "jobs.list", query, limit)
        return [Job(self._client, record) for record in records]

    def simulate(
        self,
        policy: PolicyName = "danlu",
        *,
        since: datetime.datetime | None = None,
        all_projects: bool = False,
        **what: Unpack[WhatIf],
    ) -> Report:
        """Returns what would have been if: the project's ended jobs on the platform's nodes. It is computed here.

        Args:
            policy: the platform's own scheduler, or one to compare it with: ``fifo-easy``, ``srtf``, ``las``.
            since: jobs submitted from then on; a time with its zone.
            all_projects: of the whole platform, for administrators.
            **what: limits, guarantees, weights, restart, checkpoint, notice: see danlu.client.simulating.WhatIf.

        Raises:
            InvalidRequest: no job has ended yet, or an argument is not right.
        """
        from danlu.client.simulating import play, recorded

        scene = recorded(self._client, since=_ns(since), platform=all_projects)
        return play(scene.changed(**what), policy).report

    def usage(
        self,
        *,
        by: str = "project",
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        all_projects: bool = False,
    ) -> UsageReport:
        """Returns who held what, how much of it was not used, and what it costs: the newest 30 days, or from ``since`` on.

        Args:
            by: a line for each project, user, job, model, gpu-kind or day.
            since: a time with its zone.
            until: likewise; now when left out.
            all_projects: of the whole platform, for administrators.
        """
        fields = {"by": by, "since": _ns(since), "until": _ns(until), "platform": all_projects}
        try:
            query = UsageQuery.model_validate(fields)
        except ValidationError as error:
            raise invalid_spec(error, UsageQuery) from error
        report: UsageReport = self._client.call("usage.report", query=query)
        return report


def _ns(at: datetime.datetime | None) -> int | None:
    """Returns a time as ns UTC, exactly."""
    if at is None:
        return None
    if at.tzinfo is None:
        raise InvalidRequest(f"{at} has no time zone", next_step="datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)")
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000


def connect(
    url: str | None = None, *, profile: str | None = None, project: str | None = None, start: bool = False
) -> Platform:
    """Returns a platform.

    Args:
        url: its address; left out: DANLU_URL, DANLU_PROFILE, DANLU_HOME, the profile that danlu login or danlu profile use
            made the current one, else the platform of this machine. The key is the one that was given for that address.
        profile: one of danlu login's, instead; ``local`` is the platform of this machine.
        project: left out: DANLU_PROJECT, the profile's, else ``default``.
        start: start the platform of this machine where none is named and none runs.

    Raises:
        PlatformError: none is named and none runs here.
        NotAuthenticated: there is no key for it.
    """
    if start and find(url, profile=profile) is None:
        from danlu.client.starting import start as start_here

        start_here(data_folder())
    found = require(url, profile=profile)
    return Platform(open_client(found, url=url, profile=profile, project=project, notice=LOG.warning))


def run(command: str | Sequence[str], *, code: str | Path | None = ".", **fields: Unpack[JobFields]) -> Job:
    """Submits a job to the platform that ``connect()`` finds, and returns it at once: see Platform.run."""
    return _usual().run(command, code=code, **fields)


def job(name: str) -> Job:
    """Returns a job by id or name: see Platform.job."""
    return _usual().job(name)


def jobs(*, state: str | None = None, limit: int = 100) -> list[Job]:
    """Returns jobs, newest first: see Platform.jobs."""
    return _usual().jobs(state=state, limit=limit)


def _usual() -> Platform:
    """Returns the platform that is meant where none is named; a process and an environment have one."""
    return _opened(os.getpid(), tuple(os.environ.get(name) for name in VARIABLES))


@lru_cache(maxsize=8)
def _opened(_process: int, _environment: tuple[str | None, ...]) -> Platform:
    return connect()
