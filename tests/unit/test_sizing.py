"""What is said of jobs that can never fit: the numbers, and what to ask for instead, which then fits."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.domain.nodes import NodeCapacity
from danlu.domain.specs import JobSpec
from danlu.scheduler.sizing import never_fits
from tests.factories import GIB, make_capacity

SMALL = [make_capacity(cpu=2, memory=24 * GIB)]
TWO = [make_capacity("a", cpu=3), make_capacity("b", cpu=3)]
GPUS = [make_capacity(cpu=2, h100=2)]
DECLARE = "danlu up --gpus"


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"command": "x", **fields})


def workers(replicas: int, **fields: Any) -> JobSpec:
    return spec(roles={"worker": {"replicas": replicas}}, framework="none", **fields)


@pytest.mark.parametrize(
    ("asked", "nodes", "said", "step"),
    [
        (workers(8), SMALL, "8 workers of 1 cpu need 8 cpu; this machine has 2 cpu", "--cpu 0.25, or for fewer workers"),
        (workers(7, cpu=1), TWO, "7 workers of 1 cpu need 7 cpu; all 2 nodes together have 6 cpu", "--cpu 0.85"),
        (workers(3, cpu=2), TWO, "it asks 3 tasks of 2 cpu each; 2 of them fit", "ask for less for each task"),
        (workers(2, cpu=1, memory="16GiB"), SMALL, "need 32.0 GiB; this machine has 24.0 GiB", "--memory 12288MiB"),
        (workers(2, cpu=1, gpu=2), GPUS, "2 workers of 1 cpu, 2 gpu need 4 gpu; this machine has 2 gpu", "--gpu 1"),
        (spec(gpu=1), SMALL, "0 gpu", "leave GPUs out"),
        (spec(gpu=1), SMALL, "0 gpu", f"{DECLARE} 1"),
        (spec(cpu=5), TWO, "it asks 5 cpu; the largest node here has 3 cpu", "--cpu 3"),
        (
            spec(roles={"worker": {"replicas": 2}, "ps": {"cpu": 3}}), SMALL,
            "2 workers + 1 ps need 5 cpu; this machine has 2 cpu", "ask for less for each task, or for fewer workers",
        ),
    ],
)  # fmt: skip
def test_what_is_said(asked: JobSpec, nodes: list[NodeCapacity], said: str, step: str) -> None:
    found = never_fits(asked, nodes)
    assert found is not None
    assert said in found[0]
    assert step in found[1]


def test_gpus_are_not_declared_beside_real_ones_nor_by_kind() -> None:
    for asked, nodes in ((spec(gpu=3), GPUS), (spec(gpu=1, gpu_kind="a100"), SMALL)):
        found = never_fits(asked, nodes)
        assert found is not None
        assert DECLARE not in found[1]


def test_gpus_of_a_cluster_are_not_declared() -> None:
    found = never_fits(spec(gpu=1), SMALL, declared=False)
    assert found is not None
    assert DECLARE not in found[1]
    assert "device plugin" in found[1]


@pytest.mark.parametrize("replicas", [3, 8, 7, 31])
def test_what_is_proposed_fits(replicas: int) -> None:
    found = never_fits(workers(replicas), SMALL)
    assert found is not None
    proposed = found[1].partition("--cpu ")[2].partition(",")[0]
    assert never_fits(workers(replicas, cpu=proposed), SMALL) is None
