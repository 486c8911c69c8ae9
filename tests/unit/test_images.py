"""Container images: their names, the engine that is found, and the command line that shows a container just what it needs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.images import Image, full_reference
from danlu.domain.jobs import Task
from danlu.domain.specs import JobSpec
from danlu.errors import LaunchRejected
from danlu.executors.local import containers, engines
from danlu.executors.orders import Folders
from danlu.runner import contained, processes

GIB = 2**30
IMAGE = Image(id="ab" * 32, variables={"PATH": "/opt/bin:/bin", "LANG": "de_DE.UTF-8", "PYTHONPATH": "/opt/lib"})


# names


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12", "docker.io/library/python:3.12"),
        ("docker.io/python:3.12", "docker.io/library/python:3.12"),
        ("team/train", "docker.io/team/train:latest"),
        ("ghcr.io/team/deep/train:1_a.b-C", "ghcr.io/team/deep/train:1_a.b-C"),
        ("localhost/train:1", "localhost/train:1"),
        ("127.0.0.1:5000/train", "127.0.0.1:5000/train:latest"),
        (f"python@sha256:{'0' * 64}", f"docker.io/library/python@sha256:{'0' * 64}"),
        (f"python:3@sha256:{'0' * 64}", f"docker.io/library/python:3@sha256:{'0' * 64}"),
    ],
)
def test_a_name_is_made_whole(text: str, whole: str) -> None:
    assert full_reference(text) == whole
    assert full_reference(whole) == whole
    assert JobSpec(command="true", image=text).image == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no image's name"),
        ("Python", "did you mean python?"),
        ("a b", "is no image's name"),
        ("--privileged", "is no image's name"),
        ("https://ghcr.io/team/train", "without https://"),
        ("python:", "is no tag"),
        ("python:-1", "is no tag"),
        ("python@sha256:12", "sha256: and 64 hex digits"),
        ("-x.io/train", "is no registry's name"),
        ("ghcr.io//train", "is no image's name"),
        ("../train", "no registry's name"),
        ("x" * 600, "more than 512"),
        ("train\n", "is no image's name"),
    ],
)
def test_what_is_no_name_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="(?s).*" + said.replace("?", r"\?")):
        full_reference(text)


@pytest.mark.parametrize(
    "other", [{"env": "sklearn"}, {"requirements": "six"}, {"python": "3.11"}, {"env": "host", "interpreter": "/bin/x"}]
)
def test_an_image_and_an_environment_exclude_each_other(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        JobSpec.model_validate({"command": "true", "image": "python", **other})


# engines, on recorded machines


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def machine(root: Path, *programs: str, podman: str = "podman version 4.9.3", **fields: Any) -> engines.Machine:
    """A machine as Debian 13 has it: the second version of control groups, crun, catatonit."""
    binaries = root / "bin"
    for folder in ("bin", "sys/fs/cgroup", "usr/bin", "proc/sys/user", "proc/self"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in programs:
        program(binaries, name, f"echo {podman}" if name == "podman" else "exit 0")
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("memory cpu pids\n")
    (root / "usr/bin/catatonit").touch()
    (root / "proc/sys/user/max_user_namespaces").write_text("96365\n")
    (root / "proc/self/mounts").write_text("/dev/sda / ext4 rw 0 0\noverlay /over overlay rw 0 0\n")
    return engines.Machine(**{"root": root, "path": str(binaries), "uid": 0, "kernel": "6.1.0-18-amd64", **fields})


def test_podman_is_found_with_crun(tmp_path: Path) -> None:
    found, why = engines.detect(Path("/data"), machine(tmp_path, "podman", "crun", "docker"))
    assert found is not None, why
    assert (found.name, found.version) == ("podman", "4.9.3")
    assert found.options == ("--runtime", str(tmp_path / "bin/crun"), "--storage-driver=overlay")
    assert found.flags == ("--cgroups=disabled", "--init", "--init-path=/usr/bin/catatonit")


def test_runc_takes_over_where_crun_refuses_the_machine(tmp_path: Path) -> None:
    mixed = machine(tmp_path, "podman", "crun", "runc")
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").unlink()
    (tmp_path / "sys/fs/cgroup/unified").mkdir()
    (tmp_path / "sys/fs/cgroup/unified/cgroup.controllers").write_text("hugetlb\n")
    found, _ = engines.detect(Path("/data"), mixed)
    assert found is not None
    assert found.options[:2] == ("--runtime", str(tmp_path / "bin/runc"))
    assert not any(flag.startswith("--cgroups") for flag in found.flags)


@pytest.mark.parametrize(
    ("home", "kernel", "driver"),
    [
        ("/data", "6.1.0", "--storage-driver=overlay"),
        ("/over/data", "6.1.0", "--storage-driver=vfs"),
        ("/data", "5.4.0", "--storage-driver=vfs"),
    ],
)
def test_the_storage_fits_the_file_system_and_the_kernel(tmp_path: Path, home: str, kernel: str, driver: str) -> None:
    found, _ = engines.detect(Path(home), machine(tmp_path, "podman", "crun", kernel=kernel))
    assert found is not None
    assert found.options[2:] == (driver,)


def test_a_machine_without_an_engine_says_why(tmp_path: Path) -> None:
    none, why = engines.detect(Path("/data"), machine(tmp_path))
    assert none is None
    assert why == "podman is not installed; docker is not installed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("old", "podman 3.4.4 is too old"),
        ("no namespaces", "user.max_user_namespaces=0"),
        ("no init", "install catatonit"),
        ("no runtime", "install crun"),
        ("broken", "podman cannot be run"),
    ],
)
def test_a_podman_that_cannot_be_used_says_why(tmp_path: Path, change: str, said: str) -> None:
    programs = ["podman"] if change == "no runtime" else ["podman", "crun"]
    version = {"old": "podman version 3.4.4", "broken": ""}.get(change, "podman version 4.9.3")
    found = machine(tmp_path, *programs, podman=version)
    if change == "no namespaces":
        (tmp_path / "proc/sys/user/max_user_namespaces").write_text("0\n")
    if change == "no init":
        (tmp_path / "usr/bin/catatonit").unlink()
    none, why = engines.detect(Path("/data"), found)
    assert none is None
    assert said in why


DOCKER = "case $1 in info) echo '24.0.7 true true false [name=seccomp]';; esac"


def test_docker_serves_the_user_whose_own_jobs_these_are(tmp_path: Path) -> None:
    own = machine(tmp_path, uid=1000, gid=1000, environ={"DOCKER_HOST": "unix:///run/d.sock"})
    program(tmp_path / "bin", "docker", DOCKER)
    found, why = engines.detect(Path("/data"), own)
    assert found is not None, why
    assert (found.name, found.version, found.user) == ("docker", "24.0.7", "1000:1000")
    assert found.limits == ("memory", "cpu")
    assert found.environ["DOCKER_HOST"] == "unix:///run/d.sock"


def test_docker_is_not_used_as_root(tmp_path: Path) -> None:
    root = machine(tmp_path)
    program(tmp_path / "bin", "docker", DOCKER)
    none, why = engines.detect(Path("/data"), root)
    assert none is None
    assert "who may speak to its daemon is root" in why


def test_rootless_docker_numbers_the_user_0(tmp_path: Path) -> None:
    own = machine(tmp_path, uid=1000, gid=1000)
    program(tmp_path / "bin", "docker", DOCKER.replace("[name=seccomp]", "[name=seccomp name=rootless]"))
    found, _ = engines.detect(Path("/data"), own)
    assert found is not None
    assert found.user == "0:0"


# command lines

PODMAN = engines.Engine("podman", "/bin/podman", "4.9", ("--runtime", "/bin/crun"), ("--cgroups=disabled",))
DOCKER_ENGINE = engines.Engine("docker", "/bin/docker", "24", (), ("--init",), ("memory", "pids"), user="7:7")
WHERE = Folders(Path("/h/attempts/a,1"), Path("/h/checkpoints/j"), Path("/h/sdk/1"))
PLACE = containers.Place(WHERE, Path("/h/images/7"), Path("/run/c/x"), 8 * GIB)


def contain(engine: engines.Engine, devices: tuple[int, ...] = (), **spec: Any) -> dict[str, Any]:
    asked = JobSpec.model_validate({"command": ["train"], "image": "python", "gpu": len(devices), **spec}).tasks[0]
    task = Task(node="n", resources=asked.resources, devices=devices)
    return containers.container(engine, IMAGE, asked, task, PLACE)


@pytest.mark.parametrize("engine", [PODMAN, DOCKER_ENGINE])
def test_a_container_may_do_nothing_and_sees_only_what_is_the_jobs(engine: engines.Engine) -> None:
    run = contain(engine)["run"]
    assert {
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--network=host",
        "--pull=never",
        "--entrypoint=",
    } <= {*run}
    shown = sorted(word for word in run if word.startswith("--mount"))
    assert shown == [
        '--mount=type=bind,"source=/h/attempts/a,1/main-0/metrics","target=/h/attempts/a,1/main-0/metrics"',
        '--mount=type=bind,"source=/h/attempts/a,1/notice","target=/h/attempts/a,1/notice",readonly',
        '--mount=type=bind,"source=/h/attempts/a,1/outputs","target=/h/attempts/a,1/outputs"',
        '--mount=type=bind,"source=/h/attempts/a,1/tmp","target=/h/attempts/a,1/tmp"',
        '--mount=type=bind,"source=/h/attempts/a,1/token","target=/h/attempts/a,1/token",readonly',
        '--mount=type=bind,"source=/h/attempts/a,1/work","target=/h/attempts/a,1/work"',
        "--mount=type=bind,source=/h/checkpoints/j,target=/h/checkpoints/j",
        "--mount=type=bind,source=/h/sdk/1,target=/h/sdk/1,readonly",
    ]
    assert not any(word.startswith(("--privileged", "--volume", "-v", "--device")) for word in run)


def test_podmans_container_keeps_everything_in_the_attempts_folders() -> None:
    made = contain(PODMAN)
    run = made["run"]
    assert run[:3] == ["/bin/podman", "--runtime", "/bin/crun"]
    assert run[run.index("--root") + 1] == "/h/attempts/a,1/main-0/engine/storage"
    assert "--storage-opt=overlay.imagestore=/h/images/7/storage" in run
    assert "--log-driver=passthrough" in run
    assert len(run[run.index("--runroot") + 1]) <= containers.RUNTIME_CHARACTERS
    assert made["environ"]["USER"] == containers.NOBODY


def test_docker_sets_the_limits_that_it_can() -> None:
    made = contain(DOCKER_ENGINE, memory="1GiB", cpu=2)
    assert "--memory=1073741824b" in made["run"]
    assert not any(word.startswith("--cpus") for word in made["run"])  # this daemon cannot
    assert "--user=7:7" in made["run"]
    spec = JobSpec(command="x", memory=GIB, cpu=2)
    assert containers.limits_in_force(DOCKER_ENGINE, spec) == ("memory-limit", "pids-limit")
    assert made["remove"][-1] == "danlu-a,1-main-0"
    assert (made["daemon"], contain(PODMAN)["daemon"]) == (True, False)


def test_gpus_are_handed_in_by_number() -> None:
    cdi = engines.Engine("podman", "/bin/podman", "4.9", cdi=True)
    assert {"--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=3"} <= {*contain(cdi, (2, 3))["run"]}
    assert '--gpus="device=2,3"' in contain(DOCKER_ENGINE, (2, 3))["run"]
    with pytest.raises(LaunchRejected, match="nvidia-ctk cdi generate"):
        contain(PODMAN, (0,))
    assert contained.devices(2)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_shared_memory_is_the_jobs_limit_else_half_the_machine() -> None:
    assert f"--shm-size={GIB}b" in contain(PODMAN, memory="1GiB")["run"]
    assert f"--shm-size={4 * GIB}b" in contain(PODMAN)["run"]


def test_the_images_own_variables_are_kept_unless_the_user_wants_them_else() -> None:
    base = {"PATH": "/usr/bin", "LANG": "C.UTF-8", "PYTHONPATH": "/sdk", "OMP_NUM_THREADS": "2", "HOME": "/w"}
    plain = JobSpec(command="x").tasks[0]
    assert containers.environment(base, plain, IMAGE) == {
        "PYTHONPATH": "/opt/lib:/sdk", "OMP_NUM_THREADS": "2", "HOME": "/w",
    }  # fmt: skip
    wanted = JobSpec(command="x", variables={"PATH": "/mine", "PYTHONPATH": "/p"}).tasks[0]
    kept = containers.environment({**base, "PATH": "/mine", "PYTHONPATH": "/p:/sdk"}, wanted, IMAGE)
    assert (kept["PATH"], kept["PYTHONPATH"]) == ("/mine", "/p:/sdk")


# the guard


def test_no_value_is_in_the_command_line_but_what_would_turn_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "engine.env"
    container = {
        "env_file": str(file),
        "engine": "podman",
        "run": ["podman", "run"],
        "image": "ab",
        "environ": {"HOME": "/engine", "PATH": "/bin"},
    }
    env = {"SECRET": "s3cret\nline", "HOME": "/work", "LD_PRELOAD": "/x.so", "CONTAINERS_CONF": "/c"}
    words, environ = contained.command(container, ["train", "--env"], env)
    assert words[:6] == [
        "podman", "run", "--env=SECRET", "--env=HOME=/work", "--env=LD_PRELOAD=/x.so", f"--env-file={file}",
    ]  # fmt: skip
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("CONTAINERS_CONF=/c\n", 0o600)
    assert words[-3:] == ["ab", "train", "--env"]
    assert environ == {"SECRET": "s3cret\nline", "HOME": "/engine", "PATH": "/bin"}


def test_a_secret_is_in_no_command_line_whatever_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "main-0.env"
    env = {"GOFLAGS": "s3cret", "TOKEN": "s3cret", "HOME": "/work"}
    container = {
        "env_file": str(file), "engine": "docker", "run": ["docker", "run"], "image": "ab", "environ": {},
        "secret": ["GOFLAGS", "TOKEN"],
    }  # fmt: skip
    words, environ = contained.command(container, ["train"], env)
    assert words == ["docker", "run", "--env=TOKEN", "--env=HOME=/work", f"--env-file={file}", "ab", "train"]
    assert (file.read_text(), environ) == ("GOFLAGS=s3cret\n", {"TOKEN": "s3cret"})
    with pytest.raises(ValueError, match="GOFLAGS has a line break"):
        contained.command(container, ["train"], {**env, "GOFLAGS": "two\nlines"})


def test_secrets_in_memory_are_shown_to_the_container(tmp_path: Path) -> None:
    asked = JobSpec(command="train", image="python").tasks[0]
    place = dataclasses.replace(PLACE, where=dataclasses.replace(WHERE, memory=Path("/m/a")))
    made = containers.container(PODMAN, IMAGE, asked, Task(node="n", resources=asked.resources), place)
    assert "--mount=type=bind,source=/m/a,target=/m/a,readonly" in made["run"]
    assert made["env_file"] == "/m/a/main-0.env"


def test_a_session_enters_the_container(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("c0ffee\n")
    made = {**contain(PODMAN), "id_file": str(tmp_path / "id")}
    words, environ = contained.entering(made, ["sh"], {"PWD": "/w", "A": "1"}, True)
    assert words[words.index("exec") :] == [
        "exec", "--interactive", "--tty", "--workdir=/w", "--env=PWD", "--env=A", "c0ffee", "sh",
    ]  # fmt: skip
    assert environ["A"] == "1"
    assert contained.entering(contain(DOCKER_ENGINE), ["sh"], {"PWD": "/w"}, False)[0][-2] == "danlu-a,1-main-0"


@pytest.mark.parametrize(
    ("code", "stderr", "becomes", "said"),
    [
        (
            1,
            "ERROR (catatonit:6): failed to exec pid1: No such file or directory",
            127,
            "not found in the image: train",
        ),
        (1, "ERROR (catatonit:6): failed to exec pid1: Permission denied", 126, "Permission denied"),
        (127, "[FATAL tini (7)] exec train failed: No such file or directory", 127, "not found in the image: train"),
        (127, 'Error: crun: exec: "train": executable file not found in $PATH', 127, "executable file not found"),
        (125, "Error: image not known", 125, "podman could not start the container: Error: image not known"),
        (127, "sh: other: not found", 127, ""),
        (1, "failed to exec pid1: a program's own words", 1, ""),
        (3, "ERROR (catatonit:6): failed to exec pid1: no", 3, ""),
    ],
)
def test_an_engines_words_are_told_from_a_programs(
    tmp_path: Path, code: int, stderr: str, becomes: int, said: str
) -> None:
    before = b"an earlier line\n"
    (tmp_path / "stderr").write_bytes(before + stderr.encode() + b"\n")
    files = processes.Files(str(tmp_path), str(tmp_path / "stdout"), str(tmp_path / "stderr"), [])
    guard = contained.Guard({"engine": "podman"}, str(tmp_path), files)
    assert guard.explain(code, ["train"], len(before)) == becomes
    words, oom = contained.refused(str(tmp_path))
    assert said in words
    assert bool(words) == bool(said)
    assert not oom


def test_signals_go_round_what_passes_them_on_itself() -> None:
    assert os.getpid() not in processes.descendants(os.getpid(), frozenset({os.getpid()}))
