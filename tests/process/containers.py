"""A local executor whose attempts run in containers, with a registry of its own to pull from."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danlu.blobs.local import LocalBlobs
from danlu.domain.images import Image
from danlu.domain.secrets import HandedSecret
from danlu.executors.base import LaunchOrder
from danlu.executors.local import containers
from danlu.executors.local.engines import Machine
from danlu.executors.local.executor import LocalConfig, LocalExecutor
from danlu.executors.local.images import ImageStore
from tests.executors import Code, LocalBench
from tests.process.image_registry import Registry, trusting
from tests.process.platform import processes_with

UID = 200_000
"""Who the jobs of the first project run as."""


class ContainerBench(LocalBench):
    """Orders name ``image`` unless it is None."""

    image: Image | None = None

    def __init__(self, home: Path, machine: Machine) -> None:
        self.machine = machine
        super().__init__(home)

    def _open(self) -> LocalExecutor:
        config = LocalConfig(self.home, self.runtime, engines=self.machine)
        executor = LocalExecutor(config, code=Code(LocalBlobs(self.home / "blobs")), hint=self.hints.set)
        executor.start()
        return executor

    @property
    def images(self) -> ImageStore:
        assert self.executor.images is not None, self.executor.capabilities.no_images
        store: ImageStore = self.executor.images
        return store

    def pull(self, reference: str, project_number: int = 0) -> Image:
        pulled = self.images.pull(reference, project_number, lambda _: None)
        found = self.images.find(pulled.lock_digest, project_number)
        assert found is not None
        return found

    def order(self, *words: str, **fields: Any) -> LaunchOrder:
        order = super().order(*words, **fields)
        return order.model_copy(update={"image": self.image, "interpreter": None})

    def processes(self, attempt_id: str) -> dict[int, str]:
        """Returns what runs of an attempt, by its control groups or else its mark: each process and its command line."""
        pids: set[int] = set()
        for folder, _, _ in os.walk("/sys/fs/cgroup"):  # groups come and go meanwhile
            if attempt_id in Path(folder).parts:
                with contextlib.suppress(OSError):
                    pids |= {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
        found = {}
        for pid in pids or processes_with(attempt_id):
            with contextlib.suppress(FileNotFoundError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return {pid: words for pid, words in found.items() if words}

    def process(self, attempt_id: str, kind: str) -> int:
        """Returns one process of a running attempt: its runner, its guard, podman, conmon, init or program."""
        if kind == "runner":
            return self.runner_pid(attempt_id)
        if kind == "guard":
            return int(next(event["pid"] for event in self.events(attempt_id) if event["event"] == "started"))
        begins = {
            "podman": "/usr/bin/podman ",
            "conmon": "/usr/bin/conmon ",
            "init": "/run/podman-init ",
            "program": "sh ",
        }
        return min(pid for pid, words in self.processes(attempt_id).items() if words.startswith(begins[kind]))

    def forget(self, attempt_id: str) -> None:
        """Has it forgotten, and makes sure that nothing is left."""
        self.executor.forget(attempt_id)
        assert not (self.home / "attempts" / attempt_id).exists()
        assert not (self.runtime / "c" / containers.runtime_name(attempt_id)).exists()
        assert not self.processes(attempt_id)
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if attempt_id in line]


@contextmanager
def bench(registry: Registry, **machine: Any) -> Iterator[ContainerBench]:
    """Yields a bench in a folder with a short path, as podman needs it, that every user may pass."""
    outer = Path(tempfile.mkdtemp(prefix="di-", dir="/tmp"))
    outer.chmod(0o711)
    (outer / "h").mkdir()
    environ = {"HOME": os.environ["HOME"], "CONTAINERS_REGISTRIES_CONF": str(trusting(registry, outer))}
    made = ContainerBench(outer / "h", Machine(**{"environ": environ, **machine}))
    try:
        yield made
        made.close()
    finally:
        shutil.rmtree(outer, ignore_errors=True)


SECRETS = (
    HandedSecret(variable="TOKEN", value="canary-AbCdEfGh"),
    HandedSecret(variable="GOFLAGS", value="canary-IjKlMnOp"),
    HandedSecret(variable="KEY", value="canary-QrStUvWx\n", file=True),
)


def keeps_secrets(lab: ContainerBench) -> None:
    """Runs a container with secrets, and looks where they are: in it, in no command line, and afterwards in no file."""
    text = 'echo "$TOKEN $GOFLAGS"; cat "$KEY"; echo up; while [ ! -e go ]; do sleep 0.1; done'
    attempt = lab.launch("sh", "-c", text, handed=SECRETS)
    lab.printed(attempt, "up")
    lines = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                lines.append((process / "cmdline").read_bytes())
    assert not any(b"canary-" in line for line in lines)
    hidden = "*" * 15
    assert {f"{hidden} {hidden}", hidden} <= {*lab.log(attempt).splitlines()}
    (lab.home / "attempts" / attempt / "work" / "go").touch()
    assert lab.end(attempt).tasks[0].exit_code == 0
    base = lab.executor._memory.base
    assert base is not None
    assert list(base.iterdir()) == []
    lab.executor.forget(attempt)
    files = [path for path in lab.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(b"canary-" in path.read_bytes() for path in files)
