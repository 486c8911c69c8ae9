"""Programs for TensorFlow 1 run unchanged in the environment tensorflow-1, which is built once per machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from danlu.domain.environments import Interpreter
from tests.process.built import built_interpreter

pytestmark = pytest.mark.slow
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    return built_interpreter("tensorflow-1")


class Program:
    """A folder with a user's files, run as a job runs them."""

    def __init__(self, folder: Path, interpreter: Interpreter) -> None:
        self.folder = folder
        self._interpreter = interpreter

    def run(self, *words: str, stdin: str = "", **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)
        environment = {
            "PATH": os.pathsep.join([str(self._interpreter.bin), os.defpath]),
            "HOME": str(self.folder),
            **self._interpreter.variables,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = words or ("python", "main.py")
        return subprocess.run(
            command, cwd=self.folder, env=environment, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def printed(self, *words: str, stdin: str = "", **files: str) -> list[str]:
        ran = self.run(*words, stdin=stdin, **files)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()


@pytest.fixture
def program(tmp_path: Path, interpreter: Interpreter) -> Program:
    return Program(tmp_path, interpreter)


REGRESSION = """
import numpy as np
import tensorflow as tf

data = np.linspace(-1, 1, 100).astype(np.float)
slope = tf.Variable(0.0)
shift = tf.Variable(0.0)
x = tf.placeholder("float")
y = tf.placeholder("float")
step = tf.train.GradientDescentOptimizer(0.01).minimize(tf.square(y - x * slope - shift))
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for _ in range(10):
        for value in data:
            session.run(step, feed_dict={x: value, y: 3 * value - 7})
    print(*session.run([slope, shift]))
"""


def test_a_program_of_2018_runs_unchanged(program: Program) -> None:
    ran = program.run(main=REGRESSION)
    assert ran.returncode == 0, ran.stderr
    slope, shift = map(float, ran.stdout.split())
    assert slope == pytest.approx(3, abs=0.2)
    assert shift == pytest.approx(-7, abs=0.2)
    assert "disable_resource_variables" not in ran.stderr


FORMS = """
import importlib
import sys
import tensorflow as tf
from importlib import import_module
from tensorflow import keras
from tensorflow import python
from tensorflow.keras.layers import LSTM
from tensorflow.python.ops import array_ops
from tensorflow.python.client import timeline
from tensorflow.core.framework import graph_pb2
from tensorflow.compat import v1
import tensorflow.keras.layers as layers
import tensorflow.python.framework.ops as ops
import tensorflow.compat.v1 as ported
import tensorflow.compat.v2 as second
import tensorflow.estimator

def check(condition):
    if not condition:
        raise AssertionError(sys._getframe(1).f_lineno)

real = sys.modules["tensorflow"]
check(real is not tf and real.__name__ == "tensorflow")
check(tf.__name__ == "tensorflow.compat.v1" and not tf.executing_eagerly())
check(tensorflow is tf and tensorflow.estimator.Estimator)
check(keras.layers.LSTM is LSTM is layers.LSTM is tf.keras.layers.LSTM is not second.keras.layers.LSTM)
check(ops is sys.modules["tensorflow.python.framework.ops"] and tf.python is python)
check(ported is v1 is tf and second.__name__ == "tensorflow.compat.v2")
check(importlib.import_module("tensorflow") is tf and import_module("tensorflow.keras.layers") is layers)
check(import_module("tensorflow.python.ops.array_ops") is array_ops)
check(__import__("tensorflow") is tf)
check(tf.compat.v1.train.GradientDescentOptimizer is tf.train.GradientDescentOptimizer)
namespace = {}
exec("from tensorflow import *; import tensorflow.python.ops", namespace)
check("placeholder" in namespace and namespace["tensorflow"] is tf)
import keras as library
check(library.layers.LSTM is not LSTM)
check(tf.flags and tf.app and tf.logging and tf.summary.FileWriter and tf.layers.dense)
print("all")
"""


def test_every_form_of_import(program: Program) -> None:
    assert program.printed(main=FORMS) == ["all"]


GONE = """
import tensorflow as tf
for line in (
    "from tensorflow.contrib import slim", "import tensorflow.contrib.layers as layers", "from tensorflow import contrib",
    "tf.contrib", "from tensorflow.examples.tutorials.mnist import input_data", "from tensorflow import nothing",
    "import tensorflow.nothing", "import tensorflow.keras.nothing", "tf.nothing",
):
    try:
        exec(line)
    except (ImportError, AttributeError) as error:
        print(type(error).__name__, error)
print(hasattr(tf, "contrib"))
"""


def test_what_has_gone_says_so(program: Program) -> None:
    lines = program.printed(main=GONE)
    assert [line.split()[0] for line in lines[:-1]] == [
        "ModuleNotFoundError", "ModuleNotFoundError", "ImportError", "AttributeError", "ModuleNotFoundError", "ImportError",
        "ModuleNotFoundError", "ModuleNotFoundError", "AttributeError",
    ]  # fmt: skip
    assert all("tensorflow.contrib is not in TensorFlow 2" in line for line in lines[:4])
    assert "tf.keras.datasets" in lines[4]
    assert "No module named 'tensorflow.nothing'" in lines[6]
    assert lines[-1] == "False"


def test_tracebacks_show_the_users_files_only(program: Program) -> None:
    ran = program.run(main="import tensorflow\nimport between\n", between="import end\n", end="import not_there\n")
    assert ran.returncode == 1
    trace = ran.stderr[ran.stderr.index("Traceback") :]
    assert trace.count("File ") == 3
    assert "danlu_tf1" not in trace
    ran = program.run(main="from importlib import import_module\nimport_module('end')\n", end="1 / 0\n")
    assert "danlu_tf1" not in ran.stderr
    assert "ZeroDivisionError" in ran.stderr


SHOW = "import tensorflow as tf\nprint(tf.__name__)\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("python", "-c", SHOW), ["tensorflow.compat.v1"]),
        (("python", "-m", "package.inside"), ["tensorflow.compat.v1"]),
        (("python", "-I", "main.py"), ["tensorflow.compat.v1"]),
        (("python", "-"), ["tensorflow.compat.v1"]),
        (("./main.py",), ["tensorflow.compat.v1"]),
    ],
)
def test_however_python_is_started(program: Program, words: tuple[str, ...], expected: list[str]) -> None:
    (program.folder / "package").mkdir()
    (program.folder / "package" / "inside.py").write_text(SHOW)
    (program.folder / "main.py").write_text("#!/usr/bin/env python\n" + SHOW)
    (program.folder / "main.py").chmod(0o755)
    assert program.printed(*words, stdin=SHOW) == expected


