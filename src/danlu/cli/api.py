"""``danlu api``: a request of the user's own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from danlu.api import MAX_JSON_BYTES
from danlu.cli import exits
from danlu.cli.options import Common
from danlu.cli.session import connect
from danlu.client.requests import require_path
from danlu.errors import InvalidRequest

DATA_HELP = "JSON; - reads stdin, @FILE a file"


def api(
    method: Annotated[str, Parameter(help="GET, POST, PUT or DELETE")],
    path: Annotated[str, Parameter(help="for example /v1/jobs?limit=5")],
    *,
    data: Annotated[str | None, Parameter(name=("--data", "-d"), allow_leading_hyphen=True, help=DATA_HELP)] = None,
    common: Common | None = None,
) -> int:
    """Send a request with this platform's key and print the answer; exit with 1 when it is an error.

    Example: danlu api POST /v1/jobs/linear-7/stop --data '{"grace": "5s"}'
    """
    if not re.fullmatch(r"[A-Za-z]{1,16}", method):
        raise InvalidRequest(f"{method!r} is not a method", next_step="danlu api GET /v1/jobs")
    require_path(path)
    content = None if data is None else _body(data)
    with connect(common) as client, client.raw(method.upper(), path, content) as (status, pieces):
        last = b"\n"
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            last = piece or last
        if not last.endswith(b"\n") and sys.stdout.isatty():
            sys.stdout.buffer.write(b"\n")
    if status >= 400:
        print(f"error: {method.upper()} {path} was answered with {status}", file=sys.stderr)
        return exits.FAILED
    return exits.OK


def _body(data: str) -> bytes:
    try:
        if data == "-":
            content = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
        elif data.startswith("@"):
            with Path(data[1:]).expanduser().open("rb") as file:
                content = file.read(MAX_JSON_BYTES + 1)
        else:
            content = data.encode(errors="surrogateescape")
        json.loads(content)
    except OSError as error:
        raise InvalidRequest(f"--data {data} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidRequest(f"--data is not JSON: {error}") from error
    return content
