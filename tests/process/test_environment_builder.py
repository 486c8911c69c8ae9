"""Environments are really built by uv: once, whole or not at all, usable by other users, with uv's words when it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.environments import Environment, EnvironmentSource
from danlu.environments import builder as builder_module
from danlu.environments.builder import Builder, Built
from danlu.environments.sharing import SHARED
from danlu.environments.sources import source_digest, source_for
from danlu.errors import EnvironmentFailed, LaunchRejected, StorageFull
from danlu.executors.local import launcher
from tests.conftest import cannot_run
from tests.process.package_index import kept_folder, require_index

OTHER_UID = 200_000
PURE = "tabulate==0.9.0\n"  # pure Python, with a console script


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="danlu-environments-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def builder(home: Path) -> Builder:
    return made(home)


def made(home: Path) -> Builder:
    return Builder(home / "environments", kept_folder() / "uv")


def environment_of(source: EnvironmentSource, built: Built) -> Environment:
    return Environment(
        id="e1", project="p", name="x", source=source, source_digest=source_digest(source), lock_digest=built.lock_digest,
        created_at=1, updated_at=1,
    )  # fmt: skip


def entries(home: Path) -> list[str]:
    """What is in the folder of environments, but for the locks, what is shared, and uv's own Pythons."""
    return sorted(e.name for e in (home / "environments").iterdir() if e.name not in (".locks", ".python", SHARED))


