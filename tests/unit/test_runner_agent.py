"""The rank agent by itself, on this Python and on 3.8: what it relays, what it ends, whom it refuses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import agent_client, agent_wire
from tests.unit.test_sdk import PACKAGE, python38

TIMEOUT_S = 30
HOST = "127.64.0.1"
PROGRAM = str(PACKAGE / "runner" / "agent.py")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what


def marked(mark: str) -> set[int]:
    """Returns the living processes whose environment holds this text."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
    return found


class Worker:
    """A worker's task: its agent, and a launcher's means to reach it."""

    def __init__(self, folder: Path, python: str) -> None:
        with socket.create_server((HOST, 0)) as free:
            self.address = f"{HOST}:{free.getsockname()[1]}"
        self.python, self.folder, self.secret = python, folder, secrets.token_bytes(32)
        self.mark = f"MARK={secrets.token_hex(8)}"
        (folder / "work").mkdir()
        self.write("agents", self.secret)

    def write(self, name: str, secret: bytes, mode: int = 0o600) -> None:
        file = self.folder / name
        file.write_text(json.dumps({"secret": secret.hex(), "addresses": {HOST: self.address}}))
        file.chmod(mode)

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": os.defpath, "DANLU_AGENTS": str(self.folder / "agents"), **variables}

    def start(self, *prefix: str) -> subprocess.Popen[bytes]:
        name, _, value = self.mark.partition("=")
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, self.python, "-I", "-S", "-W", "error", PROGRAM, "--serve"],
                env=self.environment(
                    DANLU_ADDRESS=self.address, DANLU_TASK="worker-0", WHERE="worker", **{name: value}
                ),
                cwd=self.folder / "work", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def client(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [self.python, "-I", "-S", "-W", "error", PROGRAM, *arguments]
        options = {"env": self.environment(WHERE="launcher"), "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        with self.client(*arguments, **options) as client:
            out, err = client.communicate(timeout=TIMEOUT_S)
            return client.returncode, out.decode(), err.decode()

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), TIMEOUT_S)

    def sessions(self) -> int:
        """Returns how many processes the agent has, itself left out."""
        return len(marked(self.mark)) - 1

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(params=[sys.executable, "3.8"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path, sys.executable if request.param == sys.executable else python38())
    with made.start() as server:
        try:
            assert made.run(HOST, "true")[0] == 0  # it waits until the agent listens
            yield made
            server.terminate()
            assert server.wait(TIMEOUT_S) == 0
            assert not marked(made.mark)
            assert "Traceback" not in made.log()
        finally:
            server.kill()


# what it relays


def test_a_command_runs_in_the_worker_by_its_shell(worker: Worker) -> None:
    code, out, err = worker.run(HOST, "echo", "$WHERE;", "pwd;", "hostname; echo to you >&2; exit 7")
    assert (code, out.splitlines(), err) == (7, ["worker", str(worker.folder / "work"), "worker-0"], "to you\n")


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 255", 255), ("kill -9 $$", 137), ("no-such-program", 127)]
)
def test_the_exit_code_is_the_command_s(worker: Worker, command: str, code: int) -> None:
    assert worker.run(HOST, command)[0] == code


