"""What TensorFlow's own cluster leaves to whoever runs it: each sentence of docs/explanation/why-not-tf-cluster.md, shown.

Plain TensorFlow, of the environment ``tensorflow-1``, in processes that this test starts by hand; no Danlu anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors import free_ports
from tests.process.built import built
from tests.process.platform import until

TIMEOUT_S = 180.0
QUIET_S = 3.0
pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys
import tensorflow as tf

config = json.loads(os.environ["TF_CONFIG"])
cluster, task = tf.train.ClusterSpec(config["cluster"]), config["task"]
server = tf.train.Server(cluster, job_name=task["type"], task_index=task["index"])
print("serving", flush=True)
if task["type"] == "ps":
    server.join()
with tf.device(tf.train.replica_device_setter(cluster=cluster)):
    total = tf.get_variable("total", [], initializer=tf.zeros_initializer())
    add = tf.assign_add(total, 1.0)
with tf.Session(server.target) as session:
    session.run(tf.global_variables_initializer())
    session.run(add)
    print("it trains", flush=True)
    for _ in range(int(sys.argv[1]) - 1):
        if session.run(add) < 0:
            print("overwritten", flush=True)
            break
    print("finished", session.run(total), flush=True)
"""
INTRUDER = """
import sys
import tensorflow as tf
with tf.device("/job:ps/task:0"):
    total = tf.get_variable("total", [])
    file = tf.read_file(sys.argv[2])
with tf.Session("grpc://" + sys.argv[1]) as session:
    print("read", session.run(total) > 0, session.run(file).decode(), flush=True)
    session.run(tf.assign(total, -1e9))
"""
ESTIMATOR = """
import tensorflow as tf

def points():
    return tf.data.Dataset.from_tensors(({"x": [1.0]}, [2.0])).repeat(10)

def line(features, labels, mode):
    loss = tf.losses.mean_squared_error(labels, tf.get_variable("slope", []) * features["x"])
    step = tf.train.GradientDescentOptimizer(0.1).minimize(loss, global_step=tf.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=step)

tf.logging.set_verbosity(tf.logging.INFO)
tf.estimator.train_and_evaluate(
    tf.estimator.Estimator(line, model_dir="line"), tf.estimator.TrainSpec(points),
    tf.estimator.EvalSpec(points, start_delay_secs=0, throttle_secs=1),
)
print("ended", flush=True)
"""
WAITS = "CreateSession still waiting for response from worker: /job:ps/replica:0/task:0"
"""What a worker writes every ten seconds, without end."""


class Processes:
    """Processes of one cluster, started by hand."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        ports = free_ports(2)
        self.addresses = {"ps": f"127.0.0.1:{ports[0]}", "worker": f"127.0.0.1:{ports[1]}"}
        self.all: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self, role: str, steps: int = 0) -> Process:
        cluster = {name: [address] for name, address in self.addresses.items()}
        config = {"cluster": cluster, "task": {"type": role, "index": 0}}
        return self.run(PROGRAM, str(steps), TF_CONFIG=json.dumps(config))

    def run(self, program: str, *arguments: str, **variables: str) -> Process:
        self.started += 1
        output = self.folder / f"output-{self.started}"
        environ = {"PATH": os.defpath, "HOME": str(self.folder), "TF_CPP_MIN_LOG_LEVEL": "0", **variables}
        with output.open("wb") as file:
            process = subprocess.Popen(
                [str(self.python), "-u", "-c", program, *arguments], env=environ, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, cwd=self.folder,
            )  # fmt: skip
        self.all.append(process)
        return Process(process, output)


class Process:
    """One of them, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self.output = process, output

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        """Waits until it has said ``text`` so often; fails at once where it ends without."""
        with contextlib.suppress(AssertionError):  # what it has said instead tells more than that it was late
            until(
                lambda: self.said().count(text) >= times or self.process.poll() is not None, TIMEOUT_S, f"says {text!r}"
            )
        assert self.said().count(text) >= times, self.said()[-3000:]

    def ends(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def stays(self) -> bool:
        """Whether it is still there after a quiet while."""
        try:
            self.process.wait(QUIET_S)
        except subprocess.TimeoutExpired:
            return True
        return False


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(built("tensorflow-1"), tmp_path)
    yield made
    for process in made.all:
        process.kill()
        process.wait()


def test_a_parameter_server_never_ends(processes: Processes) -> None:
    ps, worker = processes.start("ps"), processes.start("worker", steps=10)
    worker.says("finished 10.0")
    assert worker.ends() == 0
    assert ps.stays()


def test_an_evaluator_goes_on_when_training_is_over(processes: Processes) -> None:
    chief = processes.run(ESTIMATOR, TF_CONFIG=estimator_config("chief"))
    assert chief.ends() == 0, chief.said()[-3000:]
    evaluator = processes.run(ESTIMATOR, TF_CONFIG=estimator_config("evaluator"))
    evaluator.says("Saving dict for global step 10")
    evaluator.says("before starting next eval run", times=5)
    assert evaluator.stays()
    assert evaluator.said().count("Saving dict") == 1


def estimator_config(role: str) -> str:
    """Returns what tells an Estimator its role; a chief alone trains without a server."""
    return json.dumps({"cluster": {"chief": ["127.0.0.1:1"]}, "task": {"type": role, "index": 0}})


def test_nothing_is_started_and_who_comes_first_waits(processes: Processes) -> None:
    worker = processes.start("worker", steps=1)
    worker.says(WAITS, times=2)
    assert worker.stays()
    assert "it trains" not in worker.said()
    assert not reached(processes.addresses["ps"])


def reached(address: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_port_that_is_taken_ends_one_and_leaves_the_others_waiting(processes: Processes) -> None:
    host, _, port = processes.addresses["ps"].partition(":")
    with socket.create_server((host, int(port))):
        worker, ps = processes.start("worker", steps=1), processes.start("ps")
        assert ps.ends() != 0
        assert "serving" not in ps.said()
        worker.says(WAITS, times=2)
        assert worker.stays()
        assert "it trains" not in worker.said()


def test_nobody_starts_a_killed_parameter_server_again(processes: Processes) -> None:
    ps, worker = processes.start("ps"), processes.start("worker", steps=10**9)
    worker.says("it trains")
    ps.process.send_signal(signal.SIGKILL)
    ps.ends()
    assert worker.ends() != 0
    assert "finished" not in worker.said()
    assert not reached(processes.addresses["ps"])


def test_whoever_reaches_the_port_may_overwrite_variables(processes: Processes) -> None:
    processes.start("ps")
    worker = processes.start("worker", steps=10**9)
    worker.says("it trains")
    (processes.folder / "file").write_text("of the server")
    intruder = processes.run(INTRUDER, processes.addresses["ps"], str(processes.folder / "file"))
    assert intruder.ends() == 0, intruder.said()[-3000:]
    assert "read True of the server" in intruder.said()
    worker.says("overwritten")
