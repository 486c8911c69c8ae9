"""The platform behind its edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.database.engine import Database
from tests.api.edge import Api


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Iterator[Api]:
    made = Api(sqlite, tmp_path)
    yield made
    made.edge.streams.end()
    made.opener.close()
