"""The whole cluster: up, down, what it is now, and what tests do to it."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.kubernetes.cluster import builds, control, fake_nodes, images, keys, layout, machine, node, processes
from tests.kubernetes.cluster.api import Api, Refused
from tests.kubernetes.cluster.processes import ClusterError, command

TARGETS = ("kubernetes", "etcd", "coredns")
NODE_TIMEOUT_S = 120.0
FRESH = ("etcd", "log", "audit*.log", "node-*/own-*", "node-*/state", "node-*/kubelet-keys")
"""What one cluster leaves to look into, and the next one does not start with. Keys and images stay."""


def cannot() -> str:
    """Returns why no cluster can be started here; empty where one can."""
    lacking = machine.lacking()
    if lacking:
        return lacking
    missing = builds.missing(*TARGETS)
    command = f"python3 -m tests.kubernetes.cluster build {' '.join(missing)}"
    return f"these programs are not built: {command}" if missing else ""


def is_up() -> bool:
    """Returns whether the cluster answers and all its processes run."""
    if any(processes.find(name) is None for name in (*control.RUNS, *layout.NODES)):
        return False
    with Api() as api:
        return api.answers()


def version() -> str:
    """Returns what distinguishes a cluster of this clone from one that another clone left running."""
    return json.dumps([str(builds.folder(builds.TARGETS[name])) for name in TARGETS])


def up() -> None:
    """Starts the cluster, or what of it does not run. Returns when both nodes take pods."""
    reason = cannot()
    if reason:
        raise ClusterError(reason)
    with builds.locked(layout.lock("change")):
        _refuse_another_owner()
        noted = layout.run() / "version"
        if noted.exists() and noted.read_text() != version():
            with _held("users", fcntl.LOCK_EX | fcntl.LOCK_NB):
                _down()
        if is_up():
            return
        fresh = not any(processes.find(name) for name in (*control.RUNS, *layout.NODES))
        if fresh:
            _down()  # what a machine that lost its power, or a run that was killed, left
            for path in (one for name in FRESH for one in layout.run().glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        layout.run().mkdir(parents=True, exist_ok=True)
        noted.write_text(version())
        layout.lock("owner").write_text(str(layout.run()))
        try:
            _start()
        except BaseException:
            if fresh:  # what runs in part may serve somebody
                _down()
            raise


def _refuse_another_owner() -> None:
    """Refuses to touch a cluster that lives in another folder than ours."""
    owner = layout.lock("owner")
    if owner.exists() and owner.read_text() != str(layout.run()) and processes.members(layout.GROUP):
        raise ClusterError(f"another cluster runs on this machine, from {owner.read_text()}: take that one down first")


def _start() -> None:
    keys.make()
    machine.borrow()
    with ThreadPoolExecutor(1) as threads, Api() as api:
        made = threads.submit(images.base)
        control.start_all(api)
        for name in layout.NODES:
            layout.disk(name).mkdir(exist_ok=True)
            node.start(name)
        for name in layout.NODES:
            processes.wait_until(f"containerd of {name}", NODE_TIMEOUT_S, partial(_serves, name))
        for image in made.result():
            images.load(image)
        settle(api)
        processes.wait_until("the default service account", NODE_TIMEOUT_S, partial(_default_account, api))


def _serves(name: str) -> bool:
    with suppress(ClusterError):
        return bool(command("ctr", "--address", layout.runtime(name), "version"))
    return False


def settle(api: Api) -> None:
    """Waits until the API server answers, both nodes are ready, and it reaches their kubelets."""
    for name in layout.NODES:
        processes.wait_until(f"the node {name} being ready", NODE_TIMEOUT_S, partial(_ready, api, name))


def _ready(api: Api, name: str) -> bool:
    try:
        # asked through the API server, which forgets its connections to a kubelet that is gone by that
        return fake_nodes.is_ready(api("GET", f"/api/v1/nodes/{name}")) and (
            api.text("GET", f"/api/v1/nodes/{name}/proxy/healthz") == "ok"
        )
    except (Refused, OSError):
        return False


def _default_account(api: Api) -> bool:
    try:
        return bool(api("GET", "/api/v1/namespaces/default/serviceaccounts/default"))
    except Refused:
        return False


def down(*, purge: bool = False, force: bool = False) -> None:
    """Ends the cluster and leaves nothing but files; `purge` removes those too, the builds and images excepted."""
    with builds.locked(layout.lock("change")):
        _refuse_another_owner()
        with nullcontext() if force else _held("users", fcntl.LOCK_EX | fcntl.LOCK_NB):
            _down()
        if purge:
            shutil.rmtree(layout.run(), ignore_errors=True)


def _down() -> None:
    machine.give_back()  # at once: nothing of it is to be kept
    shutil.rmtree(layout.run() / "pids", ignore_errors=True)
    left = machine.left_behind()
    if left:
        raise ClusterError(f"the cluster left behind: {', '.join(left)}")


@contextmanager
def _held(name: str, how: int) -> Iterator[None]:
    """Holds a lock on the cluster: `users` while anybody uses it, `alone` while one test wants no other in it."""
    with layout.lock(name).open("a") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError as error:
            raise ClusterError("tests use the cluster: wait for their end, or `down --force`") from error
        yield


@contextmanager
def used() -> Iterator[None]:
    """Keeps the cluster from being taken down meanwhile."""
    with _held("users", fcntl.LOCK_SH):
        yield


@contextmanager
def shared(*, alone: bool = False) -> Iterator[None]:
    """Lets others use the cluster at the same time, or none: waits for those there are."""
    with _held("alone", fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        yield


class Cluster:
    """A running cluster in the hands of a test."""

    host = layout.HOST
    """This machine's address for pods."""
    nodes = layout.NODES

    def __init__(self) -> None:
        self.api = Api()
        self.kubeconfig = layout.kubeconfig()

    def kubectl(self, *words: str, send: str | None = None) -> str:
        """Runs kubectl as the administrator and returns its output."""
        return command(builds.program("kubectl"), f"--kubeconfig={self.kubeconfig}", *words, send=send)

    def helm(self, *words: str | Path) -> str:
        """Runs Helm as the administrator and returns its output; it is built apart: `builds.missing("helm")`."""
        return command(builds.program("helm"), f"--kubeconfig={self.kubeconfig}", *words)

    def set_resource(self, node: str, resource: str, count: int) -> None:
        """Makes a node offer so many of a resource; 0 takes it away."""
        fake_nodes.set_resource(self.api, node, resource, count)

    def load(self, image: images.Image) -> None:
        """Brings an image to both nodes."""
        images.load(image)

    def unload(self, image: images.Image) -> None:
        """Removes an image from both nodes and from the cache."""
        images.unload(image)

    def kill(self, name: str) -> None:
        """Kills a process of the control plane, or a node with all its pods, as a loss of power does."""
        if name in layout.NODES:
            node.stop(name)
        else:
            processes.send(name, signal.SIGKILL)
            processes.wait_until(f"the end of {name}", NODE_TIMEOUT_S, lambda: processes.find(name) is None)

    def pause(self, name: str) -> None:
        """Stops a process of the control plane in mid-air: connections stay, nothing answers."""
        processes.send(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        processes.send(name, signal.SIGCONT)

    def start(self, name: str) -> None:
        """Starts what was killed."""
        if name in layout.NODES:
            node.start(name)
        else:
            control.start(name)

    def settle(self) -> None:
        """Waits until all is as before a fault."""
        settle(self.api)

    def cut(self, node: str) -> None:
        """Pulls a node's cable: it goes on by itself, unseen."""
        command("ip", "link", "set", layout.link(node), "down")

    def mend(self, node: str) -> None:
        """Plugs a node's cable in again."""
        command("ip", "link", "set", layout.link(node), "up")
        command("ip", "route", "replace", layout.pod_range(node), "via", layout.address(node))

    def writes(self, since: int = 0) -> list[dict[str, Any]]:
        """Returns the audited writes to the API server, from a position in the log on (`written_bytes`)."""
        with self._audit.open("rb") as log:
            log.seek(since)
            return [json.loads(line) for line in log.read().splitlines() if line.endswith(b"}")]

    @property
    def written_bytes(self) -> int:
        """The audit log's size now."""
        return self._audit.stat().st_size

    @property
    def _audit(self) -> Path:
        return layout.run() / "audit.log"
