"""A PostgreSQL database as a place: its address, how long anything may take there, and who else is at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import psycopg
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from danlu.domain.databases import SECRET_PARAMETERS
from danlu.errors import AlreadyRunning, DatabaseUnavailable, InvalidRequest

OLDEST: Final = 15
CONNECTIONS_KEPT: Final = 4
"""For those that write, and as many for those that read."""
CONNECTIONS_MORE: Final = 8
"""Beside those, while there is much to do."""
CONNECTION_WAIT_S: Final = 15
"""For one of them to be free."""
CONNECT_TIMEOUT_S: Final = 5
STATEMENT_TIMEOUT_S: Final = 60
LOCK_TIMEOUT_S: Final = 20
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 60
UNANSWERED_TIMEOUT_S: Final = 20
"""A connection on which nothing was answered for so long is given up, as after a machine has vanished."""
SERVING: Final = 0x7365727665
"""Held by every server, shared, and by who needs the database alone, exclusively; "serve" as a number."""
NAME: Final = "danlu"


def address(url: str | URL) -> URL:
    """Returns an address as SQLAlchemy takes it, ``postgresql://`` and ``postgres://`` alike.

    Raises:
        InvalidRequest: it is none of PostgreSQL. The text is not repeated: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("postgresql", "postgres") or not parsed.database:
        raise InvalidRequest(
            "the database's address is not one of PostgreSQL",
            next_step="it looks like postgresql://USER@HOST:5432/DATABASE, or postgresql://USER@/DATABASE?host=/FOLDER/OF/SOCKET",
        )
    if "@" in (parsed.host or ""):
        raise InvalidRequest(
            "the database's address has an @ too many: nobody can tell where its password ends",
            next_step="write %40 for an @ in the password, %2F for /, %3A for :, %25 for %",
        )
    return parsed.set(drivername="postgresql+psycopg")


