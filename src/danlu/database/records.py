"""Records in tables: written by compare-and-swap on the version, each move with its event in the same transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, RowMapping, Select, Table, bindparam, delete, false, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from danlu.database import ledger, tables
from danlu.database.engine import Transaction
from danlu.domain.arrays import JobArray
from danlu.domain.artifacts import Artifact, TaskOutputs
from danlu.domain.checkpoints import Checkpoint
from danlu.domain.environments import Environment
from danlu.domain.events import Event
from danlu.domain.jobs import LIVE_JOB_STATES, Attempt, Job
from danlu.domain.keys import AccessKey, Token
from danlu.domain.nodes import Node
from danlu.domain.prices import Price
from danlu.domain.projects import Project
from danlu.domain.quotas import Quota
from danlu.domain.records import Living, Record, storable
from danlu.domain.secrets import Secret
from danlu.domain.users import Member, User
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NameTaken, NotFound, VersionConflict

T = TypeVar("T", bound=Record)


class Records(Generic[T]):
    """One noun's records."""

    def __init__(self, model: type[T], table: Table) -> None:
        self.model = model
        self.table = table

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The fields that have a column of their own."""
        return tuple(column.name for column in self.table.c if column.name != "body")

    # reading

    def get(self, tx: Transaction, record_id: str) -> T | None:
        """Returns the record, or None."""
        if not _searchable(record_id):
            return None
        row = tx.connection.execute(self._by_id, {"record_id": record_id}).mappings().one_or_none()
        return None if row is None else self._record(row)

    @cached_property
    def _by_id(self) -> Select[Any]:
        return select(self.table).where(self.table.c.id == bindparam("record_id"))

    def require(self, tx: Transaction, record_id: str) -> T:
        """Returns the record.

        Raises:
            NotFound: there is none.
        """
        record = self.get(tx, record_id)
        if record is None:
            raise NotFound(f"there is no {self.model.KIND} {record_id}")
        return record

    def hold(self, tx: Transaction, record_id: str) -> T:
        """Returns the record as ``require`` does; nobody changes it before the transaction has ended."""
        row = tx.connection.execute(self._by_id.with_for_update(read=True), {"record_id": record_id}).mappings().first()
        if row is None:
            raise NotFound(f"there is no {self.model.KIND} {record_id}")
        return self._record(row)

    def find(
        self, tx: Transaction, *, limit: int, order: str = "id", descending: bool = False, **where: Any
    ) -> list[T]:
        """Returns records by column values: equal, None, or one of a collection."""
        column = self.table.c[order]
        query = select(self.table).where(*self._conditions(where)).limit(limit)
        rows = tx.connection.execute(query.order_by(column.desc() if descending else column)).mappings()
        return [self._record(row) for row in rows]

    def page(
        self, tx: Transaction, *, limit: int, cursor: str | None, only: Sequence[ColumnElement[bool]] = (), **where: Any
    ) -> Page[T]:
        """Returns a page by id, newest first; ``cursor`` is the last id of the page before. ``only``: further conditions."""
        if cursor is not None and not (cursor.isascii() and cursor.isprintable()):
            raise InvalidRequest(f"the cursor {cursor[:80]!r} is not one that this platform gave out")
        conditions = [*self._conditions(where), *only]
        if cursor is not None:
            conditions.append(self.table.c.id < cursor)
        query = select(self.table).where(*conditions).order_by(self.table.c.id.desc()).limit(limit + 1)
        items = [self._record(row) for row in tx.connection.execute(query).mappings()]
        more = len(items) > limit
        return Page(items=tuple(items[:limit]), next_cursor=items[limit - 1].id if more else None)

    def count(self, tx: Transaction, **where: Any) -> int:
        """Returns how many records have these column values."""
        query = select(func.count()).select_from(self.table).where(*self._conditions(where))
        return int(tx.connection.execute(query).scalar_one())

    # writing

    def add(self, tx: Transaction, record: T, *, actor: str = "") -> None:
        """Stores a new record.

        Raises:
            NameTaken: a live job of the project has that name.
            Conflict: the id, or what must be unique, is taken. The transaction can go on.
            InvalidRequest: a text has a NUL character, which PostgreSQL cannot store.
        """
        tx.touched.add(self.model.KIND)
        with self._conflicts(tx, (record,)):
            tx.connection.execute(insert(self.table).values(self._row(record)))
        self._event(tx, record, None, actor)

    def add_all(self, tx: Transaction, records: Sequence[T], *, actor: str = "") -> None:
        """Stores some new records as ``add`` does, all or none, in one statement.

        Raises:
            NameTaken, Conflict, InvalidRequest: as ``add``, of whichever it is.
        """
        if not records:
            return
        tx.touched.add(self.model.KIND)
        with self._conflicts(tx, records):
            tx.connection.execute(insert(self.table), [self._row(record) for record in records])
        for record in records:
            self._event(tx, record, None, actor)

    def put(self, tx: Transaction, old: T, new: T, *, actor: str = "") -> None:
        """Replaces ``old`` by ``new``, if nobody else has changed it since.

        Raises:
            VersionConflict: somebody has.
        """
        if new.id != old.id or new.version != old.version + 1:
            raise ValueError(f"{new.id} version {new.version} does not follow {old.id} version {old.version}")
        table = self.table
        tx.touched.add(self.model.KIND)
        query = update(table).where(table.c.id == old.id, table.c.version == old.version).values(self._row(new))
        with self._conflicts(tx, (new,)):
            changed = tx.connection.execute(query).rowcount
        if changed != 1:
            raise VersionConflict(f"{self.model.KIND} {old.id} is no longer at version {old.version}")
        self._event(tx, new, old, actor)

    def remove(self, tx: Transaction, record: T) -> None:
        """Deletes a record, if nobody else has changed it since."""
        table = self.table
        tx.touched.add(self.model.KIND)
        query = delete(table).where(table.c.id == record.id, table.c.version == record.version)
        if tx.connection.execute(query).rowcount != 1:
            raise VersionConflict(f"{self.model.KIND} {record.id} is no longer at version {record.version}")

    # conversion

    @contextlib.contextmanager
    def _conflicts(self, tx: Transaction, records: Sequence[T]) -> Iterator[None]:
        """Tells what was taken. A savepoint keeps the rest of the transaction, as SQLite does by itself of one record."""
        alone = tx.dialect == "sqlite" and len(records) == 1
        try:
            with contextlib.nullcontext() if alone else tx.connection.begin_nested():
                yield
        except IntegrityError as error:
            raise self._conflict(tx, records, error) from error

    def _row(self, record: T) -> dict[str, Any]:
        fields = record.model_dump(mode="json")
        if not _storable(fields):
            raise InvalidRequest(
                f"{self.model.KIND} {record.id!r} has a text with a NUL or half a character, which cannot be stored"
            )
        row = {name: fields.pop(name) for name in self.columns}
        row["body"] = fields
        return row

    def _record(self, row: RowMapping) -> T:
        fields = dict(row)
        body = fields.pop("body")
        return self.model.model_validate({**body, **fields})

    def _conditions(self, where: Mapping[str, Any]) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        for name, value in where.items():
            if name not in self.columns:
                raise TypeError(f"{self.table.name} has no column {name}")
            column = self.table.c[name]
            if isinstance(value, Collection) and not isinstance(value, str):
                conditions.append(column.in_(sorted(one for one in value if _searchable(one))))
            else:
                conditions.append(column == value if _searchable(value) else false())
        return conditions

    def _conflict(self, tx: Transaction, records: Sequence[T], error: IntegrityError) -> Conflict:
        said, record = str(error.orig), records[0]
        if "live_name" in said or "jobs.project, jobs.name" in said:
            names = [str(getattr(one, "name", "")) for one in records]
            taken = self.find(tx, project=record.project, name=names, state=LIVE_JOB_STATES, limit=1)
            name = getattr(taken[0], "name", "") if taken else names[0]
            return NameTaken(f"a live job of project {record.project} is already named {name!r}")
        if "checkpoint_owner" in said:
            return Conflict(
                f"another live job already goes on from the checkpoints of {getattr(record, 'checkpoint_owner', '')}",
                next_step="wait until it has ended, or stop it",
            )
        return Conflict(
            f"{self.model.KIND} {record.id} is there already, or something of it that must be unique is taken"
        )

    def _event(self, tx: Transaction, new: T, old: T | None, actor: str) -> None:
        state, previous, reason, message = "created", None, None, ""
        if isinstance(new, Living):
            before = old if isinstance(old, Living) else None
            state, reason, message = str(new.state), None if new.reason is None else str(new.reason), new.message
            if before is not None:
                previous = str(before.state)
                desired = getattr(new, "desired", None)
                if (before.state, before.reason, before.message) == (new.state, new.reason, new.message):
                    if desired == getattr(before, "desired", None):
                        return
                    reason, message = f"Desired{str(desired).title()}", ""
        elif old is not None:
            return
        event = Event(
            at=new.updated_at, project=new.project, kind=self.model.KIND, object_id=new.id, state=state,
            previous=previous, reason=reason, message=message, actor=actor,
        )  # fmt: skip
        add_event(tx, event)


def add_event(tx: Transaction, event: Event) -> None:
    """Stores an event with the transaction; its place in the order is given by the database."""
    tx.events.append(
        {
            "project": event.project,
            "object_id": event.object_id,
            "body": event.model_dump(mode="json", exclude={"seq", "project", "object_id"}),
        }
    )


def _storable(value: Any) -> bool:
    """Says whether every text in a JSON value can be stored."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return all(storable(key) and _storable(inner) for key, inner in value.items())
    return not isinstance(value, list) or all(map(_storable, value))


