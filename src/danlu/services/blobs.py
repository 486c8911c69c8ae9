"""Uploaded bytes: code trees by content address, only what the project does not have yet."""

from __future__ import annotations

from typing import BinaryIO

from danlu.api import Addresses, Stored
from danlu.errors import InvalidSpec
from danlu.services.context import Call

MAX_TREE_NODES = 100_000
