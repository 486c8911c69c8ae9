"""``danlu init``: a job file to begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from pydantic import BaseModel

from danlu.cli import exits
from danlu.cli import output as out
from danlu.cli.options import Common, Flag
from danlu.cli.terminal import Messages
from danlu.domain.commands import as_name
from danlu.domain.fields import Described, described
from danlu.domain.frameworks import FRAMEWORKS
from danlu.domain.specs import JobSpec
from danlu.domain.validation import suggestion
from danlu.errors import Conflict, InvalidRequest, InvalidSpec, UnknownEnvironment

FILE: Final = "danlu.yaml"
NO_COMMAND: Final = "python train.py"
COLUMN: Final = 36
"""Where what a field means begins."""
FILLED_IN: Final = frozenset({"git"})
"""What danlu itself fills in when it sends the code."""
KEY: Final = "worker"
"""A name where names are the user's own."""


def init(
    file: Annotated[
        Path, Parameter(help="where to write it; - is stdout", allow_leading_hyphen=True, show_default=False)
    ] = Path(FILE),
    /,
    *,
    env: Annotated[str | None, Parameter(help="environment (danlu env ls), instead of the one guessed")] = None,
    framework: Annotated[str | None, Parameter(help="a distributed job: tensorflow, pytorch, jax, mpi, ...")] = None,
    force: Annotated[bool, Parameter(help="replace a file; the old one is kept as FILE.old"), Flag] = False,
    common: Common | None = None,
) -> int:
    """Write a job file for this folder: name, environment and command guessed, every other field as a comment.

    What is guessed comes from the names of files, what they import, and requirements.txt or pyproject.toml.

    Example: danlu init --env tensorflow-1; danlu apply -f danlu.yaml
    """
    from danlu.client.guessing import guess
    from danlu.client.names import names
    from danlu.client.submitting import spec_of

    common = common or Common()
    to_stdout = str(file) == "-"
    if str(file).startswith("-") and not to_stdout:
        hint = suggestion(str(file), ("--env", "--framework", "--force", "--url", "--project"))
        raise InvalidRequest(f"{file} is not a flag of danlu init", next_step=f"{hint}   danlu init --help".strip())
    path = Path.cwd() / FILE if to_stdout else file.expanduser().absolute()
    if path.exists() and not force and not to_stdout:
        raise Conflict(
            f"{file} is there already, and is left as it is", next_step="danlu init --force keeps it as FILE.old"
        )
    if not path.parent.is_dir():
        raise InvalidSpec(f"{path.parent} is not a folder", next_step="name a file in the folder of your code")
    known = {name for name, _ in names("envs", url=common.url, project=common.project)}
    if env is not None and known and env not in known:
        raise UnknownEnvironment(
            f'there is no environment "{env}"', next_step=f"{suggestion(env, known)}   danlu env ls".strip()
        )
    found = guess(path.parent, known)
    fields: dict[str, Any] = {"name": as_name(path.parent.name)}
    if framework is not None:
        fields |= _gang(framework)
    if env is not None:
        fields["env"] = env
    elif found.environment.requirements:
        fields["requirements"] = found.environment.requirements
    else:
        own = FRAMEWORKS[framework].environments if framework is not None else ()
        fitting = [name for name in own if not known or name in known]
        plain = found.environment.name == "python"
        fields["env"] = fitting[0] if plain and fitting else found.environment.name
    fields["command"] = found.command or NO_COMMAND
    # host's interpreter is put in by apply, on the machine where it is used
    spec_of(fields | ({"interpreter": sys.executable} if env == "host" else {}))
    text = "".join(f"{line}\n" for line in lines(fields, path.name))
    messages = Messages()
    if to_stdout:
        out.write(text.rstrip("\n"))
        return exits.OK
    _write(path, text)
    out.write(str(file))
    _tell(messages, fields, found.environment.why if env is None else "as you said", bool(found.command), file)
    return exits.OK