def test_processes_that_multiprocessing_starts(program: Program) -> None:
    main = """
import multiprocessing
def name(_):
    import tensorflow as tf
    return tf.__name__ + str(tf.executing_eagerly())
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(*pool.map(name, [1]))
"""
    assert program.printed(main=main) == ["tensorflow.compat.v1False"] * 2


def test_without_site_there_is_neither_hook_nor_tensorflow(program: Program) -> None:
    ran = program.run("python", "-S", "-c", "import sys; print('danlu_tf1' in sys.modules); import tensorflow")
    assert ran.stdout == "False\n"
    assert "No module named 'tensorflow'" in ran.stderr


def test_programs_without_tensorflow_are_left_alone(program: Program) -> None:
    show = "import sys; print(sorted(set(sys.modules) - {'danlu_tf1', '__future__'}))"
    with_hook = program.printed("python", "-c", show)
    assert "'importlib.util'" not in with_hook[0]
    assert "'typing'" not in with_hook[0]
    assert "'tensorflow'" not in with_hook[0]
    assert "'logging'" not in with_hook[0]


def test_a_module_of_the_users_own_named_tensorflow_stays_theirs(program: Program) -> None:
    main = "import tensorflow, importlib\nprint(tensorflow.mine, importlib.import_module('tensorflow').mine)\n"
    assert program.printed(main=main, tensorflow="mine = 1\n") == ["1 1"]


def test_commands_of_libraries_work(program: Program) -> None:
    assert program.printed("tensorboard", "--version")[-1].startswith("2.15")
