"""Dependencies: found when a job is submitted, told when somebody asks why it waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import ARRAYS, JOBS
from danlu.domain import arrays
from danlu.domain.arrays import JobArray
from danlu.domain.dependencies import Dependency, parsed
from danlu.domain.ids import is_id
from danlu.domain.jobs import Job
from danlu.domain.validation import suggestion
from danlu.errors import InvalidSpec

SUGGESTED = 200
TOLD = 20


def found(tx: Transaction, project: str, job_id: str, after: tuple[str, ...]) -> tuple[Dependency, ...]:
    """Returns what a new job is to run after, each once.

    Only what is there already is found, so no circle of jobs can wait for each other.

    Raises:
        InvalidSpec: the project has no such job or array, or the job names itself.
    """
    every: dict[tuple[str, str], Dependency] = {}
    for asked in after:
        name, condition = parsed(asked)
        if name in (job_id, arrays.array_id(job_id)):
            raise InvalidSpec(f"after: {name} is the job itself, which would wait for ever", next_step="leave it out")
        one = _named(tx, project, name)
        if one is None:
            near = suggestion(name, queries.job_names(tx, project, SUGGESTED))
            raise InvalidSpec(
                f"after: there is no job or array {name!r} in project {project}",
                next_step=f"{near}   all of them: danlu get jobs --project {project}".strip(),
            )
        every[one.id, condition] = Dependency(id=one.id, name=one.name, condition=condition)
    return tuple(every.values())


def _named(tx: Transaction, project: str, name: str) -> Job | JobArray | None:
    if is_id(name, "j"):
        one: Job | JobArray | None = JOBS.get(tx, name)
    elif is_id(name, arrays.LETTER):
        one = ARRAYS.get(tx, name)
    else:
        one = queries.job_by_name(tx, project, name) or queries.array_by_name(tx, project, name)
    return one if one is not None and one.project == project else None


def of_repetition(tx: Transaction, after: Sequence[Dependency]) -> tuple[Dependency, ...]:
    """Returns what a repeated job is to run after: as before, whoever has the names by now.

    Instead of a job that did not end as it had to, the newest one that repeats it: else no repetition could ever run.
    """
    ended = queries.ended_states(tx, [one.id for one in after])
    return tuple(one if one.met(ended.get(one.id, one.condition)) else _repeated(tx, one) for one in after)


def _repeated(tx: Transaction, one: Dependency) -> Dependency:
    old = JOBS.get(tx, one.id)
    if old is None:  # an array, of which a repeated element counts as its newest job anyway
        return one
    owner = {"project": old.project, "name": old.name, "checkpoint_owner": old.checkpoint_owner}
    newest = JOBS.find(tx, **owner, descending=True, limit=1)
    return one.model_copy(update={"id": newest[0].id}) if newest else one


def told(tx: Transaction, job: Job) -> list[str]:
    """Returns a line for each that has not ended yet: which one, and in which state it is."""
    ended = queries.ended_states(tx, [one.id for one in job.after])
    left = [one for one in job.after if one.id not in ended]
    lines = [f"{one.name} is {_state(tx, one)}, and has to have {_ended(one)}" for one in left[:TOLD]]
    return lines + ([f"and {len(left) - TOLD} more"] if len(left) > TOLD else [])


def _state(tx: Transaction, one: Dependency) -> str:
    if one.id.startswith(arrays.LETTER):
        counts = Counter(element.state for element in queries.array_elements(tx, one.id).values())
        return ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    return str(JOBS.require(tx, one.id).state)


def _ended(one: Dependency) -> str:
    return "ended" if one.condition == "any" else str(one.condition)
