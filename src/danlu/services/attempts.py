"""What runners report over HTTP: the same records that a local runner leaves in its folder."""

from __future__ import annotations

import json
import re

from danlu.api import OffsetQuery
from danlu.blobs.streams import StreamKey
from danlu.database.records import ATTEMPTS
from danlu.domain.views import TextPage
from danlu.errors import InvalidRequest, NotAllowed
from danlu.runner.formats import PIECE
from danlu.runner.redaction import Redaction
from danlu.services import secrets
from danlu.services.context import Call
from danlu.services.logs import LOG
from danlu.services.metrics import METRICS

MAX_PIECE_BYTES = 4 * 2**20
RECORD = re.compile(rb"(\d+ ([a-z])(.) )?([^\n]*)\n")
"""Of a log: its head, where it has one, of which stream it is and what follows it; its text."""
NAME = re.compile(rb'"(?:[^"\\]|\\.)*"')
"""What can be a metric's name."""


def append(call: Call, attempt: str, task: str, stream: str, query: OffsetQuery, body: bytes) -> TextPage:
    """Appends a piece to one of the attempt's streams at ``offset`` and answers where the next piece begins.

    What is there already is skipped, so that repeating is harmless. Only the attempt itself may do so. Where the attempt has
    secrets they are hidden, as its runner was to do, and of a piece whole lines are taken: the next one brings the rest.

    Raises:
        NotAllowed: it is another attempt's stream.
        Conflict: the piece begins past the end of what is there.
        VaultLocked: the attempt's secrets cannot be opened, and so not be hidden.
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
    values = secrets.printable(call.platform.database, call.platform.vault, attempt)
    if values:
        whole = body[: body.rfind(b"\n") + 1]
        body = hidden_log(whole, Redaction(values)) if stream == LOG else hidden_metrics(whole, values)
    key = StreamKey(record.project, attempt, task, stream)
    call.platform.streams.append(key, query.offset, body)
    call.platform.hub.notify("logs")
    return TextPage(text="", offset=call.platform.streams.size(key), done=False)


def hidden_log(lines: bytes, redaction: Redaction) -> bytes:
    """Returns whole records of a stamped log without the secrets in their texts, also where one goes on in the next record.

    Their length and their heads stay: a time may look like a secret.
    """
    found = list(RECORD.finditer(lines))
    hidden = bytearray(lines)
    for stream in {record[2] for record in found}:
        own = [record for record in found if record[2] == stream]
        texts = redaction.of(b"".join(one[4] + (b"" if one[3] == PIECE else b"\n") for one in own))
        at = 0
        for one in own:
            hidden[one.start(4) : one.end(4)] = texts[at : at + len(one[4])]
            at += len(one[4]) + (one[3] != PIECE)
    return bytes(hidden)


def hidden_metrics(lines: bytes, values: tuple[str, ...]) -> bytes:
    """Returns whole points of a metrics stream without the secrets in their names, as long as they were."""
    words = [word.decode() for word in Redaction(values).words]
    written = [json.dumps(word, ensure_ascii=only)[1:-1] for word in words for only in (True, False)]
    redaction = Redaction(written)
    return NAME.sub(lambda name: redaction.of(name[0]), lines)
