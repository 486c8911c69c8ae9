"""The environment of a job, made ready in a pod before its task starts."""

from __future__ import annotations

from typing import Any, Dict


def prepare(pod: Any) -> Dict[str, str]:  # noqa: ARG001 - see pod.py
    """Returns the variables that the task's environment has on top."""
    return {}
