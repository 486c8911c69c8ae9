"""What a client proves itself by: an access key, with which it signs, or a token, which it shows."""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from danlu.domain.signing import NONCE_BYTES, SAFE_METHODS, SKEW_S, Message, content_digest, sign
from danlu.errors import DanluError, NotAuthenticated
from danlu.runner.formats import sweep, write_atomically

KEY_ID_VARIABLE: Final = "DANLU_ACCESS_KEY_ID"
SECRET_VARIABLE: Final = "DANLU_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a variable
UNITS: Final = ((86_400, "days"), (3600, "h"), (60, "min"))
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "DANLU_TOKEN", "DANLU_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key and its secret; or, without a key, a token."""

    secret: str = field(repr=False)
    key_id: str = ""

    def headers(self, message: Message, body: bytes = b"", *, once: bool = False) -> dict[str, str]:
        """Returns the headers that a request needs beside those that it has.

        Args:
            message: as it will be sent, without them.
            body: what is sent.
            once: it must not be done twice, though its method is a safe one.
        """
        if not self.key_id:
            return {"Authorization": f"Bearer {self.secret}"}
        once = once or message.method not in SAFE_METHODS
        digest = {"Content-Digest": content_digest(body)} if once or body else {}
        whole = (*message.headers, *((name.lower(), value) for name, value in digest.items()))
        nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode() if once else ""
        signed = sign(
            Message(message.method, message.authority, message.path, message.query, whole),
            self.key_id, self.secret.encode(), created_s=int(time.time()), nonce=nonce,
        )  # fmt: skip
        return {**digest, **signed}


def compare_hosts(error: DanluError, signed: str) -> None:
    """Says in a refusal of a signed request that it was signed for another host than has arrived, if the server has told."""
    arrived = error.details.get("authority")
    if not isinstance(arrived, str) or not arrived or not signed or arrived == signed.lower():
        return
    error.message += f"; it was signed for {signed}, and {arrived[:255]!r} has arrived as its Host header"
    proxy = "a proxy between here and the platform changes the Host header: let it pass on the one that it was sent"
    error.next_step = (
        f"{proxy}\n  nginx: proxy_set_header Host $http_host;   Apache: ProxyPreserveHost On\n{error.next_step}".strip()
    )
    error.args = (error.message,)


def compare_clocks(error: DanluError, now_ns: int) -> None:
    """Says in a refusal that the clocks differ too much for any signature, if they do and the server has told its time."""
    theirs = error.details.get("server_time")
    if not isinstance(theirs, int) or abs(ahead_s := (now_ns - theirs) / 1e9) <= SKEW_S:
        return
    far, unit = next((abs(ahead_s) / size, unit) for size, unit in UNITS if abs(ahead_s) >= size)
    error.message += f"; this machine's clock is {far:.3g} {unit} {'ahead' if ahead_s > 0 else 'behind'}"
    error.next_step = f"set the clock right, here or there: they may differ by {SKEW_S} s\n{error.next_step}".strip()
    error.args = (error.message,)


def given(environ: Mapping[str, str]) -> Credentials | None:
    """Returns what the environment names: an access key, else a token, itself or in a file; None: nothing.

    Raises:
        NotAuthenticated: half of a key is missing, or a file cannot be read.
    """
    key_id, secret = environ.get(KEY_ID_VARIABLE, "").strip(), environ.get(SECRET_VARIABLE, "").strip()
    if bool(key_id) != bool(secret):
        there, missing = (KEY_ID_VARIABLE, SECRET_VARIABLE) if key_id else (SECRET_VARIABLE, KEY_ID_VARIABLE)
        raise NotAuthenticated(f"{there} is set, but {missing} is not", next_step="set both, or neither")
    if key_id:
        return Credentials(sendable(secret, SECRET_VARIABLE), sendable(key_id, KEY_ID_VARIABLE))
    if token := environ.get(TOKEN_VARIABLE, "").strip():
        return Credentials(sendable(token, TOKEN_VARIABLE))
    if not (name := environ.get(TOKEN_FILE_VARIABLE)):
        return None
    try:
        return Credentials(sendable(Path(name).expanduser().read_text().strip(), name))
    except (OSError, UnicodeError) as error:
        raise NotAuthenticated(f"the key in {name} ({TOKEN_FILE_VARIABLE}) cannot be read: {error}") from error


def bootstrap(file: Path) -> Credentials:
    """Returns the administrator's key that a platform of this machine has written.

    Raises:
        NotAuthenticated: it cannot be read, is no key, or others may read it too.
    """
    try:
        raw = json.loads(private(file))
        return Credentials(sendable(str(raw["secret"]), str(file)), sendable(str(raw["access_key_id"]), str(file)))
    except OSError as error:
        raise NotAuthenticated(
            f"the key of the platform here cannot be read: {file}: {error.strerror or error}",
            next_step="ask its owner for an access key, then: danlu login; or run your own with DANLU_HOME",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotAuthenticated(
            f"the key of the platform here is damaged: {file}", next_step="move it away, then: danlu down && danlu up"
        ) from error


def write_bootstrap(file: Path, credentials: Credentials) -> None:
    """Replaces the administrator's key of a platform of this machine.

    Raises:
        NotAuthenticated: it cannot be written.
    """
    write_private(file, json.dumps({"access_key_id": credentials.key_id, "secret": credentials.secret}) + "\n")


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner may read: durable, whole or not at all. One at a time may do so.

    Raises:
        NotAuthenticated: it cannot be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(str(file))
        write_atomically(str(file), text.encode(), durable=True)
    except OSError as error:
        raise NotAuthenticated(f"the key cannot be stored in {file}: {error.strerror or error}") from error


def private(file: Path) -> str:
    """Returns what a file holds that only its owner may read.

    Raises:
        NotAuthenticated: others may read it too.
        OSError: it cannot be read.
    """
    with file.open(encoding="utf-8") as opened:
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        if os.name == "posix" and mode & 0o077:
            raise NotAuthenticated(
                f"{file} holds a secret, and others may read it: its mode is {mode:04o}",
                next_step=f"chmod 600 {file}; and if somebody may have read it, a new key: danlu key rotate",
            )
        return opened.read()


def sendable(text: str, where: str) -> str:
    """Returns a key or token that can be sent; else raises NotAuthenticated."""
    if not text or not text.isascii() or not text.isprintable() or " " in text or '"' in text:
        raise NotAuthenticated(f"{where} holds no key: a key is one printable word")
    return text
