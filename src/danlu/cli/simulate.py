"""``danlu simulate``: what would be with other quotas, on other nodes, by another policy. It is computed here."""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Words, pairs
from danlu.cli.terminal import Messages
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest

if TYPE_CHECKING:
    from danlu.client.simulating import Played, Scene
    from danlu.scheduler.report import Report

WHAT_IF: Final = Group("What is otherwise", sort_key=1)
SOURCE: Final = Group("What happened", sort_key=2)
SECOND_NS: Final = 1_000_000_000
SHOWN_NEVER: Final = 5
LIVE: Final = "live"
Form = Literal["table", "json", "yaml", "csv"]


@Parameter(name="*", group=WHAT_IF)
@dataclass(frozen=True)
class WhatIf:
    """What is otherwise than it was, or than usual."""

    nodes: Annotated[str | None, Parameter(help="16x8: 16 nodes of 8 GPUs; 12x8:h100,4x4:a100")] = None
    quota: Annotated[
        tuple[str, ...], Parameter(help="PROJECT.RESOURCE=LIMIT, team-a.gpu=16; unlimited: no limit; repeatable"), Words
    ] = ()
    guarantee: Annotated[tuple[str, ...], Parameter(help="PROJECT.RESOURCE=AMOUNT; repeatable"), Words] = ()
    weight: Annotated[tuple[str, ...], Parameter(help="PROJECT=WEIGHT, of a fair share; repeatable"), Words] = ()
    restart: Annotated[str, Parameter(help="what a job that starts again needs until it goes on")] = "30s"
    checkpoint: Annotated[
        str | None, Parameter(help="jobs are saved so often; left out: when they are told to make way")
    ] = None
    notice: Annotated[str, Parameter(help="how long a job still runs after it was told to make way")] = "0s"

    def given(self) -> dict[str, Any]:
        """Returns it as client.simulating.WhatIf.

        Raises:
            InvalidRequest: a weight is no number.
        """
        weights = pairs("--weight", self.weight, "PROJECT=WEIGHT", "team-a=2")
        if wrong := next((word for word in weights.values() if not word.isdecimal()), None):
            raise InvalidRequest(
                f"--weight takes a whole number; it is {wrong!r:.40}", next_step="write for example --weight team-a=2"
            )
        return {
            "limits": pairs("--quota", self.quota, "PROJECT.RESOURCE=LIMIT", "team-a.gpu=16"),
            "guarantees": pairs("--guarantee", self.guarantee, "PROJECT.RESOURCE=AMOUNT", "team-a.gpu=8"),
            "weights": {name: int(text) for name, text in weights.items()}, "restart": self.restart,
            "checkpoint": self.checkpoint, "notice": self.notice,
        }  # fmt: skip


@Parameter(name="*", group=SOURCE)
@dataclass(frozen=True)
class Source:
    """Where it comes from, where it is written to."""

    since: Annotated[str | None, Parameter(help="without TRACE: jobs submitted from then on: 30d, 2026-11-01")] = None
    all_projects: Annotated[bool, Parameter(help="without TRACE: of all projects; for administrators"), Flag] = False
    record: Annotated[str | None, Parameter(help="write what is told to the scheduler, and decided, to this file")] = (
        None
    )
    replay: Annotated[
        str | None,
        Parameter(help="decide all in this file again, and compare; live: what the platform decided since its start"),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True)
class Ways:
    """By which policies."""

    policy: Annotated[
        Literal["danlu", "fifo-easy", "srtf", "las"],
        Parameter(help="danlu: the platform's own; fifo-easy and srtf are told how long each job runs, las is not"),
    ] = "danlu"
    compare: Annotated[bool, Parameter(help="by danlu, fifo-easy and srtf, side by side"), Flag] = False

    def names(self) -> tuple[str, ...]:
        """Returns the policies, that which is looked at first."""
        from danlu.client.simulating import COMPARED

        others = COMPARED if self.compare else ()
        return (self.policy, *(name for name in others if name != self.policy))


