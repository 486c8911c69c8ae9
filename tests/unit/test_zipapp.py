"""The runner as one file: the same bytes for the same sources, and it runs on Python 3.8."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from danlu.executors.kubernetes import zipapp
from tests.unit.test_sdk import python38

CONFIG_MAP_BYTES = 1 << 20


def test_the_same_sources_are_the_same_file() -> None:
    first = zipapp.build()
    zipapp.build.cache_clear()
    assert zipapp.build() == first
    assert zipapp.name(first) == zipapp.name(zipapp.build())
    assert zipapp.name(first) != zipapp.name(first + b"x")
    assert len(zipapp.name(first)) <= 63


def test_it_fits_into_a_config_map() -> None:
    assert len(zipapp.build()) * 4 / 3 < CONFIG_MAP_BYTES / 2


def test_it_has_what_jobs_may_import(tmp_path: Path) -> None:
    (tmp_path / "runner.pyz").write_bytes(zipapp.build())
    with zipfile.ZipFile(tmp_path / "runner.pyz") as archive:
        names = archive.read("names").decode().split()
        assert {"danlu/__init__.py", "danlu/runner/__init__.py", "danlu/runner/agent.py"} <= set(names)
        assert set(names) | {"names", "__main__.py"} == set(archive.namelist())


@pytest.mark.parametrize("python", [sys.executable, "3.8"])
def test_it_runs_by_itself(tmp_path: Path, python: str) -> None:
    (tmp_path / "runner.pyz").write_bytes(zipapp.build())
    command = [python38() if python == "3.8" else python, "-I", "-S", "-W", "error", "runner.pyz"]
    done = subprocess.run([*command, "nothing"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: runner.pyz pod" in done.stderr
    environ = {"DANLU_POD_ROOT": str(tmp_path)}
    done = subprocess.run([*command, "pod"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "danlu: the pod cannot begin: FileNotFoundError" in done.stderr


def test_an_older_python_says_so() -> None:
    program = "import sys; sys.version_info = (3, 7, 4); exec(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, zipapp.ENTRY.decode()], capture_output=True, text=True, check=False
    )
    assert done.returncode == zipapp.TOO_OLD
    assert done.stderr == "danlu: the python3 of this image is 3.7, and the runner needs 3.8 or later\n"
    ast.parse(zipapp.ENTRY, feature_version=(3, 4))  # it is read before it can say so
