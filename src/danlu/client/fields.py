"""A job's fields as keyword arguments: what JobSpec takes, named once for type checkers. A test holds both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict


class JobFields(TypedDict, total=False):
    """Fields of a job's specification, but its command and code; docs/reference/jobs.md says what each means.

    Amounts are numbers or texts with units: ``memory="4GiB"``, ``max_time="2h"``. ``requirements`` is a text, or the Path of
    a file. With ``env="host"`` the job runs on the Python of this program.
    """

    name: str
    roles: Mapping[str, Mapping[str, Any]]
    framework: str
    env: str
    image: str
    requirements: str | Path
    python: str
    variables: Mapping[str, str]
    secrets: Sequence[str] | Mapping[str, str | Mapping[str, str | bool]]
    cpu: float | str
    memory: int | str
    gpu: int | str
    gpu_min: int
    gpu_kind: str
    priority: int | str
    hold: bool
    after: str | Sequence[str]
    array: str | Mapping[str, Any]
    retry: Mapping[str, Any]
    max_time: float | str
    grace: float | str
    notice: float | str
    notice_signal: str
    parse_metrics: bool
    log_limit: int | str
    labels: Mapping[str, str]
