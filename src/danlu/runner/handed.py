"""What an attempt was handed through memory: the values of its secrets, as variables, and as files in memory."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence

from .redaction import Redaction


class Handed:
    """The secrets of one attempt.

    Args:
        secrets: of each ``variable``, ``value``, and whether it is a ``file``.
        folder: in memory; it is there where a file is needed.
    """

    def __init__(self, secrets: Sequence[Dict[str, Any]] = (), folder: str = "") -> None:
        self._secrets, self._folder = secrets, folder
        self.redaction = Redaction(str(secret["value"]) for secret in secrets)

    @property
    def names(self) -> List[str]:
        """The variables whose own value is secret."""
        return [secret["variable"] for secret in self._secrets if not secret["file"]]

    def environment(self) -> Dict[str, str]:
        """Returns the variables of every task."""
        return {
            secret["variable"]: self._path(secret) if secret["file"] else secret["value"] for secret in self._secrets
        }

    def write(self) -> None:
        """Writes the files, for this user alone. Raises OSError where there is no room for them."""
        for secret in self._secrets:
            if secret["file"]:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(self._path(secret), flags, 0o600), "wb") as file:
                    file.write(secret["value"].encode())

    def remove(self) -> None:
        """Removes what is in the folder; the folder itself is the server's to remove."""
        try:
            names = os.listdir(self._folder) if self._folder else []
        except OSError:
            return
        for name in names:
            try:
                os.unlink(os.path.join(self._folder, name))
            except OSError:
                continue  # a folder of the job's own making: it goes with the rest

    def _path(self, secret: Dict[str, Any]) -> str:
        return os.path.join(self._folder, str(secret["variable"]))
