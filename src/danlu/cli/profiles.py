"""``danlu profile``: the platforms that somebody has logged in to."""

from __future__ import annotations

import os
from typing import Annotated, Any

from cyclopts import App, Parameter

from danlu.cli import output as out
from danlu.cli.options import Common, Output
from danlu.cli.terminal import Messages
from danlu.client import profiles
from danlu.client.connection import data_folder, running

app = App(name="profile", help="The platforms that you logged in to.", help_format="plaintext")


@app.command(name="ls")
def ls(*, output: Output = "table", common: Common | None = None) -> int:
    """List the platforms that you logged in to, and the one of this machine. No secret is shown.

    Example: danlu profile ls
    """
    del common  # it is the same for all platforms
    known, here = profiles.read(profiles.file_of()), running(data_folder())
    rows: list[dict[str, Any]] = [
        {"name": profiles.LOCAL, "url": "" if here is None else here.url, "by": "its own key", "project": ""},
        *(
            {"name": name, "url": one.url, "by": one.key_id or "a token", "project": one.project,
             "fingerprint": one.fingerprint}
            for name, one in sorted(known.by_name.items())
        ),
    ]  # fmt: skip
    for row in rows:
        row["current"] = row["name"] == known.current
    if output in ("json", "yaml"):
        out.structured({"items": rows}, output)
    elif output == "name":
        for row in rows:
            out.write(f"profile/{row['name']}")
    else:
        head = ("NAME", "CURRENT", "URL", "BY", "PROJECT", *(("FINGERPRINT",) if output == "wide" else ()))
        cells = [
            [row["name"], "yes" if row["current"] else "-", row["url"], row["by"], row["project"],
             row.get("fingerprint", "")][: len(head)]
            for row in rows
        ]  # fmt: skip
        out.table(head, cells)
    return 0


@app.command(name="use", usage="Usage: danlu profile use PROFILE [FLAGS]")
def use(
    name: Annotated[str, Parameter(help="danlu profile ls; local: the platform of this machine")],
    /,
    *,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make a profile the current one: commands that name no platform go there.

    Example: danlu profile use company
    """
    del common
    file, messages = profiles.file_of(), Messages(quiet=output in ("json", "yaml"))
    now = profiles.change(file, lambda known: known.using(name, file))
    url = "" if name == profiles.LOCAL else now.by_name[name].url
    if output in ("json", "yaml"):
        out.structured({"profile": name, "url": url}, output)
    else:
        out.write(f"profile/{name}")
    messages.say(f"commands go to {url or 'the platform of this machine'} from now on")
    for variable in ("DANLU_URL", profiles.PROFILE_VARIABLE, "DANLU_HOME"):
        if os.environ.get(variable):
            messages.say(f"{variable} is set, and comes before it: unset {variable}", "yellow")
    return 0
