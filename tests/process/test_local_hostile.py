"""Jobs that turn on their own attempt's folder, and names that would lead out of it: nobody else is harmed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import InvalidRequest, LaunchRejected
from danlu.executors.base import Phase
from tests.executors import LocalBench
from tests.process.test_local_executor import MIB, ROOT, carrying, opened


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = LocalBench(opened(home))
    yield bench
    bench.close()


HARM = {
    "status is replaced by a link": "rm status; ln -s /etc/shadow status",
    "status is a folder": "rm status; mkdir status",
    "status is nonsense": """printf '{"event":"ended"}\\n{"event":"exited","task":"main-0","exit_code":"x"}\\n' > status""",
    "status has an end of another kind": """echo '{"event":"ended","at":[],"message":{}}' >> status""",
    "status names the server as its runner": """python -S -c "$FORGE" """,
    "status is very deep": """python -S -c "open('status','a').write('['*900000 + chr(10))" """,
    "status is a pipe": "rm status; mkfifo status",
    "lock is removed": "rm lock",
    "lock is a folder": "rm lock; mkdir lock",
    "lock is a link": "rm lock; ln -s /etc/shadow lock",
    "stop is a folder": "mkdir stop; touch stop/full",
    "stop is a pipe": "mkfifo stop",
    "stop is a link": "ln -s /etc/shadow stop",
    "order is another": """rm -f order.json; echo '{"attempt_id":"x","tasks":[{"name":"../../.."}]}' > order.json""",
    "order is a link": "rm -f order.json; ln -s /etc/shadow order.json",
    "launched is a link": "rm -f launched.json; ln -s /etc/shadow launched.json",
    "index is nonsense": "echo x > main-0/spool/index",
    "index is a link": "rm main-0/spool/index; ln -s /etc/shadow main-0/spool/index",
    "spool is a link": "mv main-0/spool old; ln -s /etc main-0/spool",
    "the log is a link": "for f in main-0/spool/log.*; do rm $f; ln -s /etc/shadow $f; done",
    "the log is a hard link": "for f in main-0/spool/log.*; do rm $f; ln token $f; done",
    "output is a link": "rm main-0/stdout; ln -s /etc/shadow main-0/stdout",
    "outputs is a link": "rmdir outputs; ln -s /etc outputs",
    "everything is closed": "chmod -R 0 . ",
    "everything is gone": "rm -rf ..?* .[!.]* *",
}
FORGE = """
import json, os
pid = int(os.environ["VICTIM"])
start = int(open("/proc/%d/stat" % pid).read().rpartition(")")[2].split()[19])
lines = open("status").read().splitlines()
runner = json.loads(lines[0])
runner.update(pid=pid, start_time=start)
open("status", "w").write("\\n".join([json.dumps(runner), *lines[1:]]) + "\\n")
"""


@pytest.mark.parametrize("ending", ["stop", "lose"])
@pytest.mark.parametrize("harm", HARM)
def test_a_job_harms_only_itself(bench: LocalBench, harm: str, ending: str) -> None:
    mark = f"mark-{bench.ids()}"
    innocent = bench.launch("/bin/sh", "-c", "echo innocent; while :; do sleep 0.2; done")
    bench.printed(innocent, "innocent")
    with subprocess.Popen(["sleep", "1000"]) as victim:
        attempt_id = bench.launch(
            "/bin/sh", "-c", (
                f"until [ -e /tmp/{mark}.go ]; do sleep 0.01; done; cd ..; {HARM[harm]}; touch /tmp/{mark}; cd /; "
                f"while :; do sleep 0.1; : {mark}; done"
            ),
            variables={"FORGE": FORGE, "VICTIM": str(victim.pid)},
        )  # fmt: skip
        try:
            runner = bench.runner_pid(attempt_id)
            tmp = bench.tmp(attempt_id)
            (tmp / f"{mark}.go").touch()
            bench.until(lambda: (tmp / mark).exists() or not carrying(mark))
            bench.executor.observe()
            if ending == "stop":
                bench.executor.stop(attempt_id, grace_s=0.2)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(runner, signal.SIGKILL)
            seen = bench.end(attempt_id)
            assert seen.phase in (Phase.ENDED, Phase.LOST)
            assert carrying(mark) == set()
            assert not ROOT or victim.poll() is None
        finally:
            victim.kill()
            (tmp / mark).unlink(missing_ok=True)
            (tmp / f"{mark}.go").unlink(missing_ok=True)
    with contextlib.suppress(Exception):
        for piece in bench.executor.pending(attempt_id, max_bytes=MIB):
            assert b"root:" not in piece.data
            assert b"danlu_attempt_secret" not in piece.data
    assert bench.executor.outputs(attempt_id) != Path("/etc")
    still = bench.see(innocent)
    assert still is not None
    assert still.phase is Phase.RUNNING
    bench.executor.forget(attempt_id)
    assert bench.see(attempt_id) is None
    assert not (bench.home / "attempts" / attempt_id).exists()


@pytest.mark.parametrize("name", ["..", "../home", "", ".", "a", "../../etc-1", "/etc", "j" * 27, "\n"])
def test_no_id_leads_out_of_the_folder(bench: LocalBench, name: str) -> None:
    executor = bench.executor
    for call in (
        lambda: executor.stop(name, grace_s=0.0),
        lambda: executor.forget(name),
        lambda: executor.outputs(name),
        lambda: list(executor.pending(name, max_bytes=1)),
    ):
        with pytest.raises(InvalidRequest):
            call()
    assert bench.home.exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"job": {"checkpoint_owner": "../../etc"}}, "owns no checkpoints"),
    ({"task": {"role": "../x"}}, "cannot be a task's name"),
    ({"task": {"role": "A"}}, "cannot be a task's name"),
])  # fmt: skip
def test_no_name_leads_out_of_the_folder(bench: LocalBench, change: dict[str, Any], message: str) -> None:
    order = bench.order("/bin/true", task=change.get("task"))
    order = order.model_copy(update={"job": order.job.model_copy(update=change.get("job", {}))})
    with pytest.raises(LaunchRejected, match=message):
        bench.executor.launch(order)
    assert bench.executor.observe() == ()
