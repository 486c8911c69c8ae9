"""What proves who calls: access keys, which sign, and tokens, which are shown. And values that only the platform can read."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from danlu.domain.records import Ns, Record, Value


class Sealed(Value):
    """A value encrypted with a key of its own, which is encrypted with the platform's master key: all in base64.

    AES-256-GCM (NIST SP 800-38D) both times, bound to the record whose value it is; each text begins with its 96-bit nonce.
    """

    master: str = Field(description="which master key: the first 16 hexadecimal digits of its SHA-256")
    key: str = Field(repr=False)
    value: str = Field(repr=False)


class AccessKey(Record):
    """A user's access key: its id is public, its secret signs. The secret is shown once, when it is made."""

    KIND: ClassVar[str] = "key"

    user: str = Field(description="the user's id")
    name: str = Field(default="", max_length=63, description="what it is for")
    sealed: Sealed | None = Field(default=None, repr=False, description="its secret; not shown")
    created_by: str
    made_by: str = Field(default="", description="the access key or the token by which it was made")
    expires_at: Ns | None = Field(default=None, description="None: never")
    last_used_at: Ns | None = Field(default=None, description="to the hour")
    replaces: str = Field(default="", description="the key that was to be replaced by it")
    successor_ns: Ns | None = Field(
        default=None, description="how long what replaces it lives, once that was asked for; 0: without an end"
    )
    bootstrap: bool = Field(default=False, description="the one that the platform keeps for who owns its data folder")

    def shown(self) -> Self:
        """Returns it as it may be seen."""
        return self.model_copy(update={"sealed": None})


class Token(Record):
    """A user's bearer token. Only its SHA-256 is stored; the secret is shown once, when it is made."""

    KIND: ClassVar[str] = "token"

    user: str = Field(default="", description="the user's id")
    name: str = Field(min_length=1, max_length=63)
    digest: str = Field(description="SHA-256 of the secret, hex; not shown")
    bound: bool = Field(default=True, description="to its project; else it is good for all of the user's")
    created_by: str
    made_by: str = Field(default="", description="the access key or the token by which it was made")
    expires_at: Ns | None = Field(default=None, description="None: never")

    def shown(self) -> Self:
        """Returns it as it may be seen."""
        return self.model_copy(update={"digest": ""})


class Revoked(Value):
    """What was revoked, and what of that which was made by it."""

    message: str
    ended: tuple[str, ...] = Field(default=(), description="access keys and tokens that ended with it")
    left: tuple[str, ...] = Field(default=(), description="access keys that it has made and that go on")
