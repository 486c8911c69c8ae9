"""The vault: seals what the platform must be able to read again, and nobody else: access keys' secrets, projects' secrets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from danlu.domain.keys import Sealed
from danlu.errors import VaultLocked

KEY_BYTES = 32
NONCE_BYTES = 12
DECOY = "decoy"


class Vault:
    """Seals and opens values, each with a key of its own under the master key: envelope encryption.

    Args:
        master: 32 bytes.
        random_bytes: as many as it is asked for.
    """

    def __init__(self, master: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self.name = hashlib.sha256(master).hexdigest()[:16]
        self._master, self._random_bytes = AESGCM(master), random_bytes
        self.decoy = self.seal(random_bytes(KEY_BYTES), DECOY)
        """Is opened where there is nothing to open, so that this takes the same time."""

    def seal(self, value: bytes, of: str) -> Sealed:
        """Returns a value sealed; ``of`` is the id of the record that it belongs to: in another one it cannot be opened."""
        key = self._random_bytes(KEY_BYTES)
        return Sealed(
            master=self.name, key=self._closed(self._master, key, of), value=self._closed(AESGCM(key), value, of)
        )

    def open(self, sealed: Sealed, of: str) -> bytes:
        """Returns the value.

        Raises:
            VaultLocked: it was sealed by another master key, or for another record, or is damaged.
        """
        try:
            key = self._opened(self._master, sealed.key, of)
            return self._opened(AESGCM(key), sealed.value, of)
        except (InvalidTag, ValueError) as error:
            raise VaultLocked(
                f"the value of {of} cannot be opened: master key {sealed.master} sealed it, and this one is {self.name}"
            ) from error

    def _closed(self, cipher: AESGCM, value: bytes, of: str) -> str:
        nonce = self._random_bytes(NONCE_BYTES)
        return base64.b64encode(nonce + cipher.encrypt(nonce, value, of.encode())).decode()

    @staticmethod
    def _opened(cipher: AESGCM, text: str, of: str) -> bytes:
        raw = base64.b64decode(text, validate=True)
        return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], of.encode())
