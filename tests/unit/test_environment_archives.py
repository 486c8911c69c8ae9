"""Archives of environments are made once for what was built, kept with each project, and not where an image serves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.config import environment_images
from danlu.controllers.environments import EnvironmentsController
from danlu.controllers.packing import Packing
from danlu.controllers.tasks import Tasks
from danlu.database.engine import Database
from danlu.database.records import ENVIRONMENTS, PROJECTS
from danlu.domain.environments import Archive, Environment, EnvironmentReason, EnvironmentState, PodEnvironment
from danlu.domain.trees import address_of
from danlu.environments.builder import Builder
from danlu.errors import EnvironmentFailed
from danlu.services.context import Hub
from tests.factories import NOW, Ids, make_environment, make_project
from tests.simulation.builder import Built

DIGEST = "d" * 64
PACKED = b"an archive"
ARCHIVE = Archive(address=address_of(PACKED), size_bytes=len(PACKED), unpacked_bytes=100, files=3)
IMAGE = "registry.example.com/tf1:2"


class Frozen:
    def now(self) -> int:
        return NOW


class Builds:
    """Builds and packs in no time; ``images`` are those that serve instead."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.did = folder, dict[str, str](), list[str]()
        self.fails = False
        self.reasons: list[EnvironmentReason | None] = []
        self.look: Callable[[], EnvironmentReason | None] = lambda: None

    def build(self, _source: object, report: Callable[[str], None]) -> Any:
        self.did.append("built")
        return Built(DIGEST)

    @contextlib.contextmanager
    def packed(self, digest: str, report: Callable[[str], None]) -> Iterator[tuple[Path, Archive]]:
        self.did.append("packed")
        self.reasons.append(self.look())
        if self.fails:
            raise EnvironmentFailed("it has a pipe", stage="pack")
        path = self.folder / "archive"
        path.write_bytes(PACKED)
        yield path, ARCHIVE

    def image_of(self, name: str, digest: str | None) -> str:
        return self.images.get(name) or self.images.get(digest or "") or ""

    def folders(self) -> frozenset[str]:
        return frozenset()

    def doom(self, names: object) -> Callable[[], None]:
        raise NotImplementedError

    def bound_caches(self) -> None:
        pass


class Platform:
    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.ids, self.builds = database, Ids(), Builds(folder)
        self.blobs = LocalBlobs(folder / "blobs")
        packing = Packing(self.builds, self.blobs, Frozen(), Hub())
        self.controller = EnvironmentsController(
            database, self.builds, LocalStreams(folder / "blobs"), Frozen(), Hub(), Tasks(lambda task: task()),
            packing=packing,
        )  # fmt: skip
        database.write(lambda tx: [PROJECTS.add(tx, make_project(f"p{number}", number)) for number in (0, 1)])

    def made(self, project: str = "p0", name: str = "tensorflow-1") -> Environment:
        """Returns a project's environment once it is over with it."""
        found = make_environment(self.ids("e"), project=project, name=name, source_digest=self.ids("e"))
        self.database.write(lambda tx: ENVIRONMENTS.add(tx, found))
        self.builds.look = lambda: self.now(found.id).reason
        self.controller.step()
        return self.now(found.id)

    def now(self, environment: str) -> Environment:
        return self.database.read(lambda tx: ENVIRONMENTS.require(tx, environment))


@pytest.fixture
def platform(sqlite: Database, tmp_path: Path) -> Platform:
    return Platform(sqlite, tmp_path)


def test_what_was_built_is_packed_and_kept(platform: Platform) -> None:
    made = platform.made()
    assert (made.state, made.archive) == (EnvironmentState.READY, ARCHIVE)
    assert platform.blobs.read("p0", ARCHIVE.address) == PACKED
    assert platform.builds.reasons == [EnvironmentReason.PACKING], "a job that waits can say so meanwhile"


