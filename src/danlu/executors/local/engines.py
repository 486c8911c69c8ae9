"""Which container engine this machine has, and whether it can be used: found out once, as data."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROBE_TIMEOUT_S: Final = 10.0
OLDEST_PODMAN: Final = (4, 1)
"""The first that can be told which variables, user and init to use, and that knows GPUs by CDI."""
NATIVE_OVERLAY: Final = (5, 13)
"""The kernel from which a user may mount overlay file systems, and all that podman needs of them works."""
INITS: Final = (
    "/usr/libexec/podman/catatonit", "/usr/lib/podman/catatonit", "/usr/libexec/catatonit/catatonit",
    "/usr/bin/catatonit", "/usr/bin/tini-static",
)  # fmt: skip
SERVER_NAMES: Final = (
    "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "CONTAINERS_REGISTRIES_CONF", "REGISTRY_AUTH_FILE",
)  # fmt: skip
"""What of the server's environment an engine may be told."""
DOCKER_FACTS: Final = "{{.ServerVersion}} {{.MemoryLimit}} {{.CPUCfsQuota}} {{.PidsLimit}} {{.SecurityOptions}}"
CDI_FOLDERS: Final = ("etc/cdi", "var/run/cdi")


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that can be used.

    Attributes:
        name: podman or docker.
        path: its program.
        version: as it says it.
        options: what podman is told before its command, besides its folders.
        flags: what ``run`` is told on this machine.
        limits: limits that the engine sets itself, where the container is outside of the attempt's own control group.
        cdi: whether GPUs are described to it (Container Device Interface).
        user: whom its containers run as, by the engine's own numbers: 0:0 is the job's user where a container has
            users of its own.
        environ: what docker's client must know to find its daemon.
    """

    name: str
    path: str
    version: str
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    cdi: bool = False
    user: str = "0:0"
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is looked at; tests give another root and PATH."""

    root: Path = Path("/")
    path: str = PATH
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    environ: Mapping[str, str] = field(default_factory=dict)
    """What the engine's own settings come from: HOME, DOCKER_HOST, proxies."""
    kernel: str = field(default_factory=platform.release)

    def read(self, name: str) -> str:
        """Returns a file's text, or nothing where there is none."""
        try:
            return (self.root / name).read_text()
        except OSError:
            return ""

    def which(self, name: str) -> str | None:
        """Returns a program's path."""
        return shutil.which(name, path=self.path)

    def ask(self, *words: str) -> str | None:
        """Returns what a program prints, or None where it fails."""
        try:
            done = subprocess.run(
                words, env={"PATH": self.path, **self.environ}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=PROBE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None


def machine(environ: Mapping[str, str]) -> Machine:
    """Returns this machine, with what of a server's environment an engine may be told."""
    return Machine(environ={name: environ[name] for name in SERVER_NAMES if name in environ})


def detect(home: Path, machine: Machine) -> tuple[Engine | None, str]:
    """Returns the engine to use, or None, and why there is none.

    Podman comes first: as the job's own user it needs no daemon, so that all of a container lies below the runner. Docker's
    daemon gives root to whoever may speak to it, so that it serves only the user whose own jobs these are.
    """
    reasons = []
    tries: tuple[tuple[str, Callable[[str], Engine | str]], ...] = (
        ("podman", lambda path: _podman(path, home, machine)),
        ("docker", lambda path: _docker(path, machine)),
    )
    for name, looked_at in tries:
        path = machine.which(name)
        found = f"{name} is not installed" if path is None else looked_at(path)
        if isinstance(found, Engine):
            return found, ""
        reasons.append(found)
    return None, "; ".join(reasons)


def _podman(path: str, home: Path, machine: Machine) -> Engine | str:
    said = machine.ask(path, "--version") or ""
    numbers = re.search(r"(\d+)\.(\d+)[.\w-]*", said)
    if numbers is None:
        return f"podman cannot be run: {path} --version"
    if (int(numbers[1]), int(numbers[2])) < OLDEST_PODMAN:
        return f"podman {numbers[0]} is too old: {'.'.join(map(str, OLDEST_PODMAN))} or later is needed"
    if closed := _no_user_namespaces(machine):
        return f"podman cannot be used as a job's user: {closed}"
    init = next((init for init in INITS if (machine.root / init.lstrip("/")).exists()), None)
    if init is None:
        return "podman has no init for its containers: install catatonit"
    runtime = _runtime(machine)
    if runtime is None:
        return "podman has no runtime that can be used here: install crun (with version 1 control groups: runc)"
    program, flags = runtime
    options = ("--runtime", program, *_storage(home, machine))
    return Engine(
        "podman", path, numbers[0], options=options, flags=(*flags, "--init", f"--init-path={init}"), cdi=_cdi(machine)
    )


def _no_user_namespaces(machine: Machine) -> str:
    """Returns what forbids users to make user namespaces, if anything is known to."""
    for name, closed in (("user.max_user_namespaces", "0"), ("kernel.unprivileged_userns_clone", "0")):
        if machine.read(f"proc/sys/{name.replace('.', '/', 1)}").strip() == closed:
            return f"this machine allows no user namespaces (sysctl {name}={closed})"
    return ""


def _runtime(machine: Machine) -> tuple[str, tuple[str, ...]] | None:
    """Returns the OCI runtime, and the flags that leave its containers in the control group that they are started from.

    crun does so when told; it refuses machines with both versions of control groups where the second one has controllers.
    runc is refused that flag by podman, but as a user it cannot make groups under version 1, and goes on without.
    """
    version_2 = (machine.root / "sys/fs/cgroup/cgroup.controllers").exists()
    mixed = bool(machine.read("sys/fs/cgroup/unified/cgroup.controllers").strip())
    crun, runc = machine.which("crun"), machine.which("runc")
    if crun is not None and not mixed:
        return crun, ("--cgroups=disabled",)
    if runc is not None and not version_2:
        return runc, ()
    return None


def _storage(home: Path, machine: Machine) -> tuple[str, ...]:
    """Returns the storage driver's options: overlay by the kernel, else by FUSE, else whole copies."""
    numbers = re.match(r"(\d+)\.(\d+)", machine.kernel)
    new = numbers is not None and (int(numbers[1]), int(numbers[2])) >= NATIVE_OVERLAY
    if new and _file_system(home, machine) != "overlay":
        return ("--storage-driver=overlay",)
    fuse = machine.which("fuse-overlayfs")
    if fuse is not None and (machine.root / "dev/fuse").exists():
        return ("--storage-driver=overlay", f"--storage-opt=overlay.mount_program={fuse}")
    return ("--storage-driver=vfs",)


def _file_system(folder: Path, machine: Machine) -> str:
    """Returns the type of the file system that a folder lies on."""
    found, depth = "", -1
    for line in machine.read("proc/self/mounts").splitlines():
        words = line.split()
        if len(words) > 2 and folder.is_relative_to(words[1]) and len(Path(words[1]).parts) >= depth:
            found, depth = words[2], len(Path(words[1]).parts)
    return found


def _cdi(machine: Machine) -> bool:
    for folder in CDI_FOLDERS:
        for file in sorted((machine.root / folder).glob("*.[jy]*")):
            if "nvidia.com/gpu" in machine.read(str(file.relative_to(machine.root))):
                return True
    return False


def _docker(path: str, machine: Machine) -> Engine | str:
    if machine.uid == 0:
        return "docker is for a platform that you run as yourself: who may speak to its daemon is root"
    said = machine.ask(path, "info", "--format", DOCKER_FACTS)
    words = (said or "").split(maxsplit=4)
    if len(words) != 5:
        return "docker's daemon does not answer you: docker info"
    limits = [name for name, can in zip(("memory", "cpu", "pids"), words[1:4], strict=True) if can == "true"]
    user = "0:0" if "name=rootless" in words[4] else f"{machine.uid}:{machine.gid}"
    environ = {"PATH": PATH, **machine.environ}
    return Engine(
        "docker", path, words[0], flags=("--init",), limits=tuple(limits), cdi=True, user=user, environ=environ
    )
