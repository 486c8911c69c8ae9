"""The platform's own keys: made once, kept in files that only its own user may read."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from danlu.domain.ids import is_id
from danlu.errors import PlatformError
from danlu.runner import formats
from danlu.services.first_user import KEY_NAME
from danlu.services.vault import KEY_BYTES

BOOTSTRAP = KEY_NAME
ATTEMPTS = "attempts"
MASTER = "master"
MASTER_VARIABLE, MASTER_FILE_VARIABLE = "DANLU_MASTER_KEY", "DANLU_MASTER_KEY_FILE"


class Keys(NamedTuple):
    """What the server keeps secret: the master key of its vault, and the key of attempts' tokens.

    ``given``: the master key is not this data folder's, so that several servers can have it.
    """

    master: bytes
    attempts: bytes
    given: bool


def make_folder(home: Path) -> Path:
    """Returns the folder of the keys, which is there from then on, also after a loss of power; its owner's alone.

    Keys that were not written to their end are gone from it: the data folder is locked.
    """
    folder = home / "keys"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        formats.sync(str(home))
    folder.chmod(0o700)
    for unfinished in folder.glob("*" + formats.UNFINISHED):
        unfinished.unlink()
    return folder


def load(folder: Path, environ: Mapping[str, str]) -> Keys:
    """Returns the keys; makes what is not there yet.

    The master key may come from elsewhere: ``DANLU_MASTER_KEY``, or the file that ``DANLU_MASTER_KEY_FILE`` names. Then the
    other one follows from it, unless the folder holds one: every server that has the master key knows the same attempts.

    Raises:
        PlatformError: a key cannot be read, is damaged, or others may read it.
    """
    given = True
    if text := environ.get(MASTER_VARIABLE):
        master = _bytes(text, MASTER_VARIABLE)
    elif name := environ.get(MASTER_FILE_VARIABLE):
        try:
            master = _bytes(read(Path(name)), name)
        except FileNotFoundError as error:
            raise PlatformError(
                f"there is no master key {name} ({MASTER_FILE_VARIABLE})",
                next_step="restore it, or name the right file",
            ) from error
    else:
        master, given = _own(folder / MASTER), False
    if given and not (folder / ATTEMPTS).exists():
        return Keys(master, hmac.digest(master, b"danlu: tokens of attempts", "sha256"), given)
    return Keys(master, _own(folder / ATTEMPTS), given)


def read(path: Path) -> str:
    """Returns what a key's file holds.

    Raises:
        PlatformError: it cannot be read, or others may read it too.
    """
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            if not is_closed(found, os.geteuid(), (os.getegid(), *os.getgroups())):
                raise PlatformError(
                    f"the key {path} may be read by others: its mode is {stat.S_IMODE(found.st_mode):04o}",
                    next_step=f"if nobody has: chmod 600 {path}; else replace what it protects",
                )
            return file.read().strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeError) as error:
        raise PlatformError(f"the key {path} cannot be read: {error}", next_step="restore it from a backup") from error


def is_closed(found: os.stat_result, uid: int, groups: Collection[int]) -> bool:
    """Says whether nobody else may read a file.

    A pod's Secret is root's, and is read by the pod's group: there is no other way to hand it to a user who is not root.
    """
    open_to = stat.S_IMODE(found.st_mode) & 0o077
    return not open_to or (
        open_to == 0o040 and found.st_uid == 0 != uid and found.st_gid != 0 and found.st_gid in groups
    )


def write(path: Path, text: str) -> None:
    """Writes a key's file: durable, whole, and its owner's alone."""
    formats.write_atomically(str(path), (text + "\n").encode(), durable=True)


def _own(path: Path) -> bytes:
    try:
        return _bytes(read(path), str(path))
    except FileNotFoundError:
        fresh = secrets.token_hex(KEY_BYTES)
        write(path, fresh)
        return bytes.fromhex(fresh)


def _bytes(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise PlatformError(
            f"the key in {where} is damaged: it has to be {2 * KEY_BYTES} hexadecimal digits",
            next_step="restore it from a backup",
        )
    return key


def read_bootstrap(folder: Path) -> tuple[str, str] | None:
    """Returns the first administrator's access key: (id, secret); None where the file is gone.

    Raises:
        PlatformError: the file is damaged, or others may read it.
    """
    path = folder / BOOTSTRAP
    try:
        raw = json.loads(read(path))
        key_id, secret = str(raw["access_key_id"]), str(raw["secret"])
        if not is_id(key_id, "k") or not secret:
            raise ValueError(key_id)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PlatformError(
            f"the key {path} is damaged", next_step="restore it from a backup, or move it away for a new one"
        ) from error
    return key_id, secret


def write_bootstrap(folder: Path, key: tuple[str, str]) -> None:
    """Writes the first administrator's access key where the command line finds it."""
    write(folder / BOOTSTRAP, json.dumps({"access_key_id": key[0], "secret": key[1]}))
