"""``danlu run``: a command with this folder's code as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from danlu.cli import arrays
from danlu.cli.options import Asked, Common, Flag, Output, again
from danlu.cli.session import connect_or_start
from danlu.cli.submitting import conclude, send_code, submit, submitted, tell_environment
from danlu.cli.terminal import Messages
from danlu.client.submitting import code_folder, spec_of
from danlu.errors import InvalidRequest


def run(
    *command: Annotated[str, Parameter(help="the words to run; one word with spaces is a line for /bin/sh")],
    detach: Annotated[bool, Parameter(name=("--detach", "-d"), help="print the job's name and return"), Flag] = False,
    code: Annotated[Path | None, Parameter(help="the folder to send; the present one when left out")] = None,
    no_code: Annotated[bool, Parameter(help="send no folder"), Flag] = False,
    output: Output = "table",
    asked: Asked | None = None,
    common: Common | None = None,
) -> int:
    """Run a command with this folder's code as a job, follow it, and exit with its exit code.

    With --array it waits for all elements, and exits with 0 only if all of them succeeded.
    Starts a platform where none runs. Ctrl-C asks whether to stop the job or to leave it running.
    What the job prints goes to stdout and stderr; what danlu says goes to stderr.

    Example: danlu run --env tensorflow-1 --gpu 1 -- python train.py --lr 0.1
    """
    if not command:
        raise InvalidRequest("there is no command to run", next_step="danlu run -- python train.py   danlu run --help")
    if code is not None and no_code:
        raise InvalidRequest("--code and --no-code exclude each other")
    if not all(map(_is_text, command)):
        raise InvalidRequest(f"the command is not UTF-8 text: {ascii(command)[:200]}")
    fields = (asked or Asked()).fields()
    fields["command"] = command[0] if len(command) == 1 and len(command[0].split()) > 1 else list(command)
    spec = spec_of(fields)  # before anything is started or sent
    folder = None if no_code else code_folder(code)
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect_or_start(common, messages) as client:
        if folder is not None:
            sent = send_code(client, folder, messages)
            spec = spec.model_copy(update={"code": sent.tree, "git": sent.git})
        job = submit(client, spec, messages)
        tell_environment(client, job, messages)
        if spec.array is not None:
            return arrays.conclude(client, job, messages, output, detach=detach, flags=again(common))
        if detach:
            return submitted(job, messages, output, again(common))
        return conclude(client, job, messages, output, flags=again(common))


def _is_text(word: str) -> bool:
    """Whether a word is text, not bytes that are no UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
