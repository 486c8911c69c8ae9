"""The platforms that somebody has logged in to: one file, which its owner alone may read."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from danlu.client.credentials import Credentials, private, sendable, write_private
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest, NotAuthenticated, PlatformError

LOCAL: Final = "local"
"""Stands for the platform of this machine, which needs no profile."""
PROFILE_VARIABLE: Final = "DANLU_PROFILE"
FILE: Final = Path("danlu", "config.toml")
LOCK_TIMEOUT_S: Final = 10.0
LOCK_PAUSE_S: Final = 0.02
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Profile:
    """One platform: its address, what proves who calls, and what is meant where nothing else is said.

    Attributes:
        url: the platform's address.
        key_id: of the access key; empty: the secret is a token.
        secret: of the access key, or the token.
        project: instead of ``default``; may be empty.
        fingerprint: of the only certificate that is accepted, as ``sha256:`` and 64 hexadecimal digits; empty: any that
            an authority vouches for.
    """

    url: str
    secret: str = field(repr=False)
    key_id: str = ""
    project: str = ""
    fingerprint: str = ""

    @property
    def credentials(self) -> Credentials:
        """What proves who calls."""
        return Credentials(self.secret, self.key_id)


@dataclass(frozen=True, slots=True)
class Profiles:
    """All profiles by name, and which of them is meant where none is named; ``local``: the platform of this machine."""

    by_name: Mapping[str, Profile] = field(default_factory=dict)
    current: str = LOCAL

    def require(self, name: str, file: Path) -> Profile:
        """Returns the profile of that name.

        Raises:
            InvalidRequest: there is none.
        """
        if name not in self.by_name:
            hint = suggestion(name, [*self.by_name, LOCAL])
            raise InvalidRequest(
                f"there is no profile {name!r} in {file}",
                next_step=f"{hint}   all of them: danlu profile ls   a new one: danlu login URL --profile NAME".strip(),
            )
        return self.by_name[name]

    def of(self, url: str) -> str:
        """Returns the name of the profile for an address: the current one before others; "" where there is none.

        Raises:
            InvalidRequest: there are several.
        """
        found = [name for name, profile in self.by_name.items() if profile.url == url]
        if self.current in found or len(found) == 1:
            return self.current if self.current in found else found[0]
        if found:
            raise InvalidRequest(f"{', '.join(found)} are profiles for {url}", next_step="name one, instead: --profile")
        return ""

    def with_one(self, name: str, profile: Profile) -> Profiles:
        """Returns the same with a profile, which becomes the current one."""
        return Profiles({**self.by_name, name: profile}, name)

    def with_key(self, name: str, file: Path, key: Credentials) -> Profiles:
        """Returns the same with another key in a profile.

        Raises:
            InvalidRequest: there is no such profile.
        """
        stored = replace(self.require(name, file), secret=key.secret, key_id=key.key_id)
        return replace(self, by_name={**self.by_name, name: stored})

    def without(self, name: str) -> Profiles:
        """Returns the same without a profile."""
        rest = {other: profile for other, profile in self.by_name.items() if other != name}
        return Profiles(rest, LOCAL if self.current == name else self.current)

    def using(self, name: str, file: Path) -> Profiles:
        """Returns the same with another current one.

        Raises:
            InvalidRequest: there is no such profile.
        """
        if name != LOCAL:
            self.require(name, file)
        return replace(self, current=name)


def file_of(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the file that holds this user's profiles: ``XDG_CONFIG_HOME/danlu/config.toml``."""
    folder = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".config") / FILE


def read(file: Path) -> Profiles:
    """Returns the profiles of a file; none where there is no such file.

    Raises:
        NotAuthenticated: others may read it too.
        PlatformError: it cannot be read, or something in it cannot be so.
    """
    try:
        return _parsed(private(file))
    except (FileNotFoundError, NotADirectoryError):
        return Profiles()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PlatformError(
            f"the profiles in {file} cannot be read: {error}", next_step=f"mend it, or move it away: {file}"
        ) from error


