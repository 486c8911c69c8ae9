"""Follows a job until it has ended: its output, why it waits, how its environment is built; and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from danlu.api.bodies import EventsQuery, LogsQuery, OffsetQuery, Paging, StopRequest
from danlu.cli import exits, wording
from danlu.cli.lines import LogLines, Prefixes, emit, screens
from danlu.cli.session import FOLLOW_PATIENCE_S
from danlu.cli.terminal import Messages
from danlu.client.logs import task_names
from danlu.domain.jobs import Job
from danlu.domain.sessions import OPENED
from danlu.errors import DanluError

if TYPE_CHECKING:
    from danlu.client.transport import Client
    from danlu.domain.events import Event
    from danlu.domain.jobs import Attempt
    from danlu.domain.views import LogPage

WAITING_PAGES: Final = 16
BUILD_POLL_S: Final = 0.5
PLAIN_BUILD_LINE_S: Final = 10.0
TICK_S: Final = 0.25
LAST_WAIT_S: Final = 0.5
UNHEARD_S: Final = 2.0
GOING_ON: Final = frozenset({"PendingEvaluation", "Placed", "Launching", "Started", "StopRequested", "DesiredStop"})
BUILDING: Final = {
    "EnvironmentBuilding": "its environment is being built",
    "ImagePulling": "its image is being pulled",
}
REPEATED: Final = frozenset({"AttemptFailed", "RunnerLost", "NodeLost", "Evicted", "PodDeleted", "StartTimeout"})


class Detached(Exception):
    """The user left; the job goes on. ``code`` is what the command exits with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Following:
    """One job being followed. All printing happens in the thread that calls ``run``; others only fetch.

    Args:
        client: of the job's platform and project.
        job: as it was submitted.
        messages: where danlu's own words go.
        output: print the job's output.
        news: tell each change of the job's state.
        logs: which part of its output; from its first attempt on when left out.
    """

    def __init__(
        self, client: Client, job: Job, messages: Messages, *, output: bool = True, news: bool = True,
        logs: LogsQuery | None = None,
    ) -> None:  # fmt: skip
        self._logs = logs or LogsQuery(beginning=1)
        self._client, self._job, self._messages, self._output = client, job, messages, output
        names = task_names(job.spec, LogsQuery())
        prefixes = Prefixes(names) if len(names) > 1 else None
        self._lines = LogLines(*screens(sys.stdout, sys.stderr), prefixes=prefixes)
        self._news: queue.Queue[tuple[str, Any]] = queue.Queue(WAITING_PAGES)
        self._begun = time.monotonic()
        self._tell = news
        self._building = threading.Event()
        self._waits = ""
        self._told = 0
        self._unlimited_told = False
        self._noticed = ""
        self._stopping = self._terminated = False
        self._stop_heard = threading.Event()
        self._unheard_at: float | None = None
        self._printing = threading.get_ident()
        self._last_build_line = 0.0
        client.patience_s = FOLLOW_PATIENCE_S
        client.notice = self._heard

    def run(self) -> Job:
        """Returns the job as it ended.

        Raises:
            Detached: the user left.
            DanluError: the platform refused, or stayed away for too long.
        """
        client, job_id = self._client, self._job.id
        self._printing = threading.get_ident()
        path = {"job": job_id}
        self._fetch("page", lambda: client.stream("jobs.logs_stream", path, query=self._logs), last=True)
        if self._tell:
            self._fetch("event", lambda: client.stream("events.stream", query=EventsQuery(object_id=job_id)))
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            self._until_the_end()
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._building.clear()
            self._messages.clear()
            emit(self._lines.end())
        self._job = client.call("jobs.get", path)
        if self._job.started_at is not None:
            self._tell_running(self._job.attempts)
        return self._job

    def _terminate(self, _number: int, _frame: object) -> None:
        """SIGTERM: as Ctrl-C, but whoever sends it expects no question. SIGHUP ends this process; the job goes on."""
        self._terminated = True
        raise KeyboardInterrupt

    def _heard(self, text: str) -> None:
        """Takes a notice from any thread, and never waits. The one that prints cannot hear it while it calls itself."""
        if threading.get_ident() == self._printing:
            self._take("notice", text)
            return
        with contextlib.suppress(queue.Full):
            self._news.put_nowait(("notice", text))

    def _fetch(self, kind: str, stream: Callable[[], Any], *, last: bool = False) -> None:
        def work() -> None:
            try:
                for item in stream():
                    self._news.put((kind, item))
                if last:
                    self._news.put(("end", None))
            except Exception as error:  # noqa: BLE001 - it is raised again in the thread that can tell it
                self._news.put(("error", error))

        threading.Thread(target=work, daemon=True, name=f"danlu-{kind}").start()

    def _until_the_end(self) -> None:
        while True:
            try:
                kind, item = self._news.get(timeout=TICK_S)
            except queue.Empty:
                self._tick()
                continue
            except KeyboardInterrupt:
                self._interrupted()
                continue
            try:
                if kind == "end":
                    return
                self._take(kind, item)
            except KeyboardInterrupt:
                self._interrupted()

    def _take(self, kind: str, item: Any) -> None:
        if kind == "page":
            self._page(item)
        elif kind == "event":
            self._event(item)
        elif kind == "build":
            self._build_line(item)
        elif kind == "stop":
            self._messages.say(f"{self._job.name} is asked to stop; Ctrl-C again leaves it to that")
        elif kind == "notice":
            if item != self._noticed:  # each of the streams says it
                self._messages.say(item, "yellow")
            self._noticed = item
        else:
            raise item

    def _page(self, page: LogPage) -> None:
        if not self._output:
            return
        if page.chunks:
            self._tell_running(page.chunks[0].attempt)
            self._messages.clear()
            emit(self._lines.take(page))

    def _event(self, event: Event) -> None:
        if event.reason == OPENED:  # somebody looks inside: it moves nothing
            return
        if event.state != "queued" or event.reason not in BUILDING:
            self._building.clear()
        if event.state == "queued" and event.reason in BUILDING:
            self._waits = BUILDING[event.reason]
            self._watch_build()
        elif event.state == "queued" and event.reason not in GOING_ON:
            self._waits = event.reason or "queued"
            self._messages.say(self._waiting(event), "dim")
        elif event.reason == "Preempted" and event.state in ("starting", "running"):
            self._messages.say(f"{self._job.name}: {event.message}", "yellow")
        elif event.state == "running":
            self._tell_running(None)
        elif event.state == "stopping":
            self._waits = "it is being stopped"
            if not self._stopping:
                self._messages.say(f"{self._job.name} is being stopped: {event.message or event.reason}", "dim")

    def _tell_running(self, number: int | None) -> None:
        """Says once for each attempt where it runs: at its event or at its first line, whichever is heard first."""
        self._waits = ""
        if not self._tell or (number is not None and number <= self._told):
            return
        page = self._client.call("jobs.attempts", {"job": self._job.id}, query=Paging(limit=1))
        for attempt in page.items:
            if attempt.number > self._told:
                self._announce(attempt)
            missing = "" if self._unlimited_told else wording.not_in_force(self._job.spec, attempt)
            if missing:
                self._unlimited_told = True
                self._messages.say(f"{missing}: this machine sets no such limit: danlu doctor", "yellow")

    def _announce(self, attempt: Attempt) -> None:
        self._told = attempt.number
        parts = [f"{'queued → ' if attempt.number == 1 else ''}running on {wording.where(attempt)}"]
        if len(attempt.tasks) > 1:
            parts.append(wording.roles(self._job.spec))
        parts.append(attempt.start)
        if attempt.number > 1:
            parts.append(f"attempt {attempt.number}")
        if attempt.resumed_from:
            parts.append(f"from {attempt.resumed_from.rstrip('/').rpartition('/')[2]}")
        self._messages.step(f"job {self._job.name}", " · ".join(parts), time.monotonic() - self._begun)

    def _tick(self) -> None:
        if self._unheard_at is not None and time.monotonic() > self._unheard_at and not self._stop_heard.is_set():
            self._unheard_at = None
            self._messages.say(
                f"{self._job.name} is stopped when the platform answers; Ctrl-C again gives that up", "yellow"
            )
        if self._waits and not self._building.is_set():
            self._messages.status(f"{self._job.name} waits: {self._waits}  {self._so_far()}")

    def _waiting(self, event: Event) -> str:
        name = self._job.name
        if event.reason == "Preempted":
            return f"{name} waits again: {event.message or event.reason}   (more: danlu why {name})"
        if event.reason in REPEATED:
            return f"{name} is tried again: {wording.without_output(event.message) or event.reason}"
        reason = f"{event.reason}: {event.message}" if event.message else event.reason
        return f"{name} waits: {reason}   (more: danlu why {name})"

    def _so_far(self) -> str:
        return wording.whole(time.monotonic() - self._begun)

    def _watch_build(self) -> None:
        if self._building.is_set():
            return
        self._building.set()
        job = self._client.call("jobs.get", {"job": self._job.id})
        if job.environment_id is None:
            return
        env = self._client.call("environments.get", {"environment": job.environment_id})
        goes_on = "is being built" if env.source.image is None else "is being pulled"
        self._messages.step("environment", f"{env.name} {goes_on}", time.monotonic() - self._begun)
        threading.Thread(target=self._read_build, args=(job.environment_id,), daemon=True, name="danlu-build").start()

    def _read_build(self, environment_id: str) -> None:
        offset = 0
        try:
            while self._building.is_set():
                page = self._client.call(
                    "environments.log", {"environment": environment_id}, query=OffsetQuery(offset=offset)
                )
                offset = page.offset
                if lines := page.text.split("\n")[:-1]:
                    self._news.put(("build", lines[-1]))
                if page.done:
                    return
                if not page.text:
                    time.sleep(BUILD_POLL_S)
        except DanluError as error:
            self._news.put(("build", f"(its log cannot be read: {error.message})"))

    def _build_line(self, line: str) -> None:
        if not self._building.is_set():
            return
        if self._messages.moving:
            self._messages.status(f"{'environment':<13} {self._so_far()}  {line}")
        elif time.monotonic() - self._last_build_line > PLAIN_BUILD_LINE_S:
            self._last_build_line = time.monotonic()
            self._messages.step("environment", line)

    def _interrupted(self) -> None:
        """Does what Ctrl-C asks for; one that comes in the middle of that is another one."""
        while True:
            try:
                return self._answer()
            except KeyboardInterrupt:
                continue

    def _answer(self) -> None:
        """Asks what Ctrl-C means; where nobody can be asked, it means what it means for a process: stop.

        A second one leaves the job to its stopping.
        """
        name = self._job.name
        self._messages.clear()
        emit(self._lines.end())
        if self._stopping and self._stop_heard.wait(LAST_WAIT_S):
            raise Detached(f"{name} is still being stopped: danlu wait {name}", exits.INTERRUPTED)
        if self._stopping:
            raise Detached(
                f"{name} is NOT stopped: the platform has not taken the request. Stop it later: danlu stop {name}",
                exits.INTERRUPTED,
            )
        can_ask = not self._terminated and sys.stdin.isatty() and sys.stderr.isatty()
        answer = self._ask(name) if can_ask else "s"
        if answer == "d":
            raise Detached(f"follow it with `danlu logs -f {name}`", exits.OK)
        if answer == "s":
            self._stopping, self._unheard_at = True, time.monotonic() + UNHEARD_S
            self._messages.status(f"{name}: asking the platform to stop it")
            threading.Thread(target=self._stop, daemon=True, name="danlu-stop").start()

    def _stop(self) -> None:
        """Asks for the stop, in a thread of its own: the platform may be away for long, and Ctrl-C must go on to work."""
        try:
            self._client.call("jobs.stop", {"job": self._job.id}, body=StopRequest())
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that can tell it
            self._news.put(("error", error))
            return
        self._stop_heard.set()
        self._news.put(("stop", None))

    def _ask(self, name: str) -> str:
        question = f"\n  {name} goes on if you detach.  [D]etach (Enter)  [s]top  [c]ontinue: "
        while True:
            sys.stderr.write(question)
            sys.stderr.flush()
            try:
                answer = sys.stdin.readline()
            except KeyboardInterrupt:
                return "s" if self._terminated else "d"
            if (letter := answer.strip().lower()[:1] or "d") in ("d", "s", "c"):
                return letter
            question = "  d, s or c: "
