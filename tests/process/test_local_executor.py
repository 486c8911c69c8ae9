"""The local executor with real processes: limits, isolation, ends that leave nothing, output that is never lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.isolation import Layer
from danlu.errors import StorageFull
from danlu.executors.base import Observation, Phase
from danlu.runner import formats
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.factories import SECOND

MIB = 2**20
ROOT = os.geteuid() == 0


def opened(folder: Path) -> Path:
    """Lets every user pass to a folder below pytest's."""
    for parent in [folder, *folder.parents]:
        if parent == Path("/tmp"):
            break
        if parent.stat().st_mode & 0o011 != 0o011 and parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode & 0o777 | 0o111)
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = LocalBench(opened(home))
    yield bench
    bench.close()


def python(bench: LocalBench, program: str, **fields: Any) -> str:
    return bench.launch("python", "-c", program, **fields)


def task(seen: Observation) -> Any:
    return seen.tasks[0]


def carrying(mark: str) -> set[int]:
    """Returns the processes that have ``mark`` in their arguments or environment."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes():
                    found.add(int(folder.name))
    return found


def need_root() -> None:
    if not ROOT:
        cannot_run("only root can run jobs as other users")


def need_limit(bench: LocalBench, attempt_id: str, limit: str) -> None:
    seen = bench.see(attempt_id)
    if seen is None or f"{limit}-limit" not in seen.limits:
        cannot_run(f"this machine lets no {limit} limit be set")


# ends


@pytest.mark.parametrize("code", [1, 42, 255])
def test_exit_codes(bench: LocalBench, code: int) -> None:
    seen = bench.end(bench.launch("/bin/sh", "-c", f"exit {code}"))
    assert (task(seen).exit_code, task(seen).signal, seen.stopped) == (code, None, False)


def test_a_command_that_is_not_found_is_guessed(bench: LocalBench) -> None:
    attempt_id = bench.launch("pythn", "train.py")
    seen = bench.end(attempt_id)
    assert task(seen).exit_code == 127
    assert task(seen).error == "command not found: pythn (did you mean python?)"
    assert bench.log(attempt_id) == task(seen).error


def test_what_is_not_executable_is_told(bench: LocalBench) -> None:
    seen = bench.end(bench.launch("/etc/passwd"))
    assert (task(seen).exit_code, task(seen).error) == (126, "cannot execute /etc/passwd: Permission denied")


def test_max_time_ends_it(bench: LocalBench) -> None:
    seen = bench.end(
        bench.launch("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", max_time=0.5, grace=0.5)
    )
    assert (seen.timed_out, seen.stopped, task(seen).signal) == (True, False, 9)
    assert "max_time of 0.5 s" in seen.message


# limits


EAT = "import os; x = []\nwhile True: x.append(bytearray(os.urandom(1 << 20)))"


def test_lack_of_memory_is_told_from_a_kill(bench: LocalBench) -> None:
    attempt_id = python(bench, EAT, memory="64MiB")
    need_limit(bench, attempt_id, "memory")
    seen = bench.end(attempt_id)
    assert (task(seen).oom, task(seen).signal) == (True, 9)
    assert "of its 64.0 MiB" in task(seen).error
    assert 32 * MIB < task(seen).peak_memory_bytes <= 64 * MIB
    seen = bench.end(bench.launch("/bin/sh", "-c", "kill -9 $$", memory="64MiB"))
    assert (task(seen).oom, task(seen).signal) == (False, 9)


def test_lack_of_memory_below_a_shell_is_told(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", f"python -c '{EAT}'; exit $?", memory="64MiB")
    need_limit(bench, attempt_id, "memory")
    seen = bench.end(attempt_id)
    assert (task(seen).oom, task(seen).exit_code) == (True, 137)


def test_the_cpu_limit_is_in_force_and_use_is_recorded(bench: LocalBench) -> None:
    burn = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nx = b'x' * (40 << 20)"
    attempt_id = python(bench, burn, cpu=0.2)
    need_limit(bench, attempt_id, "cpu")
    seen = bench.end(attempt_id)
    assert 0 < task(seen).cpu_ns < 0.7 * SECOND
    assert task(seen).peak_memory_bytes > 40 * MIB


def test_what_was_not_asked_for_is_not_claimed(bench: LocalBench) -> None:
    seen = bench.end(bench.launch("/bin/true"))
    assert not {"memory-limit", "cpu-limit"} & set(seen.limits)
    assert "no-new-privileges" in seen.limits
    assert ("separate-user" in seen.limits) == ROOT


# nothing is left

ESCAPE = """
import os, signal, sys, time
def daemon(depth):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if os.fork() == 0:
            os.closerange(0, 100)
            if depth: daemon(depth - 1)
            os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(1000)", MARK], ENV)
        os._exit(0)
