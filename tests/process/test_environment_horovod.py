"""Horovod is compiled once per machine, and trains: as one process, and as two that meet at the runner's rendezvous."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

import danlu
from danlu.domain.environments import Environment
from danlu.environments.builder import Builder
from danlu.environments.sources import FOLDER, source_digest, source_for
from danlu.runner import rendezvous
from tests.process.package_index import kept_environments, kept_folder, require_index

pytestmark = pytest.mark.slow
PROGRAM = FOLDER / "smoke" / "train_horovod.py"
TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_horovod_trains_as_one_rank_and_as_two(tmp_path: Path) -> None:
    require_index()
    builder, source = Builder(kept_environments(), kept_folder() / "uv"), source_for("horovod", None, None)
    built = builder.build(source, print)
    start = time.monotonic()
    assert builder.build(source, print).lock_digest == built.lock_digest
    assert time.monotonic() - start < 5  # it looks at no source again
    interpreter = builder.interpreter(
        Environment(
            id="e1", project="p", name="horovod", source=source, source_digest=source_digest(source),
            lock_digest=built.lock_digest, created_at=1, updated_at=1,
        )
    )  # fmt: skip
    assert interpreter is not None
    python = str(interpreter.bin / "python")
    environment = {**interpreter.variables, "PATH": os.defpath, "HOME": str(tmp_path)}

    alone = subprocess.run([python, PROGRAM], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert alone.returncode == 0, alone.stderr
    assert "rank 0 of 1: loss" in alone.stdout

    port = free_port()
    with rendezvous.listen("127.0.0.1", port) as listener:
        # on the job's Python, which has no other part of Danlu than what the runner needs
        inherited = f"socket.socket(fileno={listener.fileno()})"
        program = f"import socket; from danlu.runner import rendezvous; rendezvous.answer({inherited})"
        server = subprocess.Popen(
            [python, "-c", program], env={**environment, "PYTHONPATH": str(Path(danlu.__file__).parent.parent)},
            pass_fds=[listener.fileno()],
        )  # fmt: skip
    try:
        ranks = [
            subprocess.Popen(
                [python, PROGRAM],
                env={**environment, **variables(rank, 2, port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        said = [child.communicate(timeout=TIMEOUT_S)[0] for child in ranks]
        assert [child.returncode for child in ranks] == [0, 0], said
    finally:
        server.kill()
        server.wait()
    for rank in range(2):
        assert f"rank {rank} of 2: loss" in said[rank]


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Returns what tells a rank who it is and where its peers are found.

    Each is the only one of its node, as where each sees its own GPUs alone, counted from 0: ``hvd.local_rank()`` chooses one.
    """
    return {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",  # from the first rank's init to the last one's, and for a silent peer
        "HOROVOD_GLOO_IFACE": "lo",
        "HOROVOD_HOSTNAME": f"worker-{rank}",  # a node's name: no other rank's
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "1",
        "HOROVOD_CROSS_RANK": str(rank),
        "HOROVOD_CROSS_SIZE": str(size),
    }
