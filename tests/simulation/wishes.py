"""What users of the simulation ask of arrays, dependencies and holds, and whether it was kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from danlu.api.bodies import StopRequest
from danlu.database.engine import Database, Transaction
from danlu.database.records import ARRAYS, JOBS
from danlu.domain.arrays import LETTER, array_id
from danlu.domain.jobs import Attempt, Desired, Job, JobState
from danlu.domain.specs import JobSpec
from danlu.errors import Conflict, NeverFits
from danlu.services import arrays, jobs
from danlu.services.context import Call


class Cut(BaseException):
    """The server was killed in the middle of a submission."""


class Unkept(AssertionError):
    """What was asked for is not what was done."""


@dataclass
class CutDatabase:
    """The real one, whose caller is killed after so many commits."""

    real: Database
    left: int

    def write(self, work: Callable[[Transaction], Any]) -> Any:
        if not self.left:
            raise Cut
        self.left -= 1
        return self.real.write(work)

    def read(self, work: Callable[[Transaction], Any]) -> Any:
        return self.real.read(work)


@dataclass
class Wishes:
    """Of one world."""

    call: Call
    random: Random
    unfinished: dict[str, JobSpec] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)

    @property
    def database(self) -> Database:
        return self.call.platform.database

    def fields(self, known: list[str]) -> dict[str, Any]:
        """Returns what a job asks for, beside its command."""
        r = self.random
        given: dict[str, Any] = {"hold": r.random() < 0.1}
        if known and r.random() < 0.25:
            names = [self._name(r.choice(known)) for _ in range(r.choice([1, 1, 2]))]
            given["after"] = [name + r.choice(["", ":any", ":failed"]) for name in names]
        if r.random() < 0.15:
            given["array"] = r.choice(["0-2", "1-9:4%1", "0-4%2", "3,7%5"])
        return given

    def _name(self, job_id: str) -> str:
        job = self._job(job_id)
        return job.array_id if job.array_id is not None and self.random.random() < 0.5 else job_id

    def _job(self, job_id: str) -> Job:
        return self.database.read(lambda tx: JOBS.require(tx, job_id))

    def _elements(self, array: str) -> list[Job]:
        return self.database.read(lambda tx: JOBS.find(tx, array_id=array, limit=100))

    def submit(self, job_id: str, spec: JobSpec) -> list[str]:
        """Submits a job, and where it is an array is perhaps killed in the middle; returns the ids of what there is then."""
        call = self.call
        if spec.array is not None and self.random.random() < 0.3:
            cut: Any = CutDatabase(self.database, self.random.choice([0, 1, 2]))
            call = dataclasses.replace(call, platform=dataclasses.replace(call.platform, database=cut))
        try:
            jobs.submit(call, job_id, spec)
        except Cut:
            self.unfinished[job_id] = spec
        return self.there(job_id)

    def there(self, job_id: str) -> list[str]:
        """Returns the ids of a job, or of an array's elements, that are stored."""
        found = self._elements(array_id(job_id))
        one = self.database.read(lambda tx: JOBS.get(tx, job_id))
        return [job.id for job in found] or ([one.id] if one is not None else [])

    def act(self, known: list[str]) -> list[str]:
        """Holds or releases something, or stops an array; returns the ids of what is to stop."""
        job = self._job(self.random.choice(known))
        with contextlib.suppress(Conflict):
            if job.array_id is None or self.random.random() < 0.5:
                self.random.choice([jobs.hold, jobs.release])(self.call, job.id)
            elif self.random.random() < 0.5:
                self.random.choice([arrays.hold, arrays.release])(self.call, job.array_id)
            else:
                arrays.stop(self.call, job.array_id, StopRequest())
                return [one.id for one in self._elements(job.array_id) if one.desired is Desired.STOP]
        return []

    def complete(self) -> list[str]:
        """Submits again what was cut off, as its client does; returns the ids of what is there then."""
        ids: list[str] = []
        for job_id, spec in list(self.unfinished.items()):
            with contextlib.suppress(NeverFits):  # a machine is away, and nothing was stored before
                jobs.submit(self.call, job_id, spec)
            ids += self.there(job_id)
        self.unfinished.clear()
        return ids

    def release_all(self) -> None:
        """Lets go of everything that is held."""
        for job in self.database.read(lambda tx: JOBS.find(tx, held=True, limit=10_000)):
            jobs.release(self.call, job.id)

    def check(self, held: list[Attempt]) -> None:
        """Raises Unkept if more of an array runs than may, or something runs before what it is to run after."""
        of = {
            job.id: job
            for job in self.database.read(lambda tx: JOBS.find(tx, id=[a.job_id for a in held], limit=10_000))
        }
        running = Counter(job.array_id for job in of.values() if job.array_id is not None)
        for job in of.values():
            most = None if job.array is None else job.array.parallel
            if job.array_id is not None and most is not None and running[job.array_id] > most:
                raise Unkept(f"{running[job.array_id]} elements of {job.array_id} hold something, and {most} may")
            for one in job.after if job.id not in self.checked else ():
                if one.id.startswith(LETTER):
                    continue  # an element may have been repeated since
                state = self._job(one.id).state
                if one.condition != "any" and state != str(one.condition):
                    raise Unkept(f"{job.id} has begun, and {one.id}, after whose {one.condition} it was to, is {state}")
                if state not in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
                    raise Unkept(f"{job.id} has begun before {one.id} has ended")
            self.checked.add(job.id)

    def check_whole(self) -> None:
        """Raises Unkept unless every array is whole."""
        for array in self.database.read(lambda tx: ARRAYS.find(tx, limit=1000)):
            found = self._elements(array.id)
            indexes = {job.array.index for job in found if job.array is not None}
            if len(indexes) != array.size or array.stored != array.size:
                raise Unkept(
                    f"array {array.id} of {array.size} has elements {sorted(indexes)}, and says {array.stored}"
                )
