"""The platform's keys: made once, kept in files that only its own user may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from danlu.errors import PlatformError
from danlu.services.access import TOKEN_PREFIX

BOOTSTRAP = "bootstrap"
ATTEMPTS = "attempts"


def load(folder: Path) -> tuple[str, bytes]:
    """Returns (the bootstrap administrator's token, the key of attempts' tokens); makes what is not there yet."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    bootstrap = _key(folder / BOOTSTRAP, TOKEN_PREFIX + secrets.token_hex(32))
    return bootstrap, bytes.fromhex(_key(folder / ATTEMPTS, secrets.token_hex(32)))


def _key(path: Path, fresh: str) -> str:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(fresh + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        return fresh
    if len(text) < 64:
        raise PlatformError(
            f"the key {path} is damaged", next_step="restore it from a backup, or move it away for a new one"
        )
    path.chmod(0o600)
    return text
