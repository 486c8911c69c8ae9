"""Images without Python: a task's pod made anew without the runner, so that its command is the container's own. Pure.

Nothing is sent to such a pod but its variables, and nothing comes out of it but what it prints and how it ends: no code, no
secrets, no checkpoints, no outputs. So it is for a command that the image itself has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

from danlu.executors.kubernetes.manifests import BARE, INDEX, ROLE
from danlu.runner import formats

KUBERNETES_LABELS: Final = frozenset(
    {"controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", INDEX}
)
RUNNERS: Final = frozenset({"danlu-runner", "danlu-order"})
NOT_THERE: Final = frozenset({"PATH", "PYTHONPATH", "DANLU_TOKEN_FILE"})
"""Variables that name what only the runner has, or hide what the image has."""
FOLDER, TEMPORARY = "/danlu/attempt", "/tmp"  # noqa: S108 - a path in a pod

Object = dict[str, Any]


def why_not(known: Mapping[str, Any]) -> str:
    """Returns why an attempt cannot be run without the runner; empty: it can."""
    if len(known["tasks"]) > 1:
        return "its image has no python3: the tasks of a distributed job cannot be connected without"
    if known.get("secrets"):
        return "its image has no python3: its secrets cannot be handed to it without"
    if known.get("code"):
        return "its image has no python3: its code cannot be brought to it without"
    return ""


def job(made: Mapping[str, Any], order: Object) -> Object:
    """Returns the Job that stands in the place of ``made``, whose image has no Python; ``order`` is the attempt's."""
    (task,) = order["tasks"]
    variables = {name: text for name, text in formats.environment(order, task).items() if name not in NOT_THERE}
    variables |= {
        "HOME": FOLDER, "TMPDIR": TEMPORARY, "DANLU_TASK": str(task["name"]), "DANLU_ROLE": str(task["role"]),
        "DANLU_INDEX": str(task["index"]), "DANLU_RANK": str(task["rank"]), "DANLU_WORLD_SIZE": "1",
    }  # fmt: skip
    meta, spec = made["metadata"], made["spec"]
    template = copy.deepcopy(spec["template"])
    pod = template["spec"]
    container = pod["containers"][0]
    container["command"] = list(task["argv"])
    container["env"] = [{"name": name, "value": text} for name, text in sorted(variables.items())]
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] not in RUNNERS]
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    pod["volumes"] = [one for one in pod["volumes"] if one["name"] not in RUNNERS]
    marks = {name: text for name, text in template["metadata"]["labels"].items() if name not in KUBERNETES_LABELS}
    kept = ("completionMode", "completions", "parallelism", "backoffLimit", "podReplacementPolicy")
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": f"{meta['name']}-b", "namespace": meta["namespace"], "ownerReferences": meta["ownerReferences"],
            "labels": {**marks, BARE: "true"},
        },
        "spec": {
            **{name: spec[name] for name in kept if name in spec},
            "template": {
                "metadata": {**_own(template["metadata"]), "labels": {**marks, BARE: "true"}}, "spec": pod,
            },
        },
    }  # fmt: skip


def _own(meta: Mapping[str, Any]) -> Object:
    return {"annotations": meta["annotations"]} if meta.get("annotations") else {}


def by_task(pods: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the names of the pods without a runner, by task."""
    marks = {pod["metadata"]["name"]: pod["metadata"].get("labels") or {} for pod in pods}
    return {f"{own.get(ROLE)}-{own.get(INDEX)}": name for name, own in marks.items() if BARE in own}
