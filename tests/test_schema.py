"""The schema: columns are fields, migrations make the tables, every record has its table."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from danlu.database import migrations
from danlu.database.engine import Database
from danlu.database.records import ALL, Records
from danlu.database.tables import METADATA
from danlu.domain.events import Event
from danlu.domain.records import Living
from danlu.errors import DatabaseTooNew

WITHOUT_RECORDS = {"events", "counters", "nonces", "meters", "ledger_lines", "ledger", "stored", "stored_things",
                   "reports"}  # fmt: skip


@pytest.mark.parametrize("records", ALL, ids=lambda records: records.table.name)
def test_columns_are_fields(records: Records[Living]) -> None:
    fields = records.model.model_fields
    assert set(records.columns) <= set(fields)
    assert {"id", "project", "version"} <= set(records.columns)
    assert "body" not in fields, "body is the column of the other fields"
    for column in records.table.c:
        if column.name == "body":
            continue
        annotation = str(fields[column.name].annotation)
        assert column.nullable == ("None" in annotation), f"{column} and {annotation}"


@pytest.mark.parametrize("records", ALL, ids=lambda records: records.table.name)
def test_texts_fit_into_their_columns(records: Records[Living]) -> None:
    """PostgreSQL refuses what is longer: every enum fits into its column."""
    for column in records.table.c:
        field = records.model.model_fields.get(column.name)
        length = getattr(column.type, "length", None)
        members = getattr(field.annotation, "__members__", {}) if field is not None else {}
        assert all(len(str(member)) <= (length or 0) for member in members.values()), column


def test_every_table_belongs_to_a_noun() -> None:
    assert {records.table.name for records in ALL} | WITHOUT_RECORDS == set(METADATA.tables)
    assert {"seq", "project", "object_id"} <= set(Event.model_fields)


def test_migrations_make_the_tables(empty_url: str) -> None:
    Database.open(empty_url).close()
    Database.open(empty_url).close()
    engine = create_engine(empty_url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, METADATA) == []
            assert context.get_current_revision() == migrations.head()
            found = inspect(connection)
            for table in METADATA.tables.values():
                indexes = {
                    str(i["name"]): (i["column_names"], bool(i["unique"])) for i in found.get_indexes(table.name)
                }
                for index in table.indexes:
                    assert indexes[str(index.name)] == ([column.name for column in index.columns], bool(index.unique))
    finally:
        engine.dispose()


def test_a_newer_schema_is_refused(database: Database, database_url: str) -> None:
    database.close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(DatabaseTooNew, match="9999"):
        Database.open(database_url)
