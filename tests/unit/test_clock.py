"""The server's time under a clock that somebody sets."""

from __future__ import annotations

from danlu.server.clock import SystemClock

HOUR = 3600 * 1_000_000_000


class Machine:
    def __init__(self) -> None:
        self.wall, self.monotonic = 1_700_000_000 * 1_000_000_000, 5
        self.clock = SystemClock(lambda: self.wall, lambda: self.monotonic)

    def passes(self, ns: int) -> int:
        self.wall += ns
        self.monotonic += ns
        return self.clock.now()


def test_it_follows_the_machine() -> None:
    machine = Machine()
    assert machine.passes(10) == machine.wall


def test_a_jump_forward_is_followed() -> None:
    machine = Machine()
    machine.wall += HOUR
    assert machine.passes(10) == machine.wall


def test_a_jump_back_neither_turns_nor_stops_it() -> None:
    machine = Machine()
    before = machine.passes(10)
    machine.wall -= HOUR
    assert machine.passes(7) == before + 7
    assert machine.passes(8) == before + 15
    assert machine.clock.wall() == machine.wall


def test_it_follows_again_once_the_machine_has_caught_up() -> None:
    machine = Machine()
    machine.wall -= HOUR
    machine.passes(10)
    machine.wall += 2 * HOUR
    assert machine.passes(1) == machine.wall
