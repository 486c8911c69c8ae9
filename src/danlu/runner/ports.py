"""Leased ports: whether they accept connections, and whether a stranger sits on one."""

from __future__ import annotations

import os
import socket
from typing import Dict, Iterable, List, Optional, Set

LISTENING = "0A"
CONNECT_TIMEOUT_S = 0.2


def accepts(address: str) -> bool:
    """Says whether somebody accepts connections at ``host:port`` now."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def stranger(ports: Iterable[int], own: Iterable[int]) -> Optional[int]:
    """Returns the first of these ports on which a process listens that is none of ``own``; None where there is none.

    The kernel's list of sockets (/proc/net/tcp) has their inodes, a process's open files the inodes that are its own.
    """
    listening = _listening(set(ports))
    if not listening:
        return None
    ours: Set[int] = set()
    for pid in own:
        ours |= _sockets(pid)
    return next((port for port, inodes in sorted(listening.items()) if inodes - ours), None)


def _listening(ports: Set[int]) -> Dict[int, Set[int]]:
    found: Dict[int, Set[int]] = {}
    for name in ("tcp", "tcp6"):
        try:
            with open("/proc/net/%s" % name) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields: List[str] = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == LISTENING and port in ports:
                found.setdefault(port, set()).add(int(fields[9]))
    return found


def _sockets(pid: int) -> Set[int]:
    found: Set[int] = set()
    folder = "/proc/%d/fd" % pid
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(os.path.join(folder, name))
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
