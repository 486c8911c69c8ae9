"""Container images made from files of this machine, without any registry, and brought to the nodes."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.cluster import builds, layout
from tests.kubernetes.cluster.processes import ClusterError, command

REGISTRY = "danlu.test"
PAUSE = f"{REGISTRY}/pause:1"
PYTHON = f"{REGISTRY}/python:1"
BUSYBOX = f"{REGISTRY}/busybox:1"
"""Has a shell, and no Python at all."""
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT_FOLDERS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
EMPTY_FOLDERS = ("proc", "sys", "dev", "run", "tmp", "root", "home", "etc", "var/tmp", "var/lib", "var/log")
PACKAGES = ("python3", "bash", "dash", "coreutils", "procps", "iproute2", "curl", "ca-certificates", "sed", "grep",
            "findutils", "util-linux", "libc-bin", "libstdc++6", "tar", "gzip", "hostname")  # fmt: skip
"""Debian packages of the image with Python; what they depend on comes with them."""
IMPORT_TIMEOUT_S = 600.0
Layer = Callable[[tarfile.TarFile], None]
"""Writes a layer's files."""


@dataclass(frozen=True)
class Image:
    """An image's file, and what it is called."""

    name: str
    archive: Path

    @property
    def digest(self) -> str:
        return self.archive.with_suffix(".digest").read_text()


def folder() -> Path:
    """Returns the cache's folder for images that are made by this file as it is."""
    path = builds.cache() / "images" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    return path


def base() -> list[Image]:
    """Returns the images that each node has from the start, made where they are not in the cache."""
    pause = ["/bin/busybox", "sleep", "2147483647"]
    return [
        _made(PAUSE, [_busybox], pause),
        _made(BUSYBOX, [_busybox]),
        _made(PYTHON, [_debian]),
    ]


def from_folder(name: str, content: Path, at: str = "/", on: str = PYTHON, command: Sequence[str] = ()) -> Image:
    """Makes an image of a folder's files at a path, over another image's; returns it, to be brought to nodes.

    Owners are kept as they are. An image of that name is made again.
    """
    below = {PYTHON: _debian, BUSYBOX: _busybox, "": None}[on]

    def layer(tar: tarfile.TarFile) -> None:
        tar.add(content, at.strip("/") or ".")

    return _made(name, [*([below] if below else []), layer], command, again=True)


def load(image: Image, nodes: Iterable[str] = layout.NODES) -> None:
    """Brings an image to nodes that run; one that has it already is left alone."""
    for node in nodes:
        noted = layout.disk(node) / "loaded" / image.archive.stem
        if noted.exists() and noted.read_text() == image.digest:
            continue
        command("ctr", "--address", layout.runtime(node), "--namespace", "k8s.io", "images", "import",
                "--snapshotter", "overlayfs", image.archive, timeout_s=IMPORT_TIMEOUT_S)  # fmt: skip
        noted.parent.mkdir(exist_ok=True)
        noted.write_text(image.digest)


def unload(image: Image, nodes: Iterable[str] = layout.NODES) -> None:
    """Removes an image from nodes that run, and its archive."""
    for node in nodes:
        command("ctr", "--address", layout.runtime(node), "--namespace", "k8s.io", "images", "rm", image.name)
        (layout.disk(node) / "loaded" / image.archive.stem).unlink(missing_ok=True)
    for suffix in (".tar", ".digest", ".lock"):
        image.archive.with_suffix(suffix).unlink(missing_ok=True)


def _made(name: str, layers: Sequence[Layer], command: Sequence[str] = (), *, again: bool = False) -> Image:
    """Returns an image, written as the archive that `docker save` writes and containerd imports."""
    file = name.removeprefix(f"{REGISTRY}/").replace("/", "_").replace(":", "_")
    image = Image(name if "/" in name else f"{REGISTRY}/{name}", folder() / f"{file}.tar")
    with builds.locked(folder() / f"{file}.lock"):
        if again or not image.archive.with_suffix(".digest").exists():
            with tempfile.TemporaryDirectory(dir=folder()) as place:
                _write(image, [_layer(layer, Path(place, str(number))) for number, layer in enumerate(layers)], command)
    return image


def _layer(layer: Layer, fresh: Path) -> Path:
    """Returns a layer's file, written anew unless it is of those that images are made upon."""
    kept = folder() / f"{layer.__name__}.layer" if layer in (_busybox, _debian) else fresh
    if kept.exists():
        return kept
    with tarfile.open(fresh, "w", format=tarfile.PAX_FORMAT) as tar:
        layer(tar)
    return fresh.replace(kept)


