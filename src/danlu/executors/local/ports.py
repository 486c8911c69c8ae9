"""Leased ports on this machine: probed before an attempt is made ready, since not only our own programs take ports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from danlu.domain.jobs import Task
from danlu.errors import LeasedPortTaken


def probe(tasks: Iterable[Task]) -> None:
    """Raises LeasedPortTaken where a task could not listen on its port now."""
    for task in tasks:
        for port in task.ports:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind(("0.0.0.0", port))  # noqa: S104 - never listened on: frameworks bind to every address
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    raise LeasedPortTaken(
                        f"port {port} of {task.name} is taken by another program of this machine", port=port
                    ) from error
