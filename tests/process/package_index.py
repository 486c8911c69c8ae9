"""Whether this machine reaches a package index, asked once; an index of our own; and where builds are kept between runs."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from uv import find_uv_bin

from danlu.environments import sweeping
from danlu.environments.builder import FACTS
from danlu.environments.mirrors import uv_variables
from tests.conftest import cannot_run

PROBE_TIMEOUT_S = 60
DAY_S = 86_400.0


@functools.cache
def _unreachable() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "requirements.txt").write_text("six\n")
        (Path(folder) / "uv.toml").touch()
        command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-cache", "requirements.txt"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=uv_variables(os.environ),
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {PROBE_TIMEOUT_S} s"
    return None if done.returncode == 0 else done.stderr.strip()[-300:]


def require_index() -> None:
    """Skips the test, with the reason, where no package index can be reached; fails it where nothing may be skipped."""
    reason = _unreachable()
    if reason is not None:
        cannot_run(f"no package index can be reached from this machine: {reason}")


def kept_environments() -> Path:
    """Returns the folder for built environments; what no test has asked for in a day is removed, as they are large."""
    folder = kept_folder() / "environments"
    folder.mkdir(parents=True, exist_ok=True)
    used = {facts.parent.name: facts.stat() for facts in folder.glob(f"*/{FACTS}")}
    old = [name for name, file in used.items() if time.time() - max(file.st_mtime, file.st_atime) > DAY_S]
    if old:
        sweeping.discard(folder, sweeping.doom(folder, old), [kept_folder() / "uv"])
    return folder


def kept_folder() -> Path:
    """Returns the folder for what is built once per machine."""
    return Path(os.environ.get("DANLU_TEST_CACHE") or Path.home() / ".cache" / "danlu-tests")


SETUP = """\
import os, socket, sys, time
from setuptools import Extension, setup
{first}
try:
    reached = socket.create_connection(("127.0.0.1", int({port})), 5)
except OSError as error:
    reached = error
with open("tiny_build.py", "w") as file:
    file.write("variables = " + repr(dict(os.environ)) + "; uid = " + str(os.getuid()) + "; network = " + repr(str(reached)))
setup(
    name="danlu-tiny", version="1.0", py_modules=["tiny_build"], ext_modules=[Extension("tiny", ["tiny.c"])],
)
"""
MODULE = """\
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny", 0, -1, 0};
PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&module); }
"""


def make_source(folder: Path, *, first: str = "", port: int = 0, module: str = MODULE) -> str:
    """Writes the source of ``danlu-tiny`` 1.0, a module in C; returns its SHA-256.

    Args:
        folder: the index's.
        first: what its build does first.
        port: what its build tries to reach.
        module: the program in C.
    """
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: danlu-tiny\nVersion: 1.0\n",
        "setup.py": SETUP.format(first=first, port=port),
        "tiny.c": module,
    }
    path = folder / "danlu_tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"danlu_tiny-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Listing(SimpleHTTPRequestHandler):
    """Lists and sends the files of a folder to those who have the password."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.headers.get("Authorization") != "Basic " + base64.b64encode(PASSWORD.encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


PASSWORD = "somebody:not-for-builds"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Serves a folder's packages at ``http://PASSWORD@127.0.0.1:PORT/``; yields the port, and what is asked for."""
    asked: list[str] = []
    handler = type("Listing", (_Listing,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
