"""What every stored noun has in common: a frozen record with an id, a project, a version; and lives that move by a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from danlu.errors import IllegalMove


def storable(text: str) -> bool:
    """Says whether a text can be stored and sent: it has no NUL, which PostgreSQL refuses, and no half characters."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


def _checked(text: str) -> str:
    if not storable(text):
        raise ValueError("it has a NUL or half a character (a lone surrogate)")
    return text


def _printable(text: object) -> object:
    return text.replace("\0", "\ufffd").encode(errors="replace").decode() if isinstance(text, str) else text


Ns = Annotated[int, Field(ge=0, lt=2**63, description="ns UTC")]
Flag = Annotated[bool, Strict()]
"""Of a body: true or false, and not a number that may be taken for one."""
Text = Annotated[str, AfterValidator(_checked)]
"""What a user gives."""
Said = Annotated[str, BeforeValidator(_printable)]
"""What a program printed or a file is called: it is told as far as it can be."""


class Value(BaseModel):
    """A frozen value; unknown fields are refused."""

    # a command uses a few of all models: each is built when it is used first
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", defer_build=True)


def build_models(base: type[BaseModel] = Value) -> None:
    """Builds all models that there are by now: for a server, which will use each of them."""
    for model in base.__subclasses__():
        model.model_config["defer_build"] = False  # nor is what is made of them later deferred
        model.model_rebuild()
        build_models(model)


class Record(Value):
    """A stored noun: who owns it, when it was made and last changed, which version it is."""

    KIND: ClassVar[str]

    id: str = Field(description="the id: a letter and 26 characters, sorted by time")
    project: str = Field(description="the project that owns it")
    version: int = Field(default=1, ge=1, description="counts its changes; a change names the version that it saw")
    created_at: int = Field(ge=0, description="ns UTC")
    updated_at: int = Field(ge=0, description="ns UTC; never earlier than before")

    def evolved(self, *, now: int, **changes: Any) -> Self:
        """Returns the next version of this record with ``changes``; time never runs backwards in it."""
        return self.model_validate(
            {**self._fields(), **changes, "version": self.version + 1, "updated_at": max(now, self.updated_at)}
        )

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}


class Living(Record):
    """A record with a life: a state, moved only by ``moved`` and only along its table.

    A subclass declares ``MOVES`` (state -> states it may become), and fields ``state`` and ``reason`` of its own enums.
    """

    MOVES: ClassVar[Mapping[Any, frozenset[Any]]]

    state: StrEnum
    reason: StrEnum | None = None
    message: Said = Field(default="", max_length=4096, description="the reason in words, with its numbers")

    def moved(self, new: StrEnum, *, now: int, reason: StrEnum | None, message: str = "", **changes: Any) -> Self:
        """Returns this record in state ``new``.

        Raises:
            IllegalMove: the table has no move from the present state to ``new``.
        """
        if new not in self.MOVES[self.state]:
            allowed = ", ".join(sorted(self.MOVES[self.state])) or "nothing: it has ended"
            raise IllegalMove(
                f"{self.KIND} {self.id} cannot become {new} ({reason}): it is {self.state} ({self.reason}), "
                f"which may become {allowed}"
            )
        return self.evolved(now=now, state=new, reason=reason, message=message[:4096], **changes)

    @property
    def live(self) -> bool:
        """Whether it can still change its state."""
        return bool(self.MOVES[self.state])


def terminal(moves: Mapping[Any, frozenset[Any]]) -> frozenset[Any]:
    """Returns the states that nothing follows."""
    return frozenset(state for state, following in moves.items() if not following)
