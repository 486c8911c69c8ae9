"""What a machine offers is found out, or the server does not start: never taken for nothing because a trial failed."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.errors import ExecutorUnavailable
from danlu.executors.local.isolation import TRIALS, tried

BUSY = {"error": "Cannot allocate memory", "rejected": False}
FOUND = {"limits": ["seccomp"], "missing": {}}
NEVER = {"error": "no mounts here", "rejected": True}


class Launcher:
    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.answers = list(answers)

    def __call__(self, _config: dict[str, Any], name: str) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if answer is None:
            raise ExecutorUnavailable(f"the launcher of {name} did not answer within 20 s")
        return answer


@pytest.mark.parametrize("answers", [[FOUND], [BUSY, FOUND], [None, BUSY, FOUND]])
def test_what_passes_is_tried_again(answers: list[dict[str, Any] | None]) -> None:
    assert tried({}, Launcher(*answers)) == FOUND


@pytest.mark.parametrize("failing", [BUSY, None])
def test_what_cannot_be_found_out_is_an_error(failing: dict[str, Any] | None) -> None:
    with pytest.raises(ExecutorUnavailable, match="could not be found out in 3 trials"):
        tried({}, Launcher(*[failing] * TRIALS))


def test_what_never_works_is_an_answer() -> None:
    assert tried({}, Launcher(NEVER, FOUND)) == NEVER
