"""`python -m tests.kubernetes.cluster`: builds, starts and stops the cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.kubernetes.cluster import builds, control, fake_nodes, images, layout, machine, processes, running
from tests.kubernetes.cluster.api import Api
from tests.kubernetes.cluster.builds import CannotBuild
from tests.kubernetes.cluster.processes import ClusterError


def arguments() -> argparse.ArgumentParser:
    """Returns the parser; each command has its function as `do`."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(do=do)
        return one

    one = command("build", build, "build programs that are not in the cache")
    one.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(builds.TARGETS)}; all where none is named"
    )
    one = command("up", up, "start the cluster, or what of it does not run; prints how to reach it")
    one.add_argument("--fake-nodes", type=int, default=0, metavar="COUNT", help="nodes without a machine, by kwok")
    one.add_argument("--gpus", type=int, default=8, help="of each fake node")
    one = command("down", down, "stop the cluster: files for the next start stay")
    one.add_argument("--purge", action="store_true", help="remove its files too, but builds and images")
    one.add_argument("--force", action="store_true", help="though tests use it")
    command("status", status, "say what runs; fails where the cluster is not up")
    one = command("fake-nodes", fakes, "make fake nodes up to a number; 0 removes them all")
    one.add_argument("count", type=int)
    one.add_argument("--gpus", type=int, default=8, help="of each")
    one = command("resource", resource, "make a node offer a resource, as nvidia.com/gpu; 0 takes it away")
    one.add_argument("node", choices=layout.NODES)
    one.add_argument("name")
    one.add_argument("count", type=int)
    one = command("image", image, "make an image of a folder and bring it to the nodes")
    one.add_argument("name", help="as danlu.test/mine:1")
    one.add_argument("folder", type=Path)
    one.add_argument("--at", default="/", help="where the folder's files are in the image")
    one.add_argument("--on", default=images.PYTHON, choices=(images.PYTHON, images.BUSYBOX, ""), help="the image below")
    for name, text in (("kill", "end a process or a node at once"), ("start", "start what was killed")):
        one = command(name, act, f"{text}: {', '.join((*control.RUNS, *layout.NODES))}")
        one.add_argument("name", choices=(*control.RUNS, *layout.NODES))
        one.set_defaults(act=name)
    return parser


def build(asked: argparse.Namespace) -> None:
    unknown = [name for name in asked.names if name not in builds.TARGETS]
    if unknown:
        raise CannotBuild(f"there is no {unknown[0]} to build, only: {', '.join(builds.TARGETS)}")
    for name in asked.names or builds.TARGETS:
        took = builds.build(name)
        print(f"{name}: " + (f"built in {took[name]:.0f} s" if took else "already built"), flush=True)


def up(asked: argparse.Namespace) -> None:
    started = time.monotonic()
    running.up()
    if asked.fake_nodes:
        fake_nodes.add(asked.fake_nodes, asked.gpus)
    print(f"the cluster is up after {time.monotonic() - started:.1f} s", file=sys.stderr)
    print(f"export KUBECONFIG={layout.kubeconfig()}\nexport PATH={builds.program('kubectl').parent}:$PATH")


def down(asked: argparse.Namespace) -> None:
    running.down(purge=asked.purge, force=asked.force)


def status(_asked: argparse.Namespace) -> None:
    pids = {name: processes.find(name) for name in (*control.RUNS, *layout.NODES, "kwok")}
    for name, pid in pids.items():
        print(f"{name:20} {'not running' if pid is None else f'pid {pid}'}")
    if not running.is_up():
        left = [] if any(pids.values()) else machine.left_behind()
        raise ClusterError(
            "the cluster is not up" + (f"; on this machine are still: {', '.join(left)}" if left else "")
        )
    with Api() as api:
        nodes = list(api.pages("/api/v1/nodes"))
    print(f"{sum(map(fake_nodes.is_ready, nodes))} of {len(nodes)} nodes are ready")
    print(f"KUBECONFIG={layout.kubeconfig()}\npods reach this machine at {layout.HOST}")


def fakes(asked: argparse.Namespace) -> None:
    if asked.count:
        fake_nodes.add(asked.count, asked.gpus)
    else:
        fake_nodes.remove()


def resource(asked: argparse.Namespace) -> None:
    with Api() as api:
        fake_nodes.set_resource(api, asked.node, asked.name, asked.count)


def image(asked: argparse.Namespace) -> None:
    made = images.from_folder(asked.name, asked.folder, asked.at, asked.on)
    images.load(made)
    print(made.name)


def act(asked: argparse.Namespace) -> None:
    getattr(running.Cluster(), asked.act)(asked.name)


if __name__ == "__main__":
    parsed = arguments().parse_args()
    try:
        parsed.do(parsed)
    except (ClusterError, CannotBuild) as error:
        sys.exit(f"cluster: {error}")
