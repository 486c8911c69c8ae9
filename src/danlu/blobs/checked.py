"""A blob's bytes as they are read, the last of them only once all of them are right."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from danlu.errors import DataDamaged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Checked(io.RawIOBase):
    """Reads what should have ``size`` bytes and an address; where it has not, ``damaged`` makes the error."""

    def __init__(self, file: io.RawIOBase, size: int, address: str, damaged: Callable[[], DataDamaged]) -> None:
        self._file, self._left, self._address, self._damaged = file, size, address, damaged
        self._hasher = hashlib.sha256()

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def fileno(self) -> int:
        """See io.RawIOBase."""
        return self._file.fileno()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """See io.RawIOBase."""
        read = self._file.readinto(buffer) or 0
        self._hasher.update(memoryview(buffer)[:read])
        self._left -= read
        if (read == 0 or self._left <= 0) and "sha256:" + self._hasher.hexdigest() != self._address:
            raise self._damaged()
        return int(read)

    def close(self) -> None:
        """See io.RawIOBase."""
        self._file.close()
        super().close()
