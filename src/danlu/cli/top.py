"""``danlu top``: what is in use now, and what waits; on a terminal again and again in the same place."""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages, is_terminal, paint, width
from danlu.client.transport import Client
from danlu.domain.resources import format_bytes, format_cpu, parse_duration
from danlu.domain.views import GpuUse, JobUse, NodeLoad, TaskUse, Top, Waiting
from danlu.errors import InvalidRequest

SHORTEST_S: Final = 0.5
TOO_OLD_NS: Final = 150 * wording.SECOND_NS
"""A measurement that is older is not shown: its runner does not speak."""
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def top(
    *,
    once: Annotated[bool, Parameter(help="print it once, as where stdout is no terminal"), Flag] = False,
    every: Annotated[str, Parameter(help="how often it is drawn again, at least 0.5s")] = "2s",
    output: Annotated[
        Literal["table", "json", "yaml"], Parameter(name=("--output", "-o"), help="table, json or yaml")
    ] = "table",
    common: Common | None = None,
) -> int:
    """Show what is in use now: nodes, running jobs with processors, memory and GPUs, and what waits. q or Ctrl-C leaves.

    Jobs are measured every five seconds, all their processes together; what was measured stays: danlu metrics JOB --system.

    Example: danlu top --once
    """
    try:
        every_s = parse_duration(every)
    except ValueError as error:
        raise InvalidRequest(f"--every: {error}") from error
    if every_s < SHORTEST_S:
        raise InvalidRequest(f"--every {every} is less than {SHORTEST_S:g}s")
    messages = Messages()
    with connect(common, messages) as client:
        if output in ("json", "yaml"):
            out.record(client.call("top.get"), output)
        elif once or not is_terminal(sys.stdout):
            for line in lines(client.call("top.get"), out.room()):
                out.write(line)
        else:
            _live(client, every_s)
    return exits.OK


def _live(client: Client, every_s: float) -> None:
    """Draws until the user leaves."""
    client.patience_s = FOLLOW_PATIENCE_S
    client.notice = None  # the screen is not for lines
    found: Top = client.call("top.get")  # what is wrong is told before the screen is taken
    with _screen(), contextlib.suppress(KeyboardInterrupt):
        while True:
            columns, rows = width(), shutil.get_terminal_size((100, 24)).lines
            drawn = [paint(out.cut(_title(found, every_s), columns), "bold", sys.stdout), "", *lines(found, columns)]
            if len(drawn) > rows:
                more = f"({len(drawn) - rows + 1} more lines: danlu top --once)"
                drawn = [*drawn[: rows - 1], out.cut(more, columns)]
            sys.stdout.write(HOME + (CLEAR_LINE + "\r\n").join(drawn) + CLEAR_LINE + CLEAR_REST)
            sys.stdout.flush()
            if _left(every_s):
                return
            found = client.call("top.get")


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen without a cursor, and keys that come at once; all as it was when left."""
    restore = None
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows: Ctrl-C leaves there
            import termios
            import tty

            descriptor = sys.stdin.fileno()
            before = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor)

            def restore() -> None:
                termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    ending = signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(ENTER)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ending)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        if restore is not None:
            restore()


def _left(wait_s: float) -> bool:
    """Waits, and returns whether the user pressed q; any other key but shortens the wait."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        time.sleep(wait_s)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and sys.stdin.read(1) in ("q", "Q", "")


def _title(found: Top, every_s: float) -> str:
    running = sum(job.state == "running" for job in found.jobs)
    text = f"danlu top   {wording.clock(found.at)[11:19]} UTC   {running} running, {found.waiting_count} waiting"
    return f"{text}   every {every_s:g} s; q leaves"


def lines(found: Top, most: int | None) -> list[str]:
    """Returns the tables, at most so many columns wide: nodes, tasks, what waits."""
    nodes = [_node(node) for node in found.nodes]
    blocks = [
        out.table_lines(["NODE", "CPU USED", "GIVEN", "MEMORY USED", "GIVEN", "GPU GIVEN"], nodes, most=most),
    ]
    if found.jobs:
        rows = [row for job in found.jobs for row in _job(job, found.at)]
        headers = ["JOB", "STATE", "TASK", "NODE", "CPU", "MEMORY", "GPU", "RAN"]
        blocks.append(out.table_lines(headers, rows, most=most))
    if found.waiting:
        waits = [_waiting(job, found.at) for job in found.waiting]
        if found.waiting_count > len(found.waiting):
            waits.append([f"({found.waiting_count - len(found.waiting)} more)", "", "", ""])
        blocks.append(out.table_lines(["WAITING", "WHY", "ASKS", "SINCE"], waits, most=most))
    return [line for at, block in enumerate(blocks) for line in ([""] if at else []) + block]


def _node(load: NodeLoad) -> list[str]:
    use, total = load.use, load.use.node.total
    return [
        use.node.id,
        f"{load.cpu_cores:.2f} of {format_cpu(total.cpu_milli)}",
        format_cpu(use.used.cpu_milli),
        f"{format_bytes(load.memory_bytes)} of {format_bytes(total.memory_bytes)}",
        format_bytes(use.used.memory_bytes),
        f"{use.used.gpus} of {total.gpus}" if total.gpus else "-",
    ]


def _job(job: JobUse, now: int) -> Iterator[list[str]]:
    for at, task in enumerate(job.tasks):
        first = at == 0
        yield [
            job.name if first else "",
            str(job.state) if first else "",
            "-" if len(job.tasks) == 1 else task.task,
            task.node,
            *_used(task, now),
            wording.between(job.started_at, now) if first else "",
        ]


def _used(task: TaskUse, now: int) -> list[str]:
    if task.ended:
        return ["ended", "-", "-"]
    known = task.measured_at is not None and now - task.measured_at < TOO_OLD_NS
    cores = f"{task.cpu_cores:.2f}" if known and task.cpu_cores is not None else "-"
    memory = format_bytes(task.memory_bytes) if known and task.memory_bytes is not None else "-"
    limit = f" of {format_bytes(task.asked.memory_bytes)}" if task.asked.memory_bytes else ""
    gpus = "  ".join(_gpu(gpu, known=known) for gpu in task.gpus) or "-"
    return [f"{cores} of {format_cpu(task.asked.cpu_milli)}", memory + limit, gpus]


def _gpu(gpu: GpuUse, *, known: bool) -> str:
    if not known or gpu.percent is None:
        return f"{gpu.index}"
    memory = "" if gpu.memory_bytes is None else f" {format_bytes(gpu.memory_bytes)}"
    return f"{gpu.index}: {gpu.percent:.1f} %{memory}"


def _waiting(job: Waiting, now: int) -> list[str]:
    total = sum(job.asks[1:], job.asks[0])
    parts = [f"{format_cpu(total.cpu_milli)} cpu"]
    parts += [format_bytes(total.memory_bytes)] if total.memory_bytes else []
    parts += [f"{total.gpus} gpu"] if total.gpus else []
    parts += [f"{len(job.asks)} tasks"] if len(job.asks) > 1 else []
    return [job.name, str(job.reason or "-"), ", ".join(parts), wording.age(job.queued_at, now)]
