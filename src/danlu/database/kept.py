"""Records as they were at the last look: of many that hardly change, only what has changed is read anew."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Final, Generic, TypeVar

from sqlalchemy import ColumnElement, TextClause, select

from danlu.database.engine import Transaction
from danlu.database.records import Records
from danlu.domain.records import Record

T = TypeVar("T", bound=Record)
AT_ONCE: Final = 500


class Kept(Generic[T]):
    """The records of one look, for the next. Any thread may look; what it returns is for nobody to change.

    A record is known by its id and version. So it is looked at before its transaction changes any of them: a version that
    was never stored must not be kept.
    """

    def __init__(self, records: Records[T]) -> None:
        self._records = records
        self._known: dict[str, T] = {}

    def look(self, tx: Transaction, *conditions: ColumnElement[bool] | TextClause, limit: int) -> dict[str, T]:
        """Returns the records of which the conditions are true, at most so many, by id and in its order.

        The same object as at the last look, where nothing has changed.
        """
        column, known = self._records.table.c, self._known
        query = select(column.id, column.version).where(*conditions).order_by(column.id).limit(limit)
        versions = {str(row[0]): int(row[1]) for row in tx.connection.execute(query)}
        changed = [one for one, version in versions.items() if one not in known or known[one].version != version]
        if not changed and len(versions) == len(known):
            return known
        asked = iter(changed)
        fresh: dict[str, T] = {}
        while some := tuple(islice(asked, AT_ONCE)):
            fresh |= {record.id: record for record in self._records.find(tx, id=some, limit=AT_ONCE)}
        found = {}
        for one, version in versions.items():
            record = fresh.get(one) or known.get(one)
            if record is not None and record.version >= version:  # else it was removed between the two questions
                found[one] = record
        self._known = found
        return found

    def named(self, tx: Transaction, ids: Collection[str]) -> dict[str, T]:
        """Returns the records with these ids, by id and in its order."""
        return self.look(tx, self._records.table.c.id.in_(sorted(ids)), limit=len(ids))
