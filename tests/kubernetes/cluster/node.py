"""One node: its own network, mounts and host name, a containerd, a kubelet and a kube-proxy.

`python -m tests.kubernetes.cluster.node NAME` runs inside the node's network and mount namespaces and ends with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.kubernetes.cluster import layout, machine, processes
from tests.kubernetes.cluster.builds import program
from tests.kubernetes.cluster.images import PAUSE
from tests.kubernetes.cluster.processes import command

REPOSITORY = Path(__file__).parents[3]
RESTART_PAUSE_S = 0.3
OWN = ("/var/lib", "/var/log", "/run")
"""Folders that each node has for itself: kubelet's and containerd's paths are fixed in part."""


def start(node: str) -> None:
    """Plugs a node in and starts it, unless it runs."""
    if processes.find(node) is not None:
        return
    machine.unplug(node)  # what a node that was killed left
    machine.plug_in(node)
    enter = ["nsenter", f"--net=/run/netns/{layout.namespace(node)}", "unshare", "--mount", "--uts",
             "--propagation", "private"]  # fmt: skip
    processes.start(node, [*enter, sys.executable, "-m", __name__, node], {"PYTHONPATH": str(REPOSITORY)})


def stop(node: str) -> None:
    """Ends a node with all its pods, at once: what the API server believes of it is not touched."""
    machine.unplug(node)


def _kubelet(node: str) -> Path:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": layout.address(node), "port": 10250, "readOnlyPort": 0, "healthzBindAddress": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                           "x509": {"clientCAFile": str(layout.keys() / "authority.crt")}},
        "authorization": {"mode": "Webhook"}, "containerRuntimeEndpoint": f"unix://{layout.runtime(node)}",
        "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{layout.namespace(node)}", "failCgroupV1": False,
        "failSwapOn": False, "clusterDNS": [layout.HOST], "clusterDomain": "cluster.local",
        "resolvConf": str(layout.run() / "resolv.conf"), "maxPods": 200, "registerNode": True,
        "volumePluginDir": str(layout.disk(node) / "volume-plugins"), "serializeImagePulls": False, "registryPullQPS": 0,
        "kubeAPIQPS": 100, "kubeAPIBurst": 200, "eventRecordQPS": 100, "nodeStatusUpdateFrequency": "5s",
        # no registry could bring an image back
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                         "nodefs.inodesFree": "1%"},
        # each node takes itself for the whole machine: together they offer what there is
        "kubeReserved": {"memory": str(memory - memory // (len(layout.NODES) + 1))},
    }  # fmt: skip
    path = layout.disk(node) / "kubelet.json"
    path.write_text(json.dumps(config, indent=1))
    return path


def _containerd(node: str) -> Path:
    disk = layout.disk(node)
    network = disk / "network"
    network.mkdir(exist_ok=True)
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": layout.pod_range(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    network.joinpath("pods.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "danlu", "plugins": [bridge, ports]})
    )
    off = [f"io.containerd.snapshotter.v1.{one}" for one in ("btrfs", "zfs", "aufs", "devmapper")]
    path = disk / "containerd.toml"
    # restrict_oom_score_adj: root of a machine without CAP_SYS_RESOURCE may not lower it
    path.write_text(f"""version = 2
root = "{disk}/images"
state = "{disk}/state"
disabled_plugins = {json.dumps([*off, "io.containerd.internal.v1.tracing"])}
[grpc]
  address = "{layout.runtime(node)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{machine.PLUGINS}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
""")
    return path


def _isolate(node: str) -> None:
    """Gives the node a host name and folders of its own; what it leaves in them goes with it."""
    disk = layout.disk(node)
    command("hostname", node)
    for setting in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        path = Path("/proc/sys/net", setting)
        if path.exists():
            path.write_text("1")
    command("mount", "--make-rshared", "/")
    for number, folder in enumerate(OWN):
        if layout.run().is_relative_to(folder):
            continue  # it would hide what it is made of
        if folder == "/run":
            command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        else:
            own = disk / f"own-{number}"
            own.mkdir(exist_ok=True)  # a node that was killed finds its disk as it was
            command("mount", "--bind", own, folder)
    Path("/run/netns").mkdir(exist_ok=True)


class Daemons:
    """The node's processes while it runs; each is started again when it ends, as an init system would."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.over = threading.Event()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def keep(self, name: str, words: Sequence[str | Path]) -> threading.Thread:
        def run() -> None:
            while not self.over.is_set():
                with (layout.logs() / f"{self.node}-{name}.log").open("ab") as log:
                    self.running[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                self.running[name].wait()
                self.over.wait(RESTART_PAUSE_S)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def end(self, _number: int, _frame: FrameType | None) -> None:
        self.over.set()
        for process in self.running.values():
            process.terminate()


def main(node: str) -> None:
    _isolate(node)
    daemons = Daemons(node)
    signal.signal(signal.SIGTERM, daemons.end)
    daemons.keep("containerd", ["containerd", "-c", _containerd(node)])
    disk, name = layout.disk(node), f"--hostname-override={node}"
    # it exits while containerd is not ready, and is started again
    processes.wait_until("containerd's socket", 30, layout.runtime(node).exists)
    daemons.keep("kubelet", [
        program("kubelet"), f"--config={_kubelet(node)}", f"--kubeconfig={layout.kubeconfig(node)}", name,
        f"--node-ip={layout.address(node)}", f"--cert-dir={disk / 'kubelet-keys'}",
    ])  # fmt: skip
    daemons.keep("proxy", [
        program("kube-proxy"), f"--kubeconfig={layout.kubeconfig('proxy')}", "--proxy-mode=iptables", name,
        f"--cluster-cidr={layout.PODS}", f"--bind-address={layout.address(node)}",
        "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
        # the limits of connections are the whole machine's, and not for a node to set
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
    ])  # fmt: skip
    daemons.over.wait()
    for process in daemons.running.values():
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
