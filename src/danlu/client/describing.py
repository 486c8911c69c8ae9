"""All about one job: what the platform knows of it, in one look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from danlu.api.bodies import EventsQuery, Paging
from danlu.client.artifacts import left_by
from danlu.client.history import newest_events
from danlu.client.transport import Client
from danlu.domain.artifacts import Artifact
from danlu.domain.events import Event
from danlu.domain.jobs import Attempt, Job

MAX_ATTEMPTS: Final = 100
MAX_EVENTS: Final = 20


@dataclass(frozen=True, slots=True)
class Description:
    """A job, its newest attempts and events (oldest first), and what it left (newest first)."""

    job: Job
    attempts: tuple[Attempt, ...]
    artifacts: tuple[Artifact, ...]
    events: tuple[Event, ...]

    def structured(self) -> dict[str, Any]:
        """Returns it as JSON-able data, as ``danlu describe -o json`` prints it."""
        parts = {"attempts": self.attempts, "artifacts": self.artifacts, "events": self.events}
        return {
            "job": self.job.model_dump(mode="json"),
            **{name: [item.model_dump(mode="json") for item in items] for name, items in parts.items()},
        }


def describe(client: Client, found: Job) -> Description:
    """Returns all about a job, as it was last seen."""
    page = client.call("jobs.attempts", {"job": found.id}, query=Paging(limit=MAX_ATTEMPTS))
    events, _ = newest_events(client, EventsQuery(object_id=found.id), MAX_EVENTS)
    return Description(
        found,
        tuple(sorted(page.items, key=lambda attempt: attempt.number)),
        tuple(left_by(client, found.id)),
        tuple(events),
    )
