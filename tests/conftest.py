"""Fixtures for all tests: databases of both kinds, and the rule for what a machine cannot run."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from danlu.database.engine import Database

if TYPE_CHECKING:
    from tests.s3_server import S3Server

POSTGRES = Path("/usr/lib/postgresql/15/bin")
START_TIMEOUT_S = 60
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: what tests start must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile(
    "danlu", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("danlu")


def cannot_run(reason: str) -> None:
    """Skips a test for what the machine lacks; fails it where everything is required (DANLU_REQUIRE_ALL=1)."""
    if os.environ.get("DANLU_REQUIRE_ALL") == "1":
        pytest.fail(f"DANLU_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


class Cluster:
    """A private PostgreSQL in a folder of its own, reached by a unix socket, and with a password where it listens."""

    def __init__(self, folder: Path, listen: tuple[str, int] | None = None) -> None:
        self.folder, (self.host, self.port) = folder, listen or ("", 5432)
        self._numbers = itertools.count(1)
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user, self._user)
        # an order of texts that differs from the bytes' own shows what relies on either
        self._run("initdb", "-U", "danlu", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--locale-provider=icu",
                  "--icu-locale=en", "--no-sync", "-D", str(folder / "data"))  # fmt: skip
        if listen:
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 10.0.0.0/8 scram-sha-256\n")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), "-D", str(self.folder / "data"), "-l",
                  str(self.folder / "log"), "-o", f"-c listen_addresses='{self.host}' -c port={self.port} "
                  f"-c unix_socket_directories='{self.folder}' "
                  "-c fsync=off -c max_connections=60 -c shared_buffers=32MB")  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(POSTGRES / program), *arguments], user=self._user, group=self._user,
            extra_groups=[] if self._user else None, cwd=self.folder, timeout=2 * START_TIMEOUT_S, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env={"PATH": os.defpath},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode()[-2000:]}")

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://danlu@/{name}?host={self.folder}&port={self.port}"

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), port=self.port, user="danlu", dbname=name, autocommit=True)

    def execute(self, statement: str) -> None:
        with self._connect("postgres") as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def count(self, name: str, query: str) -> int:
        """Returns the number that a query finds in a database."""
        with self._connect(name) as connection:
            row = connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0

    def create(self, template: str = "template1") -> str:
        """Makes a database and returns its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.folder / "data"))


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL for one test, which may stop it and start it again."""
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL with a migrated database called ``migrated``."""
    with running_cluster() as running:
        running.execute("CREATE DATABASE migrated")
        Database.open(running.url("migrated")).close()
        yield running


@contextlib.contextmanager
def running_cluster(listen: tuple[str, int] | None = None) -> Iterator[Cluster]:
    """A PostgreSQL of its own; `listen`: where it is reached by TCP too."""
    if not (POSTGRES / "initdb").exists():
        cannot_run(f"PostgreSQL 15 is not in {POSTGRES}")
    folder = Path(tempfile.mkdtemp(prefix="danlu-pg-", dir="/tmp"))  # a socket's path is limited to 108 bytes
    try:
        running = Cluster(folder, listen)
        try:
            yield running
        finally:
            with contextlib.suppress(RuntimeError):  # a test has stopped it
                running.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without a schema, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'danlu.db'}"
        return
    running: Cluster = request.getfixturevalue("cluster")
    name = running.create()
    yield running.url(name)
    running.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a fresh database, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'danlu.db'}"
        return
    running: Cluster = request.getfixturevalue("cluster")
    name = running.create("migrated")
    yield running.url(name)
    running.drop(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, empty database, of each kind."""
    opened = Database.open(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """An open, empty SQLite database."""
    opened = Database.open(f"sqlite:///{tmp_path / 'danlu.db'}")
    yield opened
    opened.close()


@pytest.fixture
def postgresql(cluster: Cluster) -> Iterator[Database]:
    """An open, empty PostgreSQL database."""
    name = cluster.create("migrated")
    opened = Database.open(cluster.url(name))
    yield opened
    opened.close()
    cluster.drop(name)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A running S3 server with a bucket called ``danlu``."""
    from tests.s3_server import S3Server

    with S3Server() as running:
        running.make_bucket("danlu")
        yield running


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Mounts file systems of a given size in bytes, where the machine allows it."""
    mounted: list[Path] = []

    def mount(size_bytes: int) -> Path:
        # not below pytest's own folders, which another run may be clearing away
        folder = Path(tempfile.mkdtemp(prefix="danlu-disk-", dir="/tmp"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            folder.rmdir()
            cannot_run("a small file system can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
