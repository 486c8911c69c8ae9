"""Job arrays at the terminal: followed by how many of their elements are where, and told in one line."""

from __future__ import annotations

from typing import Final

from danlu.cli import exits, output, wording
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S
from danlu.cli.terminal import Messages
from danlu.client.arrays import until_ended
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job

NAMED: Final = 10
ORDER: Final = ("running", "starting", "admitted", "stopping", "queued", "succeeded", "failed", "cancelled")


def conclude(client: Client, first: Job, messages: Messages, form: Format, *, detach: bool) -> int:
    """Waits for an array that was submitted, unless the user detached, and returns the exit code."""
    state: ArrayState = client.call("arrays.get", {"array": first.array_id or ""})
    name = state.array.name
    if not detach:
        messages.step("array", f"{name}: {wording.count(state.array.size, 'element')}, {name}-INDEX")
        try:
            state = waited(client, state, messages)
        except KeyboardInterrupt:
            messages.clear()
            messages.say(f"{name} goes on: danlu wait {name}     stop it: danlu stop {name}")
            raise
    if form in ("json", "yaml"):
        output.record(state, form)
    elif form == "name" and detach:
        output.write(f"array/{name}")
    elif detach:
        output.write(name)
        messages.say(f"wait for it with `danlu wait {name}`; one of them: `danlu logs -f {first.name}`")
    if detach:
        return exits.OK
    tell(state, messages)
    return code_of(state)


def waited(client: Client, state: ArrayState, messages: Messages, timeout_s: float | None = None) -> ArrayState:
    """Returns an array as it is when all of it has ended, or the time is over; meanwhile tells how far it is."""
    client.patience_s = FOLLOW_PATIENCE_S
    state = until_ended(
        client, state, timeout_s=timeout_s, told=lambda now: messages.status(f"{now.array.name}: {counts(now)}")
    )
    messages.clear()
    return state


def counts(state: ArrayState) -> str:
    """Returns ``3 running, 90 queued, 7 succeeded``."""
    there = [f"{state.counts[name]:,} {name}" for name in ORDER if state.counts.get(name)]
    missing = state.array.size - sum(state.counts.values())
    return ", ".join(there + ([f"{missing:,} not made yet"] if missing > 0 else []))


def tell(state: ArrayState, messages: Messages) -> None:
    """Says what became of an array."""
    more = len(state.unsuccessful) - NAMED
    named = ", ".join(state.unsuccessful[:NAMED]) + (f" and {more} more" if more > 0 else "")
    style = None if not named else "red" if state.counts.get("failed") else "yellow"
    messages.say(f"{state.array.name}: {counts(state)}" + (f": {named}" if named else ""), style)


def code_of(state: ArrayState) -> int:
    """Returns the exit code of an array: 0 only where all of it succeeded."""
    return exits.OK if state.counts.get("succeeded", 0) == state.array.size else exits.FAILED
