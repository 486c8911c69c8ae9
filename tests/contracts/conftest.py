"""Fixtures for contracts: stores of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.blobs.base import Blobs
from tests.s3_server import S3Server
from tests.stores import Folder, Place, Store


@pytest.fixture(params=["local", "s3"])
def new_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """Makes empty stores, of each kind."""
    if request.param == "local":
        return lambda: Folder(tmp_path_factory.mktemp("store"))
    server: S3Server = request.getfixturevalue("s3_server")
    return lambda: Place(server, "danlu")


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    """An empty store, of each kind."""
    return new_store()


@pytest.fixture
def blobs(store: Store) -> Blobs:
    """Blobs in an empty store, of each kind."""
    return store.blobs()


@pytest.fixture
def place(s3_server: S3Server) -> Place:
    """An empty prefix of a bucket."""
    return Place(s3_server, "danlu")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder as a store."""
    return Folder(tmp_path / "store")
