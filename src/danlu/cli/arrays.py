"""Job arrays at the terminal: followed by how many of their elements are where, and told in one line."""

from __future__ import annotations

from typing import Final

from danlu.cli import exits, output, wording
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S
from danlu.cli.terminal import Messages
from danlu.client.transport import Client
from danlu.client.waiting import until
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job

NAMED: Final = 10
ORDER: Final = ("running", "starting", "admitted", "stopping", "queued", "succeeded", "failed", "cancelled")


def conclude(client: Client, first: Job, messages: Messages, form: Format, *, detach: bool, flags: str = "") -> int:
    """Waits for an array that was submitted, unless the user detached, and returns the exit code.

    ``flags``: those of ``options.again``, for the commands that are named.
    """
    state: ArrayState = client.call("arrays.get", {"array": first.array_id or ""})
    if not detach:
        state = followed(client, state, messages)
    if form in ("json", "yaml"):
        output.record(state, form)
    elif form == "name" and detach:
        output.write(key(state))
    elif detach:
        output.write(state.array.name)
        messages.say(
            f"wait for it with `danlu wait {state.array.name}{flags}`; one of them: `danlu logs -f {first.name}{flags}`"
        )
    if detach:
        return exits.OK
    tell(state, messages)
    return code_of(state)


def followed(client: Client, state: ArrayState, messages: Messages) -> ArrayState:
    """Returns an array as it is when all of it has ended; meanwhile tells how far it is."""
    name = state.array.name
    messages.step("array", f"{name}: {wording.count(state.array.size, 'element')}, {name}-INDEX")
    client.patience_s = FOLLOW_PATIENCE_S
    try:
        state = until(client, state, told=lambda now: messages.status(so_far(now)))
    except KeyboardInterrupt:
        messages.clear()
        messages.say(f"{name} goes on: danlu wait {name}     stop it: danlu stop {name}")
        raise
    messages.clear()
    return state


def key(found: Job | ArrayState) -> str:
    """Returns ``job/NAME`` or ``array/NAME``."""
    return f"job/{found.name}" if isinstance(found, Job) else f"array/{found.array.name}"


def so_far(found: Job | ArrayState) -> str:
    """Returns how far a job or an array is, with its name."""
    if isinstance(found, ArrayState):
        return f"{found.array.name}: {counts(found)}"
    why = wording.why(found)
    return f"{found.name} is {found.state}{'' if why == '-' else f': {why}'}"


def counts(state: ArrayState) -> str:
    """Returns ``3 running, 90 queued (10 of them held), 7 succeeded``."""
    there = [f"{state.counts[name]:,} {name}{_held(state, name)}" for name in ORDER if state.counts.get(name)]
    missing = state.array.size - sum(state.counts.values())
    word = "never made" if state.array.stopped and not state.live else "not made yet"
    return ", ".join(there + ([f"{missing:,} {word}"] if missing > 0 else []))


def _held(state: ArrayState, name: str) -> str:
    if name != "queued" or not state.held:
        return ""
    return " and held" if state.held == state.counts[name] else f" ({state.held:,} of them held)"


def tell(state: ArrayState, messages: Messages) -> None:
    """Says what became of an array."""
    named = unsuccessful(state)
    style = None if not named else "red" if state.counts.get("failed") else "yellow"
    messages.say(f"{state.array.name}: {counts(state)}" + (f": {named}" if named else ""), style)


def unsuccessful(state: ArrayState) -> str:
    """Returns the names of the elements that failed or were cancelled, the first ones; "" for none."""
    more = state.counts.get("failed", 0) + state.counts.get("cancelled", 0) - len(state.unsuccessful[:NAMED])
    return ", ".join(state.unsuccessful[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def code_of(state: ArrayState) -> int:
    """Returns the exit code of an array: 0 only where all of it succeeded."""
    return exits.OK if state.counts.get("succeeded", 0) == state.array.size else exits.FAILED
