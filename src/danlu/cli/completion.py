"""``danlu completion``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="bash, zsh or fish")], /) -> int:
    """Print a script that completes commands and flags in a shell.

    Example: danlu completion bash > ~/.local/share/bash-completion/completions/danlu
    """
    from danlu.cli.commands import build
    from danlu.cli.output import write

    write(build().generate_completion(prog_name="danlu", shell=shell))
    return 0