def test_much_input_and_output_pass_both_ways_at_once(worker: Worker) -> None:
    data = os.urandom(3 * 2**20)
    with worker.client(HOST, "cat", stdin=subprocess.PIPE) as client:
        out, err = client.communicate(data, timeout=TIMEOUT_S)
    assert (client.returncode, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_input_that_nobody_reads_does_no_harm(worker: Worker) -> None:
    with worker.client(HOST, "exec <&-; echo over", stdin=subprocess.PIPE) as client:
        out, _ = client.communicate(b"x" * 2**20, timeout=TIMEOUT_S)
    assert (client.returncode, out) == (0, b"over\n")


def test_a_signal_reaches_the_command(worker: Worker) -> None:
    with worker.client(HOST, "trap 'echo asked; exit 5' TERM; echo ready; while :; do read x || :; done <&-") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        out, _ = client.communicate(timeout=TIMEOUT_S)
    assert (client.returncode, out) == (5, b"asked\n")


def test_the_options_of_ssh_are_left_out() -> None:
    assert agent_client.destination(["-x", "-q", "-o", "BatchMode=yes", "-p22", "me@w1", "orted", "-mca", "a b"]) == (
        "w1", "orted -mca a b",
    )  # fmt: skip
    with pytest.raises(agent_wire.Refused, match="usage: agent HOST COMMAND"):
        agent_client.destination(["-x", "w1"])


def test_where_no_name_is_to_be_had_that_is_said_and_open_mpi_4_still_works(tmp_path: Path) -> None:
    worker = Worker(tmp_path, sys.executable)
    with worker.start("unshare", "--user") as server:  # who is nobody there may not make another one
        assert worker.run(HOST, "echo $OMPI_MCA_btl; hostname")[1].splitlines() == ["self,tcp", os.uname().nodename]
        server.kill()
    assert worker.log() == "agent: no host name of its own (Operation not permitted): Open MPI 5 will not work\n"


# what it ends

ESCAPE = "(setsid sh -c 'trap \"\" HUP TERM; echo away; exec sleep 1000' &) ; "


def test_what_a_command_leaves_behind_is_ended(worker: Worker) -> None:
    code, out, _ = worker.run(HOST, ESCAPE + "exit 3")
    assert code == 3
    assert out in ("away\n", "")
    assert worker.sessions() == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_outlives_a_client(worker: Worker, end: signal.Signals) -> None:
    with worker.client(HOST, ESCAPE + "echo ready; exec sleep 1000") as client:
        assert client.stdout is not None
        assert {client.stdout.readline(), client.stdout.readline()} == {b"ready\n", b"away\n"}
        assert worker.sessions() >= 3
        client.send_signal(end)
        if end == signal.SIGSTOP:  # one that hangs is still there
            assert worker.sessions() >= 3
            client.kill()
    until(lambda: worker.sessions() == 0, "the command outlived its client")


def test_a_client_ends_with_its_parent(worker: Worker) -> None:
    code = "import subprocess, sys; subprocess.run(sys.argv[1:], check=False)"
    command = [worker.python, "-I", "-S", PROGRAM, HOST, "echo ready; exec sleep 1000"]
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env=worker.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"ready\n"
        launcher.kill()
    until(lambda: worker.sessions() == 0, "the command outlived the launcher")


def test_a_killed_agent_ends_the_command_and_the_client(tmp_path: Path) -> None:
    worker = Worker(tmp_path, sys.executable)
    with worker.start() as server, worker.client(HOST, "echo ready; exec sleep 1000") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        server.kill()
        _, err = client.communicate(timeout=TIMEOUT_S)
    assert (client.returncode, err) == (agent_wire.GONE, b"agent: the worker's agent is gone\n")
    until(lambda: not marked(worker.mark), "the command outlived the agent")


# whom it refuses


def test_a_stranger_runs_nothing(worker: Worker) -> None:
    worker.write("other", secrets.token_bytes(32))
    code, out, err = worker.run(HOST, "touch seen", env=worker.environment(DANLU_AGENTS=str(worker.folder / "other")))
    assert (code, out, err) == (agent_wire.GONE, "", "agent: it does not know this attempt's secret\n")
    with worker.connect() as sock:  # one that does not care for the server's proof
        sock.sendall(agent_wire.MAGIC + bytes(32))
        assert len(sock.recv(64, socket.MSG_WAITALL)) == 64
        sock.sendall(bytes(32))
        assert sock.recv(1) == b""
    until(lambda: "was refused: it does not know this attempt's secret" in worker.log(), "it is not said")
    assert not (worker.folder / "work" / "seen").exists()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4, bytes(1000), agent_wire.MAGIC[:-1] + b"x" + bytes(64)]
)
def test_another_protocol_is_refused(worker: Worker, said: bytes) -> None:
    with worker.connect() as sock:
        sock.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    until(lambda: "it does not speak this protocol" in worker.log(), "it is not said")


