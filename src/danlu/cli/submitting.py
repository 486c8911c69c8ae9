"""From what the user asked to a job that runs: check, send the code, submit, follow."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from danlu.api.bodies import LogsQuery
from danlu.cli import exits, output, wording
from danlu.cli.follow import Detached, Following
from danlu.cli.output import Format
from danlu.cli.terminal import Messages
from danlu.client import submitting
from danlu.client.submitting import new_job_id
from danlu.client.transport import Client
from danlu.domain.frameworks import meant_roles
from danlu.domain.jobs import Job, job_exit_code
from danlu.domain.resources import format_bytes
from danlu.domain.specs import JobSpec

if TYPE_CHECKING:
    from danlu.client.code import Sent

QUIET_S: Final = 0.3
"""What takes less needs no progress bar."""


def submit(client: Client, spec: JobSpec, messages: Messages) -> Job:
    """Submits a new job and returns it. Says so where one of its roles looks like a slip."""
    for role, meant in meant_roles(spec.convention, spec.roles).items():
        messages.say(f"{role} is a role of your own, without a framework: did you mean {meant}?", "yellow")
    job_id = new_job_id()
    with telling_what_is_unknown(job_id, messages):
        return submitting.submit(client, spec, job_id)


@contextlib.contextmanager
def telling_what_is_unknown(job_id: str, messages: Messages) -> Iterator[None]:
    """Says so where Ctrl-C comes before it is known whether a job was accepted."""
    try:
        yield
    except KeyboardInterrupt:
        messages.say(submitting.unknown(job_id))
        raise


def send_code(client: Client, folder: Path, messages: Messages) -> Sent:
    """Sends a folder with a progress bar."""
    from danlu.client.code import send

    begun = time.monotonic()

    def late() -> bool:
        return time.monotonic() - begun > QUIET_S

    def read(files: int, size_bytes: int) -> None:
        if late():
            messages.status(
                f"{'code':<13} reading {folder}: {wording.count(files, 'file')}, {format_bytes(size_bytes)}"
            )

    def progress(done: int, total: int) -> None:
        if late():
            messages.bar("code", done, total, f"{format_bytes(done)} of {format_bytes(total)}")

    messages.status(f"{'code':<13} reading {folder}")
    sent = send(client, folder, progress=progress, read=read)
    reused = max(0, sent.files - sent.sent_files)
    messages.step(
        "code",
        f"{wording.count(sent.files, 'file')}, {format_bytes(sent.sent_bytes)} sent, {reused:,} reused",
        time.monotonic() - begun,
    )
    for skipped in sent.skipped[:5]:
        messages.say(f"{'':<13} left out: {skipped}", "yellow")
    if not sent.files:
        messages.say(f"{'':<13} {folder} holds no files to send: is it the right folder?", "yellow")
    return sent


def tell_environment(client: Client, job: Job, messages: Messages) -> None:
    """Says which environment the job uses, where it is there already."""
    if job.environment_id is None:
        return
    begun = time.monotonic()
    try:
        env = client.call("environments.get", {"environment": job.environment_id})
    except KeyboardInterrupt:
        messages.say(f"{job.name} goes on: danlu logs -f {job.name}     stop it: danlu stop {job.name}")
        raise
    if env.state == "ready":
        messages.step("environment", f"{wording.environment(env)}  reused", time.monotonic() - begun)


def submitted(job: Job, messages: Messages, form: Format, flags: str) -> int:
    """Tells that a job was submitted whose user detached, and returns the exit code. Data is printed as ``form`` asks.

    ``flags``: those of ``options.again``, for the commands that are named.
    """
    if form in ("json", "yaml"):
        output.record(job, form)
    elif form == "name":
        output.write(f"job/{job.name}")
    else:
        output.write(job.name)
        messages.say(f"follow it with `danlu logs -f {job.name}{flags}`")
    return exits.OK


def conclude(
    client: Client, job: Job, messages: Messages, form: Format, *, logs: LogsQuery | None = None, flags: str = ""
) -> int:
    """Follows a submitted job and returns the exit code. Data is printed as ``form`` asks.

    ``logs``: which part of its output; all of it when left out. ``flags``: as of ``submitted``.
    """
    structured = form in ("json", "yaml")
    try:
        job = Following(client, job, messages, output=not structured, logs=logs).run()
    except Detached as left:
        messages.say(str(left))
        return left.code
    if structured:
        output.record(job, form)
    elif job.state != "succeeded":
        tell_end(job, messages, followed=True, flags=flags)
    sys.stdout.flush()
    return job_exit_code(job)


def tell_end(job: Job, messages: Messages, *, followed: bool = False, flags: str = "") -> None:
    """Says how a job ended that did not succeed, and what to look at; ``followed``: its output was just shown."""
    messages.say(f"{job.name} {wording.outcome(job)}", "red" if job.state == "failed" else "yellow")
    if job.message and not wording.says_nothing_new(job):
        said = wording.without_output(job.message) if followed else job.message
        messages.say("\n".join(f"  {line}" for line in said.splitlines()[-20:]))
    if job.state == "failed":
        messages.say(f"  more: danlu describe {job.name}{flags}     again: {wording.again(job)}{flags}")
