"""Files from and to a running job, through a session whose other end sends or receives them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from danlu.blobs.folders import windows_refuses
from danlu.client.sessions import opened
from danlu.client.transport import Client
from danlu.domain.sessions import SessionEnd, SessionRequest, Verb
from danlu.errors import DanluError, DataDamaged, InvalidRequest, NotFound, NotRunning
from danlu.runner import frames
from danlu.runner.transfer import Counts, Receiver, Sender, Target, TransferError, printable

SAID_BYTES: Final = 4096
LEFT_OUT: Final = "left out: "


@dataclass(frozen=True, slots=True)
class Remote:
    """A path inside a job's task; the job's first task where none is named."""

    job: str
    path: str
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and what was left out and why."""

    files: int
    size_bytes: int
    skipped: tuple[str, ...] = ()


Progress = Callable[[Copied, Copied], None]
"""Called with what is done and what there is in all."""


def own_name(path: str) -> str:
    """Returns what a source is called in a folder it is copied into; empty where only its content is meant."""
    path = path.replace(os.sep, "/")
    name = path.rpartition("/")[2]
    return "" if name in ("", ".", "..") else name


def download(client: Client, source: Remote, target: str, progress: Progress | None = None) -> Copied:
    """Copies a file or a folder from a job to here. Each file is there whole or not at all.

    Raises:
        NotRunning: the job has ended, before or meanwhile.
        NotFound: the job has no such file.
        InvalidRequest: it cannot be written here.
        DataDamaged: what the job sends is not what is sent; nothing was written outside ``target``.
    """
    refuses = windows_refuses if os.name == "nt" else _nothing
    receiver = Receiver(Target(target, own_name(source.path), refuses), _telling(progress))
    request = SessionRequest(verb=Verb.READ, path=source.path)
    said = bytearray()

    def write(kind: bytes, data: bytes) -> None:
        if kind == frames.STDOUT:
            receiver.feed(data)
        else:
            _keep(said, data)

    try:
        with opened(client, source.job, request, task=source.task) as session:
            end = session.run(write)
        _check(end, said, source)
        receiver.close()
    except TransferError as error:
        raise _local(error) from error
    finally:
        receiver.abandon()
    return Copied(receiver.done.files, receiver.done.size_bytes, tuple(receiver.skipped))


def upload(client: Client, source: str, target: Remote, progress: Progress | None = None) -> Copied:
    """Copies a file or a folder from here into a job. Each file is there whole or not at all.

    Raises:
        NotRunning: the job has ended, before or meanwhile.
        NotFound: it cannot be written there.
        InvalidRequest: it cannot be read here.
    """
    if not Path(source).exists():
        raise InvalidRequest(f"{source} does not exist here")
    request = SessionRequest(verb=Verb.WRITE, path=target.path, name=own_name(source), stdin=True)
    said = bytearray()
    failed: list[TransferError] = []
    with opened(client, target.job, request, task=target.task) as session:

        def give(data: bytes) -> None:
            if not session.give(data):
                raise TransferError("the session ended")

        sender = Sender(source, give, _telling(progress))

        def send() -> None:
            try:
                sender.run()
            except TransferError as error:
                failed.append(error)
            session.end_input()

        sending = threading.Thread(target=send, daemon=True, name="danlu-cp")
        sending.start()
        end = session.run(lambda _kind, data: _keep(said, data))
        session.finish()
        sending.join()
    if failed and end.exit_code == 1 and said.startswith(b"it broke off"):
        raise _local(failed[0])  # the other end only saw that nothing more came
    _check(end, said, target)
    left_out = tuple(line.removeprefix(LEFT_OUT) for line in _lines(said) if line.startswith(LEFT_OUT))
    return Copied(sender.done.files, sender.done.size_bytes, left_out)


def _telling(progress: Progress | None) -> Callable[[Counts, Counts], None] | None:
    if progress is None:
        return None
    return lambda done, totals: progress(Copied(*done), Copied(*totals))


def _nothing(_name: str) -> bool:
    return False


def _keep(said: bytearray, data: bytes) -> None:
    said += data[: SAID_BYTES - len(said)]


def _lines(said: bytearray) -> list[str]:
    return [printable(line) for line in said.decode(errors="replace").splitlines()]


def _check(end: SessionEnd, said: bytearray, where: Remote) -> None:
    """Raises what the other end has said where it could not do it."""
    if end.error:
        raise NotRunning(f"{where.job}: {end.error}", next_step=f"what it left: danlu artifacts get {where.job}")
    if end.exit_code != 0:
        text = " ".join(_lines(said)[-3:]) or f"its end of the copy ended with {end.exit_code}"
        raise NotFound(f"{where.job}: {text}", next_step=f"what is there: danlu exec {where.job} -- ls -la")


def _local(error: TransferError) -> DanluError:
    text = printable(str(error))
    if error.foreign:
        return DataDamaged(text, next_step="the job itself answers so; nothing was written outside the target")
    return InvalidRequest(text)
