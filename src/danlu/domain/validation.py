"""Says in a user's words what pydantic found wrong, with the nearest right name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from danlu.domain.dependencies import AFTER_PATTERN
from danlu.domain.environments import PATH_PATTERN, PYTHON_PATTERN
from danlu.domain.git import COMMIT_PATTERN
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.resources import GPU_KIND_PATTERN
from danlu.domain.roles import ROLE_PATTERN
from danlu.domain.secrets import SECRET_PATTERN
from danlu.domain.sessions import TERM_PATTERN
from danlu.domain.trees import ADDRESS_PATTERN
from danlu.errors import InvalidSpec

MAX_PROBLEMS = 20
MAX_MEANT = 200
"""No longer value is looked at for what it was meant to be."""
PATTERNS = {
    NAME_PATTERN: "a name has at most 63 lower-case letters, digits and -, and a letter or digit at both ends",
    PYTHON_PATTERN: "write a Python version with two numbers, for example 3.11",
    ADDRESS_PATTERN: "an address is sha256: and 64 hex digits",
    SECRET_PATTERN: "a secret's name has at most 63 letters, digits and _, and begins with no digit",
    ROLE_PATTERN: "a role's name has at most 31 lower-case letters and digits, a letter first",
    AFTER_PATTERN: "write a job's or an array's name or id, and if need be :succeeded, :failed or :any after it",
    GPU_KIND_PATTERN: "a kind of GPU has lower-case letters, digits, -, _ and ., for example h100",
    PATH_PATTERN: "write an absolute path, for example /usr/bin/python3",
    COMMIT_PATTERN: "a commit is 40 or 64 hex digits",
    TERM_PATTERN: "a terminal's type has letters, digits, -, _, . and +, for example xterm-256color",
}
"""In words, what a field's pattern asks for."""
SAID = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be names with values",
    "model_type": "must be fields with names",
    "model_attributes_type": "must be fields with names",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
}
"""In words, what pydantic says about types and bounds."""
_MEANT = re.compile(r"(?:: )?(did you mean [^?]+\?)")


def nearest(word: str, choices: Iterable[str], *, cutoff: float = 0.55) -> str | None:
    """Returns the choice that ``word`` was probably meant to be, or None; ``cutoff``: from 0, nothing alike, to 1."""
    found = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=cutoff)
    return found[0] if found else None


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Returns ``did you mean X?``, or nothing."""
    found = nearest(word, choices)
    return f"did you mean {found}?" if found else ""


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    parts = iter(path)
    for part in parts:
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        models = [t for t in inner if issubclass(t, BaseModel)]
        if not models:
            return []
        model = models[0]
        if get_origin(field.annotation) is dict:
            next(parts, None)  # its key: a name of the user's choice
    return list(model.model_fields)


def _one(problem: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    extra = problem["type"] == "extra_forbidden"
    own = problem["loc"][-1:] if extra else ()  # the user's own word, whatever it is
    inner = problem["loc"][:-1] if extra else problem["loc"]
    path = (*(part for part in inner if not str(part).startswith(("function-", "tuple[", "str"))), *own)
    field = ".".join(str(part) for part in path)
    if extra:
        return field, f"{field} is not a field", suggestion(str(path[-1]), _fields_at(model, path[:-1]))
    if problem["type"] == "missing":
        return field, f"{field} is missing", ""
    said, hint = _words(problem)
    shown = repr(problem["input"])
    told = problem["type"] != "value_error" and not model.model_config.get("hide_input_in_errors")
    value = f" (it is {shown[:80]})" if told and field else ""
    hint = hint or (_in_small_letters(problem) if told else "")
    return field, f"{field}: {said}{value}" if field else said, hint


def _in_small_letters(problem: Any) -> str:
    pattern, given = problem.get("ctx", {}).get("pattern"), problem["input"]
    if not pattern or not isinstance(given, str) or len(given) > MAX_MEANT:
        return ""
    return f"did you mean {given.lower()}?" if re.fullmatch(pattern, given.lower()) else ""


def _words(problem: Any) -> tuple[str, str]:
    """Returns (what is wrong, what was probably meant)."""
    context = problem.get("ctx", {})
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in SAID:
        said = SAID[problem["type"]].format(**context)
    said = PATTERNS.get(str(context.get("pattern")), said)
    meant = _MEANT.search(said)
    return (said.replace(meant[0], ""), meant[1]) if meant else (said, "")


def invalid_spec(error: ValidationError, model: type[BaseModel]) -> InvalidSpec:
    """Returns the error that names each wrong field, its value and the nearest right name."""
    return invalid_fields(error.errors(include_url=False), model)


def invalid_fields(errors: Iterable[Any], model: type[BaseModel]) -> InvalidSpec:
    """Returns the same from pydantic's list of errors: ``type``, ``loc``, ``msg`` and ``input`` of each."""
    problems = []
    for raw in [*errors][:MAX_PROBLEMS]:
        field, text, hint = _one(raw, model)
        if (field, text, hint) not in problems:
            problems.append((field, text, hint))
    return InvalidSpec(
        "; ".join(text for _, text, _ in problems),
        next_step=" ".join(dict.fromkeys(hint for *_, hint in problems if hint)),
        problems=[{"field": f, "problem": t, "suggestion": h} for f, t, h in problems],
    )
