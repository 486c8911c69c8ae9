"""What runs, or may run, what it reads: it has no place in the server's sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "src" / "danlu"
RUNS = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "torch",
    "jsonpickle",
    "jinja2",
    "mako",
}
OF_A_JOB = {"runner", "environments/smoke"}
"""These run beside the user's own code, never in the server."""


def unsafe(text: str) -> list[str]:
    """Returns what a source uses that runs, or may run, what it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        found += [name for name in names if name.partition(".")[0] in RUNS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append(called)
    return found


def test_nothing_that_is_read_runs() -> None:
    for path in SOURCES.rglob("*.py"):
        if not path.relative_to(SOURCES).as_posix().startswith(tuple(OF_A_JOB)):
            assert not unsafe(path.read_text()), path


@pytest.mark.parametrize("text", ["import pickle", "from torch import load", "import yaml; yaml.load(x)", "eval(x)"])
def test_what_runs_is_seen(text: str) -> None:
    assert unsafe(text)
