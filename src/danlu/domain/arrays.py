"""A job array: one submission that makes many jobs, its elements, which differ by their index alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pydantic import Field, field_validator, model_validator

from danlu.domain.ids import ID_PATTERN, derived_id
from danlu.domain.records import Flag, Record, Value

LETTER: Final = "r"
"""What the id of an array begins with; the rest of it is the id of the job that was submitted, its first element."""
MAX_ELEMENTS: Final = 10_000
MAX_INDEX: Final = 999_999
MAX_INDEXES_TEXT: Final = 1000
"""Each element's specification has it."""
_PART = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6})(?::([0-9]{1,6}))?)?")


def indexes_of(text: str) -> tuple[int, ...]:
    """Returns the indexes that a text names, ascending, each once: ``0-999``, ``0-9:2``, ``1,3,7`` or these with commas.

    Raises:
        ValueError: it names none, or too many.
    """
    ranges: list[range] = []
    for part in text.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{part!r:.80} is no index: write for example 0-999, 0-9:2 or 1,3,7, each at most {MAX_INDEX}"
            )
        first, last, step = (None if word is None else int(word) for word in match.groups())
        if last is not None and last < (first or 0):
            raise ValueError(f"{part!r} counts down: write {last}-{first}")
        if step == 0:
            raise ValueError(f"{part!r} has steps of 0: they are at least 1")
        ranges.append(range(first or 0, (first or 0 if last is None else last) + 1, step or 1))
    if sum(map(len, ranges)) > MAX_ELEMENTS:  # counted before they are made
        raise ValueError(f"{sum(map(len, ranges)):,} indexes are named; an array has at most {MAX_ELEMENTS:,} elements")
    return tuple(sorted({index for one in ranges for index in one}))


class ArraySpec(Value):
    """What is asked of an array. As one text it is ``INDEXES`` or ``INDEXES%PARALLEL``."""

    indexes: str = Field(max_length=MAX_INDEXES_TEXT, description="0-999, 0-9:2, 1,3,7", examples=["0-999"])
    parallel: int | None = Field(
        default=None, ge=1, le=MAX_ELEMENTS, description="at most so many of them hold resources at once", examples=[50]
    )

    @model_validator(mode="before")
    @classmethod
    def _one_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        indexes, percent, parallel = given.partition("%")
        return {"indexes": indexes, **({"parallel": parallel} if percent else {})}

    @field_validator("indexes")
    @classmethod
    def _readable(cls, text: str) -> str:
        if "%" in text:
            raise ValueError(f"{text!r:.80} says how many run at once: write that as parallel")
        indexes_of(text)
        return text

    @property
    def elements(self) -> tuple[int, ...]:
        """The indexes, ascending."""
        return indexes_of(self.indexes)


class ArrayPlace(Value):
    """Which element of which array a job is."""

    name: str = Field(description="the array's; the element is called NAME-INDEX")
    index: int = Field(ge=0, le=MAX_INDEX)
    size: int = Field(ge=1, le=MAX_ELEMENTS, description="how many elements the array has")
    parallel: int | None = Field(default=None, description="at most so many of them hold resources at once")


class JobArray(Record):
    """A job array: what its elements have in common, and how far it is made."""

    KIND: ClassVar[str] = "array"

    name: str = Field(description="an element is called NAME-INDEX")
    first: str = Field(pattern=ID_PATTERN, description="the job that was submitted, which is its first element")
    size: int = Field(ge=1, le=MAX_ELEMENTS, description="how many elements it has")
    stored: int = Field(default=0, ge=0, le=MAX_ELEMENTS, description="how many of them are there already")
    stopped: Flag = Field(default=False, description="somebody asked for it to stop: elements that follow stop at once")
    held: Flag = Field(default=False, description="elements that follow wait until they are released")


class ArrayState(Value):
    """A job array and what became of it. A repeated element counts as its newest job."""

    array: JobArray
    counts: Mapping[str, int] = Field(description="how many of its elements are in each state")
    held: int = Field(default=0, ge=0, description="how many of those that wait are held")
    unsuccessful: tuple[str, ...] = Field(description="names of those that failed or were cancelled, at most 100")

    @property
    def live(self) -> bool:
        """Whether one of its elements has not ended. Of one that was stopped, those that were never made do not count."""
        ended = sum(self.counts.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
        return ended < (sum(self.counts.values()) if self.array.stopped else self.array.size)


def own_variables(identity: str, place: ArrayPlace) -> dict[str, str]:
    """Returns what an element's tasks find about their place in the array."""
    return {
        "DANLU_ARRAY_ID": identity, "DANLU_ARRAY_INDEX": str(place.index), "DANLU_ARRAY_SIZE": str(place.size),
    }  # fmt: skip


def slurm_variables(identity: str, place: ArrayPlace, asked: ArraySpec) -> dict[str, str]:
    """Returns the same as Slurm's sbatch documents it, for scripts that were written for it."""
    indexes = asked.elements
    return {
        "SLURM_ARRAY_JOB_ID": identity, "SLURM_ARRAY_TASK_ID": str(place.index), "SLURM_ARRAY_TASK_COUNT": str(place.size),
        "SLURM_ARRAY_TASK_MIN": str(indexes[0]), "SLURM_ARRAY_TASK_MAX": str(indexes[-1]),
    }  # fmt: skip


def array_id(first: str) -> str:
    """Returns the id of the array whose first element is this job."""
    return LETTER + first[1:]


def element_id(first: str, position: int, index: int) -> str:
    """Returns the id of an array's element: the same one each time, as hard to guess as that of the first."""
    return first if position == 0 else derived_id(first, str(index))
