"""``import danlu`` in a training script: costs nothing, never stops the training, never tears a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import danlu as installed
from danlu.runner.follow import parse_point
from tests.conftest import cannot_run

PACKAGE = Path(installed.__file__).parent


def run(program: str, sdk: Path, python: str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program as a job's interpreter would, with nothing but the SDK on its path."""
    return subprocess.run(
        [python, "-S", "-W", "error", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60,
        check=False, env={"PYTHONPATH": str(sdk), "PATH": os.defpath, **variables}, cwd=sdk,
    )  # fmt: skip


@pytest.fixture(params=[sys.executable, "3.8"])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == sys.executable:
        return sys.executable
    return python38()


def python38() -> str:
    """Returns a Python 3.8, which is the oldest that a job may have."""
    candidates = [str(Path("~/.pyenv/versions/3.8.18/bin/python").expanduser()), "python3.8"]
    for candidate in candidates:
        try:
            said = subprocess.run([candidate, "-V"], capture_output=True, text=True, timeout=30, check=False).stdout
        except OSError:
            continue
        if said.startswith("Python 3.8"):
            return candidate
    cannot_run("there is no Python 3.8 in ~/.pyenv or on the path")
    raise AssertionError


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    """A folder with what a job sees of Danlu."""
    folder = tmp_path / "sdk"
    (folder / "danlu").mkdir(parents=True)
    (folder / "danlu" / "__init__.py").write_bytes((PACKAGE / "__init__.py").read_bytes())
    return folder


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


def points(metrics: Path) -> list[dict[str, object]]:
    """Returns the points in the file, as the runner reads them; each line must be one."""
    found = []
    for line in metrics.read_bytes().splitlines():
        point = parse_point(line)
        assert point is not None, line
        found.append(json.loads(point))
    return found


def test_importing_it_imports_nothing(sdk: Path, python: str) -> None:
    done = run(
        """
        import os, sys, time
        before = set(sys.modules)
        import danlu
        print(sorted(set(sys.modules) - before - {"danlu"}))
        print(danlu.__all__)
        """,
        sdk, python,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "[]",
        "['checkpoint_dir', 'latest_checkpoint', 'log', 'output_dir', 'preempted']",
    ]


def test_isolated_it_imports_os_and_time_only(sdk: Path) -> None:
    program = f"""
import os, sys, time
before = set(sys.modules)
sys.path.insert(0, {str(sdk)!r})
import danlu
print(set(sys.modules) - before)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "{'danlu'}\n"


def test_numbers_are_recorded(sdk: Path, metrics: Path, python: str) -> None:
    done = run(
        """
        import danlu
        class Scalar:
            def __float__(self): return 0.25
        class Float(float):
            def __repr__(self): return "Float!"
        danlu.log(step=3, loss=0.1)
        danlu.log(loss=1)
        danlu.log(step=2.5, a=True, b=Scalar(), c=Float(7), d=float("nan"), e=float("-inf"), f=-0.0, g=10**30)
        danlu.log(step=Scalar(), x=1e-300)
        danlu.log(step=4)
        danlu.log(**{"train/loss": 1, "a=b": 2, "损失": 3})
        """,
        sdk, python, DANLU_METRICS_FILE=str(metrics),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = metrics.read_bytes().splitlines()
    assert parse_point(lines.pop(4)) is None  # a step alone is no metric
    metrics.write_bytes(b"\n".join(lines))
    one, two, three, four, five = points(metrics)
    assert (one["s"], one["m"]) == (3, {"loss": 0.1})
    assert (two["s"], two["m"]) == (None, {"loss": 1.0})
    assert three["s"] == 2.5
    assert str(three["m"]) == "{'a': 1.0, 'b': 0.25, 'c': 7.0, 'd': nan, 'e': -inf, 'f': -0.0, 'g': 1e+30}"
    assert (four["s"], four["m"]) == (0.25, {"x": 1e-300})
    assert five["m"] == {"train/loss": 1.0, "a=b": 2.0, "损失": 3.0}
    assert metrics.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("call", "error"), [
    ("loss='high'", "TypeError: danlu.log: loss is a str ('high'), not a number"),
    ("loss='0.5'", "TypeError"),
    ("loss=b'1'", "TypeError"),
    ("loss=None", "TypeError: danlu.log: loss is a NoneType"),
    ("loss=[1]", "TypeError"),
    ("loss=10**400", "TypeError"),
    ("loss={}", "TypeError"),
    ("step='x', loss=1", "TypeError: danlu.log: step is a str"),
    ("**{'a\\tb': 1}", "ValueError: danlu.log: 'a\\tb' is no name"),
    ("**{'a\\nb': 1}", "ValueError"),
    ("**{'n' * 65: 1}", "ValueError"),
    ("**{'system/a': 1}", "ValueError: danlu.log: names that begin with system/ are the platform's own: system/a"),
    ("**{'\\ud800': 1}", "ValueError"),
])  # fmt: skip
def test_what_is_no_number_is_refused_at_once(sdk: Path, metrics: Path, call: str, error: str) -> None:
    done = run(f"import danlu\ndanlu.log(a=1)\ndanlu.log({call})", sdk, DANLU_METRICS_FILE=str(metrics))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(error)
    assert len(points(metrics)) == 1


def test_outside_a_job_it_prints(sdk: Path) -> None:
    done = run("import danlu\ndanlu.log(step=3, loss=0.123456789, n=2)\ndanlu.log(loss=1)", sdk)
    assert done.stdout == "step=3 loss=0.123457 n=2\nloss=1\n"
    assert run("import danlu\ndanlu.log(loss='x')", sdk).returncode == 1


@pytest.mark.parametrize("place", ["/nowhere/metrics", "/proc/metrics", "/"])
def test_a_file_that_cannot_be_opened_is_told_once_and_stops_nothing(sdk: Path, place: str) -> None:
    done = run("import danlu\nfor n in range(3): danlu.log(loss=n)\nprint('done')", sdk, DANLU_METRICS_FILE=place)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count("danlu.log: metrics cannot be written") == 1


def test_a_full_disk_stops_nothing_and_tears_no_line(sdk: Path, small_disk: Callable[[int], Path]) -> None:
    folder = small_disk(64 * 1024)
    done = run(
        """
        import danlu, os
        count = 0
        try:
            with open("ballast", "wb", buffering=0) as file:
                while file.write(b"x" * 1024): pass
        except OSError:
            pass
        for n in range(10_000): danlu.log(step=n, loss=n)
        os.unlink("ballast")
        for n in range(10_000, 10_100): danlu.log(step=n, loss=n)
        """.replace('"ballast"', repr(str(folder / "ballast"))),
        sdk, DANLU_METRICS_FILE=str(folder / "metrics"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("metrics cannot be written") == 1
    lines = (folder / "metrics").read_bytes().splitlines()
    steps = [json.loads(point)["s"] for line in lines if (point := parse_point(line))]
    assert steps[-100:] == list(range(10_000, 10_100))
    assert len(lines) - len(steps) <= 1  # the line that was cut


def test_a_descriptor_that_the_program_closed_is_opened_again(sdk: Path, metrics: Path) -> None:
    done = run(
        "import danlu, os\ndanlu.log(a=1)\nos.closerange(3, 100)\ndanlu.log(a=2)\ndanlu.log(a=3)", sdk,
        DANLU_METRICS_FILE=str(metrics),
    )  # fmt: skip
    assert done.returncode == 0
    assert [point["m"] for point in points(metrics)] == [{"a": 1.0}, {"a": 3.0}]


def test_threads_and_forks_tear_no_line(sdk: Path, metrics: Path, python: str) -> None:
    done = run(
        """
        import danlu, os, sys, threading
        sys.setswitchinterval(1e-5)
        danlu.log(who=-1)
        def write(who):
            for n in range(500): danlu.log(step=n, who=who, loss=n / 3)
        children = []
        for who in range(4):
            pid = os.fork()
            if pid == 0:
                threads = [threading.Thread(target=write, args=(who * 10 + t,)) for t in range(3)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                os._exit(0)
            children.append(pid)
        for pid in children: assert os.waitpid(pid, 0)[1] == 0
        """,
        sdk, python, DANLU_METRICS_FILE=str(metrics),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = points(metrics)
    assert len(found) == 1 + 4 * 3 * 500
    steps: dict[object, list[object]] = {}
    for point in found[1:]:
        steps.setdefault(point["m"]["who"], []).append(point["s"])  # type: ignore[index]
    assert all(each == list(range(500)) for each in steps.values())


def test_another_program_does_not_inherit_the_file(sdk: Path, metrics: Path) -> None:
    done = run(
        "import danlu, os, sys\ndanlu.log(a=1)\n"
        "os.execv(sys.executable, [sys.executable, '-S', '-c', 'import os; print(os.listdir(\"/proc/self/fd\"))'])",
        sdk, DANLU_METRICS_FILE=str(metrics),
    )  # fmt: skip
    assert len(json.loads(done.stdout.replace("'", '"'))) == 4  # 0, 1, 2 and the listing itself


def test_folders_outside_a_job_are_here(sdk: Path) -> None:
    done = run("import danlu\nprint(danlu.checkpoint_dir(), danlu.output_dir(), danlu.latest_checkpoint())", sdk)
    assert done.stdout.split() == [str(sdk / "checkpoints"), str(sdk / "outputs"), "None"]
    assert (sdk / "checkpoints").is_dir()
    assert (sdk / "outputs").is_dir()


def test_a_job_asks_whether_it_has_to_make_way(sdk: Path, tmp_path: Path, python: str) -> None:
    program = (
        "import danlu, os\nprint(danlu.preempted())\n"
        "path = os.environ.get('DANLU_PREEMPTION_FILE')\npath and open(path, 'w').close()\nprint(danlu.preempted())"
    )
    assert run(program, sdk).stdout.split() == ["False", "False"], "outside a job"
    inside = run(program, sdk, python, DANLU_PREEMPTION_FILE=str(tmp_path / "notice"))
    assert inside.stdout.split() == ["False", "True"]


def test_folders_inside_a_job_are_the_jobs(sdk: Path, tmp_path: Path, python: str) -> None:
    done = run(
        "import danlu\nprint(danlu.checkpoint_dir(), danlu.output_dir(), danlu.latest_checkpoint())", sdk, python,
        DANLU_CHECKPOINT_DIR=str(tmp_path / "c"), DANLU_OUTPUT_DIR=str(tmp_path / "o"), DANLU_RESUME_FROM="/c/9",
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "c"), str(tmp_path / "o"), "/c/9"]
    assert (tmp_path / "c").is_dir()
