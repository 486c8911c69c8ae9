"""What the NVIDIA driver says of some GPUs, by its C library; nothing where there is no driver."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any, Dict, List, NamedTuple

LIBRARY = "libnvidia-ml.so.1"
PERIOD_S = 5.0
TOO_OLD_S = 30.0


class Gpu(NamedTuple):
    """One GPU: how much of the last moment it was busy, and its memory in use, of all processes."""

    percent: float
    memory_bytes: int


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Gpus:
    """Asks the driver again and again, in a thread of its own: a driver that hangs must not hold anybody up.

    Args:
        indexes: as the driver counts, which is ``PCI_BUS_ID`` order; none: nothing is loaded and no thread is started.
        library: the driver's library, by name or already loaded.
    """

    def __init__(self, indexes: List[int], library: Any = LIBRARY) -> None:
        self._indexes, self._library = indexes, library
        self._found: Dict[int, Gpu] = {}
        self._at = 0.0
        self._begun = not indexes

    def newest(self, now: float) -> Dict[int, Gpu]:
        """Returns what was heard last, by index; nothing where that is too old. The first call begins to ask.

        Not before: a thread that is there while the runner forks its tasks could hold a lock in them for ever.
        """
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._ask, daemon=True).start()
        return self._found if now - self._at < TOO_OLD_S else {}

    def _ask(self) -> None:
        try:
            library = ctypes.CDLL(self._library) if isinstance(self._library, str) else self._library
            if library.nvmlInit_v2() != 0:
                return
        except (OSError, AttributeError):
            return  # no driver: its GPUs are declared
        while True:
            self._found, self._at = ask(library, self._indexes), time.monotonic()
            time.sleep(PERIOD_S)


def ask(library: Any, indexes: List[int]) -> Dict[int, Gpu]:
    """Returns what the driver tells of each GPU; one that it cannot tell of is left out."""
    found: Dict[int, Gpu] = {}
    for index in indexes:
        device, rates, memory = ctypes.c_void_p(), _Rates(), _Memory()
        if (
            library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) == 0
            and library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)) == 0
            and library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
        ):
            found[index] = Gpu(float(rates.gpu), int(memory.used))
    return found
