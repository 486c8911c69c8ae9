"""Every environment of the catalogue is built and trains; so do frameworks of 2018 that live on elsewhere."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.legacy import FRAMEWORKS_OF_2018
from danlu.environments.sources import smoke_text
from tests.examples.platform import Platform

pytestmark = pytest.mark.slow
BUILD_TIMEOUT_S = 900.0
"""The largest is 6 GB, and the machine may have two cores."""
BUILDABLE = [entry for entry in CATALOGUE.values() if entry.buildable]
QUICK = [entry for entry in BUILDABLE if not any(build.programs for build in entry.from_source)]
"""What a compiler works on for many minutes has a test of its own: tests/process/test_environment_horovod.py."""
LOSS = re.compile(r": loss ([0-9.]+) -> ([0-9.]+)$", re.MULTILINE)

# what every program reads: where it is, whom it runs for, how it may speak
OF_THE_SYSTEM = (
    "_*", "HOME", "PATH", "b'PATH'", "TMP", "TMPDIR", "TEMP", "LANG", "LC_*", "TZ", "USER", "USERNAME", "LOGNAME", "LNAME",
    "CI", "CXX", "PY_SAX_PARSER", "SOURCE_DATE_EPOCH", "SAGE_ROOT", "TERM",
)  # fmt: skip
TRACE = """
import os, sys
seen, real = set(), type(os.environ).__getitem__
def noted(self, name):
    seen.add(str(name))
    return real(self, name)
type(os.environ).__getitem__ = noted
import {modules}
type(os.environ).__getitem__ = real
print("READ", *sorted(seen))
"""


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.name)
def test_an_environment_trains(platform: Platform, index: None, entry: CatalogueEntry) -> None:
    said = platform.danlu("env", "test", entry.name, timeout_s=BUILD_TIMEOUT_S)
    losses = LOSS.search(said)
    assert losses is not None, said
    assert float(losses[2]) < float(losses[1])
    details = json.loads(platform.danlu("env", "show", entry.name, "-o", "json"))
    assert details["environment"]["state"] == "ready"
    if entry.preload and entry.name != "chainer":  # which reads all variables at once, by a copy
        read_at_import_is_listed(platform, entry)


def read_at_import_is_listed(platform: Platform, entry: CatalogueEntry) -> None:
    """What an import reads through Python decides nothing that the catalogue does not know of."""
    program = TRACE.format(modules=", ".join(entry.preload))
    said = platform.danlu("run", "--no-code", "--env", entry.name, "--", "python", "-W", "ignore", "-c", program)
    read = next(line for line in said.splitlines() if line.startswith("READ")).split()[1:]
    patterns = (*entry.read_at_import, *OF_THE_SYSTEM)
    assert read
    assert [name for name in read if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
def test_a_program_that_does_not_learn_fails(entry: CatalogueEntry, tmp_path: Path) -> None:
    """Each program says that its loss fell only after it has been held against the first one."""
    text = smoke_text(entry)
    assert re.search(r"^assert \w+(\[.loss.\])?\[-1\] < \w+(\[.loss.\])?\[0\]", text, re.MULTILINE)
    assert text.index("assert") < text.index("sys.stdout.write")


CAFFE2 = """
import numpy as np
from caffe2.python import brew, model_helper, optimizer, workspace
points = np.random.RandomState(0).rand(64, 3).astype("float32")
workspace.FeedBlob("x", points)
workspace.FeedBlob("y", points.dot(np.array([[1.0], [-2.0], [3.0]], "float32")))
model = model_helper.ModelHelper(name="line")
brew.fc(model, "x", "found", dim_in=3, dim_out=1)
loss = model.AveragedLoss(model.SquaredL2Distance(["found", "y"], "distance"), "loss")
model.AddGradientOperators([loss])
optimizer.build_sgd(model, base_learning_rate=0.1)
workspace.RunNetOnce(model.param_init_net)
workspace.CreateNet(model.net)
losses = []
for _ in range(200):
    workspace.RunNet(model.net.Proto().name)
    losses.append(float(workspace.FetchBlob("loss")))
print(f": loss {losses[0]:.4f} -> {losses[-1]:.4f}")
"""
PYTENSOR = """
import numpy as np, pytensor, pytensor.tensor as pt
slope, x, y = pytensor.shared(np.float64(0.0)), pt.dscalar(), pt.dscalar()
loss = (slope * x - y) ** 2
step = pytensor.function([x, y], loss, updates=[(slope, slope - 0.1 * pt.grad(loss, slope))])
losses = [float(step(1.0, 3.0)) for _ in range(20)]
print(f": loss {losses[0]:.4f} -> {losses[-1]:.4f}")
"""


@pytest.mark.parametrize(
    ("name", "python", "program"), [("Caffe2", "3.8", CAFFE2), ("Theano", None, PYTENSOR)], ids=["Caffe2", "Theano"]
)
def test_what_is_named_as_requirements_trains(
    platform: Platform, index: None, tmp_path: Path, name: str, python: str | None, program: str
) -> None:
    framework = next(one for one in FRAMEWORKS_OF_2018 if one.name == name)
    named = re.search(r"requirements ([^;:]*?)(?: on Python ([0-9.]+))?(?:[;:]|$)", framework.how)
    assert named is not None
    assert named[2] == python
    (tmp_path / "requirements.txt").write_text("\n".join(named[1].split(", ")) + "\n")
    (tmp_path / "train.py").write_text(program)
    words = ["run", "--requirements", "requirements.txt", *([] if python is None else ["--python", python])]
    said = platform.danlu(*words, "--", "python", "train.py", cwd=tmp_path, timeout_s=BUILD_TIMEOUT_S)
    losses = LOSS.search(said)
    assert losses is not None, said
    assert float(losses[2]) < float(losses[1]) / 20


def test_a_dockerfile_makes_the_same(platform: Platform, index: None, tmp_path: Path) -> None:
    """Its RUN lines are run, in an environment in place of an image."""
    (tmp_path / "requirements.txt").write_text("tabulate==0.9.0\n")
    words = ["env", "build", "--requirements", "requirements.txt", "-o", "name"]
    name = platform.danlu(*words, cwd=tmp_path).strip().removeprefix("env/")
    lock = platform.danlu("env", "lock", name)
    assert "tabulate==0.9.0" in lock
    assert lock.count("--hash=sha256:") == 2
    recipe = platform.danlu("env", "export", "--dockerfile", name)
    lines = re.findall(r"^RUN ((?:.*\\\n)*.*)$", recipe, re.MULTILINE)
    assert lines
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    environ = {**platform.environ, "PATH": f"{tmp_path}/image/bin:{os.defpath}"}
    for line in lines:
        subprocess.run(["sh", "-c", line], check=True, env=environ, cwd=tmp_path)
    show = "import tabulate; print(tabulate.__version__)"
    done = subprocess.run([tmp_path / "image/bin/python", "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout == "0.9.0\n"
    platform.danlu("env", "rm", name)
    assert json.loads(platform.danlu("env", "show", name, "-o", "json"))["environment"]["state"] == "removed"


def test_what_2018_had_is_listed(platform: Platform) -> None:
    said = platform.danlu("env", "ls", "--all")
    assert all(re.search(rf"^{re.escape(one.name)}  .*{one.runs}", said, re.MULTILINE) for one in FRAMEWORKS_OF_2018)
    found = json.loads(platform.danlu("env", "ls", "--all", "-o", "json"))
    assert len(found["frameworks_of_2018"]) == 13
    assert {"tensorflow-1", "pytorch"} <= {one["name"] for one in found["items"]}
