"""What is taken down of a folder's repository: with the real git, and nothing that the repository names is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.cli import wording
from danlu.client.git import Looking, without_passwords
from danlu.domain.git import MAX_DIFF_BYTES, GitState
from danlu.domain.trees import address_of
from tests.conftest import cannot_run

LONG_S = 60.0
EVERYTHING = lambda _path: True  # noqa: E731 - as the callbacks that it stands for


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        cannot_run("git is not installed")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "a")
    git(folder, "config", "user.email", "a@example.org")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout


def commit(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def look(folder: Path, has: Callable[[str], bool] = EVERYTHING) -> tuple[GitState | None, bytes | None]:
    return Looking(folder, timeout_s=LONG_S).result(has, grace_s=LONG_S)


def test_a_clean_repository(repository: Path) -> None:
    made = commit(repository, a="1\n")
    git(repository, "remote", "add", "origin", "https://me:secret@example.org/team/code.git?token=x")
    (repository / "new").write_text("never added")  # it is in the code's tree
    state, diff = look(repository)
    assert state == GitState(commit=made, branch="main", remote="https://example.org/team/code.git", dirty=False)
    assert diff is None


def test_what_was_changed_since_can_be_applied(repository: Path, tmp_path: Path) -> None:
    made = commit(repository, changed="1\n", gone="2\n", staged="3\n", mode="4\n")
    (repository / "changed").write_text("one\n")
    (repository / "gone").unlink()
    (repository / "staged").write_text("three\n")
    git(repository, "add", "staged")
    (repository / "mode").chmod(0o755)
    state, diff = look(repository)
    assert state is not None
    assert diff is not None
    assert (state.commit, state.dirty, state.diff) == (made, True, address_of(diff))
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repository), str(other))
    (tmp_path / "diff").write_bytes(diff)
    git(other, "apply", str(tmp_path / "diff"))
    assert {path.name: path.read_text() for path in other.iterdir() if path.is_file()} == {
        "changed": "one\n", "staged": "three\n", "mode": "4\n",
    }  # fmt: skip
    assert os.access(other / "mode", os.X_OK)


def test_a_folder_of_a_repository(repository: Path) -> None:
    (repository / "src" / "app").mkdir(parents=True)
    commit(repository, **{"src/app/a": "1\n", "outside": "2\n"})
    (repository / "src/app/a").write_text("one\n")
    (repository / "outside").write_text("two\n")
    state, diff = look(repository / "src" / "app")
    assert state is not None
    assert (state.folder, state.dirty) == ("src/app", True)
    assert diff is not None
    assert b"+one" in diff
    assert b"two" not in diff  # it is not part of what is sent
    (repository / "scratch").mkdir()
    assert look(repository / "scratch") == (None, None)  # it only lies there


def test_what_is_left_out_of_the_code_is_left_out_here(repository: Path) -> None:
    names = ["kept", "secret.env", ":(glob)**", "new\nline", 'quo"te', "*"]
    commit(repository, **dict.fromkeys(names, "1\n"))
    for name in names:
        (repository / name).write_text(f"{name!a} changed\n")
    state, diff = look(repository, lambda path: path == "kept")
    assert state is not None
    assert diff is not None
    assert state.diff == address_of(diff)
    assert diff.count(b"diff --git") == 1
    assert b"'kept' changed" in diff


def test_without_a_commit(repository: Path) -> None:
    (repository / "a").write_text("1")
    git(repository, "add", "a")
    assert look(repository) == (GitState(branch="main", dirty=True), None)


def test_without_a_branch(repository: Path) -> None:
    made = commit(repository, a="1")
    git(repository, "checkout", "-q", "--detach")
    assert look(repository)[0] == GitState(commit=made, dirty=False)


def test_no_repository_bare_damaged_or_no_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    assert look(tmp_path / "plain") == (None, None)
    git(tmp_path, "init", "-q", "--bare", "bare")
    assert look(tmp_path / "bare") == (None, None)
    commit(repository, a="1")
    assert look(repository / ".git") == (None, None)
    (repository / ".git" / "HEAD").write_text("nonsense")
    assert look(repository) == (None, None)
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (repository / ".git" / "config").write_text("[core\n")
    assert look(repository) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path / "plain"))
    assert look(repository) == (None, None)


def test_a_worktree_and_a_submodule(repository: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    git(tmp_path, "clone", "-q", str(repository), str(inner))
    git(inner, "config", "user.name", "a")
    git(inner, "config", "user.email", "a@example.org")
    commit(inner, b="1\n")
    commit(repository, a="1\n")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    made = commit(repository)
    (repository / "sub" / "b").write_text("changed\n")
    state, _ = look(repository)
    assert state is not None
    assert (state.commit, state.dirty) == (made, False)  # what is in a submodule is the submodule's
    assert look(repository / "sub")[0] == GitState(
        commit=git(inner, "rev-parse", "HEAD").strip(), branch=state.branch and look(repository / "sub")[0].branch,  # type: ignore[union-attr]
        dirty=True, diff=look(repository / "sub")[0].diff,  # type: ignore[union-attr]
    )  # fmt: skip
    git(repository, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    assert look(tmp_path / "side")[0] == GitState(commit=made, branch="side", dirty=False)


def test_nothing_that_the_repository_names_is_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    commit(repository, a="1\n")
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$1\ncat\n")
    script.chmod(0o755)
    for name, word in (
        ("core.fsmonitor", "fsmonitor"), ("filter.evil.clean", "clean"), ("filter.evil.smudge", "smudge"),
        ("filter.evil.process", "process"), ("diff.evil.command", "command"), ("diff.evil.textconv", "textconv"),
        ("diff.external", "external"), ("core.pager", "pager"), ("pager.diff", "pager-diff"), ("core.sshCommand", "ssh"),
        ("core.alternateRefsCommand", "alternates"),
    ):  # fmt: skip
        git(repository, "config", name, f"{script} {word}")
    git(repository, "config", "filter.evil.required", "true")
    git(repository, "config", "diff.submodule", "diff")
    hooks = repository / ".git" / "hooks"
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{hook}\n")
        (hooks / hook).chmod(0o755)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"{script} environment")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    (repository / "a").write_text("2\n")
    before = (repository / ".git" / "index").read_bytes()
    state, diff = look(repository)
    assert [path.name for path in tmp_path.glob("ran-*")] == []
    assert (repository / ".git" / "index").read_bytes() == before  # nothing is written either
    assert state is not None
    assert state.dirty
    assert diff is not None
    assert b"+2" in diff


def test_a_filter_that_cannot_be_turned_off_ends_it(repository: Path) -> None:
    commit(repository, a="1\n")
    with (repository / ".git" / "config").open("a") as file:
        file.write('[filter "a=b"]\n\tclean = touch ran\n')
    assert look(repository) == (None, None)


def test_too_much_is_left_out_and_said(repository: Path) -> None:
    made = commit(repository, a="")
    (repository / "a").write_text("x\n" * MAX_DIFF_BYTES)
    state, diff = look(repository)
    assert diff is None
    assert state is not None
    assert (state.commit, state.dirty, state.diff) == (made, True, None)
    assert str(MAX_DIFF_BYTES) in state.note
    assert any("larger" in line for line in wording.git(state))


@pytest.mark.parametrize("slow", ["rev-parse", "status", "diff"])
def test_a_slow_git_keeps_nobody_waiting(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    made = commit(repository, a="1\n")
    (repository / "a").write_text("2\n")
    real, bin_folder = shutil.which("git"), tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "git").write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = {slow} ] && sleep 600; done\nexec {real} "$@"\n'
    )
    (bin_folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    began = time.monotonic()
    looking = Looking(repository, timeout_s=LONG_S)
    # until the slow one runs; what is known by then is told
    if slow != "rev-parse":
        while looking._state is None or (slow == "diff" and looking._state.dirty is None):
            assert time.monotonic() - began < LONG_S
            looking._thread.join(0.01)
    state, diff = looking.result(EVERYTHING, grace_s=0.2)
    assert time.monotonic() - began < LONG_S
    assert diff is None
    assert not looking._thread.is_alive()
    if slow == "rev-parse":
        assert state is None
    else:
        assert state is not None
        assert (state.commit, state.dirty) == (made, True if slow == "diff" else None)
        assert "too long" in state.note


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("git@example.org:team/code.git", "git@example.org:team/code.git"),
        ("https://example.org/a.git", "https://example.org/a.git"),
        ("https://token@example.org:8443/a.git", "https://example.org:8443/a.git"),
        ("https://me:pass@word@example.org/a", "https://example.org/a"),
        ("ssh://git:secret@example.org:22/a", "ssh://git@example.org:22/a"),
        ("https://[::1]:80/a#secret", "https://[::1]:80/a"),
        ("/home/me/code", None),
        ("file:///home/me/code", None),
        ("ext::sh -c 'echo secret'", None),
        ("https://example.org:port/a", None),
        ("https://[::1/a", None),
        ("me:secret@example.org:a", None),
        ("", None),
    ],
)
def test_a_remote_is_told_without_passwords(remote: str, shown: str | None) -> None:
    assert without_passwords(remote) == shown


def test_it_is_told_in_words() -> None:
    state = GitState(commit="a" * 40, branch="main", remote="https://example.org/a", folder="src", dirty=True)
    assert wording.git(state) == ["main  aaaaaaaaaaaa  https://example.org/a  folder src  with uncommitted changes"]
    assert wording.git(GitState(dirty=True, branch="main"))[0].startswith("main  no commit yet")
