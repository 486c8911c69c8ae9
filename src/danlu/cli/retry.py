"""``danlu retry``: an ended job again, with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from danlu.api.bodies import RetryRequest
from danlu.cli import arrays
from danlu.cli.options import Asked, Common, Flag, Names, Output, Words, again, one
from danlu.cli.session import connect
from danlu.cli.submitting import conclude, send_code, submitted, tell_environment, telling_what_is_unknown
from danlu.cli.terminal import Messages
from danlu.client import submitting
from danlu.client.arrays import of_either
from danlu.client.submitting import SUBMIT_PATIENCE_S
from danlu.domain.arrays import ArrayState
from danlu.domain.specs import JobSpec
from danlu.errors import Conflict, InvalidRequest


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

    Of a job array, the elements that failed or were cancelled.

    Example: danlu retry gan-12 --memory 20GiB
    """
    name = one(job)
    fields = (asked or Asked()).fields()
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        found = of_either(client, "get", name)
        of_array = isinstance(found, ArrayState)
        if isinstance(found, ArrayState):
            if not found.unsuccessful:
                name = found.array.name
                raise Conflict(
                    f"nothing of {name} has failed or was cancelled: {arrays.counts(found)}",
                    next_step=f"danlu wait {name}" if found.live else f"one of them again: danlu retry {name}-INDEX",
                )
            messages.step("again", arrays.unsuccessful(found))
        old = client.call("jobs.get", {"job": found.array.first}) if isinstance(found, ArrayState) else found
        changes = submitting.changed(old.spec, fields) | _set(set_)
        if code is not None:
            changes |= send_code(client, code, messages).fields()
        job_id = submitting.new_job_id()
        if of_array:
            request = RetryRequest(id=job_id, changes=changes)
            client.call("arrays.retry", {"array": old.array_id or ""}, body=request, once_sent_s=SUBMIT_PATIENCE_S)
            return arrays.conclude(client, old, messages, output, detach=detach, flags=again(common))
        with telling_what_is_unknown(job_id, messages):
            new = submitting.retry(client, old, changes, job_id)
        tell_environment(client, new, messages)
        if detach:
            return submitted(new, messages, output, again(common))
        return conclude(client, new, messages, output, flags=again(common))


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
