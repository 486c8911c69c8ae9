"""What runners report over HTTP: the same records that a local runner leaves in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import BinaryIO

from danlu.api.bodies import AppendQuery, OffsetQuery
from danlu.blobs.streams import StreamKey
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS
from danlu.domain.environments import Environment, EnvironmentState
from danlu.domain.ids import job_of_attempt
from danlu.domain.secrets import MAX_LINES_OF_AN_ATTEMPT, lines_of
from danlu.domain.views import TextPage
from danlu.errors import DataDamaged, InvalidRequest, NotAllowed, NotFound, Unavailable
from danlu.runner.formats import PIECE
from danlu.runner.redaction import Redaction
from danlu.services import environments, secrets
from danlu.services.context import Call
from danlu.services.logs import LOG
from danlu.services.metrics import METRICS

Span = tuple[int, int]
MAX_PIECE_BYTES = 4 * 2**20
SKIPPED_BYTES = 2**20
MAX_HIDDEN_BYTES = 2**18
"""So much is taken at a time where there are secrets to hide, or a line that is longer."""
MAX_LINE_BYTES = 2**20
"""Of a point with 1,000 long names; a log's lines are far shorter."""
HIDDEN_AT_ONCE = 4_096
"""Texts of records, or names."""
RECORD = re.compile(rb"(\d+ ([a-z])(.) )?([^\n]*)\n")
"""Of a log: its head, where it has one, of which stream it is and what follows it; its text."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
"""A text in JSON; where a text does not end, which is no JSON, it looks for ever."""


def append(call: Call, attempt: str, task: str, stream: str, query: AppendQuery, body: bytes) -> TextPage:
    """Appends a piece to one of the attempt's streams at ``offset`` and answers where the next piece begins.

    What is there already is skipped, so that repeating is harmless; what a runner frees must be ``durable`` first. Only the
    attempt itself may do so. Where the attempt has secrets they are hidden, as its runner was to do, and of a piece whole
    lines are taken, not too much of it: the next one brings the rest.

    Raises:
        NotAllowed: it is another attempt's stream.
        InvalidRequest: its attempt has secrets, and they have too many lines, or the piece a line that is too long.
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
        with call.platform.hiding:
            body = _without_secrets(attempt, values, stream, body)
    key = StreamKey(record.project, attempt, task, stream)
    call.platform.streams.append(key, query.offset, body)
    if query.durable:
        call.platform.streams.sync(key)
    call.platform.hub.notify("logs")
    return TextPage(text="", offset=call.platform.streams.size(key), done=False)


def environment(call: Call, attempt: str, query: OffsetQuery) -> BinaryIO:
    """Opens the archive of the attempt's environment, read on to a byte; the caller closes it.

    All of it is read from its beginning, so that its end can be checked whatever it is sent from. Where it is lost or damaged
    it is asked for again: who wants it has to wait.

    Raises:
        NotAllowed: it is another attempt's.
        NotFound: its job has no environment that is packed.
        Unavailable: the archive is being packed again.
    """
    if call.actor.attempt_id != attempt:
        raise NotAllowed(f"{call.actor.name} may only fetch its own environment")
    job_id, _ = job_of_attempt(attempt)

    def find(tx: Transaction) -> Environment | None:
        job = JOBS.require(tx, job_id)
        return None if job.environment_id is None else ENVIRONMENTS.get(tx, job.environment_id)

    found = call.platform.database.read(find)
    if found is None or (found.archive is None and found.state is EnvironmentState.READY):
        raise NotFound(f"the job of attempt {attempt} has no environment that is packed for pods")
    file: BinaryIO | None = None
    try:
        if found.archive is None:
            raise DataDamaged("it is being built again")
        file = call.platform.blobs.open(found.project, found.archive.address)
        left = query.offset
        while left and (data := file.read(min(left, SKIPPED_BYTES))):
            left -= len(data)
    except (NotFound, DataDamaged) as error:
        if file is not None:
            file.close()
        environments.lost(call, found, error.message)
        raise Unavailable(
            f"the archive of environment {found.name} is being packed again: {error.message}", next_step="try again"
        ) from error
    return file


def _without_secrets(attempt: str, values: tuple[str, ...], stream: str, body: bytes) -> bytes:
    """Returns as many whole lines of a piece as are taken at a time, the attempt's secrets hidden."""
    if (count := sum(map(lines_of, values))) > MAX_LINES_OF_AN_ATTEMPT:
        raise InvalidRequest(
            f"the secrets of attempt {attempt} have {count:,} lines, those of their older values among them; "
            f"{MAX_LINES_OF_AN_ATTEMPT:,} are hidden at most",
            next_step="give them fewer lines (danlu secret set); older values go when the attempts that had them have ended",
        )
    whole = body[: body.rfind(b"\n", 0, MAX_HIDDEN_BYTES) + 1] or body[: body.find(b"\n", 0, MAX_LINE_BYTES) + 1]
    if not whole and len(body) >= MAX_LINE_BYTES:
        raise InvalidRequest(
            f"a line of {stream} has at most {MAX_LINE_BYTES:,} bytes where secrets are hidden; this has more"
        )
    return hidden_log(whole, Redaction(values)) if stream == LOG else hidden_metrics(whole, values)


def hidden_log(lines: bytes, redaction: Redaction) -> bytes:
    """Returns whole records of a stamped log without the secrets in their texts, also where one goes on in the next record.

    Their length and their heads stay: a time may look like a secret.
    """
    hidden = bytearray(lines)
    texts: dict[bytes | None, list[Span]] = {}
    for record in RECORD.finditer(lines):
        begin, end = record.span(4)
        own = texts.setdefault(record[2], [])
        if record[3] == PIECE:
            own.append((begin, end))
            continue
        own.append((begin, end + 1))
        if len(own) >= HIDDEN_AT_ONCE:
            _hide(hidden, own, redaction)
            own.clear()
    for own in texts.values():
        _hide(hidden, own, redaction)
    return bytes(hidden)


def hidden_metrics(lines: bytes, values: Iterable[str]) -> bytes:
    """Returns whole points of a metrics stream without the secrets in their names, as long as they were.

    A line that can be no point, which the runner writes none of, becomes asterisks.
    """
    words = [word.decode() for word in Redaction(values).words]
    redaction = Redaction(json.dumps(word, ensure_ascii=only)[1:-1] for word in words for only in (True, False))
    hidden = bytearray(lines)
    names: list[Span] = []
    begin = 0
    while begin < len(lines):
        end = lines.index(b"\n", begin)
        if _has_names(lines[begin:end]):
            names += (string.span() for string in STRING.finditer(lines, begin, end))
        else:
            hidden[begin:end] = b"*" * (end - begin)
        if len(names) >= HIDDEN_AT_ONCE:
            _hide(hidden, names, redaction)
            names.clear()
        begin = end + 1
    _hide(hidden, names, redaction)
    return bytes(hidden)


def _hide(data: bytearray, places: list[Span], redaction: Redaction) -> None:
    """Hides in ``data`` the secrets in what is at these places, put together in this order."""
    shown = b"".join(data[begin:end] for begin, end in places)
    hidden = redaction.of(shown)
    if hidden == shown:
        return
    at = 0
    for begin, end in places:
        data[begin:end] = hidden[at : at + end - begin]
        at += end - begin


def _has_names(line: bytes) -> bool:
    """Says whether a line is JSON, and has texts, as every point has."""
    if b'"' not in line:
        return False
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True
