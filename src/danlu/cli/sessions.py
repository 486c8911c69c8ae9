"""``danlu exec``: a command inside a running job."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter
from pydantic import ValidationError

from danlu.cli import exits, interactive
from danlu.cli.options import Common, Flag, one
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.domain.sessions import SessionRequest
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest
from danlu.runner import frames

if TYPE_CHECKING:
    from danlu.client.sessions import Session

SHELL: Final = ("/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh")
TaskName = Annotated[str | None, Parameter(help="inside this task, e.g. worker-1; the first one when left out")]


def execute(
    *words: Annotated[str, Parameter(help="the job, then the words to run", show=False)],
    stdin: Annotated[bool, Parameter(name=("--stdin", "-i"), help="send what comes on stdin"), Flag] = False,
    tty: Annotated[
        bool, Parameter(name=("--tty", "-t"), help="in a terminal, which this one is handed to; implies -i"), Flag
    ] = False,
    task: TaskName = None,
    common: Common | None = None,
) -> int:
    """Run a command inside a running job, and exit with its exit code.

    It runs as the job's user, in its folder, with its variables, GPUs and limits. It ends when the job ends, and
    when this command does. With -t and without words it is a shell.

    Example: danlu exec -it linear-7 -- bash
    """
    job, command = one(words[:1]), words[1:]
    messages = Messages()
    terminal = interactive.present() if tty else None
    if tty and terminal is None:
        messages.say("there is no terminal here: going on without one")
    if not command and terminal is None:
        raise InvalidRequest("there is no command to run", next_step=f"danlu exec {job} -- nvidia-smi   or: -it")
    request = request_of(command=command or SHELL, stdin=stdin or tty, terminal=terminal)
    from danlu.client.sessions import opened

    def started(facts: dict[str, Any]) -> None:
        if task is None and facts.get("tasks", 1) > 1:
            messages.say(f"in {facts['task']}, one of {facts['tasks']} tasks: --task names another")

    with connect(common, messages) as client, opened(client, job, request, task=task) as session:
        if request.stdin:
            threading.Thread(target=_feed, args=(session,), daemon=True, name="danlu-stdin").start()
        with interactive.handed_over(session.resize) if terminal else contextlib.nullcontext():
            messages.raw = terminal is not None
            end = session.run(_write, started)
        messages.raw = False
    if end.error:
        messages.say(end.error, "red" if end.exit_code in (126, 127) else "yellow")
    return exits.FAILED if end.exit_code is None else end.exit_code


def request_of(**fields: Any) -> SessionRequest:
    """Returns the request, or raises InvalidSpec that names what is wrong."""
    try:
        return SessionRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_spec(error, SessionRequest) from error


def _write(kind: bytes, data: bytes) -> None:
    stream = sys.stdout if kind == frames.STDOUT else sys.stderr
    stream.buffer.write(data)
    stream.flush()


def _feed(session: Session) -> None:
    """Sends standard input until it ends, or the session does."""
    try:
        while data := os.read(sys.stdin.fileno(), frames.DATA_BYTES):
            if not session.give(data):
                return
    except (OSError, ValueError):  # it is closed
        pass
    session.end_input()
