"""The test cluster is what production is: real nodes and pods, names, limits, resources; and fake nodes by the thousand."""

from __future__ import annotations

import http.server
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import cannot_run
from tests.kubernetes.cluster import builds, fake_nodes, images, layout, processes
from tests.kubernetes.cluster.api import Refused
from tests.kubernetes.cluster.processes import ClusterError, wait_until
from tests.kubernetes.cluster.running import Cluster
from tests.kubernetes.conftest import POD_TIMEOUT_S, Namespace, job

FAKE_NODES = 1000
FAKE_PODS = 200
KUBELET_PORT = 10250

MEET = """
import http.server, os, socket, threading, time, urllib.request
index = int(os.environ["JOB_COMPLETION_INDEX"])
class Name(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(socket.gethostname().encode())
        if self.path == "/end": met.set()
    def log_message(self, *words): pass
met = threading.Event()
threading.Thread(target=http.server.ThreadingHTTPServer(("", 8000), Name).serve_forever, daemon=True).start()
deadline = time.monotonic() + 60
while True:
    try:
        print(urllib.request.urlopen(f"http://gang-{1 - index}.gang:8000/end", timeout=5).read().decode(), flush=True)
        break
    except OSError as error:
        if time.monotonic() > deadline: raise
        time.sleep(0.1)
assert met.wait(60)
time.sleep(0.2)
"""


def spread(name: str) -> list[dict[str, Any]]:
    """Returns that a Job's pods are to be on different nodes."""
    return [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
             "labelSelector": {"matchLabels": {"job-name": name}}}]  # fmt: skip


def test_both_nodes_are_ready(kubernetes: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in kubernetes.api("GET", "/api/v1/nodes")["items"]}
    assert set(kubernetes.nodes) <= set(nodes)
    assert all(fake_nodes.is_ready(nodes[name]) for name in kubernetes.nodes)
    assert "node-2" in kubernetes.kubectl("get", "nodes")


def test_a_gang_on_two_nodes_meets_by_name(namespace: Namespace) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gang"}, "spec": {
        "clusterIP": "None", "selector": {"job-name": "gang"}, "publishNotReadyAddresses": True}}  # fmt: skip
    namespace.apply(
        service, job("gang", "python3", "-c", MEET, count=2, subdomain="gang", topologySpreadConstraints=spread("gang"))
    )
    namespace.job_ends("gang", "Complete")
    pods = namespace.pods("gang")
    assert {pod["spec"]["nodeName"] for pod in pods} == set(namespace.cluster.nodes)
    assert [namespace.log(pod) for pod in pods] == ["gang-1\n", "gang-0\n"]


