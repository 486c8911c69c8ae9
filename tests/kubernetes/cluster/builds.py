"""The programs of the cluster: built from Go modules once per version, kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent.parent / "go"
"""One folder per Go module: a go.mod that pins the versions, a go.sum that pins the bytes."""
BUILD_TIMEOUT_S = 45 * 60
TAIL_CHARACTERS = 3000


class CannotBuild(Exception):
    """A build failed, or what it needs is not on this machine."""


@dataclass(frozen=True)
class Target:
    """What `build NAME` makes: programs of one module, compiled by one `go build`."""

    module: str
    packages: dict[str, str]
    """Program -> the package of its `main`."""


KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
TARGETS = {
    # one module for all that shares libraries with Kubernetes: what is compiled for one serves the others
    "kubernetes": Target("kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES}),
    "etcd": Target("kubernetes", {"etcd": "go.etcd.io/etcd/server/v3"}),
    "coredns": Target("kubernetes", {"coredns": "./dns"}),
    "kwok": Target("kubernetes", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    "helm": Target("kubernetes", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    "versitygw": Target("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),
}


def cache() -> Path:
    """Returns the folder for what all clones on this machine share."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "danlu-cluster"


def folder(target: Target) -> Path:
    """Returns where a target's programs are kept: another version of anything has another folder."""
    files = sorted((MODULES / target.module).rglob("*.*"))
    content = b"".join(path.read_bytes() for path in files if path.suffix in (".mod", ".sum", ".go"))
    return cache() / hashlib.sha256(content).hexdigest()[:16]


def program(name: str) -> Path:
    """Returns where a program is once it is built."""
    for target in TARGETS.values():
        if name in target.packages:
            return folder(target) / name
    raise KeyError(name)


def missing(*names: str) -> list[str]:
    """Returns the targets among `names` that are not built yet."""
    return [name for name in names if not all(program(one).exists() for one in TARGETS[name].packages)]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes; it goes with the process, whatever ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(*names: str) -> dict[str, float]:
    """Builds the targets that are missing; returns the seconds that each took."""
    took = {}
    for name in names:
        with locked(cache() / f"{name}.lock"):
            if missing(name):
                started = time.monotonic()
                _build(TARGETS[name])
                took[name] = time.monotonic() - started
    return took


def _build(target: Target) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise CannotBuild("the program `go` is not on this machine: install Go 1.26 or later")
    place = folder(target)
    fresh = place.with_name(f"{place.name}.{next(iter(target.packages))}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    environment = os.environ | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
    }
    # one program gets its name here; several get those of their packages
    to = f"{fresh}/" if len(target.packages) > 1 else str(fresh / next(iter(target.packages)))
    command = [go, "build", "-mod=readonly", "-trimpath", f"-ldflags={_link_flags(target)}", "-o", to]
    done = subprocess.run(
        [*command, *target.packages.values()], cwd=MODULES / target.module, env=environment, timeout=BUILD_TIMEOUT_S,
        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CannotBuild(
            f"go build of {', '.join(target.packages)} failed ({done.returncode}):\n{done.stdout[-TAIL_CHARACTERS:]}"
        )
    place.mkdir(exist_ok=True)
    for made in fresh.iterdir():
        made.replace(place / made.name)
    fresh.rmdir()


def _link_flags(target: Target) -> str:
    """Returns the linker's flags: no symbols; Kubernetes' programs compare their versions, which a build has to tell them."""
    content = (MODULES / target.module / "go.mod").read_text()
    found = re.search(r"^(?:require)?\s+k8s\.io/kubernetes v1\.(\d+)\.(\d+)\b", content, re.MULTILINE)
    if found is None:
        return "-s -w"
    facts = {"gitVersion": "v1.{}.{}".format(*found.groups()), "gitMajor": "1", "gitMinor": found[1], "gitCommit": "0" * 40,
             "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z"}  # fmt: skip
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in facts.items())]
    )
