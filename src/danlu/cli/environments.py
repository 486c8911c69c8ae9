"""``danlu env``: ready-made environments, and their building."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from pydantic import BaseModel, ValidationError

from danlu.api.bodies import EnvironmentRequest, OffsetQuery, PruneRequest
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import BY_NAME, Wanted, show
from danlu.cli.options import Common, Flag, Output
from danlu.cli.session import connect, connect_or_start
from danlu.cli.submitting import conclude, send_code, submit, tell_environment
from danlu.cli.terminal import Messages
from danlu.client.submitting import read_requirements, spec_of
from danlu.client.transport import Client
from danlu.domain.environments import Environment
from danlu.domain.resources import format_bytes
from danlu.domain.validation import invalid_spec
from danlu.domain.views import EnvironmentDetails, FrameworkOf2018
from danlu.errors import EnvironmentFailed, InvalidRequest

POLL_S = 0.2
WIDTH = 88
Name = Annotated[str, Parameter(help="its name or id: danlu env ls")]
app = App(name="env", help="Ready-made environments.", help_format="plaintext")


@app.command(name="ls")
def ls(
    *,
    every: Annotated[
        bool, Parameter(name="--all", help="also what could not be built, and how 2018's frameworks run today"), Flag
    ] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """List the environments that a job can name, and what was built from requirements.

    Example: danlu env ls --all
    """
    messages = Messages()
    wanted = Wanted(every=every)
    with connect(common, messages) as client:
        if not every:
            return show(client, BY_NAME["envs"], wanted, output, messages)
        frameworks: tuple[FrameworkOf2018, ...] = client.call("environments.legacy").items
        if output in ("json", "yaml"):
            found = client.call("environments.list").items
            parts: dict[str, Sequence[BaseModel]] = {"items": found, "frameworks_of_2018": frameworks}
            out.structured(
                {name: [one.model_dump(mode="json") for one in many] for name, many in parts.items()}, output
            )
            return 0
        show(client, BY_NAME["envs"], wanted, output, messages)
    if output == "name":
        return 0
    out.write("")
    rows = [[one.name, one.runs, one.by, one.how] for one in frameworks]
    out.table(("FRAMEWORK OF 2018", "TODAY", "BY", "HOW"), rows)
    return 0


@app.command(name="build", usage="Usage: danlu env build NAME | --requirements FILE | --image IMAGE [FLAGS]")
def build(
    name: Annotated[str | None, Parameter(help="an environment's name: danlu env ls")] = None,
    /,
    *,
    requirements: Annotated[Path | None, Parameter(help="a requirements.txt, instead of a name")] = None,
    python: Annotated[str | None, Parameter(help="Python version for --requirements, e.g. 3.11")] = None,
    image: Annotated[str | None, Parameter(help="a container image to pull, again where it is there")] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Build an environment unless it is there, and show how that goes.

    Jobs do so by themselves; building before the first job only saves it the wait.

    Example: danlu env build --requirements requirements.txt --python 3.11
    """
    if [name, requirements, image].count(None) != 2:
        raise InvalidRequest(
            "name one environment, or --requirements FILE, or --image IMAGE", next_step="all of them: danlu env ls"
        )
    fields: dict[str, object] = {} if name is None else {"env": name}
    if requirements is not None:
        fields["requirements"] = read_requirements(requirements)
    fields |= {key: value for key, value in (("python", python), ("image", image)) if value is not None}
    try:
        request = EnvironmentRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid_spec(error, EnvironmentRequest) from error
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect_or_start(common, messages) as client:
        begun = time.monotonic()
        env = _await(client, client.call("environments.build", body=request), messages)
    if env.state == "failed":
        raise EnvironmentFailed(f"{env.name} could not be built: {env.message or env.reason}")
    if output in ("json", "yaml"):
        out.record(env, output)
    elif output == "name":
        out.write(f"env/{env.name}")
    else:
        messages.step("environment", f"{wording.environment(env)}  ready", time.monotonic() - begun)
    return 0


def _meant(client: Client, name: str) -> str:
    """Returns an environment's name as a path can have it: of an image, whose name has slashes, the id."""
    if "/" not in name:
        return name
    (entry,), _ = BY_NAME["envs"].items(client, Wanted((name,)))
    return str(entry.environment.id)


def _await(client: Client, env: Environment, messages: Messages) -> Environment:
    """Shows what a build prints until it has ended; returns the environment then."""
    path, query = {"environment": env.id}, OffsetQuery()
    begun = time.monotonic()
    while env.state in ("wanted", "building"):
        page = client.call("environments.log", path, query=query)
        for line in page.text.splitlines():
            messages.say(line, "dim")
        query = OffsetQuery(offset=page.offset)
        if not page.text:
            messages.status(f"{env.name} is {env.state}  {wording.whole(time.monotonic() - begun)}")
            time.sleep(POLL_S)
            env = client.call("environments.get", path)
    messages.clear()
    return env


