"""Flags that several commands share, and how they are read."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Group, Parameter, validators

from danlu.cli.output import Format
from danlu.client.submitting import read_requirements
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest

SPECIFICATION: Final = Group("What the job asks for", sort_key=1)
DISTRIBUTED: Final = Group("Several tasks", sort_key=2)
EVERYWHERE: Final = Group("Every command", sort_key=3)

INTERPRETER_TIMEOUT_S: Final = 10.0
Flag = Parameter(negative=(), show_default=False)
Words = Parameter(negative_iterable=(), show_default=False)
Names = Annotated[str, Parameter(help="X, job X or job/X")]
Output = Annotated[
    Format,
    Parameter(name=("--output", "-o"), help="table, wide, json, yaml or name", show_choices=False, show_default=False),
]
Yes = Annotated[bool, Parameter(name=("--yes", "-y"), help="do not ask; without a terminal nobody is asked"), Flag]
Limit = Annotated[int, Parameter(help="at most so many, the newest; 0 for all", validator=validators.Number(gte=0))]


@Parameter(name="*", group=EVERYWHERE)
@dataclass(frozen=True)
class Common:
    """Which platform and which project."""

    url: Annotated[str | None, Parameter(help="the platform's address, instead of DANLU_URL or the one here")] = None
    profile: Annotated[str | None, Parameter(help="a platform that you logged in to; local: the one here")] = None
    project: Annotated[str | None, Parameter(help="the project, instead of DANLU_PROJECT or default")] = None


def again(common: Common | None) -> str:
    """Returns the flags by which another command means the same platform and project, each after a space."""
    given = {"url": common.url, "profile": common.profile, "project": common.project} if common else {}
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items() if value)


@Parameter(name="*", group=DISTRIBUTED)
@dataclass(frozen=True)
class Roles:
    """The replica roles of a distributed job, as flags."""

    nodes: Annotated[
        int | None, Parameter(help="so many tasks that each start their own processes, as torchrun does")
    ] = None
    worker: Annotated[int | None, Parameter(help="so many workers, one process each")] = None
    ps: Annotated[int | None, Parameter(help="so many parameter servers (TensorFlow)")] = None
    chief: Annotated[int | None, Parameter(help="1: a chief of its own (TensorFlow)")] = None
    evaluator: Annotated[int | None, Parameter(help="1: an evaluator beside the training (TensorFlow)")] = None
    role: Annotated[
        tuple[str, ...],
        Parameter(help="NAME=REPLICAS, or with fields of its own: ps=1,cpu=0.5,memory=1GiB,gpu=0; repeatable"), Words,
    ] = ()  # fmt: skip
    framework: Annotated[str | None, Parameter(help="tensorflow, pytorch, jax, mpi, horovod, mxnet or none")] = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of JobSpec that were given, not validated yet.

        Raises:
            InvalidRequest: a ``--role`` is not one.
        """
        flags = {
            "node": self.nodes, "worker": self.worker, "ps": self.ps, "chief": self.chief, "evaluator": self.evaluator
        }  # fmt: skip
        given: dict[str, dict[str, Any]] = {name: {"replicas": n} for name, n in flags.items() if n is not None}
        for word in self.role:
            name, _, rest = word.partition("=")
            if not name or not rest:
                raise InvalidRequest(
                    f"--role {word!r} is not NAME=REPLICAS", next_step="write for example --role worker=2"
                )
            if name in given:
                flag = "--nodes" if name == "node" else f"--{name}"
                raise InvalidRequest(
                    f"--role {word!r}: {'another --role' if flags.get(name) is None else flag} says already how many "
                    f"{name} there are", next_step=f"keep one of them: --role {word}",
                )  # fmt: skip
            first, *more = rest.split(",")
            given[name] = {"replicas": first, **pairs("--role", more, "FIELD=VALUE", "worker=2,memory=4GiB")}
        if given and all(str(role["replicas"]) == "0" for role in given.values()):
            raise InvalidRequest("no task is left: every role has 0 replicas", next_step="write for example --worker 2")
        roles = {name: role for name, role in given.items() if str(role["replicas"]) != "0"}
        fields: dict[str, Any] = {"roles": roles} if roles else {}
        return fields | ({} if self.framework is None else {"framework": self.framework})


