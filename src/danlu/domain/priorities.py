"""Priorities: a number, or one of the names that stand for some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from danlu.domain.validation import suggestion

CLASSES: Final[Mapping[str, int]] = {"low": -100, "normal": 0, "high": 100}
"""The names of priorities, and the number that each of them is."""
NAMES: Final = {number: name for name, number in CLASSES.items()}


def _number(value: Any) -> Any:
    if not isinstance(value, str) or value.strip().lstrip("+-").isdigit():
        return value
    if value.strip().lower() in CLASSES:
        return CLASSES[value.strip().lower()]
    near = suggestion(value, CLASSES) or f"write a whole number, or {', '.join(CLASSES)}"
    raise ValueError(f"{value!r:.80} is not a priority: {near}")


Priority = Annotated[int, BeforeValidator(_number, json_schema_input_type=int | str)]


def priority_text(priority: int) -> str:
    """Returns a priority as people say it: its name where it has one, else its number."""
    return NAMES.get(priority, str(priority))
