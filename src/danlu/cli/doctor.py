"""``danlu doctor``: what a good administrator would look at, and what to do about it."""

from __future__ import annotations

import sys
from typing import Annotated, Final

from cyclopts import Parameter

from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Output
from danlu.cli.terminal import Messages, paint
from danlu.domain.diagnosis import Check, Verdict

STYLES: Final = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def doctor(
    *,
    index: Annotated[
        bool, Parameter(help="ask the package index too; --no-index leaves that out", show_default=False)
    ] = True,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Look at the connection, the platform and its machine; exit with 1 when something cannot work.

    Where no platform runs, this machine is looked at. Nothing is started or changed.

    Example: danlu doctor -o json
    """
    from danlu.client.diagnosis import checks

    messages = Messages(quiet=output in ("json", "yaml"))
    messages.status("looking")
    common = common or Common()
    found: list[Check] = []
    for check in checks(common.url, common.project, index=index, profile=common.profile):
        found.append(check)
        if output in ("table", "wide"):
            messages.clear()
            _tell(check)
            messages.status("looking")
    messages.clear()
    if output in ("json", "yaml"):
        out.records(found, output)
    elif output == "name":
        for check in found:
            out.write(f"{check.verdict}/{check.name.replace(' ', '-')}")
    else:
        numbers = {verdict: sum(check.verdict is verdict for check in found) for verdict in Verdict}
        words = [f"{numbers[Verdict.OK]} ok"]
        words += [wording.count(numbers[Verdict.WARN], "warning")] if numbers[Verdict.WARN] else []
        words += [wording.count(numbers[Verdict.FAIL], "failure")] if numbers[Verdict.FAIL] else []
        out.write(", ".join(words))
    return exits.FAILED if any(check.verdict is Verdict.FAIL for check in found) else exits.OK


def _tell(check: Check) -> None:
    head = paint(f"{check.verdict:<5}", STYLES[check.verdict], sys.stdout)
    out.write(f"{head} {check.name:<14} {' '.join(check.value.split())}")
    for line in check.next_step.splitlines():
        out.write(f"{'':<20} {line}")
    sys.stdout.flush()
