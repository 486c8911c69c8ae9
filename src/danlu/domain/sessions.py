"""A session: something done inside a running job, beside what it was started for. It lasts as long as its connection."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints, model_validator

from danlu.domain.records import Flag, Said, Value, storable

OPENED: Final = "SessionOpened"
"""The reason of the event that tells of a session."""
TERM_PATTERN: Final = r"^[A-Za-z0-9][-A-Za-z0-9_.+]{0,63}$"
MAX_COMMAND_BYTES: Final = 128 * 1024
MAX_WORDS: Final = 4096
SHOWN: Final = 100


class Verb(StrEnum):
    """What a session does."""

    EXEC = "exec"
    READ = "read"
    WRITE = "write"


class Terminal(Value):
    """The terminal that a command is to see."""

    rows: int = Field(default=24, ge=0, le=65_535)
    columns: int = Field(default=80, ge=0, le=65_535)
    term: str = Field(default="xterm", pattern=TERM_PATTERN)


class SessionRequest(Value):
    """What to do inside a running task: run a command, or send or receive files by the records of runner/transfer.py."""

    verb: Verb = Verb.EXEC
    command: tuple[str, ...] = Field(default=(), max_length=MAX_WORDS, description="for exec")
    stdin: Flag = Field(default=False, description="input will be sent; without it, there is none")
    terminal: Terminal | None = Field(default=None, description="for exec: run it in a terminal of its own")
    path: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="for read and write: relative to the task's working folder"
    )
    name: Annotated[str, StringConstraints(max_length=255)] = Field(
        default="", description="for write: what is sent is called so where path is a folder"
    )

    @model_validator(mode="after")
    def _whole(self) -> SessionRequest:
        if (self.verb is Verb.EXEC) != bool(self.command and self.command[0]):
            raise ValueError("exec needs a command, and nothing else does")
        if not all(map(storable, (*self.command, self.path, self.name))):
            raise ValueError("it has a NUL or half a character (a lone surrogate)")
        if sum(len(word.encode()) + 1 for word in self.command) > MAX_COMMAND_BYTES:
            raise ValueError(f"a command has at most {MAX_COMMAND_BYTES} bytes")
        if self.terminal is not None and self.verb is not Verb.EXEC:
            raise ValueError("only a command can have a terminal")
        return self

    def shown(self, task: str) -> str:
        """Returns what the job's events tell of it: of a command the first word only, as the others may hold secrets."""
        if self.verb is Verb.EXEC:
            return f"exec in {task}: {self.command[0][:SHOWN]}"
        return f"{'files from' if self.verb is Verb.READ else 'files to'} {task}: {self.path[:SHOWN] or '.'}"


class SessionEnd(Value):
    """How a session ended."""

    exit_code: int | None = Field(
        default=None, ge=0, le=255, description="128 + signal when killed; 126 or 127: it could not be started"
    )
    error: Said = Field(default="", max_length=4096, description="why it could not be started, or was ended")
