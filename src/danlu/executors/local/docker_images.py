"""Which of docker's images this platform has brought, and how those are removed again.

Docker's images are all of its daemon's users'. What was there before it was pulled for a job is not this platform's, and
stays; so does what somebody has given another name to, or runs in a container. What was there is noted before a pull begins:
where the server is killed in the middle, the next one still knows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from danlu.domain.images import IMAGE_ID, full_reference
from danlu.errors import ExecutorUnavailable
from danlu.runner.formats import write_atomically

LOG: Final = logging.getLogger("danlu.executors")
Ask = Callable[..., str | None]


class DockerImages:
    """What was brought, one file for each image: the names by which it was pulled."""

    def __init__(self, folder: Path, ask: Ask) -> None:
        """Makes nothing yet; ``ask`` returns what docker prints, or None where it fails."""
        self._folder = folder
        self._ask = ask

    def brought(self) -> frozenset[str]:
        """Returns the ids of the images that this platform has brought."""
        return frozenset(path.stem for path in self._folder.glob("*.json") if re.fullmatch(IMAGE_ID, path.stem))

    @contextlib.contextmanager
    def bringing(self, reference: str) -> Iterator[Callable[[str], None]]:
        """Yields what is to be called with the id of the image that ``reference`` has become, once it was pulled.

        Raises:
            ExecutorUnavailable: docker does not tell what is there before.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = self._folder / f"{hashlib.sha256(reference.encode()).hexdigest()}.before"
        if not note.exists():
            write_atomically(str(note), json.dumps(sorted(self._there())).encode())
        before = _read(note)

        def brought(image_id: str) -> None:
            file = self._folder / f"{image_id}.json"
            if file.exists() or image_id not in before:
                write_atomically(str(file), json.dumps(sorted({*_read(file), reference})).encode())

        try:
            yield brought
        finally:
            note.unlink(missing_ok=True)

    def remove(self, image_id: str) -> None:
        """Removes an image that was brought, unless somebody else has a name for it. Absent is success.

        While a container of somebody else's uses it, it stays, and is tried again.

        Raises:
            ExecutorUnavailable: docker does not answer.
        """
        file = self._folder / f"{image_id}.json"
        if image_id in self._there():
            tags = json.loads(self._said("image", "inspect", "--format", "{{json .RepoTags}}", image_id)) or []
            ours = [tag for tag in tags if _whole(tag) in _read(file)]
            others = [tag for tag in tags if tag not in ours]
            if ours or not others:
                self._ask("image", "rm", *(ours or [image_id]))
            if others:
                LOG.info("image %s stays: somebody else has named it %s", image_id[:12], ", ".join(others[:5]))
            elif image_id in self._there():
                LOG.info("image %s cannot be removed yet: docker says that something else uses it", image_id[:12])
                return
        file.unlink(missing_ok=True)

    def _there(self) -> frozenset[str]:
        said = self._said("image", "ls", "--all", "--quiet", "--no-trunc")
        return frozenset(line.removeprefix("sha256:") for line in said.split())

    def _said(self, *words: str) -> str:
        said = self._ask(*words)
        if said is None:
            raise ExecutorUnavailable(f"docker does not answer: docker {' '.join(words)}")
        return said


def _read(file: Path) -> frozenset[str]:
    try:
        return frozenset(map(str, json.loads(file.read_bytes())))
    except (OSError, ValueError, TypeError):
        return frozenset()


def _whole(tag: str) -> str:
    try:
        return full_reference(tag)
    except ValueError:
        return tag
