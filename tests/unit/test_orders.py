"""The order's file: a large gang's stays small, and each task finds in it all that is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.jobs import Task
from danlu.errors import LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.orders import MAX_ORDER_BYTES, Folders, environment, gang_of, order_file, order_text
from danlu.runner import formats
from tests.factories import make_attempt, make_job

WHERE = Folders(Path("/a"), Path("/c"), Path("/s"))


def order_of(**spec: Any) -> LaunchOrder:
    job = make_job(spec=spec)
    tasks = tuple(
        Task(
            role=asked.role, index=asked.index, rank=asked.rank, node="n", resources=asked.resources,
            ports=(20_000 + asked.rank,),
        )
        for asked in job.spec.tasks
    )  # fmt: skip
    attempt = make_attempt(job, tasks=tasks)
    return LaunchOrder(job=job, attempt=attempt, interpreter=None, project_number=0, url="http://x", token="t")


@pytest.mark.parametrize("framework", ["tensorflow", "none"])
def test_what_a_thousand_tasks_share_is_in_the_file_once(framework: str) -> None:
    big = {"NOTES": "n" * 100_000}
    order = order_of(roles={"worker": {"replicas": 1000}, "ps": {"replicas": 24}}, framework=framework, variables=big)
    text = order_text(order_file(order, WHERE))
    assert len(text) < 1_000_000
    read, gang = json.loads(text), gang_of(order, WHERE.attempt)
    for rank in (0, 511, 1023):
        asked = order.job.spec.tasks[rank]
        own = formats.environment(read, read["tasks"][rank])
        assert own == environment(order, asked, gang, WHERE)
        if framework == "tensorflow":
            assert json.loads(own["TF_CONFIG"])["task"] == {"type": asked.role, "index": asked.index}


def test_an_order_that_could_not_be_read_again_is_refused_with_its_size() -> None:
    content = {"tasks": [{"env": {}, "argv": ["x" * MAX_ORDER_BYTES]}]}
    with pytest.raises(LaunchRejected, match=r"its 1 tasks are started with is 64\.0 MiB, and 64\.0 MiB is the most"):
        order_text(content)
