"""From a launch order to the engine's command line: what a task's container may see and do, and nothing more. Pure."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from danlu.domain.images import Image
from danlu.domain.isolation import limit
from danlu.domain.jobs import Task
from danlu.domain.specs import JobSpec, TaskSpec
from danlu.errors import LaunchRejected
from danlu.executors.local.engines import PATH, Engine
from danlu.executors.orders import Folders
from danlu.runner import formats

NOBODY: Final = "danlu-job"
"""A user name that no machine has: podman finds no further user ids for it, and maps the job's own alone."""
MAX_PROCESSES: Final = 16_384
ENGINE_FOLDER: Final = "engine"
ENV_FILE: Final = "engine.env"
RUNTIME_CHARACTERS: Final = 50
"""Podman refuses a longer path for what it keeps while a container runs."""
MONITOR: Final = "conmon.pid"
LABEL: Final = "danlu.attempt"
DEFAULTS: Final = ("LANG", "PYTHONUNBUFFERED", "OMP_NUM_THREADS")
"""What the platform suggests; an image knows better."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt's container is on this machine.

    Attributes:
        where: the attempt's folder, the job's checkpoints, what it may import of Danlu.
        store: where the image lies.
        runtime: a folder with a short path (see RUNTIME_CHARACTERS), of this attempt alone.
        memory_bytes: what the machine has.
    """

    where: Folders
    store: Path
    runtime: Path
    memory_bytes: int


def container(engine: Engine, image: Image, asked: TaskSpec, task: Task, place: Place) -> dict[str, Any]:
    """Returns what the runner needs to run one task in a container.

    Raises:
        LaunchRejected: its GPUs cannot be handed into one here.
    """
    flags = [*_common(engine, asked, task, place), f"--label={LABEL}={place.where.attempt.name}"]
    in_memory = place.where.memory
    env_file = str(in_memory / f"{task.name}.env" if in_memory else place.where.attempt / task.name / ENV_FILE)
    if engine.name == "docker":
        name = f"danlu-{place.where.attempt.name}-{task.name}"
        program = [engine.path, "run", f"--name={name}", "--log-driver=none", *_docker_limits(engine, asked)]
        return {
            "engine": engine.name, "image": image.id, "run": [*program, *flags], "environ": dict(engine.environ),
            "env_file": env_file,
            "daemon": True,  # whose children the container's processes are, not the runner's
            "enter": [engine.path, "exec"], "name": name,
            "folders": [], "signal": [engine.path, "kill", "--signal", "TERM", name],
            "state": [engine.path, "inspect", "--format", "{{.State.OOMKilled}}", name],
            "remove": [engine.path, "rm", "--force", "--volumes", name],
        }  # fmt: skip
    own = place.where.attempt / task.name / ENGINE_FOLDER
    short = place.runtime / str(task.rank)
    base, id_file = podman(engine, own, short, shared=place.store), str(short / "id")
    program = [*base, "run", "--rm", "--log-driver=passthrough", f"--conmon-pidfile={short / MONITOR}"]
    quiet = ["--image-volume=ignore", "--systemd=false", "--http-proxy=false", "--umask=0077", "--no-healthcheck"]
    return {
        "engine": engine.name, "image": image.id, "environ": environ(own, short), "env_file": env_file,
        "run": [*program, f"--cidfile={id_file}", *quiet, *flags], "enter": [*base, "exec"], "name": "", "id_file": id_file,
        "daemon": False, "folders": [str(own), str(short)], "signal": [], "remove": [], "monitor": str(short / MONITOR),
    }  # fmt: skip


def runtime_name(attempt_id: str) -> str:
    """Returns a short name for an attempt's runtime folder."""
    return hashlib.sha256(attempt_id.encode()).hexdigest()[:10]


def podman(engine: Engine, folder: Path, runtime: Path, *, shared: Path | None = None) -> list[str]:
    """Returns podman's program and options, for a store of its own in ``folder`` beside one that is only read."""
    driver = storage_driver(engine)
    option = f"{driver}.ignore_chown_errors=true" if shared is None else f"{driver}.imagestore={shared / 'storage'}"
    return [
        engine.path, *engine.options, f"--storage-opt={option}", "--root", str(folder / "storage"),
        "--runroot", str(runtime / "s"), "--cgroup-manager=cgroupfs", "--events-backend=none",
        "--log-level=fatal",
    ]  # fmt: skip


