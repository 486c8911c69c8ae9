"""The parser's complaints in our words: what is wrong, with which word, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, RepeatArgumentError, UnknownOptionError
from cyclopts.exceptions import UnknownCommandError, UnusedCliTokensError

from danlu.cli.commands import BY_NAME, NESTED
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest

GLOBAL: Final = ("--url", "--profile", "--project", "--help", "--version")
KINDS: Final[dict[Any, str]] = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def complaint(error: CycloptsError, words: list[str]) -> InvalidRequest:
    """Returns what is wrong with a command's words, as an error of ours."""
    name = words[0] if words[0] in BY_NAME else ""
    nested = name in NESTED and len(words) > 1 and not isinstance(error, UnknownCommandError)
    chain = f"{name} {words[1]}" if nested and not words[1].startswith("-") else name
    said, steps = _said(error, chain, words)
    steps.append(f"danlu {chain} --help".replace("  ", " "))
    return InvalidRequest(said, next_step="   ".join(dict.fromkeys(step for step in steps if step)))


def _said(error: CycloptsError, chain: str, words: list[str]) -> tuple[str, list[str]]:
    """Returns (what is wrong, what to do)."""
    if isinstance(error, UnknownOptionError):
        return _unknown_flag(error, chain, words)
    if isinstance(error, UnknownCommandError):
        return _unknown_command(error, chain, words)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing(error, chain)
    if isinstance(error, CoercionError) and error.token is not None and error.target_type is not None:
        name = error.token.keyword or (_word(error.argument) if error.argument is not None else "a word")
        return _wrong_value(name, error.token.value, error.target_type)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        more = ", ".join(map(repr, error.unused_tokens))
        return f"danlu {chain} takes no more words: {more}", [_usage(chain)]
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice", []
    text = str(error).strip().rstrip(".").replace('"', "")
    return text[:1].lower() + text[1:], []


def _word(argument: Any) -> str:
    return str(argument.names[0]).lstrip("-").upper()


def _unknown_flag(error: UnknownOptionError, chain: str, words: list[str]) -> tuple[str, list[str]]:
    flag = str(error.token.keyword or error.token.value).partition("=")[0]
    known = [one for argument in error.argument_collection if argument.show for one in argument.names if one[:1] == "-"]
    said, steps = f"{flag} is not a flag of danlu {chain}".rstrip(), [suggestion(flag, known)]
    if chain == "run" and "--" not in words:
        before = words[1 : next((at for at, word in enumerate(words) if word.startswith(flag)), 1)]
        if before and not before[-1].startswith("-"):  # most likely one of the command's own
            steps = []
        steps.append("a flag of your command? put -- before the command: danlu run [flags] -- python train.py --lr 0.1")
    return said, steps


def _unknown_command(error: UnknownCommandError, chain: str, words: list[str]) -> tuple[str, list[str]]:
    if not chain:  # what stands before any command
        return f"{words[0]} is not a flag of danlu", [suggestion(words[0], GLOBAL), "flags follow the command"]
    word = (error.unused_tokens or ["?"])[0]
    subs = [one for one in error.app or () if not one.startswith("-")]
    return f'there is no command "{chain} {word}"', [suggestion(word, subs), f"there are: {', '.join(sorted(subs))}"]


def _missing(error: MissingArgumentError, chain: str) -> tuple[str, list[str]]:
    argument = error.argument
    assert argument is not None  # noqa: S101 - the caller has looked
    flag = error.keyword or next((token.keyword for token in reversed(argument.tokens) if token.keyword), None)
    if flag:
        return f"{flag} needs a value: {argument.parameter.help or 'a word'}", []
    if stray := next((word for word in error.unused_tokens or () if word.startswith("-") and len(word) > 1), None):
        flag = stray.partition("=")[0]  # most likely the missing one, written wrongly
        return f"{flag} is not a flag of danlu {chain}", [suggestion(flag, argument.names)]
    if argument.field_info.kind.name == "KEYWORD_ONLY":
        return f"{' or '.join(argument.names)} is missing", [_usage(chain)]
    return f"{_word(argument)} is missing: {argument.parameter.help or 'a word'}", [_usage(chain)]


def _usage(chain: str) -> str:
    command = BY_NAME.get(chain)
    return f"danlu {chain} {command.usage}" if command is not None and chain not in NESTED else ""


def _wrong_value(name: str, value: str, kind: Any) -> tuple[str, list[str]]:
    if str(get_origin(kind)) == "typing.Literal":
        choices: Iterable[str] = [str(one) for one in get_args(kind)]
        return f"{name} takes one of {', '.join(choices)}; it is {value!r}", [suggestion(value, choices)]
    wanted = next(
        (KINDS[part] for part in (kind, *get_args(kind)) if part in KINDS), getattr(kind, "__name__", str(kind))
    )
    return f"{name} takes {wanted}; it is {value!r}", []