@app.command(name="show")
def show_one(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Show all about an environment: packages, variables, frameworks, size, where it is, who uses it.

    Example: danlu env show tensorflow-1
    """
    with connect(common) as client:
        found: EnvironmentDetails = client.call("environments.show", {"environment": _meant(client, name)})
    if output in ("json", "yaml"):
        out.record(found, output)
    elif output == "name":
        out.write(f"env/{found.name}")
    else:
        _tell(found)
    return 0


def _tell(found: EnvironmentDetails) -> None:
    env, now = found.environment, time.time_ns()
    out.write(f"{found.name}: {found.description}")
    state = (
        "not built: the first job that asks for it waits until it is" if env is None else f"{env.state} ({env.reason})"
    )
    facts = {
        "state": state,
        "id": "" if env is None else env.id,
        "python": found.python,
        "size": "" if env is None or env.size_bytes is None else format_bytes(env.size_bytes),
        "archive": "" if env is None or env.archive is None else wording.archive(env.archive),
        "built in": "" if env is None or env.build_s is None else wording.duration(env.build_s),
        "where": found.folder,
        "frameworks": ", ".join(found.frameworks),
        "variables": "  ".join(f"{key}={value}" for key, value in found.variables.items()),
        "used by": ", ".join(found.used_by),
        "last used": "" if found.last_asked_at is None else f"{wording.age(found.last_asked_at, now)} ago",
        "packages": "  ".join(found.packages),
        "preloads": ", ".join(found.preload),
        "cold with": "  ".join(found.read_at_import),
    }
    for label, text in facts.items():
        if text:
            out.labelled(label, out.wrapped(text, out.room(out.INDENT) or WIDTH))


@app.command(name="lock")
def lock(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Print an environment's packages, each with version and hashes: a requirements.txt that gives the same anywhere.

    Example: danlu env lock sklearn > requirements.txt
    """
    return _text("environments.lock", name, output, common)


@app.command(name="export", usage="Usage: danlu env export --dockerfile NAME [FLAGS]")
def export(
    name: Name,
    /,
    *,
    dockerfile: Annotated[bool, Parameter(help="as a recipe for a container image"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Print an environment as a Dockerfile: the same packages, checked by the same hashes.

    Example: danlu env export --dockerfile tensorflow-1 > Dockerfile
    """
    if not dockerfile:
        raise InvalidRequest("say as what", next_step=f"danlu env export --dockerfile {name}   danlu env lock {name}")
    return _text("environments.dockerfile", name, output, common)


def _text(operation: str, name: str, output: out.Format, common: Common | None) -> int:
    with connect(common) as client:
        found = client.call(operation, {"environment": _meant(client, name)})
    if output in ("json", "yaml"):
        out.record(found, output)
    else:
        out.write(found.text.rstrip("\n"))
    return 0


@app.command(name="test")
def try_out(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Train a small model in an environment, as a job: it fails where the loss does not fall. Builds it if need be.

    Example: danlu env test pytorch
    """
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect_or_start(common, messages) as client, tempfile.TemporaryDirectory() as folder:
        found: EnvironmentDetails = client.call("environments.show", {"environment": _meant(client, name)})
        if not found.program:
            raise InvalidRequest(
                f"{found.name} has no test program: only the catalogue's have", next_step="danlu env ls"
            )
        program = Path(folder, f"train_{found.name.replace('-', '_')}.py")
        program.write_text(found.program, encoding="utf-8")
        spec = spec_of({"name": f"test-{found.name}", "command": ["python", program.name], "env": found.name})
        spec = spec.model_copy(update={"code": send_code(client, Path(folder), messages).tree})
        job = submit(client, spec, messages)
        tell_environment(client, job, messages)
        return conclude(client, job, messages, output)


@app.command(name="rm")
def rm(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Give an environment or an image up that no live job uses. It is built or pulled again when a job asks for it.

    Example: danlu env rm requirements-1f2e3d4c
    """
    with connect(common) as client:
        gone: Environment = client.call("environments.remove", {"environment": _meant(client, name)})
    if output in ("json", "yaml"):
        out.record(gone, output)
    else:
        out.write(f"env/{gone.name}")
    return 0


@app.command(name="prune")
def prune(
    *,
    unused_for: Annotated[str, Parameter(help="since a job last asked for it")] = "30d",
    dry_run: Annotated[bool, Parameter(help="only say which"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Give up the environments and images that no live job uses and none has asked for in a while.

    Example: danlu env prune --unused-for 7d --dry-run
    """
    try:
        request = PruneRequest.model_validate({"unused_for": unused_for, "dry_run": dry_run})
    except ValidationError as error:
        raise invalid_spec(error, PruneRequest) from error
    messages = Messages()
    with connect(common, messages) as client:
        pruned = client.call("environments.prune", body=request)
    if output in ("json", "yaml"):
        out.record(pruned, output)
        return 0
    for env in pruned.environments:
        out.write(f"env/{env.name}")
    verb = "would go" if dry_run else "gone"
    messages.say(f"{wording.count(len(pruned.environments), 'environment')} {verb}, {format_bytes(pruned.size_bytes)}")
    return 0
