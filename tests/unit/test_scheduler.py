"""The scheduler: tables for what it promises, properties for what it never does."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.domain.jobs import Reason
from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.domain.resources import Resources
from danlu.scheduler.model import Placement, Policy, Seat, Shape, Waiting
from danlu.scheduler.ports import COUNT
from danlu.scheduler.rooms import Rooms, take_seats
from danlu.scheduler.sizing import could_ever_fit
from tests.factories import GIB, make_capacity
from tests.unit.scheduling import NOW, Held, Snapshot, held_by, plan, scheduler
from tests.unit.scheduling import wait as job_that_waits

KEPT_FOR = Policy().kept_for


def ask(cpu: float = 1, memory: int = 0, gpus: int = 0, kind: str | None = None, tasks: int = 1) -> Shape:
    return Shape((Resources(cpu_milli=round(cpu * 1000), memory_bytes=memory, gpus=gpus),) * tasks, kind)


def wait(name: str, shape: Shape | None = None, *, priority: int = 0, since: int = 0) -> Waiting:
    return job_that_waits(name, shape or ask(), priority=priority, since=since)


def hold(node: str, cpu: float = 0, memory: int = 0, devices: tuple[int, ...] = ()) -> Held:
    return Held(node, Resources(cpu_milli=round(cpu * 1000), memory_bytes=memory, gpus=len(devices)), devices)


def snapshot(*nodes: NodeCapacity, held: tuple[Held, ...] = (), waiting: tuple[Waiting, ...] = ()) -> Snapshot:
    return Snapshot(nodes, held, waiting)


def started(made: Any) -> list[str]:
    return [placement.job_id for placement in made.placements]


def order(waiting: tuple[Waiting, ...] | list[Waiting]) -> list[Waiting]:
    return sorted(waiting, key=lambda job: (-job.priority, job.queued_at, job.id))


def rooms(nodes: Any, held: Any) -> Rooms:
    made = Rooms.of(nodes)
    for share in held:
        made.take(share.node, share.resources, share.devices)
    return made


# tables


def test_a_gang_that_lacks_ports_says_so_and_gets_the_next_ones() -> None:
    taken = Held("node-1", Resources(), (), ports=COUNT - 3)
    gang, small = replace(ask(0.1, tasks=4), ports=4), replace(ask(0.1, tasks=2), ports=2)
    waiting = (wait("a", small), wait("b", gang), wait("c", gang), wait("d", small), wait("e", replace(small, ports=1)))
    made = plan(snapshot(make_capacity(), held=(taken,), waiting=(*waiting, wait("f"))))
    assert started(made) == ["a", "f"]
    assert made.waits["b"] == made.waits["c"]
    assert made.waits["b"] == (
        Reason.WAITING_FOR_RESOURCES, "asks 4 ports, one for each task; 1 of 12,768 are free"
    )  # fmt: skip
    assert made.waits["e"][0] is Reason.WAITING_FOR_RESOURCES  # the one that is free is kept for b


def test_higher_priority_first_then_who_waits_longest_then_the_id() -> None:
    jobs = [wait("c"), wait("b"), wait("old", since=-1), wait("urgent", priority=5, since=9), wait("late", priority=-1)]
    assert started(plan(snapshot(make_capacity(cpu=99), waiting=tuple(jobs)))) == ["urgent", "old", "b", "c", "late"]


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        (ask(8), True),
        (ask(8.001), False),
        (ask(1, 32 * GIB), True),
        (ask(1, 32 * GIB + 1), False),
        (ask(1, gpus=4), True),
        (ask(1, gpus=5), False),
        (ask(1, gpus=4, kind="h100"), True),
        (ask(1, gpus=1, kind="a100"), True),
        (ask(1, gpus=2, kind="a100"), False),
        (ask(1, gpus=1, kind="t4"), False),
        (ask(4, tasks=2), True),
        (ask(5, tasks=2), False),
        (ask(1, gpus=2, tasks=2), True),
        (ask(1, gpus=2, tasks=3), False),
    ],
)
def test_what_fits_on_a_node(shape: Shape, fits: bool) -> None:
    node = make_capacity(cpu=8, memory=32 * GIB, h100=4, a100=1)
    made = plan(snapshot(node, waiting=(wait("j", shape),)))
    assert started(made) == (["j"] if fits else [])
    assert (could_ever_fit(shape, [node]) is None) == fits


@pytest.mark.parametrize(
    ("shape", "held", "reason", "words"),
    [
        (ask(9), (), Reason.NO_MATCHING_FLAVOR, "asks 9 cpu; the largest node here has 8 cpu, 32.0 GiB, 4 gpu"),
        (ask(1, gpus=1, kind="t4"), (), Reason.NO_MATCHING_FLAVOR, "0 gpu of kind t4"),
        (ask(4), (hold("node-1", 5),), Reason.WAITING_FOR_RESOURCES, "asks 4 cpu; short of cpu (at most 3 free on one node)"),
        (ask(1, GIB), (hold("node-1", memory=32 * GIB),), Reason.WAITING_FOR_RESOURCES, "memory (at most 0 B free"),
        (ask(1, gpus=2), (hold("node-1", devices=(0, 1, 3)),), Reason.WAITING_FOR_RESOURCES, "gpu (at most 1 free"),
    ],
)  # fmt: skip
def test_why_a_job_waits(shape: Shape, held: tuple[Held, ...], reason: Reason, words: str) -> None:
    made = plan(snapshot(make_capacity(h100=4), held=held, waiting=(wait("j", shape),)))
    assert made.waits["j"][0] is reason
    assert words in made.waits["j"][1]


def test_gpus_of_two_kinds_are_not_mixed_and_not_promised() -> None:
    node = make_capacity(h100=3, a100=3)
    assert could_ever_fit(ask(1, gpus=4), [node]) is not None
    assert "3 gpu" in str(could_ever_fit(ask(1, gpus=4), [node]))
    made = plan(snapshot(node, held=(hold("node-1", devices=(0, 3)),), waiting=(wait("j", ask(1, gpus=3)),)))
    assert "at most 2 free" in made.waits["j"][1]


def test_packing_fills_the_fuller_node_and_leaves_whole_ones() -> None:
    nodes = (make_capacity("a", h100=4), make_capacity("b", h100=4))
    made = plan(snapshot(*nodes, held=(hold("b", devices=(0, 1)),), waiting=(wait("j", ask(1, gpus=2)),)))
    assert made.placements == (Placement("j", (Seat("b", (2, 3)),), ask(1, gpus=2)),)
    assert plan(snapshot(*nodes, make_capacity("cpu"), waiting=(wait("j"),))).placements[0].seats[0].node == "cpu"


def test_without_nodes_all_wait() -> None:
    made = plan(snapshot(waiting=(wait("j"),)))
    assert made.waits["j"] == (Reason.NO_MATCHING_FLAVOR, "asks 1 cpu; there is no node")


def test_what_is_held_on_a_node_that_shrank_leaves_nothing() -> None:
    shares = (hold("a", cpu=4, memory=64 * GIB, devices=(7,)), hold("gone", cpu=1))
    free = rooms([make_capacity("a", cpu=1)], shares)
    assert free.free(None) == Resources()
    assert set(free.by_name) == {"a"}
    assert started(plan(snapshot(make_capacity("a", cpu=1), held=shares, waiting=(wait("j", ask(0.1)),)))) == []


def test_what_is_held_counts_on_a_node_that_comes_back() -> None:
    made = scheduler(snapshot(make_capacity("a", cpu=4), held=(hold("a", cpu=3),), waiting=(wait("j", ask(2)),)))
    made.node(make_capacity("a", cpu=0))
    made.node(make_capacity("a", cpu=4))
    assert started(made.decide(NOW)) == []
    made.freed("held-0", NOW)
    assert started(made.decide(NOW)) == ["j"]


def test_seats_are_taken_all_or_none() -> None:
    free = rooms([make_capacity("a", cpu=2, h100=2)], [])
    need = Resources(cpu_milli=1000, gpus=1)
    for seats in (
        [Seat("a", (0,)), Seat("a", (0,))],
        [Seat("a", (0,)), Seat("b", (0,))],
        [Seat("a", (0,)), Seat("a", (5,))],
    ):
        assert not take_seats(free, (need, need), seats)
        assert free.free(None) == Resources(cpu_milli=2000, memory_bytes=free.by_name["a"].memory_bytes, gpus=2)
    assert take_seats(free, (need, need), [Seat("a", (0,)), Seat("a", (1,))])
    assert (free.by_name["a"].cpu_milli, free.by_name["a"].gpus) == (0, {"h100": []})


def test_no_more_elements_of_an_array_hold_something_than_may() -> None:
    jobs = tuple(
        job_that_waits(f"j{at}", ask(0.1), since=at, array="even" if at % 2 == 0 else "odd", parallel=2)
        for at in range(8)
    )
    free = job_that_waits("free", ask(0.1), since=9, array="free", parallel=0)
    made = scheduler(snapshot(make_capacity(), waiting=(*jobs, free)))
    made.holds(replace(held_by(0, hold("node-1", cpu=0.1)), array="odd"))
    plan_ = made.decide(NOW)
    assert started(plan_) == ["j0", "j1", "j2", "free"]
    assert {code for code, _ in plan_.waits.values()} == {Reason.WAITING_FOR_ARRAY}
    assert set(plan_.waits) == {"j3", "j4", "j5", "j6", "j7"}


# nobody starves


def test_small_jobs_do_not_take_what_the_head_waits_for() -> None:
    small = tuple(wait(f"small-{number}", ask(1, gpus=1), since=number + 1) for number in range(5))
    node = make_capacity(h100=4)
    made = plan(snapshot(node, held=(hold("node-1", devices=(0,)),), waiting=(wait("head", ask(1, gpus=4)), *small)))
    assert started(made) == []
    other = make_capacity("node-2", h100=2)
    made = plan(
        snapshot(node, other, held=(hold("node-1", devices=(0,)),), waiting=(wait("head", ask(1, gpus=4)), *small))
    )
    assert started(made) == ["small-0", "small-1"]
    assert {seat.node for placement in made.placements for seat in placement.seats} == {"node-2"}


def test_a_job_that_can_never_start_keeps_nothing() -> None:
    made = plan(
        snapshot(make_capacity(h100=4), waiting=(wait("never", ask(1, gpus=8)), wait("small", ask(1, gpus=4), since=1)))
    )
    assert started(made) == ["small"]


def test_what_is_kept_is_of_a_kind_that_can_hold_it_all() -> None:
    node = make_capacity(a100=3, h100=8)
    held = (hold("node-1", devices=tuple(range(3, 9))),)  # two h100 are free
    head = wait("head", ask(1, gpus=4))
    others = (wait("a", ask(1, gpus=1, kind="h100"), since=1), wait("b", ask(1, gpus=3, kind="a100"), since=2))
    made = plan(snapshot(node, held=held, waiting=(head, *others)))
    assert started(made) == ["b"]


class World:
    """Nodes on which jobs run for a while; small ones never cease to come."""

    def __init__(self, seed: int, head: Shape, nodes: tuple[NodeCapacity, ...]) -> None:
        self.random = random.Random(seed)
        self.nodes = nodes
        self.running: list[tuple[int, Held]] = []
        self.waiting = [wait("head", head)]
        self.shapes: dict[str, Shape] = {}

    def run(self, steps: int) -> int | None:
        """Returns after how many steps the head started."""
        for step in range(steps):
            self.running = [(until, share) for until, share in self.running if until > step]
            while len(self.waiting) < 40:
                shape = ask(self.random.randint(1, 3), gpus=self.random.choice((0, 1, 1, 2)))
                self.waiting.append(wait(f"{step:04d}-{len(self.waiting)}", shape, since=step + 1))
            made = plan(Snapshot(self.nodes, tuple(share for _, share in self.running), tuple(self.waiting)))
            for placement in made.placements:
                if placement.job_id == "head" and step:
                    return step
                until = step + self.random.randint(1, 8)
                for need, seat in zip(placement.shape.tasks, placement.seats, strict=True):
                    self.running.append((until, Held(seat.node, need, seat.devices)))
            begun = set(started(made))
            self.waiting = [job for job in self.waiting if job.id not in begun]
        return None


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.sampled_from([ask(8, gpus=4), ask(2, gpus=4), ask(8), ask(4, gpus=3), ask(4, gpus=2, tasks=2)]),
)
def test_the_head_starts_at_last_however_many_small_ones_come(seed: int, head: Shape) -> None:
    nodes = (make_capacity("a", cpu=8, h100=4), make_capacity("b", cpu=10, h100=4), make_capacity("c", cpu=8, a100=3))
    world = World(seed, head, nodes)
    full = [
        Held(node.name, Resources(cpu_milli=node.cpu_milli, gpus=len(node.gpus)), tuple(g.index for g in node.gpus))
        for node in nodes
    ]
    world.running = [(world.random.randint(1, 8), share) for share in full]
    assert world.run(60) is not None


def test_the_choice_of_what_is_kept_does_not_go_to_and_fro() -> None:
    """What the head does not need may be used by others, and does not make another node look nearer."""
    nodes = (make_capacity("a", cpu=10, h100=4), make_capacity("b", cpu=9, h100=4))
    head, small = wait("head", ask(4, gpus=4)), wait("small", ask(1, gpus=3), since=1)
    made = scheduler(snapshot(*nodes, held=(hold("a", devices=(0,)), hold("b", devices=(0,))), waiting=(head, small)))
    kept = set()
    for used_a, used_b in ((0, 0), (6, 0), (0, 5), (6, 5)):
        for number, share in enumerate((hold("a", cpu=used_a), hold("b", cpu=used_b)), start=2):
            made.holds(held_by(number, share))
        kept.add(made.decide(NOW).placements[0].seats[0].node)
    assert len(kept) == 1


def test_room_is_kept_for_so_many_and_no_more() -> None:
    """Behind them a job may still start in what is left."""
    waiting = [
        wait(f"big-{number:02d}", ask(8 + number / 1000, tasks=1), since=number) for number in range(KEPT_FOR + 1)
    ]
    nodes = (make_capacity("full", cpu=100), make_capacity("small", cpu=4))
    made = plan(snapshot(*nodes, held=(hold("full", cpu=99),), waiting=(*waiting, wait("tiny", ask(4), since=99))))
    assert started(made) == ["tiny"]


# properties

kinds = st.sampled_from(["h100", "a100"])
capacities = st.builds(
    lambda cpu, memory, gpus: (cpu, memory, gpus), st.integers(0, 8), st.integers(0, 8), st.lists(kinds, max_size=5)
)
needs = st.builds(
    lambda cpu, memory, gpus: Resources(cpu_milli=cpu * 500, memory_bytes=memory, gpus=gpus),
    st.integers(0, 8), st.integers(0, 4), st.integers(0, 3),
)  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn, *, uniform: bool = False) -> Snapshot:
    nodes = []
    for number, (cpu, memory, gpus) in enumerate(draw(st.lists(capacities, max_size=4))):
        found = tuple(Gpu(index=index, kind=kind) for index, kind in enumerate(gpus))
        nodes.append(NodeCapacity(name=f"n{number}", cpu_milli=cpu * 1000, memory_bytes=memory, gpus=found))
    held = [
        Held(node.name, Resources(cpu_milli=500, gpus=1), (gpu.index,))
        for node in nodes
        for gpu in node.gpus
        if draw(st.integers(0, 3)) == 0
    ]
    shapes = st.builds(
        lambda tasks, kind: Shape(tasks, kind if any(task.gpus for task in tasks) else None),
        st.builds(lambda need, count: (need,) * count, needs, st.integers(1, 3))
        if uniform
        else st.lists(needs, min_size=1, max_size=3).map(tuple),
        st.none() | kinds,
    )
    few = draw(st.lists(shapes, min_size=1, max_size=4))
    waiting = [
        Waiting(f"j{number:02d}", "p", draw(st.integers(-1, 1)), draw(st.integers(0, 3)), (draw(st.sampled_from(few)),))
        for number in range(draw(st.integers(0, 12)))
    ]
    return Snapshot(tuple(nodes), tuple(held), tuple(waiting))


@settings(max_examples=200)
@given(snapshots())
def test_nothing_is_sold_twice(given_: Snapshot) -> None:
    made = plan(given_)
    shapes = {job.id: job.shapes[0] for job in given_.waiting}
    nodes = {node.name: node for node in given_.nodes}
    cpu, memory, devices = Counter[str](), Counter[str](), Counter[tuple[str, int]]()
    for share in given_.held:
        cpu[share.node] += share.resources.cpu_milli
        devices.update((share.node, device) for device in share.devices)
    before = Counter(cpu)
    for placement in made.placements:
        shape = shapes[placement.job_id]
        assert len(placement.seats) == len(shape.tasks), "a gang starts as a whole"
        for need, seat in zip(shape.tasks, placement.seats, strict=True):
            cpu[seat.node] += need.cpu_milli
            memory[seat.node] += need.memory_bytes
            devices.update((seat.node, device) for device in seat.devices)
            found = {gpu.kind for gpu in nodes[seat.node].gpus if gpu.index in seat.devices}
            assert len(seat.devices) == need.gpus
            assert list(seat.devices) == sorted(seat.devices)
            assert len(found) <= 1
            assert shape.gpu_kind is None or found <= {shape.gpu_kind}
    assert all(count == 1 for count in devices.values())
    for name, node in nodes.items():
        assert cpu[name] <= max(node.cpu_milli, before[name])
        assert memory[name] <= node.memory_bytes
        assert {index for where, index in devices if where == name} <= {gpu.index for gpu in node.gpus}
    assert set(started(made)) | set(made.waits) == set(shapes)
    assert set(started(made)).isdisjoint(made.waits)


@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_told_does_not_matter(given_: Snapshot, shuffle: random.Random) -> None:
    def mixed(found: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(shuffle.sample(found, len(found)))

    nodes = tuple(replace_gpus(node, mixed(node.gpus)) for node in mixed(given_.nodes))
    other = Snapshot(nodes, mixed(given_.held), mixed(given_.waiting))
    assert plan(other) == plan(given_)
    assert plan(given_) == plan(given_)


def replace_gpus(node: NodeCapacity, gpus: tuple[Gpu, ...]) -> NodeCapacity:
    return node.model_copy(update={"gpus": gpus})


@settings(max_examples=200)
@given(snapshots(uniform=True))
def test_equal_jobs_decided_once_are_as_decided_one_by_one(given_: Snapshot) -> None:
    """Each job in an array of its own is decided by itself: nothing is lost by not trying equal ones again.

    Nothing is kept here: of equal jobs something is kept for the first one only.
    """
    apart = tuple(replace(job, array=f"array of {job.id}") for job in given_.waiting)
    policy = Policy(kept_for=0)
    one, other = plan(given_, policy), plan(replace(given_, waiting=apart), policy)
    assert one.placements == other.placements
    assert {job: code for job, (code, _) in one.waits.items()} == {job: code for job, (code, _) in other.waits.items()}


@given(snapshots())
def test_who_is_served_first_does_not_depend_on_those_behind(given_: Snapshot) -> None:
    queue = order(given_.waiting)
    made = plan(given_)
    for length in range(len(queue)):
        some = plan(replace(given_, waiting=tuple(queue[:length])))
        assert some.placements == made.placements[: len(some.placements)]
        assert all(made.waits[name] == why for name, why in some.waits.items())


@given(snapshots())
def test_what_could_ever_fit_starts_on_empty_nodes(given_: Snapshot) -> None:
    for job in given_.waiting:
        never = could_ever_fit(job.shapes[0], given_.nodes)
        made = plan(Snapshot(given_.nodes, (), (job,)))
        assert (never is None) == (started(made) == [job.id])
        if never is not None and len(job.shapes[0].tasks) == 1:
            assert made.waits[job.id] == (Reason.NO_MATCHING_FLAVOR, never)


@given(snapshots())
def test_the_first_in_the_queue_starts_if_it_fits(given_: Snapshot) -> None:
    queue = order(given_.waiting)
    if not queue or len(queue[0].shapes[0].tasks) > 1:
        return
    made = plan(given_)
    need, kind = queue[0].shapes[0].tasks[0], queue[0].shapes[0].gpu_kind
    fits = any(room.fits(need, kind) for room in rooms(given_.nodes, given_.held).by_name.values())
    assert (queue[0].id in started(made)) == fits
