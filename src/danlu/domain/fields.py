"""What a model's fields are, in words: type, default, bounds, an example. For the reference, ``explain`` and ``init``."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from danlu.domain.resources import Cores, MemoryBytes, Seconds, format_bytes
from danlu.domain.validation import PATTERNS


class Amount(NamedTuple):
    """A kind of quantity: how it is called, between what it lies, how it and a limit of a field's own are written."""

    word: str
    least: str
    most: str
    example: str | int
    written: Callable[[int], str]


def _time(seconds: int) -> str:
    size, unit = next(
        ((size, unit) for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")) if not seconds % size), (1, "s")
    )
    return f"{seconds // size}{unit}"


AMOUNTS: Final = (
    (Cores, Amount("cores", "0.001", "1,000,000 cores", 2, "{:,} cores".format)),
    (MemoryBytes, Amount("memory", "1 byte", "1 EiB", "4GiB", format_bytes)),
    (Seconds, Amount("time", "1ms", "3650d", "30s", _time)),
)
SIMPLE: Final[Mapping[Any, str]] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", bytes: "bytes", Any: "anything",
}  # fmt: skip
EXAMPLES: Final[Mapping[Any, Any]] = {int: 1, float: 0.5, bool: True}
MOST_CHOICES: Final = 8


class Described(NamedTuple):
    """One field.

    Attributes:
        name: as it is written.
        kind: its type in words; a model is called by its name.
        default: in words; "required" without one, "" for none or nothing.
        bounds: what the value must keep to, in words.
        description: what it means.
        example: a value that may be written; None where none is known.
        model: the model that the value, or each value of a dict or a list, is.
        keyed: the value is a dict: names of the user's own lead to ``model``.
    """

    name: str
    kind: str
    default: str
    bounds: tuple[str, ...]
    description: str
    example: Any
    model: type[BaseModel] | None
    keyed: bool

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default == "required"


def described(model: type[BaseModel]) -> Iterator[Described]:
    """Yields a model's fields in their order."""
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        hint = hints[name]
        yield Described(
            name=name,
            kind=type_words(hint),
            default=default_words(field),
            bounds=tuple(dict.fromkeys(_bounds(hint, field))),
            description=field.description or "",
            example=_example(hint, field),
            model=model_within(hint),
            keyed=_is_keyed(hint),
        )


def nested(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields (path, model) of what lies within a model's fields, each below the one that leads to it.

    A dict of models is one step, whatever its keys are: ``roles.NAME``.
    """
    for field in described(model):
        if field.model is not None:
            inner = f"{path}{field.name}" + (".NAME" if field.keyed else "")
            yield inner, field.model
            if field.model is not model:
                yield from nested(field.model, f"{inner}.")


def first_line(thing: Any) -> str:
    """Returns the first paragraph of a docstring as one line."""
    return (inspect.getdoc(thing) or "").strip().split("\n\n")[0].replace("\n", " ").replace("``", "`")


def type_words(kind: Any) -> str:
    """Returns a type in words."""
    for amount, words in AMOUNTS:
        if kind == amount:
            return words.word
    if kind in SIMPLE:
        return SIMPLE[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_words(inner[0])
    if origin is typing.Literal:
        return _listed([str(value) for value in inner])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(part) for part in inner if part is not type(None))
    if origin in (tuple, list, frozenset):
        return f"list of {type_words(inner[0])}"
    if origin is dict:
        return f"{type_words(inner[0])} → {type_words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _listed([str(member.value) for member in kind]) if len(kind) <= MOST_CHOICES else kind.__name__
    return str(kind.__name__)


def _listed(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def default_words(field: FieldInfo) -> str:
    """Returns a field's default in words: "required" where there is none, "" where it is nothing."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, BaseModel):
        return ", ".join(f"`{name}: {inner}`" for name, inner in value.model_dump(exclude_none=True).items())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 2**20:
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, Enum) else value)


def model_within(kind: Any) -> type[BaseModel] | None:
    """Returns the model that a type is, or that is within it: in a dict's values, a list, an alternative."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = (model_within(part) for part in typing.get_args(kind) if part is not kind)
    return next((model for model in found if model is not None), None)


def _is_keyed(kind: Any) -> bool:
    if typing.get_origin(kind) is dict:
        return model_within(kind) is not None
    return any(_is_keyed(part) for part in typing.get_args(kind))


def _unit(kind: Any) -> str:
    """Returns what the length of a type's value counts."""
    if kind is str:
        return "characters"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Annotated, typing.Union, types.UnionType):
        return _unit(inner[0])
    return "entries"


def _amount(kind: Any) -> Amount | None:
    """Returns what quantity a type is, or is where it is not left out."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    alone = parts[0] if typing.get_origin(kind) in (typing.Union, types.UnionType) and len(parts) == 1 else kind
    return next((words for amount, words in AMOUNTS if alone == amount), None)


def _bounds(kind: Any, field: FieldInfo) -> Iterator[str]:
    """Yields what a field's value must keep to, in words."""
    if (words := _amount(kind)) is not None:
        own = next((mark.le for mark in field.metadata if getattr(mark, "le", None) is not None), None)
        yield f"{words.least} to {words.most if own is None else words.written(own)}"
        return
    yield from _asked_by(kind)
    yield from _limits([field], _unit(kind))


def _asked_by(kind: Any) -> Iterator[str]:
    """Yields what a type itself asks for, in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from _asked_by(inner[0])
        yield from _limits(inner[1:], _unit(inner[0]))
    elif origin in (typing.Union, types.UnionType):
        for part in inner:
            yield from _asked_by(part)


def _limits(marks: Iterable[Any], unit: str) -> Iterator[str]:
    """Yields constraints in words. Pydantic's fields hold them in ``metadata``, others are marks themselves."""
    limits = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
    lengths = {"min_length": f"at least {{}} {unit}", "max_length": f"at most {{}} {unit}"}
    for mark in marks:
        for name, words in (*limits.items(), *lengths.items()):
            if (bound := getattr(mark, name, None)) is not None:
                yield words.format(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}")
        if pattern := getattr(mark, "pattern", None):
            yield PATTERNS.get(str(pattern), f"as the pattern {pattern}")
        yield from _limits(getattr(mark, "metadata", ()), unit)


def _example(kind: Any, field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    for amount, words in AMOUNTS:
        if kind == amount:
            return words.example
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str(next(iter(kind)).value)
    if isinstance(default, str | int) and default not in (0, "", False):
        return default
    if kind in EXAMPLES:
        return EXAMPLES[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _example(inner[0], field)
    if origin in (typing.Union, types.UnionType):
        return next((found for part in inner if (found := _example(part, field)) is not None), None)
    return None
