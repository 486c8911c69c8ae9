"""A fault that repeats itself does not fill the disk."""

from __future__ import annotations

import logging

from danlu.server.log import PERIOD_S, RECORDS, RateLimit


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("danlu", logging.ERROR, "x.py", 1, "%s", (text,), None)


def test_only_so_many_pass_and_the_rest_is_counted() -> None:
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    assert sum(limit.filter(record("again")) for _ in range(RECORDS + 50)) == RECORDS
    now[0] = PERIOD_S
    after = record("later")
    assert limit.filter(after)
    assert after.getMessage() == "(50 records were left out) later"
    plain = record("plain")
    assert limit.filter(plain)
    assert plain.getMessage() == "plain"
