"""``danlu artifacts``: the files that a job left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from danlu.api.bodies import Paging
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.options import Common, Names, Output, one
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.artifacts import left_by
from danlu.domain.resources import format_bytes
from danlu.errors import NotFound

SHOWN: Final = 10
"""Attempts of a job that are looked at, the newest."""

app = App(name="artifacts", help="The files that a job left.", help_format="plaintext")


@app.command(name="ls", usage="Usage: danlu artifacts ls JOB [FLAGS]")
def ls(*job: Names, output: Output = "table", common: Common | None = None) -> int:
    """List what a job left, newest first.

    Example: danlu artifacts ls linear-7
    """
    with connect(common) as client:
        name = one(job)
        found = left_by(client, name)
    if output in ("json", "yaml"):
        out.records(found, output)
    elif output == "name":
        for artifact in found:
            out.write(f"artifact/{artifact.id}")
    elif found:
        now = time.time_ns()
        rows = [
            [
                artifact.name,
                artifact.attempt_id.rpartition("-")[2],
                "partial" if artifact.partial else "whole",
                str(artifact.files),
                format_bytes(artifact.size_bytes),
                wording.age(artifact.created_at, now),
                artifact.id,
                artifact.tree,
            ]
            for artifact in found
        ]
        headers = ["NAME", "ATTEMPT", "STATE", "FILES", "SIZE", "AGE", "ID", "TREE"]
        width = len(headers) if output == "wide" else len(headers) - 1
        out.table(headers[:width], [row[:width] for row in rows])
    else:
        Messages().say(f"{name} left nothing: a job's files are kept that it writes to $DANLU_OUTPUT_DIR")
    return 0


@app.command(name="get", usage="Usage: danlu artifacts get JOB [FLAGS]")
def get(
    *job: Names,
    to: Annotated[Path | None, Parameter(help="a folder that does not exist yet; ./JOB-outputs when left out")] = None,
    attempt: Annotated[int | None, Parameter(help="of this attempt; the newest that left any when left out")] = None,
    common: Common | None = None,
) -> int:
    """Download what a job left, and print the folder's name.

    Example: danlu artifacts get linear-7 --to results
    """
    from danlu.client.artifacts import fetch

    messages = Messages()
    with connect(common, messages) as client:
        found = client.call("jobs.get", {"job": one(job)})
        left = left_by(client, found.id)
        unkept = wording.not_kept(client.call("jobs.attempts", {"job": found.id}, query=Paging(limit=SHOWN)).items)
        left = [artifact for artifact in left if attempt is None or artifact.attempt_id == f"{found.id}-{attempt}"]
        if not left:
            which = "" if attempt is None else f" in attempt {attempt}"
            if unkept:
                raise NotFound(f"job {found.name} left nothing{which} yet", next_step="\n".join(unkept))
            raise NotFound(
                f"job {found.name} left nothing{which}" + (" yet: it has not ended" if found.live else ""),
                next_step="a job's files are kept that it writes to $DANLU_OUTPUT_DIR",
            )
        artifact = left[0]
        folder = to if to is not None else Path(f"{found.name}-{artifact.name}")

        def progress(files: int, size: int) -> None:
            messages.bar(
                "artifacts", size, artifact.size_bytes, f"{files:,} of {wording.count(artifact.files, 'file')}"
            )

        begun = time.monotonic()
        files, size = fetch(client, artifact, folder.expanduser().absolute(), progress=progress)
    messages.step("artifacts", f"{wording.count(files, 'file')}, {format_bytes(size)}", time.monotonic() - begun)
    for line in unkept:
        messages.say(f"{'':<13} {line}", "yellow")
    if artifact.partial:
        messages.say(f"{'':<13} partial: the attempt did not succeed, files may be missing or half written", "yellow")
    for skipped in artifact.skipped[:5]:
        messages.say(f"{'':<13} not kept: {skipped}", "yellow")
    out.write(str(folder))
    return 0
