"""Sessions: what somebody does inside a running attempt, beside its tasks: a command, or copying files.

The runner listens on a socket in the attempt's folder and forks, for each session, a process that does all the rest: it reads
the request, starts the command as the task's process was started, and carries bytes. It ends, and all that it started with
it, when the command has ended, when nobody listens any more, when the attempt ends, and with the runner.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import contained, frames, processes, procfs, transfer

SOCKET = "session"
MAX_SESSIONS = 16
REQUEST_TIMEOUT_S = 10.0
SETTLE_S = 1.0
"""So long what a command leaves behind may still write once it has ended itself."""
ENDING_S = 0.5
"""So long a command has between SIGHUP and SIGKILL when its session ends."""
PARTING_S = 2.0
OUTGOING_BYTES = 256 << 10
_CREDENTIALS = struct.Struct("3i")


class Place(NamedTuple):
    """A task, as far as a session needs it: the environment of its process, its folder, its open control groups."""

    env: Dict[str, str]
    cwd: str
    cgroup_procs: Sequence[int]
    container: Optional[Dict[str, Any]] = None


def credentials(connection: socket.socket) -> Tuple[int, int]:
    """Returns (process, user) of the other end of a UNIX socket, as the kernel saw them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class Sessions:
    """The door of one attempt. Only the server, and the attempt's own user, may come in.

    Args:
        folder: the attempt's.
        server: the server's user.
        tasks: those of the attempt, with what their processes were started with.

    Attributes:
        open: the processes of those who are in.
    """

    def __init__(self, folder: str, server: int, tasks: Sequence[Any]) -> None:
        self._tasks, self._allowed = tasks, {server, os.geteuid()}
        self.open: List[int] = []
        self._socket: Optional[socket.socket] = None
        try:
            self._socket = _listening(folder)
        except OSError as error:  # the attempt itself needs no sessions
            print("sessions are not possible: %s" % error, file=sys.stderr)

    def waiting(self) -> List[Any]:
        """Returns what becomes readable when somebody comes."""
        return [] if self._socket is None else [self._socket]

    def accept(self) -> None:
        """Lets in who has come, each in a process of its own."""
        while self._socket is not None:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # too many files; the next one may be luckier
                print("a session cannot be accepted: %s" % error, file=sys.stderr)
                return
            with connection:
                self._admit(connection)

    def ended(self, pid: int) -> None:
        """Hears that a child has ended."""
        if pid in self.open:
            self.open.remove(pid)

    def pids(self) -> List[int]:
        """Returns the processes of all that are open."""
        return [one for pid in self.open for one in (pid, *processes.descendants(pid))]

    def close(self) -> None:
        """Lets in nobody any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _admit(self, connection: socket.socket) -> None:
        if credentials(connection)[1] not in self._allowed:
            return
        if len(self.open) >= MAX_SESSIONS:
            _refuse(connection, "%d sessions are open in this job already: end one of them" % MAX_SESSIONS)
            return
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(connection, "the job can start no process: %s" % error.strerror)
            return
        if pid:
            self.open.append(pid)
            return
        try:
            _alone(connection, [group for task in self._tasks for group in task.cgroup_procs])
            Relay(connection).serve(self._place)
        except (OSError, frames.FrameError) as error:
            print("a session broke off: %s" % error, file=sys.stderr)
        except Exception:  # noqa: BLE001 - nothing may come back from here
            traceback.print_exc()
        finally:
            try:
                processes.kill_all()
            finally:
                os._exit(0)

    def _place(self, name: str) -> Any:
        """Returns a task's place, or in words why there is none."""
        task = next((task for task in self._tasks if task.name == name), None)
        if task is None:
            return "there is no task %s" % name
        if task.pid is None or task.done:
            return "task %s has no process at this moment" % name
        return Place(task.env, str(task.spec["cwd"]), task.cgroup_procs, task.spec.get("container"))


