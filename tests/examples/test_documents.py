"""The commands of the documents work, and print what the documents show."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cluster, cannot_run
from tests.examples.documents import execute, matches, steps
from tests.examples.platform import ROOT, Platform
from tests.s3_server import S3Server

DOCUMENT_TIMEOUT_S = 200.0
NEEDS = {"docs/how-to/container-images.md": ("podman", "busybox")}
"""Programs that a document's commands need, beside danlu."""
ON_POSTGRESQL = {"docs/how-to/postgresql.md"}
"""Whose commands find one by PostgreSQL's own variables."""
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("[th]*/*.md")))
    if steps(path.read_text())
]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")


OBJECT_STORAGE = "docs/how-to/object-storage.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_true(
    name: str, fresh: Platform, examples: Path, index: None, request: pytest.FixtureRequest
) -> None:
    environ = dict(fresh.environ)
    if name == OBJECT_STORAGE:
        store: S3Server = request.getfixturevalue("s3_server")
        environ |= store.environment()
    if name in ON_POSTGRESQL:
        running: Cluster = request.getfixturevalue("own_cluster")
        environ |= {"PGHOST": str(running.folder), "PGUSER": "danlu"}
    lacking = [program for program in NEEDS.get(name, ()) if shutil.which(program) is None]
    if lacking:
        cannot_run(f"{', '.join(lacking)} is not installed")
    wrong = list(execute((ROOT / name).read_text(), examples.parent, environ, DOCUMENT_TIMEOUT_S))
    assert not wrong, f"{name}\n" + "\n\n".join(wrong)


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
        for link in LINK.findall(path.read_text())
        if not (path.parent / link).exists()
    ]
    assert not broken


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ([], "anything", True),
        (["a  b"], "  a b  \n", True),
        (["a ... c"], "a b b c", True),
        (["a ... c"], "a b", False),
        (["a", "...", "c"], "a\nb\nb\nc\n", True),
        (["a", "...", "c"], "a\nc\n", True),
        (["a", "c"], "a\nb\nc\n", False),
        (["a", "..."], "a\n", True),
        (["1.5 s"], "1x5 s", False),
        (["..."], "", True),
    ],
)
def test_output_is_compared(expected: list[str], printed: str, same: bool) -> None:
    assert matches(expected, printed) is same


def test_commands_share_one_shell_and_their_failure_is_told(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin"}
    good = "```console\n$ mkdir a && cd a && x=1\n$ echo $x; pwd >&2\n1\n.../a\n$ false # exit code 1\n```\n"
    assert list(execute(good, tmp_path, environ, 30)) == []
    assert "line 2: `false` ended with 1" in next(execute("```console\n$ false\n```\n", tmp_path, environ, 30))
    assert "printed:\nb" in next(execute("```console\n$ printf b\na\n```\n", tmp_path, environ, 30))
    assert "ended with -9" in next(execute("```console\n$ sleep 60\n```\n", tmp_path, environ, 0.2))
