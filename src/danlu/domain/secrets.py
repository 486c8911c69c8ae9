"""A project's secrets: named values that only the platform can read, and how a job asks for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints

from danlu.domain.commands import RESERVED_VARIABLES
from danlu.domain.keys import Sealed
from danlu.domain.records import Flag, Ns, Record, Value, storable

SECRET_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"  # noqa: S105 - of names
"""A secret is named as an environment variable is, so that its name can be the variable."""
MAX_VALUE_BYTES: Final = 65_536
MAX_LINES: Final = 200
MAX_SECRETS_OF_A_JOB: Final = 50
MAX_LINES_OF_AN_ATTEMPT: Final = 5_000
"""Of all values that it may have, older ones too: each line is looked for in all that it writes."""
SHORTEST_REDACTED: Final = 6
"""A line of a value that is shorter than this (in bytes) stays readable where a job prints it: it may be any word."""
OURS: Final = frozenset(
    {"PATH", "PYTHONPATH", "TMPDIR", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)
"""Variables that the platform sets whatever a job asks for."""

SecretName = Annotated[str, StringConstraints(pattern=SECRET_PATTERN)]


class Secret(Record):
    """One value of a secret; it never changes. The one that is not replaced is what the name means now."""

    KIND: ClassVar[str] = "secret"

    name: SecretName
    sealed: Sealed | None = Field(default=None, repr=False, description="its value; not shown")
    created_by: str = Field(description="who gave it this value")
    replaced_at: Ns | None = Field(
        default=None,
        description="since then another value has the name, or none: this one is kept for running attempts",
    )


def lines_of(value: str) -> int:
    """Returns how many lines of a value there are to hide: a carriage return ends one too, and empty ones are none."""
    return sum(1 for line in value.replace("\r", "\n").split("\n") if line.strip())


def _usable(value: str) -> str:
    if not storable(value):
        raise ValueError("the value has a NUL or half a character: write what is not text as base64")
    if (size := len(value.encode())) > MAX_VALUE_BYTES:
        raise ValueError(f"the value has {size:,} bytes; {MAX_VALUE_BYTES:,} is the most")
    if (count := lines_of(value)) > MAX_LINES:
        raise ValueError(
            f"the value has {count:,} lines; {MAX_LINES:,} is the most, as each is hidden in output: "
            "write it as base64 in one line"
        )
    if not value.strip():
        raise ValueError("the value is empty")
    return value


class SecretRequest(Value):
    """A secret's value. What is wrong with it is told without it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    value: Annotated[str, AfterValidator(_usable)] = Field(
        repr=False,
        description="a text of at most 64 KiB and 200 lines; what is none, as base64 in one line, which the job decodes",
    )


class SecretUse(Value):
    """Which secret a variable of a job holds."""

    secret: SecretName = Field(description="its name: danlu secret ls", examples=["huggingface"])
    file: Flag = Field(default=False, description="the variable holds the path of a file in memory with the value")


def _written(given: Any) -> Any:
    """Returns the short forms as the long one: a list of names, and the name of the secret alone."""
    if isinstance(given, list | tuple):
        if any(not isinstance(name, str) for name in given):
            raise ValueError("a list holds names of secrets; where variables are called otherwise: VARIABLE: SECRET")
        return {name: {"secret": name} for name in given}
    if isinstance(given, Mapping):
        return {name: {"secret": use} if isinstance(use, str) else use for name, use in given.items()}
    return given


def _allowed(uses: dict[str, SecretUse]) -> dict[str, SecretUse]:
    for name in uses:
        if name.startswith(RESERVED_VARIABLES) or name in OURS:
            raise ValueError(f"{name} is set by the platform: give the variable another name")
    return uses


SecretUses = Annotated[
    dict[SecretName, SecretUse],
    BeforeValidator(_written, json_schema_input_type=dict[SecretName, SecretName | SecretUse] | list[SecretName]),
    AfterValidator(_allowed),
]
"""Variable -> secret."""


class HandedSecret(Value):
    """A secret's value on its way to an attempt. It exists in memory only."""

    model_config = ConfigDict(hide_input_in_errors=True)

    variable: SecretName
    value: str = Field(repr=False)
    file: Flag = False


class HandedSecrets(Value):
    """All that an attempt begins with, on its way to a pod."""

    model_config = ConfigDict(hide_input_in_errors=True)

    secrets: tuple[HandedSecret, ...] = Field(default=(), repr=False)


def check_variables(uses: Mapping[str, SecretUse], *others: Collection[str]) -> None:
    """Raises ValueError where a variable of a secret is one of the job's, or a role's, own variables too."""
    for variables in others:
        twice = sorted(set(uses) & set(variables))
        if twice:
            raise ValueError(f"secrets: {', '.join(twice)} is among the variables too: leave one of them out")
