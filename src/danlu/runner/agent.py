"""The rank agent: runs what an MPI launcher asks for inside a worker's own task, in the place of sshd, without root.

``agent.py --serve`` is the command of a worker's task. It listens on DANLU_ADDRESS alone, and runs what a launcher sends as
its child: in the task's control group, environment and working folder, with its GPUs. ``agent.py HOST COMMAND...`` is what
mpirun calls instead of ``ssh``: it relays standard input, output and error, signals and the exit code. When it goes away,
however it dies, everything that it had started is ended.

This is only the way in, a file that any Python runs by its path; agent_server.py and agent_client.py are the two halves, and
agent_wire.py is what they say to each other.
"""

from __future__ import annotations

import os
import sys
from typing import List


def main(arguments: List[str]) -> int:
    """``--serve`` or ``HOST COMMAND...``; returns the exit code."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # else the socket would be taken for it
    from danlu.runner.agent_wire import GONE, Refused

    try:
        if arguments == ["--serve"]:
            from danlu.runner.agent_server import serve

            return serve()
        from danlu.runner.agent_client import run

        return run(arguments)
    except (Refused, EOFError, ConnectionError) as error:
        print("agent: %s" % (str(error) or "the worker's agent is gone"), file=sys.stderr)
        return GONE


if __name__ == "__main__":
    if not __package__:
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.exit(main(sys.argv[1:]))
