"""Kubernetes' quantities and times as numbers. Pure."""

from __future__ import annotations

import datetime
from decimal import Decimal, InvalidOperation
from typing import Final

UNITS: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
SECOND_NS: Final = 1_000_000_000


def amount(text: object) -> Decimal:
    """Returns the number that ``1500m``, ``16Gi``, ``1e3`` or ``2`` means; 0 for what is none."""
    raw = str(text).strip() if text is not None else ""
    digits = raw.rstrip("KMGTPEiknum")
    unit = raw[len(digits) :]
    if unit == "E" and digits != raw and "E" in UNITS:
        digits, unit = raw[:-1], "E"
    try:
        found = Decimal(digits) * UNITS[unit]
    except (InvalidOperation, KeyError):
        return Decimal(0)
    return found if found.is_finite() else Decimal(0)


def milli(text: object) -> int:
    """Returns thousandths, rounded up."""
    return int(-(-amount(text) * 1000 // 1))


def whole(text: object) -> int:
    """Returns a whole number, rounded up."""
    return int(-(-amount(text) // 1))


def ns(text: object) -> int | None:
    """Returns the time of ``2026-01-31T12:00:00Z`` in ns UTC; None where there is none."""
    if not isinstance(text, str) or not text:
        return None
    try:
        at = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    found = (since.days * 86_400 + since.seconds) * SECOND_NS + since.microseconds * 1000
    return found if 0 <= found < 2**63 else None