daemon(2)
print("up", flush=True)
"""


def escaping(bench: LocalBench, then: str, *, hidden: bool = False) -> tuple[str, str]:
    mark = f"mark-{bench.ids()}"
    env = "{}" if hidden else "dict(os.environ)"
    attempt_id = python(bench, ESCAPE.replace("MARK", repr(mark)).replace("ENV", env) + then)
    bench.printed(attempt_id, "up")
    return attempt_id, mark


def test_daemons_are_gone_when_it_has_ended(bench: LocalBench) -> None:
    attempt_id, mark = escaping(bench, "while not os.path.exists('go'): time.sleep(0.01)")
    bench.until(lambda: len(carrying(mark)) >= 3)
    (bench.home / "attempts" / attempt_id / "work" / "go").touch()
    assert bench.end(attempt_id).phase is Phase.ENDED
    assert carrying(mark) == set()


def test_daemons_are_gone_when_it_was_stopped(bench: LocalBench) -> None:
    attempt_id, mark = escaping(bench, "time.sleep(1000)")
    bench.until(lambda: len(carrying(mark)) >= 3)
    bench.executor.stop(attempt_id, grace_s=0.2)
    assert bench.end(attempt_id).stopped
    assert carrying(mark) == set()


def test_daemons_are_gone_when_the_runner_was_killed(bench: LocalBench) -> None:
    attempt_id, mark = escaping(
        bench, "time.sleep(1000)", hidden=Layer.MEMORY_LIMIT in bench.executor.capabilities.layers
    )
    bench.until(lambda: len(carrying(mark)) >= 3)
    bench.lose(attempt_id)
    assert bench.end(attempt_id).phase is Phase.LOST
    assert carrying(mark) == set()


def test_its_own_process_dies_with_the_runner_unseen_by_any_server(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", "echo up; exec sleep 1000")
    bench.printed(attempt_id, "up")
    pid = next(event["pid"] for event in bench.events(attempt_id) if event["event"] == "started")
    bench.executor.close()
    bench.lose(attempt_id)
    bench.until(lambda: formats.start_time(pid) is None)
    bench.again()
    assert bench.end(attempt_id).phase is Phase.LOST


def test_a_stopped_tree_still_dies(bench: LocalBench) -> None:
    mark = f"mark-{bench.ids()}"
    attempt_id = bench.launch(
        "/bin/sh", "-c", f"(sleep 1000; : {mark}) & echo up; kill -STOP $! $$; sleep 1000; : {mark}"
    )
    bench.printed(attempt_id, "up")
    pid = next(event["pid"] for event in bench.events(attempt_id) if event["event"] == "started")
    bench.until(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())
    bench.executor.stop(attempt_id, grace_s=0.3)
    bench.end(attempt_id)
    assert carrying(mark) == set()


@pytest.mark.parametrize("how", ["stop", "lose"])
def test_a_fork_bomb_dies(bench: LocalBench, how: str) -> None:
    mark = f"mark-{bench.ids()}"
    bomb = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "while True:\n  try: os.fork()\n  except OSError: pass"
    )
    attempt_id = bench.launch("python", "-S", "-c", bomb, mark)
    bench.printed(attempt_id, "up")
    need_limit(bench, attempt_id, "pids")
    groups = bench.executor._group(attempt_id)
    assert groups is not None
    group = groups.whole
    (group.folders["pids"] / "pids.max").write_text("150")
    (bench.home / "attempts" / attempt_id / "work" / "go").touch()
    bench.until(lambda: len(group.processes()) > 100)
    if how == "stop":
        bench.executor.stop(attempt_id, grace_s=0.1)
    else:
        bench.lose(attempt_id)
    assert bench.end(attempt_id).phase is (Phase.ENDED if how == "stop" else Phase.LOST)
    assert group.processes() == set()
    assert carrying(mark) == set()


def test_groups_are_removed_when_it_is_forgotten(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/true")
    bench.end(attempt_id)
    group = bench.executor._group(attempt_id)
    bench.executor.forget(attempt_id)
    assert not (bench.home / "attempts" / attempt_id).exists()
    assert group is None or not any(folder.exists() for folder in group.whole.places)


# what a job sees


def test_the_environment_is_the_platforms_and_the_users_only(bench: LocalBench) -> None:
    os.environ["SERVER_SECRET_OF_TEST"] = "secret"
    try:
        attempt_id = python(
            bench,
            "import os, json; print(json.dumps(dict(os.environ)))",
            variables={"MINE": "1"},
            task={"devices": (0, 2)},
        )
    finally:
        del os.environ["SERVER_SECRET_OF_TEST"]
    bench.end(attempt_id)
    env = json.loads(bench.log(attempt_id))
    folder = bench.home / "attempts" / attempt_id
    assert "SERVER_SECRET_OF_TEST" not in env
    assert "danlu_attempt_secret" not in str(env)
    assert (env["MINE"], env["CUDA_VISIBLE_DEVICES"]) == ("1", "0,2")
    assert env["DANLU_ATTEMPT_ID"] == attempt_id
    assert env["DANLU_JOB_ID"] == attempt_id.rpartition("-")[0]
    assert (env["DANLU_ATTEMPT"], env["DANLU_ROLE"], env["DANLU_INDEX"], env["DANLU_RANK"]) == ("1", "main", "0", "0")
    assert (env["DANLU_TASK"], env["DANLU_WORLD_SIZE"], env["DANLU_URL"]) == ("main-0", "1", "http://127.0.0.1:1")
    assert env["DANLU_OUTPUT_DIR"] == str(folder / "outputs")
    assert Path(env["DANLU_CHECKPOINT_DIR"]).parent == bench.home / "checkpoints"
    assert env["HOME"] == env["PWD"] if "PWD" in env else str(folder / "work")
    assert not {"SUDO_USER", "PYTEST_CURRENT_TEST", "SHELL"} & set(env)
    assert (env["USER"], env["LOGNAME"]) == ("danlu", "danlu"), "a name for libraries that ask, not the server's"


def test_without_gpus_none_is_visible_and_the_user_cannot_change_that(bench: LocalBench) -> None:
    attempt_id = bench.launch(
        "/bin/sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES]"', variables={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    )
    bench.end(attempt_id)
    assert bench.log(attempt_id) == "[]"


OPEN_FILES = """
import os
for number in range(4096):
    try:
        print(number, os.readlink("/proc/self/fd/%d" % number))
    except FileNotFoundError:
        pass
