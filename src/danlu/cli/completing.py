"""What a shell is answered when it completes a line of ``danlu``. Standard library only: a key press waits for it.

A shell asks ``danlu __complete SHELL WORD...`` with the words after ``danlu`` up to the one at the cursor; bash, which cuts
words at ``=`` and ``:`` too, gives the line up to the cursor. The answer's first line is how to complete: ``words`` (in the
lines that follow: a word, a tab, what it means), ``beginnings`` of words, ``files``, ``folders`` or ``programs``. What
commands and flags there are takes the parser to find out; it is written down once and read afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import danlu
from danlu.cli.commands import COMMANDS, NESTED
from danlu.client.connection import cache_folder
from danlu.client.names import ENDED, names
from danlu.errors import DanluError

ASK: Final = "__complete"
FILE: Final = "completion.json"
GLOBAL: Final = ("--url", "--profile", "--project")
LIVE_ONLY: Final = frozenset({"stop", "hold", "release", "attach", "exec", "cp"})
ENDED_ONLY: Final = frozenset({"retry"})
OF_FLAGS: Final = {
    "--env": "envs", "--file": "files", "--code": "folders", "--to": "folders", "--state": "states",
    "--framework": "frameworks", "--node": "nodes", "--secret": "secrets", "--secret-file": "secrets",
    "--profile": "profiles", "--after": "jobs",
}  # fmt: skip
"""What the values of flags are whose type does not tell it."""
OF_WORDS: Final = {"COMMAND": "programs", "FILE": "files", "METHOD": "methods", "NAME": "names", "LOCAL": "files",
                   "PROFILE": "profiles"}  # fmt: skip
"""What the words in a command's usage stand for, beside jobs."""
METHODS: Final = ("GET", "POST", "PUT", "DELETE")


class Answer(NamedTuple):
    """How to complete, and the words with what they mean."""

    mode: str
    words: Sequence[tuple[str, str]] = ()