def simulate(
    trace: Annotated[str | None, Parameter(help="a CSV file; left out: what the platform has recorded")] = None,
    /,
    *,
    what: WhatIf | None = None,
    ways: Ways | None = None,
    source: Source | None = None,
    output: Annotated[
        Form, Parameter(name=("--output", "-o"), help="table, json, yaml, or csv: a line for each job")
    ] = "table",
    common: Common | None = None,
) -> int:
    """Show what would be with other quotas, on other nodes, by another policy: waits, completion times, fairness.

    The scheduler itself decides, on a trace (job,submit_s,duration_s,gpus,project,priority) or on what really happened on the
    platform. It is computed here, and changes nothing.

    Example: danlu simulate --quota team-a.gpu=16
    """
    what, ways, source = what or WhatIf(), ways or Ways(), source or Source()
    messages = Messages()
    if source.replay is not None:
        if trace is not None:
            raise InvalidRequest("--replay needs no trace: the recording has it all", next_step="leave one of them out")
        return _replay(source.replay, output, common, messages)
    scene = _scene(trace, what, source, common, messages)
    others = [name for name in ways.names() if name != "danlu"]
    if others and scene.quotas:
        messages.say(f"quotas and weights are unknown to {' and '.join(others)}: only danlu decides by them", "yellow")
    with _recording(source.record) as record:
        played = [_play(scene, name, messages, record if name == ways.policy else None) for name in ways.names()]
    reports = [one.report for one in played]
    if output == "csv":
        for line in jobs_csv(played):
            out.write(line)
    elif output == "table":
        _tell(scene, reports)
    elif ways.compare:
        out.records(reports, output)
    else:
        out.record(reports[0], output)
    return exits.OK


def _scene(trace: str | None, what: WhatIf, source: Source, common: Common | None, messages: Messages) -> Scene:
    from danlu.client.simulating import Scene, parse_nodes, read_trace, recorded

    if trace is not None:
        if source.since or source.all_projects:
            raise InvalidRequest(
                f"--since and --all-projects are of a platform; {trace} is a file", next_step="leave them, or it, out"
            )
        messages.status(f"reading {trace}")
        jobs = read_trace(trace)
        messages.clear()
        if what.nodes is None:
            raise InvalidRequest(
                "--nodes is missing: a trace does not tell on which nodes it runs",
                next_step=f"16 nodes of 8 GPUs: danlu simulate {shlex.quote(trace)} --nodes 16x8",
            )
        return _changed(Scene(jobs, parse_nodes(what.nodes)), what, messages)
    from danlu.cli.session import connect
    from danlu.cli.usage import moment

    since = moment("--since", source.since, time.time_ns())
    with connect(common, messages) as client:
        messages.status("reading what the platform has recorded")
        scene = recorded(client, since=since, platform=source.all_projects)
        messages.clear()
    if scene.left_out:
        messages.say(f"{wording.count(scene.left_out, 'job')} left out: not ended yet, or never started")
    if what.nodes is not None:
        scene = Scene(scene.trace, parse_nodes(what.nodes), scene.quotas, scene.costs, scene.left_out)
    return _changed(scene, what, messages)


def _changed(scene: Scene, what: WhatIf, messages: Messages) -> Scene:
    """Returns it with what is otherwise; says so where that is of a project that has no jobs."""
    given = what.given()
    changed = scene.changed(**given)
    known = {job.project for job in scene.trace} | {quota.id for quota in scene.quotas}
    named = {key.partition(".")[0] for part in ("limits", "guarantees") for key in given[part]} | {*given["weights"]}
    for name in sorted(named - known):
        messages.say(
            f"no job is of {name}, for which something is otherwise   {suggestion(name, known)}".rstrip(), "yellow"
        )
    return changed


def _play(scene: Scene, policy: str, messages: Messages, record: Callable[[str], None] | None) -> Played:
    from danlu.client.simulating import play

    def watch(done: int, total: int) -> None:
        if messages.moving and done % 16 == 0:
            messages.bar("simulating", done, total, f"{done:,} of {total:,} jobs by {policy}")

    messages.bar("simulating", 0, len(scene.trace), policy)
    played = play(scene, policy, watch=watch, record=record)
    messages.clear()
    return played


# --- recordings


@contextlib.contextmanager
def _recording(path: str | None) -> Iterator[Callable[[str], None] | None]:
    if path is None:
        yield None
        return
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield lambda line: void(file.write(line))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}") from error


def void(_: object) -> None:
    """Forgets what was returned."""


def _replay(path: str, output: Form, common: Common | None, messages: Messages) -> int:
    from danlu.client.simulating import decided, play_again

    if path == LIVE:
        from danlu.cli.session import connect

        with connect(common, messages) as client:
            found = play_again(decided(client))
    else:
        try:
            with open(path, encoding="utf-8", newline="\n") as file:
                found = play_again(file)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{path} is no recording: it is not UTF-8") from error
    if output in ("json", "yaml"):
        out.structured({"calls": found.calls, "decisions": found.decisions, "difference": found.difference}, output)
    elif found.difference is None:
        out.write(f"{wording.count(found.decisions, 'decision')} of {wording.count(found.calls, 'call')}: all the same")
    else:
        out.write(f"decided otherwise: {found.difference}")
    return exits.OK if found.difference is None else exits.FAILED


