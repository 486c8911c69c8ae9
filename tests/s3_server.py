"""A real S3 server for tests: versitygw over a folder, started, killed and started again at will."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import cannot_run
from tests.executors import free_ports
from tests.kubernetes.cluster import builds

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10
POLL_S = 0.02


class S3Server:
    """One server with keys, a port and a folder of its own: what was stored outlives `kill` and `restart`, not `stop`.

    `host` is the address to listen at: that of the test cluster's bridge where pods are to reach it.
    """

    region = "us-east-1"

    def __init__(self, host: str = "127.0.0.1") -> None:
        if builds.missing("versitygw"):
            cannot_run("the S3 server is not built: python3 -m tests.kubernetes.cluster build versitygw")
        self.access_key = "AK" + secrets.token_hex(9).upper()
        self.secret_key = secrets.token_hex(20)
        self.address = (host, free_ports(1)[0])
        self.folder = Path(tempfile.mkdtemp(prefix="danlu-s3-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its URL; buckets are addressed by path."""
        return "http://{}:{}".format(*self.address)

    def environment(self) -> dict[str, str]:
        """Returns the variables by which clients find the server and its keys."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": self.region, "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip

    def make_bucket(self, name: str) -> str:
        """Makes a bucket, which is a folder to this server; returns its name."""
        (self.folder / "data" / name).mkdir()
        return name

    def start(self) -> Self:
        """Starts the server and waits until it answers."""
        for name in ("data", "metadata"):
            (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [builds.program("versitygw"), "--port", "{}:{}".format(*self.address), "--region", self.region,
                 "--quiet", "--keep-alive", "posix", "--sidecar", self.folder / "metadata", self.folder / "data"],
                env={"PATH": os.defpath, "ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key},
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text()[-2000:]
                self.kill()
                raise RuntimeError(
                    f"the S3 server did not answer at {self.endpoint} within {START_TIMEOUT_S} s: {said}"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_S)
        return self

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(*self.address, timeout=STOP_TIMEOUT_S)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500  # 403: nobody has signed
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """Ends the server at once, as a crash does; its folder stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Starts the server again with what it had stored, at the same address with the same keys."""
        self.kill()
        return self.start()

    def stop(self) -> None:
        """Ends the server and removes what it stored."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
