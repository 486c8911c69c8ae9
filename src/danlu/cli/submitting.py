"""From what the user asked to a job that runs: check, send the code, submit, follow."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from danlu.cli import exits, output, wording
from danlu.cli.follow import Detached, Following
from danlu.cli.output import Format
from danlu.cli.terminal import Messages
from danlu.client.transport import Client
from danlu.domain.ids import RANDOM_BITS, make_id
from danlu.domain.jobs import Job, JobSpec, job_exit_code
from danlu.domain.resources import format_bytes
from danlu.domain.validation import invalid_spec
from danlu.errors import DanluError, InvalidSpec

SUBMIT_PATIENCE_S: Final = 30.0
"""How long a submission is repeated whose answer was lost: the job may run already."""


def new_job_id() -> str:
    """Returns an id for a job that does not exist yet."""
    return make_id("j", time.time_ns(), secrets.randbits(RANDOM_BITS))


def spec_of(fields: dict[str, Any]) -> JobSpec:
    """Returns the specification, or raises InvalidSpec that names each wrong field."""
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        raise invalid_spec(error, JobSpec) from error


def submit(client: Client, spec: JobSpec, messages: Messages) -> Job:
    """Submits a new job and returns it."""
    path = {"job": new_job_id()}
    with telling_what_is_unknown(path["job"], messages):
        return client.call("jobs.submit", path, body=spec, once_sent_s=SUBMIT_PATIENCE_S)  # type: ignore[no-any-return]


@contextlib.contextmanager
def telling_what_is_unknown(job_id: str, messages: Messages) -> Iterator[None]:
    """Names a new job's id where a submission fails whose answer was lost: the job may run in spite of that."""
    unknown = f"whether the job was accepted is not known; when the platform is back: danlu get job {job_id}"
    try:
        yield
    except DanluError as error:
        if error.details.get("sent"):
            error.next_step = f"{unknown}\n{error.next_step}".rstrip()
        raise
    except KeyboardInterrupt:
        messages.say(unknown)
        raise


def code_folder(given: Path | None) -> Path:
    """Returns the folder to send: the one given, else the present one, unless that is certainly not meant.

    Raises:
        InvalidSpec: it is the home folder or the root of the file system, which nobody means to send.
    """
    folder = (given or Path()).expanduser().absolute()
    if given is None and folder in (Path.home(), Path(folder.anchor)):
        raise InvalidSpec(
            f"the present folder {folder} is not one to send as code",
            next_step="go to your project's folder, name it: --code DIR, or send nothing: --no-code",
        )
    return folder


def send_code(client: Client, folder: Path, messages: Messages) -> str:
    """Sends a folder with a progress bar; returns its tree's address."""
    from danlu.client.code import send

    begun = time.monotonic()

    def progress(done: int, total: int) -> None:
        if time.monotonic() - begun > 0.3:
            messages.bar("code", done, total, f"{format_bytes(done)} of {format_bytes(total)}")

    messages.status(f"{'code':<13} reading {folder}")
    sent = send(client, folder, progress=progress)
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
    return sent.tree


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


def conclude(client: Client, job: Job, messages: Messages, form: Format, *, detach: bool) -> int:
    """Follows a submitted job, unless the user detached, and returns the exit code. Data is printed as ``form`` asks."""
    structured = form in ("json", "yaml")
    if detach:
        if structured:
            output.record(job, form)
        elif form == "name":
            output.write(f"job/{job.name}")
        else:
            output.write(job.name)
            messages.say(f"follow it with `danlu logs -f {job.name}`")
        return exits.OK
    try:
        job = Following(client, job, messages, output=not structured).run()
    except Detached as left:
        messages.say(str(left))
        return left.code
    if structured:
        output.record(job, form)
    elif job.state != "succeeded":
        tell_end(job, messages)
    sys.stdout.flush()
    return job_exit_code(job)


def tell_end(job: Job, messages: Messages) -> None:
    """Says how a job ended that did not succeed, and what to look at."""
    messages.say(f"{job.name} {wording.outcome(job)}", "red" if job.state == "failed" else "yellow")
    if job.message and not wording.says_nothing_new(job):
        messages.say("\n".join(f"  {line}" for line in job.message.splitlines()[-20:]))
    if job.state == "failed":
        messages.say(f"  more: danlu describe {job.name}     again: danlu retry {job.name}")