def test_a_look_whether_it_listens_is_no_matter(worker: Worker) -> None:
    worker.connect().close()
    until(lambda: worker.sessions() == 0, "a process is left")
    assert worker.log() == ""


def shaken(worker: Worker, sock: socket.socket, address: str = "") -> agent_wire.Wire:
    return agent_wire.shake(sock, worker.secret, address or worker.address, serving=False)


def refused(worker: Worker, sock: socket.socket, why: str) -> None:
    sock.settimeout(TIMEOUT_S)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    until(lambda: why in worker.log(), f"{why!r} is not in {worker.log()!r}")
    until(lambda: worker.sessions() == 0, "a process is left")


def test_a_proof_for_another_worker_is_none(worker: Worker) -> None:
    with worker.connect() as sock, pytest.raises(agent_wire.Refused, match="does not know this attempt's secret"):
        shaken(worker, sock, "127.64.0.2:1")


def test_what_was_overheard_cannot_be_said_again(worker: Worker) -> None:
    heard = []
    with worker.connect() as sock:
        real, wire_sock = sock, socket.socketpair()
        with wire_sock[0], wire_sock[1]:
            hello = agent_wire.MAGIC + os.urandom(32)
            real.sendall(hello)
            answer = real.recv(64, socket.MSG_WAITALL)
            said = hello + answer[:32] + worker.address.encode()
            heard = [hello, agent_wire.mac(worker.secret, b"client", said)]
            real.sendall(heard[1])
            wire = agent_wire.Wire(wire_sock[0], agent_wire.mac(worker.secret, b"to server", said), b"")
            wire.put(agent_wire.COMMAND, b"echo x >> seen")
            wire.flush()
            heard.append(wire_sock[1].recv(4096))
            real.sendall(heard[2])
            until(lambda: (worker.folder / "work" / "seen").exists(), "the true session did not run")
    with worker.connect() as sock:
        for piece in heard:
            sock.sendall(piece)
        answered = sock.recv(64, socket.MSG_WAITALL)
        assert len(answered) == 64
        refused(worker, sock, "it does not know this attempt's secret")
    assert (worker.folder / "work" / "seen").read_text() == "x\n"


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([(agent_wire.INPUT, b"x")], "a frame of kind 2 that is not due"),
        ([(agent_wire.EXIT, b"\0")], "a frame of kind 6 that is not due"),
        ([(agent_wire.COMMAND, b"sleep 1000"), (agent_wire.COMMAND, b"true")], "a frame of kind 1 that is not due"),
        (
            [(agent_wire.COMMAND, b"sleep 1000"), (agent_wire.SIGNAL, bytes([signal.SIGSTOP]))],
            "a frame of kind 3 that is not due",
        ),
        ([(agent_wire.COMMAND, b"sleep 1000"), (agent_wire.SIGNAL, b"")], "a frame of kind 3 that is not due"),
        ([(agent_wire.COMMAND, b"true\0true")], "a command with a zero byte"),
        ([(agent_wire.COMMAND, b"x" * (agent_wire.MAX_FRAME_BYTES + 1))], "a frame of 131073 bytes"),
    ],
)
def test_frames_that_are_not_due_end_the_session(worker: Worker, frames: list[tuple[int, bytes]], why: str) -> None:
    with worker.connect() as sock:
        wire = shaken(worker, sock)
        for kind, payload in frames:
            wire.put(kind, payload)
        sock.settimeout(TIMEOUT_S)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(wire.pending)
        refused(worker, sock, why)


