"""From what was asked to a job that the platform knows: fields, code, one submission whatever answers are lost."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from danlu.api.bodies import RetryRequest
from danlu.client.transport import Client
from danlu.domain.frameworks import ROLES
from danlu.domain.ids import RANDOM_BITS, make_id
from danlu.domain.jobs import Job
from danlu.domain.specs import JobSpec
from danlu.domain.validation import invalid_spec
from danlu.errors import DanluError, InvalidSpec

SUBMIT_PATIENCE_S: Final = 30.0
"""How long a submission is repeated whose answer was lost: the job may run already."""


def new_job_id() -> str:
    """Returns an id for a job that does not exist yet."""
    return make_id("j", time.time_ns(), secrets.randbits(RANDOM_BITS))


def spec_of(fields: Mapping[str, Any]) -> JobSpec:
    """Returns the specification, or raises InvalidSpec that names each wrong field."""
    try:
        return JobSpec.model_validate(dict(fields))
    except ValidationError as error:
        wrong = invalid_spec(error, JobSpec)
        if stray := {name.replace("nodes", "node"): fields[name] for name in (*ROLES, "nodes") if name in fields}:
            roles = {name: given if isinstance(given, dict) else {"replicas": given} for name, given in stray.items()}
            wrong.next_step = f"did you mean roles={json.dumps(roles, default=str)}?   {wrong.next_step}".rstrip()
        raise wrong from error


def submit(client: Client, spec: JobSpec, job_id: str) -> Job:
    """Submits a new job under an id of its own and returns it."""
    with naming_what_is_unknown(job_id):
        found: Job = client.call("jobs.submit", {"job": job_id}, body=spec, once_sent_s=SUBMIT_PATIENCE_S)
    return found


def retry(client: Client, old: Job, changes: dict[str, Any], job_id: str) -> Job:
    """Submits an ended job again, with some fields given anew, and returns the new one."""
    request = RetryRequest(id=job_id, changes=changes)
    with naming_what_is_unknown(job_id):
        found: Job = client.call("jobs.retry", {"job": old.id}, body=request, once_sent_s=SUBMIT_PATIENCE_S)
    return found


def unknown(job_id: str) -> str:
    """Returns what to say where nobody knows whether a job was accepted."""
    return f"whether the job was accepted is not known; when the platform is back: danlu get job {job_id}"


@contextlib.contextmanager
def naming_what_is_unknown(job_id: str) -> Iterator[None]:
    """Names a new job's id where a submission fails whose answer was lost: the job may run in spite of that."""
    try:
        yield
    except DanluError as error:
        if error.details.get("sent"):
            error.next_step = f"{unknown(job_id)}\n{error.next_step}".rstrip()
        raise


def changed(old: JobSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a retry: a mapping adds to what there was, and what hangs on another field goes with it."""
    changes = dict(fields)
    for name in ("variables", "labels"):
        if name in fields:
            changes[name] = {**getattr(old, name), **fields[name]}
    if "secrets" in fields:
        given = fields["secrets"]
        uses = given if isinstance(given, Mapping) else {name: name for name in given}
        changes["secrets"] = {**{name: use.model_dump() for name, use in old.secrets.items()}, **uses}
    if "roles" in fields:
        known = {name: role.model_dump(mode="json", exclude_defaults=True) for name, role in old.roles.items()}
        changes["roles"] = known | {name: {**known.get(name, {}), **role} for name, role in fields["roles"].items()}
    if "retry" in fields:
        changes["retry"] = {**old.retry.model_dump(mode="json", exclude_none=True), **fields["retry"]}
    if "gpu" in fields:  # the range that it had before
        changes.setdefault("gpu_min", None)
    if "env" in fields:  # what belonged to the environment that it had before
        changes.setdefault("requirements", None)
        changes.setdefault("interpreter", None)
        changes.setdefault("image", None)
    elif "requirements" in fields:
        changes.update(env="python", interpreter=None, image=None)
    elif "image" in fields:
        changes.update(env="python", interpreter=None, requirements=None, python=None)
    return changes


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


def read_requirements(file: Path) -> str:
    """Returns a requirements file's text, or raises InvalidSpec."""
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidSpec(f"the requirements {file} cannot be read: {said}") from error
