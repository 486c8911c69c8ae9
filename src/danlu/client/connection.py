"""Finds the platform: an address that was given, the environment's, or the one that runs on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from danlu.client import certificates, profiles
from danlu.client.credentials import (
    KEY_ID_VARIABLE,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    Credentials,
    bootstrap,
    given,
)
from danlu.config import default_home
from danlu.errors import InvalidRequest, NotAuthenticated, PlatformError
from danlu.runner.formats import boot_id, start_time

PLATFORM_FILE = "platform.json"
KEY_FILE = Path("keys", "bootstrap")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a platform is and the key to it.

    Attributes:
        home: its data folder, when it was found on this machine.
        fingerprint: of the only certificate that is accepted; empty: any that an authority vouches for.
        profile: the profile by which it was found, if by one.
        project: the profile's; may be empty.
        variable: of the environment, that named the key or token, if one did.
    """

    url: str
    credentials: Credentials
    home: Path | None = None
    fingerprint: str = ""
    profile: str = ""
    project: str = ""
    variable: str = ""

    @property
    def by(self) -> str:
        """By what it calls, in words: which key or token, and where that was found."""
        what = f"access key {self.credentials.key_id}" if self.credentials.key_id else "a token"
        where = f"profile {self.profile}" if self.profile else self.variable
        return f"{what} of {where}" if where else what


