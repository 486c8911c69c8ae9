"""Metrics in what a program prints: ``name: value`` and ``name=value``, for jobs that ask for it.

A pair is a name, ``:`` or ``=``, and a number that ends at white space, ``,``, ``;``, ``|``, ``)``, ``]``, ``%`` or the
line's end. The name begins after white space, one of ``,;|([-`` or at the line's start. So ``12:30:45``, ``http://host:80/``,
``file.py:12: error`` and ``{'loss': 'high'}`` give nothing. ``step``, ``global_step``, ``iteration``, ``iter`` or else
``epoch`` (any case) gives the step and is not a metric itself.
"""

from __future__ import annotations

import re
from typing import Dict, Optional, Tuple

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf|NaN|Infinity)"
PAIR = re.compile(
    (
        r"(?:^|(?<=[\s,;|(\[]))([A-Za-z_][\w./-]{0,63}?)(?:\s*=\s*|:\s+|:(?=[-+.\dniNI]))("
        + NUMBER
        + r")(?=$|[\s,;|)\]%])"
    ).encode()
)
STEPS = ("step", "global_step", "iteration", "iter", "epoch")
MAX_LINE_BYTES = 4096
MAX_PAIRS = 64


def parse(line: bytes) -> Tuple[Optional[float], Dict[str, float]]:
    """Returns (step or None, metrics) of one printed line."""
    if len(line) > MAX_LINE_BYTES or (b":" not in line and b"=" not in line):
        return None, {}
    values: Dict[str, float] = {}
    steps: Dict[str, float] = {}
    for match in PAIR.finditer(line):
        name = match.group(1).decode()
        value = float(match.group(2))
        if name.lower() in STEPS:
            steps.setdefault(name.lower(), value)
        elif len(values) < MAX_PAIRS:
            values[name] = value
    step = next((steps[name] for name in STEPS if name in steps), None)
    return step, values
