"""``danlu explain``: what a field, a state, a reason or an error means; no platform is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple

from cyclopts import Parameter
from pydantic import BaseModel

from danlu import errors
from danlu.cli import output as out
from danlu.cli.options import Output, flag_of
from danlu.cli.terminal import paint
from danlu.domain.artifacts import Artifact
from danlu.domain.environments import Environment
from danlu.domain.events import Event
from danlu.domain.fields import Described, described, first_line
from danlu.domain.jobs import Attempt, Task
from danlu.domain.meanings import (
    ADVICE,
    ATTEMPT_STATES,
    ENVIRONMENT_REASONS,
    ENVIRONMENT_STATES,
    JOB_STATES,
    REASONS,
)
from danlu.domain.nodes import Node
from danlu.domain.specs import JobSpec
from danlu.domain.validation import nearest
from danlu.errors import InvalidRequest

NOUNS: Final[dict[str, type[BaseModel]]] = {
    "job": JobSpec, "attempt": Attempt, "task": Task, "environment": Environment, "node": Node, "artifact": Artifact,
    "event": Event,
}  # fmt: skip
ALSO: Final = {"jobs": "job", "env": "environment", "envs": "environment", "nodes": "node", "events": "event"}


class Meaning(NamedTuple):
    """A code in words: what kind of code it is, what it means, what to do now."""

    code: str
    kind: str
    meaning: str
    advice: str


def explain(
    word: Annotated[
        str, Parameter(help="job, job.FIELD, job.FIELD.FIELD, or a reason, a state, an error's name")
    ] = "job",
    /,
    *,
    output: Output = "table",
) -> int:
    """Say what a field of a job, a reason, a state or an error means. Needs no platform.

    Example: danlu explain job.memory; danlu explain OutOfMemory
    """
    head, *path = word.split(".")
    noun = ALSO.get(head.lower(), head.lower())
    if noun in NOUNS:
        model, field, place = _find(noun, path)
        if output in ("json", "yaml"):
            out.structured(_facts(model, field, place), output)
        elif output == "name":
            _names(model, field, place)
        else:
            _tell(model, field, place)
        return 0
    found = [meaning for meaning in _meanings() if meaning.code.lower() == word.lower()]
    if not found:
        raise _unknown(word, path)
    if output in ("json", "yaml"):
        out.structured({"items": [meaning._asdict() for meaning in found]}, output)
        return 0
    for meaning in found:
        if output == "name":
            out.write(meaning.code)
            continue
        out.write(f"{paint(meaning.code, 'bold', sys.stdout)}  {meaning.kind}")
        out.labelled("means", [meaning.meaning.replace("`", "")])
        if meaning.advice:
            out.labelled("try", meaning.advice.replace("`", "").splitlines())
    return 0


def _meanings() -> Iterator[Meaning]:
    """Yields every code that a user meets."""
    for kind, table in (
        ("a reason of jobs and attempts", REASONS),
        ("a reason of environments", ENVIRONMENT_REASONS),
        ("a state of jobs", JOB_STATES),
        ("a state of attempts", ATTEMPT_STATES),
        ("a state of environments", ENVIRONMENT_STATES),
    ):
        for code, meaning in table.items():
            yield Meaning(str(code), kind, meaning, ADVICE.get(code, "") if "reason" in kind else "")
    for name, cls in errors.classes().items():
        yield Meaning(name, f"an error, HTTP status {cls.status}", first_line(cls), cls.step)


def _unknown(word: str, path: list[str]) -> InvalidRequest:
    inside = [noun for noun in NOUNS if word.lower() in NOUNS[noun].model_fields]
    if inside and not path:
        return InvalidRequest(
            f'there is nothing called "{word}"', next_step=f"danlu explain {inside[0]}.{word.lower()}"
        )
    codes = {meaning.code.lower(): meaning.code for meaning in _meanings()}
    meant = nearest(word, [*NOUNS, *codes])
    hint = f"did you mean {codes.get(meant, meant)}?   " if meant else ""
    return InvalidRequest(
        f'there is nothing called "{word}" to explain', next_step=f"{hint}fields of a job: danlu explain job"
    )


def topics(beginning: str) -> list[tuple[str, str]]:
    """Returns what can be explained and begins so, each with what it is."""
    head, dot, _ = beginning.rpartition(".")
    if dot:
        try:
            model, _, place = _find(head.split(".")[0], head.split(".")[1:])
        except (InvalidRequest, KeyError):
            return []
        return [(f"{place}.{one.name}", one.description) for one in described(model)] if model is not None else []
    words = [(noun, first_line(model)) for noun, model in NOUNS.items()]
    return words + [(meaning.code, meaning.meaning) for meaning in _meanings()]


# --- fields


def _find(
    noun: str, path: list[str], nouns: Mapping[str, type[BaseModel]] = NOUNS
) -> tuple[type[BaseModel] | None, Described | None, str]:
    """Returns the model that a path leads to, if any, the field that was named last, if any, and the path as written.

    Where names are the user's own (``roles``), one may stand in the path or be left out: ``roles.gpu``, ``roles.worker.gpu``.
    """
    model: type[BaseModel] | None = nouns[noun]
    field: Described | None = None
    place, keyed = noun, False
    for part in path:
        fields = {one.name: one for one in described(model)} if model is not None else {}
        if part in fields:
            field = fields[part]
            model, keyed, place = field.model, field.keyed, f"{place}.{part}"
            continue
        meant = nearest(part, fields) if part else None
        if keyed and part and meant is None:
            keyed, field, place = False, None, f"{place}.{part}"
            continue
        if model is None:
            raise InvalidRequest(f"{place} has no fields of its own", next_step=f"danlu explain {place}")
        hint = f"did you mean {meant}?   danlu explain {place}.{meant}" if meant else f"danlu explain {place}"
        raise InvalidRequest(f"{place}.{part} is not a field", next_step=hint)
    return model, field, place


def _tell(model: type[BaseModel] | None, field: Described | None, place: str) -> None:
    said = field.description if field is not None else first_line(model)
    first, *more = out.wrapped(f"{place}  {said}".rstrip(), out.room())
    out.write(paint(place, "bold", sys.stdout) + first.removeprefix(place))
    for line in more:
        out.write(line)
    if field is not None:
        out.labelled("type", [field.kind + (", under names of your own" if field.keyed else "")])
        out.labelled("default", [field.default.replace("`", "") or "-"])
        if field.bounds:
            out.labelled("bounds", field.bounds)
        if field.example is not None:
            out.labelled("example", [f"{field.name}: {_flow(field.example)}"])
    if flag := flag_of(place):
        out.labelled("flag", [f"danlu run {flag}"])
    if model is None:
        return
    out.write("")
    rows = [
        [one.name, one.kind, one.default.replace("`", ""), one.description.replace("`", "")] for one in described(model)
    ]
    out.explained(["FIELD", "TYPE", "DEFAULT", "MEANING"], rows)
    deeper = next((one.name for one in described(model) if one.model is not None), next(iter(model.model_fields)))
    out.write("")
    out.write(f"more of one: danlu explain {place}.{deeper}")
    if model is JobSpec:
        out.write("a file to begin with: danlu init")


def _names(model: type[BaseModel] | None, field: Described | None, place: str) -> None:
    for name in model.model_fields if model is not None else ():
        out.write(f"{place}.{name}")
    if model is None and field is not None:
        out.write(place)


def _facts(model: type[BaseModel] | None, field: Described | None, place: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": place}
    if field is not None:
        facts |= _of(field, place)
    if model is not None:
        facts["meaning"] = facts.get("meaning") or first_line(model)
        facts["fields"] = [
            {"path": f"{place}.{one.name}", **_of(one, f"{place}.{one.name}")} for one in described(model)
        ]
    return facts


def _of(field: Described, place: str) -> dict[str, Any]:
    return {
        "type": field.kind,
        "required": field.required,
        "default": None if field.required or not field.default else field.default.replace("`", ""),
        "bounds": list(field.bounds),
        "meaning": field.description,
        "example": field.example,
        "flag": flag_of(place) or None,
    }


def _flow(value: Any) -> str:
    """Returns a value as YAML on one line: a text without quotes where it needs none."""
    import yaml

    if isinstance(value, str):
        return yaml.safe_dump(value, allow_unicode=True, width=10**9).splitlines()[0]
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, dict) else _braces(value)


def _braces(value: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
