"""The job file that `danlu init` writes: what it guesses, that it is right at once, and every field that it shows too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli.apply import described_in
from danlu.cli.init import FILLED_IN, init, lines
from danlu.client.guessing import MAX_FILES, guess
from danlu.domain.fields import described
from danlu.domain.frameworks import FRAMEWORKS
from danlu.domain.guesses import ENVIRONMENTS, environment, imported, packages
from danlu.domain.specs import JobSpec
from danlu.errors import Conflict, InvalidSpec

TF1 = "import tensorflow as tf\nx = tf.placeholder(tf.float32)\n"
NEEDS = {
    "gpu_kind": {"gpu": 1},
    "gpu_min": {"gpu": 8},
    "interpreter": {"env": "host"},
    "requirements": {"env": "python"},
}
"""What else a field's example needs."""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("DANLU_URL", "DANLU_TOKEN", "DANLU_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DANLU_HOME", str(tmp_path / "no-platform"))


def test_imports() -> None:
    source = (
        "import a.b, c as d\nfrom e.f import g\nif x:\n    import h\nprint 'python 2'\nfrom . import i\nimportant = 1\n"
    )
    assert imported(source) == {"a", "a.b", "c", "e", "e.f", "h"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("numpy\nPyYAML>=5  # yes\n# no\n\na==2.1; python_version > '3'\n", {"numpy": "", "pyyaml": ">=5", "a": "==2.1"}),
        ("a[b,c]==1.*\n", {"a": "==1.*"}),
        ("-r other.txt\n", None),
        ("-e .\n", None),
        ("git+https://x/y\n", None),
        ("x @ https://x/y.whl\n", None),
        ("", {}),
    ],
)  # fmt: skip
def test_requirements(text: str, found: dict[str, str] | None) -> None:
    assert packages(text) == found


@pytest.mark.parametrize(
    ("source", "requirements", "name"),
    [
        ("import os\n", "", "python"),
        ("import sklearn.svm\n", "", "sklearn"),
        (TF1, "", "tensorflow-1"),
        ("import tensorflow as tf\ntf.app.run()\n", "", "tensorflow-1"),
        ("from tensorflow.contrib import slim\n", "", "tensorflow-1"),
        ("import tensorflow as tf\ntf.keras.Sequential()\n", "tensorflow==1.15\n", "tensorflow-1"),
        ("import tensorflow as tf\ntf.keras.Sequential()\n", "", "tensorflow"),
        ("import tensorflow as tf\ntf.compat.v1.Session()\n", "", "tensorflow"),
        ("import torch\n", "", "pytorch"),
        ("import torch\nimport torchvision\n", "torch>=2\ntorchvision\nnumpy\n", "pytorch"),
        ("import sklearn\n", "scikit-learn\n", "sklearn"),
        ("import jax\n", "", "jax"),
        ("import sklearn\nimport pandas\n", "scikit-learn\npandas==2.0\n", ""),
        ("import sklearn\n", "numpy\n", "sklearn"),
        ("import sklearn\n", "-r more.txt\n", "sklearn"),
    ],
)
def test_the_environment(source: str, requirements: str, name: str) -> None:
    found = environment({"a.py": source}, requirements, ())
    assert (found.name, found.requirements) == (name, "" if name else requirements)
    assert found.why


def test_only_environments_that_there_are() -> None:
    assert environment({"a.py": "import torch\n"}, "", {"python", "sklearn"}).name == "python"
    assert environment({"a.py": TF1}, "", {"python"}).name == "python"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"train.py": "", "main.py": ""}, "python train.py"),
        ({"model.py": "", "main.py": ""}, "python main.py"),
        ({"model.py": "", "fit.py": "if __name__ == '__main__':\n    pass\n"}, "python fit.py"),
        ({"only.py": ""}, "python only.py"),
        ({"a.py": "", "b.py": ""}, ""),
        ({"run.sh": ""}, "sh run.sh"),
        ({"only.py": "", "setup.py": ""}, "python only.py"),
        ({}, ""),
    ],
)
def test_the_command(files: dict[str, str], command: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "other.py").write_text("import torch\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pyvenv.cfg").touch()
    (tmp_path / "own" / "train.py").write_text("import torch\n")
    found = guess(tmp_path, ())
    assert (found.command, found.environment.name) == (command, "python")


