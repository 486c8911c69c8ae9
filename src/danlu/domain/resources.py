"""Quantities: CPU in thousandths of a core, memory in bytes, GPUs by count and kind; parsed, printed, added, compared."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from danlu.domain.records import Value

UNITS: Final = {
    "": 1,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "pi": 2**50,
}  # fmt: skip
MAX_BYTES: Final = 2**60
LEAST_BARE_BYTES: Final = 2**20
"""A text that is a smaller number without a unit is taken for a slip."""
MAX_CPU: Final = 1_000_000
MAX_GPUS: Final = 4096
GPU_KIND_PATTERN: Final = r"^[a-z0-9][-a-z0-9_.]{0,62}$"
MAX_TEXT: Final = 64
"""No quantity is longer; what a million digits cost is never found out."""
_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]i?)?b?\s*$", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,2})?m?", re.IGNORECASE)
_RANGE_SLIP = re.compile(r" ?([0-9]{1,4}) ?(?:-|:|,|to) ?([0-9]{1,4}) ?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


def _short(text: object) -> str:
    """Returns a number or a text as a text without spaces around it; nothing where it is too long to be a quantity."""
    bits = text.bit_length() if isinstance(text, int) else 0
    raw = "" if bits > MAX_TEXT * 4 else str(text).strip()
    return raw if len(raw) <= MAX_TEXT else ""


def parse_bytes(text: object, noun: str = "memory") -> int:
    """Returns bytes from ``16GiB``, ``16Gi``, ``500MB``, ``1.5g`` or a whole number.

    ``K M G T P`` are powers of 1000, ``Ki Mi Gi Ti Pi`` powers of 1024; a ``B`` may follow; case does not matter.

    Raises:
        ValueError: it is not an amount of the noun, or not within 1 byte .. 1 EiB; or a text lacks its unit, most likely:
            nobody means 4 bytes.
    """
    raw = _short(text) if isinstance(text, str | int) and not isinstance(text, bool) else ""
    match = _QUANTITY.match(raw)
    if match is None:
        raise ValueError(f"{text!r:.80} is not an amount of {noun}: write for example 512MiB or 16GiB")
    number, unit = match.groups()
    amount = int(Decimal(number) * UNITS[(unit or "").lower()])
    if not 1 <= amount <= MAX_BYTES:
        raise ValueError(f"{text!r} is out of range: from 1 byte to 1 EiB")
    if isinstance(text, str) and raw[-1].isdigit() and amount < LEAST_BARE_BYTES:
        meant = f"{raw}{'GiB' if amount < 1024 else 'MiB' if amount < 1024**2 // 8 else 'KiB'}"
        raise ValueError(f"{text!r} has no unit and would be {amount} B: did you mean {meant}?")
    return amount


def parse_cpu(text: object) -> int:
    """Returns thousandths of a core from ``2``, ``0.5`` or ``500m``.

    Raises:
        ValueError: it is not an amount of CPU, or not within 0.001 .. 1,000,000 cores.
    """
    try:
        if isinstance(text, bool):
            raise TypeError
        raw = _short(text)
        if not _NUMBER.fullmatch(raw):
            raise ValueError
        milli = Decimal(raw[:-1]) if raw.endswith("m") else Decimal(raw) * 1000
    except (TypeError, ValueError):
        raise ValueError(f"{text!r:.80} is not an amount of CPU: write for example 2, 0.5 or 500m") from None
    if 1 <= milli <= MAX_CPU * 1000 and milli != int(milli):
        raise ValueError(f"{text!r} is finer than a thousandth of a core: write for example 2, 0.5 or 500m")
    if not 1 <= milli <= MAX_CPU * 1000:
        raise ValueError(f"{text!r} cores are out of range: from 0.001 to 1,000,000")
    return int(milli)


def parse_duration(text: object) -> float:
    """Returns seconds from ``90``, ``1.5`` (seconds), ``30s``, ``15m``, ``2h``, ``1h30m`` or ``3d``.

    Raises:
        ValueError: it is not a duration, or not within 1 ms .. 10 years.
    """
    seconds: Decimal | None = None
    raw = _short(text).lower() if isinstance(text, str | int | float) and not isinstance(text, bool) else ""
    if isinstance(text, int | float) and raw:
        seconds = Decimal(raw)
    elif isinstance(text, str):
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", raw):
            seconds = Decimal(raw)
        elif re.fullmatch(rf"({_DURATION.pattern})+", raw):
            seconds = sum((Decimal(n) * _DURATION_UNITS[u] for n, u in _DURATION.findall(raw)), Decimal(0))
    if seconds is None or not seconds.is_finite():
        raise ValueError(f"{text!r:.80} is not a duration: write for example 90s, 15m, 2h or 1h30m")
    if not Decimal("0.001") <= seconds <= 315_360_000:
        raise ValueError(f"{text!r} is out of range: from 1ms to 3650d")
    return float(seconds)


def format_bytes(amount: int) -> str:
    """Returns ``16.0 GiB``; below 1 KiB ``512 B``."""
    size, unit = float(amount), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if abs(size) < 1024 or unit == "EiB":
            break
        size /= 1024
    return f"{amount} B" if unit == "B" else f"{size:.1f} {unit}"


def exact_bytes(amount: int) -> str:
    """Returns bytes as ``parse_bytes`` reads them, nothing rounded, in the largest unit of them all: ``4GB``, ``1536MiB``."""
    unit = max((unit for unit in UNITS if amount % UNITS[unit] == 0), key=UNITS.__getitem__)
    return f"{amount // UNITS[unit]}{unit[:1].upper()}{unit[1:]}B"


def format_cpu(milli: int) -> str:
    """Returns ``2`` or ``0.5``: cores without needless zeros."""
    return f"{Decimal(milli) / 1000:f}".rstrip("0").rstrip(".") if milli % 1000 else str(milli // 1000)


Cores = Annotated[float, BeforeValidator(lambda text: parse_cpu(text) / 1000, json_schema_input_type=int | float | str)]
MemoryBytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
Seconds = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=int | float | str)]


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    return value


def _whole_or_range(value: Any) -> Any:
    if isinstance(value, str) and (slip := _RANGE_SLIP.fullmatch(value)):
        raise ValueError(
            f"{value!r} is no number of GPUs, and a range has two dots: did you mean {slip[1]}..{slip[2]}?"
        )
    return _whole(value)


GpuCount = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MAX_GPUS)]
GpusOrRange = Annotated[
    int, BeforeValidator(_whole_or_range, json_schema_input_type=int | str), Field(ge=0, le=MAX_GPUS)
]
"""The most of a range; ``2..8`` is taken apart before, see gpu_range."""


def gpu_range(text: str) -> tuple[int, int]:
    """Returns the least and the most from ``2..8``.

    Raises:
        ValueError: it is not a range of GPUs.
    """
    raw = text.strip()
    match = re.fullmatch(r"([0-9]{1,4}) ?\.\. ?([0-9]{1,4})", raw)
    if match is None:
        raise ValueError(f"gpu: {text!r:.80} is not a range of GPUs: write for example 2..8, the least and the most")
    least, most = map(int, match.groups())
    if least < 1:
        raise ValueError(
            f"gpu: {raw} begins at {least}: a job that may have none asks for none; write 1..{max(1, most)}"
        )
    if most < least:
        raise ValueError(f"gpu: {raw} counts down: write {most}..{least}")
    return least, most


class Resources(Value):
    """What one task needs, or what a node has free."""

    cpu_milli: int = Field(default=0, ge=0, description="thousandths of a core")
    memory_bytes: int = Field(default=0, ge=0)
    gpus: int = Field(default=0, ge=0)

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            cpu_milli=self.cpu_milli + other.cpu_milli,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            gpus=self.gpus + other.gpus,
        )
