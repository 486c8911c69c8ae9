"""The serving half of the rank agent: one process for each session, the parent of what runs in it.

A session's process is the subreaper of its command, so that nothing escapes that the command leaves behind: once the command
has ended or the client is gone, it is ended too.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Set

from . import agent_wire, hostname, processes
from .agent_wire import Refused, Wire

MAX_SESSIONS, MAX_SAID = 64, 10
END_GRACE_S, LAST_WORDS_S = 2.0, 10.0
REFUSED = 1
SHELLS = ("bash", "csh", "dash", "ksh", "tcsh", "zsh")
GONE_EVENTS = select.POLLHUP | select.POLLERR | select.POLLRDHUP
SAME_NAME = {"OMPI_MCA_btl": "self,tcp", "OMPI_MCA_coll_han_priority": "0"}
"""Keeps Open MPI 4 right where its hosts have one name: it calls shared memory by a host's name and the rank there."""


def serve() -> int:
    """Serves sessions until this process is asked to end and they have ended; returns the exit code."""
    secret, _ = agent_wire.secrets()
    address = os.environ.get("DANLU_ADDRESS", "")
    host, _, port = address.rpartition(":")
    try:
        listener = socket.create_server((host, int(port)), backlog=MAX_SESSIONS)
    except (OSError, ValueError) as error:
        raise Refused("it cannot listen on DANLU_ADDRESS=%s: %s" % (address, error)) from None
    if host.startswith("127."):
        take_name(os.environ.get("DANLU_TASK", "worker"))
    wake = agent_wire.waking((signal.SIGCHLD, signal.SIGTERM))
    sessions: Set[int] = set()
    serving, refused = True, 0
    while serving or sessions:
        watched: List[Any] = [wake, listener] if serving else [wake]
        readable, _, _ = select.select(watched, [], [])
        if wake in readable and signal.SIGTERM in os.read(wake, 64):
            serving = False  # whoever asks this process to end asks its commands too
            listener.close()
        for pid in list(sessions):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                sessions.discard(pid)
                refused += os.WIFEXITED(status) and os.WEXITSTATUS(status) == REFUSED
        if serving and listener in readable:
            sock, _ = listener.accept()
            if len(sessions) < MAX_SESSIONS:
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    session(sock, secret, address, refused < MAX_SAID)
                sessions.add(pid)
            sock.close()
    return 0


def take_name(name: str) -> None:
    """Gives this process and what it starts a host name of their own, if the runner has not."""
    reason = hostname.take(name)
    if reason:
        for key, value in SAME_NAME.items():
            os.environ.setdefault(key, value)
        print("agent: no host name of its own (%s): Open MPI 5 will not work" % reason, file=sys.stderr, flush=True)


