"""The schema: columns are fields, migrations make the tables, every record has its table."""

from __future__ import annotations

import ast
import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from danlu.database import migrations, postgresql, schema
from danlu.database.engine import Database
from danlu.database.records import ALL, JOBS, Records
from danlu.database.tables import METADATA
from danlu.domain.events import Event
from danlu.domain.records import Living
from danlu.errors import DatabaseTooNew
from tests.conftest import Cluster
from tests.databases import add
from tests.factories import make_job

WITHOUT_RECORDS = {
    "events",
    "counters",
    "nonces",
    "meters",
    "ledger_lines",
    "ledger",
    "stored",
    "stored_things",
    "leadership",
    "reports",
}


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


NARROWING = re.compile(
    r"drop_|alter_column|rename|create_(unique|check|foreign|primary)|batch_alter|DELETE|DROP|ALTER", re.IGNORECASE
)
BEFORE_SEVERAL_SERVERS = 8
"""The last step of the time when there was one server."""


def expands(tree: ast.Module) -> list[str]:
    """Returns what of a step an older server could not live with, as far as can be seen."""
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        text = ast.unparse(node)
        if NARROWING.search(called) or (called.endswith("execute") and NARROWING.search(text)):
            wrong.append(text)
        if called.endswith("add_column") and "nullable=True" not in text and "server_default" not in text:
            wrong.append(text)
        if called.endswith("create_index") and "unique=True" in text:
            table = ast.unparse(node.args[1])
            if f"create_table({table}" not in ast.unparse(tree).replace("\n", "").replace(" ", ""):
                wrong.append(text)
    return wrong


@pytest.mark.parametrize("step", migrations.steps(), ids=lambda step: step.revision)
def test_a_step_only_adds_or_says_that_it_takes_away(step: migrations.Step) -> None:
    """A server of the version before goes on while a new one has brought the schema forward."""
    if step.contract or int(step.revision) <= BEFORE_SEVERAL_SERVERS:
        return
    [path] = (migrations.FOLDER / "versions").glob(f"{step.revision}_*.py")
    assert expands(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("op.create_table('a', sa.Column('b', sa.Integer(), nullable=False))", 0),
        ("op.add_column('a', sa.Column('b', sa.Integer(), nullable=True))", 0),
        ("op.add_column('a', sa.Column('b', sa.Integer(), nullable=False, server_default='0'))", 0),
        ("op.create_table('a', sa.Column('b', sa.Integer()))\nop.create_index('ix_a', 'a', ['b'], unique=True)", 0),
        ("op.create_index('ix_a', 'a', ['b'], unique=False)", 0),
        ("op.create_index('ix_a', 'a', ['b'], unique=True)", 1),
        ("op.add_column('a', sa.Column('b', sa.Integer(), nullable=False))", 1),
        ("op.drop_column('a', 'b')", 1),
        ("op.alter_column('a', 'b', nullable=False)", 1),
        ("op.rename_table('a', 'b')", 1),
        ("op.create_unique_constraint('uq', 'a', ['b'])", 1),
        ("op.execute('ALTER TABLE a DROP b')", 1),
        ("op.execute('UPDATE a SET b = 1')", 0),
    ],
)
def test_what_takes_away_is_seen(code: str, wrong: int) -> None:
    assert len(expands(ast.parse(code))) == wrong


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The steps of a later version: one that adds, one that takes away, one that adds."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrations.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = migrations.head()
    for number, (work, contract) in enumerate(
        [
            ("op.create_table('more', sa.Column('a', sa.Integer()))", False),
            ("op.drop_table('more')", True),
            ("op.create_table('most', sa.Column('a', sa.Integer()))", False),
        ]
    ):
        name = f"99{number:02}"
        (folder / "versions" / f"{name}_later.py").write_text(
            f'"""Later."""\nimport sqlalchemy as sa\nfrom alembic import op\n\nrevision = "{name}"\n'
            f'down_revision = "{before}"\nCONTRACT = {contract}\n\n\ndef upgrade() -> None:\n    {work}\n'
        )
        before = name
    return folder


def test_what_takes_away_waits_until_no_server_runs(cluster: Cluster, later: Path) -> None:
    name = cluster.create("migrated")
    url = cluster.url(name)
    with closing(postgresql.connect(url)) as server:
        postgresql.serve(server)
        first = schema.migrate(url, folder=later)
        assert (first.steps, first.left) == (("9900",), ("9901", "9902"))
        assert "a server" in first.why
        assert schema.migrate(url, folder=later).steps == ()
        engine = postgresql.engine(url, pooled=False)
        assert migrations.migrate(engine, contract=False, folder=later) == ()  # as a server's start does
    assert schema.migrate(url, folder=later) == schema.Migrated(("9901", "9902"))
    with engine.connect() as connection:
        assert migrations.current(connection) == "9902"
        assert inspect(connection).has_table("most")
        assert not inspect(connection).has_table("more")
    with pytest.raises(DatabaseTooNew, match="9902"):
        schema.migrate(url)
    cluster.drop(name)


def test_a_new_database_takes_every_step_at_once(empty_url: str, later: Path) -> None:
    engine = create_engine(empty_url)
    try:
        assert migrations.migrate(engine, contract=False, folder=later)[-1] == "9902"
    finally:
        engine.dispose()


def test_a_server_goes_on_with_a_schema_that_was_added_to(cluster: Cluster, later: Path) -> None:
    name = cluster.create("migrated")
    database = Database.open(cluster.url(name))
    try:
        schema.migrate(cluster.url(name), folder=later)
        add(database, make_job())
        assert database.read(JOBS.count) == 1
    finally:
        database.close()
        cluster.drop(name)


@pytest.mark.parametrize(
    ("version", "number"), [("0.1.0", 1000), ("0.12.3", 12_003), ("2.0.0.dev1", 2_000_000), ("1", 10**6)]
)
def test_versions_are_numbers_in_their_order(version: str, number: int) -> None:
    assert migrations.as_number(version) == number


def test_who_wrote_a_newer_schema_is_told(database: Database, database_url: str) -> None:
    database.write(
        lambda tx: tx.connection.execute(text("UPDATE counters SET value = 1002003 WHERE name = 'danlu version'"))
    )
    database.write(lambda tx: tx.connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    database.close()
    with pytest.raises(DatabaseTooNew, match=r"written by Danlu 1\.2\.3, newer .* 9999") as caught:
        Database.open(database_url)
    assert "pip install 'danlu>=1.2.3'" in caught.value.next_step


def test_a_newer_schema_is_refused(database: Database, database_url: str) -> None:
    database.close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(DatabaseTooNew, match="9999"):
        Database.open(database_url)
