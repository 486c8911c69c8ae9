"""The platform itself: its state, and how it is stopped."""

from __future__ import annotations

from dataclasses import replace

from danlu import __version__
from danlu.api.bodies import Accepted, DoctorQuery, PlatformStop
from danlu.database import leadership, ledger, queries
from danlu.database.engine import Transaction
from danlu.database.records import ENVIRONMENTS, JOBS
from danlu.domain.diagnosis import Check, Diagnosis, ok, warn
from danlu.domain.environments import EnvironmentState
from danlu.domain.jobs import LIVE_JOB_STATES, Desired, Job
from danlu.domain.prices import told_at
from danlu.domain.views import Leading, PlatformStatus
from danlu.services import jobs, nodes
from danlu.services.context import Call, Platform

MAX_ENVIRONMENTS = 500
MAX_LEFT_NS = 3600 * 10**9
"""A lease that does not end by itself has more."""
AHEAD_NS = 60 * 10**9
"""So far ahead of the machine's clock the ledger's time may be, unless an administrator is to be told."""


def get(call: Call) -> PlatformStatus:
    """Returns the platform's state; a member is told of its own project's jobs, and not where the data lies."""
    platform, project = call.platform, None if call.actor.sees_all else call.project
    return PlatformStatus(
        version=__version__,
        url=platform.url,
        home=platform.facts.home if project is None else "",
        started_at=platform.facts.started_at,
        database=platform.database.dialect,
        isolation=platform.facts.isolation,
        jobs=platform.database.read(lambda tx: queries.job_counts(tx, project)),
        nodes=nodes.list(call).items,
        warnings=platform.facts.warnings,
        leader=leader(platform) if project is None and platform.database.dialect != "sqlite" else None,
    )


def leader(platform: Platform) -> Leading | None:
    """Returns which server leads, or led last."""
    led, term = platform.database.read(leadership.newest), platform.term()
    if led is None:
        return None
    here = term is not None and term.leads and term.lease.epoch == led.epoch
    left_s = min(led.left_ns, MAX_LEFT_NS) / leadership.SECOND
    return Leading(place=led.place, epoch=led.epoch, since=led.since, here=here, left_s=left_s)


def doctor(call: Call, query: DoctorQuery) -> Diagnosis:
    """Returns what the server sees of itself and its machine. Takes seconds where the package index is away."""
    platform = call.platform
    built, at = platform.database.read(
        lambda tx: (
            ENVIRONMENTS.find(tx, state=EnvironmentState.READY, limit=MAX_ENVIRONMENTS), ledger.time_of(tx, 0)
        )
    )  # fmt: skip
    checks = platform.diagnose(built, query.index)
    if at > platform.clock.wall() + AHEAD_NS:
        checks += (_ahead(at),)
    checks += (_led(leader(platform)),)
    return Diagnosis(version=__version__, now=platform.clock.now(), checks=checks)


def _led(found: Leading | None) -> Check:
    if found is None or not found.left_s:
        return warn(
            "leader", "no server leads: jobs wait, and what runs goes on" if found is None else
            f"no server leads: {found.place} did, with epoch {found.epoch}; jobs wait, and what runs goes on",
            "look again in a few seconds; if it stays so, see the servers' logs",
        )  # fmt: skip
    who = "this server" if found.here else found.place
    return ok("leader", f"{who}, since {told_at(found.since)}, epoch {found.epoch}")


def _ahead(at: int) -> Check:
    return warn(
        "ledger", f"its newest entry is of {told_at(at)}: the machine's clock was ahead once, or is behind now; until then "
        "what jobs hold takes no time and costs nothing", "if the machine's clock is behind (date), correct it",
    )  # fmt: skip


def stop(call: Call, body: PlatformStop) -> Accepted:
    """Stops the server; with ``jobs`` every live job is asked to stop first, and the server ends after they have.

    Idempotent.
    """
    call.begin()
    platform = call.platform
    if body.jobs:
        while live := platform.database.read(_running):
            for job in live:
                jobs.ask_to_stop(replace(call, project=job.project), job.id, None)
    platform.stop_server(body.jobs)
    return Accepted(message="jobs are asked to stop first" if body.jobs else "jobs go on without the server")


def any_live(platform: Platform) -> bool:
    """Says whether any job has not ended."""
    return bool(platform.database.read(lambda tx: JOBS.find(tx, state=LIVE_JOB_STATES, limit=1)))


def any_uncollected(platform: Platform) -> bool:
    """Says whether anything that a job left is not kept yet."""
    return bool(platform.database.read(lambda tx: queries.uncollected_attempts(tx, 1)))


def _running(tx: Transaction) -> list[Job]:
    return JOBS.find(tx, state=LIVE_JOB_STATES, desired=Desired.RUN, limit=100)
