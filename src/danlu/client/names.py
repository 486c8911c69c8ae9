"""Names of things for a shell's completion: one request by the standard library alone, as a key press waits for it.

Loading the library that all other requests go through takes 0.1 s, a third of what a key press may take.
"""

from __future__ import annotations

import http.client
import json
import os
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from danlu.client import certificates
from danlu.client.connection import Connection, authority, find
from danlu.domain.signing import Message, lowered
from danlu.errors import DanluError

TIMEOUT_S: Final = 1.0
"""Of connecting, and of each wait for bytes: a platform that hangs completes nothing."""
MAX_BYTES: Final = 8 * 2**20
LISTED: Final = 500
PATHS: Final = {
    "jobs": "/v1/jobs", "envs": "/v1/environments", "nodes": "/v1/nodes", "secrets": "/v1/secrets", "quotas": "/v1/quotas",
    "projects": "/v1/projects",
}  # fmt: skip
PAGED: Final = frozenset({"jobs", "secrets", "quotas", "projects"})
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


def names(
    kind: str, *, url: str | None = None, profile: str | None = None, project: str | None = None
) -> list[tuple[str, str]]:
    """Returns (name, what to say beside it) of one of PATHS, newest first; none where that takes too long."""
    try:
        found = find(url, profile=profile)
        if found is None:
            return []
        project = project or os.environ.get("DANLU_PROJECT") or found.project
        items = _items(found, PATHS[kind], {"limit": str(LISTED)} if kind in PAGED else {}, project)
        return list(dict(reversed([_name(kind, item) for item in items])).items())[::-1]
    except (DanluError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return []  # no platform, no key, no answer in time: then there is nothing to complete, and nothing to say


def _items(found: Connection, path: str, query: dict[str, str], project: str) -> list[Any]:
    parts = urlsplit(found.url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        secured = certificates.context(found.fingerprint)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=TIMEOUT_S, context=secured
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    headers, words = {"Danlu-Project": project} if project else {}, urlencode(query)
    message = Message("GET", authority(found.url), parts.path + path, words, lowered(headers))
    try:
        connection.request(
            "GET", f"{parts.path}{path}?{words}", headers={**headers, **found.credentials.headers(message)}
        )
        answer = connection.getresponse()
        return list(json.loads(answer.read(MAX_BYTES))["items"]) if answer.status == 200 else []
    finally:
        connection.close()


def _name(kind: str, item: dict[str, Any]) -> tuple[str, str]:
    if kind == "jobs":
        return str(item["name"]), str(item["state"])
    if kind == "envs":
        return str(item["name"]), str(item["description"])
    if kind == "secrets":
        return str(item["name"]), f"set by {item['created_by']}"
    if kind == "quotas":
        return str(item["quota"]["id"]), "group" if item["quota"]["group"] else ""
    if kind == "projects":
        return str(item["id"]), ""
    return str(item["node"]["id"]), ""
