"""Layers in a project's podman that no image has any more: what is left of a removal, or of a pull, that was killed.

Podman takes an image off its list before it removes the layers, and has no command for those that are left without one. But
a layer that is marked as incomplete it removes by itself the next time that it writes to the store (containers/storage,
layers.go: ``incompleteFlag``). So such layers are marked, and podman does the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final

from danlu.errors import DataDamaged
from danlu.executors.local import beneath

MAX_BYTES: Final = 64 << 20
LIST: Final = "layers.json"
UNFINISHED: Final = f".{LIST}.danlu"
WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def mark(store: Path, driver: str) -> int:
    """Marks the layers that no image has, in a store with which nobody works; returns how many they are.

    Args:
        store: the folder that has ``storage`` in it; its owner may have put anything there.
        driver: the storage driver, whose name the lists' folders begin with.

    Raises:
        DataDamaged: the lists are not as podman writes them.
        OSError: they cannot be read or written.
    """
    layers = _list(store, f"{driver}-layers", LIST)
    parents = {layer["id"]: layer.get("parent") for layer in layers}
    had: set[str] = set()
    for image in _list(store, f"{driver}-images", "images.json"):
        for layer in (image.get("layer"), *(image.get("mapped-layers") or ())):
            while layer in parents and layer not in had:
                had.add(layer)
                layer = parents[layer]
    orphans = [layer for layer in layers if layer["id"] not in had]
    for layer in orphans:
        layer["flags"] = {**(layer.get("flags") or {}), "incomplete": True}
    if orphans:
        _write(store, f"{driver}-layers", json.dumps(layers).encode())
    return len(orphans)


def _list(store: Path, *parts: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(beneath.read(store, "storage", *parts, max_bytes=MAX_BYTES))
        good = isinstance(found, list) and all(isinstance(one.get("id"), str) for one in found)
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, RecursionError):
        good = False
    if not good:
        raise DataDamaged(f"{store.joinpath('storage', *parts)} is no list of podman's")
    return found


def _write(store: Path, folder: str, data: bytes) -> None:
    inside = beneath.open_folder(store, "storage", folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(UNFINISHED, dir_fd=inside)
        with open(os.open(UNFINISHED, WRITE, 0o600, dir_fd=inside), "wb") as file:
            owner = os.fstat(inside)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(UNFINISHED, LIST, src_dir_fd=inside, dst_dir_fd=inside)
    finally:
        os.close(inside)
