"""``danlu env``: ready-made environments, and their building."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from pydantic import ValidationError

from danlu.api import EnvironmentRequest, OffsetQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import BY_NAME, Wanted, show
from danlu.cli.options import Common, Output
from danlu.cli.session import connect, connect_or_start
from danlu.cli.terminal import Messages
from danlu.client.submitting import read_requirements
from danlu.client.transport import Client
from danlu.domain.environments import Environment
from danlu.domain.validation import invalid_spec
from danlu.errors import EnvironmentFailed, InvalidRequest

POLL_S = 0.2
app = App(name="env", help="Ready-made environments.", help_format="plaintext")


@app.command(name="ls")
def ls(*, output: Output = "table", common: Common | None = None) -> int:
    """List the environments that a job can name, and what was built from requirements.

    Example: danlu env ls
    """
    messages = Messages()
    with connect(common, messages) as client:
        return show(client, BY_NAME["envs"], Wanted(), output, messages)


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
