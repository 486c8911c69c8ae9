"""Scripted waits: for each the exact code, the message of its event, and all that ``danlu why`` shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from danlu.cli import why as cli
from danlu.domain.jobs import Reason
from danlu.domain.nodes import NodeCapacity
from danlu.domain.waits import Ahead, Precedence, Start
from danlu.services import estimating
from tests.simulation.waits import SECOND, Scene, node, scene

A100 = (node("gpu-1", a100=8),)
TWO = (node("gpu-1", a100=8), node("gpu-2", a100=8))
MIXED = (node("gpu-1", a100=8), node("gpu-2", v100=4))
FREE = "gpu-1: 64 of 64 cpu, 256.0 GiB of 256.0 GiB, 8 of 8 gpu (8 a100)"


class Wait(NamedTuple):
    """How it comes about, and what is said of the job that is called ``two`` then, beside what it asks for."""

    nodes: tuple[NodeCapacity, ...]
    play: Callable[[Scene], None]
    reason: Reason
    message: str
    shown: dict[str, list[str]]


def own_limit(s: Scene) -> None:
    s.quota("default", limit={"gpu": 6})
    s.submit("one", gpu=4)
    s.step()
    s.submit("two", gpu=4)


def limit_of_a_group(s: Scene) -> None:
    s.quota("vision", group=True, limit={"gpu": 6}, guarantee={"gpu": 4})
    s.quota("default", parent="vision", guarantee={"gpu": 2})
    s.quota("beside", parent="vision")
    s.submit("one", gpu=4, project="beside")
    s.step()
    s.submit("two", gpu=4)


def above_every_limit(s: Scene) -> None:
    s.submit("one", gpu=8)
    s.step()
    s.submit("two", gpu=4)
    s.step()
    s.quota("default", limit={"gpu": 2})


def over_capacity(s: Scene) -> None:
    s.submit("one", gpu=6)
    s.step()
    s.submit("foreign", gpu=6, project="other")
    s.submit("urgent", gpu=5, priority=10)
    s.submit("before", gpu=4)
    s.passes(60)
    s.submit("two", gpu=4)


def fragmented(s: Scene) -> None:
    s.submit("one", gpu=5)
    s.submit("more", gpu=6)
    s.step()
    s.submit("two", gpu=4)


def gang_incomplete(s: Scene) -> None:
    s.submit("one", gpu=4)
    s.step()
    s.submit("two", gpu=2, gpu_kind="a100", roles={"worker": {"replicas": 3}}, framework="none")


def held(s: Scene) -> None:
    s.submit("two", hold=True)


def after_another(s: Scene) -> None:
    s.submit("one")
    s.step()
    s.submit("two", after=["one"])


def environment_not_built(s: Scene) -> None:
    s.submit("two", requirements="a")
    s.step("scheduling")


def preemption_pending(s: Scene) -> None:
    s.submit("one", gpu=4, priority=-10, notice=120)
    s.submit("foreign", gpu=4, priority=-10, notice=60, project="other")
    s.step()
    s.passes(400)
    s.step()
    s.submit("two", gpu=8)
    s.step("scheduling")
    s.passes(30)


def array_full(s: Scene) -> None:
    s.submit("two", gpu=1, array="0-3%1")
    s.step()
    s.call_it("two", "two-1")


def waiting_for_retry(s: Scene) -> None:
    s.submit("two", does="exit:3", retry={"attempts": 3, "backoff": 60})
    for _ in range(3):
        s.step()
        s.passes(1)


def kind_is_gone(s: Scene) -> None:
    s.submit("two", gpu=2, gpu_kind="v100")
    s.remove_node("gpu-2")


def short_of_cores(s: Scene) -> None:
    s.submit("one", cpu=60, memory="200GiB")
    s.step()
    s.submit("two", cpu=6, memory="48GiB")


R = Reason
WAITS = {
    "own limit": Wait(
        A100, own_limit, R.WAITING_FOR_QUOTA, "asks 4 GPUs; the limit of default is 6 GPUs, used 4",
        {
            "two": ["two waits: WaitingForQuota, for 0s, position 1 of 1 in all projects"],
            "because": ["the limit of default is 6 GPUs, used 4"],
            "quota": ["default: limit 6 gpu, used 4"],
            "cluster": ["4 of 8 a100 free"],
            "instead": ["would start now: --gpu 2 · --gpu 1"],
        },
    ),
    "limit of a group": Wait(
        A100, limit_of_a_group, R.WAITING_FOR_QUOTA, "asks 4 GPUs; the limit of vision is 6 GPUs, used 4",
        {
            "two": ["two waits: WaitingForQuota, for 0s, position 1 of 1 in all projects"],
            "because": ["the limit of vision is 6 GPUs, used 4"],
            "quota": [
                "default: no limit of gpu, used 0, guaranteed 2", "vision: limit 6 gpu, used 4, guaranteed 4",
            ],
            "cluster": ["4 of 8 a100 free"],
            "instead": ["would start now: --gpu 2 · --gpu 1"],
        },
    ),
    "above every limit": Wait(
        A100, above_every_limit, R.EXCEEDS_MAX_QUOTA, "asks 4 GPUs; the limit of default is 2 GPUs",
        {
            "two": ["two waits: ExceedsMaxQuota, for 0s, position 1 of 1 in all projects"],
            "because": ["the limit of default is 2 GPUs"],
            "quota": ["default: limit 2 gpu, used 8"],
            "cluster": ["0 of 8 a100 free"],
        },
    ),
    "over capacity": Wait(
        A100, over_capacity, R.WAITING_FOR_RESOURCES, "asks 1 cpu, 4 gpu; short of gpu (at most 2 free on one node)",
        {
            "two": ["two waits: WaitingForResources, for 0s, position 4 of 4 in all projects"],
            "because": ["short of gpu (at most 2 free on one node)"],
            "ahead": [
                "urgent (5 gpu, since 1m, higher priority)", "a job of another project (its project holds less now)",
                "before (4 gpu, since 1m, asked before)",
            ],
            "cluster": ["2 of 8 a100 free; 2 of that kept for jobs ahead"],
        },
    ),
    "fragmented": Wait(
        TWO, fragmented, R.TOPOLOGY_PLACEMENT_FAILED,
        "asks 1 cpu, 4 gpu; short of gpu (at most 3 free on one node, 5 in all)",
        {
            "two": ["two waits: TopologyPlacementFailed, for 0s, position 1 of 1 in all projects"],
            "because": ["short of gpu (at most 3 free on one node, 5 in all)"],
            "cluster": ["5 of 16 a100 free, but at most 3 on one node"],
            "instead": ["would start now: --nodes 2 --gpu 2 · --nodes 4 --gpu 1 · --gpu 2 · --gpu 1"],
        },
    ),
    "gang incomplete": Wait(
        A100, gang_incomplete, R.WAITING_FOR_RESOURCES,
        "asks 3 tasks of 1 cpu, 2 gpu (a100) each; 2 of them fit, the next, 1 cpu, 2 gpu (a100), is short of gpu "
        "(at most 0 free on one node)",
        {
            "two": ["two waits: WaitingForResources, for 0s, position 1 of 1 in all projects"],
            "because": ["2 of them fit, the next, 1 cpu, 2 gpu (a100), is short of gpu (at most 0 free on one node)"],
            "cluster": ["4 of 8 a100 free"],
            "instead": ["would start now: --worker 2 · --gpu 1 · --worker 1"],
        },
    ),
    "held": Wait(
        A100, held, R.ON_HOLD, "it is held; danlu release lets it go",
        {
            "two": ["two waits: OnHold, for 0s"], "because": ["it is held; danlu release lets it go"], "free": [FREE],
        },
    ),
    "after another": Wait(
        A100, after_another, R.WAITING_FOR_DEPENDENCY, "waits for one to succeed",
        {
            "two": ["two waits: WaitingForDependency, for 0s"],
            "because": ["one is starting, and has to have succeeded"],
            "free": [FREE.replace("64 of", "63 of", 1)],
        },
    ),
    "environment not built": Wait(
        A100, environment_not_built, R.ENVIRONMENT_BUILDING, "environment requirements-88f485be is being built",
        {
            "two": ["two waits: EnvironmentBuilding, for 0s"],
            "because": ["environment requirements-88f485be is being built"],
            "free": [FREE],
        },
    ),
    "preemption pending": Wait(
        A100, preemption_pending, R.WAITING_FOR_PREEMPTED_WORKLOADS,
        "asks 1 cpu, 8 gpu; short of gpu (at most 0 free on one node); 2 jobs that run make way for it",
        {
            "two": ["two waits: WaitingForPreemptedWorkloads, for 30s, position 1 of 1 in all projects"],
            "because": ["short of gpu (at most 0 free on one node); 2 jobs that run make way for it"],
            "makes way": [
                "one (4 gpu), in 1m30s at the latest", "a job of another project (4 gpu), in 30s at the latest",
            ],
            "cluster": ["0 of 8 a100 free"],
        },
    ),
    "array full": Wait(
        A100, array_full, R.WAITING_FOR_ARRAY, "one job of its array holds something, and no more may at once",
        {
            "two-1": ["two-1 waits: WaitingForArray, for 0s, position 1 of 3 in all projects"],
            "because": ["one job of its array holds something, and no more may at once"],
            "cluster": ["7 of 8 a100 free"],
        },
    ),
    "waiting for a retry": Wait(
        A100, waiting_for_retry, R.WAITING_FOR_RETRY, "its next attempt begins in 60 s at the earliest",
        {
            "two": ["two waits: WaitingForRetry, for 2s"],
            "because": ["its next attempt begins in 58 s at the earliest"],
            "free": [FREE],
        },
    ),
    "its kind of GPU is gone": Wait(
        MIXED, kind_is_gone, R.NO_MATCHING_FLAVOR,
        "asks 1 cpu, 2 gpu (v100); the largest node here has 64 cpu, 256.0 GiB, 0 gpu of kind v100",
        {
            "two": ["two waits: NoMatchingFlavor, for 0s, position 1 of 1 in all projects"],
            "because": ["the largest node here has 64 cpu, 256.0 GiB, 0 gpu of kind v100"],
            "cluster": ["0 of 0 v100 free"],
            "instead": ["would start now: --gpu-kind a100"],
        },
    ),
    "short of cores and memory": Wait(
        A100, short_of_cores, R.WAITING_FOR_RESOURCES,
        "asks 6 cpu, 48.0 GiB; short of cpu (at most 4 free on one node)",
        {
            "two": ["two waits: WaitingForResources, for 0s, position 1 of 1 in all projects"],
            "because": ["short of cpu (at most 4 free on one node)"],
            "cluster": ["4 of 64 cpu free", "56.0 GiB of 256.0 GiB free"],
            "instead": [
                (
                    "would start now: --cpu 3 · --cpu 3 --memory 24576MiB · --cpu 1.5 · "
                    "--cpu 1.5 --memory 12288MiB · --cpu 0.75"
                )
            ],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_the_exact_code_and_numbers(name: str, tmp_path: Path, template: Path) -> None:
    wait = WAITS[name]
    with scene(tmp_path, template, *wait.nodes) as s:
        wait.play(s)
        if wait.reason not in (R.ENVIRONMENT_BUILDING, R.WAITING_FOR_RETRY, R.WAITING_FOR_PREEMPTED_WORKLOADS):
            s.step()
        job = s.job("two")
        assert (job.reason, job.message) == (wait.reason, wait.message)
        assert s.events("two")[-1] == (wait.reason, wait.message)
        shown = s.told("two")
        assert {label: lines for label, lines in shown.items() if label not in ("asks", "starts")} == wait.shown
        long = [line for lines in shown.values() for line in lines if len(line) > 80 and " " not in line]
        assert not long  # the others go on below themselves


def test_what_would_start_now_does(tmp_path: Path, template: Path) -> None:
    """Each shape is submitted as it is told: it starts at once, while the job that waited is stopped."""
    flags = {"--gpu 2": {"gpu": 2}, "--nodes 2 --gpu 2": {"gpu": 2, "roles": {"node": {"replicas": 2}}}}
    for at, (told, changes) in enumerate(flags.items()):
        folder = tmp_path / str(at)
        folder.mkdir()
        with scene(folder, template, *TWO) as s:
            fragmented(s)
            s.step()
            assert told in [one.flags for one in s.why("two").would_start]
            s.stop("two")
            s.submit("three", **changes)
            s.step()
            s.runs("three")


def test_nothing_is_told_of_another_projects_jobs(tmp_path: Path, template: Path) -> None:
    with scene(tmp_path, template, *A100) as s:
        over_capacity(s)
        s.step()
        seen = s.why("two")
        assert seen.ahead[1] == Ahead(why=Precedence.PROJECT_HOLDS_LESS)
        for secret in ("foreign", "other", s.ids["foreign"]):
            assert secret not in seen.model_dump_json()
        assert [line for line in s.told("foreign")["ahead"] if "job of another project" in line]


def test_a_place_that_is_kept_is_told_until_it_is_taken(tmp_path: Path, template: Path) -> None:
    with scene(tmp_path, template, *A100) as s:
        s.submit("one", gpu=6)
        s.step()
        s.submit("two", gpu=4)
        s.submit("small", gpu=1)
        s.step()
        room = s.why("small").room[0]
        assert (room.resource, room.free, room.kept) == ("gpu/a100", 2, 2)
        assert s.told("small")["because"] == ["that is free, but kept for jobs ahead"]
        assert s.why("two").room[0].kept == 0  # it is kept for itself
        s.stop("one")
        s.passes(1)
        s.step()
        s.passes(1)
        s.step()
        s.runs("two", "small")


def test_when_it_starts_is_estimated_kept_and_learned_from(tmp_path: Path, template: Path) -> None:
    with scene(tmp_path, template, *A100) as s:
        s.submit("one", does="sleep:300", gpu=8, max_time="10m")
        s.step()
        s.submit("two", gpu=4)
        s.step()
        now = s.world.clock.now()
        start = s.why("two").start
        assert start is not None
        assert start.at is not None
        assert start.most is not None
        assert abs(start.at - now - 600 * SECOND) < SECOND
        assert start.most > start.at
        assert start.after == "one"
        told = s.job("two").estimate
        assert told is not None
        assert abs(told.starts_at - start.at) < SECOND
        by = "by what jobs say (max_time); 90 % is a guess: too few such estimates came out so far"
        assert s.told("two")["starts"] == [cli._start(start, now), by]
        assert s.world.real.read(estimating.told) == []  # it has not started
        for _ in range(4):
            s.passes(100)
            s.step()
        s.runs("two")
        (pair,) = s.world.real.read(estimating.told)
        assert (pair.size, round(pair.estimated / SECOND)) == (3, 600)
        assert 300 <= pair.actual / SECOND <= 410
        assert s.world.real.read(estimating.lasting).of_late["default"][0] // SECOND == 300


def test_when_it_starts_is_not_known_without_durations(tmp_path: Path, template: Path) -> None:
    with scene(tmp_path, template, *A100) as s:
        s.submit("one", gpu=4)
        s.submit("foreign", gpu=4, project="other")
        s.step()
        s.submit("two", gpu=8)
        s.step()
        unknown = "not known: one and 1 more have not said how long they run: max_time"
        assert s.told("two")["starts"] == [unknown]
        assert s.job("two").estimate is None


def test_times_are_told_as_one_says_them() -> None:
    noon = 1_800_014_400 * SECOND
    hour = 3600 * SECOND
    there = cli._time(noon + hour, noon)
    found = cli._start(Start(at=noon + hour, most=noon + hour, after="one"), noon)
    assert found == f"about {there} (90 %: before {there}), when one ends"
    assert cli._start(Start(at=noon + 30 * SECOND), noon) == "within a minute"
    assert cli._time(noon + 48 * hour, noon) != there
    assert len(cli._time(noon + 48 * hour, noon)) == len("2027-01-15 12:00")