def test_a_pod_reaches_this_machine_and_this_machine_a_pod(namespace: Namespace) -> None:
    asked = threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            asked.set()

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((namespace.cluster.host, 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{namespace.cluster.host}:{server.server_port}/"
        namespace.apply(job("web", "sh", "-c", f"curl -sSf {url} && exec python3 -m http.server 8000"))
        assert asked.wait(POD_TIMEOUT_S)
        server.shutdown()

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{namespace.pods('web')[0]['status'].get('podIP')}:8000/") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    wait_until("the pod's server", POD_TIMEOUT_S, answers)


def test_a_pod_reaches_the_api_server_with_its_own_token(namespace: Namespace) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    ask = f'curl -sS --cacert {folder}/ca.crt -H "Authorization: Bearer $(cat {folder}/token)" $URL'
    url = {"name": "URL", "value": "https://kubernetes.default.svc/version"}
    namespace.apply(job("ask", "bash", "-c", ask, automountServiceAccountToken=True, container={"env": [url]}))
    namespace.job_ends("ask", "Complete")
    assert '"gitVersion": "v1.33' in namespace.log(namespace.pods("ask")[0])


def test_too_much_memory_ends_a_pod_and_says_so(namespace: Namespace) -> None:
    limits = {"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}
    namespace.apply(
        job("greedy", "python3", "-c", "print('begun', flush=True); bytearray(300 << 20)", container=limits)
    )
    namespace.job_ends("greedy", "Failed")
    (pod,) = namespace.pods("greedy")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    assert namespace.log(pod) == "begun\n"


def test_an_image_without_python_runs(namespace: Namespace) -> None:
    namespace.apply(job("plain", "sh", "-c", "which python3 || echo none", image=images.BUSYBOX))
    namespace.job_ends("plain", "Complete")
    assert namespace.log(namespace.pods("plain")[0]) == "none\n"


def test_an_image_of_a_folder(namespace: Namespace, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("print('from the image')")
    image = images.from_folder(f"{images.REGISTRY}/{namespace.name}:1", tmp_path, "/opt/mine")
    namespace.cluster.load(image)
    namespace.apply(job("mine", "python3", "/opt/mine/hello.py", image=image.name))
    namespace.job_ends("mine", "Complete")
    assert namespace.log(namespace.pods("mine")[0]) == "from the image\n"
    namespace.cluster.unload(image)


def test_helm_installs_a_chart(namespace: Namespace, tmp_path: Path) -> None:
    if builds.missing("helm"):
        cannot_run("Helm is not built: python3 -m tests.kubernetes.cluster build helm")
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: small, version: 1.0.0}")
    (tmp_path / "templates" / "map.yaml").write_text(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-map'}, data: {said: '{{ .Values.said }}'}}"
    )
    namespace.cluster.helm("install", "mine", tmp_path, "--namespace", namespace.name, "--set", "said=hello")
    assert namespace.get("configmaps", "mine-map")["data"] == {"said": "hello"}
    namespace.cluster.helm("uninstall", "mine", "--namespace", namespace.name)
    with pytest.raises(Refused, match="404"):
        namespace.get("configmaps", "mine-map")


def test_an_image_that_is_nowhere_is_no_pod(namespace: Namespace) -> None:
    namespace.apply(job("lost", "true", image="danlu.test/nowhere:1"))

    def reason() -> bool:
        states = [one["state"] for pod in namespace.pods("lost") for one in pod["status"].get("containerStatuses", ())]
        return any(state.get("waiting", {}).get("reason") in ("ErrImagePull", "ImagePullBackOff") for state in states)

    wait_until("the pod saying that its image cannot be had", POD_TIMEOUT_S, reason)


def test_a_resource_is_given_to_as_many_as_there_is_of_it(alone: Cluster, namespace: Namespace) -> None:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    alone.set_resource("node-1", "nvidia.com/gpu", 2)
    try:
        namespace.apply(job("first", "sleep", "600", container=gpus))
        wait_until("the first pod running", POD_TIMEOUT_S, lambda: phases(namespace, "first") == ["Running"])
        assert namespace.pods("first")[0]["spec"]["nodeName"] == "node-1"
        namespace.apply(job("second", "true", container=gpus))
        wait_until(
            "the reason of the second", POD_TIMEOUT_S, lambda: "Insufficient nvidia.com/gpu" in why(namespace, "second")
        )
        namespace.api(
            "DELETE", f"/apis/batch/v1/namespaces/{namespace.name}/jobs/first", {"propagationPolicy": "Foreground"}
        )
        namespace.job_ends("second", "Complete")
    finally:
        alone.set_resource("node-1", "nvidia.com/gpu", 0)


def phases(namespace: Namespace, name: str) -> list[str]:
    return [pod["status"]["phase"] for pod in namespace.pods(name)]


def why(namespace: Namespace, name: str) -> str:
    conditions = [one for pod in namespace.pods(name) for one in pod["status"].get("conditions", ())]
    return " ".join(one.get("message", "") for one in conditions)


def test_a_node_that_lost_its_power_comes_back(alone: Cluster, namespace: Namespace) -> None:
    namespace.apply(job("there", "sleep", "600", nodeSelector={"kubernetes.io/hostname": "node-2"}))
    wait_until("the pod running", POD_TIMEOUT_S, lambda: phases(namespace, "there") == ["Running"])
    before = node_heartbeat(alone, "node-2")
    alone.kill("node-2")
    alone.start("node-2")
    wait_until("a heartbeat of node-2", POD_TIMEOUT_S, lambda: node_heartbeat(alone, "node-2") > before)
    namespace.job_ends("there", "Failed")  # its process is gone, and the kubelet that came back says so
    namespace.apply(job("again", "true", nodeSelector={"kubernetes.io/hostname": "node-2"}))
    namespace.job_ends("again", "Complete")


def test_a_node_is_cut_off_and_mended(alone: Cluster) -> None:
    def reached() -> bool:
        try:
            socket.create_connection((layout.address("node-2"), KUBELET_PORT), timeout=1).close()
        except OSError:
            return False
        return True

    assert reached()
    alone.cut("node-2")
    try:
        assert not reached()
        assert processes.find("node-2") is not None  # it goes on, unseen
    finally:
        alone.mend("node-2")
    wait_until("node-2 being reached again", POD_TIMEOUT_S, reached)


def node_heartbeat(cluster: Cluster, name: str) -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
    return str(cluster.api("GET", path)["spec"]["renewTime"])


def test_the_api_server_can_be_killed_and_paused(alone: Cluster, namespace: Namespace) -> None:
    alone.kill("apiserver")
    assert not alone.api.answers()
    alone.start("apiserver")
    wait_until("the API server", POD_TIMEOUT_S, alone.api.answers)
    with pytest.raises(ClusterError, match="does not run"):
        alone.pause("kwok")
    namespace.apply(job("after", "true"))
    namespace.job_ends("after", "Complete")


def test_writes_are_counted(namespace: Namespace) -> None:
    before = namespace.cluster.written_bytes
    namespace.apply(job("counted", "true"))
    namespace.job_ends("counted", "Complete")
    mine = [one for one in namespace.cluster.writes(before) if one["objectRef"].get("namespace") == namespace.name]
    assert ("patch", "jobs") in {(one["verb"], one["objectRef"]["resource"]) for one in mine}


@pytest.mark.slow
def test_a_thousand_fake_nodes_take_pods_and_go(alone: Cluster, namespace: Namespace) -> None:
    try:
        fake_nodes.add(FAKE_NODES, gpus=8)
        namespace.apply(
            job("many", "none", count=FAKE_PODS, image="none", nodeSelector={fake_nodes.LABEL: "true"},
                tolerations=[{"key": fake_nodes.TAINT, "operator": "Exists"}],
                container={"resources": {"limits": {"nvidia.com/gpu": "8"}}})
        )  # fmt: skip
        assert namespace.job_ends("many", "Complete")["status"]["succeeded"] == FAKE_PODS
        assert len({pod["spec"]["nodeName"] for pod in namespace.pods("many")}) > 1
    finally:
        fake_nodes.remove()
    names = {node["metadata"]["name"] for node in alone.api.pages("/api/v1/nodes")}
    assert names == set(alone.nodes)