def test_the_same_for_another_project_is_copied(platform: Platform) -> None:
    assert platform.made("p0").archive == platform.made("p1").archive == ARCHIVE
    assert platform.builds.did == ["built", "packed", "built"]
    assert platform.blobs.read("p1", ARCHIVE.address) == PACKED


def test_what_another_project_has_damaged_is_packed_anew(platform: Platform, tmp_path: Path) -> None:
    platform.made("p0")
    digest = ARCHIVE.address.removeprefix("sha256:")
    next((tmp_path / "blobs" / "p0").rglob(digest[2:])).write_bytes(b"AN archive")
    assert platform.made("p1").archive == ARCHIVE
    assert platform.builds.did.count("packed") == 2
    assert platform.blobs.read("p1", ARCHIVE.address) == PACKED


def test_what_cannot_be_packed_says_so(platform: Platform) -> None:
    platform.builds.fails = True
    made = platform.made()
    assert (made.state, made.reason) == (EnvironmentState.FAILED, EnvironmentReason.PACKING_FAILED)
    assert "it has a pipe" in made.message


def test_where_an_image_of_that_name_serves_nothing_is_built(platform: Platform) -> None:
    platform.builds.images["tensorflow-1"] = IMAGE
    made = platform.made()
    assert made.packages is None, "it has no folder to be shown"
    assert (made.state, made.archive) == (EnvironmentState.READY, None)
    assert IMAGE in made.message
    assert platform.builds.did == []


def test_where_an_image_of_that_lock_serves_nothing_is_packed(platform: Platform) -> None:
    platform.builds.images[DIGEST] = IMAGE
    made = platform.made()
    assert (made.state, made.lock_digest, made.archive) == (EnvironmentState.READY, DIGEST, None)
    assert platform.builds.did == ["built"]


def for_pods(images: dict[str, str], tmp_path: Path, **fields: Any) -> PodEnvironment | None:
    made = make_environment(name="tensorflow-1", **fields)
    return Builder(tmp_path / "environments", tmp_path / "cache", images=images).for_pods(made)


def test_a_pod_gets_the_archive_at_its_own_path(tmp_path: Path) -> None:
    found = for_pods({}, tmp_path, lock_digest=DIGEST, archive=ARCHIVE)
    assert found is not None
    assert found.interpreter is not None
    assert str(found.interpreter.bin) == f"/danlu/environments/{DIGEST}/bin"
    assert found.interpreter.variables["VIRTUAL_ENV"] == f"/danlu/environments/{DIGEST}"
    order = found.order(max_bytes=5, unused_s=6.0)
    assert order == {
        "name": "tensorflow-1", "digest": DIGEST, **ARCHIVE.model_dump(), "path": f"/danlu/environments/{DIGEST}",
        "bin": f"/danlu/environments/{DIGEST}/bin", "variables": {}, "keep": {"max_bytes": 5, "unused_s": 6.0},
    }  # fmt: skip


def test_a_pod_gets_the_image_where_there_is_one(tmp_path: Path) -> None:
    for images in ({"tensorflow-1": IMAGE}, {DIGEST: IMAGE}):
        found = for_pods(images, tmp_path, lock_digest=DIGEST, archive=ARCHIVE)
        assert found is not None
        assert (found.image, found.archive, found.interpreter) == (IMAGE, None, None)


def test_what_is_neither_packed_nor_an_image_is_not_to_be_had(tmp_path: Path) -> None:
    assert for_pods({"pytorch": IMAGE}, tmp_path, lock_digest=DIGEST) is None


def test_images_are_read_from_a_variable() -> None:
    assert environment_images(f" tensorflow-1={IMAGE} , {DIGEST}=x@sha256:y,") == {
        "tensorflow-1": IMAGE,
        DIGEST: "x@sha256:y",
    }
    for wrong in ("tensorflow-1", "=x", "x="):
        with pytest.raises(ValueError, match="is not NAME=IMAGE"):
            environment_images(wrong)
