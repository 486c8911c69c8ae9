"""``danlu up``, ``down`` and ``status``."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Group, Parameter, validators

from danlu.api.bodies import PlatformStop
from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client import profiles
from danlu.client.connection import Connection, Running, data_folder, find, local, running
from danlu.client.transport import Client
from danlu.domain.resources import format_bytes, format_cpu
from danlu.domain.views import NodeUse, PlatformStatus
from danlu.errors import InvalidRequest, NotAuthenticated, PlatformError

END_TIMEOUT_S: Final = 30.0
JOBS_TIMEOUT_S: Final = 3700.0
MAX_PORT: Final = 65_535


@Parameter(name="*", group=Group("Other machines", sort_key=1))
@dataclass(frozen=True)
class Doors:
    """Who may reach the platform, and how it proves that it is the one."""

    host: Annotated[str | None, Parameter(help="the address to listen on; 0.0.0.0: all. Needs one of the others")] = (
        None
    )
    tls_cert: Annotated[Path | None, Parameter(help="a certificate in PEM, with its chain")] = None
    tls_key: Annotated[Path | None, Parameter(help="its key, which only its owner may read")] = None
    tls: Annotated[
        Literal["self-signed"] | None,
        Parameter(help="self-signed: a certificate made here, which danlu login pins", show_choices=False),
    ] = None
    insecure_http: Annotated[bool, Parameter(help="no TLS: everything can be read on the way"), Flag] = False

    def flags(self) -> list[str]:
        """Returns the server's flags."""
        given = {
            "--host": self.host, "--tls-cert": self.tls_cert and self.tls_cert.expanduser().absolute(),
            "--tls-key": self.tls_key and self.tls_key.expanduser().absolute(), "--tls": self.tls,
        }  # fmt: skip
        words = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        return words + ["--insecure-http"] * self.insecure_http


@Parameter(name="*", group=Group("Who did what", sort_key=2))
@dataclass(frozen=True)
class Kept:
    """For how long it is kept what happened."""

    events_kept_days: Annotated[
        float | None,
        Parameter(
            help="forget events that are older; 400 when left out", validator=validators.Number(gte=1, lte=36_500)
        ),
    ] = None
    max_events: Annotated[
        int | None,
        Parameter(
            help="and all but the newest so many; 10,000,000 when left out", validator=validators.Number(gte=1000)
        ),
    ] = None

    def flags(self) -> list[str]:
        """Returns the server's flags."""
        given = {"--events-kept-days": self.events_kept_days, "--max-events": self.max_events}
        return [word for flag, value in given.items() if value is not None for word in (flag, str(value))]


def up(
    *,
    foreground: Annotated[
        bool, Parameter(help="stay, and log to this terminal; for systemd and the like"), Flag
    ] = False,
    port: Annotated[
        int | None, Parameter(help="the port; left out: the last one, or the first free one from 7070")
    ] = None,
    gpus: Annotated[int | None, Parameter(help="declare so many GPUs where the driver finds none")] = None,
    new_master_key: Annotated[
        bool, Parameter(help="go on though the master key is lost: everybody needs a new access key"), Flag
    ] = False,
    doors: Doors | None = None,
    kept: Kept | None = None,
) -> int:
    """Start the platform on this machine; return when it is ready.

    Its data lies in DANLU_HOME; each DANLU_HOME is a platform of its own, and several can run side by side. Only this machine
    reaches it, unless --host says otherwise.

    Example: danlu up --host 0.0.0.0 --tls self-signed
    """
    from danlu.client import starting

    if port is not None and not 0 <= port <= MAX_PORT:
        raise InvalidRequest(f"--port {port} is not a port: 1 to {MAX_PORT}, or 0 for any free one")
    if gpus is not None and not 0 <= gpus <= 1024:
        raise InvalidRequest(f"--gpus {gpus} is not from 0 to 1024")
    flags = [*([] if port is None else ["--port", str(port)]), *([] if gpus is None else ["--gpus", str(gpus)])]
    flags += ["--new-master-key"] * new_master_key + (doors or Doors()).flags() + (kept or Kept()).flags()
    home, messages = data_folder(), Messages()
    if foreground:
        os.execv(sys.executable, starting.server_command(home, flags))  # noqa: S606 - no shell is meant
    begun = time.monotonic()
    if (already := running(home)) is not None:
        out.write(already.url)
        messages.say(f"danlu runs here already, with its data in {home}")
        _tell_others(already, messages)
        if flags:
            messages.say("to give it other flags: danlu down, then danlu up; jobs go on meanwhile", "yellow")
        return exits.OK
    messages.status("danlu starts")
    found = starting.start(home, flags)
    messages.clear()
    out.write(found.url)
    messages.say(f"danlu is ready after {time.monotonic() - begun:.2f} s, with its data in {home}")
    if (server := running(home)) is not None:
        _tell_others(server, messages)
    if (elsewhere := profiles.read(profiles.file_of()).current) != profiles.LOCAL and not os.environ.get("DANLU_HOME"):
        messages.say(f"commands go to profile {elsewhere}; to this one: danlu profile use local", "yellow")
    messages.say("run something:  danlu run -- python train.py      stop it:  danlu down")
    return exits.OK


