"""Where a database is: its password never stands on a command line or in what is shown; a file may hold the address."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.client.databases import require_no_password
from danlu.config import database_url
from danlu.database.postgresql import address, alone, shown
from danlu.errors import DatabaseUnavailable, InvalidRequest, PlatformError

HIDDEN = (
    "postgresql://a:hunter2@h/d",
    "postgresql://a@h/d?password=hunter2",
    "postgresql://a:hunter2@h:5432/d?sslmode=require",
    "postgresql://a@h/d?sslkey=k&sslpassword=hunter2",
    "postgresql://a@h/d?scram_client_key=hunter2",
    "postgresql://a:/hunter2@h/d",
    "postgresql://a:#hunter2@h/d",
    "postgresql://a:?hunter2@h/d",
)


@pytest.mark.parametrize("url", HIDDEN)
def test_a_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidRequest, match="read by everybody") as caught:
        require_no_password(url)
    assert "PGPASSWORD" in caught.value.next_step
    assert "hunter2" not in str(caught.value.to_problem()) + shown(url)


@pytest.mark.parametrize(
    "url", ["postgresql://a@h/d", "postgresql:///d", "postgresql://a@/d?host=/tmp&sslmode=require"]
)
def test_an_address_without_one_is_taken(url: str) -> None:
    require_no_password(url)
    assert address(url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "url", ["mysql://a:hunter2@h/d", "hunter2", "postgresql://h", "sqlite:///hunter2", "", "postgresql://h:hunter2/d"]
)
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        address(url)
    assert "hunter2" not in str(caught.value.to_problem())
    assert "postgresql://" in caught.value.next_step


def test_what_follows_an_unescaped_at_is_not_taken_for_the_host() -> None:
    """It would be shown, and looked up by name: it is half of a password."""
    with pytest.raises(InvalidRequest, match="an @ too many") as caught:
        address("postgresql://a:x@hunter2@h/d")
    assert "%40" in caught.value.next_step
    assert "hunter2" not in str(caught.value.to_problem())
    with pytest.raises(InvalidRequest):
        require_no_password("postgresql://a:x@hunter2@h/d")
    assert address("postgresql://a:x%40hunter2@h/d").host == "h"


def test_an_address_that_is_shown_can_be_given_again() -> None:
    require_no_password(shown("postgresql://a:hunter2@h:5432/d?sslmode=require"))


def test_a_file_may_hold_the_address(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://a:b@h/d\n")
    assert database_url({}) is None
    assert database_url({"DANLU_DATABASE_URL": "", "DANLU_DATABASE_URL_FILE": str(file)}) == "postgresql://a:b@h/d"
    assert database_url({"DANLU_DATABASE_URL": "x", "DANLU_DATABASE_URL_FILE": str(file)}) == "x"
    file.write_text("\n")
    for name in (file, tmp_path / "none", tmp_path):
        with pytest.raises(PlatformError, match="DANLU_DATABASE_URL_FILE"):
            database_url({"DANLU_DATABASE_URL_FILE": str(name)})


def test_a_parameter_that_does_not_exist_is_named() -> None:
    with pytest.raises(DatabaseUnavailable, match='"sslmod"') as caught, alone("postgresql:///d?sslmod=require"):
        pass
    assert "its address right" in caught.value.next_step
