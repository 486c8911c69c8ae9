"""``danlu events``: what happened; who did what to which thing, from where, with what outcome."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter, validators

from danlu.api.bodies import EventsQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import event_row
from danlu.cli.keys import request
from danlu.cli.logs import since_time
from danlu.cli.options import Common, Flag, Output
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.client.arrays import of_either
from danlu.client.history import every_event, newest_events
from danlu.client.transport import Client
from danlu.domain.events import CALL, Event
from danlu.domain.jobs import Job
from danlu.errors import InvalidRequest, NotFound

SHOWN: Final = 100
CALLS: Final = ("AGE", "ACTOR", "DID", "TO", "OUTCOME", "FROM")
MOVES: Final = ("AGE", "KIND", "OBJECT", "STATE", "REASON", "MESSAGE")
WIDE: Final = {True: ("PROJECT", "REQUEST", "SEQ"), False: ("ACTOR", "SEQ")}


@Parameter(name="*")
@dataclass(frozen=True)
class Which:
    """Which events."""

    kind: Annotated[str | None, Parameter(help="of this kind: job, attempt, environment, member ...")] = None
    actor: Annotated[str | None, Parameter(help="asked for by this user")] = None
    object: Annotated[
        str | None, Parameter(help="of this thing: a job's or an array's name or id, a user's name ...")
    ] = None
    since: Annotated[str | None, Parameter(help="only what is newer, e.g. 10m")] = None
    calls: Annotated[bool, Parameter(help="who did what, from where, with what outcome; for admins"), Flag] = False
    platform: Annotated[bool, Parameter(help="of the platform, not of a project; for administrators"), Flag] = False

    def query(self, client: Client) -> EventsQuery:
        """Returns what to ask for.

        Raises:
            InvalidRequest: flags contradict, or one cannot be so.
        """
        if self.calls and self.kind not in (None, CALL):
            raise InvalidRequest(f"--calls and --kind {self.kind} are two kinds", next_step="leave one out")
        kind = CALL if self.calls else self.kind
        thing = self.object
        if thing is not None and kind != CALL and not self.platform:
            try:  # what happens to a job or an array is told under its id
                known = of_either(client, "get", thing)
                thing = known.id if isinstance(known, Job) else known.array.id
            except (NotFound, InvalidRequest):
                thing = self.object
        fields = {"kind": kind, "actor": self.actor, "object_id": thing, "since": since_time(self.since)}
        return request(EventsQuery, {**fields, "platform": self.platform})


def events(
    *,
    which: Which | None = None,
    limit: Annotated[
        int | None, Parameter(help="at most so many, the newest; 0 for all", validator=validators.Number(gte=0))
    ] = None,
    watch: Annotated[bool, Parameter(name=("--watch", "-w"), help="go on and show what happens"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Show what happened, oldest first: the newest 100, or as JSON, one object a line, all of it.

    Example: danlu events --calls --actor ada --since 7d -o json > audit.jsonl
    """
    messages = Messages()
    with connect(common, messages) as client:
        query = (which or Which()).query(client)
        most = limit if limit is not None else 0 if output == "json" else SHOWN
        more, last = False, query.after
        if most == 0 and output == "json":
            for event in every_event(client, query):  # of any length: nothing of it is kept
                _show([event], query, output, head=False)
                last = event.seq
        else:
            found, more = newest_events(client, query, most)
            if found or not watch:
                _show(found, query, output, head=True)
            last = found[-1].seq if found else last
            if not found and not watch and output in ("table", "wide"):
                named = f"in project {client.project}" if client.project else "in the project that is yours by default"
                where = "to the platform itself" if query.platform else named
                messages.say(f"nothing of that kind has happened {where}\nelsewhere: --project NAME, --platform")
        if watch:
            _follow(client, query.model_copy(update={"after": last}), output, head=last == query.after)
    if more:
        messages.say("there are older ones: --limit 0 shows all events")
    return 0


def _follow(client: Client, query: EventsQuery, form: Format, *, head: bool) -> None:
    """Shows what happens, for ever."""
    client.patience_s = FOLLOW_PATIENCE_S
    sys.stdout.flush()
    for event in client.stream("events.stream", query=query):
        _show([event], query, form, head=head)
        head = False
        sys.stdout.flush()


def _show(found: Iterable[Event], query: EventsQuery, form: Format, *, head: bool) -> None:
    if form == "json":
        for event in found:
            out.write(json.dumps(event.model_dump(mode="json"), ensure_ascii=False))
    elif form == "yaml":
        out.records(found, form)
    elif form == "name":
        for event in found:
            out.write(f"event/{event.seq}")
    else:
        calls, now = query.kind == CALL, time.time_ns()
        headers = (CALLS if calls else MOVES) + (WIDE[calls] if form == "wide" else ())
        rows = [(_call_row if calls else event_row)(event, now)[: len(headers)] for event in found]
        if rows:
            out.table(headers, rows, with_head=head, whole=form == "wide")


def _call_row(event: Event, now: int) -> list[str]:
    return [
        wording.age(event.at, now), event.actor, event.reason or "-",
        " ".join(text for text in (event.object_id, event.message) if text) or "-", event.state,
        event.source or "-", event.project or "-", event.request_id or "-", str(event.seq),
    ]  # fmt: skip
