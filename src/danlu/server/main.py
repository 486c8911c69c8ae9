"""Composes the server: reads the environment, opens everything in order, serves, and closes it again."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn

from danlu import __version__
from danlu.blobs.bucket import bucket_checks
from danlu.blobs.code import Code
from danlu.config import DEFAULT_PORT, PORTS_TRIED, Settings, flags, runtime_folder
from danlu.config import settings as settings_of
from danlu.controllers.attempts import AttemptsController, Launches
from danlu.controllers.collection import CollectionController
from danlu.controllers.environments import BUILD_THREADS, EnvironmentsController
from danlu.controllers.events import EventsController
from danlu.controllers.leader import Leader, LedExecutor, Pace
from danlu.controllers.loop import Loop
from danlu.controllers.nodes import NodesController
from danlu.controllers.nonces import NoncesController
from danlu.controllers.packing import Packing
from danlu.controllers.recordings import Recording
from danlu.controllers.scheduling import SchedulingController
from danlu.controllers.stored import StoredController
from danlu.controllers.tasks import Tasks, Workers
from danlu.database import migrations, moving, sqlite_file
from danlu.database.engine import Database, Transaction, write_anew
from danlu.database.hints import Hints
from danlu.database.kept import Kept
from danlu.database.leadership import SECOND, Candidate, Fenced, Term
from danlu.database.records import ATTEMPTS, PROJECTS
from danlu.domain.diagnosis import Check
from danlu.domain.environments import Environment
from danlu.domain.isolation import Layer
from danlu.domain.projects import DEFAULT_PROJECT, Project
from danlu.environments import diagnosis as environments_diagnosis
from danlu.environments.builder import Builder
from danlu.environments.uv_command import Uv
from danlu.errors import AlreadyRunning, DanluError, PlatformError, PortTaken, storage_full_is_an_error
from danlu.executors.base import Capabilities
from danlu.runner import formats
from danlu.server import app as edge
from danlu.server import diagnosis, keys, tls
from danlu.server.auth import Gate
from danlu.server.blobs import open_blobs
from danlu.server.clock import SystemClock
from danlu.server.connections import Quiet, Server, counted
from danlu.server.executors import Known, Make, Runs, checks, chosen
from danlu.server.limits import Limits
from danlu.server.listening import Listening, last_port, remember_port, resolve
from danlu.server.listening import listen as sockets
from danlu.server.log import RateLimit
from danlu.server.sessions import MAX_MESSAGE_BYTES
from danlu.services import first_user, marks
from danlu.services import platform as platform_service
from danlu.services import secrets as project_secrets
from danlu.services.access import attempt_token
from danlu.services.context import Clock, Hub, Platform, PlatformFacts
from danlu.services.vault import Vault

LOG: Final = logging.getLogger("danlu.server")
LOOPS_END_S: Final = 10.0
GRACEFUL_S: Final = 3
COLLECT_S: Final = 60.0
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 1024
MAX_DESCRIPTORS: Final = 65_536
MAX_PLACE: Final = 400


@dataclass(slots=True)
class Composition:
    """Everything that a running server is made of."""

    settings: Settings
    platform: Platform
    runs: Runs
    workers: tuple[Workers, ...]
    leader: Leader
    warnings: tuple[str, ...] = ()
    """What who starts it is to know."""
    hints: Hints | None = None

    def close(self) -> None:
        """Ends the loops, then what they use. Jobs go on."""
        ended = self.leader.stop(LOOPS_END_S)
        for workers in self.workers:
            workers.close()
        self.runs.close()
        if self.hints is not None:
            self.hints.close()
        if ended:
            self.platform.database.close()


class Beside(NamedTuple):
    """What works beside the loops: what builds environments, and the tasks of each kind."""

    builder: Builder
    launching: Tasks
    keeping: Tasks
    building: Tasks


class Doors(NamedTuple):
    """What a server listens on, and its certificate, where it has one."""

    listening: Listening
    certificate: tls.Certificate | None
    moved: str = ""
    """Why it is at another port than before, where it is."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What who starts it is to know."""
        return ((self.moved,) if self.moved else ()) + (() if self.certificate is None else self.certificate.warnings)


