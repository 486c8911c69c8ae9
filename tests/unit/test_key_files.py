"""Whose file a key may be read from: nobody else may read it, and a pod's Secret is its group's."""

from __future__ import annotations

import os
import stat

import pytest

from danlu.server.keys import is_closed

GROUP, USER = 10_001, 10_001


def file(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "closed"),
    [
        (0o600, USER, GROUP, True),
        (0o400, 0, 0, True),
        (0o440, 0, GROUP, True),  # a Secret in a pod that is not root's
        (0o440, USER, GROUP, False),  # its owner could close it
        (0o440, 0, GROUP + 1, False),
        (0o440, 0, 0, False),
        (0o460, 0, GROUP, False),
        (0o444, 0, GROUP, False),
    ],
)
def test_a_key_is_closed_to_others(mode: int, uid: int, gid: int, closed: bool) -> None:
    assert is_closed(file(mode, uid, gid), USER, (GROUP,)) is closed


def test_root_needs_no_group() -> None:
    assert not is_closed(file(0o440, 0, GROUP), 0, (0, GROUP))
