"""A cluster that is played: the API over HTTP, controllers and kubelets behind it, faults on demand; time is an argument.

Nothing of it moves but by ``tick`` and by requests. What containers do is told by ``containers``.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from danlu.executors.kubernetes.manifests import ATTEMPT, HOSTNAME, INDEX
from danlu.executors.kubernetes.quantities import amount

SECOND = 1_000_000_000
PATH = re.compile(
    r"/(?:api|apis/batch)/v1(?:/namespaces/(?P<ns>[^/]+))?/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<more>.+))?"
)
OVER = ("Succeeded", "Failed")


class Answer(Exception):
    """What a request is refused with."""

    def __init__(self, status: int, reason: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers


@dataclass
class Container:
    """What a pod's container does now."""

    exit_code: int | None = None
    reason: str = "Completed"
    message: str = ""


def moment(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns // SECOND, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Cluster:
    now: Callable[[], int]
    containers: Callable[[dict[str, Any]], Container] = lambda _pod: Container()
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    images: set[str] = field(default_factory=lambda: {"python"})
    refuse_pods: str = ""
    """a quota's or a webhook's words"""
    faults: list[Answer] = field(default_factory=list)
    """the next answers, whatever is asked"""
    down: bool = False
    writes: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    log: dict[str, bytes] = field(default_factory=dict)
    answered: int = 0
    """bytes of logs"""
    version: int = 1
    made: set[tuple[str, str]] = field(default_factory=set)
    lock: Any = field(default_factory=threading.RLock)
    changes: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    page: int = 500
    unique: Callable[[], str] = lambda: uuid.uuid4().hex

    # what is there

    def put(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        meta = item["metadata"]
        meta["resourceVersion"] = str(self.version)
        meta.setdefault("uid", self.unique())
        meta.setdefault("creationTimestamp", moment(self.now()))
        self.objects[kind, meta.get("namespace", ""), meta["name"]] = item
        self.changes.append((self.version, "MODIFIED", copy.deepcopy(item) | {"kind": kind}))
        return item

    def drop(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        self.objects.pop((kind, item["metadata"].get("namespace", ""), item["metadata"]["name"]), None)
        self.changes.append((self.version, "DELETED", copy.deepcopy(item) | {"kind": kind}))

    def all(self, kind: str, namespace: str | None = None) -> list[dict[str, Any]]:
        return [item for (k, ns, _), item in sorted(self.objects.items()) if k == kind and namespace in (None, ns)]

    def node(
        self, name: str, *, cpu: int = 8, memory: str = "32Gi", gpus: int = 0, labels: dict[str, str] | None = None
    ) -> dict[str, Any]:
        free = {"cpu": str(cpu), "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": moment(self.now())}
        return self.put("nodes", {
            "metadata": {"name": name, "labels": {HOSTNAME: name, **(labels or {})}}, "spec": {},
            "status": {"allocatable": free, "conditions": [ready], "nodeInfo": {"bootID": f"boot-{name}"}},
        })  # fmt: skip

    def pods(self, attempt_id: str) -> list[dict[str, Any]]:
        return [pod for pod in self.all("pods") if pod["metadata"]["labels"].get(ATTEMPT) == attempt_id]

    # requests

    def handle(self, method: str, url: str, body: Any) -> dict[str, Any] | bytes:
        """Returns the answer, or raises one."""
        with self.lock:
            parts = urlsplit(url)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self.requests.append(f"{method} {parts.path}")
            if self.faults:
                raise self.faults.pop(0)
            found = PATH.fullmatch(parts.path)
            if found is None:
                raise Answer(404, "NotFound", f"no path {parts.path}")
            kind, ns, name = found["kind"], found["ns"] or "", found["name"] or ""
            if method != "GET":
                self.writes.append(f"{method} {kind}")
            if found["more"] == "log":
                since = query.get("sinceTime", "").rstrip("Z")
                found = b"".join(line for line in self.log.get(name, b"").splitlines(True) if line.decode() >= since)
                self.answered += len(found)
                return found
            if method == "POST":
                return self._create(kind, ns, body)
            if name:
                return self._one(method, (kind, ns, name), body)
            items = [item for item in self.all(kind, ns or None) if _matches(item, query)]
            if method == "DELETE":
                for item in items:
                    self._delete(kind, item, (body or {}).get("gracePeriodSeconds"))
                return {"kind": "Status", "status": "Success"}
            start = int(query.get("continue", "0"))
            size = min(int(query.get("limit", "500")), self.page)
            more = {"continue": str(start + size)} if start + size < len(items) else {}
            return {
                "kind": "List", "metadata": {"resourceVersion": str(self.version), **more},
                "items": copy.deepcopy(items[start : start + size]),
            }  # fmt: skip

    def watch(self, url: str) -> bytes:
        """Returns the changes of pods since a version, as lines; raises an answer."""
        since = int(parse_qs(urlsplit(url).query)["resourceVersion"][0])
        with self.lock:
            if self.faults:
                raise self.faults.pop(0)
            news = [(kind, item) for at, kind, item in self.changes if at > since and item["kind"] == "pods"]
        return b"".join(json.dumps({"type": kind, "object": item}).encode() + b"\n" for kind, item in news)

    def _create(self, kind: str, ns: str, body: dict[str, Any]) -> dict[str, Any]:
        if ("namespaces", "", ns) not in self.objects:
            raise Answer(404, "NotFound", f'namespaces "{ns}" not found')
        if (kind, ns, body["metadata"]["name"]) in self.objects:
            raise Answer(409, "AlreadyExists", f'{kind} "{body["metadata"]["name"]}" already exists')
        body["metadata"]["namespace"] = ns
        return copy.deepcopy(self.put(kind, body))

    def _one(self, method: str, key: tuple[str, str, str], body: Any) -> dict[str, Any]:
        item = self.objects.get(key)
        if item is None:
            raise Answer(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        if method == "DELETE":
            self._delete(key[0], item, (body or {}).get("gracePeriodSeconds"))
        elif method == "PATCH":
            item["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
            self.put(key[0], item)
        return copy.deepcopy(item)

    def _delete(self, kind: str, item: dict[str, Any], grace_s: int | None = None) -> None:
        if kind != "pods":
            self.drop(kind, item)
            for (child_kind, _, _), child in list(self.objects.items()):
                owners = child["metadata"].get("ownerReferences") or []
                if any(one["uid"] == item["metadata"]["uid"] for one in owners):
                    self._delete(child_kind, child)
            return
        if item["status"]["phase"] in OVER or not item["spec"].get("nodeName"):
            self.drop(kind, item)
            return
        grace = item["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        ends = self.now() + grace * SECOND
        if "ends_at" not in item or ends < item["ends_at"]:
            item["ends_at"] = ends
        item["metadata"].setdefault("deletionTimestamp", moment(self.now()))
        self.put(kind, item)

    # by hand

    def delete_namespace(self, ns: str) -> None:
        with self.lock:
            self.drop("namespaces", self.objects["namespaces", "", ns])
            for (kind, where, _), item in list(self.objects.items()):
                if where == ns:
                    self._delete(kind, item)

    def lose_node(self, name: str, why: str = "Kubelet stopped posting node status.") -> None:
        node = self.objects["nodes", "", name]
        node["status"]["conditions"] = [
            {"type": "Ready", "status": "Unknown", "message": why, "lastTransitionTime": moment(self.now())}
        ]
        node["lost"] = True
        self.put("nodes", node)

    def find_node(self, name: str) -> None:
        """A node that was lost answers again."""
        node = self.objects["nodes", "", name]
        node["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": moment(self.now())}]
        node["lost"] = False
        self.put("nodes", node)

    # what happens behind the API

    def tick(self) -> None:
        with self.lock:
            if self.down:
                return
            for job in self.all("jobs"):
                self._job(job)
            for pod in self.all("pods"):
                self._schedule(pod)
                self._kubelet(pod)

    def _job(self, job: dict[str, Any]) -> None:
        meta, status = job["metadata"], job.setdefault("status", {})
        if status.get("conditions"):
            return
        own = {
            int(pod["metadata"]["labels"][INDEX]): pod
            for pod in self.all("pods", meta["namespace"])
            if any(one["uid"] == meta["uid"] for one in pod["metadata"]["ownerReferences"])
        }
        made = status.setdefault("made", [])
        gone = [index for index in made if index not in own]
        failed = [pod for pod in own.values() if pod["status"]["phase"] == "Failed"]
        if failed or gone:
            status["conditions"] = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]
            for pod in own.values():
                if pod["status"]["phase"] not in OVER:
                    self._delete("pods", pod)
            self.put("jobs", job)
            return
        if len(own) == job["spec"]["completions"] and all(p["status"]["phase"] == "Succeeded" for p in own.values()):
            status["conditions"] = [{"type": "Complete", "status": "True"}]
            self.put("jobs", job)
        for index in range(job["spec"]["completions"]):
            if index in made:
                continue
            if self.refuse_pods:
                self._warn(job, "FailedCreate", f"Error creating: {self.refuse_pods}")
                return
            made.append(index)
            template = copy.deepcopy(job["spec"]["template"])
            owner = {"kind": "Job", "name": meta["name"], "uid": meta["uid"]}
            self.put("pods", {
                "metadata": {
                    **template["metadata"], "name": f"{meta['name']}-{index}-{self.unique()[:5]}",
                    "namespace": meta["namespace"], "ownerReferences": [owner],
                    "labels": {**template["metadata"]["labels"], INDEX: str(index)},
                },
                "spec": template["spec"], "status": {"phase": "Pending", "conditions": []},
            })  # fmt: skip

    def _warn(self, item: dict[str, Any], reason: str, message: str) -> None:
        name = item["metadata"]["name"]
        self.put("events", {
            "metadata": {"name": f"{name}.{reason}", "namespace": item["metadata"]["namespace"]}, "type": "Warning",
            "reason": reason, "message": message, "involvedObject": {"name": name}, "lastTimestamp": moment(self.now()),
        })  # fmt: skip

    def _schedule(self, pod: dict[str, Any]) -> None:
        if pod["spec"].get("nodeName") or pod["status"]["phase"] != "Pending":
            return
        nodes = [node for node in self.all("nodes") if not node.get("lost") and not node["spec"].get("unschedulable")]
        for node in sorted(nodes, key=lambda node: not _is_preferred(pod, node)):
            own = [pod, *(p for p in self.all("pods") if p["spec"].get("nodeName") == node["metadata"]["name"])]
            if _may_be_on(pod, node) and _fit(own, node):
                pod["spec"]["nodeName"] = node["metadata"]["name"]
                pod["assigned"] = self.now()
                pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
                self.put("pods", pod)
                return
        message = f"0/{len(nodes)} nodes are available: {len(nodes)} Insufficient cpu."
        wanted = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
        if pod["status"]["conditions"] != wanted:
            pod["status"]["conditions"] = wanted
            self.put("pods", pod)

    def _kubelet(self, pod: dict[str, Any]) -> None:
        status, meta = pod["status"], pod["metadata"]
        node = self.objects.get(("nodes", "", str(pod["spec"].get("nodeName"))))
        if node is None or node.get("lost") or ("pods", meta["namespace"], meta["name"]) not in self.objects:
            return
        if status["phase"] in OVER:
            if meta.get("deletionTimestamp"):
                self.drop("pods", pod)
            return
        if status["phase"] == "Pending":
            if meta.get("deletionTimestamp"):
                self.drop("pods", pod)
                return
            image = pod["spec"]["containers"][0]["image"]
            if image not in self.images:
                waiting = {"reason": "ErrImagePull", "message": f"{image}: not found"}
                self._set(pod, "Pending", {"waiting": waiting})
                return
            self._set(pod, "Running", {"running": {"startedAt": moment(self.now())}})
            pod["began"] = moment(self.now())
            return
        done = self.containers(pod)
        if done.exit_code is None and pod.get("ends_at", self.now()) <= self.now() and meta.get("deletionTimestamp"):
            done = Container(137, "Error")
        if done.exit_code is not None:
            ended = {
                "exitCode": done.exit_code, "reason": done.reason, "message": done.message, "startedAt": pod["began"],
                "finishedAt": moment(self.now()),
            }  # fmt: skip
            self._set(pod, "Failed" if done.exit_code else "Succeeded", {"terminated": ended})

    def _set(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        image = pod["spec"]["containers"][0]["image"]
        new = {**pod["status"], "phase": phase, "containerStatuses": [{"name": "task", "image": image, "state": state}]}
        if new != pod["status"]:
            pod["status"] = new
            self.put("pods", pod)


def _fit(pods: list[dict[str, Any]], node: dict[str, Any]) -> bool:
    free = node["status"]["allocatable"]
    needs = [
        pod["spec"]["containers"][0]["resources"]["requests"] for pod in pods if pod["status"]["phase"] not in OVER
    ]
    return all(sum(amount(need.get(name)) for need in needs) <= amount(free.get(name)) for name in {*free, *needs[0]})


def _may_be_on(pod: dict[str, Any], node: dict[str, Any]) -> bool:
    """Whether a node has the labels that a pod requires."""
    asked = _affinity(pod).get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return not asked or any(_is_meant(term, node) for term in asked)


def _is_preferred(pod: dict[str, Any], node: dict[str, Any]) -> bool:
    asked = _affinity(pod).get("preferredDuringSchedulingIgnoredDuringExecution", [])
    return any(_is_meant(one["preference"], node) for one in asked)


def _affinity(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    return found


def _is_meant(term: dict[str, Any], node: dict[str, Any]) -> bool:
    labels = node["metadata"]["labels"]
    return all(
        one["key"] not in labels if one["operator"] == "DoesNotExist" else labels.get(one["key"]) in one["values"]
        for one in term["matchExpressions"]
    )


def _matches(item: dict[str, Any], query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = [one.split("=") for one in query.get("labelSelector", "").split(",") if one]
    return all(labels.get(name) == value for name, value in wanted)


class Server:
    """The cluster behind a port of this machine."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                if cluster.down:
                    self.close_connection = True
                    return
                try:
                    if "watch=1" in self.path:
                        self._say(200, cluster.watch(self.path), {})
                        return
                    found = cluster.handle(self.command, self.path, body)
                    self._say(200, found if isinstance(found, bytes) else json.dumps(found).encode(), {})
                except Answer as answer:
                    said = {"kind": "Status", "reason": answer.reason, "message": answer.message, "code": answer.status}
                    self._say(answer.status, json.dumps(said).encode(), answer.headers)

            do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

            def _say(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def kubeconfig(self) -> dict[str, Any]:
        return {
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }  # fmt: skip

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
