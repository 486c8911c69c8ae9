"""Members of a project: who has which role."""

from __future__ import annotations

from danlu.api.bodies import Accepted, MemberRequest, Paging
from danlu.database.engine import Transaction
from danlu.database.records import MEMBERS
from danlu.domain.users import Member
from danlu.domain.views import Page
from danlu.errors import NotFound
from danlu.services import users
from danlu.services.context import Call


def list(call: Call, query: Paging) -> Page[Member]:
    """Returns the project's members, newest first."""
    return call.platform.database.read(
        lambda tx: MEMBERS.page(tx, limit=query.limit, cursor=query.cursor, project=call.project)
    )


def set(call: Call, user: str, body: MemberRequest) -> Member:
    """Gives a user a role in the project, instead of the one before; it holds from the next request on."""
    now = call.platform.clock.now()

    def work(tx: Transaction) -> Member:
        found = users.find(tx, user)
        known = next(iter(MEMBERS.find(tx, project=call.project, user=found.id, limit=1)), None)
        if known is not None:
            if known.role is body.role:
                return known
            new = known.evolved(now=now, role=body.role)
            MEMBERS.put(tx, known, new, actor=call.actor.name)
            return new
        made = Member(
            id=call.platform.new_id("m"), project=call.project, user=found.id, name=found.name, role=body.role,
            created_by=call.actor.name, created_at=now, updated_at=now,
        )  # fmt: skip
        MEMBERS.add(tx, made, actor=call.actor.name)
        return made

    return call.write(work)


def remove(call: Call, user: str) -> Accepted:
    """Takes a user out of the project; what it made stays."""

    def work(tx: Transaction) -> None:
        found = users.find(tx, user)
        known = next(iter(MEMBERS.find(tx, project=call.project, user=found.id, limit=1)), None)
        if known is None:
            raise NotFound(f"{found.name} is no member of {call.project}", next_step="its members: danlu member ls")
        MEMBERS.remove(tx, known)

    call.write(work)
    return Accepted(message=f"{user} is no member of {call.project} any more")
