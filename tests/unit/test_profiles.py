"""Profiles: one file of one's own, and which platform is meant."""

from __future__ import annotations

import errno
import os
import stat
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.client import connection, profiles
from danlu.client.certificates import parsed
from danlu.client.connection import Connection
from danlu.client.credentials import Credentials
from danlu.client.profiles import Profile, Profiles, file_of, read, write
from danlu.errors import DanluError, InvalidRequest, NotAuthenticated, PlatformError
from tests.databases import together

COMPANY = Profile("https://company:7070", "s3cret", "k1", "vision", "sha256:" + "ab" * 32)
HOME = Profile("http://nas:7070", "token")
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with two profiles, of which company is the current one, and no platform on this machine."""
    found = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}
    write(file_of(found), Profiles({"company": COMPANY, "home": HOME}, "company"))
    return found


def test_the_file_is_its_owners_alone(environ: dict[str, str]) -> None:
    file = file_of(environ)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert read(file) == Profiles({"company": COMPANY, "home": HOME}, "company")
    assert [one.name for one in file.parent.iterdir()] == ["config.toml"]
    file.chmod(0o640)
    with pytest.raises(NotAuthenticated, match="mode is 0640"):
        read(file)
    assert "s3cret" not in repr(COMPANY)


@given(PRINTABLE, PRINTABLE)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, name: str, project: str) -> None:
    file = tmp_path_factory.mktemp("p") / "config.toml"
    written = Profiles({name: Profile("https://h", "s", "k", project)}, name)
    write(file, written)
    assert read(file) == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("current = 1", "current"),
        ('current = "x"', "no such profile"),
        ("curent = 'x'", "curent is not a field"),
        ("[profiles.a]\nurl = 'http://h'", "profiles.a.secret is missing"),
        ("[profiles.a]\nurl = 'http://h'\nsecret = 1", "profiles.a.secret is no text"),
        ("[profiles.a]\nurl = 'http://h'\nsecert = 's'", "secert is not a field; did you mean secret"),
        ("[profiles.a]\nurl = 'http://h'\nsecret = 'a b'", "no key"),
        ("[profiles", "cannot be read"),
        ("profiles = 3", "cannot be read"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(PlatformError, match=said) as caught:
        read(file)
    assert str(file) in caught.value.message


def test_what_is_typed_comes_before_the_environment_and_that_before_what_is_stored(environ: dict[str, str]) -> None:
    company = Connection(COMPANY.url, Credentials("s3cret", "k1"), fingerprint=COMPANY.fingerprint, profile="company",
                         project="vision")  # fmt: skip
    home = Connection(HOME.url, Credentials("token"), profile="home")
    keys = {"DANLU_URL": "http://ci:1", "DANLU_TOKEN": "t"}
    assert connection.find(None, environ) == company
    assert connection.find(None, environ, profile="home") == home
    assert connection.find(None, {**environ, "DANLU_PROFILE": "home"}) == home
    of_ci = Connection("http://ci:1", Credentials("t"), variable="DANLU_TOKEN")
    assert connection.find(None, {**environ, **keys}) == of_ci
    assert connection.find(None, {**environ, **keys}, profile="home") == home
    assert connection.find("http://nas:7070/", {**environ, **keys}) == home
    assert connection.find(None, environ, profile="local") is None
    assert connection.find(None, {**environ, "DANLU_HOME": "/nothing/here"}) is None
    with pytest.raises(InvalidRequest, match="two platforms"):
        connection.find("http://nas:7070", environ, profile="company")
    with pytest.raises(InvalidRequest, match="no profile 'compny'") as caught:
        connection.find(None, environ, profile="compny")
    assert "did you mean company?" in caught.value.next_step


def test_a_key_goes_to_no_address_but_its_own(environ: dict[str, str]) -> None:
    for address in ("https://company", "http://company:7070", "https://company:7071", "https://company.evil:7070"):
        with pytest.raises(NotAuthenticated, match="no key for"):
            connection.find(address, environ)
        with pytest.raises(NotAuthenticated, match="no key for"):
            connection.find(None, {**environ, "DANLU_URL": address})


def test_what_is_changed_at_the_same_time_is_all_there(tmp_path: Path) -> None:
    file = tmp_path / "danlu" / "config.toml"
    made = together(16, lambda number: profiles.change(file, lambda now: now.with_one(f"p{number}", HOME)))
    assert all(f"p{number}" in one.by_name for number, one in enumerate(made))
    assert set(read(file).by_name) == {f"p{number}" for number in range(16)}


def test_who_waits_too_long_is_told_for_what(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"

    def other(_now: Profiles) -> Profiles:
        with pytest.raises(PlatformError, match=r"holds .*\.config\.toml\.lock"):
            profiles.change(file, lambda now: now, timeout_s=0.0)
        return Profiles({"a": HOME}, "a")

    assert profiles.change(file, other) == read(file)
    assert profiles.change(file, lambda now: now.without("a")) == Profiles()  # what held it has let it go


@pytest.mark.parametrize(("number", "waits"), [(errno.EACCES, True), (errno.EINVAL, False), (0, False)])
def test_windows_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch, number: int, waits: bool) -> None:
    asked: list[tuple[int, int, int]] = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        asked.append((descriptor, mode, size))
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert profiles._locked(7) is not waits
    assert asked == [(7, 2, 1)]


def test_two_profiles_for_one_address_are_told_apart_by_the_current_one() -> None:
    both = {"a": HOME, "b": HOME}
    assert Profiles(both, "b").of(HOME.url) == "b"
    with pytest.raises(InvalidRequest, match="a, b are profiles"):
        Profiles(both).of(HOME.url)


def test_the_current_one_that_is_forgotten_leaves_the_platform_of_this_machine() -> None:
    both = Profiles({"a": HOME, "b": COMPANY}, "b")
    assert both.without("b") == Profiles({"a": HOME}, "local")
    assert both.without("a").current == "b"


@pytest.mark.parametrize("name", ["", "local", "a b", "../x", "-x", "x" * 64])
def test_names_that_a_profile_cannot_have(name: str) -> None:
    with pytest.raises(InvalidRequest):
        profiles.require_name(name)


def test_a_fingerprint_may_be_written_as_openssl_does() -> None:
    colons = ":".join(["AB"] * 32)
    for text in (colons, f"SHA256:{colons}", "ab" * 32, "sha256:" + "ab" * 32):
        assert parsed(text) == "sha256:" + "ab" * 32
    for wrong in ("", "sha256:", "ab" * 31, "sha1:" + "ab" * 20, "zz" * 32):
        with pytest.raises(DanluError):
            parsed(wrong)
