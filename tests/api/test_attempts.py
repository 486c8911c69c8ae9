"""What a runner ships over HTTP: of an attempt with secrets, nothing is kept that holds one, whoever has written it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from danlu.blobs.streams import StreamKey
from danlu.database.engine import Transaction
from danlu.database.records import JOBS, SECRETS
from danlu.domain.secrets import MAX_LINES_OF_AN_ATTEMPT
from danlu.domain.specs import JobSpec
from danlu.services.attempts import MAX_HIDDEN_BYTES, MAX_LINE_BYTES
from danlu.services.vault import Vault
from tests.api.edge import Api
from tests.factories import make_secret

TOKEN = "hf_0123456789"
DIGITS = "170000"
QUOTED = 'pass"wörd'
HIDDEN = "*" * len(TOKEN)


@pytest.fixture
def told(api: Api) -> Api:
    """The running job has three secrets; one of them may be a time, one is written in another way in JSON."""

    def work(tx: Transaction) -> None:
        for name, value in (("DIGITS", DIGITS), ("QUOTED", QUOTED)):
            secret = api.new_id("s")
            SECRETS.add(tx, make_secret(secret, name=name, sealed=api.platform.vault.seal(value.encode(), secret)))
        job = JOBS.require(tx, api.ids["job"])
        spec = JobSpec.model_validate({**job.spec.model_dump(), "secrets": ["HF_TOKEN", "DIGITS", "QUOTED"]})
        JOBS.put(tx, job, job.evolved(now=job.updated_at, spec=spec))

    api.database.write(work)
    return api


def append(api: Api, piece: str, *, offset: int = 0, stream: str = "log") -> int:
    """Ships a piece; returns where the next one begins."""
    answer = api.call("attempts.append", actor="attempt", data=piece.encode(), stream=stream, query=f"?offset={offset}")
    assert answer.status == 200, answer.content
    at: int = answer.json()["offset"]
    return at


def kept(api: Api, stream: str = "log", *, size: int = 1 << 20) -> str:
    key = StreamKey("default", api.ids["attempt"], "main-0", stream)
    return api.platform.streams.read(key, 0, size).decode()


def test_a_log_holds_no_secret(told: Api, tmp_path: Path) -> None:
    lines = (f"17000000001 o. token: {TOKEN}", f"17000000002 e. {DIGITS}00", f"no head {TOKEN}",
             f"17000000003 o. {QUOTED} {TOKEN}{TOKEN}")  # fmt: skip
    piece = "".join(line + "\n" for line in lines)
    assert append(told, piece) == len(piece.encode())
    assert kept(told) == (
        f"17000000001 o. token: {HIDDEN}\n17000000002 e. ******00\nno head {HIDDEN}\n"
        f"17000000003 o. {'*' * len(QUOTED.encode())} {HIDDEN}{HIDDEN}\n"
    )
    assert append(told, piece) == len(piece.encode()), "the same piece again is there once"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_a_secret_is_found_where_a_piece_ends_or_a_line_is_cut(told: Api) -> None:
    whole = f"17 o. before\n17 o. {TOKEN}\n17 o+ {TOKEN[:5]}\n17 e. between\n17 o. {TOKEN[5:]} after\n"
    cut = whole.index(TOKEN) + 4
    at = append(told, whole[:cut])
    assert at == len("17 o. before\n"), "the line that is not whole yet comes with the next piece"
    assert append(told, whole[at:], offset=at) == len(whole)
    assert kept(told) == (
        f"17 o. before\n17 o. {HIDDEN}\n17 o+ *****\n17 e. between\n17 o. {HIDDEN[5:]} after\n"
    )  # fmt: skip


@pytest.mark.parametrize("ascii_only", [True, False])
def test_metrics_are_named_by_no_secret(told: Api, ascii_only: bool) -> None:
    names = (f"loss {TOKEN}", QUOTED, "accuracy")
    piece = "".join(
        json.dumps({"t": 17000000, "s": 170000, "m": {name: 0.5}}, ensure_ascii=ascii_only) + "\n" for name in names
    )
    assert append(told, piece, stream="metrics") == len(piece.encode())
    points = [json.loads(line) for line in kept(told, "metrics").splitlines()]
    assert [(point["t"], point["s"]) for point in points] == [(17000000, 170000)] * 3
    found = [name for point in points for name in point["m"]]
    assert (found[0], {*found[1]}, found[2]) == (f"loss {HIDDEN}", {"*"}, "accuracy")


def test_what_cannot_be_hidden_is_not_kept(told: Api) -> None:
    told.platform.vault = Vault(b"x" * 32, secrets.token_bytes)
    answer = told.call("attempts.append", actor="attempt", data=b"17 o. said\n")
    assert (answer.status, answer.json()["code"]) == (500, "VaultLocked")
    assert kept(told) == ""


class Turns:
    """Counts how often it is entered."""

    taken = 0

    def __enter__(self) -> None:
        self.taken += 1

    def __exit__(self, *error: object) -> None: ...


def test_of_a_long_piece_a_part_is_taken(told: Api) -> None:
    record = f"17 o. {TOKEN} {'x' * 60_000}\n"
    piece, at, parts = record * 20, 0, 0
    while at < len(piece):
        next_at = append(told, piece[at:], offset=at)
        assert 0 < next_at - at <= MAX_HIDDEN_BYTES
        at, parts = next_at, parts + 1
    assert (at, parts) == (len(piece), 5)
    assert kept(told, size=2 * len(piece)) == piece.replace(TOKEN, HIDDEN)


@pytest.mark.parametrize("stream", ["log", "metrics"])
def test_a_line_without_an_end_is_refused(told: Api, stream: str) -> None:
    point = json.dumps({"t": 17, "m": {f"{n:0300}": 0.5 for n in range(1000)}}) + "\n"
    assert append(told, point, stream=stream) == len(point), "the longest line that there is"
    for piece, status in (("x" * MAX_LINE_BYTES, 400), (" " * MAX_LINE_BYTES + "\n", 400), ("x" * 1000, 200)):
        answer = told.call(
            "attempts.append", actor="attempt", data=piece.encode(), stream=stream, query=f"?offset={len(point)}"
        )
        assert answer.status == status, answer.content
        assert status == 200 or "a line of" in answer.json()["detail"]
    assert told.platform.streams.size(StreamKey("default", told.ids["attempt"], "main-0", stream)) == len(point)


def test_secrets_with_too_many_lines_are_told(told: Api) -> None:
    value = "\n".join(f"line {n} of it" for n in range(MAX_LINES_OF_AN_ATTEMPT))

    def work(tx: Transaction) -> None:
        secret = told.new_id("s")
        sealed = told.platform.vault.seal(value.encode(), secret)
        SECRETS.add(tx, make_secret(secret, name="DIGITS", sealed=sealed, replaced_at=1))

    told.database.write(work)
    answer = told.call("attempts.append", actor="attempt", data=b"17 o. said\n")
    assert (answer.status, answer.json()["code"]) == (400, "InvalidRequest")
    assert "5,003 lines" in answer.json()["detail"]
    assert kept(told) == ""


def test_only_where_there_are_secrets_a_turn_is_waited_for(told: Api) -> None:
    two = told.platform.hiding
    with two, two:
        assert not two.acquire(blocking=False), "no more than two at a time"
    turns = told.platform.hiding = Turns()
    append(told, "17 o. said\n")
    assert turns.taken == 1
    job = told.job(told.ids["job"])
    told.database.write(
        lambda tx: JOBS.put(tx, job, job.evolved(now=job.updated_at, spec=job.spec.model_copy(update={"secrets": {}})))
    )
    append(told, "17 o. said\n", offset=11)
    assert turns.taken == 1
