"""Checkpoints and outputs on their way between a pod and the server."""

from __future__ import annotations

from typing import Any


def restore(pod: Any) -> None:
    """Brings the newest whole checkpoints, if there are any, into the folder that the order names."""


class Carrier:
    """Keeps what the pod's task leaves."""

    def __init__(self, pod: Any) -> None:
        self._pod = pod

    def step(self) -> None:
        """Looks once."""

    def finish(self) -> None:
        """Keeps what is left, once nothing of the task runs any more."""