@pytest.mark.parametrize("change", ["changed", "swapped", "repeated"])
def test_a_frame_changed_on_its_way_ends_the_session(worker: Worker, change: str) -> None:
    with worker.connect() as sock:
        wire = shaken(worker, sock)
        wire.put(agent_wire.COMMAND, b"cat > seen; sleep 1000")
        first = bytes(wire.pending)
        wire.put(agent_wire.INPUT, b"aa")
        second = bytes(wire.pending)[len(first) :]
        sock.sendall(
            {"changed": first.replace(b"seen", b"sewn"), "swapped": second + first, "repeated": first + first}[change]
        )
        refused(worker, sock, "a frame that was changed on its way")
    assert not (worker.folder / "work" / "sewn").exists()


def test_who_says_nothing_is_dropped_and_many_of_them_keep_nobody_out_for_ever(worker: Worker) -> None:
    with contextlib.ExitStack() as silent:
        for _ in range(100):
            silent.enter_context(worker.connect())
        assert worker.sessions() <= 64
        assert worker.run(HOST, "echo in")[:2] == (0, "in\n")
    until(lambda: worker.sessions() == 0, "processes are left")
    assert worker.log().count("\n") <= 10


def test_who_proves_itself_and_sends_no_command_is_dropped(worker: Worker) -> None:
    with worker.connect() as sock:
        shaken(worker, sock)
        refused(worker, sock, "it sent no command")


def test_a_server_without_the_secret_gets_no_command(worker: Worker) -> None:
    """Whoever has taken a worker's port meanwhile learns nothing."""
    with socket.create_server((HOST, 0)) as thief:
        address = f"{HOST}:{thief.getsockname()[1]}"
        file = worker.folder / "stolen"
        file.write_text(json.dumps({"secret": worker.secret.hex(), "addresses": {HOST: address}}))
        file.chmod(0o600)
        with worker.client(HOST, "secret-command", env=worker.environment(DANLU_AGENTS=str(file))) as client:
            with thief.accept()[0] as sock:
                heard = sock.recv(46, socket.MSG_WAITALL)
                sock.sendall(bytes(64))
                heard += sock.recv(1000)
            _, err = client.communicate(timeout=TIMEOUT_S)
    assert heard.startswith(agent_wire.MAGIC)
    assert len(heard) == len(agent_wire.MAGIC) + 32
    assert (client.returncode, err) == (agent_wire.GONE, b"agent: it does not know this attempt's secret\n")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: (w.folder / "agents").chmod(0o640), "must be this user's own, mode 0600"),
        (lambda w: (w.folder / "agents").unlink(), "cannot be read: .*No such file"),
        (lambda w: (w.folder / "agents").write_text("{}"), "cannot be read: 'secret'"),
        (lambda w: w.write("agents", b"short"), "the secret has 5 bytes, not 32"),
    ],
)
def test_a_secret_that_is_none_is_not_used(tmp_path: Path, change: Callable[[Worker], object], why: str) -> None:
    worker = Worker(tmp_path, sys.executable)
    change(worker)
    code, _, err = worker.run(HOST, "true")
    assert code == agent_wire.GONE
    assert re.search(why, err)
    with worker.start() as server:
        assert server.wait(TIMEOUT_S) == agent_wire.GONE
    assert re.search(why, worker.log())


def test_an_unknown_host_and_a_taken_port_are_named(tmp_path: Path) -> None:
    worker = Worker(tmp_path, sys.executable)
    code, _, err = worker.run("127.64.0.9", "true")
    assert (code, err) == (agent_wire.GONE, f"agent: there is no worker 127.64.0.9; there are: {HOST}\n")
    host, _, port = worker.address.rpartition(":")
    with socket.create_server((host, int(port))), worker.start() as server:
        assert server.wait(TIMEOUT_S) == agent_wire.GONE
    assert f"it cannot listen on DANLU_ADDRESS={worker.address}: [Errno 98] Address already in use" in worker.log()
