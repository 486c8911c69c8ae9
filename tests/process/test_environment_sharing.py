"""Environments share their large files, and no job can write through what they share; elsewhere nothing is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.environments import sharing
from danlu.environments.builder import Builder
from danlu.environments.sources import source_for
from danlu.executors.local import launcher
from tests.conftest import cannot_run
from tests.process.test_environment_builder import OTHER_UID, entries, home  # noqa: F401 - fixtures
from tests.process.test_environment_safety import make_wheel, reachable, wheels  # noqa: F401 - fixtures

LARGE = "x = 1\n" + "# the same in both\n" * 10_000
TRY = """
import json, os, sys
folders, own = json.loads(sys.argv[1]), sys.argv[2]
done = []
def attempt(what, path, work):
    try:
        work(path)
    except PermissionError:
        return
    except FileNotFoundError:
        return  # a folder that it may not even enter
    done.append(f"{what} {path}")
def rewrite(path):
    with open(path, "r+b") as file:
        file.write(b"!")
def linked(path):
    os.link(path, own + "/link")
    try:
        rewrite(own + "/link")
    finally:
        os.unlink(own + "/link")
for folder in folders:
    for at, inner, files in os.walk(folder):
        for name in files:
            path = os.path.join(at, name)
            if os.path.islink(path):
                continue
            attempt("wrote", path, rewrite)
            attempt("truncated", path, lambda path: os.truncate(path, 0))
            attempt("opened", path, lambda path: os.chmod(path, 0o666))
            attempt("linked and wrote", path, linked)
            attempt("removed", path, os.unlink)
        attempt("put something into", at, lambda at: open(os.path.join(at, "new"), "w").close())
        for name in inner:
            attempt("renamed", os.path.join(at, name), lambda path: os.rename(path, path + "-new"))
print(json.dumps(done))
"""


def as_root() -> None:
    if os.geteuid() != 0:
        cannot_run("only root's environments share their files")


def two(home: Path, wheels: Path, version: str | None) -> list[Path]:  # noqa: F811
    """Builds two environments that have one large file in common; returns their folders."""
    builder = Builder(home / "environments", home / "cache" / "uv")
    built = []
    for small in ("one", "two"):
        make_wheel(wheels, {"large.py": LARGE, "small.py": f"x = {small!r}\n"})
        built.append(builder.build(source_for("python", "thing", version), lambda _: None).lock_digest)
    return [home / "environments" / digest for digest in built]


def files(folder: Path, name: str) -> os.stat_result:
    return next(folder.glob(f"lib/*/site-packages/{name}")).stat()


def test_large_files_are_there_once_and_small_ones_are_each_its_own(home: Path, wheels: Path) -> None:  # noqa: F811
    as_root()
    one, other = two(home, wheels, None)
    assert one != other
    assert files(one, "large.py").st_ino == files(other, "large.py").st_ino
    assert files(one, "small.py").st_ino != files(other, "small.py").st_ino
    assert files(one, "large.py").st_uid == 0
    assert files(one, "large.py").st_mode & 0o777 == 0o644


def test_the_build_users_cache_shares_and_cannot_be_written_through(home: Path, wheels: Path, reachable: str) -> None:  # noqa: F811
    as_root()
    one, other = two(home, wheels, reachable)
    assert files(one, "large.py").st_ino == files(other, "large.py").st_ino
    assert files(one, "large.py").st_uid == 0  # its link in the cache too


def test_no_job_can_write_through_what_is_shared(home: Path, wheels: Path) -> None:  # noqa: F811
    as_root()
    folders = two(home, wheels, None)
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    own = home / "own"
    own.mkdir()
    os.chown(own, OTHER_UID, OTHER_UID)
    places = [*folders, home / "environments" / sharing.SHARED, home / "cache"]
    program = f"""
import sys
sys.path.insert(0, {str(Path(launcher.__file__).parents[3])!r})
from danlu.executors.local import launcher
launcher.drop({OTHER_UID}, {OTHER_UID})
exec({TRY!r})
"""
    # the first Python of the system: the user whose place it takes need not reach this one
    command = [sys.executable, "-I", "-S", "-c", program, json.dumps([str(place) for place in places]), str(own)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == []
    assert {path: path.read_bytes() for path in before} == before
    assert list(own.iterdir()) == []


def test_the_attack_works_where_a_file_is_open_to_it(home: Path) -> None:  # noqa: F811
    """The test above can fail: what is open to the job is written through."""
    as_root()
    folder, own = home / "open", home / "own"
    folder.mkdir()
    own.mkdir()
    (folder / "file").write_text("hello")
    for path in (folder, folder / "file", own):
        os.chown(path, OTHER_UID, OTHER_UID)
    command = [sys.executable, "-I", "-S", "-c", TRY, json.dumps([str(folder)]), str(own)]
    ran = subprocess.run(
        ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups", "/usr/bin/python3", *command[1:]],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert [done.split(" /")[0] for done in json.loads(ran.stdout)][:1] == ["wrote"], ran.stderr


def test_where_jobs_are_the_servers_user_nothing_is_linked(
    home: Path,  # noqa: F811
    wheels: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "may_share", lambda: False)
    one, other = two(home, wheels, None)
    assert {files(folder, "large.py").st_nlink for folder in (one, other)} == {1}
    assert not (home / "environments" / sharing.SHARED).exists()


def test_only_the_very_same_bytes_are_shared(tmp_path: Path) -> None:
    ends = b"a" * 20_000
    folders = []
    for number, middle in enumerate((b"x", b"y", b"x")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_bytes(ends + middle * 50_000 + ends)  # one size, the same ends
        folders.append(folder)
    saved = [sharing.share(folder, tmp_path) for folder in folders]
    assert saved == [0, 0, 90_000]
    inodes = [(folder / "file").stat().st_ino for folder in folders]
    assert inodes[0] == inodes[2] != inodes[1]
    assert (folders[1] / "file").read_bytes() == ends + b"y" * 50_000 + ends
    assert sharing.share(folders[0], tmp_path) == 0


def test_what_nothing_links_to_any_more_goes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    sharing.share(tmp_path / "a", tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    os.link(tmp_path / "a" / "file", cache / "file")
    assert sharing.drop_unused(tmp_path, [cache]) == 0
    (tmp_path / "a" / "file").unlink()
    assert sharing.drop_unused(tmp_path, []) == 0  # as far as that knows, somebody has it
    assert sharing.drop_unused(tmp_path, [cache]) == 100_000
    assert list((tmp_path / sharing.SHARED).iterdir()) == []
    assert sharing.drop_unused(tmp_path / "nowhere", []) == 0
