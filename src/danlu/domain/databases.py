"""What ``danlu db`` tells of a platform's database, and of what was done to it."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from danlu.domain.records import Said, Value

SECRET_PARAMETERS: Final = frozenset(
    ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
)
"""Of PostgreSQL's addresses: what may not be seen."""


class PendingStep(Value):
    """A step of the schema that the database has not taken yet."""

    revision: str
    summary: Said
    contract: bool = Field(description="it takes away what older versions need: it waits until no server runs")


class DatabaseStatus(Value):
    """Where a platform's database is, and which schema it has."""

    kind: str = Field(description="sqlite or postgresql")
    database: Said = Field(description="the file, or the address without its password")
    schema_revision: str | None = Field(description="the schema that it has; null: none yet")
    newest: str = Field(description="the newest schema that this version of Danlu knows")
    version: str = Field(description="this version of Danlu")
    pending: tuple[PendingStep, ...] = ()
    servers: int = Field(ge=0, description="how many servers use it now")
    size_bytes: int = Field(ge=0)
    moved_to: Said | None = Field(default=None, description="where the file's database was moved to")


class DatabaseChange(Value):
    """What was done to a database."""

    what: str = Field(description="migrated, moved, undone, copied or restored")
    database: Said = Field(description="the file or the address that it concerns")
    steps: tuple[str, ...] = Field(default=(), description="the steps of the schema that were taken")
    tables: int = Field(default=0, ge=0, description="how many tables were copied")
    rows: int = Field(default=0, ge=0, description="how many rows of them were copied and compared")
    last_event: int = Field(default=0, ge=0, description="the number of the last event: cursors go on from it")
    message: Said = ""
