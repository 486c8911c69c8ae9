"""What a process is started with: its command and its variables; and the name that a command suggests."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from danlu.domain.records import storable

RESERVED_VARIABLES: Final = ("DANLU_",)
MAX_CHARACTERS: Final = 131_072
MAX_WORDS: Final = 131_072


def _words(command: object) -> object:
    if command is None or isinstance(command, str):
        return command
    if not isinstance(command, list | tuple):
        raise ValueError("it is neither a list of words nor one line")
    if any(not isinstance(word, str) for word in command):
        raise ValueError("one of its words is not a text: write numbers as texts too, for example '3'")
    return tuple(command)


def _some(command: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not command or not (command if isinstance(command, str) else command[0]).strip():
        raise ValueError("it is empty: give the words to run, for example python train.py")
    if len(command) > MAX_WORDS:
        raise ValueError(f"it has more than {MAX_WORDS:,} words")
    if not all(map(storable, (command,) if isinstance(command, str) else command)):
        raise ValueError("it has a NUL or half a character (a lone surrogate)")
    return command


def _usable(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name) or not storable(value):
            raise ValueError(f"{name!r} cannot be a variable: letters, digits and _, and no NUL in its value")
        if name.startswith(RESERVED_VARIABLES):
            raise ValueError(
                f"{name} is set by the platform: names from {' and '.join(RESERVED_VARIABLES)} are its own"
            )
    return variables


_Word = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
Command = Annotated[str | tuple[_Word, ...], BeforeValidator(_words), AfterValidator(_some)]
"""A list of words, or one line for ``/bin/sh``."""
Variables = Annotated[dict[str, Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]], AfterValidator(_usable)]
"""Environment variables of a command, none of them the platform's own."""


def argv_of(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """Returns a command as words; one line runs by ``/bin/sh -c``."""
    return ("/bin/sh", "-c", command) if isinstance(command, str) else command


def name_from_command(command: str | tuple[str, ...]) -> str:
    """Returns a name's stem from a command: ``python train_mnist.py --lr 1`` gives ``train-mnist``."""
    words = command.split() if isinstance(command, str) else list(command)
    stems: list[str] = []
    for position, word in enumerate(words):
        stem = word.rsplit("/", 1)[-1]
        if position and words[position - 1] == "-m":
            return as_name(word.split(".")[-1])
        if stem.endswith((".py", ".sh")):
            return as_name(stem[:-3])
        stems.append(stem)
    return as_name(stems[0] if stems else "job")


def as_name(text: str) -> str:
    """Returns the name that is nearest to a text: lower-case letters, digits and hyphens; ``job`` where nothing is left."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return name or "job"
