"""This terminal, handed to something that runs elsewhere: every key goes there, and it knows the window's size."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from danlu.domain.sessions import Terminal


def present() -> Terminal | None:
    """Returns this terminal, or None where standard input is none, or the system cannot hand it over."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        return None
    size = shutil.get_terminal_size()
    name = os.environ.get("TERM", "")
    return Terminal.model_validate({"rows": size.lines, "columns": size.columns, **({"term": name} if name else {})})


@contextlib.contextmanager
def handed_over(resized: Callable[[int, int], None]) -> Iterator[None]:
    """Hands the terminal over while the block runs: keys are not looked at here, not even Ctrl-C.

    Args:
        resized: called in a thread of its own with rows and columns: at the beginning, as the window may have changed
            its size since it was looked at, and whenever it has.
    """
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    kept = termios.tcgetattr(keyboard)
    changed, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            changed.wait()
            changed.clear()
            size = os.get_terminal_size(keyboard)
            if not over.is_set():
                resized(size.lines, size.columns)

    signals = {signal.SIGTERM: signal.default_int_handler, signal.SIGWINCH: lambda *_: changed.set()}
    previous = {number: signal.signal(number, handler) for number, handler in signals.items()}
    changed.set()
    threading.Thread(target=watch, daemon=True, name="danlu-window").start()
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, kept)
        for number, handler in previous.items():
            signal.signal(number, handler)
        over.set()
        changed.set()
