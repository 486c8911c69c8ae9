"""What a good administrator looks at where environments are built: uv, the package index, what was built. Looks only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Final

from danlu.domain.diagnosis import Check, fail, ok, warn
from danlu.domain.environments import Environment
from danlu.environments.builder import Builder
from danlu.environments.uv_command import Uv

VERSION_TIMEOUT_S: Final = 5.0
INDEX_TIMEOUT_S: Final = 8.0
SHOWN: Final = 5


def checks(builder: Builder, uv: Uv, built: Iterable[Environment], *, index: bool) -> Iterator[Check]:
    """Yields how the building of environments is.

    Args:
        builder: finds what was built.
        uv: as builds use it.
        built: the environments that are ready, as far as is known.
        index: whether to ask the package index, which takes at most ``INDEX_TIMEOUT_S``.
    """
    version = uv.answer(["--version"], timeout_s=VERSION_TIMEOUT_S)
    if version is None:
        yield fail("uv", "it does not run", "install danlu again: it brings uv with it")
        return
    yield ok("uv", version)
    if index:
        yield package_index(uv)
    yield from damaged(builder, built)


def package_index(uv: Uv) -> Check:
    """Says whether the package index answers, in the way that builds ask it. Nothing is installed."""
    asked = uv.answer(
        ["pip", "install", "--dry-run", "--no-deps", "--reinstall", "--no-cache", "--break-system-packages", "--quiet",
         "--python", sys.executable, "pip"],
        timeout_s=INDEX_TIMEOUT_S,
    )  # fmt: skip
    if asked is not None:
        return ok("index", "the package index answers")
    return warn(
        "index",
        f"the package index did not answer within {INDEX_TIMEOUT_S:.0f} s: no new environment can be built",
        "set the server's index or proxy: UV_DEFAULT_INDEX, HTTPS_PROXY, /etc/uv/uv.toml or pip.conf",
    )


def damaged(builder: Builder, built: Iterable[Environment]) -> Iterator[Check]:
    """Says which built environments are not whole any more."""
    listed = [env for env in built if env.source.image is None]  # images are kept by an engine, or by the nodes
    gone = [env.name for env in listed if builder.interpreter(env) is None]
    if gone:
        more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
        yield warn(
            "environments",
            f"{len(gone)} of {len(listed)} are gone or damaged: {', '.join(gone[:SHOWN])}{more}",
            "they are built again by the next job that needs them, or now: danlu env build NAME",
        )
    elif listed:
        yield ok("environments", f"{len(listed)} built, all whole")
