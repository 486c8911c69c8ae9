"""Output that is looked through once more where it arrives: whatever a job sends, it takes neither long nor much memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import pytest

from danlu.runner.redaction import Redaction
from danlu.services.attempts import hidden_log, hidden_metrics

TOKEN = "hf_0123456789"
TIMEOUT_S = 100


MANY = "tuple(f'{n:05} is a line of a secret' for n in range(5_000))"


@pytest.mark.parametrize(
    ("values", "piece", "kept"),
    [
        ("(TOKEN,)", r"""b'"' + b'\\"' * 500_000 + b'\n'""", "asterisks"),
        ("(TOKEN,)", r"""(b'"' + b'\\"' * 120_000 + b'\n') * 4""", "asterisks"),
        ("(TOKEN,)", r"""b'{"m":{"' + b'\\"' * 500_000 + b'\n'""", "asterisks"),
        ("(TOKEN,)", r"""b'[' * 1_000_000 + b'"\n'""", "asterisks"),
        (MANY, r"""b'[' + b'"",' * 300_000 + b'""]\n'""", "all"),
    ],
)  # fmt: skip
def test_no_names_are_looked_through_for_ever(values: str, piece: str, kept: str) -> None:
    """In a process of its own, as nothing else can run, nor end it, while such a look takes."""
    program = (
        f"from danlu.services.attempts import hidden_metrics\nTOKEN = {TOKEN!r}\npiece = {piece}\n"
        f"kept = hidden_metrics(piece, {values})\n"
        "print('all' if kept == piece else 'asterisks' if kept == b''.join("
        "b'*' * (len(line) - 1) + b'\\n' for line in piece.splitlines(True)) else kept[:100])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, kept + "\n"), done.stderr


@pytest.mark.parametrize("head", [b"", b"1 o. ", b"1 o+ "])
def test_records_of_a_log_are_not_kept_in_memory(head: bytes) -> None:
    piece = (head + b"\n") * 2**17
    redaction = Redaction([TOKEN])
    tracemalloc.start()
    try:
        assert hidden_log(piece, redaction) == piece
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(piece) + (2**25 if head.endswith(b"+ ") else 2**21)


@pytest.mark.parametrize("line", [TOKEN, f'{{"m":{{"{TOKEN}":1}}', f'"{TOKEN}', f"{{{TOKEN}}}", f'\x01"{TOKEN}"'])
def test_what_is_no_point_is_not_kept(line: str) -> None:
    point = json.dumps({"t": 1, "s": None, "m": {"loss": 0.5}})
    piece = f"{line}\n\n{point}\n".encode()
    assert hidden_metrics(piece, (TOKEN,)) == f"{'*' * len(line)}\n\n{point}\n".encode()


def test_secrets_are_hidden_in_every_batch() -> None:
    lines = [f"{n} {'eo'[n % 2]}. {TOKEN if n % 100 == 0 else 'said'}\n" for n in range(20_000)]
    kept = hidden_log("".join(lines).encode(), Redaction([TOKEN])).decode()
    assert kept == "".join(lines).replace(TOKEN, "*" * len(TOKEN))
    points = [json.dumps({"t": n, "m": {TOKEN if n % 100 == 0 else "loss": 1}}) + "\n" for n in range(20_000)]
    kept = hidden_metrics("".join(points).encode(), (TOKEN,)).decode()
    assert kept == "".join(points).replace(TOKEN, "*" * len(TOKEN))