def _searchable(value: object) -> bool:
    """Says whether a record could have this value; the databases' drivers fail on one that they cannot send."""
    if isinstance(value, str):
        return storable(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


class _Attempts(Records[Attempt]):
    """Attempts: what they hold is metered as they are stored."""

    def add(self, tx: Transaction, record: Attempt, *, actor: str = "") -> None:
        super().add(tx, record, actor=actor)
        ledger.attempt_stored(tx, None, record)

    def put(self, tx: Transaction, old: Attempt, new: Attempt, *, actor: str = "") -> None:
        super().put(tx, old, new, actor=actor)
        ledger.attempt_stored(tx, old, new)


class _Nodes(Records[Node]):
    """Nodes: what they have is metered as they are stored."""

    def add(self, tx: Transaction, record: Node, *, actor: str = "") -> None:
        super().add(tx, record, actor=actor)
        ledger.node_stored(tx, None, record)

    def put(self, tx: Transaction, old: Node, new: Node, *, actor: str = "") -> None:
        super().put(tx, old, new, actor=actor)
        ledger.node_stored(tx, old, new)


JOBS: Final = Records(Job, tables.jobs)
ARRAYS: Final = Records(JobArray, tables.arrays)
ATTEMPTS: Final = _Attempts(Attempt, tables.attempts)
NODES: Final = _Nodes(Node, tables.nodes)
PROJECTS: Final = Records(Project, tables.projects)
QUOTAS: Final = Records(Quota, tables.quotas)
USERS: Final = Records(User, tables.users)
MEMBERS: Final = Records(Member, tables.members)
KEYS: Final = Records(AccessKey, tables.keys)
TOKENS: Final = Records(Token, tables.tokens)
SECRETS: Final = Records(Secret, tables.secrets)
PRICES: Final = Records(Price, tables.prices)
ENVIRONMENTS: Final = Records(Environment, tables.environments)
ARTIFACTS: Final = Records(Artifact, tables.artifacts)
CHECKPOINTS: Final = Records(Checkpoint, tables.checkpoints)
OUTPUTS: Final = Records(TaskOutputs, tables.outputs)
ALL: Final = (
    JOBS, ARRAYS, ATTEMPTS, NODES, PROJECTS, QUOTAS, USERS, MEMBERS, KEYS, TOKENS, SECRETS, PRICES, ENVIRONMENTS, ARTIFACTS,
    CHECKPOINTS, OUTPUTS,
)  # fmt: skip
