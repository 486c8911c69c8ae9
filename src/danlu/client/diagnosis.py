"""What this side sees of a platform: is it there, its clock right, the key safe; where none runs, what would hinder one."""

from __future__ import annotations

import json
import os
import platform
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from danlu import __version__
from danlu.api.bodies import DoctorQuery
from danlu.client.connection import PLATFORM_FILE, Connection, data_folder, find, running
from danlu.client.opening import open_client
from danlu.client.starting import server_command
from danlu.config import DEFAULT_PORT
from danlu.domain.diagnosis import Check, Diagnosis, fail, ok, warn
from danlu.errors import DanluError, NotAllowed

MACHINE_TIMEOUT_S: Final = 60.0
SKEW_WARN_S: Final = 2.0
SKEW_FAIL_S: Final = 60.0
SLOW_S: Final = 0.5


def checks(
    url: str | None,
    project: str | None,
    *,
    index: bool,
    profile: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Check]:
    """Yields all that can be seen from here, the server's own view among it; where none runs, this machine's."""
    yield ok("danlu", f"{__version__}, Python {platform.python_version()} at {sys.executable}")
    yield from key_file(environ)
    try:
        found = find(url, environ, profile=profile)
    except DanluError as error:
        yield fail("platform", error.message, error.next_step)
        return
    if found is not None:
        yield from reached(found, project, index=index)
        return
    home = data_folder(environ)
    yield from not_running(home)
    yield from port(DEFAULT_PORT)
    yield from machine(home, index=index)


def key_file(environ: Mapping[str, str]) -> Iterator[Check]:
    """Says whether others can read the file that holds the key."""
    name = environ.get("DANLU_TOKEN_FILE")
    if not name or environ.get("DANLU_TOKEN") or not hasattr(os, "geteuid"):
        return
    try:
        mode = stat.S_IMODE(Path(name).expanduser().stat().st_mode)
    except OSError as error:
        yield fail(
            "key", f"{name} (DANLU_TOKEN_FILE) cannot be read: {error.strerror}", "set it to the file with your key"
        )
        return
    if mode & 0o077:
        yield fail("key", f"others may read {name} (mode {mode:o})", f"chmod 600 {name}")
    else:
        yield ok("key", f"{name}: yours alone")


def reached(connection: Connection, project: str | None, *, index: bool) -> Iterator[Check]:
    """Yields how the platform answers, and what it says of itself."""
    with open_client(connection, project=project) as client:
        try:
            client.call("platform.get")  # opens the connection, so that what is timed is a way there and back
            begun, at = time.perf_counter(), time.time_ns()
            version = client.call("platform.get").version
            took_s = time.perf_counter() - begun
        except DanluError as error:
            yield fail("platform", error.message, error.next_step)
            return
        value = f"{connection.url} answers in {took_s * 1000:.0f} ms"
        yield (
            ok("platform", value)
            if took_s < SLOW_S
            else warn("platform", value, "is the network, or its machine, busy?")
        )
        yield same_version(version)
        try:
            found: Diagnosis = client.call("platform.doctor", query=DoctorQuery(index=False))
            yield skew(found.now - time.time_ns(), (time.time_ns() - at) / 1e9)
            if index:
                found = client.call("platform.doctor", query=DoctorQuery(index=True))
        except NotAllowed:
            yield warn("server", "it tells its own state to administrators only", "ask one to run danlu doctor")
            return
        except DanluError as error:
            yield fail("server", error.message, error.next_step)
            return
        yield from found.checks


def same_version(server: str) -> Check:
    """Says whether both sides are of one version."""
    if server == __version__:
        return ok("version", f"{server} on both sides")
    step = f"install danlu {server} here, or {__version__} there (then danlu down, danlu up)"
    return warn("version", f"the server has {server}, this side {__version__}", step)


def skew(ahead_ns: int, unsure_s: float) -> Check:
    """Says how far the server's clock is ahead of this one; a part of it may be the way there and back."""
    seconds = ahead_ns / 1e9
    beyond = max(0.0, abs(seconds) - unsure_s)
    value = f"the server's is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    step = "set both by NTP: timedatectl set-ntp true"
    if beyond > SKEW_FAIL_S:
        return fail("clock", value, step)
    return warn("clock", value, step) if beyond > SKEW_WARN_S else ok("clock", "the server's and this machine's agree")


def not_running(home: Path) -> Iterator[Check]:
    """Says that none runs here, and whether what a killed one left is in the way."""
    try:
        stale = (home / PLATFORM_FILE).exists() and running(home) is None
    except DanluError as error:
        yield fail("platform", error.message, error.next_step)
        return
    if stale:
        value = f"a server of {home} ended without a word: its {PLATFORM_FILE} is left"
        yield warn("platform", value, f"danlu up replaces it; why it ended: {home / 'server.log'}")
    elif locked(home / "lock"):
        value = f"a server holds {home / 'lock'}, but does not answer: it starts, or ends"
        yield warn("platform", value, f"wait a moment; its log: {home / 'server.log'}")
    else:
        yield ok("platform", f"not running here ({home}); danlu up starts it")


def locked(lock: Path) -> bool:
    """Whether a server holds a data folder's lock. Looks only."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def port(number: int) -> Iterator[Check]:
    """Says whether the port that a server takes first is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            yield warn(
                "port",
                f"{number} is taken by another program",
                "danlu up takes the next free one; or name one: --port N",
            )
        else:
            yield ok("port", f"{number} is free")


def machine(home: Path, *, index: bool) -> Iterator[Check]:
    """Yields what a server would find on this machine, as the server's own program sees it. Nothing is started."""
    if not sys.platform.startswith("linux"):
        yield ok("machine", f"{platform.system()}: commands run here, the platform itself on Linux")
        return
    step = "install danlu again"
    command = [*server_command(home), "--diagnose", "all" if index else "local"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=MACHINE_TIMEOUT_S, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield fail("server", f"its program cannot be run: {error}", step)
        return
    try:
        found = [Check.model_validate(one) for one in json.loads(done.stdout)]
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        yield fail("server", f"its program fails: {last[:300] or f'exit code {done.returncode}'}", step)
        return
    yield from found
