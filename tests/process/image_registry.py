"""Container images made from files of this machine, and a registry on the loopback that serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "env", "false", "head", "id", "kill", "ls", "ps", "sleep", "tail", "touch", "true")
LEFT_OUT = ("test", "tests", "__pycache__", "site-packages", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo")


class Registry:
    """Images by name, as the OCI distribution specification has them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.asked: list[str] = []
        """What was fetched, by its path."""
        self.let_through = threading.Event()
        """Blobs are sent while this is set."""
        self.let_through.set()

    def name(self, tag: str) -> str:
        return f"127.0.0.1:{self.port}/{tag}"

    def push(self, tag: str, layer: bytes, **config: Any) -> str:
        """Stores an image of one layer (a tar); returns its whole name."""
        packed = gzip.compress(layer, 1, mtime=0)
        described = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
        whole = json.dumps(described).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(whole), "size": len(whole)},
            "layers": [{"mediaType": LAYER, "digest": digest(packed), "size": len(packed)}],
        }
        data = json.dumps(manifest).encode()
        for kind, blob in ((LAYER, packed), (CONFIG, whole), (MANIFEST, data)):
            self.blobs[digest(blob)] = (kind, blob)
        self.tags[tag] = digest(data)
        return self.name(tag)

    def find(self, path: str) -> tuple[str, bytes] | None:
        """Returns what a request's path names."""
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(.+)", path)
        if match is None:
            return ("application/json", b"{}") if path == "/v2/" else None
        name, kind, reference = match.groups()
        if kind == "blobs":
            self.let_through.wait(60)
        return self.blobs.get(self.tags.get(f"{name}:{reference}", reference))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def serving() -> Iterator[Registry]:
    """Serves a registry for as long as it is open."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            registry.asked.append(self.path)
            kind, data = registry.find(self.path) or ("application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            self.send_response(200 if registry.find(self.path) else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            if kind == MANIFEST:
                self.send_header("Docker-Content-Digest", digest(data))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    registry = Registry(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        registry.let_through.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def _add(tar: tarfile.TarFile, name: str, source: Path | None = None, *, link: str = "", mode: int = 0o755) -> None:
    info = tarfile.TarInfo(name.strip("/"))
    info.mode = mode
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
        tar.addfile(info)
    elif source is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    else:
        data = source.read_bytes()
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def small() -> bytes:
    """Returns a root file system of a shell and a few programs, some of whose folders are closed or another user's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "root"):
            _add(tar, folder, mode=0o700 if folder == "root" else 0o755)
        _add(tar, "bin/busybox", BUSYBOX)
        for applet in APPLETS:
            _add(tar, f"bin/{applet}", link="busybox")
        foreign = tarfile.TarInfo("foreign")
        foreign.uid = foreign.gid = 12_345
        tar.addfile(foreign, io.BytesIO())
    return packed.getvalue()


def with_python() -> bytes:
    """Returns a root file system of this Python, the shared libraries that it needs, and nothing else."""
    real = Path(sys.executable).resolve()
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        _add(tar, "tmp", mode=0o777)
        _add(tar, "bin/python", link=str(real))
        extensions = sorted((library / "lib-dynload").glob("*.so"))
        for path in sorted({real, *_libraries([real, *extensions])}):
            _add(tar, str(path), path)
        for path in sorted(library.rglob("*")):
            inner = path.relative_to(library).parts
            if path.is_file() and not {*inner} & {*LEFT_OUT} and not inner[0].startswith("config-"):
                _add(tar, str(path), path)
    return packed.getvalue()


def _libraries(files: list[Path]) -> set[Path]:
    said = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}


def trusting(registry: Registry, folder: Path) -> Path:
    """Writes the configuration by which podman speaks plain HTTP to the registry; everybody may read it."""
    file = folder / "registries.conf"
    file.write_text(f'[[registry]]\nlocation = "127.0.0.1:{registry.port}"\ninsecure = true\n')
    file.chmod(0o644)
    return file


def missing(*programs: str) -> str | None:
    """Returns the first of these programs that this machine lacks."""
    return next((one for one in programs if shutil.which(one) is None), None)
