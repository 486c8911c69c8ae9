"""Every verb of the Kubernetes API that the platform uses, and what for: the Helm chart's roles are made from it."""

from __future__ import annotations

from typing import Final, NamedTuple


class Rule(NamedTuple):
    """What may be done with one kind of object."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


IN_NAMESPACE: Final = (
    Rule("", "secrets", ("create", "get", "list", "patch", "delete"), "one for each attempt; it owns the rest"),
    Rule("", "configmaps", ("create",), "the runner, one for each version"),
    Rule("", "services", ("create",), "the names of a gang's pods"),
    Rule("batch", "jobs", ("create", "get", "list", "delete", "deletecollection"), "one for each role of an attempt"),
    Rule("", "pods", ("list", "watch", "deletecollection"), "what became of them, and ending them"),
    Rule("", "pods/log", ("get",), "the output of images without Python"),
    Rule("", "pods/exec", ("create", "get"), "danlu exec and danlu cp"),
    Rule("", "events", ("list",), "why pods are refused or wait"),
)
IN_CLUSTER: Final = (
    Rule("", "nodes", ("list",), "what there is to give away, and which node is lost"),
    Rule("", "pods", ("list",), "what others use of it; without that verb, others' pods are not counted"),
)
"""Nodes belong to no namespace."""