def answer(arguments: Sequence[str]) -> int:
    """Prints the answer for a shell."""
    shell, words = arguments[0] if arguments else "", list(arguments[1:]) or [""]
    cut = 0
    if shell == "bash":
        words = _split(words[0])
        cut = 1 + max(words[-1].rfind(sign) for sign in "=:")  # what stands before it, bash leaves as it is
    found = complete(words, table())
    lines = [found.mode, *(f"{word[cut:]}\t{_line(said)}".rstrip("\t") for word, said in found.words)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _line(said: str) -> str:
    return " ".join(said.split())[:80]


def _split(line: str) -> list[str]:
    """Returns the words after the command's own name; the last is "" where the line ends with a space."""
    import shlex

    words = [line]
    for closing in ("", "'", '"'):  # a quotation may be open
        with contextlib.suppress(ValueError):
            words = shlex.split(line + closing)
            break
    return words[1:] + ([""] if line[-1:].isspace() or len(words) < 2 else [])


def complete(words: list[str], commands: dict[str, Any]) -> Answer:
    """Returns how the last of the words after ``danlu`` is completed."""
    current = words[-1]
    given, rest = _command(words[:-1])
    if given in NESTED:
        subs = {name.split()[1]: of["summary"] for name, of in commands.items() if name.startswith(f"{given} ")}
        if not rest:
            return _matching(subs.items(), current)
        given, rest = f"{given} {rest[0]}", rest[1:]
    if given == "help":
        return _matching([(command.name, command.summary) for command in COMMANDS], current)
    if not given:
        flags = [
            ("--url", "the platform's address"), ("--profile", "a platform that you logged in to"),
            ("--project", "the project"), ("--help", ""), ("--version", ""),
        ]  # fmt: skip
        if rest and rest[-1] in GLOBAL:
            return Answer("words")
        words_ = [(command.name, command.summary) for command in COMMANDS]
        return _matching(flags if current.startswith("-") else words_, current)
    known = commands.get(given)
    return Answer("words") if known is None else _inside(given, known, rest, current)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """Returns the command's name, "" where none is typed yet, and the words around it."""
    before: list[str] = []
    for at, word in enumerate(words):
        if not word.startswith("-") and not (before and before[-1] in GLOBAL):
            return word, [*before, *words[at + 1 :]] if word not in NESTED else words[at + 1 :]
        before.append(word)
    return "", before


def _inside(name: str, known: dict[str, Any], rest: list[str], current: str) -> Answer:
    flags = {flag: of for of in known["flags"] for flag in of["names"]}
    place: list[str] = []  # the words that are no flags, and no values of flags
    waiting: dict[str, Any] | None = None
    for at, word in enumerate(rest):
        if word == "--":
            return Answer("programs" if at == len(rest) - 1 else "files")
        if waiting is not None:
            waiting = None
        elif word.startswith("-") and len(word) > 1:
            of = flags.get(word)
            waiting = of if of is not None and of["value"] else None
        else:
            place.append(word)
    if waiting is not None:
        return _values(waiting["value"], name, place, current, rest)
    flag, equals, value = current.partition("=")
    if equals and flag in flags:
        found = _values(flags[flag]["value"], name, place, value, rest)
        return Answer(found.mode, [(f"{flag}={word}", said) for word, said in found.words])
    if current.startswith("-"):
        return _matching(_flags(known, rest), current)
    kind = _kind_of(known["words"], place)
    if not kind:
        return _matching(_flags(known, rest), current)
    return _values(kind, name, place, current, rest)


def _flags(known: dict[str, Any], rest: list[str]) -> Iterator[tuple[str, str]]:
    for of in known["flags"]:
        if of["many"] or not set(of["names"]) & set(rest):
            yield of["names"][0], of["help"]
    yield "--help", "what the command does, and its flags"


def _kind_of(words: list[str], place: list[str]) -> str:
    """Returns what the next word may be, by the command's usage: a kind, or choices with a bar between them."""
    if not words:
        return ""
    if len(place) < len(words):
        return words[len(place)].removesuffix("...")
    return words[-1].removesuffix("...") if words[-1].endswith("...") else ""


def _values(kind: str, command: str, place: list[str], current: str, rest: list[str]) -> Answer:
    url, profile, project = (_given(rest, flag) for flag in GLOBAL)

    def named(what: str) -> Answer:
        found = names(what, url=url, profile=profile, project=project)
        if what == "jobs":
            found = [(name, state) for name, state in found if _wanted(command, state)]
        head = current[: current.index("/") + 1] if "/" in current else ""
        return _matching([(head + name, said) for name, said in found], current)

    if place and kind == "LOCAL" and ":" not in place[0]:
        kind = "JOB:PATH"  # the other way round
    kind = OF_WORDS.get(kind, kind)
    if kind == "names":
        kind = {"secret": "secrets", "quota": "quotas"}.get(command.partition(" ")[0], kind)
    if command == "quota set" and kind == "quotas" and place:
        return Answer("words")
    if command == "quota set" and kind == "quotas":  # a project that has none may get one
        return Answer("words", [*dict([*named("projects").words, *named("quotas").words]).items()])
    if kind == "names":  # of the kind that is named before; else environments
        kind = next(
            (what for what in ("jobs", "nodes", "envs") if place and place[0].rstrip("s") == what.rstrip("s")), ""
        )
        kind = kind or ("envs" if command.startswith("env ") and not place else "")
    if kind in ("files", "folders", "programs"):
        return Answer(kind)
    if kind == "JOB:PATH":
        if current.startswith((".", "/", "~")):
            return Answer("files")
        return Answer("beginnings", [(f"{name}:", state) for name, state in named("jobs").words])
    if "JOB" in kind or kind == "jobs":
        return named("jobs")
    if kind in ("envs", "nodes", "secrets", "quotas"):
        return named(kind)
    if kind == "profiles":
        return _matching(_profiles(), current)
    if kind == "states":
        from danlu.domain.jobs import JobState

        return _matching([(str(state), "") for state in JobState], current)
    if kind == "frameworks":
        from danlu.domain.frameworks import FRAMEWORKS

        return _matching([(name, framework.description) for name, framework in FRAMEWORKS.items()], current)
    if kind == "methods":
        return _matching([(method, "") for method in METHODS], current)
    if "CODE" in kind:
        from danlu.cli.explain import topics

        return _matching(topics(current), current)
    return _matching([(choice, "") for choice in kind.split("|") if "|" in kind], current)


def _wanted(command: str, state: str) -> bool:
    if command in LIVE_ONLY:
        return state not in ENDED
    return state in ENDED if command in ENDED_ONLY else True


def _given(words: list[str], flag: str) -> str | None:
    for at, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and at + 1 < len(words):
            return words[at + 1]
    return None


def _profiles() -> list[tuple[str, str]]:
    """Returns the platforms that the user logged in to; none where they cannot be read."""
    from danlu.client import profiles

    try:
        known = profiles.read(profiles.file_of()).by_name
    except DanluError:
        return []
    return [(profiles.LOCAL, "the platform of this machine"), *((name, one.url) for name, one in known.items())]


def _matching(found: Any, current: str) -> Answer:
    return Answer("words", [(word, said) for word, said in found if word.startswith(current)])


# --- what commands and flags there are


def table() -> dict[str, Any]:
    """Returns every command with its flags and words; from the file that keeps it, unless the code has changed since."""
    here = Path(__file__).parent
    made_for = [danlu.__version__, str(here), max(file.stat().st_mtime_ns for file in here.glob("*.py"))]
    kept = cache_folder() / FILE
    try:
        found = json.loads(kept.read_bytes())
        if found["made_for"] == made_for:
            return dict(found["commands"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it is not there yet, or of another version
    commands = read_commands()
    unfinished = kept.with_name(f"{FILE}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"made_for": made_for, "commands": commands}))
        unfinished.replace(kept)
    except OSError:
        return commands  # the next time takes as long
    return commands


def read_commands() -> dict[str, Any]:
    """Returns the same from the parser."""
    from danlu.cli.commands import build

    app = build()
    commands: dict[str, Any] = {}
    for command in COMMANDS:
        if command.name not in NESTED:
            commands[command.name] = _described(app[command.name], command.usage, command.summary)
            continue
        nested = app[command.name]
        for name in nested:
            if not name.startswith("-"):
                sub = nested[name]
                usage = str(sub.usage or "").partition(f"danlu {command.name} {name}")[2]
                commands[f"{command.name} {name}"] = _described(sub, usage, _first_line(sub))
    return commands


def _first_line(app: Any) -> str:
    return str(app.help or "").strip().partition("\n")[0]


def _described(app: Any, usage: str, summary: str) -> dict[str, Any]:
    flags = []
    for argument in app.assemble_argument_collection(parse_docstring=False):
        names_ = [name for name in argument.names if name.startswith("-")]
        if names_ and argument.show and argument.field_info.kind.name == "KEYWORD_ONLY":
            flags.append(
                {
                    "names": names_,
                    "help": argument.parameter.help or "",
                    "value": "" if argument.is_flag() else _value(names_[0], argument.hint),
                    "many": "tuple" in str(argument.hint),
                }
            )
    return {"summary": summary, "words": list(_words(usage)), "flags": flags}


def _words(usage: str) -> Iterator[str]:
    """Yields the words of a usage that are neither flags nor the values of flags: ``-f FILE``."""
    before = ""
    for word in usage.partition(" | ")[0].replace("[FLAGS]", "").split():
        if word != "--" and not word.lstrip("[").startswith("-") and not (before.startswith("-") and before != "--"):
            yield word.strip("[]")
        before = word


def _value(flag: str, hint: Any) -> str:
    from typing import get_args, get_origin

    if flag in OF_FLAGS:
        return OF_FLAGS[flag]
    parts = [hint, *get_args(hint)]
    for part in parts:
        if str(get_origin(part)) == "typing.Literal":
            return "|".join(map(str, get_args(part)))
    return "files" if Path in parts else "text"
