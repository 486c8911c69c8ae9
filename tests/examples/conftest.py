"""One folder of built environments for all tests here, and one running platform for the examples."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples import platform as platforms
from tests.examples.platform import ROOT, Platform
from tests.process.package_index import kept_environments, require_index


@pytest.fixture(scope="session")
def environments() -> Path:
    """A folder for what is built, shared by all platforms of all tests: each environment is built once per machine."""
    return kept_environments()


@pytest.fixture(scope="session")
def platform(environments: Path) -> Iterator[Platform]:
    """A running platform on a free port."""
    with platforms.platform(environments) as made:
        made.danlu("up", "--port", "0")
        yield made


@pytest.fixture
def fresh(environments: Path) -> Iterator[Platform]:
    """A platform without any job, not started yet."""
    with platforms.platform(environments) as made:
        yield made


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the repository's examples."""
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "examples"))


@pytest.fixture
def index() -> None:
    """Skips the test where environments with packages cannot be built."""
    require_index()
