"""What the cluster takes of the machine, and gives back: a bridge, routes, control groups, settings of the kernel."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from tests.kubernetes.cluster import layout
from tests.kubernetes.cluster.processes import CGROUPS, ClusterError, command, kill_all, members, wait_until

PROGRAMS = {
    "containerd": "containerd", "ctr": "containerd", "runc": "runc", "ip": "iproute2", "iptables": "iptables",
    "openssl": "openssl", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount",
    "busybox": "busybox-static",
}  # fmt: skip
"""Program -> the Debian package that brings it."""
PLUGINS = Path("/usr/lib/cni")
SET_BY_KUBELET = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
                  "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")  # fmt: skip
"""Settings that a kubelet changes for the whole machine."""
FORWARD = (
    "FORWARD",
    "-i",
    layout.BRIDGE,
    "-o",
    layout.BRIDGE,
    "-m",
    "comment",
    "--comment",
    "danlu-cluster",
    "-j",
    "ACCEPT",
)


def lacking() -> str:
    """Returns what the machine lacks for a cluster; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "a cluster can be started by root only"
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    packages = {package for name, package in PROGRAMS.items() if shutil.which(name, path=path) is None}
    if not (PLUGINS / "bridge").exists():
        packages.add("containernetworking-plugins")
    return f"these Debian packages are missing: {' '.join(sorted(packages))}" if packages else ""


def _controllers() -> list[Path]:
    """Returns the roots below which a node has its control group: version 2's one, or each hierarchy of version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [one for one in CGROUPS.iterdir() if one.is_dir() and not one.is_symlink() and one.name != "unified"]


def _groups() -> list[Path]:
    """Returns the cluster's control groups, in version 2's own hierarchy beside 1's too: the runtime makes one there."""
    roots = {*_controllers(), CGROUPS / "unified"}
    names = (layout.GROUP, *map(layout.namespace, layout.NODES))
    return [root / name for root in sorted(roots) for name in names if (root / name).exists()]


def borrow() -> None:
    """Makes the bridge and the control groups, and notes the kernel's settings. Doing so twice is harmless."""
    noted = layout.run() / "sysctl.json"
    if not noted.exists():
        values = {name: Path("/proc/sys", name).read_text().strip() for name in SET_BY_KUBELET}
        noted.write_text(json.dumps(values, indent=1))
    if not Path("/sys/class/net", layout.BRIDGE).exists():
        command("ip", "link", "add", layout.BRIDGE, "type", "bridge")
        command("ip", "addr", "add", f"{layout.HOST}/24", "dev", layout.BRIDGE)
        command("ip", "link", "set", layout.BRIDGE, "up")
        # where bridged packets pass through iptables, another's rules (docker's: drop) must not part the nodes
        command("iptables", "-w", "-I", *FORWARD)
    for node in layout.NODES:
        for root in _controllers():
            made = root / layout.namespace(node)
            made.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty in a new group, and nobody may enter then
                if root.name == "cpuset":
                    (made / name).write_text((root / name).read_text())


def plug_in(node: str) -> None:
    """Makes a node's network namespace, with a cable to the bridge and routes to the other nodes' pods."""
    name, cable, own = layout.namespace(node), layout.link(node), layout.address(node)
    command("ip", "netns", "add", name)
    command("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    command("ip", "link", "set", cable, "master", layout.BRIDGE, "up")
    command("ip", "-n", name, "link", "set", "lo", "up")
    command("ip", "-n", name, "addr", "add", f"{own}/24", "dev", "eth0")
    command("ip", "-n", name, "link", "set", "eth0", "up")
    command("ip", "route", "replace", layout.pod_range(node), "via", own)
    # services' addresses get a route, so that the rules of kube-proxy see the packet; no default route: nothing leaves
    command("ip", "-n", name, "route", "add", layout.SERVICES, "via", layout.HOST)
    for other in layout.NODES:
        if other != node:
            command("ip", "-n", name, "route", "add", layout.pod_range(other), "via", layout.address(other))


def unplug(node: str) -> None:
    """Kills what is left of a node and removes its network. None there is success."""
    name = layout.namespace(node)
    kill_all(node, lambda: members(name))
    if Path("/run/netns", name).exists():
        kill_all(node, lambda: {int(pid) for pid in command("ip", "netns", "pids", name).split()})
        command("ip", "netns", "del", name)
    command("ip", "link", "del", layout.link(node), check=False)
    command("ip", "route", "del", layout.pod_range(node), check=False)


def give_back() -> None:
    """Ends all that the cluster runs, and undoes `borrow`."""
    kill_all("the control plane", lambda: members(layout.GROUP))
    for node in layout.NODES:
        unplug(node)
    for group in _groups():
        _remove_group(group)
    command("iptables", "-w", "-D", *FORWARD, check=False)
    command("ip", "link", "del", layout.BRIDGE, check=False)
    noted = layout.run() / "sysctl.json"
    if noted.exists():
        for name, value in json.loads(noted.read_text()).items():
            Path("/proc/sys", name).write_text(value)
        noted.unlink()


def _remove_group(group: Path) -> None:
    def removed() -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):  # a process that was killed is still leaving
                os.rmdir(folder)  # noqa: PTH106 # one of thousands, and a plain path
        return not group.exists()

    wait_until(f"the removal of the control group {group}", 10, removed)


def left_behind() -> list[str]:
    """Returns what of the cluster is on this machine: empty after it was taken down."""
    found = [
        f"network namespace {one}" for one in map(layout.namespace, layout.NODES) if Path("/run/netns", one).exists()
    ]
    links = (layout.BRIDGE, *map(layout.link, layout.NODES))
    found += [f"network device {one}" for one in links if Path("/sys/class/net", one).exists()]
    found += [f"control group {one}" for one in _groups()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount {line.split()[1]}" for line in mounts if f" {layout.run()}/" in line]
    with suppress(ClusterError, FileNotFoundError):
        rules = command("iptables", "-w", "-S", "FORWARD").splitlines()
        found += [f"rule {line}" for line in rules if "danlu-cluster" in line]
    return found
