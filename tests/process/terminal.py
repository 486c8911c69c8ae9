"""A command on a terminal of its own, as a person sits before it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.process.platform import until

TIMEOUT_S = 60.0
ROWS, COLUMNS = 33, 111


class Terminal:
    """What a command shows, and the keys that it is given."""

    def __init__(self, words: list[str], home: Path, *, keyboard: bool = True) -> None:
        self._master, slave = os.openpty()
        self.resize(ROWS, COLUMNS)
        self._shown = b""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "danlu.cli.main", *words],
            stdin=slave if keyboard else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            env={**kept, "DANLU_HOME": str(home), "TERM": "xterm", "NO_COLOR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other end open any more
            while data := os.read(self._master, 65_536):
                self._shown += data

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace")

    def shows(self, text: str, times: int = 1) -> None:
        """Waits until it has been shown so often."""

        def there() -> bool:
            if self.process.poll() is not None:
                self._reading.join(TIMEOUT_S)
            assert self.process.poll() is None or self.shown.count(text) >= times, f"ended, no {text!r}: {self.shown}"
            return self.shown.count(text) >= times

        until(there, TIMEOUT_S, f"the terminal shows {text!r}")

    def types(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Gives the window another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Closes the window. Whoever reads it meanwhile holds it open: keep nothing of it."""
        os.set_blocking(self._master, False)
        os.close(self._master)

    def ends(self) -> int:
        """Returns the exit code."""
        code = self.process.wait(TIMEOUT_S)
        self._reading.join(TIMEOUT_S)
        return code


@contextlib.contextmanager
def terminal(home: Path, *words: str, keyboard: bool = True) -> Iterator[Terminal]:
    """Yields a command's terminal, and ends the command where a test has failed."""
    made = Terminal(list(words), home, keyboard=keyboard)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(TIMEOUT_S)
