"""What a scheduler was told and what it decided, one JSON line a call: played again, the decisions are the same to the byte.

The first line is ``{"danlu_recording": 1, "policy": {...}}``. Each other one is a call of ``Decider``: ``call`` names it, its
arguments stand under their names; ``decide`` has the plan beside it. Keys are sorted, what is as by default is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota
from danlu.errors import InvalidRequest
from danlu.scheduler.model import Plan, Policy, Running, Waiting
from danlu.scheduler.simulator import Decider

FORMAT: Final = 1
MAX_LINE: Final = 2**26
SHOWN: Final = 400
"""So many letters of two plans that differ are told, from where they do."""

_POLICY, _NODE, _QUOTAS = TypeAdapter(Policy), TypeAdapter(NodeCapacity), TypeAdapter(tuple[Quota, ...])
_WAITING, _RUNNING, _PLAN = TypeAdapter(Waiting), TypeAdapter(Running), TypeAdapter(Plan)


def _line(call: Mapping[str, Any]) -> str:
    return json.dumps(call, sort_keys=True, separators=(",", ":")) + "\n"


def _dump(adapter: TypeAdapter[Any], value: Any) -> Any:
    return adapter.dump_python(value, mode="json", exclude_defaults=True)


@dataclass(slots=True)
class Recorder:
    """A decider that writes down what goes through it, up to ``max_bytes`` in all; from there on it only passes things on.

    What is written down has to begin with a fresh decider: ``full`` says when it is time for one, and for another recorder.
    """

    decider: Decider
    policy: Policy
    emit: Callable[[str], None]
    max_bytes: int = 64 * 2**20
    full: bool = False
    _written: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._write({"danlu_recording": FORMAT, "policy": _POLICY.dump_python(self.policy, mode="json")})

    def _write(self, call: dict[str, Any]) -> None:
        if self.full:
            return
        line = _line(call)
        self._written += len(line)
        self.full = self._written > self.max_bytes
        if not self.full:
            self.emit(line)

    def node(self, capacity: NodeCapacity) -> None:
        """Says what a node has."""
        self._write({"call": "node", "capacity": _dump(_NODE, capacity)})
        self.decider.node(capacity)

    def quotas(self, quotas: Iterable[Quota]) -> None:
        """Says which quotas there are."""
        quotas = tuple(quotas)
        self._write({"call": "quotas", "quotas": _dump(_QUOTAS, quotas)})
        self.decider.quotas(quotas)

    def had(self, project: str, asks: Mapping[str, int], began: int, ended: int) -> None:
        """Says what a project held before."""
        self._write({"call": "had", "project": project, "asks": dict(asks), "began": began, "ended": ended})
        self.decider.had(project, asks, began, ended)

    def queued(self, job: Waiting) -> None:
        """Says that a job waits."""
        self._write({"call": "queued", "job": _dump(_WAITING, job)})
        self.decider.queued(job)

    def gone(self, job_id: str) -> None:
        """Says that a job does not wait any more."""
        self._write({"call": "gone", "job_id": job_id})
        self.decider.gone(job_id)

    def holds(self, attempt: Running) -> None:
        """Says that an attempt holds its seats."""
        self._write({"call": "holds", "attempt": _dump(_RUNNING, attempt)})
        self.decider.holds(attempt)

    def freed(self, attempt_id: str, now: int) -> None:
        """Says that an attempt has given back what it held."""
        self._write({"call": "freed", "attempt_id": attempt_id, "now": now})
        self.decider.freed(attempt_id, now)

    def decide(self, now: int) -> Plan:
        """Decides."""
        plan = self.decider.decide(now)
        self._write({"call": "decide", "now": now, "plan": _dump(_PLAN, plan)})
        return plan


@dataclass(frozen=True, slots=True)
class Replay:
    """What playing a recording again showed: how many calls and decisions, and the first decision that came out otherwise."""

    calls: int
    decisions: int
    difference: str | None = None


def replay(lines: Iterable[str], make: Callable[[Policy], Decider]) -> Replay:
    """Plays a recording to a fresh decider and compares each plan, byte for byte, up to the first difference.

    Raises:
        InvalidRequest: it is no recording, or a line of it is damaged; its number is told.
    """
    decider: Decider | None = None
    calls = decisions = 0
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # cut off while it was written
            break
        try:
            call = json.loads(line) if len(line) <= MAX_LINE else None
            if not isinstance(call, dict):
                raise ValueError("it is no JSON object")
            if decider is None:
                if call.get("danlu_recording") != FORMAT:
                    raise ValueError(f"it does not begin with danlu_recording {FORMAT}")
                decider = make(_POLICY.validate_python(call["policy"]))
                continue
            decided = _tell(decider, call)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise InvalidRequest(
                f"line {number} is not one of a recording: {str(error)[:300]}",
                next_step="a recording is made by `danlu simulate TRACE --record FILE`",
            ) from error
        calls += 1
        if decided is not None:
            decisions += 1
            if decided != line:
                told = f"line {number}, decision {decisions}, at {call['now']} ns: {_difference(line, decided)}"
                return Replay(calls, decisions, told)
    if decider is None:
        raise InvalidRequest("the recording is empty", next_step="make one: danlu simulate TRACE --record FILE")
    return Replay(calls, decisions)


def _tell(decider: Decider, call: Mapping[str, Any]) -> str | None:
    """Makes one call; returns the line of a decision as it comes out now."""
    match call["call"]:
        case "node":
            decider.node(_NODE.validate_python(call["capacity"]))
        case "quotas":
            decider.quotas(_QUOTAS.validate_python(call["quotas"]))
        case "had":
            asks = {str(name): int(amount) for name, amount in call["asks"].items()}
            decider.had(str(call["project"]), asks, int(call["began"]), int(call["ended"]))
        case "queued":
            decider.queued(_WAITING.validate_python(call["job"]))
        case "gone":
            decider.gone(str(call["job_id"]))
        case "holds":
            decider.holds(_RUNNING.validate_python(call["attempt"]))
        case "freed":
            decider.freed(str(call["attempt_id"]), int(call["now"]))
        case "decide":
            now = int(call["now"])
            return _line({"call": "decide", "now": now, "plan": _dump(_PLAN, decider.decide(now))})
        case other:
            raise ValueError(f"no call is named {other!r}")
    return None


def _difference(recorded: str, decided: str) -> str:
    """Returns where two lines differ."""
    pairs = zip(recorded, decided, strict=False)
    least = min(len(recorded), len(decided))
    at = next((place for place, (one, other) in enumerate(pairs) if one != other), least)
    begin = max(0, at - 60)
    return f"recorded …{recorded[begin : begin + SHOWN].rstrip()}\ndecided  …{decided[begin : begin + SHOWN].rstrip()}"
