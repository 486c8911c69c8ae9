"""A package that has only a source is compiled once, sealed off; what does not compile leaves its compiler's words alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.environments import sources, wheels
from danlu.environments.build_user import BUILD_UID
from danlu.environments.builder import LOCK, Builder, Built
from danlu.environments.catalogue import CATALOGUE, CatalogueEntry, SourceBuild
from danlu.environments.sources import own_python, source_for
from danlu.errors import EnvironmentFailed
from tests.conftest import cannot_run
from tests.process.package_index import PASSWORD, make_source, require_index, served
from tests.process.test_environment_builder import entries, home  # noqa: F401 - fixtures
from tests.process.test_environment_safety import reachable  # noqa: F401 - fixtures

TINY = SourceBuild("danlu-tiny", variables={"TINY_SIZE": "small"}, programs={"cc": "gcc"})
BROKEN = "#include <Python.h>\nint first = missing;\n"


def _setuptools() -> str:
    """Returns the lines of a lock for what a build in C needs."""
    lock = (sources.FOLDER / "locks" / "tensorflow-1.txt").read_text()
    found = re.search(r"^setuptools==(\S+).*\\\n((?: .*\n)+)", lock, re.M)
    assert found is not None
    return f"setuptools=={found[1]} \\\n{found[2]}"


class Shop:
    """An index with the source of one package, and a catalogue whose entry ``tiny`` is made of it."""

    def __init__(self, folder: Path, port: int, asked: list[str], patch: pytest.MonkeyPatch) -> None:
        self.home, self.port, self.asked, self._patch = folder, port, asked, patch
        (folder / "catalogue" / "locks").mkdir(parents=True)
        patch.setattr(sources, "FOLDER", folder / "catalogue")
        patch.setenv("UV_FIND_LINKS", f"http://{PASSWORD}@127.0.0.1:{port}/")

    def offer(self, *, build: SourceBuild = TINY, digest: str = "", **source: Any) -> None:
        """Puts a source into the index, and an entry with its hash into the catalogue."""
        made = make_source(self.home / "index", port=self.port, **{"first": "print('compiling', flush=True)", **source})
        lock = f"danlu-tiny==1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:{digest or made}\n{_SETUPTOOLS}"
        (self.home / "catalogue" / "locks" / "tiny.txt").write_text(lock)
        self._patch.setitem(
            CATALOGUE,  # type: ignore[arg-type]
            "tiny",
            CatalogueEntry(name="tiny", description="", oldest_python="3.8", from_source=(build,)),
        )
        sources._recipe.cache_clear()

    def builder(self, root: str = "environments") -> Builder:
        return Builder(self.home / root, self.home / "cache" / "uv")

    def build(self, report: Callable[[str], None] = lambda _: None, *, root: str = "environments") -> Built:
        return self.builder(root).build(source_for("tiny", None, None), report)

    def wheels(self) -> list[Path]:
        return sorted((self.home / "cache" / "wheels").glob("*/*.whl"))

    def seen(self, built: Built, root: str = "environments") -> dict[str, Any]:
        """Returns what the build has seen of its world, as the module that it made of that says."""
        program = "import json, tiny, tiny_build as b; print(json.dumps([b.variables, b.uid, b.network]))"
        python = self.home / root / built.lock_digest / "bin" / "python"
        ran = subprocess.run([python, "-c", program], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return dict(zip(("variables", "uid", "network"), json.loads(ran.stdout), strict=True))


_SETUPTOOLS = _setuptools()


@pytest.fixture
def shop(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:  # noqa: F811
    require_index()
    if shutil.which("cc") is None:
        cannot_run("there is no C compiler")
    (home / "index").mkdir()
    with served(home / "index") as (port, asked):
        yield Shop(home, port, asked, monkeypatch)
    sources._recipe.cache_clear()


def test_a_source_is_compiled_once_for_all_environments(shop: Shop) -> None:
    shop.offer()
    said: list[str] = []
    built = shop.build(said.append)
    assert built.packages == 2
    assert any("released as source only" in line for line in said)
    assert any("compiling" in line for line in said)
    assert entries(shop.home) == [built.lock_digest]
    (wheel,) = shop.wheels()
    assert stat.S_IMODE(wheel.stat().st_mode) == 0o644
    assert sorted(path.name for path in wheel.parent.iterdir()) == sorted([wheel.name, wheels.LOG, wheels.FACTS])
    assert "compiling" in (wheel.parent / wheels.LOG).read_text()
    lock = (shop.home / "environments" / built.lock_digest / LOCK).read_text()
    assert json.loads((wheel.parent / wheels.FACTS).read_text())["sha256"] not in lock  # it names the source
    seen = shop.seen(built)
    assert seen["variables"]["TINY_SIZE"] == "small"

    shop.asked.clear()
    said.clear()
    again = shop.build(said.append, root="others")
    assert any("is used again" in line for line in said)
    assert not any("compiling" in line for line in said)
    assert not any(path.endswith(".tar.gz") for path in shop.asked)
    assert shop.seen(again, root="others") == seen
    assert again.lock_digest == built.lock_digest

    wheel.unlink()
    said.clear()
    assert shop.build(said.append).lock_digest == built.lock_digest  # what is there needs no wheel any more
    assert any("there already" in line for line in said)


def test_a_build_has_no_network_and_none_of_the_servers_variables(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_SECRET", "hidden")
    shop.offer()
    said: list[str] = []
    seen = shop.seen(shop.build(said.append))
    allowed = {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "TINY_SIZE", "MAKEFLAGS", "VIRTUAL_ENV", "NO_COLOR"}
    extra = {name for name in seen["variables"] if not name.startswith(("UV_", "PYTHON"))} - allowed - {"UV", "_"}
    assert extra == set()
    for secret in (*PASSWORD.split(":"), "hidden"):
        assert not any(secret in value for value in seen["variables"].values())
        assert not any(secret in line for line in said)
    if os.getuid() != 0:
        cannot_run("only root can cut a build off from the network")
    assert "unreachable" in seen["network"]


def test_a_root_server_compiles_as_another_user(shop: Shop, reachable: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shop.offer()
    if not list(Path("/usr/include").glob(f"python{reachable}/Python.h")):
        cannot_run(f"no headers of Python {reachable} that every user can read")
    before = os.umask(0o077)  # a server's own, strict
    try:
        built = shop.builder().build(source_for("tiny", None, reachable), lambda _: None)
    finally:
        os.umask(before)
    assert shop.seen(built)["uid"] == BUILD_UID
    (wheel,) = shop.wheels()
    assert {path.stat().st_uid for path in (wheel, wheel.parent, wheel.parent.parent)} == {0}


def test_what_does_not_compile_fails_with_the_compilers_words_and_leaves_nothing(shop: Shop) -> None:
    shop.offer(module=BROKEN)
    said: list[str] = []
    with pytest.raises(EnvironmentFailed) as caught:
        shop.build(said.append)
    assert caught.value.details["stage"] == "compile"
    assert "danlu-tiny 1.0" in caught.value.message
    assert re.search(r"tiny\.c:2:\d+: error: .*missing", caught.value.message)
    assert "hint:" not in caught.value.message
    assert str(shop.home) not in caught.value.message
    assert "danlu env build" in caught.value.next_step
    assert any("tiny.c:2" in line for line in said)
    assert entries(shop.home) == []
    assert list((shop.home / "environments" / ".locks").iterdir()) == []
    assert not [path for path in (shop.home / "cache" / "wheels").rglob("*") if path.name != ".locks"]
    shop.offer()
    assert shop.seen(shop.build())


def test_a_source_with_another_hash_is_never_run(shop: Shop) -> None:
    shop.offer(digest="0" * 64, first=f"open({str(shop.home / 'ran')!r}, 'w')")
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash"):
        shop.build()
    assert not (shop.home / "ran").exists()
    assert entries(shop.home) == []


def test_a_link_in_a_wheels_place_is_not_followed(shop: Shop) -> None:
    secret = shop.home / "secret"
    secret.write_text("hidden")
    left = "../made/danlu_tiny-1.0-py3-none-any.whl"
    shop.offer(first=f"os.symlink({str(secret)!r}, {left!r})")
    with pytest.raises(EnvironmentFailed, match=r"made no wheel of that name, but: .*-py3-none-any"):
        shop.build()
    assert not shop.wheels()
    assert entries(shop.home) == []


def test_a_damaged_wheel_is_made_again(shop: Shop) -> None:
    shop.offer()
    shop.build()
    (wheel,) = shop.wheels()
    whole = wheel.stat().st_size
    wheel.write_bytes(b"")
    assert shop.seen(shop.build(root="others"), root="others")
    assert shop.wheels()[0].stat().st_size == pytest.approx(whole, rel=0.2)


def test_a_missing_compiler_is_named_with_its_package(shop: Shop) -> None:
    shop.offer(build=dataclasses.replace(TINY, programs={"cc": "gcc", "no-such-compiler": "no-such-package"}))
    with pytest.raises(EnvironmentFailed, match="no-such-compiler") as caught:
        shop.build()
    assert "apt install no-such-package;" in caught.value.next_step
    assert entries(shop.home) == []


def test_a_build_that_never_ends_is_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "COMPILE_TIMEOUT_S", 8.0)
    shop.offer(first="time.sleep(3600)")
    with pytest.raises(EnvironmentFailed, match="the most that a build may take"):
        shop.build()
    assert entries(shop.home) == []


def test_a_server_killed_while_it_compiles_leaves_nothing_in_the_way(shop: Shop) -> None:
    shop.offer()
    program = f"""
