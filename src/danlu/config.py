"""Settings of a server: every option, its unit, its default. Read once, in server/main.py."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danlu.errors import PlatformError

if TYPE_CHECKING:  # the command line reads this module too, and parses by other means
    import argparse

DEFAULT_PORT: Final = 7070
PORTS_TRIED: Final = 100
EVENTS_KEPT_DAYS: Final = 400.0
MAX_EVENTS: Final = 10_000_000
LEASE_S: Final = 5.0
"""Not less: it is longer than PostgreSQL lets a write stand still (database/engine.py)."""
MAX_LEASE_S: Final = 300.0


LOCAL, KUBERNETES = "local", "kubernetes"
EXECUTORS: Final = (LOCAL, KUBERNETES)
MAX_START_TIMEOUT_S: Final = 10**9


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """How jobs run as pods. Each is read from the environment, where a Helm chart puts it.

    Attributes:
        pod_url: where pods reach this platform, such as ``http://danlu.danlu:7070`` (``DANLU_POD_URL``).
        namespace: where pods are made (``DANLU_KUBERNETES_NAMESPACE``).
        platform: which installation it is, where several share a namespace (``DANLU_KUBERNETES_PLATFORM``).
        kubeconfig: the way to the cluster (``DANLU_KUBECONFIG``); None: this pod's service account, else KUBECONFIG.
        context: which of that file's contexts (``DANLU_KUBERNETES_CONTEXT``); None: its current one.
        image: what jobs run in that name no image (``DANLU_POD_IMAGE``).
        authority: a file with the certificate of the authority of ``pod_url`` (``DANLU_POD_CA``).
        templates: a YAML file with what is added to pods, by project (``DANLU_POD_TEMPLATES``).
        gpu_resource: the extended resource that GPUs are (``DANLU_GPU_RESOURCE``).
        gpu_label: the nodes' label with a GPU's product (``DANLU_GPU_LABEL``).
        gpu_kinds: the products of each kind: ``h100=NVIDIA-H100-PCIe|NVIDIA-H100-80GB-HBM3,...`` (``DANLU_GPU_KINDS``).
        start_timeout_s: an attempt that does not all run by then is withdrawn and waits again (``DANLU_START_TIMEOUT_S``).
        uid_base: a project's pods run as this plus its number (``DANLU_POD_UID_BASE``).
        environments: where nodes keep environments: ``hostPath:/PATH``, ``pvc:NAME`` or ``emptyDir``
            (``DANLU_POD_ENVIRONMENTS``).
    """

    pod_url: str
    namespace: str = "danlu"
    platform: str = "danlu"
    kubeconfig: Path | None = None
    context: str | None = None
    image: str = "python:3.12"
    authority: Path | None = None
    templates: Path | None = None
    gpu_resource: str = "nvidia.com/gpu"
    gpu_label: str = "nvidia.com/gpu.product"
    gpu_kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    uid_base: int = 200_000
    environments: str = "hostPath:/var/lib/danlu/environments"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server runs.

    Attributes:
        home: the data folder (``DANLU_HOME``).
        host: the address to listen on; another one than loopback needs TLS.
        tls_cert: a certificate in PEM, with its chain; with ``tls_key``.
        tls_key: its key.
        self_signed: serve with a certificate made here.
        insecure_http: serve others without TLS.
        port: None: the one that it last had, at first the first free one from 7070 on.
        gpus: declared GPUs, such as ``8`` or ``2:h100``; None: what the driver shows.
        database_url: None: SQLite in the data folder. Read from ``DANLU_DATABASE_URL``, or the file that
            ``DANLU_DATABASE_URL_FILE`` names, and never from the command line: it may hold a password.
        blobs: ``s3://BUCKET/PREFIX``; None: files in the data folder.
            Read from ``DANLU_BLOBS`` only: all servers need the same.
        aws: how the bucket is reached: the ``AWS_*`` variables, which hold secrets.
        ready_fd: where to say, in one JSON line, that the server is ready or why it is not.
        new_master: go on though what another master key has sealed is lost.
        user_requests_per_s: how many requests one user may send, over all keys and tokens, on average.
        user_burst_requests: and at once, after a pause.
        events_kept_days: how long an event is kept, a call (who did what) too.
        max_events: how many are kept, however young the others are.
        environment_images: by an environment's name or lock digest, the image that pods have it by. Read from
            ``DANLU_ENVIRONMENT_IMAGES``: ``NAME=IMAGE,NAME=IMAGE``.
        backup_every_s: time between two copies of a SQLite database.
        lease_s: how long after its last sign of life another server takes the lead, with PostgreSQL.
        diagnose: print what is not well, as JSON, instead of serving: ``all``, or ``local`` without the package index.
        kubernetes: how jobs run as pods (``DANLU_EXECUTOR=kubernetes``); None: as processes of this machine.
    """

    home: Path
    host: str = "127.0.0.1"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    self_signed: bool = False
    insecure_http: bool = False
    port: int | None = None
    gpus: str | None = None
    database_url: str | None = None
    blobs: str | None = None
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    ready_fd: int | None = None
    new_master: bool = False
    user_requests_per_s: float = 500.0
    user_burst_requests: int = 1000
    events_kept_days: float = EVENTS_KEPT_DAYS
    max_events: int = MAX_EVENTS
    backup_every_s: float = 86_400.0
    environment_images: Mapping[str, str] = field(default_factory=dict)
    lease_s: float = LEASE_S
    diagnose: str | None = None
    kubernetes: KubernetesSettings | None = None