def test_a_project_file_and_many_files(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["pandas>=2", "click"]\n')
    assert guess(tmp_path, ()).environment.requirements == "pandas>=2\nclick\n"
    (tmp_path / "pyproject.toml").write_text("[project\n")
    for number in range(MAX_FILES + 50):
        (tmp_path / f"a{number}.py").touch()
    (tmp_path / "z.py").write_text("import torch\n")  # too far down to be looked at
    assert guess(tmp_path, ()).environment.name == "python"


def test_the_file_is_right_at_once_and_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "My Model (2)"
    folder.mkdir()
    (folder / "train.py").write_text(TF1)
    file = folder / "danlu.yaml"
    assert init(file) == 0
    said = capsys.readouterr()
    assert said.out == f"{file}\n"
    assert "train.py uses tf.placeholder" in said.err
    assert yaml.safe_load(file.read_text()) == {
        "name": "my-model-2",
        "env": "tensorflow-1",
        "command": "python train.py",
    }
    ((fields, code),) = described_in(str(file))
    assert (JobSpec.model_validate(fields).env, code) == ("tensorflow-1", folder)
    file.write_text("# mine\ncommand: x\n")
    with pytest.raises(Conflict, match="is there already"):
        init(file)
    assert file.read_text() == "# mine\ncommand: x\n"
    assert init(file, force=True, env="sklearn") == 0
    assert yaml.safe_load(file.read_text())["env"] == "sklearn"
    assert (folder / "danlu.yaml.old").read_text() == "# mine\ncommand: x\n"


def test_requirements_go_into_the_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("pandas==2.0  # tables\n\nclick\n")
    assert init(tmp_path / "job.yaml") == 0
    fields = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert fields["requirements"] == "pandas==2.0  # tables\n\nclick\n"
    assert "env" not in fields
    assert described_in(str(tmp_path / "job.yaml"))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_distributed_job(name: str, tmp_path: Path) -> None:
    assert init(tmp_path / "job.yaml", framework=name) == 0
    ((fields, _),) = described_in(str(tmp_path / "job.yaml"))
    spec = JobSpec.model_validate(fields)
    assert (spec.framework, len(spec.tasks) > 1) == (name, True)


def test_what_cannot_be(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(InvalidSpec, match="is not a folder"):
        init(tmp_path / "nothing" / "danlu.yaml")
    with pytest.raises(InvalidSpec, match="no framework") as raised:
        init(tmp_path / "danlu.yaml", framework="tensorflw")
    assert "did you mean tensorflow?" in raised.value.next_step
    assert init(tmp_path / "danlu.yaml") == 0
    assert "only an example" in capsys.readouterr().err
    assert init(Path("-")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["command"]


def uncommented(field: str) -> str:
    """Returns the file with one field taken out of its comment, with all that is below it."""
    taken, within = [], False
    for line in lines({"command": "x"}):
        bare = line.removeprefix("# ")
        if line.startswith("# ") and not bare.startswith(" "):
            within = bare.startswith(f"{field}:")
        taken.append(bare if within else line)
    return "\n".join(taken)


def test_every_field_is_in_the_file() -> None:
    text = "\n".join(lines({"command": "x"}))
    for field in (field for field in described(JobSpec) if field.name not in FILLED_IN):
        assert f"{field.name}:" in text
        if field.model is not None:
            assert all(f"  {inner.name}:" in text for inner in described(field.model) if inner.model is None)


@pytest.mark.parametrize(
    "field", [name for name in JobSpec.model_fields if name not in ("command", "code", *FILLED_IN)]
)
def test_every_field_is_right_when_its_mark_is_taken_away(field: str) -> None:
    found = yaml.safe_load(uncommented(field))
    assert set(found) == {"command", field}
    JobSpec.model_validate({**found, **NEEDS.get(field, {})})


def test_environments_that_are_guessed_have_names() -> None:
    assert all(JobSpec(command="x", env=name) for name in ENVIRONMENTS)