# --- what is shown


def _tell(scene: Scene, reports: Sequence[Report]) -> None:
    first, gpus = reports[0], sum(len(node.gpus) for node in scene.nodes)
    has = wording.count(gpus, "GPU") if gpus else "no GPUs"
    out.write(
        f"{wording.count(first.jobs, 'job')} of {wording.count(len(first.projects), 'project')} "
        f"on {wording.count(len(scene.nodes), 'node')} with {has}"
    )
    head = ["POLICY"] if len(reports) > 1 else []
    for heads, rows in (
        (["POLICY", "JCT MEAN", "P50", "P99", "WAIT P50", "P90", "P99"], [_times(one) for one in reports]),
        (["POLICY", "USED", "PREEMPTED", "LOST", "WORST RHO", "PROJECT"], [_costs(one) for one in reports]),
        (["GPUS", "JOBS", *head, "WAIT P50", "P90", "P99", "JCT MEAN"], _by_size(reports)),
        (["PROJECT", "JOBS", *head, "GPU-HOURS", "JCT MEAN", "ALONE", "RHO"], _by_project(reports)),
    ):
        out.write("")
        out.table(heads, rows)
    for one in reports:
        if never := one.jobs - one.ended:
            out.write("")
            out.write(f"{wording.count(never, 'job')} never started{f' by {one.policy}' if head else ''}:")
            for line in (part for told in one.never_started[:SHOWN_NEVER] for part in out.wrapped(told, out.room(2))):
                out.write(f"  {line}")
            if never > SHOWN_NEVER:
                out.write(f"  and {never - SHOWN_NEVER:,} more")


def _times(one: Report) -> list[str]:
    times = (one.jct_mean_s, one.jct_p50_s, one.jct_p99_s, one.wait_p50_s, one.wait_p90_s, one.wait_p99_s)
    return [one.policy, *map(wording.duration, times)]


def _costs(one: Report) -> list[str]:
    worst = f"{one.worst_rho:.2f}" if one.worst_project else ""
    return [
        one.policy, f"{100 * one.utilisation:.1f} %", f"{one.preemptions:,}", f"{one.lost_gpu_hours:,.1f} GPU-h", worst,
        one.worst_project,
    ]  # fmt: skip


def _by_size(reports: Sequence[Report]) -> list[list[str]]:
    """Returns the rows of each size of jobs, by each policy where there are several."""
    from danlu.scheduler.report import SIZES

    order = [name for name, _ in SIZES]
    found = [(one, report.policy) for report in reports for one in report.sizes]
    return [
        [
            one.size, f"{one.jobs:,}", *([policy] if len(reports) > 1 else []),
            *map(wording.duration, (one.wait_p50_s, one.wait_p90_s, one.wait_p99_s, one.jct_mean_s)),
        ]
        for one, policy in sorted(found, key=lambda pair: order.index(pair[0].size))
    ]  # fmt: skip


def _by_project(reports: Sequence[Report]) -> list[list[str]]:
    """Returns the rows of each project, by each policy where there are several."""
    found = [(one, report.policy) for report in reports for one in report.projects]
    return [
        [
            one.project, f"{one.jobs:,}", *([policy] if len(reports) > 1 else []), f"{one.gpu_hours:,.1f}",
            wording.duration(one.jct_mean_s), wording.duration(one.alone_jct_mean_s), f"{one.rho:.2f}",
        ]
        for one, policy in sorted(found, key=lambda pair: pair[0].project)
    ]  # fmt: skip


def jobs_csv(played: Sequence[Played]) -> Iterator[str]:
    """Yields a line for each job of each simulation; times in seconds of the trace's own clock."""
    yield "policy,job,project,priority,gpus,submit_s,first_start_s,end_s,duration_s,held_s,starts"
    for one in played:
        for job in one.result.outcomes:
            line = io.StringIO()
            csv.writer(line, lineterminator="").writerow(
                (
                    one.policy, job.job.id, job.job.project, job.job.priority, job.job.gpus, _seconds(job.job.submit),
                    _seconds(job.first_start), _seconds(job.end), _seconds(job.job.duration), _seconds(job.held), job.starts,
                )
            )  # fmt: skip
            yield line.getvalue()


def _seconds(time_ns: int | None) -> str:
    return "" if time_ns is None else f"{time_ns / SECOND_NS:.3f}".rstrip("0").rstrip(".")