def storage_driver(engine: Engine) -> str:
    """Returns how podman keeps layers, by the name that its folders of images begin with."""
    return next((o.partition("=")[2] for o in engine.options if o.startswith("--storage-driver=")), "overlay")


def environ(folder: Path, runtime: Path) -> dict[str, str]:
    """Returns podman's own environment: it keeps all that it writes in these two folders."""
    return {"PATH": PATH, "HOME": str(folder), "XDG_RUNTIME_DIR": str(runtime), "USER": NOBODY}


def _common(engine: Engine, asked: TaskSpec, task: Task, place: Place) -> list[str]:
    """Returns the flags that both engines understand alike."""
    folder, shm_bytes = place.where.attempt, asked.memory_bytes or max(1 << 26, place.memory_bytes // 2)
    writable = [
        folder / "work",
        folder / "outputs",
        folder / "tmp",
        place.where.checkpoints,
        folder / task.name / "metrics",
    ]
    readable = [
        path
        for path in (folder / "token", folder / formats.NOTICES, place.where.sdk, place.where.memory)
        if path is not None
    ]
    mounts = [_mount(path) for path in writable] + [_mount(path, "readonly") for path in readable]
    return [
        *engine.flags, "--pull=never", "--network=host", "--uts=host", f"--user={engine.user}", "--cap-drop=all",
        "--security-opt=no-new-privileges", "--security-opt=label=disable", "--entrypoint=", f"--shm-size={shm_bytes}b",
        *mounts, f"--workdir={folder / 'work'}", *_gpus(engine, task.devices),
    ]  # fmt: skip


def _mount(path: Path, *options: str) -> str:
    """Returns the flag that shows a path at the same place; it is one line of CSV, so that no path can say more."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={path}", f"target={path}", *options])
    return f"--mount={line.getvalue()}"


def _docker_limits(engine: Engine, asked: TaskSpec) -> list[str]:
    flags = []
    if asked.memory_bytes is not None and "memory" in engine.limits:
        flags += [f"--memory={asked.memory_bytes}b", f"--memory-swap={asked.memory_bytes}b"]
    if asked.cpu is not None and "cpu" in engine.limits:
        flags.append(f"--cpus={asked.cpu}")
    if "pids" in engine.limits:
        flags.append(f"--pids-limit={MAX_PROCESSES}")
    return flags


def limits_in_force(engine: Engine, spec: JobSpec) -> tuple[str, ...]:
    """Returns the limits that the engine sets for a job, by the names that ``describe`` shows."""
    asked = {
        "memory": any(task.memory_bytes is not None for task in spec.tasks),
        "cpu": any(task.cpu is not None for task in spec.tasks),
        "pids": True,
    }
    return tuple(limit(name) for name in engine.limits if asked[name])


def _gpus(engine: Engine, devices: Sequence[int]) -> list[str]:
    if not devices:
        return []
    if engine.name == "docker":
        return [f'--gpus="device={",".join(map(str, devices))}"']
    if not engine.cdi:
        raise LaunchRejected(
            "podman is not told on this machine how GPUs are handed into a container: on the server, "
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, then start the platform again"
        )
    return [f"--device=nvidia.com/gpu={device}" for device in devices]


def environment(base: Mapping[str, str], asked: TaskSpec, image: Image) -> dict[str, str]:
    """Returns a job's environment as it is in a container: what the image sets is kept, unless the user wants it else."""
    kept = dict(base)
    for name in ("PATH", *(default for default in DEFAULTS if default in image.variables)):
        if name not in asked.variables:
            kept.pop(name, None)
    own = image.variables.get("PYTHONPATH")
    if own and "PYTHONPATH" not in asked.variables:
        kept["PYTHONPATH"] = f"{own}:{base['PYTHONPATH']}"
    return kept