def take_lock(home: Path) -> int:
    """Takes the data folder's lock until the process ends, and returns its descriptor.

    Raises:
        AlreadyRunning: another server has it.
    """
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        url = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            url = " at " + json.loads((home / "platform.json").read_text())["url"]
        raise AlreadyRunning(
            f"a server of {home} runs already{url}", next_step="danlu status; another platform needs its own DANLU_HOME"
        ) from None
    return descriptor


def listen(settings: Settings) -> Doors:
    """Returns what the server listens on, and what it proves itself by.

    Raises:
        InvalidRequest: what is sent would leave the machine in the clear.
        PortTaken: no port is free.
        PlatformError: the address or the certificate cannot be used.
    """
    address = resolve(settings.host)
    wanted = tls.Wanted(settings.tls_cert, settings.tls_key, settings.self_signed, settings.insecure_http)
    tls.require_choice(settings.host, address.loopback, wanted)
    found = tls.certificate(keys.make_folder(settings.home), settings.host, wanted, datetime.datetime.now(datetime.UTC))
    secured = found is not None
    if settings.port is not None:
        return Doors(sockets(address, [settings.port], asked=True, tls=secured), found)
    last, taken = last_port(settings.home), ""
    if last is not None:  # others know the platform by it
        try:
            return Doors(sockets(address, [last], asked=True, tls=secured), found)
        except PortTaken as error:
            taken = error.message
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
    listening = sockets(address, ports, asked=False, tls=secured)
    return Doors(listening, found, taken and (
        f"{taken}: this platform was at that port, and is at port {listening.port} from now on. Whoever answers at port "
        f"{last} is another program: profiles and DANLU_URL that name it have to change "
        f"(danlu login {listening.public_url(settings.host, 'https' if secured else 'http') or listening.url})"
    ))  # fmt: skip


