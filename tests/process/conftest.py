"""A data folder that every user may pass, and a server in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
