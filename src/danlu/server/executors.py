"""Makes what runs a platform's jobs, as its settings have it: processes of this machine, or pods of a cluster."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import yaml

from danlu.blobs.code import Code
from danlu.blobs.streams import StreamKey, Streams
from danlu.config import KubernetesSettings, Settings, runtime_folder
from danlu.controllers.leader import Machine
from danlu.database.engine import Database
from danlu.database.records import ATTEMPTS
from danlu.domain.diagnosis import Check, fail
from danlu.domain.images import Image
from danlu.errors import DanluError, PlatformError
from danlu.executors.base import Hint, StoredImage
from danlu.executors.kubernetes import diagnosis as cluster_diagnosis
from danlu.executors.kubernetes import zipapp
from danlu.executors.kubernetes.client import Api, connect
from danlu.executors.kubernetes.executor import KubernetesConfig, KubernetesExecutor, Reports
from danlu.executors.kubernetes.manifests import PodSettings
from danlu.executors.kubernetes.spools import Kept
from danlu.executors.kubernetes.template import Templates, parse
from danlu.executors.local import diagnosis as machine_diagnosis
from danlu.executors.local.engines import machine as engine_machine
from danlu.executors.local.executor import LocalConfig, LocalExecutor
from danlu.executors.local.gpus import declared
from danlu.executors.local.images import ImageStore
from danlu.runner.formats import LOG
from danlu.services import reports

MAX_FILE_BYTES: Final = 1 << 20


class Known(NamedTuple):
    """What the rest of a server tells what runs attempts.

    Attributes:
        database: where runners' reports are.
        code: the code that is run.
        streams: where what attempts write is kept.
        hint: called when something may have changed.
        secrets: returns what must not be printed, of an attempt.
    """

    database: Database
    code: Code
    streams: Streams
    hint: Hint
    secrets: Callable[[str], tuple[str, ...]]


class Runs(NamedTuple):
    """What runs attempts, the images that it has, and what ends it."""

    executor: Machine
    images: ImageStore | ClusterImages | None
    close: Callable[[], None]


Make = Callable[[Settings, Known], Runs]


def chosen(settings: Settings, known: Known) -> Runs:
    """Returns what the settings name, at work."""
    return local(settings, known) if settings.kubernetes is None else pods(settings.kubernetes, known)


def local(settings: Settings, known: Known) -> Runs:
    """Returns what runs attempts as processes of this machine."""
    gpus = None if settings.gpus is None else declared(settings.gpus)
    runtime = runtime_folder(settings.home, os.environ, uid=os.geteuid())
    config = LocalConfig(settings.home, runtime, gpus, engines=engine_machine(os.environ))
    executor = LocalExecutor(config, code=known.code, hint=known.hint, secrets=known.secrets)
    executor.start()
    return Runs(executor, executor.images, executor.close)


def pods(settings: KubernetesSettings, known: Known) -> Runs:
    """Returns what runs attempts as pods."""
    runner = zipapp.build()
    executor = kubernetes(
        settings, runner, zipapp.name(runner), hint=known.hint, reports=reports.seen(known.database),
        kept=partial(_kept, known),
    )  # fmt: skip
    return Runs(executor, ClusterImages(), executor.close)


def _kept(known: Known, attempt_id: str, task: str, most: int) -> tuple[int, bytes]:
    """See Kept in executors/kubernetes/spools.py."""
    project = known.database.read(lambda tx: ATTEMPTS.require(tx, attempt_id)).project
    key = StreamKey(project, attempt_id, task, LOG)
    size, tail = known.streams.size(key), b""
    at = max(0, size - most)
    while at < size and most and (data := known.streams.read(key, at, size - at)):
        tail, at = tail + data, at + len(data)
    return size, tail


def kubernetes(
    settings: KubernetesSettings, runner: bytes, runner_name: str, *, reports: Reports, kept: Kept, hint: Hint
) -> KubernetesExecutor:
    """Returns what runs jobs as pods, at work. A cluster that does not answer now is asked again.

    Raises:
        PlatformError: the cluster's library, its configuration or a file of the settings is missing.
        InvalidRequest: the pod templates are not what they should be.
    """
    pods = _pods(settings, runner_name)
    way = partial(connect, settings.kubeconfig, settings.context)
    way().close()  # what is not configured is told at the start
    config = KubernetesConfig(pods, runner, _templates(settings), settings.start_timeout_s, kept)
    executor = KubernetesExecutor(config, Api(way), reports=reports, hint=hint)
    executor.start()
    return executor


def checks(settings: Settings) -> Iterator[Check]:
    """Yields what there is to say of what runs attempts, for ``danlu doctor``: this machine, or the cluster."""
    if settings.kubernetes is None:
        gpus = None if settings.gpus is None else declared(settings.gpus)
        yield from machine_diagnosis.checks(gpus, settings.home, engine_machine(os.environ))
        return
    cluster = settings.kubernetes
    try:
        found, templates = _pods(cluster, ""), _templates(cluster)
        with closing(Api(partial(connect, cluster.kubeconfig, cluster.context))) as api:
            yield from cluster_diagnosis.checks(api, found, templates.default.tolerations)
    except DanluError as error:
        yield fail("cluster", error.message, error.next_step)


def _pods(settings: KubernetesSettings, runner: str) -> PodSettings:
    authority = "" if settings.authority is None else _text(settings, "authority")
    return PodSettings(
        namespace=settings.namespace, platform=settings.platform, url=settings.pod_url, image=settings.image,
        runner=runner, authority=authority, gpu_resource=settings.gpu_resource, gpu_label=settings.gpu_label,
        gpu_kinds=settings.gpu_kinds, uid_base=settings.uid_base, environments=settings.environments,
    )  # fmt: skip


def _templates(settings: KubernetesSettings) -> Templates:
    if settings.templates is None:
        return Templates()
    try:
        content = yaml.safe_load(_text(settings, "templates"))
    except yaml.YAMLError as error:
        raise PlatformError(f"{settings.templates} is no YAML: {error}") from error
    return parse(content, str(settings.templates))


def _text(settings: KubernetesSettings, name: str) -> str:
    path = getattr(settings, name)
    try:
        with path.open(encoding="utf-8") as file:
            found: str = file.read(MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(f"the settings' file {path} cannot be read: {error}") from error
    if len(found) > MAX_FILE_BYTES:
        raise PlatformError(f"{path} has more than {MAX_FILE_BYTES:,} characters")
    return found


@dataclass(frozen=True, slots=True)
class Named:
    """An image that each node pulls by its name, when a pod needs it (see Built in controllers/environments.py)."""

    lock_digest: str
    packages: int | None = None
    python_version: str | None = None
    size_bytes: int = 0
    build_s: float = 0.0
    lock: str = ""


class ClusterImages:
    """See Images in controllers/environments.py and attempts.py: nodes pull images themselves, nothing is kept here."""

    def pull(self, reference: str, project_number: int, report: Callable[[str], None]) -> Named:
        """Returns it at once: whether it can be pulled, the first pod tells."""
        del project_number
        report(f"{reference} is pulled by the node that needs it")
        return Named(_id(reference))

    def find(self, image: str, project_number: int) -> Image:
        """Returns it: it is known by its name."""
        del project_number
        return Image(id=image if len(image) == 64 else _id(image))

    def store(self, project_number: int) -> str:
        """Returns where a project's images are."""
        return str(project_number)

    def stored(self) -> frozenset[StoredImage]:
        """Returns nothing: the nodes remove what they do not need."""
        return frozenset()

    def doom(self, images: Collection[StoredImage]) -> Callable[[], None]:
        """Takes nothing away."""
        del images
        return lambda: None


def _id(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()