def _gang(name: str) -> dict[str, Any]:
    """Returns the framework and roles of a small distributed job.

    Raises:
        InvalidSpec: there is no such framework.
    """
    if name not in FRAMEWORKS:
        step = f"{suggestion(name, FRAMEWORKS)}   there are: {', '.join(FRAMEWORKS)}"
        raise InvalidSpec(f'there is no framework "{name}"', next_step=step.strip())
    framework = FRAMEWORKS[name]
    several = "worker" if "worker" in (framework.roles or ("worker",)) else next(iter(framework.roles))
    roles = {role: {"replicas": 1} for role in framework.required} | {several: {"replicas": 2}}
    return {"framework": name, "roles": {role: roles[role] for role in (*framework.roles, several) if role in roles}}


def _tell(messages: Messages, fields: dict[str, Any], why: str, sure: bool, file: Path) -> None:
    what = "requirements" if "requirements" in fields else f"env {fields['env']}"
    messages.say(f"{what}: {why}")
    messages.say(
        f"command: {fields['command']}" + ("" if sure else ", which is only an example: no program was found here")
    )
    messages.say(f"submit it: danlu apply -f {file}     what a field means: danlu explain job.FIELD")


def _write(path: Path, text: str) -> None:
    try:
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be written: {error.strerror}") from error


# --- the file


def lines(fields: dict[str, Any], name: str = FILE) -> Iterator[str]:
    """Yields the file: the fields that are set, then all others as comments with an example each."""
    yield f"# {name}: run it with `danlu apply -f {name}`, here or on another platform."
    yield "# Fields with # are not set: take the # away, and give them your own value. More of one: danlu explain job.FIELD"
    yield ""
    every = {field.name: field for field in described(JobSpec) if field.name not in FILLED_IN}
    for field in every.values():
        if field.name in fields:
            yield from _set(field, fields[field.name])
    yield ""
    for field in every.values():
        if field.name not in fields:
            yield from (f"# {line}" for line in _example(field))


def _set(field: Described, value: Any) -> Iterator[str]:
    if field.keyed:
        yield _commented(f"{field.name}:", field.description, COLUMN + len("# "))
        yield from (f"  {name}: {_flow(one)}" for name, one in value.items())
    elif isinstance(value, str) and "\n" in value:
        yield f"{field.name}: |"
        yield from (f"  {line}" for line in value.splitlines())
    else:
        yield _commented(f"{field.name}: {_flow(value)}", field.description, COLUMN + len("# "))


def _example(field: Described) -> Iterator[str]:
    """Yields a field with its example, as it would be written; the fields of a model below it, one step in."""
    if field.model is None:
        yield _commented(f"{field.name}: {_flow(field.example)}", field.description)
        return
    yield _commented(f"{field.name}:", field.description)
    indent, key = "  ", ""
    if field.keyed:
        key = next(iter(field.example), KEY) if isinstance(field.example, dict) else KEY
        yield f"  {key}:"
        indent = "    "
    own = field.example if isinstance(field.example, dict) else {}
    own = own.get(key, {}) if field.keyed else own
    yield from (f"{indent}{line}" for line in _below(field.model, own, len(indent)))


def _below(model: type[BaseModel], own: dict[str, Any], indent: int) -> Iterator[str]:
    """Yields the fields of a model with the values of an example of it, else with examples of their own."""
    for field in described(model):
        example = own.get(field.name, field.example)
        if field.model is None and example is not None:
            yield _commented(f"{field.name}: {_flow(example)}", field.description, COLUMN - indent)


def _commented(text: str, said: str, column: int = COLUMN) -> str:
    return f"{text:<{column}} # {said}" if said else text


def _flow(value: Any) -> str:
    """Returns a value as YAML on one line."""
    import yaml

    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, str):
        return yaml.safe_dump(value, allow_unicode=True, width=10**9).splitlines()[0]
    return json.dumps(value, ensure_ascii=False)