def test_bare_python_is_built_without_an_index_and_found_again(home: Path, builder: Builder) -> None:
    source = source_for("python", None, None)
    said: list[str] = []
    built = builder.build(source, said.append)
    assert entries(home) == [built.lock_digest]
    assert (built.packages, built.python_version) == (0, ".".join(map(str, sys.version_info[:3])))
    assert built.size_bytes > 0
    found = builder.interpreter(environment_of(source, built))
    assert found is not None
    assert found.variables == {"VIRTUAL_ENV": str(home / "environments" / built.lock_digest)}
    assert Path(sys.base_prefix).resolve() in found.roots
    ran = subprocess.run([found.bin / "python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert ran.stdout.strip() == found.variables["VIRTUAL_ENV"]
    assert list((home / "environments" / ".locks").iterdir()) == []


def test_the_second_build_builds_nothing(home: Path, builder: Builder) -> None:
    require_index()
    source = source_for("python", PURE, None)
    first = builder.build(source, lambda _: None)
    folder = home / "environments" / first.lock_digest
    before = folder.stat().st_ino
    said: list[str] = []
    again = made(home).build(source, said.append)
    assert again.model_copy(update={"build_s": first.build_s}) == first
    assert folder.stat().st_ino == before
    assert any("there already" in line for line in said)
    assert not any("making" in line for line in said)


def test_requirements_are_installed_compiled_and_locked(home: Path, builder: Builder) -> None:
    require_index()
    said: list[str] = []
    source = source_for("python", PURE, None)
    built = builder.build(source, said.append)
    assert built.packages == 1
    assert any("tabulate==0.9.0" in line for line in said)
    assert not any(str(home) in line for line in said)
    folder = home / "environments" / built.lock_digest
    assert list(folder.glob("lib/*/site-packages/tabulate/__pycache__/*.pyc"))
    lock = (folder / builder_module.LOCK).read_text()
    assert "--hash=sha256:" in lock
    assert "://" not in lock


def test_any_user_can_read_and_run_it(home: Path, builder: Builder) -> None:
    require_index()
    source = source_for("python", PURE, None)
    before = os.umask(0o077)  # a server's own, strict
    try:
        built = builder.build(source, lambda _: None)
    finally:
        os.umask(before)
    folder = home / "environments" / built.lock_digest
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            assert mode & 0o777 in ((0o755,) if path.is_dir() else (0o644, 0o755)), path
    assert stat.S_IMODE((home / "environments").stat().st_mode) == 0o711
    if os.getuid() != 0:
        cannot_run("only root can become another user")
    found = builder.interpreter(environment_of(source, built))
    assert found is not None
    needed = [{"path": str(root), "write": False} for root in found.roots]
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(launcher.__file__).parents[3])!r})
from danlu.executors.local import launcher
launcher.mounts.open_closed({needed!r}, {OTHER_UID})
launcher.drop({OTHER_UID}, {OTHER_UID})
os.execve({str(found.bin / "tabulate")!r}, ["tabulate"], {{"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}})
"""
    command = [sys.executable, "-I", "-S", "-c", program]
    ran = subprocess.run(command, input="a b\n", capture_output=True, text=True, cwd="/")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "a  b" in ran.stdout


def test_unresolvable_requirements_show_uvs_reason(home: Path, builder: Builder) -> None:
    require_index()
    said: list[str] = []
    with pytest.raises(EnvironmentFailed) as caught:
        builder.build(source_for("python", "tabulate==0.9.0\ntabulate>0.9\n", None), said.append)
    assert caught.value.details["stage"] == "resolve"
    assert "tabulate==0.9.0" in caught.value.message
    assert "unsatisfiable" in caught.value.message
    assert str(home) not in caught.value.message
    assert any("unsatisfiable" in line for line in said)
    assert entries(home) == []


def test_a_package_without_wheels_is_refused_in_our_words(builder: Builder) -> None:
    require_index()
    with pytest.raises(EnvironmentFailed, match="installs wheels only") as caught:
        builder.build(source_for("python", "docopt==0.6.2\n", None), lambda _: None)
    assert "--no-build" not in caught.value.message
    assert "wheel" in caught.value.next_step


def test_a_python_that_nobody_has_is_named(builder: Builder, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(EnvironmentFailed, match=r"no Python 3\.99") as caught:
        made(home).build(EnvironmentSource(catalogue="python", python="3.99"), lambda _: None)
    assert caught.value.details["stage"] == "python"
    assert "python3.99" in caught.value.next_step
    assert entries(home) == []


@pytest.mark.parametrize("moment", ["resolving", "making", "Installed"])
def test_a_killed_build_leaves_nothing_and_the_next_one_works(home: Path, moment: str) -> None:
    require_index()
    program = f"""
import os, signal
from pathlib import Path
from danlu.environments.builder import Builder
from danlu.environments.sources import source_for
def report(line):
    if line.startswith({moment!r}):
        os.kill(os.getpid(), signal.SIGKILL)
Builder(Path({str(home / "environments")!r}), Path({str(kept_folder() / "uv")!r})).build(
    source_for("python", {PURE!r}, None), report)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert [name for name in entries(home) if not name.startswith(".new-")] == []
    assert entries(home)
    built = made(home).build(source_for("python", PURE, None), lambda _: None)
    assert entries(home) == [built.lock_digest]
    ran = subprocess.run([home / "environments" / built.lock_digest / "bin/python", "-c", "import tabulate"])
    assert ran.returncode == 0


def test_what_a_killed_build_left_goes_with_any_other_build(home: Path, builder: Builder) -> None:
    builder.build(source_for("python", None, None), lambda _: None)
    left = home / "environments" / (".new-" + "0" * 64)
    (left / "venv").mkdir(parents=True)
    builder.build(source_for("python", None, None), lambda _: None)
    assert not left.exists()


def test_two_at_once_build_once(home: Path) -> None:
    require_index()
    said: list[str] = []
    built: list[Built] = []
    source = source_for("python", PURE, None)
    threads = [threading.Thread(target=lambda: built.append(made(home).build(source, said.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({b.lock_digest for b in built}) == 1
    assert len(built) == 3
    assert sum("making" in line for line in said) == 1
    assert entries(home) == [built[0].lock_digest]


def test_what_the_report_raises_ends_the_build(home: Path, builder: Builder) -> None:
    class Enough(Exception):
        pass

    def report(line: str) -> None:
        if line.startswith("making"):
            raise Enough

    with pytest.raises(Enough):
        builder.build(source_for("python", None, None), report)
    assert entries(home) == []


def test_an_environment_whose_python_is_gone_is_not_used_and_built_again(home: Path, builder: Builder) -> None:
    source = source_for("python", None, None)
    built = builder.build(source, lambda _: None)
    python = home / "environments" / built.lock_digest / "bin" / "python"
    target = python.readlink()
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert builder.interpreter(environment_of(source, built)) is None
    assert builder.build(source, lambda _: None).lock_digest == built.lock_digest
    assert python.readlink() == target
    assert builder.interpreter(environment_of(source, built)) is not None
    (python.parent.parent / builder_module.FACTS).write_text("")
    assert made(home).interpreter(environment_of(source, built)) is None
    assert made(home).build(source, lambda _: None).lock_digest == built.lock_digest
    assert made(home).interpreter(environment_of(source, built)) is not None
    shutil.rmtree(python.parent.parent)
    assert builder.interpreter(environment_of(source, built)) is None


def test_a_full_disk_is_told_as_one(home: Path) -> None:
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        cannot_run("a small file system can be mounted by root only")
    require_index()
    program = f"""
import json, sys
from pathlib import Path
from danlu.environments.builder import Builder
from danlu.environments.sources import source_for
from danlu.errors import DanluError
try:
    Builder(Path({str(home)!r}, "environments"), Path({str(home)!r}, "cache")).build(source_for("sklearn", None, None), len)
except DanluError as error:
    print(json.dumps([error.code(), error.message]))
"""
    script = f"mount -t tmpfs -o size=3m none {home} && exec {sys.executable} -c '{program.replace(chr(39), chr(34))}'"
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert ran.stdout, ran.stderr
    code, message = json.loads(ran.stdout)
    assert code == StorageFull.code(), message


def test_the_host_interpreter_is_what_the_user_stands_in(builder: Builder, home: Path) -> None:
    found = builder.host(sys.executable)
    assert found.bin == Path(sys.executable).parent
    assert Path(sys.base_prefix).resolve() in found.roots
    if sys.prefix != sys.base_prefix:
        assert found.variables == {"VIRTUAL_ENV": sys.prefix}
        assert Path(sys.prefix) in found.roots


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing", None, "cannot be run: No such file"),
        ("plain", "#!/bin/sh\n", "cannot be run: Permission denied"),
        ("other", "#!/bin/sh\necho hello\n", "is not a Python"),
        (
            "old",
            '#!/bin/sh\necho \'[[3,6,15],"cpython","/usr","/usr","/usr","/usr/bin/python3"]\'\n',
            "needs 3.8 or later",
        ),
    ],
)
def test_a_host_interpreter_that_is_none_is_rejected(
    builder: Builder, home: Path, name: str, content: str | None, said: str
) -> None:
    path = home / name
    if content is not None:
        path.write_text(content)
        path.chmod(0o644 if name == "plain" else 0o755)
    with pytest.raises(LaunchRejected, match=said) as caught:
        builder.host(str(path))
    assert caught.value.next_step
    with pytest.raises(LaunchRejected, match="absolute"):
        builder.host("python3")