import os, signal
from pathlib import Path
from danlu.environments import sources
from danlu.environments.builder import Builder
from danlu.environments.catalogue import CATALOGUE, CatalogueEntry, SourceBuild
sources.FOLDER = Path({str(sources.FOLDER)!r})
CATALOGUE["tiny"] = {CATALOGUE["tiny"]!r}
def report(line):
    if "compiling" in line:
        os.kill(os.getpid(), signal.SIGKILL)
Builder(Path({str(shop.home / "environments")!r}), Path({str(shop.home / "cache" / "uv")!r})).build(
    sources.source_for("tiny", None, None), report)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert entries(shop.home) == []
    assert list((shop.home / "cache" / "wheels").glob(".new-*"))
    built = shop.build()
    assert not list((shop.home / "cache" / "wheels").glob(".new-*"))
    assert entries(shop.home) == [built.lock_digest]
    assert shop.seen(built)


def test_what_users_name_is_never_built_from_source(shop: Shop) -> None:
    shop.offer(first=f"open({str(shop.home / 'ran')!r}, 'w')")
    with pytest.raises(EnvironmentFailed, match="installs wheels only") as caught:
        shop.builder().build(source_for("python", "danlu-tiny==1.0\n", own_python()), lambda _: None)
    assert "wheel" in caught.value.next_step
    assert not (shop.home / "ran").exists()
