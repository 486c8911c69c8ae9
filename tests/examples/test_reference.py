"""docs/reference/ is what docs/generate.py makes of the code, and says all of it."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest

from danlu.domain.environments import EnvironmentReason, EnvironmentState
from danlu.domain.jobs import AttemptState, JobState, Reason
from tests.examples.platform import ROOT, Platform

BY_HAND = {"performance.md", "signing.md", "trace.md"}
VARIABLE = re.compile(r'environ(?:\.get\(|\[)"([A-Z_]+)"')
OF_A_SHELL = {"PWD", "SHLVL", "OLDPWD", "_", "LC_CTYPE"}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    specification = importlib.util.spec_from_file_location("danlu_docs_generate", ROOT / "docs" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(generate: ModuleType) -> None:
    files: dict[Any, str] = generate.files()
    stale = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
    assert not stale, "run: make docs"
    kept = {path.name for path in (ROOT / "docs" / "reference").iterdir()}
    assert kept - BY_HAND == {path.name for path in files}


def test_every_state_and_reason_has_a_meaning(generate: ModuleType) -> None:
    for codes, meanings in (
        (JobState, generate.JOB_STATES),
        (AttemptState, generate.ATTEMPT_STATES),
        (EnvironmentState, generate.ENVIRONMENT_STATES),
        (Reason, generate.REASONS),
        (EnvironmentReason, generate.ENVIRONMENT_REASONS),
    ):
        assert set(meanings) == set(codes)


@pytest.mark.parametrize("layer", ["cli", "client", "server", "config.py", "__init__.py"])
def test_every_variable_that_is_read_is_named(generate: ModuleType, layer: str) -> None:
    place = ROOT / "src" / "danlu" / layer
    read = {
        name
        for path in ([place] if place.is_file() else place.rglob("*.py"))
        for name in VARIABLE.findall(path.read_text())
    }
    assert read - {"XDG_DATA_HOME", "TERM"} <= {*generate.COMMAND_LINE, *generate.SERVER, *generate.IN_A_JOB}


@pytest.mark.slow
def test_a_job_finds_the_variables_that_are_named(generate: ModuleType, platform: Platform) -> None:
    said = platform.danlu(
        "run", "--no-code", "--cpu", "1", "--worker", "1", "--", "python", "-c", "import os; print(*os.environ)"
    )
    found = set(said.split()) - OF_A_SHELL
    of_arrays = {name for name in generate.IN_A_JOB if "_ARRAY_" in name}
    assert found == set(generate.IN_A_JOB) - {"DANLU_RESUME_FROM"} - of_arrays