def default_home(environ: Mapping[str, str], *, root: bool) -> Path:
    """Returns the data folder: ``DANLU_HOME``, else ``/var/lib/danlu`` for root, else below the user's data folder."""
    if environ.get("DANLU_HOME"):
        return Path(environ["DANLU_HOME"]).expanduser().absolute()
    if root:
        return Path("/var/lib/danlu")
    share = Path(environ.get("XDG_DATA_HOME", ""))
    return (share if share.is_absolute() else Path.home() / ".local" / "share") / "danlu"  # a relative one is no folder


def runtime_folder(home: Path, environ: Mapping[str, str], *, uid: int) -> Path:
    """Returns the folder for sockets, whose paths are limited to 108 bytes: one for each data folder."""
    import hashlib

    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]
    if uid == 0:
        return Path("/run/danlu") / digest
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"]) / f"danlu-{digest}"
    return Path("/tmp") / f"danlu-{uid}-{digest}"  # noqa: S108 - made 0700 and checked to be ours before it is used


def database_url(environ: Mapping[str, str]) -> str | None:
    """Returns PostgreSQL's address from the environment, or from the file that it names; None: the data folder has SQLite.

    Raises:
        PlatformError: the file cannot be read.
    """
    if environ.get("DANLU_DATABASE_URL"):
        return environ["DANLU_DATABASE_URL"]
    if not (name := environ.get("DANLU_DATABASE_URL_FILE")):
        return None
    try:
        found = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(
            f"the database's address cannot be read from {name} (DANLU_DATABASE_URL_FILE): {error.args[-1]}",
            next_step="give that file to this user, or set DANLU_DATABASE_URL",
        ) from error
    if not found:
        raise PlatformError(
            f"{name} (DANLU_DATABASE_URL_FILE) is empty", next_step="write the database's address to it"
        )
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _number(environ: Mapping[str, str], name: str, default: int, most: int) -> float:
    text = environ.get(name) or str(default)
    with contextlib.suppress(ValueError):
        if 1 <= (found := float(text)) <= most:
            return found
    raise ValueError(f"{name}={text!r}: it is a number from 1 to {most}")


def kubernetes(environ: Mapping[str, str]) -> KubernetesSettings | None:
    """Returns how jobs run as pods, or None where they run on this machine.

    Raises:
        ValueError: a variable is missing, or not what it should be.
    """
    chosen = environ.get("DANLU_EXECUTOR") or LOCAL
    if chosen not in EXECUTORS:
        raise ValueError(f"DANLU_EXECUTOR={chosen!r}: it is one of {', '.join(EXECUTORS)}")
    if chosen == LOCAL:
        return None
    url = environ.get("DANLU_POD_URL", "").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"DANLU_POD_URL={url!r}: where pods reach this platform, such as http://danlu.danlu:7070")
    texts = {
        "namespace": "DANLU_KUBERNETES_NAMESPACE", "platform": "DANLU_KUBERNETES_PLATFORM", "image": "DANLU_POD_IMAGE",
        "context": "DANLU_KUBERNETES_CONTEXT", "gpu_resource": "DANLU_GPU_RESOURCE", "gpu_label": "DANLU_GPU_LABEL",
    }  # fmt: skip
    files = {"kubeconfig": "DANLU_KUBECONFIG", "authority": "DANLU_POD_CA", "templates": "DANLU_POD_TEMPLATES"}
    found: dict[str, Any] = {name: environ[variable] for name, variable in texts.items() if environ.get(variable)}
    found |= {name: Path(environ[variable]) for name, variable in files.items() if environ.get(variable)}
    timeout_s = _number(environ, "DANLU_START_TIMEOUT_S", 600, MAX_START_TIMEOUT_S)
    base = int(_number(environ, "DANLU_POD_UID_BASE", 200_000, 2**31 - 2**20))
    kept = environ.get("DANLU_POD_ENVIRONMENTS")
    if kept and not re.fullmatch(r"hostPath:/[^:]+|pvc:[a-z0-9][-a-z0-9.]*|emptyDir", kept):
        raise ValueError(f"DANLU_POD_ENVIRONMENTS={kept!r}: it is hostPath:/PATH, pvc:NAME or emptyDir")
    if kept:
        found["environments"] = kept
    kinds = _kinds(environ.get("DANLU_GPU_KINDS", ""))
    return KubernetesSettings(url, gpu_kinds=kinds, start_timeout_s=timeout_s, uid_base=base, **found)


