"""Metrics in what programs print: lines of real training logs, and lines that only look like it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.runner.printed import MAX_LINE_BYTES, MAX_PAIRS, parse

METRICS = [
    ("loss: 0.1 acc=0.9", None, {"loss": 0.1, "acc": 0.9}),
    ("loss:0.5", None, {"loss": 0.5}),
    ("loss = .5, acc = 5.", None, {"loss": 0.5, "acc": 5.0}),
    ("lr=1e-05 grad_norm=1.5E+3", None, {"lr": 1e-05, "grad_norm": 1500.0}),
    ("step=3 loss=-0.25", 3.0, {"loss": -0.25}),
    ("[epoch=2, loss=0.75]", 2.0, {"loss": 0.75}),
    ("epoch=1 step=300 loss=2", 300.0, {"loss": 2.0}),
    ("Epoch: 3/10 loss: 0.4", 3.0, {"loss": 0.4}),
    ("Epoch [3/10], Step [100/500], Loss: 0.2512", 100.0, {"Loss": 0.2512}),
    ("Step 5: loss = .5", 5.0, {"loss": 0.5}),
    ("Iteration 20, lr = 0.01", 20.0, {"lr": 0.01}),
    ("GLOBAL_STEP=7 epoch=1 Loss=1", 7.0, {"Loss": 1.0}),
    ("32/32 [==============================] - 1s 5ms/step - loss: 0.1234 - accuracy: 0.98 - val_loss: 2.1e-1", None,
     {"loss": 0.1234, "accuracy": 0.98, "val_loss": 0.21}),
    ("\x1b[1m32/32\x1b[0m \x1b[32m━━━━\x1b[0m 0s 2ms/step - loss: 0.5", None, {"loss": 0.5}),
    ("{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 1.5}", 1.5, {"loss": 0.5, "learning_rate": 1e-05}),
    ('{"step": 4, "loss": 0.25}', 4.0, {"loss": 0.25}),
    ("INFO:tensorflow:loss = 0.5, step = 100 (0.2 sec)", 100.0, {"loss": 0.5}),
    ("INFO:root:loss: 0.5", None, {"loss": 0.5}),
    ("I1123 10:00:00.123456 140 train.py:12] loss = 0.5, step = 100", 100.0, {"loss": 0.5}),
    ("2024-01-01 12:30:45,123 INFO train: loss=0.5 | acc=0.1", None, {"loss": 0.5, "acc": 0.1}),
    ("accuracy: 95%", None, {"accuracy": 95.0}),
    ("Final loss: 0.5.", None, {"loss": 0.5}),
    ("(loss=0.5)", None, {"loss": 0.5}),
    ("train/loss: 0.5 val-acc@1=3 top.5=2", None, {"train/loss": 0.5, "top.5": 2.0}),
    ("loss: inf, other: -inf", None, {"loss": math.inf, "other": -math.inf}),
]  # fmt: skip

NOTHING = [
    "", "hello", "12:30:45", "eta: 0:00:05", "at 2024-01-01T12:30:45Z", "http://host:80/", "see http://host:8080/x?a=b",
    "file.py:12: error", "{'loss': 'high'}", "loss: high", "loss: infinite", "loss=nano", "time=0.5s", "x: 1,234.5",
    "shape: (3, 4)", "a == 3", "loss:", "= 3", ": 3", "x: 0x1f", "version: 1.2.3", "Collecting numpy==1.26.4",
    "train.py:12 begins", "train.py:main:12 begins", "localhost:8080/",
    "uid=0(root) gid=0(root)", "🙂: 3", "loss: 1_000",
]  # fmt: skip


@pytest.mark.parametrize(("line", "step", "values"), METRICS)
def test_metrics_are_found(line: str, step: float | None, values: dict[str, float]) -> None:
    assert parse(line.encode()) == (step, values)


@pytest.mark.parametrize("line", NOTHING)
def test_nothing_is_found(line: str) -> None:
    assert parse(line.encode())[1] == {}


def test_nan_is_a_number() -> None:
    _, values = parse(b"loss: nan")
    assert math.isnan(values["loss"])


def test_a_line_gives_a_bounded_number_of_metrics() -> None:
    line = " ".join(f"m{number}=1" for number in range(MAX_PAIRS * 2)).encode()
    assert len(parse(line)[1]) == MAX_PAIRS
    assert parse(b"loss=1 " + b"x" * MAX_LINE_BYTES) == (None, {})


@given(st.binary(max_size=300))
def test_any_bytes_can_be_parsed(line: bytes) -> None:
    step, values = parse(line)
    assert step is None or isinstance(step, float)
    assert all(isinstance(value, float) and name.isascii() for name, value in values.items())


@given(st.floats())
def test_a_number_is_what_was_printed(value: float) -> None:
    found = parse(f"loss: {value!r}".encode())[1]["loss"]
    assert found == value or (math.isnan(found) and math.isnan(value))