def _parsed(text: str) -> Profiles:
    import tomllib

    raw = tomllib.loads(text)
    unknown = set(raw) - {"current", "profiles"}
    if unknown:
        raise ValueError(f"{min(unknown)} is not a field; there are current and profiles")
    by_name = {name: _profile(name, given) for name, given in raw.get("profiles", {}).items()}
    current = raw.get("current", LOCAL)
    if current != LOCAL and current not in by_name:
        raise ValueError(f"current is {current!r}, and there is no such profile")
    return Profiles(by_name, current)


def _profile(name: str, given: dict[str, Any]) -> Profile:
    known = [one.name for one in fields(Profile)]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"profiles.{name}.{key} is not a field; {suggestion(key, known) or ', '.join(known)}")
        if not isinstance(value, str):
            raise TypeError(f"profiles.{name}.{key} is no text")
    for key in ("url", "secret"):
        if not given.get(key):
            raise ValueError(f"profiles.{name}.{key} is missing")
    for key in ("secret", "key_id"):
        try:
            sendable(given.get(key) or "-", f"profiles.{name}.{key}")
        except NotAuthenticated as error:
            raise ValueError(error.message) from error
    return Profile(**{**given, "url": given["url"].rstrip("/")})


def write(file: Path, profiles: Profiles) -> None:
    """Replaces the file: whole or not at all, and its owner's alone.

    Raises:
        NotAuthenticated: it cannot be written.
    """
    lines = [f"current = {_quoted(profiles.current)}"]
    for name, profile in sorted(profiles.by_name.items()):
        lines += ["", f"[profiles.{_quoted(name)}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in asdict(profile).items() if value]
    write_private(file, "\n".join(lines) + "\n")


def change(file: Path, how: Callable[[Profiles], Profiles], *, timeout_s: float = LOCK_TIMEOUT_S) -> Profiles:
    """Replaces the profiles of a file by what ``how`` makes of them, and returns that; nobody else changes them meanwhile.

    Raises:
        PlatformError: somebody else is changing them, and does not come to an end.
        NotAuthenticated, PlatformError: as ``read`` and ``write``.
    """
    with _alone(file, timeout_s):
        made = how(read(file))
        write(file, made)
        return made


@contextlib.contextmanager
def _alone(file: Path, timeout_s: float) -> Iterator[None]:
    """Holds the lock of a file, which is another one beside it: the file itself is replaced."""
    lock, until = file.with_name(f".{file.name}.lock"), time.monotonic() + timeout_s
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise NotAuthenticated(f"the key cannot be stored in {file}: {error.strerror or error}") from error
    try:
        while not _locked(descriptor):
            if time.monotonic() >= until:
                raise PlatformError(
                    f"another command has been changing {file} for {timeout_s:g} s: it holds {lock}",
                    next_step="end it, then repeat",
                )
            time.sleep(LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Takes a lock until its descriptor is closed; says whether it has it. Where there are no locks, the last writer wins."""
    try:
        import fcntl
    except ImportError:
        windows: Any = importlib.import_module("msvcrt")
        take = partial(windows.locking, descriptor, windows.LK_NBLCK, 1)
    else:
        take = partial(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        take()
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _quoted(text: str) -> str:
    """Returns a TOML string: of printable text, JSON's are the same."""
    return json.dumps(text, ensure_ascii=False)


def require_name(name: str) -> str:
    """Returns a name that a profile may have.

    Raises:
        InvalidRequest: it may not.
    """
    if name == LOCAL or not NAME.fullmatch(name):
        raise InvalidRequest(
            f"a profile cannot be called {name[:80]!r}",
            next_step="letters, digits, dots and hyphens, 63 at most; local is the platform of this machine",
        )
    return name


def require_project(name: str) -> str:
    """Returns a name that a project may have.

    Raises:
        InvalidRequest: it may not.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a project's name: lower-case letters, digits and hyphens, at most 63"
        )
    return name
