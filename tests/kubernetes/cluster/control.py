"""The control plane: etcd, API server, controller manager, scheduler and DNS, as processes of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kubernetes.cluster import keys, layout, processes
from tests.kubernetes.cluster.api import Api
from tests.kubernetes.cluster.builds import program

ETCD = "http://127.0.0.1:23790"
ETCD_PEERS = "http://127.0.0.1:23800"
READY_TIMEOUT_S = 90.0
RUNS = ("etcd", "apiserver", "controller-manager", "scheduler", "coredns")
"""In the order in which they start."""

DNS_ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "danlu-coredns"},
    "rules": [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ],
}  # fmt: skip


def binding(name: str, role: str, user: str) -> dict[str, object]:
    """Returns that a user has a role in the whole cluster."""
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user, "apiGroup": group}],
    }  # fmt: skip


def start(name: str) -> None:
    """Starts one process of the control plane unless it runs."""
    if processes.find(name) is None:
        processes.start(name, {"etcd": _etcd, "apiserver": _apiserver, "controller-manager": _controller_manager,
                               "scheduler": _scheduler, "coredns": _coredns}[name]())  # fmt: skip


def start_all(api: Api) -> None:
    """Starts the control plane and waits until it answers."""
    layout.run().joinpath("resolv.conf").write_text(f"nameserver {layout.HOST}\n")
    start("etcd")
    start("apiserver")
    processes.wait_until("the API server", READY_TIMEOUT_S, api.answers)
    # the others exit where they come before the API server has made its own roles, which is part of being ready
    api.apply(
        binding("danlu-proxy", "system:node-proxier", "system:kube-proxy"),
        DNS_ROLE,
        binding("danlu-coredns", "danlu-coredns", "coredns"),
    )
    for name in RUNS[2:]:
        start(name)


def _etcd() -> list[str | Path]:
    # what is in it does not outlive the cluster: no fsync
    return [
        program("etcd"), "--name=danlu", f"--data-dir={layout.run() / 'etcd'}", f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}", f"--listen-peer-urls={ETCD_PEERS}",
        f"--initial-advertise-peer-urls={ETCD_PEERS}", f"--initial-cluster=danlu={ETCD_PEERS}", "--unsafe-no-fsync",
        f"--quota-backend-bytes={4 << 30}", "--log-level=warn",
    ]  # fmt: skip


def _apiserver() -> list[str | Path]:
    folder = layout.keys()
    policy = layout.run() / "audit-policy.json"
    policy.write_text(json.dumps({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "None", "resources": [
            {"group": "coordination.k8s.io"}, {"group": "", "resources": ["events"]}]}, {"level": "Metadata"}],
    }))  # fmt: skip
    return [
        program("kube-apiserver"), f"--etcd-servers={ETCD}", f"--bind-address={layout.HOST}",
        f"--advertise-address={layout.HOST}", f"--secure-port={keys.PORT}",
        f"--tls-cert-file={folder / 'apiserver.crt'}", f"--tls-private-key-file={folder / 'apiserver.key'}",
        f"--client-ca-file={folder / 'authority.crt'}",
        f"--kubelet-client-certificate={folder / 'apiserver-to-kubelet.crt'}",
        f"--kubelet-client-key={folder / 'apiserver-to-kubelet.key'}", "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={folder / 'accounts.pub'}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={layout.SERVICES}", "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--max-requests-inflight=1600",
        "--max-mutating-requests-inflight=800",
        # who wrote what, for tests that count
        f"--audit-policy-file={policy}", f"--audit-log-path={layout.run() / 'audit.log'}", "--audit-log-maxsize=200",
        "--audit-log-maxbackup=1",
    ]  # fmt: skip


def _controller_manager() -> list[str | Path]:
    config, folder = layout.kubeconfig("controller-manager"), layout.keys()
    return [
        program("kube-controller-manager"), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1", "--leader-elect=false",
        f"--service-account-private-key-file={folder / 'accounts.key'}", f"--root-ca-file={folder / 'authority.crt'}",
        "--use-service-account-credentials=true", f"--cluster-cidr={layout.PODS}", "--allocate-node-cidrs=false",
        f"--cluster-signing-cert-file={folder / 'authority.crt'}",
        f"--cluster-signing-key-file={folder / 'authority.key'}", "--kube-api-qps=300", "--kube-api-burst=600",
    ]  # fmt: skip


def _scheduler() -> list[str | Path]:
    config = layout.kubeconfig("scheduler")
    return [
        program("kube-scheduler"), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1", "--leader-elect=false",
        "--kube-api-qps=300", "--kube-api-burst=600",
    ]  # fmt: skip


def _coredns() -> list[str | Path]:
    path = layout.run() / "Corefile"
    path.write_text(f"""cluster.local in-addr.arpa {{
    bind {layout.HOST}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.kubeconfig("coredns")} danlu
        pods insecure
        ttl 1
    }}
}}
. {{
    bind {layout.HOST}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
    return [program("coredns"), "-conf", path]
