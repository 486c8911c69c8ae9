"""Images that nobody wants leave the disk, for real by podman: what runs keeps its own, and no kill leaves half a store."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.images import Image
from danlu.errors import DataDamaged, EnvironmentFailed
from danlu.executors.base import StoredImage
from danlu.executors.local import orphan_layers
from danlu.executors.local.images import ImageStore
from tests.conftest import cannot_run
from tests.factories import write_files
from tests.process.containers import UID, ContainerBench, bench
from tests.process.image_registry import BUSYBOX, Registry, serving, small
from tests.process.platform import until
from tests.process.test_images_hostile import program, store

FOUND = f"""case "$*" in *inspect*) echo '[{{"Id": "{"0" * 64}", "Size": 1}}]'; exit 0;; esac\n"""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with serving() as made:
        yield made


@pytest.fixture
def lab(registry: Registry) -> Iterator[ContainerBench]:
    if os.geteuid() != 0:
        cannot_run("only root can run jobs as other users")
    if not BUSYBOX.exists():
        cannot_run(f"{BUSYBOX} is not installed")
    with bench(registry) as made:
        if not made.executor.capabilities.images.startswith("podman"):
            cannot_run(f"podman cannot be used: {made.executor.capabilities.no_images}")
        yield made
        for one in made.executor.observe():
            made.executor.stop(one.attempt_id, grace_s=0.0)
            made.end(one.attempt_id)
            made.forget(one.attempt_id)


def pulled(lab: ContainerBench, registry: Registry, name: str, project: int = 0) -> Image:
    return lab.pull(registry.push(name, small(), Env=[f"NAME={name}"]), project)


def stored(image: Image, project: int = 0) -> StoredImage:
    return StoredImage(str(UID + project), image.id)


def remove(images: ImageStore, *which: StoredImage) -> None:
    images.doom(which)()


def runs(lab: ContainerBench, image: Image) -> bool:
    lab.image = image
    return lab.end(lab.launch("sh", "-c", "echo in $NAME")).tasks[0].exit_code == 0


def test_one_goes_and_what_it_shares_with_another_stays(lab: ContainerBench, registry: Registry) -> None:
    one, other = pulled(lab, registry, "one:1"), pulled(lab, registry, "other:1")
    assert lab.images.stored() == {stored(one), stored(other)}
    remove(lab.images, stored(one))
    assert lab.images.stored() == {stored(other)}
    assert lab.images.find(one.id, 0) is None
    assert runs(lab, other)
    again = pulled(lab, registry, "one:1")
    assert again == one
    assert runs(lab, again)


def test_with_the_last_one_the_store_is_emptied_and_no_other_projects(lab: ContainerBench, registry: Registry) -> None:
    one, other = pulled(lab, registry, "one:1"), pulled(lab, registry, "other:1")
    kept = pulled(lab, registry, "one:1", project=1)
    (lab.images.folder(0) / "auth.json").write_text("{}")
    remove(lab.images, stored(one), stored(other))
    assert not (lab.images.folder(0) / "storage").exists()
    assert (lab.images.folder(0) / "auth.json").exists()
    assert lab.images.stored() == {stored(kept, 1)}
    assert runs(lab, pulled(lab, registry, "one:1"))


def test_an_image_in_which_an_attempt_runs_stays_until_that_has_ended(lab: ContainerBench, registry: Registry) -> None:
    old, new = pulled(lab, registry, "moved:1"), pulled(lab, registry, "moved:2")
    lab.image = old
    attempt = lab.launch("sh", "-c", "echo up; while [ ! -e go ]; do sleep 0.1; done; cat /bin/busybox > copy")
    lab.printed(attempt, "up")
    remove(lab.images, stored(old), stored(new))
    assert lab.images.stored() == {stored(old)}
    work = lab.home / "attempts" / attempt / "work"
    (work / "go").touch()
    assert lab.end(attempt).tasks[0].exit_code == 0
    assert (work / "copy").read_bytes() == BUSYBOX.read_bytes()
    remove(lab.images, stored(old))
    assert lab.images.stored() == frozenset()


def test_an_image_that_is_gone_already_is_forgotten(lab: ContainerBench, registry: Registry) -> None:
    one, other = pulled(lab, registry, "one:1"), pulled(lab, registry, "other:1")
    record = lab.home / "images" / f"{UID}.known" / f"{one.id}.json"
    text = record.read_bytes()
    remove(lab.images, stored(one))
    record.write_bytes(text)  # as if killed between the two
    assert lab.images.stored() == {stored(one), stored(other)}
    remove(lab.images, stored(one))
    assert lab.images.stored() == {stored(other)}


def test_what_a_killed_removal_has_left_is_removed_by_the_next(lab: ContainerBench, registry: Registry) -> None:
    """Podman takes an image off its list first: killed then, it forgets the layers."""
    one, other = pulled(lab, registry, "one:1"), lab.pull(registry.push("other:1", with_a_file()))
    storage = lab.images.folder(0) / "storage"
    images = storage / "overlay-images" / "images.json"
    if not images.exists():
        cannot_run("this machine's podman keeps no overlays")
    images.write_text(json.dumps([entry for entry in json.loads(images.read_text()) if entry["id"] != other.id]))
    shutil.rmtree(images.parent / other.id)
    assert len(layers(storage)) == 2
    assert lab.images.stored() == {stored(one), stored(other)}
    remove(lab.images, stored(other))
    assert lab.images.stored() == {stored(one)}
    assert len(layers(storage)) == 1
    assert runs(lab, one)


def layers(storage: Path) -> set[str]:
    return {path.name for path in (storage / "overlay").iterdir() if len(path.name) == 64}


def with_a_file() -> bytes:
    packed = io.BytesIO(small())
    with tarfile.open(fileobj=packed, mode="a") as tar:
        tar.addfile(tarfile.TarInfo("more"), io.BytesIO())
    return packed.getvalue()


@pytest.mark.parametrize("text", ["{}", "[1]", "no", "[" * 100_000, '[{"id": 1}]'])
def test_lists_that_are_none_of_podmans_are_left_alone(tmp_path: Path, text: str) -> None:
    for name in ("overlay-layers/layers.json", "overlay-images/images.json"):
        write_files(tmp_path / "storage", {"overlay-layers/layers.json": "[]", "overlay-images/images.json": "[]"})
        (tmp_path / "storage" / name).write_text(text)
        with pytest.raises(DataDamaged, match=name):
            orphan_layers.mark(tmp_path, "overlay")
        assert (tmp_path / "storage" / name).read_text() == text


def test_lists_that_are_damaged_keep_no_image_from_its_removal(tmp_path: Path) -> None:
    images = store(tmp_path, "podman", FOUND)
    name, folder = images.store(0), images.folder(0)
    for image_id in ("0" * 64, "1" * 64):
        (folder / "storage" / "overlay-images" / image_id).mkdir(parents=True)
    lists = {"overlay-layers/layers.json": '[{"id": "a"}]', "overlay-images/images.json": '[{"id": "b", "layer": []}]'}
    write_files(folder / "storage", lists)
    program(tmp_path / "podman", f"rm -r {folder}/storage/overlay-images/{'1' * 64}")
    remove(images, StoredImage(name, "1" * 64))
    assert images.stored() == {StoredImage(name, "0" * 64)}


def test_only_layers_without_an_image_are_marked(tmp_path: Path) -> None:
    chain = [{"id": "a"}, {"id": "b", "parent": "a"}, {"id": "c", "parent": "b"}, {"id": "d", "flags": {"x": 1}}]
    file = tmp_path / "storage" / "overlay-layers" / "layers.json"
    images = [{"id": "i", "layer": "b"}, {"id": "without"}]
    write_files(
        tmp_path / "storage",
        {"overlay-layers/layers.json": json.dumps(chain), "overlay-images/images.json": json.dumps(images)},
    )
    assert orphan_layers.mark(tmp_path, "overlay") == 2
    assert [one.get("flags") for one in json.loads(file.read_text())] == [
        None, None, {"incomplete": True}, {"x": 1, "incomplete": True},
    ]  # fmt: skip
    assert orphan_layers.mark(tmp_path, "vfs") == 0


def test_an_image_whose_pull_was_not_recorded_is_found(lab: ContainerBench, registry: Registry) -> None:
    one, other = pulled(lab, registry, "one:1"), pulled(lab, registry, "other:1")
    (lab.home / "images" / f"{UID}.known" / f"{one.id}.json").unlink()
    assert lab.images.stored() == {stored(one), stored(other)}
    remove(lab.images, stored(one))
    assert lab.images.stored() == {stored(other)}


def test_what_a_project_has_put_there_names_no_image_and_leads_nowhere(lab: ContainerBench, registry: Registry) -> None:
    one = pulled(lab, registry, "one:1")
    storage = lab.images.folder(0) / "storage"
    for name in ("not-an-id", "0" * 63, "A" * 64):
        (storage / "overlay-images" / name).mkdir()
        (storage / "vfs-images" / name).mkdir(parents=True)
    assert lab.images.stored() == {stored(one)}
    precious = lab.home / "precious"
    (precious / "overlay-images" / one.id).mkdir(parents=True)
    storage.rename(storage.with_name("hidden"))
    storage.symlink_to(precious)
    remove(lab.images, stored(one))
    assert (precious / "overlay-images" / one.id).is_dir()
    assert not storage.is_symlink()


def test_a_pull_waits_for_a_removal_and_a_removal_not_for_a_pull(tmp_path: Path) -> None:
    images = store(tmp_path, "podman", FOUND)
    name = images.store(0)
    one = StoredImage(name, images.pull("registry.test/a:1", 0, lambda _: None).lock_digest)
    discard = images.doom([one])
    images.doom([one])()  # it is taken already: this one has nothing to do
    assert images.stored() == {one}
    discard()
    assert images.stored() == frozenset()
    assert images.pull("registry.test/a:1", 0, lambda _: None).lock_digest == one.image_id


def test_what_podman_does_not_remove_is_there_to_be_tried_again(tmp_path: Path) -> None:
    says = 'case "$*" in *" rm "*) echo Error: busy; exit 1;; esac\n'
    images = store(tmp_path, "podman", says + FOUND)
    name = images.store(0)
    for image_id in ("0" * 64, "1" * 64):
        (images.folder(0) / "storage" / "overlay-images" / image_id).mkdir(parents=True)
    kept, unwanted = StoredImage(name, "0" * 64), StoredImage(name, "1" * 64)
    remove(images, unwanted)
    assert images.stored() == {kept, unwanted}
    program(tmp_path / "podman", f"rm -r {images.folder(0)}/storage/overlay-images/{'1' * 64}")
    remove(images, unwanted)
    assert images.stored() == {kept}


def test_what_a_failed_or_a_killed_pull_has_fetched_is_removed(tmp_path: Path) -> None:
    half = "head -c 1000000 /dev/zero > $TMPDIR/blob; "
    images = store(tmp_path, "podman", f"{half} exit 1")
    with pytest.raises(EnvironmentFailed):
        images.pull("registry.test/a:1", 0, lambda _: None)
    assert not list((tmp_path / "images").rglob("blob"))
    text = f"""
