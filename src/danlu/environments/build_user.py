"""The user that uv runs as where the server is root: no file of the server's is readable to what parses users' packages."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

BUILD_UID: Final = 199_999
"""Below those of the projects, which start at 200,000."""

PROBE_TIMEOUT_S: Final = 20.0

_PROBE: Final = (
    "import json,os,sys;read,write=json.loads(sys.argv[1]);"
    "print(json.dumps([p for p in read if not os.access(p,os.R_OK)]+"
    "[p for p in write if not os.access(p,os.W_OK|os.X_OK)]))"
)


def hindrance(uid: int, python: Path, *, read: Sequence[Path], write: Sequence[Path]) -> str | None:
    """Returns why a user cannot build here, or None where it can.

    Args:
        uid: the user, and group.
        python: the interpreter that it must run.
        read: files that it must read.
        write: folders that it must write into.
    """
    wanted = json.dumps([list(map(str, read)), list(map(str, write))])
    try:
        done = subprocess.run(
            [str(python), "-I", "-S", "-c", _PROBE, wanted],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            user=uid,
            group=uid,
            extra_groups=[],
        )
        closed = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: it runs, but its library is closed
        return f"user {uid} cannot run {python}"
    return f"user {uid} cannot use {', '.join(closed)}" if closed else None


def settings_files(variables: Mapping[str, str]) -> list[Path]:
    """Returns the files that uv reads to reach its index, of those that are there."""
    home = Path(variables.get("HOME", "/"))
    configuration = Path(variables.get("XDG_CONFIG_HOME") or home / ".config")
    named = [variables[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT") if variables.get(name)]
    named += [link for link in variables.get("UV_FIND_LINKS", "").split(",") if link.startswith("/")]
    named.append(variables.get("UV_CONFIG_FILE") or "/etc/uv/uv.toml")
    named.append(variables.get("NETRC") or str(home / ".netrc"))
    return [path for path in (*map(Path, named), configuration / "uv" / "uv.toml") if os.path.lexists(path)]