def open_database(settings: Settings, now: int) -> Database:
    """Opens the database: checked, backed up where its schema is older, then brought to this version's.

    No other copy is made here: a start may still be refused, and of many starts none may push older copies out.
    """
    if settings.database_url is not None:
        return Database.open(settings.database_url)
    path = settings.home / "danlu.db"
    moving.require_here(path)
    if sqlite_file.check(path) != migrations.head():
        sqlite_file.backup(path, settings.home / sqlite_file.BACKUPS, now=now, migration=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return Database.open(f"sqlite:///{path}")


def compose(settings: Settings, make: Make = chosen) -> Composition:
    """Opens everything in order; nothing serves or runs yet.

    Raises:
        AlreadyRunning: the database is another server's, and what runs attempts here cannot be shared with it.
    """
    clock, hub = SystemClock(), Hub()
    # each kind of work has threads of its own: large outputs must not hold up a launch
    workers = (Workers("launch", 8), Workers("keep", 4), Workers("build", BUILD_THREADS))
    kept = keys.load(keys.make_folder(settings.home), os.environ)
    vault = Vault(kept.master, secrets.token_bytes)
    hints = None if settings.database_url is None else Hints(settings.database_url, hub.notify, hub.notify_all)
    if hints is not None:
        hints.start()
        hub.listen(hints.send)
    database = open_database(settings, clock.now())
    known = keys.read_bootstrap(settings.home / "keys")
    shared = kept.given and settings.database_url is not None
    settled = first_user.settle(database, vault, known, clock.now(), new_master=settings.new_master, shared=shared)
    if settled.key is not None:
        keys.write_bootstrap(settings.home / "keys", settled.key)
    blobs, streams, place = open_blobs(settings)

    def hint() -> None:
        hub.notify("attempts")
        hub.notify("output")

    runs = make(settings, Known(
        database, Code(blobs), streams, hint, lambda attempt: project_secrets.printable(database, vault, attempt)
    ))  # fmt: skip
    write_anew(database, lambda tx: _first_project(tx, clock.now()))
    builder = _builder(settings, portable=runs.executor.capabilities.archives)
    platform = Platform(
        diagnose=lambda built, index: diagnose(settings, builder, built, index=index),
        database=database, blobs=blobs, streams=streams, clock=clock, random_bits=secrets.randbits,
        facts=_facts(settings, runs.executor.capabilities, clock.now()),
        attempt_key=kept.attempts, vault=vault, hub=hub,
    )  # fmt: skip
    launches = Launches(
        builder,
        lambda attempt: attempt_token(kept.attempts, attempt),
        lambda: platform.url,
        runs.images,
        lambda job: project_secrets.handed(database, vault, job),
    )
    # of the server, not of a term: what an earlier term has begun is not begun beside it
    beside = Beside(builder, *(Tasks(some.spawn) for some in workers))
    begin = partial(_begin, settings, platform, runs, launches, beside)
    leader = Leader(platform, candidate(settings.home, formats.boot_id()), begin, pace=Pace.of(settings.lease_s))
    led = leader.take(starting=True)
    if led is not None and not runs.executor.capabilities.shared:
        raise AlreadyRunning(
            f"the database belongs to the server {led.place}, which runs jobs as processes of its machine: another server "
            "would run them on its own",
            next_step=f"use that one; if it was killed, start this one again in {led.left_ns / SECOND:.0f} s",
        )
    try:
        marks.require_same(blobs, database, place)
    except DanluError:
        leader.stop(LOOPS_END_S)
        raise
    warnings = (settled.told,) if settled.told else ()
    return Composition(settings, platform, runs, workers, leader, warnings, hints)


def candidate(home: Path, boot: str) -> Candidate:
    """Returns this process as one that may lead; whoever holds the same folder's lock is its only process.

    Where this machine's boot has no id, as in some sandboxes, another machine's folder could have the same name.
    """
    lock = (home / "lock").stat()
    return Candidate(
        holder=secrets.token_hex(16),
        place=f"{socket.gethostname()}, process {os.getpid()}, {home}"[:MAX_PLACE],
        folder=f"{boot}:{lock.st_dev}:{lock.st_ino}" if boot else "",
    )


def _begin(
    settings: Settings, platform: Platform, runs: Runs, launches: Launches, beside: Beside, term: Term
) -> list[Loop]:
    """Returns the controllers of a term. They know nothing of an earlier one."""
    database, executor = Fenced(platform.database, term), LedExecutor(runs.executor, term)
    clock, hub, blobs, streams = platform.clock, platform.hub, platform.blobs, platform.streams
    builder, launching, keeping, building = beside
    nodes = NodesController(database, executor, clock, hub)
    nodes.begin()  # the first submit must know what could ever fit
    known = Kept(ATTEMPTS)
    steps: list[tuple[str, Callable[[], float], str]] = [
        ("nodes", nodes.step, "nodes"),
        ("scheduling", SchedulingController(
            database, clock, hub, executor.capabilities.name, recording=Recording(streams), known=known).step, "jobs"),
        ("attempts", AttemptsController(database, executor, clock, hub, launches, launching, known=known).step, "attempts"),
        ("collection", CollectionController(
            database, executor, executor, blobs, streams, clock, hub, keeping, known=known).step, "output"),
        ("environments", EnvironmentsController(
            database, builder, streams, clock, hub, building, runs.images,
            Packing(builder, blobs, clock, hub) if executor.capabilities.archives else None).step, "environments"),
        ("stored", StoredController(database, executor, blobs, clock).step, "stored"),
        ("nonces", NoncesController(database, clock).step, "nonces"),
        ("events", EventsController(
            database, clock, kept_days=settings.events_kept_days, most=settings.max_events).step, "events"),
    ]  # fmt: skip
    if settings.database_url is None:
        steps.append(("backups", lambda: _back_up(settings, clock), "backups"))
    return [Loop(name, step, hub, topic) for name, step, topic in steps]


def _builder(settings: Settings, *, portable: bool = False) -> Builder:
    root, cache = settings.home / "environments", settings.home / "cache" / "uv"
    return Builder(root, cache, images=settings.environment_images, portable=portable)


def _facts(settings: Settings, can: Capabilities, now: int) -> PlatformFacts:
    root = os.geteuid() == 0 or Layer.SEPARATE_USER in can.layers
    limits = Layer.MEMORY_LIMIT in can.layers
    return PlatformFacts(
        home=str(settings.home), started_at=now, host_environment=can.host_environment,
        isolation="one user for each project" if root else "all jobs run as you", separate_users=root,
        images=can.images, no_images=can.no_images, layers=can.layers, no_layers=can.no_layers,
        warnings=() if limits else ("memory and CPU limits cannot be set on this machine: no control groups",),
    )  # fmt: skip


def diagnose(settings: Settings, builder: Builder, built: Sequence[Environment], *, index: bool) -> tuple[Check, ...]:
    """Returns what every part sees of itself and this machine. Changes nothing."""
    uv = Uv(settings.home / "cache" / "uv", settings.home / "environments" / ".python")
    return (
        *diagnosis.checks(settings.home, sqlite=settings.database_url is None),
        *checks(settings),
        *bucket_checks(settings.blobs, settings.aws),
        *environments_diagnosis.checks(builder, uv, built, index=index),
    )


def _first_project(tx: Transaction, now: int) -> None:
    if PROJECTS.get(tx, DEFAULT_PROJECT) is None:
        PROJECTS.add(tx, Project(id=DEFAULT_PROJECT, project=DEFAULT_PROJECT, number=0, created_at=now, updated_at=now))


def _back_up(settings: Settings, clock: Clock) -> float:
    folder = settings.home / sqlite_file.BACKUPS
    now_s = clock.now() / 1e9
    times = (path.stat().st_mtime for path in folder.glob(sqlite_file.BACKUP_PATTERN))
    newest = max((at for at in times if at <= now_s), default=0.0)  # one of the future: the clock was wrong then
    left = newest + settings.backup_every_s - now_s
    if left > 0:
        return left
    sqlite_file.backup(settings.home / "danlu.db", folder, now=clock.now())
    return settings.backup_every_s


def serve(composition: Composition, doors: Doors) -> None:
    """Serves until a signal or ``danlu down`` ends it."""
    settings, platform, certificate = composition.settings, composition.platform, doors.certificate
    platform.url = doors.listening.url
    public_url = doors.listening.public_url(settings.host, "http" if certificate is None else "https")
    uploads = settings.home / "cache" / "uploads"
    uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    limits = Limits(requests_per_s=settings.user_requests_per_s, burst_requests=settings.user_burst_requests)
    application, bound = edge.build(platform, uploads, composition.runs.executor, limits)
    facts = {
        "url": platform.url, "pid": os.getpid(), "start_time": formats.start_time(os.getpid()),
        "boot_id": formats.boot_id(), "version": __version__, "home": str(settings.home), "public_url": public_url,
        "fingerprint": "" if certificate is None else certificate.fingerprint,
        "warnings": [*composition.warnings, *doors.warnings],
    }  # fmt: skip
    described = settings.home / "platform.json"

    def ready() -> None:
        try:
            remember_port(settings.home, doors.listening.port)
        except OSError as error:  # a full disk, say: the next start may find another one
            LOG.warning("the port is not remembered: %s", error)
        formats.write_atomically(str(described), json.dumps(facts).encode())
        say(settings.ready_fd, {"ready": True, "url": platform.url})
        LOG.info("danlu %s serves %s at %s %s", __version__, settings.home, platform.url, public_url)

    def ending() -> None:
        bound.streams.end()
        # another server need not wait for the last answers of this one
        threading.Thread(target=composition.leader.stop, args=(LOOPS_END_S,), name="giving away", daemon=True).start()

    quiet, listening = Quiet(), doors.listening
    config = uvicorn.Config(
        Gate(application, platform, lambda: server.started, limits), log_config=None, access_log=False, lifespan="off",
        loop="asyncio",  # whose transports TLS is started on
        # h11 bounds a request's head, which httptools does not: a stranger can send one
        http=counted(quiet), h11_max_incomplete_event_size=MAX_HEAD_BYTES, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACEFUL_S, server_header=False, proxy_headers=False,
        ws="websockets-sansio", ws_max_size=MAX_MESSAGE_BYTES, ws_per_message_deflate=False,
    )  # fmt: skip
    secured = None if certificate is None else (listening.outer, tls.context(certificate))
    plain = [one for one in (listening.inner, None if secured else listening.outer) if one is not None]
    server = Server(config, quiet, secured, ready=ready, ending=ending)

    def stop(jobs_first: bool) -> None:
        def wait_and_end() -> None:
            while jobs_first and platform_service.any_live(platform):
                platform.hub.wait("jobs", platform.hub.count("jobs"), 1.0)
            until = time.monotonic() + COLLECT_S  # what is not kept by then is kept after the next start
            while jobs_first and platform_service.any_uncollected(platform) and time.monotonic() < until:
                platform.hub.wait("jobs", platform.hub.count("jobs"), 0.2)
            server.should_exit = True

        threading.Thread(target=wait_and_end, name="stopping", daemon=True).start()

    platform.stop_server = stop
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended: then they end nothing
        signal.signal(number, lambda *_: None)
    composition.leader.start()
    try:
        server.run(sockets=plain)
    finally:
        described.unlink(missing_ok=True)


def say(descriptor: int | None, line: dict[str, Any]) -> None:
    """Tells whoever started the server; nobody may be there any more."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            os.close(descriptor)


def prepare_home(settings: Settings) -> None:
    """Makes the data folder and the runtime folder, closed to others as far as jobs allow."""
    os.umask(0o022)
    settings.home.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings.home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    runtime = runtime_folder(settings.home, os.environ, uid=os.geteuid())
    runtime.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    status = runtime.lstat()
    if runtime.is_symlink() or status.st_uid != os.geteuid():
        raise PlatformError(
            f"{runtime} belongs to another user", next_step="set XDG_RUNTIME_DIR to a folder of your own"
        )


def allow_many_files() -> None:
    """Raises the limit of open files as far as it may be: a server that runs out of them cannot even look."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(make: Make = chosen) -> int:
    """Runs a server; returns its exit code where it could not start, and ends the process where it could."""
    asked = flags(sys.argv[1:])
    try:
        settings = settings_of(asked, os.environ)
    except PlatformError as error:
        sys.stderr.write(f"{error.message}\n  {error.next_step}\n")
        say(asked.ready_fd, {"error": error.to_problem()})
        return 1
    if settings.diagnose is not None:
        builder = _builder(settings)
        found = diagnose(settings, builder, (), index=settings.diagnose == "all")
        sys.stdout.write(json.dumps([check.model_dump(mode="json") for check in found]) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateLimit())
    try:
        allow_many_files()
        prepare_home(settings)
        take_lock(settings.home)
        doors = listen(settings)
        for warning in doors.warnings:
            LOG.warning("%s", warning)
        with storage_full_is_an_error("the start of the server"):
            composition = compose(settings, make)
    except DanluError as error:
        LOG.error("%s %s", error.message, error.next_step)
        say(settings.ready_fd, {"error": error.to_problem()})
        return 1
    except OSError as error:
        failed = PlatformError(f"the server cannot start in {settings.home}: {error}")
        LOG.error("%s", failed.message, exc_info=error)
        say(settings.ready_fd, {"error": failed.to_problem()})
        return 1
    try:
        serve(composition, doors)
    finally:
        composition.close()
    # threads that are still building or copying end here, with the process and its lock: as after a kill, the next
    # server begins their work again, and no two servers are ever at it
    logging.shutdown()
    os._exit(0)