print("%04o" % os.umask(0), os.getcwd(), sep=chr(10))
"""


def test_nothing_is_inherited_but_three_files(bench: LocalBench) -> None:
    with (bench.home / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        attempt_id = python(bench, OPEN_FILES)
        bench.end(attempt_id)
    folder = bench.home / "attempts" / attempt_id
    files = dict(line.split(" ", 1) for line in bench.log(attempt_id).split("\n")[:-2])
    assert files == {"0": "/dev/null", "1": str(folder / "main-0/stdout"), "2": str(folder / "main-0/stderr")}
    assert bench.log(attempt_id).split("\n")[-2:] == ["0077", str(folder / "work")]


def test_the_token_is_in_a_file_of_its_own(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", "cat $DANLU_TOKEN_FILE; stat -c %a $DANLU_TOKEN_FILE")
    bench.end(attempt_id)
    assert bench.log(attempt_id) == "danlu_attempt_secret600"


def test_a_job_is_its_projects_user_and_sees_nothing_of_others(bench: LocalBench) -> None:
    need_root()
    keys = bench.home / "keys"
    keys.mkdir(mode=0o700)
    (keys / "bootstrap").write_text("key")
    holding = bench.order("/bin/sh", "-c", "echo mine > secret; chmod 644 secret; echo up; while :; do sleep 0.1; done")
    bench.executor.launch(holding)
    bench.printed(holding.attempt.id, "up")
    other = bench.home / "attempts" / holding.attempt.id
    order = bench.order("/bin/sh", "-c", (
        f"id -u; id -G; cat {other}/work/secret {other}/token {keys}/bootstrap; ls {other} {bench.home}/attempts; "
        "ls /root; cat /etc/shadow; kill -9 1; kill -9 $PPID; echo end"
    ))  # fmt: skip
    order = order.model_copy(update={"project_number": 7})
    bench.executor.launch(order)
    seen = bench.end(order.attempt.id)
    lines = bench.log(order.attempt.id).split("\n")
    assert lines[:2] == ["200007", "200007"]
    assert "mine" not in lines
    assert "key" not in lines
    assert not any(line.startswith("root:") for line in lines)
    refused = ("denied", "not permitted", "No such file")
    assert sum(any(word in line for word in refused) for line in lines) >= 6
    assert seen.phase in (Phase.ENDED, Phase.LOST)  # it may kill its own runner, nobody else's
    bench.executor.stop(holding.attempt.id, grace_s=0.1)


def test_the_interpreter_works_below_a_closed_folder(bench: LocalBench, tmp_path: Path) -> None:
    need_root()
    attempt_id = python(bench, "import sys, ssl, json; print(sys.prefix)")
    seen = bench.end(attempt_id)
    assert task(seen).exit_code == 0, bench.log(attempt_id)
    assert bench.log(attempt_id) == sys.prefix


# output


def test_every_flushed_line_is_kept_once_whenever_the_runner_is_killed(bench: LocalBench) -> None:
    chance = random.Random(7)
    program = "i = 0\nwhile True:\n  print(i, flush=True)\n  i += 1"
    attempts = [python(bench, program) for _ in range(6)]
    for attempt_id in attempts:
        raw = bench.home / "attempts" / attempt_id / "main-0" / "stdout"
        wanted = chance.choice([1, 1000, 100_000])
        bench.until(lambda raw=raw, wanted=wanted: raw.exists() and raw.stat().st_size > wanted)  # type: ignore[misc]
        bench.lose(attempt_id)
    for attempt_id in attempts:
        assert bench.end(attempt_id).phase is Phase.LOST
        written = (bench.home / "attempts" / attempt_id / "main-0" / "stdout").stat().st_size
        text = bench.log(attempt_id)
        lines = text.split("\n")
        assert len(text) + 1 in (written, written + 1)
        assert lines[:-1] == [str(number) for number in range(len(lines) - 1)]


def test_a_million_lines_are_all_there(bench: LocalBench) -> None:
    attempt_id = python(bench, "import sys\nsys.stdout.reconfigure(line_buffering=False, write_through=False)\n"
                               "for i in range(1_000_000): sys.stdout.write('line %d\\n' % i)")  # fmt: skip
    bench.end(attempt_id)
    offset = count = 0
    rest = b""
    for piece in bench.executor.pending(attempt_id, max_bytes=4 * MIB):
        assert piece.offset == offset
        offset += len(piece.data)
        *whole, rest = (rest + piece.data).split(b"\n")
        assert [line.split(b" ", 2)[2] for line in whole] == [b"line %d" % n for n in range(count, count + len(whole))]
        count += len(whole)
        bench.executor.collected(piece, durably=lambda: None)
    assert (count, rest) == (1_000_000, b"")
    assert len(list((bench.home / "attempts" / attempt_id / "main-0" / "spool").glob("log.*"))) == 1


def test_past_its_limit_output_is_counted(bench: LocalBench) -> None:
    attempt_id = python(bench, "for i in range(20_000): print('%09d' % i)", log_limit="100KiB")
    bench.end(attempt_id)
    *lines, limit, count = bench.log(attempt_id).split("\n")
    assert lines == [f"{number:09d}" for number in range(len(lines))]
    assert limit == "output limit of 100.0 KiB reached: what follows is counted, not kept"
    assert count == f"{200_000 - 10 * len(lines)} bytes of output were dropped past the limit"


def test_metrics_come_by_log_and_by_print(bench: LocalBench) -> None:
    program = "import danlu\ndanlu.log(step=1, loss=0.5)\nprint('step=2 loss=0.25')"
    for parse, steps in ((False, [1]), (True, [1, 2])):
        attempt_id = python(bench, program, parse_metrics=parse)
        bench.end(attempt_id)
        pieces = [p.data for p in bench.executor.pending(attempt_id, max_bytes=MIB) if p.stream == formats.METRICS]
        assert sorted(json.loads(line)["s"] for line in b"".join(pieces).splitlines()) == steps


# checkpoints and outputs


def test_the_next_attempt_goes_on_from_the_newest_whole_checkpoint(bench: LocalBench) -> None:
    save = (
        "import danlu, os, json\nfolder = danlu.checkpoint_dir()\n"
        "for n in (9, 10): json.dump({'n': n}, open(os.path.join(folder, 'ckpt-%d.json' % n), 'w'))\n"
        "open(os.path.join(folder, 'ckpt-11.json'), 'w').write('{')\nos.kill(os.getpid(), 9)"
    )
    job_id = bench.ids()
    first = bench.end(python(bench, save, job_id=job_id))
    assert first.resumed_from is None
    attempt_id = python(bench, "import danlu; print(danlu.latest_checkpoint())", job_id=job_id, number=2)
    second = bench.end(attempt_id)
    assert second.resumed_from == "ckpt-10.json"
    assert bench.log(attempt_id) == str(bench.home / "checkpoints" / job_id / "ckpt-10.json")
    aside = list((bench.home / "checkpoints" / job_id / ".danlu" / "incomplete").rglob("*ckpt-11.json"))
    assert [path.read_text() for path in aside] == ["{"]
    other = python(bench, "import danlu; print(danlu.latest_checkpoint())")
    bench.end(other)
    assert bench.log(other) == "None"


def test_outputs_are_there_also_when_it_failed(bench: LocalBench) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", "echo result > $DANLU_OUTPUT_DIR/a.txt; exit 1")
    bench.end(attempt_id)
    folder = bench.executor.outputs(attempt_id)
    assert folder is not None
    assert (folder / "a.txt").read_text() == "result\n"


# the server


def test_two_servers_see_the_same_and_start_it_once(bench: LocalBench) -> None:
    order = bench.order("/bin/sh", "-c", "echo up; while :; do sleep 0.1; done")
    bench.executor.launch(order)
    bench.printed(order.attempt.id, "up")
    other = LocalBench(bench.home)
    try:
        other.executor.launch(order)
        assert other.see(order.attempt.id) == bench.see(order.attempt.id)
        other.executor.stop(order.attempt.id, grace_s=1.0)
        assert other.end(order.attempt.id).stopped
        assert bench.end(order.attempt.id).stopped
        assert bench.log(order.attempt.id) == "up"
    finally:
        other.executor.close()


def test_a_full_disk_is_told_and_later_it_starts(
    bench: LocalBench, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    home = small_disk(2 * MIB)
    full = LocalBench(opened(home))
    ballast = home / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    order = full.order("/bin/sh", "-c", "echo done")
    with pytest.raises(StorageFull):
        full.executor.launch(order)
    assert full.executor.observe() == ()
    ballast.unlink()
    full.executor.launch(order)
    full.end(order.attempt.id)
    assert full.log(order.attempt.id) == "done"
    full.close()


def test_strangers_among_the_attempts_are_no_harm(bench: LocalBench) -> None:
    (bench.home / "attempts" / "lost+found").mkdir()
    (bench.home / "attempts" / "file").write_text("x")
    attempt_id = bench.launch("/bin/true")
    assert bench.end(attempt_id).phase is Phase.ENDED
    (bench.home / "attempts" / "lost+found").rmdir()
    (bench.home / "attempts" / "file").unlink()
