"""What a container engine still has of an attempt, beside the processes that the attempt's groups or marks tell."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from danlu.executors.local import sweep
from danlu.executors.local.containers import LABEL

MAX_REMOVALS: Final = 8
"""So many are under way at once; the others' turn comes with a later look."""
Ask = Callable[..., str | None]


class Removals:
    """Removes docker's containers, each attempt's in a thread of its own: its daemon may take a minute, and nobody waits."""

    def __init__(self, ask: Ask) -> None:
        """Begins nothing yet; ``ask`` returns what docker prints, or None where it fails."""
        self._ask = ask
        self._begun: dict[str, tuple[threading.Thread, list[bool]]] = {}

    def done(self, attempt_id: str) -> bool:
        """Returns whether a removal has left nothing. Where that is not known yet one begins, and a later call knows."""
        found = self._begun.get(attempt_id)
        if found is None:
            if sum(thread.is_alive() for thread, _ in list(self._begun.values())) < MAX_REMOVALS:
                gone: list[bool] = []
                thread = threading.Thread(target=lambda: gone.append(self._remove(attempt_id)), daemon=True)
                self._begun[attempt_id] = thread, gone
                thread.start()
            return False
        if found[0].is_alive():
            return False
        self.forget(attempt_id)
        return found[1] == [True]

    def forget(self, attempt_id: str) -> None:
        """Drops what is known: from now on there may be containers again."""
        self._begun.pop(attempt_id, None)

    def _remove(self, attempt_id: str) -> bool:
        listed = self._ask("ps", "--all", "--quiet", f"--filter=label={LABEL}={attempt_id}")
        if listed is None or not listed.split():
            return listed is not None
        return self._ask("rm", "--force", "--volumes", *listed.split()) is not None


def end_monitors(attempt: Path) -> bool:
    """Kills podman's monitors of an attempt: their environment is empty, so that no mark in it tells whose they are.

    Only for where there are no control groups: what is found so may be anything of that user's.
    """
    for _ in range(sweep.ROUNDS):
        found = _monitors(f"{attempt}/".encode(), attempt.lstat().st_uid)
        if not found:
            return True
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return False


def _monitors(folder: bytes, uid: int) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                program = (process / "comm").read_bytes().strip()
                own = program in (b"conmon", b"podman") and process.stat().st_uid == uid
                if own and folder in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
    return found
