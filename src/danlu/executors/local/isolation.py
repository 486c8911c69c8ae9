"""Which layers of isolation this machine offers, found out by making them; and which of them an attempt is to have."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from danlu.domain.isolation import Layer, known, limit
from danlu.errors import ExecutorUnavailable
from danlu.executors.local import starting
from danlu.executors.local.cgroups import Tree

UID_BASE: Final = 200_000
TRIALS: Final = 3
NO_GROUPS: Final = "this server can make no control groups"
ALONE: Final = "all jobs run as you"


@dataclass(frozen=True, slots=True)
class Offered:
    """What can be had: layers, and for each of the others why not."""

    layers: tuple[Layer, ...]
    missing: Mapping[str, str]

    def with_limits(self, tree: Tree | None) -> Offered:
        """Returns the same with what control groups can do."""
        can = {limit(name) for name in ("memory", "cpu", "pids") if tree is not None and name in tree.bases}
        cannot = {limit(name) for name in ("memory", "cpu", "pids")} - can
        return Offered(
            known((*self.layers, *can)), {**self.missing, **{str(name): NO_GROUPS for name in Layer if name in cannot}}
        )


def tried(
    config: dict[str, Any], ask: Callable[[dict[str, Any], str], dict[str, Any]] = starting.ask
) -> dict[str, Any]:
    """Returns what the launcher answers to a trial.

    Raises:
        ExecutorUnavailable: it could not be found out, several times. That is not to be taken for a machine without layers.
    """
    why = ""
    for _ in range(TRIALS):
        try:
            answer = ask(config, "a trial")
        except ExecutorUnavailable as error:
            why = error.message
            continue
        if "error" not in answer or answer.get("rejected"):
            return answer
        why = str(answer["error"])
    raise ExecutorUnavailable(
        f"which layers of isolation jobs can have here could not be found out in {TRIALS} trials: {why}",
        next_step="the machine may be short of memory, processes or disk: danlu doctor; then start again",
    )


@cache
def offered(uid: int | None) -> Offered:
    """Returns what attempts have of this server that run as user ``uid``; None: as its own. It does not change meanwhile.

    Raises:
        ExecutorUnavailable: it could not be found out.
    """
    with tempfile.TemporaryDirectory(prefix="danlu-trial-") as folder:
        config = {
            "folder": None, "uid": uid, "limits": [], "overlay": None, "cgroup_procs": [], "task_procs": {},
            "needed": [{"path": sys.base_prefix, "write": False}],
            "sandbox": sandbox(Path(folder), Path(folder), tenants=uid is not None),
        }  # fmt: skip
        answer = tried(config)
    if "error" in answer:
        return Offered((), dict.fromkeys(map(str, Layer), str(answer["error"])))
    found = known(answer["limits"])
    # how much of memory and processors a job may have is set for each
    others = [str(layer) for layer in Layer if layer not in found and not layer.endswith("-limit")]
    return Offered(found, {name: answer["missing"].get(name, ALONE) for name in others})


def sandbox(home: Path, private: Path | None, *, tenants: bool, confine: bool = True, **more: Any) -> dict[str, Any]:
    """Returns what the launcher is told: see Sandbox in runner/sandbox.py, which also says what ``more`` there can be."""
    return {
        "confine": confine, "tenants": tenants, "hidden": os.path.realpath(home),
        "private": None if private is None else str(private), "missing": {}, "require": (), "naming": False, **more,
    }  # fmt: skip