def _kinds(text: str) -> dict[str, tuple[str, ...]]:
    """Returns the products of each kind of GPU."""
    found = {}
    for one in filter(None, map(str.strip, text.split(","))):
        kind, equals, products = one.partition("=")
        if not equals or not kind.strip() or not products.strip("| "):
            raise ValueError(
                f"DANLU_GPU_KINDS: {one!r} is not KIND=PRODUCT|PRODUCT, such as h100=NVIDIA-H100-80GB-HBM3"
            )
        found[kind.strip()] = tuple(filter(None, map(str.strip, products.split("|"))))
    return found


def environment_images(text: str) -> dict[str, str]:
    """Returns which environments pods have by which image: ``tensorflow-1=registry.example.com/tf1:2,...``.

    Raises:
        ValueError: a part of it is not NAME=IMAGE.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, image = (word.strip() for word in part.partition("="))
        if not name or not image:
            raise ValueError(f"DANLU_ENVIRONMENT_IMAGES: {part[:200]!r} is not NAME=IMAGE")
        found[name] = image
    return found


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="danlu.server", description="The Danlu server; usually started by: danlu up")
    parser.add_argument("--home", type=Path, help="the data folder")
    parser.add_argument(
        "--port", type=int, help=f"the port; else the last one, or the first free one from {DEFAULT_PORT} on"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; beyond loopback, TLS is needed")
    parser.add_argument("--tls-cert", type=Path, help="a certificate in PEM, with its chain")
    parser.add_argument("--tls-key", type=Path, help="its key in PEM, which only its owner may read")
    parser.add_argument("--tls", choices=("self-signed",), help="a certificate made here, which danlu login pins")
    parser.add_argument("--insecure-http", action="store_true", help="serve other machines without TLS")
    parser.add_argument("--gpus", help="declare GPUs: 8, or 2:h100,1:a100; without it the driver is asked")
    parser.add_argument("--ready-fd", type=int, help="file descriptor to say one JSON line to, once ready")
    parser.add_argument(
        "--diagnose", choices=("all", "local"), help="print what is not well, as JSON; danlu doctor shows it"
    )
    parser.add_argument("--new-master-key", action="store_true", help="go on with a new one: the old one is lost")
    parser.add_argument(
        "--user-requests-per-s",
        type=_finite,
        default=500.0,
        help="what one user may send on average; twice as many at once",
    )
    parser.add_argument(
        "--events-kept-days", type=_finite, default=EVENTS_KEPT_DAYS, help="how long it is kept who did what"
    )
    parser.add_argument(
        "--max-events",
        type=int,
        default=MAX_EVENTS,
        help="how many events are kept, however young the others are",
    )
    parser.add_argument(
        "--lease-s",
        type=_finite,
        default=LEASE_S,
        help="how long after its last sign of life another server takes the lead, with PostgreSQL; 5 to 300",
    )
    return parser


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Returns the settings from the command line and the environment; exits with 2 on wrong usage.

    Raises:
        PlatformError: a variable is not what it should be, or a flag means nothing beside it.
    """
    return settings(flags(arguments), environ)


def flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns what stands on the command line; exits with 2 on wrong usage."""
    return _parser().parse_args(list(arguments))


def settings(found: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Returns the settings, of which the environment has those that are no flags.

    Raises:
        PlatformError: a variable is not what it should be.
    """
    try:
        pods = kubernetes(environ)
        images = environment_images(environ.get("DANLU_ENVIRONMENT_IMAGES", ""))
    except ValueError as error:
        raise PlatformError(str(error), next_step="docs/reference/environment-variables.md has all of them") from error
    if pods is not None and found.gpus is not None:
        raise PlatformError(
            f"--gpus {found.gpus} is for jobs on this machine, and they run as pods here (DANLU_EXECUTOR=kubernetes)",
            next_step="leave it out: the cluster's nodes say what GPUs they offer, by a device plugin",
        )
    home = found.home.expanduser().absolute() if found.home else default_home(environ, root=os.geteuid() == 0)
    return Settings(
        home=home,
        host=found.host,
        tls_cert=found.tls_cert,
        tls_key=found.tls_key,
        self_signed=found.tls == "self-signed",
        insecure_http=found.insecure_http,
        port=found.port,
        gpus=found.gpus,
        database_url=database_url(environ),
        blobs=environ.get("DANLU_BLOBS") or None,
        aws={name: value for name, value in environ.items() if name.startswith("AWS_") and value},
        ready_fd=found.ready_fd,
        user_requests_per_s=max(1.0, found.user_requests_per_s),
        user_burst_requests=max(1, round(2 * found.user_requests_per_s)),
        events_kept_days=max(1.0, found.events_kept_days),
        max_events=max(1000, found.max_events),
        environment_images=images,
        lease_s=min(max(LEASE_S, found.lease_s), MAX_LEASE_S),
        new_master=found.new_master_key,
        diagnose=found.diagnose,
        kubernetes=pods,
    )
