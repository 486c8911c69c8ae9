"""Danlu inside a job: ``danlu.log(step=3, loss=0.1)`` and the folders that outlive it; and outside: ``danlu.run("...")``.

What is for the inside runs on the job's own interpreter, Python 3.8 or later, with the standard library alone, and costs
nothing to import. The rest is the client, loaded when it is first used: ``run``, ``connect``, ``job``, ``jobs``,
``simulate``, the classes ``Job`` and ``Platform``, and ``errors``.
"""

import os as _os
from time import time_ns as _time_ns

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs more to import than all the rest
    from typing import Any, Dict, Optional

    from danlu import errors as errors
    from danlu.client.jobs import Job as Job
    from danlu.client.sdk import Platform as Platform
    from danlu.client.sdk import connect as connect
    from danlu.client.sdk import job as job
    from danlu.client.sdk import jobs as jobs
    from danlu.client.sdk import run as run
    from danlu.client.simulating import simulate as simulate

__version__ = "0.1.0"
__all__ = ["checkpoint_dir", "latest_checkpoint", "log", "output_dir", "preempted"]

_CLIENT = {
    "Job": "danlu.client.jobs", "Platform": "danlu.client.sdk", "connect": "danlu.client.sdk", "job": "danlu.client.sdk",
    "jobs": "danlu.client.sdk", "run": "danlu.client.sdk", "simulate": "danlu.client.simulating",
}  # fmt: skip
_MAX_NAME_LETTERS = 64
_descriptor = -1
_torn = False
_warned = False


def log(step: "Any" = None, **values: "Any") -> None:
    """Records numbers under their names: ``danlu.log(step=3, loss=0.1, accuracy=0.9)``.

    Inside a job it appends one line to a local file, in microseconds; it never waits for a server and never fails because of
    the disk. Outside a job it prints the line.

    Args:
        step: an int or a float that says where in the training this was; optional.
        **values: numbers, or what ``float()`` takes, such as NumPy scalars and tensors of one element. A name has at most 64
            letters.

    Raises:
        TypeError: a value is not a number.
        ValueError: a name is too long, cannot be printed or begins with ``system/``, which are the platform's own.
    """
    if _descriptor < 0:
        _slow_log(step, values)
        return
    if step is None:
        line = "%d\t" % _time_ns()
    elif type(step) is int:
        line = "%d\t%d" % (_time_ns(), step)
    else:
        line = "%d\t%r" % (_time_ns(), _number("step", step))
    for name, value in values.items():
        if type(value) is not float:
            value = _number(name, value)
        if len(name) > _MAX_NAME_LETTERS or not name.isprintable():
            raise ValueError("danlu.log: %.80r is no name: at most 64 letters that can be printed" % name)
        line += "\t%s=%r" % (name, value)
    if "\tsystem/" in line:
        raise ValueError("danlu.log: names that begin with system/ are the platform's own: %s" % ", ".join(values))
    line += "\n"
    data = line.encode()
    try:
        if _torn or _os.write(_descriptor, data) != len(data):
            _mend(data)
    except OSError as error:
        _failed(error)


def _slow_log(step: "Any", values: "Dict[str, Any]") -> None:
    """Opens the file at the first call, or prints where there is none."""
    global _descriptor
    path = _os.environ.get("DANLU_METRICS_FILE")
    if not path:
        parts = [] if step is None else ["step=%s" % step]
        print(
            " ".join(parts + ["%s=%.6g" % (name, _number(name, value)) for name, value in values.items()]), flush=True
        )
        return
    try:
        _descriptor = _os.open(path, _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT | getattr(_os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        _failed(error)
        return
    log(step, **values)


def _number(name: str, value: "Any") -> float:
    try:
        if isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # PyTorch raises the last for more than one element
        raise TypeError(
            "danlu.log: %s is a %s (%.60r), not a number: log numbers only" % (name, type(value).__name__, value)
        ) from None


def _mend(data: bytes) -> None:
    """Goes on after a line that a full disk has cut: what there is of it must not run into the next one."""
    global _torn
    if _torn:
        _torn = _os.write(_descriptor, b"\n" + data) != len(data) + 1
    else:
        _torn = True
        _failed(OSError(28, "No space left on device"))


def _failed(error: OSError) -> None:
    """Says once that metrics are not written. A descriptor that the program has closed is opened again at the next call."""
    global _descriptor, _warned
    if error.errno == 9:
        _descriptor = -1
    if not _warned:
        _warned = True
        import sys

        print("danlu.log: metrics cannot be written (%s); the training goes on" % error, file=sys.stderr)


def preempted() -> bool:
    """Says whether the job has to make way: save a checkpoint now and end. Outside a job it never has to.

    It looks for one file, in microseconds: ask after each step. In a gang it is one task's view; agree on it before you act.
    """
    return _os.path.exists(_os.environ.get("DANLU_PREEMPTION_FILE") or "")


def latest_checkpoint() -> "Optional[str]":
    """Returns the path of the newest whole checkpoint that an earlier attempt left, or None."""
    return _os.environ.get("DANLU_RESUME_FROM")


def checkpoint_dir() -> str:
    """Returns the folder for checkpoints, which outlives the attempt (outside a job: ./checkpoints)."""
    return _folder("DANLU_CHECKPOINT_DIR", "checkpoints")


def output_dir() -> str:
    """Returns the folder whose files are kept when the job ends (outside a job: ./outputs)."""
    return _folder("DANLU_OUTPUT_DIR", "outputs")


def _folder(variable: str, default: str) -> str:
    path = _os.environ.get(variable) or _os.path.abspath(default)
    _os.makedirs(path, exist_ok=True)
    return path


if not TYPE_CHECKING:  # a checker knows them by name, and no others

    def __getattr__(name):
        """Loads what belongs to the client."""
        if name not in _CLIENT and name != "errors":
            raise AttributeError("module 'danlu' has no attribute %r" % name)
        from importlib import import_module

        try:
            found = import_module(_CLIENT.get(name, "danlu.errors"))
        except ImportError as error:
            raise ImportError(
                "danlu.%s needs Danlu's client, which this Python does not have (%s): a job's own Python has danlu.log and "
                "the folders only. Call it from outside, where danlu is installed." % (name, error)
            ) from error
        return found if name == "errors" else getattr(found, name)