import os, signal, sys
from pathlib import Path
from tests.process.test_images_hostile import store
store(Path({str(tmp_path)!r}), "podman", "{half} echo half").pull(
    "registry.test/a:1", 0, lambda _: os.kill(os.getpid(), signal.SIGKILL)
)
"""
    assert killed(text)
    assert len(list((tmp_path / "images").rglob("blob"))) == 1
    images.start()
    until(lambda: not list((tmp_path / "images").rglob("blob")), 20, "it is removed")


def test_killed_while_it_removes_leaves_no_half_a_store(lab: ContainerBench, registry: Registry) -> None:
    one = pulled(lab, registry, "one:1")
    text = f"""
import os, signal
from pathlib import Path
from danlu.executors.base import StoredImage
from danlu.executors.local import folders
from tests.process.containers import UID
from tests.process.test_images_hostile import store
images = store(Path({str(lab.home)!r}), "podman", "", uid_base=UID)
folders.remove = lambda _: os.kill(os.getpid(), signal.SIGKILL)
images.doom([StoredImage(str(UID), {one.id!r})])()
"""
    (lab.home / "podman").touch()
    assert killed(text)
    assert list((lab.home / "images").glob("*.gone"))
    assert lab.images.find(one.id, 0) is None
    assert runs(lab, pulled(lab, registry, "one:1"))
    lab.images.start()
    until(lambda: not list((lab.home / "images").glob("*.gone")), 20, "the rest is removed")


def killed(text: str) -> bool:
    """Whether a program came as far as to kill itself."""
    done = subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parents[2], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return True
