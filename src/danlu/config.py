"""Settings of a server: every option, its unit, its default. Read once, in server/main.py."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_PORT: Final = 7070
PORTS_TRIED: Final = 100
EVENTS_KEPT_DAYS: Final = 400.0
MAX_EVENTS: Final = 10_000_000
LEASE_S: Final = 5.0
"""Not less: it is longer than PostgreSQL lets a write stand still (database/engine.py)."""
MAX_LEASE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server runs.

    Attributes:
        home: the data folder (``DANLU_HOME``).
        host: the address to listen on; another one than loopback needs TLS.
        tls_cert: a certificate in PEM, with its chain; with ``tls_key``.
        tls_key: its key.
        self_signed: serve with a certificate made here.
        insecure_http: serve others without TLS.
        port: None: the one that it last had, at first the first free one from 7070 on.
        gpus: declared GPUs, such as ``8`` or ``2:h100``; None: what the driver shows.
        database_url: None: SQLite in the data folder. Read from ``DANLU_DATABASE_URL`` only: it may hold a password.
        ready_fd: where to say, in one JSON line, that the server is ready or why it is not.
        new_master: go on though what another master key has sealed is lost.
        user_requests_per_s: how many requests one user may send, over all keys and tokens, on average.
        user_burst_requests: and at once, after a pause.
        events_kept_days: how long an event is kept, a call (who did what) too.
        max_events: how many are kept, however young the others are.
        backup_every_s: time between two copies of a SQLite database.
        lease_s: how long after its last sign of life another server takes the lead, with PostgreSQL.
        diagnose: print what is not well, as JSON, instead of serving: ``all``, or ``local`` without the package index.
    """

    home: Path
    host: str = "127.0.0.1"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    self_signed: bool = False
    insecure_http: bool = False
    port: int | None = None
    gpus: str | None = None
    database_url: str | None = None
    ready_fd: int | None = None
    new_master: bool = False
    user_requests_per_s: float = 500.0
    user_burst_requests: int = 1000
    events_kept_days: float = EVENTS_KEPT_DAYS
    max_events: int = MAX_EVENTS
    backup_every_s: float = 86_400.0
    lease_s: float = LEASE_S
    diagnose: str | None = None


def default_home(environ: Mapping[str, str], *, root: bool) -> Path:
    """Returns the data folder: ``DANLU_HOME``, else ``/var/lib/danlu`` for root, else below the user's data folder."""
    if environ.get("DANLU_HOME"):
        return Path(environ["DANLU_HOME"]).expanduser().absolute()
    if root:
        return Path("/var/lib/danlu")
    share = Path(environ.get("XDG_DATA_HOME", ""))
    return (share if share.is_absolute() else Path.home() / ".local" / "share") / "danlu"  # a relative one is no folder


def runtime_folder(home: Path, environ: Mapping[str, str], *, uid: int) -> Path:
    """Returns the folder for sockets, whose paths are limited to 108 bytes: one for each data folder."""
    import hashlib

    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]
    if uid == 0:
        return Path("/run/danlu") / digest
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"]) / f"danlu-{digest}"
    return Path("/tmp") / f"danlu-{uid}-{digest}"  # noqa: S108 - made 0700 and checked to be ours before it is used


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Returns the settings from the command line and the environment; exits with 2 on wrong usage."""
    import argparse

    parser = argparse.ArgumentParser(prog="danlu.server", description="The Danlu server; usually started by: danlu up")
    parser.add_argument("--home", type=Path, help="the data folder")
    parser.add_argument(
        "--port", type=int, help=f"the port; else the last one, or the first free one from {DEFAULT_PORT} on"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; beyond loopback, TLS is needed")
    parser.add_argument("--tls-cert", type=Path, help="a certificate in PEM, with its chain")
    parser.add_argument("--tls-key", type=Path, help="its key in PEM, which only its owner may read")
    parser.add_argument("--tls", choices=("self-signed",), help="a certificate made here, which danlu login pins")
    parser.add_argument("--insecure-http", action="store_true", help="serve other machines without TLS")
    parser.add_argument("--gpus", help="declare GPUs: 8, or 2:h100,1:a100; without it the driver is asked")
    parser.add_argument("--ready-fd", type=int, help="file descriptor to say one JSON line to, once ready")
    parser.add_argument(
        "--diagnose", choices=("all", "local"), help="print what is not well, as JSON; danlu doctor shows it"
    )
    parser.add_argument("--new-master-key", action="store_true", help="go on with a new one: the old one is lost")
    parser.add_argument(
        "--user-requests-per-s",
        type=_finite,
        default=500.0,
        help="what one user may send on average; twice as many at once",
    )
    parser.add_argument(
        "--events-kept-days", type=_finite, default=EVENTS_KEPT_DAYS, help="how long it is kept who did what"
    )
    parser.add_argument(
        "--max-events",
        type=int,
        default=MAX_EVENTS,
        help="how many events are kept, however young the others are",
    )
    parser.add_argument(
        "--lease-s",
        type=_finite,
        default=LEASE_S,
        help="how long after its last sign of life another server takes the lead, with PostgreSQL; 5 to 300",
    )
    found = parser.parse_args(list(arguments))
    home = found.home.expanduser().absolute() if found.home else default_home(environ, root=os.geteuid() == 0)
    return Settings(
        home=home,
        host=found.host,
        tls_cert=found.tls_cert,
        tls_key=found.tls_key,
        self_signed=found.tls == "self-signed",
        insecure_http=found.insecure_http,
        port=found.port,
        gpus=found.gpus,
        database_url=environ.get("DANLU_DATABASE_URL") or None,
        ready_fd=found.ready_fd,
        user_requests_per_s=max(1.0, found.user_requests_per_s),
        user_burst_requests=max(1, round(2 * found.user_requests_per_s)),
        events_kept_days=max(1.0, found.events_kept_days),
        max_events=max(1000, found.max_events),
        lease_s=min(max(LEASE_S, found.lease_s), MAX_LEASE_S),
        new_master=found.new_master_key,
        diagnose=found.diagnose,
    )