def _tell_others(server: Running, messages: Messages) -> None:
    """Says how other machines reach it."""
    if server.public_url:
        messages.say(f"from other machines:  danlu login {server.public_url}")
    if server.fingerprint:
        messages.say(f"its certificate:      {server.fingerprint}")
    for warning in server.warnings:
        messages.say(warning, "yellow")


def down(
    *,
    jobs: Annotated[bool, Parameter(help="stop all jobs first"), Flag] = False,
    common: Common | None = None,
) -> int:
    """Stop the platform. Jobs go on without it, unless --jobs, and are found again by the next danlu up.

    Example: danlu down --jobs
    """
    from danlu.client.starting import await_end

    messages = Messages()
    connection = _here_or_named(common or Common())
    if connection is None:
        messages.say(f"danlu is not running here ({data_folder()})")
        return exits.OK
    server = running(connection.home) if connection.home is not None else None
    try:
        with Client(connection) as client:
            live = _live_jobs(client)
            client.call("platform.stop", body=PlatformStop(jobs=jobs))
    except NotAuthenticated:
        if server is None or jobs:
            raise
        _ask_to_end(server)  # whose key is lost is its owner still
        live = 0
        messages.say("it does not accept the key in its data folder: its process was asked to end", "yellow")
    if jobs and live:
        messages.status(f"stopping {wording.count(live, 'job')}, then danlu")
    if server is not None and not await_end(server, JOBS_TIMEOUT_S if jobs else END_TIMEOUT_S):
        raise PlatformError(
            f"the server (pid {server.pid}) has not ended yet", next_step=f"its log: {server.home / 'server.log'}"
        )
    messages.clear()
    going_on = f"; {wording.count(live, 'job goes', 'jobs go')} on" if live and not jobs else ""
    messages.say(f"danlu at {connection.url} is stopped{going_on}")
    return exits.OK


def _ask_to_end(server: Running) -> None:
    try:
        os.kill(server.pid, signal.SIGTERM)
    except OSError as error:
        raise PlatformError(
            f"the server (pid {server.pid}) cannot be ended: {error.strerror}", next_step="its owner can: danlu down"
        ) from error


def _here_or_named(common: Common) -> Connection | None:
    """Returns the platform that is named, else the one here: whoever uses another by its profile does not mean to end it."""
    named = common.url or common.profile or os.environ.get("DANLU_URL") or os.environ.get(profiles.PROFILE_VARIABLE)
    return find(common.url, profile=common.profile) if named else local(data_folder())


def _live_jobs(client: Client) -> int:
    status: PlatformStatus = client.call("platform.get")
    return sum(number for state, number in status.jobs.items() if state not in ("succeeded", "failed", "cancelled"))


def status(*, output: Output = "table", common: Common | None = None) -> int:
    """Show whether the platform runs, where, and with what.

    Example: danlu status -o json
    """
    common = common or Common()
    connection = find(common.url, profile=common.profile)
    structured = output in ("json", "yaml")
    if connection is None:
        if structured:
            out.structured({"running": False, "url": None, "home": str(data_folder())}, output)
        else:
            out.write(f"danlu is not running here ({data_folder()})")
            Messages().say("start it: danlu up")
        return exits.UNREACHABLE
    with connect(common) as client:
        begun = time.monotonic()
        found: PlatformStatus = client.call("platform.get")
        took_ms = (time.monotonic() - begun) * 1000
    if structured:
        # the address that was used, which is the one that works from here
        out.structured({"running": True, **found.model_dump(mode="json"), "url": connection.url}, output)
    elif output == "name":
        out.write(connection.url)
    else:
        _table(found, connection, took_ms)
    return exits.OK


def _table(found: PlatformStatus, connection: Connection, took_ms: float) -> None:
    up_for = wording.age(found.started_at, time.time_ns())
    out.write(f"danlu {found.version} at {connection.url}, up {up_for}, answered in {took_ms:.0f} ms")
    rows = [
        ("data", f"{found.home} ({found.database})"),
        ("jobs", ", ".join(f"{number:,} {state}" for state, number in found.jobs.items() if number) or "none yet"),
        ("isolation", found.isolation),
        *(("node", _node(use)) for use in found.nodes),
        *(("warning", warning) for warning in found.warnings),
    ]
    if found.leader is not None:
        rows.insert(1, ("leader", "this server" if found.leader.here else found.leader.place))
    here = None if connection.home is None else running(connection.home)
    if here is not None and here.public_url:
        rows.insert(1, ("others", " ".join([here.public_url, here.fingerprint]).strip()))
    for label, text in rows:
        out.labelled(label, [text])


def _node(use: NodeUse) -> str:
    total = use.node.total
    text = (
        f"{use.node.id}: free {format_cpu(use.free.cpu_milli)} of {format_cpu(total.cpu_milli)} cpu, "
        f"{format_bytes(use.free.memory_bytes)} of {format_bytes(total.memory_bytes)}"
    )
    return text + (f", {use.free.gpus} of {total.gpus} gpu" if total.gpus else "")