@Parameter(name="*", group=SPECIFICATION)
@dataclass(frozen=True)
class Asked:
    """Fields of a job's specification, as flags."""

    name: Annotated[str | None, Parameter(help="a name; made up from the command when left out")] = None
    env: Annotated[str | None, Parameter(help="environment (danlu env ls), or host: the Python you stand in")] = None
    requirements: Annotated[Path | None, Parameter(help="a requirements.txt, instead of --env")] = None
    python: Annotated[str | None, Parameter(help="Python version for --requirements, e.g. 3.11")] = None
    image: Annotated[str | None, Parameter(help="a container image, e.g. python:3.12, instead of --env")] = None
    cpu: Annotated[str | None, Parameter(help="cores, e.g. 2 or 0.5")] = None
    memory: Annotated[str | None, Parameter(help="e.g. 4GiB; a limit where the machine can set one")] = None
    gpu: Annotated[str | None, Parameter(help="whole GPUs; 2..8: the most of these that is free when it starts")] = None
    gpu_kind: Annotated[str | None, Parameter(help="e.g. h100")] = None
    var: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, a variable of the command; repeatable"), Words] = ()
    secret: Annotated[
        tuple[str, ...],
        Parameter(help="NAME or VARIABLE=NAME, a secret as a variable: danlu secret ls; repeatable"),
        Words,
    ] = ()
    secret_file: Annotated[
        tuple[str, ...], Parameter(help="NAME or VARIABLE=NAME, the variable holds the path of a file with it"), Words
    ] = ()
    label: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE; repeatable"), Words] = ()
    priority: Annotated[str | None, Parameter(help="low, normal, high or a number; a higher one starts earlier")] = None
    hold: Annotated[bool | None, Parameter(help="let it wait until danlu release"), Flag] = None
    after: Annotated[
        tuple[str, ...], Parameter(help="run after this job or array has succeeded; X:failed, X:any; repeatable"), Words
    ] = ()
    array: Annotated[
        str | None, Parameter(help="many jobs that differ by DANLU_ARRAY_INDEX: 0-99, 0-99%10: 10 at once")
    ] = None
    retries: Annotated[int | None, Parameter(help="how often a failed attempt is repeated")] = None
    max_time: Annotated[str | None, Parameter(help="an attempt that runs longer is ended, e.g. 2h")] = None
    grace: Annotated[str | None, Parameter(help="time between SIGTERM and SIGKILL, e.g. 30s")] = None
    notice: Annotated[
        str | None, Parameter(help="time to write a checkpoint once it has to make way for another job, e.g. 2m")
    ] = None
    notice_signal: Annotated[str | None, Parameter(help="what tells it so: TERM, INT, HUP, USR1 or USR2")] = None
    metrics: Annotated[bool | None, Parameter(help="take printed name: value and name=value as metrics"), Flag] = None
    distributed: Roles | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of JobSpec that were given, not validated yet.

        Raises:
            InvalidRequest: a KEY=VALUE is not one.
            InvalidSpec: the requirements cannot be read.
        """
        given: dict[str, Any] = {
            "name": self.name,
            "env": self.env,
            "python": self.python,
            "image": self.image,
            "cpu": self.cpu,
            "memory": self.memory,
            "gpu": self.gpu,
            "gpu_kind": self.gpu_kind,
            "priority": self.priority,
            "hold": self.hold,
            "after": self.after or None,
            "array": self.array,
            "max_time": self.max_time,
            "grace": self.grace,
            "notice": self.notice,
            "notice_signal": self.notice_signal,
            "parse_metrics": self.metrics,
            "requirements": None if self.requirements is None else read_requirements(self.requirements),
            "variables": pairs("--var", self.var) or None,
            "secrets": {**secret_uses(self.secret), **secret_uses(self.secret_file, file=True)} or None,
            "labels": pairs("--label", self.label, example="model=digits") or None,
            "retry": None if self.retries is None else {"attempts": self.retries + 1},
            "interpreter": own_interpreter() if self.env == "host" else None,
        }
        return {name: value for name, value in given.items() if value is not None} | (
            self.distributed or Roles()
        ).fields()


FLAGS: Final = {
    "command": "-- COMMAND",
    "code": "--code",
    "roles": "--role",
    "requirements": "--requirements",
    "variables": "--var",
    "secrets": "--secret",
    "labels": "--label",
    "retry.attempts": "--retries",
    "parse_metrics": "--metrics",
}
"""The flags of fields that are not called as the field is."""


def flag_of(path: str) -> str:
    """Returns the flag that sets a field of a job, ``job.memory``; "" where none does."""
    noun, _, field = path.partition(".")
    if noun != "job":
        return ""
    known = {*Asked.__dataclass_fields__, *Roles.__dataclass_fields__}
    return FLAGS.get(field, f"--{field.replace('_', '-')}" if field in known else "")


def pairs(flag: str, words: Sequence[str], form: str = "KEY=VALUE", example: str = "LR=0.1") -> dict[str, str]:
    """Returns ``KEY=VALUE`` words as a dict; a later one wins. ``form`` and ``example``: what a word is of this flag."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"{flag} {word!r:.80} is not {form}", next_step=f"write for example {flag} {example}")
        found[key] = value
    return found


