"""Where code came from: the commit that its folder stands on, and what was changed since."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from danlu.domain.records import Text, Value
from danlu.domain.trees import ADDRESS_PATTERN

COMMIT_PATTERN: Final = r"^[0-9a-f]{40}([0-9a-f]{24})?$"
MAX_DIFF_BYTES: Final = 2**20

Short = Annotated[Text, StringConstraints(max_length=1000)]


class GitState(Value):
    """The state of the git repository that code was sent from. What was never added to it is in the code's tree alone."""

    commit: str | None = Field(default=None, pattern=COMMIT_PATTERN, description="left out where there is none yet")
    branch: Short | None = Field(default=None, description="left out where none is checked out")
    remote: Short | None = Field(default=None, description="address of its origin, without passwords")
    folder: Short = Field(default="", description="of the repository that was sent; empty for all of it")
    dirty: bool | None = Field(
        default=None, description="whether files known to git differ from the commit; left out where that took too long"
    )
    diff: str | None = Field(
        default=None, pattern=ADDRESS_PATTERN, description="address of the differences, as git prints them"
    )
    note: Short = Field(default="", description="why something is left out")
