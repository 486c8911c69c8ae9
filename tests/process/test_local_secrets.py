"""Secrets of attempts of this machine: they reach the job, and nothing else that can be read later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.secrets import HandedSecret
from danlu.errors import ExecutorUnavailable, LaunchRejected
from danlu.executors.base import Phase
from danlu.executors.local import sweep
from danlu.executors.local.groups import AttemptGroups
from danlu.executors.local.memory import SHARED, Memory, file_system
from tests.executors import LocalBench

TOKEN = "hf_AbCdEfGhIjKl"
KEY = "-----BEGIN KEY-----\nAAAAB3NzaC1yc2EAAAADAQABAAAB\n-----END KEY-----\n"
HANDED = (
    HandedSecret(variable="HF_TOKEN", value=TOKEN),
    HandedSecret(variable="DEPLOY_KEY", value=KEY, file=True),
)


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBench]:
    folder: Path = tmp_path_factory.mktemp("home")
    for parent in [folder, *folder.parents[:3]]:
        if parent != Path("/tmp") and parent.stat().st_mode & 0o077 == 0:
            parent.chmod(0o711)
    made = LocalBench(folder)
    yield made
    made.close()
    if (base := made.executor._memory.base) is not None:
        shutil.rmtree(base, ignore_errors=True)


def in_memory(bench: LocalBench) -> list[str]:
    base = bench.executor._memory.base
    return sorted(str(path.relative_to(base)) for path in base.rglob("*")) if base is not None else []


def on_disk(bench: LocalBench) -> list[str]:
    """Returns the files of the data folder with a secret in them."""
    files = [path for path in bench.home.rglob("*") if path.is_file() and not path.is_symlink()]
    lines = [TOKEN.encode(), *KEY.encode().splitlines()]
    return sorted({str(path.relative_to(bench.home)) for path in files for line in lines if line in path.read_bytes()})


def told_by_processes() -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if TOKEN.encode() in line or b"AAAAB3NzaC1yc2E" in line:
                found.append(process.name)
    return found


PRINTS = """
test -n "$HF_TOKEN" || exit 3
test "$(stat -c %a "$DEPLOY_KEY" 2>/dev/null)" = 600 || exit 4
grep -q ADAQABAAAB "$DEPLOY_KEY" || exit 5
echo "token: $HF_TOKEN"
echo "error with $HF_TOKEN in it" >&2
cat "$DEPLOY_KEY"
head -c 70000 /dev/zero | tr '\\0' x; printf '%s' "$HF_TOKEN"; head -c 70000 /dev/zero | tr '\\0' y; echo
printf 'hf_AbCdE'; sleep 1.3; printf 'fGhIjKl\\n'
printf 'https://user:%s@host/\\r\\n' "$HF_TOKEN"
"""


def test_a_job_has_them_and_its_log_has_not(bench: LocalBench) -> None:
    attempt_id = bench.launch(
        "/bin/sh",
        "-c",
        PRINTS + "echo held; read -r _ < /dev/null; while [ ! -e go ]; do sleep 0.05; done",
        handed=HANDED,
    )
    bench.printed(attempt_id, "held")
    assert in_memory(bench) == [attempt_id, f"{attempt_id}/DEPLOY_KEY"]
    assert told_by_processes() == []
    work = f"attempts/{attempt_id}/main-0"
    assert set(on_disk(bench)) <= {f"{work}/stdout", f"{work}/stderr"}  # what the process itself has written
    (bench.home / "attempts" / attempt_id / "work" / "go").touch()
    seen = bench.end(attempt_id)
    log = bench.log(attempt_id)
    assert [task.exit_code for task in seen.tasks] == [0], log
    hidden = "*" * len(TOKEN)
    for line in (f"token: {hidden}", f"error with {hidden} in it", "*" * 28, f"https://user:{hidden}@host/"):
        assert line in log.splitlines()
    assert "x" * 100 + hidden[:5] in log.replace("\n", "")
    assert in_memory(bench) == []
    bench.executor.forget(attempt_id)
    assert on_disk(bench) == []


def test_the_last_words_of_a_failed_task_hold_none(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", 'echo "cannot log in with $HF_TOKEN" >&2; exit 1', handed=HANDED)
    seen = bench.end(attempt_id)
    assert seen.tasks[0].last_lines == "cannot log in with " + "*" * len(TOKEN)
    assert TOKEN not in seen.model_dump_json()


def test_a_command_with_a_secret_in_its_name_is_not_told(bench: LocalBench) -> None:
    attempt_id = bench.launch(f"./{TOKEN}", handed=HANDED)
    seen = bench.end(attempt_id)
    assert seen.tasks[0].exit_code == 127
    assert "command not found: ./" + "*" * len(TOKEN) in seen.tasks[0].error


def test_a_task_that_is_started_again_has_them_again(bench: LocalBench) -> None:
    script = 'test "$HF_TOKEN" && test -s "$DEPLOY_KEY" && echo "life $DANLU_RESTART" && exit $((1 - DANLU_RESTART))'
    role = {"command": ["/bin/sh", "-c", script], "restarts": 1}
    attempt_id = bench.launch("none", roles={"worker": role}, framework="none", handed=HANDED)
    assert [task.exit_code for task in bench.end(attempt_id).tasks] == [0]
    assert "life 1" in bench.log(attempt_id)


def test_a_killed_runner_leaves_none(bench: LocalBench) -> None:
    bench.to_redact = (TOKEN, KEY)
    attempt_id = bench.launch(
        "/bin/sh", "-c", 'echo up; while [ ! -e go ]; do sleep 0.05; done; echo "$HF_TOKEN"; sleep 60', handed=HANDED
    )
    bench.printed(attempt_id, "up")
    stdout = bench.home / "attempts" / attempt_id / "main-0" / "stdout"
    os.kill(bench.runner_pid(attempt_id), 19)  # SIGSTOP: it follows no more
    (bench.home / "attempts" / attempt_id / "work" / "go").touch()
    bench.until(lambda: TOKEN.encode() in stdout.read_bytes())
    bench.lose(attempt_id)
    assert bench.end(attempt_id).phase is Phase.LOST
    assert "*" * len(TOKEN) in bench.log(attempt_id)
    assert TOKEN not in bench.log(attempt_id)
    assert in_memory(bench) == []


def test_another_server_removes_what_is_left_and_keeps_what_runs(bench: LocalBench) -> None:
    attempt_id = bench.launch(
        "/bin/sh", "-c", 'echo up; while [ ! -e go ]; do sleep 0.05; done; test -s "$DEPLOY_KEY"', handed=HANDED
    )
    bench.printed(attempt_id, "up")
    base = bench.executor._memory.base
    assert base is not None
    (base / "j0-1").mkdir()
    bench.again()
    assert in_memory(bench) == [attempt_id, f"{attempt_id}/DEPLOY_KEY"]
    (bench.home / "attempts" / attempt_id / "work" / "go").touch()
    assert [task.exit_code for task in bench.end(attempt_id).tasks] == [0]


def test_where_nothing_is_in_memory_a_file_is_refused(bench: LocalBench) -> None:
    bench.executor._memory.base = None
    with pytest.raises(LaunchRejected, match="file in memory"):
        bench.launch("true", handed=HANDED)
    assert bench.end(bench.launch("/bin/sh", "-c", 'test "$HF_TOKEN"', handed=HANDED[:1])).tasks[0].exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_a_strangers_folder_is_not_taken(tmp_path: Path, bench: LocalBench) -> None:
    memory = Memory((SHARED / f"danlu-test-{os.getpid()}",))
    assert memory.base is not None
    memory.base.mkdir()
    os.chown(memory.base, 12345, 12345)
    try:
        with pytest.raises(ExecutorUnavailable, match="belongs to another user"):
            memory.make(bench.order("true", handed=HANDED), 12345)
    finally:
        memory.base.rmdir()


def test_file_systems_are_told() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(SHARED / "nothing") == "tmpfs"


def test_what_runs_is_killed_before_its_secrets_are_removed(bench: LocalBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a program in its last moments fails at a file that is gone, or puts one back that nobody removes."""
    attempt_id = bench.launch("/bin/sh", "-c", "echo up; sleep 60", handed=HANDED)
    bench.printed(attempt_id, "up")
    answers, found = [False, True], []

    def kills(*_: object) -> bool:
        found.append(in_memory(bench))
        return answers.pop(0)

    monkeypatch.setattr(AttemptGroups, "kill", kills)
    monkeypatch.setattr(sweep, "kill", kills)
    assert not bench.executor._clean(attempt_id)
    assert in_memory(bench) == [attempt_id, f"{attempt_id}/DEPLOY_KEY"], "a process of it is still there"
    assert bench.executor._clean(attempt_id)
    assert found == [[attempt_id, f"{attempt_id}/DEPLOY_KEY"]] * 2
    assert in_memory(bench) == []


def test_a_checkpoint_that_is_named_by_a_secret_is_not_told(bench: LocalBench) -> None:
    job_id = bench.ids()
    saves = 'cd "$DANLU_CHECKPOINT_DIR"; echo "{}" > "$HF_TOKEN.json"; echo "{" > "$HF_TOKEN-2.json"; kill -9 $$'
    bench.end(bench.launch("/bin/sh", "-c", saves, handed=HANDED, job_id=job_id))
    attempt_id = bench.launch("/bin/sh", "-c", 'test -e "$DANLU_RESUME_FROM"', handed=HANDED, job_id=job_id, number=2)
    seen = bench.end(attempt_id)
    assert seen.tasks[0].exit_code == 0
    assert seen.resumed_from == "*" * len(TOKEN) + ".json"
    assert TOKEN.encode() not in (bench.home / "attempts" / attempt_id / "status").read_bytes()