@dataclass(frozen=True, slots=True)
class Running:
    """A live server on this machine, as its ``platform.json`` tells.

    Attributes:
        url: for this machine.
        public_url: for others; empty: they cannot reach it.
        fingerprint: of the certificate that others are shown; empty: none.
        warnings: of its certificate.
    """

    url: str
    pid: int
    start_time: int | None
    boot_id: str
    home: Path
    public_url: str = ""
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()

    def alive(self) -> bool:
        """Whether that very process still lives: same boot, same pid, same start. Always true outside Linux."""
        if not sys.platform.startswith("linux"):
            return True
        if self.boot_id != boot_id():
            return False
        started = start_time(self.pid)
        return started is not None and started == self.start_time


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the data folder of this user's platform, by the rule that the server itself goes by."""
    return default_home(environ, root=getattr(os, "geteuid", lambda: 1)() == 0)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns where the client keeps what only saves time."""
    cache = environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "danlu"


def running(home: Path) -> Running | None:
    """Returns the live server of a data folder, or None.

    Raises:
        PlatformError: the folder may not be read, or its ``platform.json`` is damaged.
    """
    file = home / PLATFORM_FILE
    try:
        raw = json.loads(file.read_bytes())
        found = Running(
            url=str(raw["url"]).rstrip("/"),
            pid=int(raw["pid"]),
            start_time=None if raw.get("start_time") is None else int(raw["start_time"]),
            boot_id=str(raw.get("boot_id", "")),
            home=home,
            public_url=str(raw.get("public_url", "")),
            fingerprint=str(raw.get("fingerprint", "")),
            warnings=tuple(map(str, raw.get("warnings", ()))),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise PlatformError(
            f"{file} cannot be read: {error.strerror}", next_step="set DANLU_HOME to a folder of your own"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlatformError(f"{file} is damaged: {error!r}", next_step=f"remove {file}, then: danlu up") from error
    return found if found.alive() else None


def local(home: Path) -> Connection | None:
    """Returns the platform of a data folder, by its administrator's key; None: no server of it runs.

    Raises:
        NotAuthenticated: the key cannot be read.
        PlatformError: a file of it cannot be read, or is damaged.
    """
    server = running(home)
    return None if server is None else Connection(server.url, bootstrap(home / KEY_FILE), home)


def find(
    url: str | None = None, environ: Mapping[str, str] = os.environ, *, profile: str | None = None
) -> Connection | None:
    """Returns the platform to talk to; None when none was named and none runs here.

    What is typed comes before the environment, and that before what is stored: ``url`` or ``profile``, DANLU_URL,
    DANLU_PROFILE, DANLU_HOME, the current profile, the platform of this machine. A key is only ever used for the platform
    that it was given for: the environment's for DANLU_URL, or for ``url`` where DANLU_URL is not set; a profile's for its
    own address.

    Raises:
        InvalidRequest: both are given, there is no such profile, or the address is not one.
        NotAuthenticated: there is no key for that address, or others may read it.
        PlatformError: a file cannot be read.
    """
    if url and profile:
        raise InvalidRequest(f"--url {url} and --profile {profile} may be two platforms", next_step="name one of them")
    home, named = data_folder(environ), url or (None if profile else environ.get("DANLU_URL"))
    if named:
        return _at(require_url(named), home, environ)
    chosen = profile or environ.get(profiles.PROFILE_VARIABLE)
    if not chosen and environ.get("DANLU_HOME"):
        return local(home)
    file = profiles.file_of(environ)
    if chosen == profiles.LOCAL:
        return local(home)
    known = profiles.read(file)
    chosen = chosen or known.current
    return local(home) if chosen == profiles.LOCAL else _by_profile(chosen, known.require(chosen, file))


def _at(address: str, home: Path, environ: Mapping[str, str]) -> Connection:
    """Returns the platform of an address, by the key that there is for it."""
    own = environ.get("DANLU_URL")
    if (credentials := given(environ)) is not None and (not own or require_url(own) == address):
        pinned = environ.get(certificates.FINGERPRINT_VARIABLE, "")
        token = TOKEN_VARIABLE if environ.get(TOKEN_VARIABLE, "").strip() else TOKEN_FILE_VARIABLE
        return Connection(
            address, credentials, fingerprint=certificates.parsed(pinned) if pinned else "",
            variable=KEY_ID_VARIABLE if credentials.key_id else token,
        )  # fmt: skip
    server = running(home)
    if server is not None and server.url == address and (here := local(home)) is not None:
        return here
    known = profiles.read(profiles.file_of(environ))
    if name := known.of(address):
        return _by_profile(name, known.by_name[name])
    step = f"danlu login {address}; or set DANLU_URL, DANLU_ACCESS_KEY_ID and DANLU_SECRET_ACCESS_KEY"
    if is_loopback(address):
        there = "no platform runs from" if server is None else f"{server.url} is the platform of"
        step += (
            f"\none of this machine has its key in its data folder, {KEY_FILE}: set DANLU_HOME to that folder"
            f" ({there} {home})"
        )
    raise NotAuthenticated(f"there is no key for {address}", next_step=step)


def _by_profile(name: str, profile: profiles.Profile) -> Connection:
    return Connection(
        require_url(profile.url), profile.credentials, fingerprint=profile.fingerprint, profile=name,
        project=profile.project,
    )  # fmt: skip


def require(
    url: str | None = None, environ: Mapping[str, str] = os.environ, *, profile: str | None = None
) -> Connection:
    """Returns the platform to talk to, as ``find`` does.

    Raises:
        PlatformError: none was named and none runs here.
    """
    found = find(url, environ, profile=profile)
    if found is None:
        raise PlatformError(
            f"danlu is not running here ({data_folder(environ)})",
            next_step="start it: danlu up   elsewhere: danlu login",
        )
    return found


def require_url(text: str) -> str:
    """Returns an http or https address without a slash at its end, or raises InvalidRequest."""
    try:
        parts = urlsplit(text)
        port_ok = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        parts, port_ok = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or parts.query or parts.fragment:
        raise InvalidRequest(
            f"{text!r} is not the address of a platform", next_step="write for example http://127.0.0.1:7070"
        )
    return text.rstrip("/")


def authority(url: str) -> str:
    """Returns what a request to an address has in its Host header: without a port where it is the scheme's own."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return host if parts.port in (None, {"http": 80, "https": 443}[parts.scheme]) else f"{host}:{parts.port}"


def is_loopback(url: str) -> bool:
    """Says whether an address is this machine's own, which no proxy can reach."""
    return urlsplit(url).hostname in LOOPBACK
