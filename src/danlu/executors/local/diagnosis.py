"""What a good administrator looks at on a machine that runs jobs. Looks only: nothing is made or changed."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from danlu.domain.diagnosis import Check, fail, ok, warn
from danlu.domain.nodes import Gpu
from danlu.domain.resources import format_bytes
from danlu.errors import ExecutorUnavailable
from danlu.executors.local import cgroups, engines, gpus
from danlu.executors.local.isolation import UID_BASE, Offered, offered

WANTED_FILES: Final = 4096
WANTED_WATCHERS: Final = 128
WANTED_WATCHES: Final = 8192
WANTED_SHARED_BYTES: Final = 2**30
DELEGATED: Final = (
    "start the server as root, or with a control group of its own: systemd-run --user --scope -p Delegate=yes danlu up"
)


def checks(declared: tuple[Gpu, ...] | None, home: Path, machine: engines.Machine) -> Iterator[Check]:
    """Yields what is found on this machine; ``declared``: the GPUs that the operator stated."""
    own = Path("/proc/self/cgroup")
    yield limits(cgroups.detect(Path("/sys/fs/cgroup"), own.read_text() if own.exists() else ""))
    yield users(os.geteuid())
    try:
        yield layers(offered(UID_BASE if os.geteuid() == 0 else None))
    except ExecutorUnavailable as error:
        yield fail("sandbox", error.message, "without that no server starts: look at memory, processes and disk")
    yield devices(declared, Path("/proc/driver/nvidia/version"))
    yield containers(home, machine)
    yield files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield from watchers(Path("/proc/sys/fs/inotify"))
    yield from shared_memory(Path("/dev/shm"))  # noqa: S108 - it is looked at, nothing is written there


def limits(tree: cgroups.Tree | None) -> Check:
    """Says which limits can be set."""
    if tree is None:
        return warn(
            "limits", "no control group can be made here: memory and CPU are counted, but not limited", DELEGATED
        )
    found = ", ".join(sorted(tree.bases))
    missing = [name for name in ("memory", "cpu", "pids") if name not in tree.bases]
    value = f"control groups of version {tree.version}: {found}"
    if missing:
        return warn("limits", f"{value}; not {', '.join(missing)}", DELEGATED)
    return ok("limits", value)


def users(uid: int) -> Check:
    """Says how jobs are kept apart."""
    if uid == 0:
        return ok("isolation", "one user for each project")
    return ok("isolation", "all jobs run as you; for several people, start the server as root")


def layers(found: Offered) -> Check:
    """Says which layers of isolation jobs have."""
    value = ", ".join(found.layers)
    if not found.missing:
        return ok("sandbox", value)
    why = "; ".join(f"{name}: {reason}" for name, reason in found.missing.items())
    return ok("sandbox", f"{value or 'none'}; not {why}")


def devices(declared: tuple[Gpu, ...] | None, driver: Path) -> Check:
    """Says which GPUs can be given away; ``driver`` is where the NVIDIA driver tells its version."""
    if declared is not None:
        return ok("gpus", f"{len(declared)} declared with --gpus")
    look = "look at `nvidia-smi`; to go on without GPUs: danlu up --gpus 0"
    try:
        found = gpus.found()
    except ExecutorUnavailable as error:
        return fail("gpus", error.message, look)
    if found:
        kinds = {gpu.kind: sum(one.kind == gpu.kind for one in found) for gpu in found}
        return ok("gpus", ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
    if driver.exists():
        return fail("gpus", "the NVIDIA driver is loaded, but its library does not answer", look)
    return ok("gpus", "none")


def containers(home: Path, machine: engines.Machine) -> Check:
    """Says which container engine runs jobs with images."""
    found, why = engines.detect(home, machine)
    if found is None:
        return ok("containers", f"no job can use a container image: {why}")
    missing = "" if found.cdi or found.name == "docker" else "; without GPUs: nvidia-ctk cdi generate tells it of them"
    return ok("containers", f"{found.name} {found.version}{missing}")


def files(most: int) -> Check:
    """Says how many files a process may open, by the limit that it cannot raise itself."""
    if most == resource.RLIM_INFINITY:
        return ok("files", "no limit of open files")
    value = f"{most:,} open files a process"
    if most < WANTED_FILES:
        return warn(
            "files", value, f"raise it to {WANTED_FILES:,} or more: ulimit -Hn, /etc/security/limits.conf, LimitNOFILE="
        )
    return ok("files", value)


def watchers(folder: Path) -> Iterator[Check]:
    """Says how many files users' programs may watch: TensorBoard and notebooks do."""
    try:
        instances = int((folder / "max_user_instances").read_text())
        watches = int((folder / "max_user_watches").read_text())
    except (OSError, ValueError):
        return  # a kernel without them
    value = f"{instances:,} watchers, {watches:,} watched files a user"
    if instances < WANTED_WATCHERS or watches < WANTED_WATCHES:
        step = (
            f"sysctl fs.inotify.max_user_instances={WANTED_WATCHERS} fs.inotify.max_user_watches={WANTED_WATCHES * 8}"
        )
        yield warn("inotify", value, step)
    else:
        yield ok("inotify", value)


def shared_memory(folder: Path) -> Iterator[Check]:
    """Says how much memory processes of a job may share: data loaders of several processes do."""
    try:
        size = shutil.disk_usage(folder).total
    except OSError:
        return
    if size < WANTED_SHARED_BYTES:
        step = (
            f"data loaders of several processes need more: mount -o remount,size=2G {folder}; in a container --shm-size"
        )
        yield warn("shared memory", format_bytes(size), step)
    else:
        yield ok("shared memory", format_bytes(size))
