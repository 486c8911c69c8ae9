"""Runs a command and tells what went wrong in it: in words, never by a traceback that nobody asked for."""

from __future__ import annotations

import os
import sys
import time
import traceback

from danlu.cli import exits
from danlu.cli.commands import BY_NAME, build
from danlu.domain.validation import suggestion
from danlu.errors import DanluError, InvalidRequest


def execute(words: list[str]) -> int:
    """Runs one command and returns its exit code; whatever goes wrong is told on stderr."""
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has gone; the interpreter must not complain about that when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.PIPE_CLOSED
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except DanluError as error:
        if os.environ.get("DANLU_DEBUG") == "1":
            traceback.print_exc()
        show(error)
        return exits.code_of(error)
    except Exception as error:  # noqa: BLE001 - the edge: what is left is a fault of ours, and is written down
        _fault(error)
        return exits.FAILED
    return code


def show(error: DanluError) -> None:
    """Prints an error and what can be done now, on stderr."""
    from danlu.cli.terminal import paint

    head = paint("error:", "bold red", sys.stderr)
    print(f"{head} {error.message}", file=sys.stderr)
    if error.next_step:
        print("\n".join(f"  {line}" for line in error.next_step.splitlines()), file=sys.stderr)
    if error.status >= 500 and error.details.get("request_id"):
        print(f"  the server's log has more under {error.details['request_id']}", file=sys.stderr)


def _run(words: list[str]) -> int:
    from cyclopts import CycloptsError

    if not words[0].startswith("-") and words[0] not in BY_NAME:
        hint = suggestion(words[0], BY_NAME)
        raise InvalidRequest(
            f'there is no command "{words[0]}"', next_step=f"{hint}   all of them: danlu --help".strip()
        )
    try:
        result = build()(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        from danlu.cli.complaints import complaint

        raise complaint(error, words) from error
    return result if isinstance(result, int) else exits.OK


def _fault(error: Exception) -> None:
    text = traceback.format_exc()
    if os.environ.get("DANLU_DEBUG") == "1":
        print(text, file=sys.stderr)
        return
    from danlu.client.connection import cache_folder

    print(f"error: danlu itself failed: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr)
    file = cache_folder() / f"fault-{time.time_ns()}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError:
        print(text, file=sys.stderr)
        return
    print(f"  where it failed is written to {file}; DANLU_DEBUG=1 prints it", file=sys.stderr)
