"""Which checkpoints are kept, and which ones an attempt goes on from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.checkpoints import KEPT, MAX_KEPT, Checkpoint, age, given_up, to_restore
from danlu.runner import checkpoints as runner
from tests.factories import Ids

ids = Ids()
TREE = "sha256:" + "a" * 64


def one(name: str, task: str = "worker-0", attempt: int = 1, at: int = 0, **fields: Any) -> Checkpoint:
    """Returns what a task has saved; ``at`` is when, and when it was told."""
    return Checkpoint(
        id=ids("c"), project="default", owner="j", attempt_id=f"j-{attempt}", task=task, rank=int(task[-1]), name=name,
        tree=fields.pop("tree", TREE), at=at, size_bytes=1, created_at=at, updated_at=at, **fields,
    )  # fmt: skip


def restored(*found: Checkpoint, tasks: tuple[str, ...] = ("worker-0", "worker-1", "ps-0")) -> list[tuple[str, str]]:
    every = {checkpoint.attempt_id: tasks for checkpoint in found}
    return [(checkpoint.name, checkpoint.task) for checkpoint in to_restore(found, every)]


numbered = st.lists(
    st.sampled_from(["1", "10", "-", "step", ".h5", ".pt", "é", "7", ".", "ckpt-"]), min_size=1, max_size=5
)


@given(numbered.map("".join), st.integers(0, 100))
def test_a_name_means_the_same_to_the_runner(name: str, at: int) -> None:
    checkpoint = one(name, at=at)
    assert (checkpoint.series, age(checkpoint)[:2]) == (runner.series(name), runner.age(name, at))


def test_the_newest_of_each_series_comes_back() -> None:
    found = [one(f"step-{n}", at=n) for n in (9, 10, 8)] + [
        one("best.pt", at=1),
        one("a-1-2", at=5),
        one("a-9-1", at=4),
    ]
    assert restored(*found) == [("a-1-2", "worker-0"), ("best.pt", "worker-0"), ("step-10", "worker-0")]
    assert restored() == []


@pytest.mark.parametrize(
    ("told", "found"),
    [
        # name: who has sent it
        ({1: "01", 2: "01"}, 2),
        ({1: "01", 2: "0"}, 1),
        ({1: "01", 2: "1"}, 1),
        ({1: "01", 2: "0", 3: "01"}, 3),
        ({1: "01", 2: "0", 3: "0"}, 1),  # the other one may be slow
        ({1: "01", 2: "0", 3: "0", 4: "0"}, 4),  # it does not write any more
        ({1: "0", 2: "0"}, 2),
        ({1: "0"}, 1),
    ],
)
def test_half_a_checkpoint_of_a_gang_does_not_come_back(told: dict[int, str], found: int) -> None:
    every = [one(f"step-{n}", f"worker-{task}", at=n) for n, who in told.items() for task in who]
    assert {name for name, _ in restored(*every)} == {f"step-{found}"}
    assert len(restored(*every)) == len(told[found])


def test_a_gang_that_has_become_smaller_goes_on() -> None:
    before = [one(f"step-{n}", f"worker-{task}", at=n) for n in (1, 2) for task in (0, 1)]
    after = one("step-3", "worker-0", attempt=2, at=3)
    tasks = {"j-1": ("worker-0", "worker-1"), "j-2": ("worker-0",)}
    assert [checkpoint.name for checkpoint in to_restore([*before, after], tasks)] == ["step-3"]


def test_parts_of_two_attempts_are_not_put_together() -> None:
    before = [one("step-1", f"worker-{task}", at=1) for task in (0, 1)]
    again = one("step-1", "worker-0", attempt=2, at=2)
    every = ("worker-0", "worker-1")
    found = to_restore([*before, again], {"j-1": every, "j-2": every})
    assert {(checkpoint.name, checkpoint.attempt_id) for checkpoint in found} == {("step-1", "j-1")}


def test_names_that_each_task_has_of_its_own_all_come_back() -> None:
    found = [one(f"rank{task}-step-{n}", f"worker-{task}", at=n) for task in (0, 1) for n in (1, 2)]
    assert len(restored(*found)) == 4


def test_so_many_are_kept() -> None:
    of_one = [one(f"step-{n}", at=n) for n in range(KEPT + 2)]
    others = [one(f"step-{n}", "worker-1", at=n) for n in range(KEPT)] + [one("best.pt", at=0)]
    assert {(c.name, c.task) for c in given_up([*of_one, *others])} == {("step-0", "worker-0"), ("step-1", "worker-0")}
    many = [one("x" * n, at=n) for n in range(1, MAX_KEPT + 3)]
    assert sorted(c.name for c in given_up(many)) == ["x", "xx"]


def test_of_several_attempts_the_newest_of_a_name_is_kept() -> None:
    found = [one("last.pt", attempt=n, at=n) for n in (1, 2)] + [one("last.pt", "worker-1", at=0)]
    assert [(c.task, c.attempt_id) for c in given_up(found, across=True)] == [("worker-0", "j-1")]
    numbered = [one(f"step-{n}", attempt=n, at=n) for n in range(1, KEPT + 3)]
    assert {c.name for c in given_up(numbered, across=True)} == {"step-1", "step-2"}
