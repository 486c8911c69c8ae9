"""A data folder that every user may pass, and a server in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.jobs import Job
from tests.process.inside import running
from tests.process.platform import Server


@pytest.fixture
def home() -> Iterator[Path]:
    """A data folder in a folder of its own, as jobs of other users need it."""
    outer = Path(tempfile.mkdtemp(prefix="danlu-test-", dir="/tmp"))
    outer.chmod(0o711)
    yield outer / "home"
    shutil.rmtree(outer, ignore_errors=True)


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    """A running server."""
    made = Server(home)
    said = made.start()
    assert said.get("ready"), said
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for the tests that harm nobody."""
    outer = Path(tempfile.mkdtemp(prefix="danlu-test-", dir="/tmp"))
    outer.chmod(0o711)  # jobs run as other users where the tests run as root
    made = Server(outer / "home")
    assert made.start().get("ready")
    yield made
    made.close()
    shutil.rmtree(outer, ignore_errors=True)


@pytest.fixture(scope="module")
def job(shared: Server) -> Job:
    return running(shared, "sleep", "1000", name="target", gpu=0, variables={"COLOUR": "red"})
