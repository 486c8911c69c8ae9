"""What was stopped before it was launched: its Secret stands in the place of the one that a late launch would make.

A leader that stood still may go on with a launch whatever has been decided meanwhile. An attempt consists of what is made
after a Secret of its name, which can be there once: so either the stop finds the launch, or the launch finds the stop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from danlu.errors import DanluError, ExecutorUnavailable
from danlu.executors.kubernetes.client import Api, Refused, core
from danlu.executors.kubernetes.cluster import unavailable
from danlu.executors.kubernetes.manifests import ATTEMPT, PLATFORM, TASKS, PodSettings
from danlu.executors.kubernetes.quantities import SECOND_NS, ns

LOG: Final = logging.getLogger("danlu.executors")
STOPPED: Final = "danlu.io/stopped"
KEPT_S: Final = 3600.0
"""What comes later than this is not kept from beginning: it is found as a stranger, and ended."""
TERMINATED: Final = "being terminated"
"""The API's words of a namespace that is going."""


def is_withdrawn(secret: Mapping[str, Any]) -> bool:
    """Says whether it is such a Secret: it was stopped, and nothing was launched."""
    marks = secret["metadata"].get("annotations") or {}
    return STOPPED in marks and TASKS not in marks


def withdraw(api: Api, settings: PodSettings, attempt_id: str, marks: Mapping[str, str]) -> None:
    """Makes the Secret of an attempt that has none.

    Raises:
        ExecutorUnavailable: it could not be made; or it is there now, as it is being launched.
    """
    content = {
        "apiVersion": "v1", "kind": "Secret", "immutable": True,
        "metadata": {
            "name": attempt_id, "namespace": settings.namespace, "annotations": dict(marks),
            "labels": {ATTEMPT: attempt_id, PLATFORM: settings.platform},
        },
    }  # fmt: skip
    try:
        api.create(core(settings.namespace, "secrets"), content)
    except Refused as error:
        if error.exists:
            raise ExecutorUnavailable(
                f"{attempt_id} is being launched at this moment: its stop is tried again"
            ) from error
        if not (error.missing or TERMINATED in error.message):  # where there is no namespace nothing is launched
            raise unavailable(error) from error


def found(api: Api, namespace: str, attempt_id: str) -> bool:
    """Says whether an attempt that no list has was withdrawn: perhaps since the list was made."""
    try:
        return is_withdrawn(api.get(core(namespace, "secrets", attempt_id)))
    except Refused as error:
        if error.missing:
            return False
        raise unavailable(error) from error


def give_up(api: Api, namespace: str, secret: Mapping[str, Any], now: int) -> None:
    """Removes such a Secret once it has been there for long."""
    meta = secret["metadata"]
    if now - (ns(meta.get("creationTimestamp")) or now) < KEPT_S * SECOND_NS:
        return
    try:
        api.delete(core(namespace, "secrets", meta["name"]))
    except (Refused, DanluError) as error:
        LOG.warning("secret %s, of what was never launched, cannot be removed now: %s", meta["name"], error)