def _write(image: Image, layers: Sequence[Path], command: Sequence[str]) -> None:
    digests = []
    for path in layers:
        with path.open("rb") as file:
            digests.append(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {"Env": [PATH, "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"], "WorkingDir": "/",
                   "Cmd": list(command) or ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [{"created": "1970-01-01T00:00:00Z"} for _ in digests],
    }, sort_keys=True).encode()  # fmt: skip
    digest = hashlib.sha256(config).hexdigest()
    names = [f"layer-{number}.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": [image.name], "Layers": names}]).encode()
    fresh = image.archive.with_suffix(".new")
    with tarfile.open(fresh, "w") as tar:
        _add_bytes(tar, "manifest.json", manifest)
        _add_bytes(tar, f"{digest}.json", config)
        for path, name in zip(layers, names, strict=True):
            tar.add(path, name)
    fresh.replace(image.archive)
    image.archive.with_suffix(".digest").write_text(digest)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _add_root(tar: tarfile.TarFile) -> None:
    """Adds the folders and accounts that any image has."""
    for name in EMPTY_FOLDERS:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
        tar.addfile(entry)
    people = (("root", 0, "/root"), ("user", 1000, "/home"), ("nobody", 65534, "/nonexistent"))
    _add_bytes(tar, "etc/passwd", "".join(f"{n}:x:{i}:{i}::{home}:/bin/sh\n" for n, i, home in people).encode())
    _add_bytes(tar, "etc/group", "".join(f"{n}:x:{i}:\n" for n, i, _ in people).encode())


def _busybox(tar: tarfile.TarFile) -> None:
    program = shutil.which("busybox", path="/usr/bin:/bin")
    if program is None:
        raise ClusterError("the program `busybox` is not on this machine: apt install busybox-static")
    _add_root(tar)
    _add_bytes(tar, "bin/busybox", Path(program).read_bytes(), 0o755)
    for applet in command(program, "--list").split():
        if applet != "busybox":
            _add_link(tar, f"bin/{applet}", "busybox")


def _debian(tar: tarfile.TarFile) -> None:
    """Adds the files of this machine's own Debian packages: no mirror is asked, nothing is installed."""
    if shutil.which("dpkg-query") is None:
        raise ClusterError("images with Python are made from Debian's packages, and this machine has no dpkg-query")
    _add_root(tar)
    for name, target in ROOT_FOLDERS.items():
        _add_link(tar, name, target)
    added = set(ROOT_FOLDERS) | set(EMPTY_FOLDERS) | {"etc/passwd", "etc/group"}
    for path in [
        *_files(_closure(PACKAGES)),
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/bin/awk",
        "/etc/alternatives/awk",
    ]:
        name = _merged(path.lstrip("/"))
        if name in added or not name or name.startswith(("usr/share/doc/", "usr/share/man/", "usr/share/locale/")):
            continue
        added.add(name)
        try:
            kind = Path(path).lstat().st_mode
        except FileNotFoundError:
            continue  # a package's file that somebody removed, or moved aside
        if stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind):
            tar.add(path, name, recursive=False)
    _add_bytes(tar, "etc/ld.so.conf", b"/usr/lib/x86_64-linux-gnu\n")
    _add_bytes(tar, "etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")


def _merged(name: str) -> str:
    """Returns where a path is on a system whose /bin and /lib are in /usr."""
    first, _, rest = name.partition("/")
    return f"{ROOT_FOLDERS[first]}/{rest}" if first in ROOT_FOLDERS and rest else name


def _closure(wanted: Sequence[str]) -> list[str]:
    """Returns the packages of this machine that are wanted, with all that they depend on."""
    depends: dict[str, list[str]] = {}
    provided: dict[str, str] = {}
    lines = command("dpkg-query", "-W", "-f", "${Package}\t${Status}\t${Provides}\t${Pre-Depends}, ${Depends}\n")
    for line in lines.splitlines():
        package, status, provides, asked = line.split("\t")
        if status.endswith(" installed"):
            depends[package] = [
                one.split()[0].split(":")[0] for part in asked.split(",") for one in part.split("|") if one.strip()
            ]
            provided.update({one.split()[0]: package for one in provides.split(",") if one.strip()})
    lacking = sorted(set(wanted) - set(depends))
    if lacking:
        raise ClusterError(
            f"packages for the image with Python are not on this machine: apt install {' '.join(lacking)}"
        )
    found: set[str] = set()
    queue = list(wanted)
    while queue:
        name = queue.pop()
        package = name if name in depends else provided.get(name, "")
        if package and package not in found:
            found.add(package)
            queue += depends[package]
    return sorted(found)


def _files(packages: Sequence[str]) -> Iterator[str]:
    for line in sorted(set(command("dpkg-query", "-L", *packages).splitlines())):
        if line.startswith("/") and line != "/.":
            yield line
