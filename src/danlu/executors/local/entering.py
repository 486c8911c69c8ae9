"""Through an attempt's door: connects to its runner's socket, without trusting what the job may have put in its place.

The socket lies in the attempt's folder, which only the server and the job's user can pass. It is opened as a file first,
links refused, and reached by that descriptor: so nothing else can be reached, and the length of the path does not matter.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from danlu.domain.sessions import SessionRequest
from danlu.errors import DataDamaged, ExecutorUnavailable, NotRunning
from danlu.executors.local import beneath
from danlu.runner import frames

SOCKET: Final = "session"
"""As runner/session.py calls it."""
ANSWER_TIMEOUT_S: Final = 5.0
_CREDENTIALS: Final = struct.Struct("3i")


def enter(folder: Path, task: str, request: SessionRequest) -> socket.socket:
    """Returns a stream on which the request was made; see Executor.open_session."""
    try:
        descriptor = beneath.open_folder(folder)
    except FileNotFoundError:
        raise NotRunning(f"nothing of attempt {folder.name} is here any more") from None
    except OSError as error:
        raise ExecutorUnavailable(f"the folder of {folder.name} cannot be opened: {error}") from error
    try:
        stream = _connect(descriptor, folder.name)
    finally:
        os.close(descriptor)
    asked = {**request.model_dump(mode="json", exclude_none=True), "task": task}
    try:
        stream.settimeout(ANSWER_TIMEOUT_S)
        stream.sendall(frames.encode_json(frames.REQUEST, asked))
    except OSError as error:
        stream.close()
        raise ExecutorUnavailable(f"the runner of {folder.name} does not answer: {error}") from error
    return stream


def _connect(folder: int, attempt_id: str) -> socket.socket:
    owner = os.fstat(folder).st_uid
    try:
        found = os.open(SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise NotRunning(
            f"attempt {attempt_id} has no door: it is just ending, or was started by an older danlu"
        ) from None
    except OSError as error:
        raise ExecutorUnavailable(f"the door of {attempt_id} cannot be opened: {error}") from error
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        status = os.fstat(found)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != owner:
            raise DataDamaged(f"what is in the place of the door of {attempt_id} is not its runner's")
        stream.settimeout(ANSWER_TIMEOUT_S)
        stream.connect(f"/proc/self/fd/{found}")
        raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(raw)[1] != owner:
            raise DataDamaged(f"another user answers at the door of {attempt_id}")
    except ConnectionRefusedError:
        stream.close()
        raise NotRunning(f"attempt {attempt_id} is just ending: its runner lets nobody in any more") from None
    except OSError as error:
        stream.close()
        raise ExecutorUnavailable(f"the runner of {attempt_id} does not answer: {error}") from error
    except DataDamaged:
        stream.close()
        raise
    finally:
        os.close(found)
    return stream