def session(sock: socket.socket, secret: bytes, address: str, tell: bool) -> None:
    """Is one session from its first byte; never returns."""
    code, parent, peer = 0, os.getppid(), "?"
    try:
        processes.become_subreaper()
        die_with(ctypes.CDLL(None), parent)
        wake = agent_wire.waking((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        peer = "%s:%s" % sock.getpeername()[:2]
        Session(agent_wire.shake(sock, secret, address, True), wake).run()
    except Refused as error:
        code = REFUSED
        if tell:
            print("agent: %s was refused: %s" % (peer, error), file=sys.stderr, flush=True)
    except (EOFError, OSError):
        pass  # it went away, perhaps before it had said anything: a look whether somebody listens is no session
    except Exception as error:  # noqa: BLE001 - nothing may come back from here
        print("agent: %r" % error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def die_with(libc: Any, parent: int) -> None:
    """Has the kernel kill this process when its parent dies."""
    libc.prctl(processes.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(agent_wire.GONE)


def shell() -> str:
    """Returns the user's shell, as sshd takes it: mpirun writes its command for that one."""
    try:
        found = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        return "/bin/sh"
    return found if os.path.basename(found) in SHELLS and os.access(found, os.X_OK) else "/bin/sh"


def execute(command: str, files: List[int], bind: Callable[[], None]) -> None:
    """Becomes the user's shell with this command, its standard files these; never returns."""
    try:
        os.setsid()
        bind()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; its handlers end with it
        for target, descriptor in enumerate(files):
            os.dup2(descriptor, target)
        os.execv(shell(), [shell(), "-c", command])
    except OSError as error:
        os.write(2, ("agent: %s cannot be started: %s\n" % (shell(), error)).encode())
    finally:
        os._exit(126)


def end_all() -> None:
    """Ends everything below this process: it is asked first."""
    if processes.send(signal.SIGTERM):
        until = time.monotonic() + END_GRACE_S
        while time.monotonic() < until and processes.descendants(os.getpid()):
            processes.reap()
            time.sleep(0.01)
        processes.kill_all()
    processes.reap()


class Session:
    """One command, from its frame to its last descendant."""

    def __init__(self, wire: Wire, wake: int) -> None:
        self.wire, self.wake = wire, wake
        self.pid, self.code = 0, -1
        self.stdin: Optional[int] = None
        self.input, self.input_ended = bytearray(), False
        self.outputs: Dict[int, int] = {}

    def run(self) -> None:
        """Runs the command that the client sends, and tells it how that ended.

        Raises:
            Refused: the client does not keep to the protocol.
            EOFError, OSError: it is gone. Nothing of the command is left either way.
        """
        until = time.monotonic() + agent_wire.HANDSHAKE_TIMEOUT_S
        try:
            while self.code < 0:
                self.step(1.0)
                if not self.pid and time.monotonic() > until:
                    raise Refused("it sent no command")
        finally:
            end_all()
        for descriptor in list(self.outputs):
            while descriptor in self.outputs:
                self.forward(descriptor)
        self.wire.put(agent_wire.EXIT, bytes([self.code]))
        self.wire.sock.settimeout(LAST_WORDS_S)
        self.wire.flush()

    def step(self, timeout_s: float) -> None:
        """Waits for something to happen, and does what follows."""
        poll = select.poll()
        taking = len(self.input) < agent_wire.MAX_PENDING_BYTES  # else the command does not read: the client waits too
        poll.register(
            self.wire.sock,
            select.POLLRDHUP | (select.POLLIN if taking else 0) | (select.POLLOUT if self.wire.pending else 0),
        )
        poll.register(self.wake, select.POLLIN)
        for descriptor in () if self.wire.full else self.outputs:
            poll.register(descriptor, select.POLLIN)
        if self.stdin is not None and (self.input or self.input_ended):
            poll.register(self.stdin, select.POLLOUT)
        for descriptor, events in poll.poll(timeout_s * 1000):
            if descriptor == self.wake:
                os.read(self.wake, 64)
                for ended in processes.reap():
                    if ended.pid == self.pid:
                        self.code = 128 + (ended.signal or 0) if ended.exit_code is None else ended.exit_code
            elif descriptor == self.stdin:
                self.feed()
            elif descriptor in self.outputs:
                self.forward(descriptor)
            elif events & GONE_EVENTS:
                raise EOFError
            else:
                for kind, payload in self.wire.take():
                    self.obey(kind, payload)
        self.wire.flush()

    def obey(self, kind: int, payload: bytes) -> None:
        """Does what a frame of the client asks for."""
        if kind == agent_wire.COMMAND and not self.pid:
            self.start(payload.decode("utf-8", "surrogateescape"))
        elif kind == agent_wire.INPUT and self.pid:
            if self.stdin is not None:
                self.input += payload
                self.input_ended = self.input_ended or not payload
        elif kind == agent_wire.SIGNAL and self.pid and len(payload) == 1 and payload[0] in agent_wire.RELAYED:
            processes.send(payload[0])
        else:
            raise Refused("a frame of kind %d that is not due" % kind)

    def start(self, command: str) -> None:
        """Starts the command in a session of its own."""
        if "\0" in command:
            raise Refused("a command with a zero byte")
        libc, parent = ctypes.CDLL(None), os.getpid()
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self.pid = os.fork()
        if self.pid == 0:
            execute(command, theirs, lambda: die_with(libc, parent))
        self.stdin, self.outputs = pipes[0][1], {pipes[1][0]: agent_wire.OUTPUT, pipes[2][0]: agent_wire.ERROR}
        for descriptor in theirs:
            os.close(descriptor)
        for descriptor in (self.stdin, *self.outputs):
            os.set_blocking(descriptor, False)

    def feed(self) -> None:
        """Gives the command its input; one that has closed it gets no more."""
        if self.stdin is None:
            return
        try:
            del self.input[: os.write(self.stdin, self.input)]
        except BlockingIOError:
            return
        except OSError:
            self.input.clear()
            self.input_ended = True
        if self.input_ended and not self.input:
            os.close(self.stdin)
            self.stdin = None

    def forward(self, descriptor: int) -> None:
        """Sends on a piece of the command's output."""
        try:
            data = os.read(descriptor, agent_wire.PIECE_BYTES)
        except BlockingIOError:  # its writers are gone, but for one that was none of its processes
            data = b""
        if data:
            self.wire.put(self.outputs[descriptor], data)
        else:
            del self.outputs[descriptor]
            os.close(descriptor)
