"""What runners report over HTTP: the same records that a local runner leaves in its folder."""

from __future__ import annotations

import re

from danlu.api import OffsetQuery
from danlu.blobs.streams import StreamKey
from danlu.database.records import ATTEMPTS
from danlu.domain.views import TextPage
from danlu.errors import InvalidRequest, NotAllowed
from danlu.services.context import Call
from danlu.services.logs import LOG
from danlu.services.metrics import METRICS

MAX_PIECE_BYTES = 4 * 2**20


def append(call: Call, attempt: str, task: str, stream: str, query: OffsetQuery, body: bytes) -> TextPage:
    """Appends a piece to one of the attempt's streams at ``offset`` and answers where the next piece begins.

    What is there already is skipped, so that repeating is harmless. Only the attempt itself may do so.

    Raises:
        NotAllowed: it is another attempt's stream.
        Conflict: the piece begins past the end of what is there.
    """
    if call.actor.attempt_id != attempt:
        raise NotAllowed(f"{call.actor.name} may only write its own streams")
    if stream not in (LOG, METRICS) or not re.fullmatch(r"[a-z][a-z0-9]{0,30}-\d{1,6}", task):
        raise InvalidRequest(f"{task}/{stream} is not a stream: a task and log or metrics")
    if len(body) > MAX_PIECE_BYTES:
        raise InvalidRequest(f"a piece has at most {MAX_PIECE_BYTES} bytes; this one has {len(body)}")
    call.begin()
    record = call.platform.database.read(lambda tx: ATTEMPTS.require(tx, attempt))
    if all(known.name != task for known in record.tasks):
        raise InvalidRequest(f"attempt {attempt} has no task {task}")
    key = StreamKey(record.project, attempt, task, stream)
    call.platform.streams.append(key, query.offset, body)
    call.platform.hub.notify("logs")
    return TextPage(text="", offset=call.platform.streams.size(key), done=False)
