"""``danlu secret``: values that jobs get and nobody reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter
from pydantic import ValidationError

from danlu.api.bodies import Paging
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.nouns import take_away
from danlu.cli.options import Common, Output
from danlu.cli.session import connect, connect_or_start
from danlu.cli.terminal import Messages
from danlu.domain.secrets import MAX_VALUE_BYTES, SHORTEST_REDACTED, Secret, SecretRequest
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest

PAGE: Final = 500
Name = Annotated[str, Parameter(help="letters, digits and _, as a variable's, e.g. HF_TOKEN")]
app = App(name="secret", help="Values that jobs get and nobody reads.", help_format="plaintext")


@app.command(name="ls")
def ls(*, output: Output = "table", common: Common | None = None) -> int:
    """List the project's secrets: their names, never their values.

    Example: danlu secret ls
    """
    with connect(common) as client:
        found: tuple[Secret, ...] = client.call("secrets.list", query=Paging(limit=PAGE)).items
    found = tuple(sorted(found, key=lambda secret: secret.name))
    if output in ("json", "yaml"):
        out.records(found, output)
    elif output == "name":
        for secret in found:
            out.write(f"secret/{secret.name}")
    elif found:
        now = time.time_ns()
        out.table(
            ("NAME", "CHANGED", "BY"), [[s.name, wording.age(s.created_at, now), s.created_by or "-"] for s in found]
        )
    else:
        Messages().say("there are no secrets here; a new one: danlu secret set NAME")
    return 0


@app.command(name="set", usage="Usage: danlu secret set NAME [FLAGS]")
def set_one(
    name: Name,
    /,
    *,
    file: Annotated[Path | None, Parameter(help="a file with the value, e.g. a key; - is stdin")] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Give a secret a value: typed without being shown, or from stdin, or a file. Never as a word of the command.

    Example: danlu secret set HF_TOKEN
    """
    try:
        request = SecretRequest(value=_value(name, file))
    except ValidationError as error:
        raise invalid_spec(error, SecretRequest) from None
    messages = Messages(quiet=output in ("json", "yaml", "name"))
    with connect_or_start(common, messages) as client:
        secret = client.call("secrets.set", {"secret": name}, body=request)
    if output in ("json", "yaml"):
        out.record(secret, output)
    elif output == "name":
        out.write(f"secret/{secret.name}")
    else:
        messages.say(f"{name} is set; a job gets it by: danlu run --secret {name} -- COMMAND")
    if any(0 < len(line.strip().encode()) < SHORTEST_REDACTED for line in request.value.splitlines()):
        Messages().say(
            f"it has lines of less than {SHORTEST_REDACTED} bytes, which are not hidden where a job prints them",
            "yellow",
        )
    return 0


@app.command(name="rm", usage="Usage: danlu secret rm NAME [FLAGS]")
def rm(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Remove a secret. What runs keeps it; jobs that start later and need it fail.

    Example: danlu secret rm HF_TOKEN
    """
    return take_away("secrets.remove", {"secret": name}, f"secret/{name}", output, common)


def _value(name: str, file: Path | None) -> str:
    """Returns the value as the user gives it. The newline at the end of a line that was typed or piped is none of it."""
    if file is None and sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"{name}: ")
    try:
        if file is None or str(file) == "-":
            data = sys.stdin.buffer.read(MAX_VALUE_BYTES + 2)
        else:
            with file.expanduser().open("rb") as opened:
                data = opened.read(MAX_VALUE_BYTES + 2)
    except OSError as error:
        raise InvalidRequest(f"--file {file} cannot be read: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"the value of {name} is no UTF-8 text",
            next_step=f"base64 FILE | danlu secret set {name}   and let the job decode it",
        ) from None
    return text.removesuffix("\n").removesuffix("\r") if text.count("\n") == 1 else text
