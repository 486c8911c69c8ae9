"""``danlu blobs``: what a project stores that nothing refers to any more."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter
from pydantic import ValidationError

from danlu.api.bodies import PruneBlobsRequest
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.options import Common, Flag, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.domain.resources import format_bytes
from danlu.domain.validation import invalid_spec
from danlu.domain.views import PrunedBlobs

app = App(name="blobs", help="Stored bytes: code, outputs.", help_format="plaintext")


@app.command(name="prune")
def prune(
    *,
    unused_for: Annotated[str, Parameter(help="since they were stored; an hour at least")] = "7d",
    dry_run: Annotated[bool, Parameter(help="only say how many"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Remove the project's blobs that no job and no artifact refers to: what was uploaded for nothing.

    They are gone some minutes later; what a job comes to need meanwhile is kept.

    Example: danlu blobs prune --dry-run
    """
    try:
        request = PruneBlobsRequest.model_validate({"unused_for": unused_for, "dry_run": dry_run})
    except ValidationError as error:
        raise invalid_spec(error, PruneBlobsRequest) from error
    messages = Messages()
    with connect(common, messages) as client:
        pruned: PrunedBlobs = client.call("blobs.prune", body=request)
    if output in ("json", "yaml"):
        out.record(pruned, output)
        return 0
    verb = "would be removed" if dry_run else "will be removed in some minutes"
    out.write(f"{wording.count(pruned.blobs, 'blob')} {verb}, {format_bytes(pruned.size_bytes)}")
    return 0
