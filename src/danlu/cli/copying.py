"""``danlu cp``: files from and to a running job."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from danlu.cli import wording
from danlu.cli.options import Common
from danlu.cli.session import connect
from danlu.cli.sessions import TaskName
from danlu.cli.terminal import Messages
from danlu.domain.resources import format_bytes
from danlu.errors import InvalidRequest

if TYPE_CHECKING:
    from danlu.client.copying import Copied

BAR_EVERY_S: Final = 0.1
SHOWN: Final = 5
DRIVE: Final = re.compile(r"^[A-Za-z]:[\\/]")


def cp(
    source: Annotated[str, Parameter(help="JOB:PATH, or a file or folder here")],
    target: Annotated[str, Parameter(help="a path here, or JOB:PATH")],
    *,
    task: TaskName = None,
    common: Common | None = None,
) -> int:
    """Copy files or folders from or to a running job.

    A path in the job begins in its working folder. Into a folder that is there, a source is copied under its own
    name; FOLDER/ means its content. Each file is there whole or not at all. Links are left out.

    Example: danlu cp linear-7:logs/run.csv .
    """
    from danlu.client.copying import Remote, download, upload

    there, here = split(source), split(target)
    if (there is None) == (here is None):
        what = "both name a job" if there else "neither names a job"
        raise InvalidRequest(f"this copies between a job and here; {what}", next_step="danlu cp JOB:PATH .")
    messages = Messages()
    bar = _Bar(messages)
    begun = time.monotonic()
    with connect(common, messages) as client:
        if there is not None:
            done = download(client, Remote(*there, task), str(Path(target).expanduser()) + _slash(target), bar.show)
        else:
            done = upload(
                client, str(Path(source).expanduser()) + _slash(source), Remote(*(here or ("", "")), task), bar.show
            )
    text = f"{wording.count(done.files, 'file')}, {format_bytes(done.size_bytes)}"
    messages.step("copied", text, time.monotonic() - begun)
    for line in done.skipped[:SHOWN]:
        messages.say(f"{'':<13} left out: {line}", "yellow")
    if len(done.skipped) > SHOWN:
        messages.say(f"{'':<13} and {len(done.skipped) - SHOWN} more", "yellow")
    return 0


def split(word: str) -> tuple[str, str] | None:
    """Returns (job, path) of ``JOB:PATH``; None for a path here. One that has a colon is written as ``./a:b``."""
    head, colon, path = word.removeprefix("job/").partition(":")
    if not colon or "/" in head or "\\" in head or (os.name == "nt" and DRIVE.match(word)):
        return None
    if not head:
        raise InvalidRequest(f"{word!r} names no job", next_step="danlu cp JOB:PATH .   all jobs: danlu get jobs")
    return head, path


def _slash(path: str) -> str:
    """Returns the slash that says that a folder's content is meant, or a folder; a Path drops it."""
    return "/" if path.replace(os.sep, "/").endswith(("/", "/.")) else ""


class _Bar:
    """The progress bar, drawn ten times a second at most."""

    def __init__(self, messages: Messages) -> None:
        self._messages, self._shown_at = messages, 0.0

    def show(self, done: Copied, totals: Copied) -> None:
        now = time.monotonic()
        if now - self._shown_at < BAR_EVERY_S:
            return
        self._shown_at = now
        unit = f"{format_bytes(done.size_bytes)}, {done.files:,} of {wording.count(totals.files, 'file')}"
        self._messages.bar("copying", min(done.size_bytes, totals.size_bytes), totals.size_bytes, unit)
