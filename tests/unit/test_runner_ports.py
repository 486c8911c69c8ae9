"""Leased ports: a stranger is told from the gang's own processes, and who waits for others blocks nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from danlu.runner import ports


@contextlib.contextmanager
def listener(host: str, family: socket.AddressFamily = socket.AF_INET) -> Iterator[socket.socket]:
    """Returns a socket that listens on a port of the kernel's choice."""
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((host, 0))
        listening.listen()
        yield listening


def test_who_listens_is_a_stranger_unless_it_is_one_s_own() -> None:
    with listener("127.0.0.1") as listening:
        port = listening.getsockname()[1]
        leased = [("127.0.0.1", port)]
        assert ports.stranger(leased, lambda: [1]) == port
        assert ports.stranger(leased, lambda: [1, os.getpid()]) is None
    assert ports.stranger(leased, lambda: [1]) is None


@pytest.mark.parametrize(("family", "listens", "host", "in_the_way"), [
    (socket.AF_INET, "127.64.0.9", "127.64.0.9", True),
    (socket.AF_INET, "127.64.0.9", "127.64.0.8", False),
    (socket.AF_INET, "127.64.0.9", "127.0.0.1", True),
    (socket.AF_INET, "0.0.0.0", "127.64.0.8", True),
    (socket.AF_INET6, "::", "127.64.0.8", True),
    (socket.AF_INET6, "::ffff:127.64.0.9", "127.64.0.9", True),
    (socket.AF_INET6, "::ffff:127.64.0.9", "127.64.0.8", False),
])  # fmt: skip
def test_an_address_of_its_own_shares_the_port_with_others(
    family: socket.AddressFamily, listens: str, host: str, in_the_way: bool
) -> None:
    with listener(listens, family) as listening:
        port = listening.getsockname()[1]
        assert ports.stranger([(host, port)], list) == (port if in_the_way else None)


def test_who_ends_while_it_is_looked_for_is_no_stranger() -> None:
    with listener("127.0.0.1") as listening:
        port = listening.getsockname()[1]

        def own() -> list[int]:
            listening.close()
            return []

        assert ports.stranger([("127.0.0.1", port)], own) is None


def test_who_was_started_while_it_was_looked_for_is_no_stranger() -> None:
    looks: list[list[int]] = [[], [os.getpid()]]
    with listener("127.0.0.1") as listening:
        assert ports.stranger([("127.0.0.1", listening.getsockname()[1])], lambda: looks.pop(0)) is None


def test_many_that_wait_for_one_that_hangs_are_no_burden() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        doors = ports.Doors()
        began = time.monotonic()
        assert not any(doors.open(address) for _ in range(50))
        assert time.monotonic() - began < 10 * ports.CONNECT_TIMEOUT_S


def test_an_address_that_was_open_is_asked_no_more_until_its_task_has_ended() -> None:
    doors = ports.Doors()
    with listener("127.0.0.1") as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert all(doors.open(address) for _ in range(50))
        listening.setblocking(False)
        listening.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert doors.open(address)
    doors.shut([address])
    assert not doors.open(address)
