"""What is done to the database of this machine's platform while its server is stopped: by a process beside this one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from danlu.client.connection import data_folder
from danlu.domain.databases import SECRET_PARAMETERS, DatabaseChange, DatabaseStatus
from danlu.errors import InvalidRequest, PlatformError, from_problem

T = TypeVar("T", DatabaseStatus, DatabaseChange)
Progress = Callable[[str, int, int], None]
END_TIMEOUT_S = 30.0


def status() -> DatabaseStatus:
    """Returns where the database is and which schema it has."""
    return _run(DatabaseStatus, "status")


def change(verb: str, progress: Progress, *, to: str | None = None, file: Path | None = None) -> DatabaseChange:
    """Does something to the database, and returns what came of it.

    Raises:
        InvalidRequest: ``to`` has a password, which everybody on the machine could read.
        DanluError: it was not done.
    """
    words: list[str] = []
    if to is not None:
        require_no_password(to)
        words += ["--to", to]
    if file is not None:
        words += ["--file", str(file.expanduser().absolute())]
    return _run(DatabaseChange, verb, *words, progress=progress)


def require_no_password(url: str) -> None:
    """Raises InvalidRequest if an address has a password; its text is not repeated."""
    # not by the rules of addresses: a password may have / or ? or # in it, against them
    user, at, _ = url.partition("://")[2].rpartition("@")
    names = re.split(r"[?&]", url)[1:]
    secret = bool(at and ":" in user) or any(
        name.partition("=")[0].strip().lower() in SECRET_PARAMETERS for name in names
    )
    if secret:
        raise InvalidRequest(
            "the address has a password, and the command line can be read by everybody on this machine",
            next_step="change the password, and leave it out here: PGPASSWORD or ~/.pgpass has it; or leave --to out, and "
            "put the whole address into DANLU_DATABASE_URL or into the file that DANLU_DATABASE_URL_FILE names",
        )


def _run(returns: type[T], verb: str, *words: str, progress: Progress = lambda *_: None) -> T:
    if not hasattr(os, "fork"):
        raise PlatformError("the platform runs on Linux only", next_step="run this on the platform's machine")
    home = data_folder()
    command = [sys.executable, "-P", "-m", "danlu.server.offline", verb, "--home", str(home), *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in _lines(process):
                if "error" in line:
                    raise from_problem(line["error"], int(line["error"].get("status", 503)))
                if "done" in line:
                    return returns.model_validate(line["done"])
                progress(*line["progress"])
        except BaseException:
            # what is broken off leaves nothing; Ctrl-C has reached the process too
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
            process.kill()
            raise
    raise PlatformError(f"danlu db {verb} ended without a word (exit code {process.returncode}); what it said is above")


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    if process.stdout is not None:
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found
