"""``danlu retry``: an ended job again, with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from danlu.api import RetryRequest
from danlu.cli.options import Asked, Common, Flag, Names, Output, Words, one
from danlu.cli.session import connect
from danlu.cli.submitting import (
    SUBMIT_PATIENCE_S,
    conclude,
    new_job_id,
    send_code,
    tell_environment,
    telling_what_is_unknown,
)
from danlu.cli.terminal import Messages
from danlu.domain.jobs import JobSpec
from danlu.errors import InvalidRequest


def retry(
    *job: Names,
    detach: Annotated[bool, Parameter(name=("--detach", "-d"), help="print the job's name and return"), Flag] = False,
    code: Annotated[Path | None, Parameter(help="send this folder instead of the code it had")] = None,
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", help="FIELD=VALUE of the specification; repeatable"), Words
    ] = (),
    output: Output = "table",
    asked: Asked | None = None,
    common: Common | None = None,
) -> int:
    """Run an ended job again: the same specification and checkpoints, with the fields that are given anew.

    Example: danlu retry gan-12 --memory 20GiB
    """
    name = one(job)
    fields = (asked or Asked()).fields()
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        old = client.call("jobs.get", {"job": name})
        changes = _changes(old.spec, fields) | _set(set_)
        if code is not None:
            changes["code"] = send_code(client, code, messages)
        request = RetryRequest(id=new_job_id(), changes=changes)
        with telling_what_is_unknown(request.id, messages):
            new = client.call("jobs.retry", {"job": old.id}, body=request, once_sent_s=SUBMIT_PATIENCE_S)
        tell_environment(client, new, messages)
        return conclude(client, new, messages, output, detach=detach)


def _changes(old: JobSpec, fields: dict[str, Any]) -> dict[str, Any]:
    changes = dict(fields)
    for name in ("variables", "labels"):
        if name in fields:
            changes[name] = {**getattr(old, name), **fields[name]}
    if "roles" in fields:
        known = {name: role.model_dump(mode="json", exclude_defaults=True) for name, role in old.roles.items()}
        changes["roles"] = known | {name: known.get(name, {}) | role for name, role in fields["roles"].items()}
    if "retry" in fields:
        changes["retry"] = {**old.retry.model_dump(mode="json", exclude_none=True), **fields["retry"]}
    if "env" in fields:  # what belonged to the environment that it had before
        changes.setdefault("requirements", None)
        changes.setdefault("interpreter", None)
    elif "requirements" in fields:
        changes.update(env="python", interpreter=None)
    return changes


def _set(words: tuple[str, ...]) -> dict[str, Any]:
    """Returns ``--set`` words as fields: a value that is JSON is taken as such, all else is text."""
    changes: dict[str, Any] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals or field not in JobSpec.model_fields:
            from danlu.domain.validation import suggestion

            raise InvalidRequest(
                f"--set {word!r}: {field or 'nothing'} is not a field of a job",
                next_step=suggestion(field, JobSpec.model_fields) or "write for example --set priority=5",
            )
        try:
            changes[field] = json.loads(value)
        except ValueError:
            changes[field] = value
    return changes
