"""Metrics in what a program prints: ``name: value`` and ``name=value``, for jobs that ask for it.

A pair is a name, ``:`` or ``=``, and a number that ends at white space, one of ``,;|)]}%``, a full stop or the line's end.
The name begins at the line's start, after white space, one of ``,;|([{`` or a logger's name and ``:``; it may stand in
quotes. So ``12:30:45``, ``http://host:80/``, ``file.py:12: error``, ``1,234`` and ``{'loss': 'high'}`` give nothing.

``step``, ``global_step``, ``iteration``, ``iter`` or else ``epoch`` (any case), followed by a whole number as in ``step=3``,
``Epoch 3/10`` or ``Step [100/500]``, gives the step and is not a metric itself.
"""

from __future__ import annotations

import re
from typing import Dict, Optional, Tuple

from . import formats

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf|NaN|Infinity)"
PAIR = re.compile(
    (
        r"(?:^|(?<=[\s,;|(\[{])|(?P<logger>(?<=[A-Za-z]:)))"
        r"(?P<quote>['\"]?)(?P<name>[A-Za-z_][\w./-]{0,63}?)(?<!\.py)(?P=quote)"
        r"(?:\s*=\s*|:\s+|(?(logger)(?!)|:(?=[-+.\dniNI])))"
        r"(?P<number>" + NUMBER + r")(?=$|[\s;|)\]}%]|,(?!\d)|\.(?:\s|$))"
    ).encode()
)
STEP = re.compile(
    rb"(?<![\w./-])(global_step|step|iteration|iter|epoch)['\"]?\s*[:=#]?\s*[\[(]?\s*(\d{1,15})(?!\d|:\d)",
    re.IGNORECASE,
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
        name = match.group("name").decode()
        value = float(match.group("number"))
        if name.lower() in STEPS:
            steps.setdefault(name.lower(), value)
        elif len(values) < MAX_PAIRS and not name.startswith(formats.SYSTEM):
            values[name] = value
    for match in STEP.finditer(line):
        steps.setdefault(match.group(1).decode().lower(), float(match.group(2)))
    step = next((steps[name] for name in STEPS if name in steps), None)
    return step, values
