"""What the runner's one file is started for: ``runner.pyz pod``, ``environment POD``, ``salvage FOLDER`` or ``enter [TASK]``.

A pod's two processes part here, before anything is imported that takes its time: side by side one becomes the runner, and the
other fetches what that needs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Dict, List, Tuple

MAX_GO_BYTES = 64 << 20
FAILED, USAGE = 1, 2


def main(arguments: List[str]) -> int:
    """Does what is asked; returns the exit code."""
    if arguments == ["pod"]:
        return _pod()
    if arguments[:1] == ["environment"] and len(arguments) == 2:
        from . import environment

        return environment.main(arguments[1])
    if len(arguments) == 2 and arguments[0] == "salvage":
        from . import main as runner
        from .handed import Handed

        given = json.loads(sys.stdin.buffer.read().decode())
        return runner.run(arguments[1], salvage=True, handed=Handed(given["secrets"]))
    if arguments[:1] == ["enter"] and len(arguments) <= 2:
        from . import entering

        return entering.main(os.path.join(os.environ.get("DANLU_POD_ROOT", "/danlu"), "attempt"))
    print("usage: runner.pyz pod | environment POD | salvage FOLDER | enter [TASK]", file=sys.stderr)
    return USAGE


def _pod() -> int:
    told: List[int] = []
    # the first process of a container hears only what it asks for
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the runner listens
    os.umask(0o077)
    child, go = _fork()
    from . import living

    return living.main(child, go, told)


def _fork() -> Tuple[int, int]:
    """Returns a child that becomes the runner, and where it waits for what it needs."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(read)
        return child, write
    code = FAILED
    try:
        os.close(write)
        code = _run(read)
    except Exception as error:  # noqa: BLE001 - the process ends here, and nobody else would say why
        os.write(2, ("danlu: the runner failed: %s: %s\n" % (type(error).__name__, error)).encode())
    finally:
        os._exit(code)


def _run(read: int) -> int:
    from . import main as runner
    from . import processes
    from .handed import Handed

    processes.die_with_parent()
    text = b""
    while len(text) <= MAX_GO_BYTES:
        piece = os.read(read, 1 << 20)
        if not piece:
            break
        text += piece
    os.close(read)
    if not text:  # the other one could not begin
        return FAILED
    go: Dict[str, object] = json.loads(text.decode())
    handed = Handed(go["secrets"], str(go["memory"]))  # type: ignore[arg-type]
    return runner.run(str(go["attempt"]), handed=handed, hindrance=str(go["hindrance"]))
