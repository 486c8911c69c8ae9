"""What lives of the whole platform begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.database.engine import Database


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "danlu.db"
    Database.open(f"sqlite:///{path}").close()
    return path
