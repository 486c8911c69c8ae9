"""What an operator adds to the pods of a project: validated when it is read, merged into each pod. Pure.

What makes a pod an attempt's, and keeps it from the cluster (its command, user, service account, security context, the
platform's own labels and mounts), is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, ValidationError, field_validator

from danlu.domain.records import Value
from danlu.errors import InvalidRequest

OURS: Final = "danlu.io/"
OUR_FOLDERS: Final = ("/danlu", "/dev/shm")  # noqa: S108 - a path in a pod
FORBIDDEN_VOLUMES: Final = frozenset({"hostPath"})
MAX_ENTRIES: Final = 64
DEFAULT: Final = "default"
Entries = tuple[dict[str, Any], ...]


class PodTemplate(Value):
    """Fields of a pod's specification, in Kubernetes' own form."""

    node_selector: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENTRIES)
    tolerations: Entries = Field(default=(), max_length=MAX_ENTRIES)
    priority_class: str = ""
    runtime_class: str = ""
    scheduler: str = ""
    image_pull_secrets: tuple[str, ...] = Field(default=(), max_length=MAX_ENTRIES)
    labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENTRIES)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENTRIES)
    volumes: Entries = Field(default=(), max_length=MAX_ENTRIES)
    mounts: Entries = Field(default=(), max_length=MAX_ENTRIES, description="volumeMounts of the job's container")
    host_paths: bool = Field(
        default=False, description="volumes may be folders of the node: whoever mounts one leaves the pod"
    )

    @field_validator("labels", "annotations")
    @classmethod
    def _not_ours(cls, given: dict[str, str]) -> dict[str, str]:
        wrong = next((name for name in given if name.startswith(OURS)), None)
        if wrong is not None:
            raise ValueError(f"{wrong}: names that begin with {OURS} are the platform's own")
        return given

    @field_validator("mounts")
    @classmethod
    def _beside_ours(cls, given: Entries) -> Entries:
        for mount in given:
            path = str(mount.get("mountPath", ""))
            if not path.startswith("/") or ":" in path or ".." in path.split("/"):
                raise ValueError(f"mountPath {path!r} is no absolute path")
            if any(f"{path.rstrip('/')}/".startswith(f"{ours}/") for ours in OUR_FOLDERS) or path.rstrip("/") == "":
                raise ValueError(f"mountPath {path!r} would hide what is the platform's")
        return given

    def checked(self) -> Self:
        """Returns it, where its volumes and mounts belong together.

        Raises:
            ValueError: a mount names no volume of it, or a volume is of a kind that is not allowed.
        """
        names = [str(volume.get("name", "")) for volume in self.volumes]
        if "" in names or len(set(names)) < len(names):
            raise ValueError("each of its volumes needs a name of its own")
        reserved = next((name for name in names if name.startswith("danlu-")), None)
        if reserved:
            raise ValueError(f"volume {reserved}: names that begin with danlu- are the platform's own")
        for volume in self.volumes:
            if not self.host_paths and FORBIDDEN_VOLUMES & volume.keys():
                raise ValueError(f"volume {volume['name']} is a folder of the node: host_paths: true allows that")
        unknown = next((mount for mount in self.mounts if mount.get("name") not in names), None)
        if unknown is not None:
            raise ValueError(f"mount {unknown.get('mountPath')} names no volume of it: {unknown.get('name')!r}")
        return self

    def merged(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Returns a pod's template (metadata and spec) with this in it."""
        meta, spec = dict(pod["metadata"]), dict(pod["spec"])
        meta["labels"] = {**self.labels, **meta["labels"]}
        if self.annotations:
            meta["annotations"] = {**self.annotations, **meta.get("annotations", {})}
        if self.node_selector:
            spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **self.node_selector}
        named = {
            "priorityClassName": self.priority_class, "runtimeClassName": self.runtime_class, "schedulerName": self.scheduler,
        }  # fmt: skip
        spec |= {name: text for name, text in named.items() if text}
        if self.tolerations:
            spec["tolerations"] = [*spec.get("tolerations", []), *self.tolerations]
        if self.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in self.image_pull_secrets]
        if self.volumes:
            spec["volumes"] = [*spec["volumes"], *self.volumes]
        if self.mounts:
            container = dict(spec["containers"][0])
            container["volumeMounts"] = [*container["volumeMounts"], *self.mounts]
            spec["containers"] = [container]
        return {"metadata": meta, "spec": spec}


class Templates(Value):
    """The templates of all projects: a project's own stands in the place of the default one."""

    default: PodTemplate = PodTemplate()
    projects: dict[str, PodTemplate] = Field(default_factory=dict)

    def of(self, project: str) -> PodTemplate:
        """Returns the one of a project."""
        return self.projects.get(project, self.default)


def parse(content: object, source: str) -> Templates:
    """Returns the templates of a file's content (``default`` and ``projects``).

    Raises:
        InvalidRequest: something in it may not be set, or is not what it should be.
    """
    if content is None:
        return Templates()
    try:
        if not isinstance(content, Mapping):
            raise ValueError("it is no mapping")
        found = Templates.model_validate(dict(content))
        for template in (found.default, *found.projects.values()):
            template.checked()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"pod templates of {source}: {where}: {first['msg']}", field=where) from error
    except ValueError as error:
        raise InvalidRequest(f"pod templates of {source}: {error}") from error
    return found
