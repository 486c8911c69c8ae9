"""``danlu wait``: until jobs are in a state, or have ended."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import Parameter

from danlu.cli import arrays, exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Names, Output, again, several
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.submitting import tell_end
from danlu.cli.terminal import Messages
from danlu.client.arrays import of_either
from danlu.client.transport import Client
from danlu.client.waiting import until
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job, JobState, job_exit_code, reached
from danlu.domain.resources import parse_duration
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest

ENDED: Final = "ended"
MAX_JOBS: Final = 64


def wait(
    *job: Names,
    for_: Annotated[
        str, Parameter(name="--for", help="ended, or a state such as running or succeeded; also state=running")
    ] = ENDED,
    timeout: Annotated[str | None, Parameter(help="give up after this time, e.g. 10m; exit code 124")] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Wait until jobs, or all elements of arrays, have ended, or jobs are in a state, all of them.

    Exits with the job's own exit code; with --for with 0 as soon as the state has come, and with the job's exit code, or 1,
    once it can no longer come. A job that has succeeded was running. Of several jobs: the first exit code that is not 0, in
    the order in which they are named. Of an array: 0 if all of its elements succeeded, else 1.

    Example: danlu wait ps-test --for running --timeout 10m
    """
    state = _state(for_)
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise InvalidRequest(f"--timeout: {error}") from error
    names = list(dict.fromkeys(several(job)))
    if len(names) > MAX_JOBS:
        raise InvalidRequest(f"{len(names)} jobs are named: at most {MAX_JOBS} are waited for at once")
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        found = [of_either(client, "get", name) for name in names]
        many = [one for one in found if isinstance(one, ArrayState)]
        if many and state is not None:
            raise InvalidRequest(f"{many[0].array.name} is an array: its end can be waited for, not --for {state}")
        client.patience_s = FOLLOW_PATIENCE_S
        found = _all(client, found, state, timeout_s, messages)
    if output in ("json", "yaml"):
        if len(found) == 1:
            out.record(found[0], output)
        else:
            out.records(found, output)
    for one in found if output == "name" else ():
        out.write(arrays.key(one))
    for one in found:
        if isinstance(one, Job):
            _tell(one, state, timeout, messages, again(common))
        else:
            arrays.tell(one, messages)
    codes = [_code(one, state) for one in found]
    return exits.TIMED_OUT if exits.TIMED_OUT in codes else next((code for code in codes if code), exits.OK)


def _state(word: str) -> JobState | None:
    """Returns the state that ``--for`` names; None for the end."""
    name = word.removeprefix("state=")
    if name == ENDED:
        return None
    if name not in set(JobState):
        every = [ENDED, *JobState]
        raise InvalidRequest(
            f"--for {word!r} is not a job's state",
            next_step=f"{suggestion(name, every)}   there are: {', '.join(every)}".strip(),
        )
    return JobState(name)


def _all(
    client: Client,
    wanted: Sequence[Job | ArrayState],
    state: JobState | None,
    timeout_s: float | None,
    messages: Messages,
) -> list[Job | ArrayState]:
    """Returns them as each was when its own waiting was over. They are waited for side by side: a state can pass."""
    heard: queue.SimpleQueue[tuple[int, Job | ArrayState | Exception, bool]] = queue.SimpleQueue()

    def work(at: int) -> None:
        try:
            over = until(
                client, wanted[at], state=state, timeout_s=timeout_s, told=lambda now: heard.put((at, now, False))
            )
            heard.put((at, over, True))
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that can tell it
            heard.put((at, error, True))

    for at in range(len(wanted)):
        threading.Thread(target=work, args=(at,), daemon=True, name=f"danlu-wait-{at}").start()
    found = [*wanted]
    waiting = set(range(len(found)))
    while waiting:
        at, answer, over = heard.get()
        if isinstance(answer, Exception):
            messages.clear()
            raise answer
        found[at] = answer
        if over:
            waiting.discard(at)
        if waiting:
            more = f"   ({len(found) - len(waiting)} of {len(found)} done)" if len(found) > 1 else ""
            messages.status(arrays.so_far(found[min(waiting)]) + more)
    messages.clear()
    return found


def _tell(job: Job, state: JobState | None, timeout: str | None, messages: Messages, flags: str) -> None:
    if job.live and not reached(job, state):
        until_what = "has not ended" if state is None else f"is not {state}"
        messages.say(f"{job.name} {until_what} after {timeout}: it is {job.state}")
    elif job.live or job.state == "succeeded":
        messages.say(f"{job.name} {wording.outcome(job) if not job.live else f'is {job.state}'}")
    else:
        tell_end(job, messages, flags=flags)


def _code(job: Job | ArrayState, state: JobState | None) -> int:
    if isinstance(job, ArrayState):
        return exits.TIMED_OUT if job.live else arrays.code_of(job)
    if reached(job, state):
        return job_exit_code(job) if state is None else exits.OK
    return exits.TIMED_OUT if job.live else job_exit_code(job) or exits.FAILED
