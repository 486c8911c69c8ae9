"""What a world's attempts run on: machines that are simulated, or pods of a played cluster (see pods.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from danlu.domain.jobs import Attempt, Job, Reason
from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.domain.resources import Resources
from danlu.executors.base import Phase
from danlu.executors.simulated import Faults, SimulatedExecutor

if TYPE_CHECKING:
    from tests.simulation.world import World

SECOND = 1_000_000_000
GIB = 2**30
NODES = (
    NodeCapacity(name="node-a", cpu_milli=4000, memory_bytes=16 * GIB, gpus=tuple(Gpu(index=i) for i in range(4))),
    NodeCapacity(
        name="node-b", cpu_milli=8000, memory_bytes=8 * GIB, gpus=tuple(Gpu(index=i, kind="h100") for i in range(2))
    ),
)
Act = Callable[[], None]
Share = tuple[str, Resources, tuple[int, ...]]


class Broken(AssertionError):
    """A promise of the system does not hold."""


class Ground(Protocol):
    """What attempts run on, and what of it is promised."""

    own_environment: dict[str, Any]
    """what of an environment only it has"""
    never_ran: Iterable[Reason]
    """with these an attempt may end before it was launched"""
    pauses_s: list[float]
    wrong_s: int
    """so far a server's clock is set wrong"""

    def server(self) -> Any:
        """Returns the executor of a server that has begun."""

    @property
    def acts(self) -> Mapping[str, tuple[float, Act]]:
        """What else can happen, and how often."""

    @property
    def begun(self) -> Iterable[str]:
        """The ids of all attempts that ever began."""

    def node(self) -> None:
        """Takes a machine away, or gives it back."""

    def shake(self) -> None:
        """Turns faults on."""

    def calm(self) -> None:
        """Turns faults off."""

    def goes_on(self) -> None:
        """Does what happens there without anybody's doing, in the seconds that passed."""

    def left(self) -> list[str]:
        """Returns what is left of attempts."""

    def check(self, held: list[Attempt]) -> None:
        """Raises Broken unless each promise holds now."""

    def check_stored(self) -> None:
        """Raises Broken unless what the database has keeps its promises."""

    def shares(self) -> list[Share]:
        """Returns what of which node is in use, as far as that is the platform's choice."""

    def check_attempt(self, job: Job, attempt: Attempt) -> None:
        """Raises Broken unless an attempt is remembered as it ended."""

    def log_is_whole(self, attempt: Attempt, task: str, kept: bytes) -> bool:
        """Whether of a task all was kept that it had written, as far as that is promised."""


class Machines:
    """The simulated executor's."""

    own_environment: dict[str, Any] = {"env": "host", "interpreter": "/usr/bin/python3"}  # noqa: RUF012
    never_ran = (Reason.LAUNCH_REJECTED, Reason.STOPPED, Reason.PREEMPTED)
    pauses_s = [0.01, 0.1, 1.0, 5.0]  # noqa: RUF012
    wrong_s = 600
    acts: Mapping[str, tuple[float, Act]] = {}

    def __init__(self, world: World) -> None:
        self.world = world
        self.executor: SimulatedExecutor = world.parts.executor(NODES, world.true_time, world.random)

    def server(self) -> SimulatedExecutor:
        return self.executor

    @property
    def begun(self) -> list[str]:
        return self.executor.begun

    def node(self) -> None:
        if len(self.executor.nodes) == len(NODES):
            self.executor.lose(self.world.random.choice(NODES).name)
        else:
            self.executor.nodes = NODES

    def shake(self) -> None:
        self.executor.faults = Faults(unavailable=0.05, unheard=0.1, rejected=0.02, lost=0.15)

    def calm(self) -> None:
        self.executor.faults = Faults()
        self.executor.nodes = NODES

    def goes_on(self) -> None:
        pass

    def left(self) -> list[str]:
        return list(self.executor.processes)

    def shares(self) -> list[Share]:
        return [(t.node, t.resources, t.devices) for p in self.executor.alive() for t in p.order.attempt.tasks]

    def check(self, held: list[Attempt]) -> None:
        del held
        if len(set(self.executor.begun)) != len(self.executor.begun):
            raise Broken("an attempt was started twice")
        orders = [process.order for process in self.executor.alive()]
        used = {order.interpreter.bin.parts[-2] for order in orders if order.interpreter is not None}
        if used - self.world.builder.there - {"usr"}:
            raise Broken("an environment was removed beneath an attempt")

    def check_stored(self) -> None:
        pass

    def check_attempt(self, job: Job, attempt: Attempt) -> None:
        end = self.executor.ends.get(attempt.id)
        # what was stopped before anybody saw it has nothing to remember
        unseen = attempt.reason is Reason.RUNNER_LOST or (
            attempt.reason in (Reason.STOPPED, Reason.PREEMPTED) and not attempt.started_at
        )
        if end is not None and end.phase is Phase.ENDED and not unseen:
            if attempt.tasks != end.tasks:
                raise Broken(f"{attempt.id} ended as {end.tasks}, and is remembered as {attempt.tasks}")
            if (attempt.reason is Reason.MAX_TIME_EXCEEDED) and not end.timed_out:
                raise Broken(f"{attempt.id} had time left")
        if attempt.reason is Reason.COMPLETED:
            codes = {task.name: task.exit_code for task in ([] if end is None else end.tasks)}
            bad = [task.name for task in job.spec.tasks if task.decides and codes.get(task.name) != 0]
            if bad:
                raise Broken(f"{attempt.id} is completed, but {bad} of it ended by {codes}")

    def log_is_whole(self, attempt: Attempt, task: str, kept: bytes) -> bool:
        return kept == self.executor.written.get((attempt.id, task), b"")