def shown(url: str | URL) -> str:
    """Returns an address as it may be shown: without a password."""
    parsed = address(url)
    safe = {key: value for key, value in parsed.query.items() if key not in SECRET_PARAMETERS}
    shown = URL.create("postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database, safe)
    return shown.render_as_string()


def engine(
    url: str | URL,
    *,
    pooled: bool = True,
    bounded: bool = True,
    pause_ms: int = 1000 * IDLE_IN_TRANSACTION_TIMEOUT_S,
    connections: tuple[int, int] = (CONNECTIONS_KEPT, CONNECTIONS_MORE),
) -> Engine:
    """Returns an engine.

    Args:
        url: the database's address.
        pooled: keep connections.
        bounded: a statement may not take long.
        pause_ms: so long a transaction may do nothing before PostgreSQL ends it.
        connections: how many are kept, and how many more there may be.
    """
    kept, more = connections
    pool: dict[str, Any] = {"poolclass": NullPool} if not pooled else {
        "pool_size": kept, "max_overflow": more, "pool_timeout": CONNECTION_WAIT_S, "pool_pre_ping": True,
    }  # fmt: skip
    made = create_engine(address(url), connect_args=_arguments(address(url)), **pool)
    event.listen(made, "connect", partial(_bound, pause_ms=pause_ms) if bounded else _unbound)
    return made


def connect(url: str | URL) -> psycopg.Connection:
    """Returns a connection of its own, in which every statement is a transaction."""
    parsed = address(url)
    made = psycopg.connect(**engine_arguments(parsed), autocommit=True)
    _bound(made, None)
    return made


def engine_arguments(parsed: URL) -> dict[str, Any]:
    """Returns what psycopg connects by."""
    dialect = parsed.get_dialect()()
    return {**dialect.create_connect_args(parsed)[1], **_arguments(parsed)}


def _arguments(parsed: URL) -> dict[str, Any]:
    """Returns how connections are kept an eye on, where the address does not say it itself."""
    wanted = {
        "connect_timeout": CONNECT_TIMEOUT_S, "application_name": NAME, "keepalives_idle": UNANSWERED_TIMEOUT_S // 2,
        "keepalives_interval": UNANSWERED_TIMEOUT_S // 4, "keepalives_count": 2,
        "tcp_user_timeout": UNANSWERED_TIMEOUT_S * 1000,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name not in parsed.query}


def _bound(
    connection: psycopg.Connection, _record: object, *, pause_ms: int = 1000 * IDLE_IN_TRANSACTION_TIMEOUT_S
) -> None:
    """Limits what a connection does, by statements rather than by options of the start, which a pooler would refuse."""
    _set(
        connection, statement_timeout=1000 * STATEMENT_TIMEOUT_S, lock_timeout=1000 * LOCK_TIMEOUT_S,
        idle_in_transaction_session_timeout=pause_ms,
    )  # fmt: skip


def _unbound(connection: psycopg.Connection, _record: object) -> None:
    _set(connection, statement_timeout=0, lock_timeout=1000 * LOCK_TIMEOUT_S, idle_in_transaction_session_timeout=0)


def _set(connection: psycopg.Connection, **milliseconds: int) -> None:
    if connection.info.server_version < OLDEST * 10_000:
        version = connection.info.server_version // 10_000
        raise DatabaseUnavailable(
            f"the database is PostgreSQL {version}, and Danlu needs {OLDEST} or later", next_step="upgrade it"
        )
    before = connection.autocommit
    connection.autocommit = True
    for name, value in milliseconds.items():
        connection.execute(f"SET {name} = {value}".encode())
    connection.autocommit = before


def serve(connection: psycopg.Connection) -> None:
    """Takes, for as long as the connection lasts, what says that a server is at the database.

    Raises:
        AlreadyRunning: somebody needs the database alone.
    """
    row = connection.execute("SELECT pg_try_advisory_lock_shared(%s)", (SERVING,)).fetchone()
    if row is None or not row[0]:
        raise AlreadyRunning(
            f"the database is moved, restored or changed just now, by {_holders(connection)}",
            next_step="wait until that has ended, then start the server again",
        )


def servers(connection: psycopg.Connection) -> int:
    """Returns how many servers are at the database."""
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND mode = 'ShareLock' "
        "AND classid = %s AND objid = %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    row = connection.execute(query, (SERVING >> 32, SERVING & 0xFFFF_FFFF)).fetchone()
    return 0 if row is None else int(row[0])


@contextlib.contextmanager
def alone(url: str | URL) -> Iterator[None]:
    """Keeps servers, and others who need the database alone, from it while the block runs.

    Raises:
        AlreadyRunning: a server is at it, or another such command.
        DatabaseUnavailable: it does not answer.
    """
    try:
        connection = connect(url)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:  # the latter: a parameter that does not exist
        raise unreachable(url, error) from error
    with contextlib.closing(connection):
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (SERVING,)).fetchone()
        if row is None or not row[0]:
            raise AlreadyRunning(
                f"the database {shown(url)} is in use by {_holders(connection)}",
                next_step="stop all servers of it first: danlu down on each machine; jobs go on meanwhile",
            )
        yield


def unreachable(url: str | URL, error: Exception) -> DatabaseUnavailable:
    """Returns the error that says that a database does not answer."""
    return DatabaseUnavailable(
        f"the database {shown(url)} does not answer: {str(error).strip()}",
        next_step="is it running, its address right, and are you let in? The password comes from DANLU_DATABASE_URL, "
        "PGPASSWORD or ~/.pgpass",
    )


def _holders(connection: psycopg.Connection) -> str:
    """Returns who holds the lock, as far as the database tells."""
    query = (
        "SELECT l.mode, a.client_addr, l.pid FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.classid = %s AND l.objid = %s "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 10"
    )
    rows = connection.execute(query, (SERVING >> 32, SERVING & 0xFFFF_FFFF)).fetchall()
    named = [f"{'a server' if mode == 'ShareLock' else 'a danlu db command'} at {place or 'this machine'} (session {pid})"
             for mode, place, pid in rows]  # fmt: skip
    return ", ".join(named) or "another one"
