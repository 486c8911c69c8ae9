"""``danlu db``: the database of the platform on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.options import Flag, Output
from danlu.cli.output import Format
from danlu.cli.terminal import Messages
from danlu.client import databases
from danlu.domain.databases import DatabaseChange, DatabaseStatus
from danlu.domain.resources import format_bytes
from danlu.errors import InvalidRequest

app = App(name="db", help="The database of the platform on this machine.", help_format="plaintext")
File = Annotated[Path, Parameter(help="the copy, a file")]


@app.command(name="status", usage="Usage: danlu db status [FLAGS]")
def status(*, output: Output = "table") -> int:
    """Show where the database is, which schema it has, and how many servers use it.

    It is the one in DANLU_HOME, or the one that DANLU_DATABASE_URL names.

    Example: danlu db status -o json
    """
    found = databases.status()
    if output in ("json", "yaml"):
        out.record(found, output)
    elif output == "name":
        out.write(found.database)
    else:
        _table(found)
    return 0


def _table(found: DatabaseStatus) -> None:
    revision = f"{found.schema_revision or 'none yet'}; Danlu {found.version} has {found.newest}"
    rows = [
        ("database", f"{found.database} ({found.kind}, {format_bytes(found.size_bytes)})"),
        ("schema", revision),
        *(("pending", f"{step.revision} {step.summary}{' (waits until no server runs)' * step.contract}")
          for step in found.pending if found.schema_revision),
        ("servers", str(found.servers)),
    ]  # fmt: skip
    if found.moved_to:
        rows.append(("moved to", found.moved_to))
    for label, text in rows:
        out.labelled(label, [text])


@app.command(name="migrate", usage="Usage: danlu db migrate [FLAGS]")
def migrate(*, output: Output = "table") -> int:
    """Bring the database to this version's schema.

    With PostgreSQL what is added is added while servers run; what takes away waits until none does.

    Example: danlu db migrate
    """
    return _change("migrate", output)


@app.command(name="move", usage="Usage: danlu db move --to URL [FLAGS]")
def move(
    *,
    to: Annotated[
        str | None, Parameter(help="postgresql://USER@HOST/NAME, without the password; left out: DANLU_DATABASE_URL")
    ] = None,
    undo: Annotated[bool, Parameter(help="go back to the file; what was stored since is not in it"), Flag] = False,
    output: Output = "table",
) -> int:
    """Move the stopped platform's database from its file to an empty PostgreSQL; jobs go on meanwhile.

    Every value is read back and compared. The file stays as it is, and no server starts on it any more. The password comes
    from PGPASSWORD or ~/.pgpass.

    Example: danlu db move --to postgresql://danlu@db.example.com/danlu
    """
    if undo and to is not None:
        raise InvalidRequest("--undo goes back to the file, and --to away from it", next_step="keep one of them")
    return _change("undo" if undo else "move", output, to=to)


@app.command(name="backup", usage="Usage: danlu db backup FILE [FLAGS]")
def backup(file: File, /, *, output: Output = "table") -> int:
    """Copy the database to a file, as it is at one moment; servers may run. Of either kind it becomes a SQLite file.

    Not in it: keys and blobs of DANLU_HOME, which belong to it.

    Example: danlu db backup /mnt/backups/danlu-monday.db
    """
    return _change("backup", output, file=file)


@app.command(name="restore", usage="Usage: danlu db restore FILE [FLAGS]")
def restore(file: File, /, *, output: Output = "table") -> int:
    """Put a copy where no database is: into DANLU_HOME, or into the empty PostgreSQL that DANLU_DATABASE_URL names.

    Example: danlu db restore /mnt/backups/danlu-monday.db
    """
    return _change("restore", output, file=file)


def _change(verb: str, form: Format, *, to: str | None = None, file: Path | None = None) -> int:
    messages = Messages(quiet=form in ("json", "yaml"))

    def progress(label: str, done: int, total: int) -> None:
        messages.bar(label, min(done, total), total, f"{done:,} of {wording.count(total, 'row')}")

    try:
        done = databases.change(verb, progress, to=to, file=file)
    finally:
        messages.clear()
    out.made(done, done.database, form)
    for line in told(done):
        messages.say(line)
    return 0


def told(done: DatabaseChange) -> list[str]:
    """Returns what was done, in words."""
    lines = []
    if done.steps:
        lines.append(f"steps taken: {', '.join(done.steps)}")
    if done.tables:
        rows = wording.count(done.rows, "row")
        lines.append(f"{rows} in {done.tables} tables; events go on after number {done.last_event:,}")
    lines += [done.message] if done.message else []
    if done.what == "moved":
        lines.append("from now on: DANLU_DATABASE_URL with this address and its password, then danlu up")
    return lines