def secret_uses(words: Sequence[str], *, file: bool = False) -> dict[str, dict[str, Any]]:
    """Returns ``NAME`` and ``VARIABLE=NAME`` words as a job's secrets; a later one wins."""
    halves = [word.partition("=") for word in words]
    return {variable: {"secret": name if equals else variable, "file": file} for variable, equals, name in halves}


def own_interpreter() -> str:
    """Returns the Python that the user stands in: of the virtual environment, else the first on PATH.

    What is on PATH may be a script that chooses one by the present folder, so it is asked which Python it is.
    """
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        found = Path(os.environ.get(variable, "")) / "bin" / "python"
        if os.environ.get(variable) and found.exists():
            return str(found.absolute())
    for name in ("python", "python3"):
        if (where := shutil.which(name)) and (real := _real_interpreter(where)):
            return real
    return sys.executable


def _real_interpreter(python: str) -> str:
    """Returns the file of the Python that a command starts; "" where it starts none of ours."""
    import subprocess

    ask = "import os, sys; sys.stdout.buffer.write(os.fsencode(sys.executable))"
    try:
        asked = subprocess.run(
            [str(Path(python).absolute()), "-I", "-S", "-c", ask],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INTERPRETER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # it cannot be run: then a job cannot run it either
        return ""
    found = os.fsdecode(asked.stdout)
    return found if asked.returncode == 0 and Path(found).is_absolute() and Path(found).exists() else ""


def one(words: Sequence[str], kind: str = "job") -> str:
    """Returns the one name in ``X``, ``job X`` or ``job/X``.

    Raises:
        InvalidRequest: none or several are named.
    """
    names = several(words, kind)
    if len(names) != 1:
        meant = suggestion(names[0], (kind, f"{kind}s")) if len(names) == 2 and names[0] != kind else ""
        raise InvalidRequest(
            f"this takes one {kind}; {len(names)} are named: {', '.join(names)}",
            next_step=meant.replace("?", f" {names[1]}?"),
        )
    return names[0]


def several(words: Sequence[str], kind: str = "job") -> list[str]:
    """Returns the names in ``X Y``, ``job X Y``, ``jobs X`` or ``job/X job/Y``, at least one. A job's may be an array's."""
    kinds = (kind, f"{kind}s", *(("array", "arrays") if kind == "job" else ()))
    words = list(words)
    if len(words) > 1 and words[0] in kinds:
        words = words[1:]
    names = [name if head in kinds and slash else word for word in words for head, slash, name in [word.partition("/")]]
    if not names or not all(names):
        raise InvalidRequest(f"no {kind} is named", next_step=f"all of them: danlu get {kind}s")
    return names