def _listening(folder: str) -> socket.socket:
    """Returns a socket that listens in a folder, whatever the length of its path."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(SOCKET, dir_fd=descriptor)
        except FileNotFoundError:
            pass
        listening.bind("/proc/self/fd/%d/%s" % (descriptor, SOCKET))
        listening.listen(MAX_SESSIONS)
    except OSError:
        listening.close()
        raise
    finally:
        os.close(descriptor)
    return listening


def _refuse(connection: socket.socket, why: str) -> None:
    connection.setblocking(False)
    try:
        connection.send(frames.encode_json(frames.PROBLEM, {"code": "Conflict", "detail": why}))
    except OSError:
        return


def _alone(connection: socket.socket, groups: Sequence[int]) -> None:
    """Makes a forked process one of its own: without the runner's files and signals, and ended when the runner ends.

    It keeps what its command joins a control group with.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(processes.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(137)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes.become_subreaper()
    # the lock of the attempt, above all, is the runner's alone
    processes.close_from(3, [connection.fileno(), *procfs.kept(), *groups])


class Relay:
    """One session: carries bytes between the socket and a process until one of them has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = frames.Decoder(frames.FROM_CLIENT)
        self._outgoing = bytearray()
        self._window, self._taken, self._given = frames.Window(), frames.Taken(), frames.Window()
        self._pid = 0
        self._end: Optional[processes.Exit] = None
        self._input: Optional[int] = None
        self._pending = bytearray()
        self._input_over = False
        self._outputs: Dict[int, bytes] = {}
        self._terminal: Optional[int] = None
        self._gone = False
        self._settle_at = self._kill_at = float("inf")
        self._why = self._mark = ""

    def serve(self, place: Callable[[str], Any]) -> None:
        """Does what is asked, and says how it ended."""
        request = self._request()
        found = place(str(request.get("task", "")))
        if not isinstance(found, Place):
            self._say(frames.PROBLEM, {"code": "NotRunning", "detail": found})
            return
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._heard)
        error, code = self._begin(request, found)
        if error:
            self._say(frames.EXIT, {"exit_code": code, "error": error[:4000]})
            return
        self._connection.setblocking(False)
        self._send(frames.encode_json(frames.STARTED, {"pid": self._pid}))
        try:
            while not self._finished():
                self._step(wake_read)
        finally:
            processes.kill_all()  # what it has left behind
            contained.end_session(self._mark)
        if self._gone:
            return
        self._connection.settimeout(REQUEST_TIMEOUT_S)
        self._connection.sendall(bytes(self._outgoing) + self._last_word())
        self._let_go()

    def _say(self, kind: bytes, value: Dict[str, Any]) -> None:
        self._connection.sendall(frames.encode_json(kind, value))

    def _last_word(self) -> bytes:
        end = self._end
        code = None if end is None else end.exit_code
        if end is not None and end.signal is not None:
            code = 128 + end.signal
        return frames.encode_json(frames.EXIT, {"exit_code": code, "error": self._why})

    def _let_go(self) -> None:
        """Waits until the other side has gone: whose writing fails may never read what was said to it before."""
        self._connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + PARTING_S
        self._connection.settimeout(PARTING_S)
        while time.monotonic() < until and self._connection.recv(frames.DATA_BYTES):
            continue

    def _heard(self, *_: Any) -> None:
        """The attempt ends: so does this."""
        self._why = self._why or "the job was ending: the session ended with it"
        self._kill_at = min(self._kill_at, time.monotonic() + ENDING_S)

    # the beginning

    def _request(self) -> Dict[str, Any]:
        self._connection.settimeout(REQUEST_TIMEOUT_S)
        while True:
            data = self._connection.recv(frames.DATA_BYTES)
            if not data:
                raise frames.FrameError("it ended before it had asked for anything")
            found = list(self._decoder.feed(data))
            if found and (len(found) > 1 or found[0][0] != frames.REQUEST):
                raise frames.FrameError("it begins with %r" % [kind for kind, _ in found[:5]])
            if found:
                return frames.parse_json(found[0][1])  # before `started` nothing else is sent

    def _begin(self, request: Dict[str, Any], place: Place) -> Tuple[str, int]:
        """Starts the process that was asked for; returns ("", 0), or what is wrong and an exit code."""
        size = request.get("terminal")
        theirs: List[int] = []
        files = processes.Files(place.cwd, "", "", place.cgroup_procs)
        try:
            if size:
                self._terminal, slave = os.openpty()
                theirs = [slave]
                self._resize(int(size["rows"]), int(size["columns"]))
                files = files._replace(terminal=os.ttyname(slave))
                self._input, self._outputs = self._terminal, {self._terminal: frames.STDOUT}
            else:
                files = self._pipes(files, theirs, wants_input=bool(request.get("stdin")))
            env = {**place.env, "TERM": str(size["term"])} if size else place.env
            if request.get("verb", "exec") == "exec":
                argv = [str(word) for word in request["command"]]
                if place.container:
                    self._mark = contained.session_mark(place.container)
                    env = {**env, contained.SESSION: self._mark} if self._mark else env
                    argv, env = contained.entering(place.container, argv, {**env, "PWD": place.cwd}, bool(size))
                pid, error, code = processes.start(argv, env, files)
                self._pid, code = pid or 0, 126 if code is None else code
            else:
                self._pid, error = processes.fork(files, lambda: transfer.serve(request))()
                code = 126
                error = error.partition(" ")[2]
        except (OSError, KeyError, TypeError, ValueError, IndexError) as found:
            return "it cannot be started: %s" % found, 126
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        for ours in {*self._outputs, *([] if self._input is None else [self._input])}:
            os.set_blocking(ours, False)
        return error, code

    def _pipes(self, files: processes.Files, theirs: List[int], *, wants_input: bool) -> processes.Files:
        """Makes a pipe for each stream, and notes in ``theirs`` the ends that the other process opens for itself."""
        paths: List[str] = []
        for kind in (frames.STDOUT, frames.STDERR):
            reader, writer = os.pipe()
            self._outputs[reader] = kind
            theirs.append(writer)
            paths.append("/proc/self/fd/%d" % writer)
        files = files._replace(stdout=paths[0], stderr=paths[1])
        if wants_input:
            reader, self._input = os.pipe()
            theirs.append(reader)
            files = files._replace(stdin="/proc/self/fd/%d" % reader)
        return files

    def _resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    # the middle

    def _step(self, wake: int) -> None:
        """Waits for whatever can go on, and lets it."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        if not self._gone:
            poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        if self._input is not None and self._pending:
            poll.register(self._input, select.POLLOUT)
        room = self._window.left if len(self._outgoing) < OUTGOING_BYTES and not self._gone else 0
        if room:
            for output in self._outputs:
                poll.register(
                    output, select.POLLIN | (select.POLLOUT if self._input == output and self._pending else 0)
                )
        now = time.monotonic()
        until = min(self._settle_at, self._kill_at)
        timeout_ms = None if until == float("inf") else max(0, int((until - now) * 1000) + 1)
        ready = dict(poll.poll(timeout_ms))
        if wake in ready:
            _drained(wake)
        self._reap()
        if ready.get(self._connection.fileno(), 0) & ~select.POLLOUT and not self._gone:
            self._receive()
        if self._input is not None and self._pending:
            self._write()
        for output in [output for output in self._outputs if ready.get(output, 0) & ~select.POLLOUT]:
            if self._window.left and not self._gone:
                self._read(output)
        self._flush()
        self._in_time()

    def _reap(self) -> None:
        for ended in processes.reap():
            if ended.pid == self._pid:
                self._end = ended
                self._settle_at = time.monotonic() + SETTLE_S

    def _in_time(self) -> None:
        """Ends what has had its time."""
        now = time.monotonic()
        if now < min(self._settle_at, self._kill_at):
            return
        for ended in processes.kill_all():
            if ended.pid == self._pid:
                self._end = ended
        self._settle_at = self._kill_at = float("inf")

    def _finished(self) -> bool:
        """Whether its process has ended, and all that was written is on its way; or nobody wants it any more."""
        return self._end is not None and (self._gone or not (self._outputs or self._outgoing))

    def _receive(self) -> None:
        try:
            data = self._connection.recv(frames.DATA_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        for kind, content in self._decoder.feed(data):
            if kind == frames.STDIN:
                self._given.use(len(content))
                self._pending += content
                if self._input is None:
                    self._consumed(len(self._pending))
            elif kind == frames.EOF:
                self._input_over = True
                self._perhaps_over()
            elif kind == frames.CREDIT:
                self._window.give(content)
            elif kind == frames.RESIZE:
                self._resize(*frames.size_of(content))

    def _hang_up(self) -> None:
        """Nobody listens any more: what runs is told so, and killed if it does not mind."""
        if self._gone:
            return
        self._gone = True
        self._outgoing.clear()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
            processes.send(number)
        self._kill_at = min(self._kill_at, time.monotonic() + ENDING_S)

    def _write(self) -> None:
        assert self._input is not None  # noqa: S101 - for the type checker
        try:
            count = os.write(self._input, self._pending[: frames.DATA_BYTES])
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            count = len(self._pending)
            if self._terminal is None:
                self._close_input()
        self._consumed(count)
        self._perhaps_over()

    def _perhaps_over(self) -> None:
        """Ends the input, once all of it was written."""
        if not self._input_over or self._pending or self._input is None:
            return
        self._input_over = False
        if self._terminal is None:
            self._close_input()
            return
        try:
            os.write(self._terminal, b"\x04")  # as a keyboard says it
        except OSError:
            return

    def _consumed(self, count: int) -> None:
        del self._pending[:count]
        for data in self._taken.take(count):
            self._given.give(data)
            self._send(frames.encode(frames.CREDIT, data))

    def _close_input(self) -> None:
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def _read(self, output: int) -> None:
        try:
            data = os.read(output, min(frames.DATA_BYTES, self._window.left))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # so a terminal says that nothing has it open any more
                raise
            data = b""
        if data:
            self._window.use(len(data))
            self._send(frames.encode(self._outputs[output], data))
            return
        if output != self._terminal:
            os.close(output)
        del self._outputs[output]

    def _send(self, frame: bytes) -> None:
        if not self._gone:
            self._outgoing += frame

    def _flush(self) -> None:
        if not self._outgoing or self._gone:
            return
        try:
            del self._outgoing[: self._connection.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()


def _drained(wake: int) -> None:
    try:
        while os.read(wake, 4096):
            pass
    except BlockingIOError:
        return
