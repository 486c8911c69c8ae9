"""The cluster's keys: an authority, certificates and kubeconfigs, made by openssl."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.kubernetes.cluster import layout
from tests.kubernetes.cluster.processes import command

DAYS = "3650"
PORT = 6443
URL = f"https://{layout.HOST}:{PORT}"
NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)
USERS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=coredns",
    **{node: f"/O=system:nodes/CN=system:node:{node}" for node in layout.NODES},
}
"""Who has a kubeconfig, and what its certificate says."""


def make() -> None:
    """Makes all keys, once for a run folder."""
    folder = layout.keys()
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _key("authority")
    command("openssl", "req", "-x509", "-new", "-key", folder / "authority.key", "-days", DAYS, "-subj",
            "/CN=danlu-test-cluster", "-out", folder / "authority.crt")  # fmt: skip
    command("openssl", "genrsa", "-out", folder / "accounts.key", "2048")
    command("openssl", "rsa", "-in", folder / "accounts.key", "-pubout", "-out", folder / "accounts.pub")
    addresses = ",".join(f"IP:{one}" for one in (layout.HOST, "127.0.0.1", layout.KUBERNETES_SERVICE))
    _certificate("apiserver", "/CN=kube-apiserver", f"{addresses},{','.join(f'DNS:{name}' for name in NAMES)}")
    _certificate("apiserver-to-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    for user, subject in USERS.items():
        _certificate(user, subject)
        _kubeconfig(user)
    (folder / "complete").touch()


def _key(name: str) -> Path:
    path = layout.keys() / f"{name}.key"
    command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
    return path


def _certificate(name: str, subject: str, names: str = "") -> None:
    folder = layout.keys()
    extensions = folder / f"{name}.extensions"
    lines = ["keyUsage=digitalSignature,keyEncipherment", "extendedKeyUsage=serverAuth,clientAuth"]
    extensions.write_text("\n".join([*lines, f"subjectAltName={names}"] if names else lines))
    request = command("openssl", "req", "-new", "-key", _key(name), "-subj", subject)
    command("openssl", "x509", "-req", "-CA", folder / "authority.crt", "-CAkey", folder / "authority.key",
            "-CAcreateserial", "-days", DAYS, "-extfile", extensions, "-out",
            folder / f"{name}.crt", send=request)  # fmt: skip
    extensions.unlink()


def _kubeconfig(user: str) -> None:
    """Writes a kubeconfig that needs no other file. (JSON is YAML.)"""

    def inlined(name: str) -> str:
        return base64.b64encode((layout.keys() / name).read_bytes()).decode()

    path = layout.kubeconfig(user)
    path.touch(mode=0o600)
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "danlu",
        "clusters": [{"name": "danlu", "cluster": {"server": URL, "certificate-authority-data": inlined("authority.crt")}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": inlined(f"{user}.crt"), "client-key-data": inlined(f"{user}.key")}}],
        "contexts": [{"name": "danlu", "context": {"cluster": "danlu", "user": user}}],
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1))
