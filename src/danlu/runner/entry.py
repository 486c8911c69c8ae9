"""What the runner's one file is started for: ``runner.pyz pod``, ``salvage FOLDER`` or ``enter [TASK]``."""

from __future__ import annotations

import json
import os
import sys
from typing import List


def main(arguments: List[str]) -> int:
    """Does what is asked; returns the exit code."""
    if arguments == ["pod"]:
        from . import living

        return living.main()
    if len(arguments) == 2 and arguments[0] == "salvage":
        from . import main as runner
        from .handed import Handed

        given = json.loads(sys.stdin.buffer.read().decode())
        return runner.run(arguments[1], salvage=True, handed=Handed(given["secrets"]))
    if arguments[:1] == ["enter"] and len(arguments) <= 2:
        from . import entering

        return entering.main(os.path.join(os.environ.get("DANLU_POD_ROOT", "/danlu"), "attempt"))
    print("usage: runner.pyz pod | salvage FOLDER | enter [TASK]", file=sys.stderr)
    return 2
