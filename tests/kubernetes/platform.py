"""A platform as a company has it: two servers, PostgreSQL, an S3 store, pods of a real cluster; and what stands before it."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import Cluster as PostgreSQL
from tests.kubernetes.cluster import layout
from tests.kubernetes.cluster.images import PYTHON
from tests.kubernetes.conftest import Namespace
from tests.process.package_index import kept_environments, kept_folder
from tests.process.platform import Server
from tests.s3_server import S3Server

CHUNK_BYTES = 64 * 1024
CONNECT_S = 1.0


class Balancer:
    """Passes each connection on to the first of some servers that takes it, as a Service does."""

    def __init__(self, host: str) -> None:
        self._listening = socket.create_server((host, 0), backlog=256)
        self.targets: list[tuple[str, int]] = []
        self.url = "http://{}:{}".format(*self._listening.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client:
            for target in self.targets:
                with contextlib.suppress(OSError), socket.create_connection(target, CONNECT_S) as server:
                    server.settimeout(None)
                    _copy(client, server)
                    return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _copy(one: socket.socket, other: socket.socket) -> None:
    ends = {one: other, other: one}
    while True:
        for ready in select.select(list(ends), [], [])[0]:
            data = ready.recv(CHUNK_BYTES)
            if not data:
                return
            ends[ready].sendall(data)


class Company:
    """The platform: ``servers`` are its two, or those named, of which the first leads at the beginning."""

    def __init__(
        self, namespace: Namespace, database: PostgreSQL, store: S3Server, folder: Path, servers: str = "ab", **environ: str
    ) -> None:  # fmt: skip
        self.namespace = namespace
        self.balancer = Balancer(layout.HOST)
        name = f"d{secrets.token_hex(4)}"
        database.execute(f"CREATE DATABASE {name}")
        self.environ = {
            **store.environment(), "DANLU_BLOBS": f"s3://{store.make_bucket(name)}/platform",
            "DANLU_DATABASE_URL": database.url(name).replace("+psycopg", ""), "DANLU_MASTER_KEY": secrets.token_hex(32),
            "DANLU_EXECUTOR": "kubernetes", "DANLU_KUBECONFIG": str(layout.kubeconfig()), "DANLU_POD_IMAGE": PYTHON,
            "DANLU_KUBERNETES_NAMESPACE": namespace.name, "DANLU_POD_URL": self.balancer.url, **environ,
        }  # fmt: skip
        self.servers = [self._server(folder / name) for name in servers]

    def _server(self, home: Path) -> Server:
        home.mkdir(mode=0o700)
        (home / "cache").mkdir()
        for name in ("uv", "wheels"):
            (kept_folder() / name).mkdir(parents=True, exist_ok=True)
            (home / "cache" / name).symlink_to(kept_folder() / name)
        (home / "environments").symlink_to(kept_environments())
        return Server(home, "--host", layout.HOST, "--insecure-http", environ=self.environ)

    def start(self) -> None:
        for server in self.servers:
            said = server.start()
            assert said.get("ready"), said
            self.balancer.targets.append((layout.HOST, int(server.url.rpartition(":")[2])))

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.balancer.close()


@contextlib.contextmanager
def company(namespace: Namespace, database: PostgreSQL, store: S3Server) -> Iterator[Company]:
    """Yields a running platform."""
    with tempfile.TemporaryDirectory(prefix="danlu-company-") as folder:
        Path(folder).chmod(0o711)
        made = Company(namespace, database, store, Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.close()
