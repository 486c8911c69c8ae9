"""The chart as it is installed: an image of this checkout, PostgreSQL and a bucket that pods reach, a release, its users."""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import secrets
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from packaging.requirements import Requirement

from tests.kubernetes.cluster import builds, images
from tests.kubernetes.cluster.api import Refused
from tests.kubernetes.cluster.processes import ClusterError, command
from tests.kubernetes.cluster.running import Cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
LOCK = ROOT / "requirements" / "server.txt"
IMAGE = f"{images.REGISTRY}/danlu-server:1"
KUBERNETES = "1.33.0"
EXPIRES = timedelta(days=2)
ENDS_S = 30


def template(*words: str, **values: Any) -> list[dict[str, Any]]:
    """Returns the objects that the chart makes of values; no cluster is asked."""
    given = {"database.existingSecret": "db", "objectStore.url": "s3://danlu/here"} | values
    place = ("--kube-version", KUBERNETES, "--namespace", "danlu")
    text = command(builds.program("helm"), "template", "danlu", CHART, *place, *words, *_set(given))
    return [one for one in yaml.safe_load_all(text) if one]


def refused(**values: Any) -> str:
    """Returns why the chart does not take values."""
    try:
        template(**values)
    except ClusterError as error:
        return str(error)
    raise AssertionError(f"the chart took {values}")


def _set(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield from ("--set-json", f"{name}={json.dumps(value)}")


def locked() -> list[Requirement]:
    """Returns what the server's image installs, as far as this machine's Python needs it."""
    lines = [line.rstrip("\\ ") for line in LOCK.read_text().splitlines() if "==" in line]
    return [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]


def make_image(folder: Path) -> images.Image:
    """Makes the server's image: what its Dockerfile installs, of the files that are installed here."""
    packages = folder / "lib" / "python3.11" / "site-packages"
    for one in locked():
        for file in distribution(one.name).files or ():
            if file.locate().exists():  # byte code among them: it is as old as its source says
                target = (packages / file).resolve()  # programs are in ../../../bin
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(file.locate()), target)
    ours = packages / "danlu"
    shutil.copytree(ROOT / "src" / "danlu", ours, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(ours, quiet=2, workers=2, stripdir=str(folder), prependdir="/opt/danlu",
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)  # fmt: skip
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (folder / "bin" / "python").symlink_to("/usr/bin/python3")
    program = folder / "bin" / "danlu"
    program.write_text("#!/opt/danlu/bin/python\nfrom danlu.cli.main import main\nmain()\n")
    program.chmod(0o755)
    made = (folder, *(path for path in folder.rglob("*") if path.is_dir()), *ours.rglob("*"), *(folder / "bin").iterdir(),
            folder / "pyvenv.cfg")  # fmt: skip
    for path in made:  # the same files are the same image, which nodes have already
        os.utime(path, (0, 0), follow_symlinks=False)
    return images.from_folder(IMAGE, folder, at="/opt/danlu")


def certificate(*names: str) -> dict[str, str]:
    """Returns what a Secret for TLS holds, signed by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + EXPIRES)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {"tls.crt": pem, "tls.key": private, "ca.crt": pem}


@dataclass
class Release:
    """One that is installed in namespaces of its own, and its first administrator."""

    cluster: Cluster
    namespace: str
    jobs: str
    endpoint: str = ""
    region: str = ""
    things: dict[str, dict[str, str]] = field(default_factory=dict)
    """The Secrets that it is installed with."""
    key: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        """Makes its namespace, and the Secrets in it."""
        api = self.cluster.api
        api(
            "POST",
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}},
        )
        for name, data in self.things.items():
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
            api("POST", f"/api/v1/namespaces/{self.namespace}/secrets", secret)

    def end(self) -> None:
        """Removes what is left of it."""
        with suppress(ClusterError):  # it is uninstalled already
            self.cluster.helm("uninstall", "danlu", "--namespace", self.namespace)
        with suppress(Refused):
            self.cluster.api("DELETE", f"/api/v1/namespaces/{self.jobs}")
        self.cluster.api("DELETE", f"/api/v1/namespaces/{self.namespace}")

    def helm(self, verb: str, values: dict[str, Any], *words: str) -> None:
        place = ("--namespace", self.namespace, "--wait", "--timeout", "180s")
        self.cluster.helm(verb, "danlu", CHART, *place, *words, *_set(values))

    def pods(self) -> list[str]:
        """Returns the names of the servers' pods that are ready and stay."""
        found = self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/pods",
                                 labelSelector="app.kubernetes.io/component=server")["items"]  # fmt: skip
        return sorted(
            pod["metadata"]["name"] for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))
        )  # fmt: skip

    def scraped(self, pod: str, token: str) -> dict[str, float]:
        """Returns a server's figures as Prometheus gets them: by a token, over TLS with the Secret's authority."""
        context = ssl.create_default_context(cadata=self.things["tls"]["ca.crt"])
        with self.forwarded(pod) as url:
            port = url.rpartition(":")[2]
            asked = Request(f"https://localhost:{port}/metrics", headers={"Authorization": f"Bearer {token}"})
            with urlopen(asked, context=context, timeout=ENDS_S) as answer:
                lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def first_key(self) -> dict[str, str]:
        """Returns the first administrator's key, as docs/how-to/kubernetes.md has it."""
        found = json.loads(self.within("python", "-m", "danlu.server.offline", "first-key"))
        return {"DANLU_ACCESS_KEY_ID": found["access_key_id"], "DANLU_SECRET_ACCESS_KEY": found["secret"]}

    def within(self, *words: str) -> str:
        """Runs a command in one of the servers' pods."""
        return self.cluster.kubectl("-n", self.namespace, "exec", "deployment/danlu", "--", *words)

    @contextmanager
    def forwarded(self, pod: str) -> Iterator[str]:
        """Leads a port of this machine to a pod; yields its address."""
        words = [str(builds.program("kubectl")), f"--kubeconfig={self.cluster.kubeconfig}", "-n", self.namespace,
                 "port-forward", f"pod/{pod}", ":7070"]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert "127.0.0.1:" in line, line
                yield f"https://127.0.0.1:{line.split('127.0.0.1:')[1].split()[0]}"
            finally:
                process.terminate()

    def danlu(self, pod: str, *words: str, home: Path, timeout_s: float = 120) -> str:
        """Runs the command line against one server and returns what it prints."""
        with self.forwarded(pod) as url:
            print_ = x509.load_pem_x509_certificate(self.things["tls"]["tls.crt"].encode()).fingerprint(hashes.SHA256())
            environ = {"PATH": os.defpath, "HOME": str(home), "DANLU_URL": url,
                       "DANLU_FINGERPRINT": f"sha256:{print_.hex()}", **self.key}  # fmt: skip
            done = subprocess.run([Path(sys.executable).with_name("danlu"), *words], env=environ, cwd=home,
                                  capture_output=True, text=True, timeout=timeout_s, check=False)  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def secret(self, name: str) -> dict[str, str]:
        """Returns a Secret's data."""
        found = self.cluster.api("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        return dict(found["data"])

    def may(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Says whether the servers' account may do something."""
        kind, _, part = resource.partition("/")
        asked = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.namespace}:danlu",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": kind, "subresource": part, "namespace": namespace,
                },
            },
        }  # fmt: skip
        answer = self.cluster.api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asked)
        return bool(answer["status"]["allowed"])


def fresh_name(kind: str) -> str:
    """Returns a namespace's name of which there is no other."""
    return f"test-{kind}-{secrets.token_hex(4)}"
