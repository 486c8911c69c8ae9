"""Leased ports: whether they accept connections, and whether a stranger sits on one."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

LISTENING = "0A"
LOOPBACK = "127.0.0.1"
EVERY = ("0.0.0.0", "::")  # noqa: S104 - what others listen on
MAPPED = b"\0" * 10 + b"\xff" * 2
CONNECT_TIMEOUT_S = 0.2
KNOCK_EVERY_S, KNOCK_PART = 0.1, 10
LOOKS = 2


def accepts(address: str) -> bool:
    """Says whether somebody accepts connections at ``host:port`` now."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


class Doors:
    """The addresses that tasks wait for: each is knocked at now and then, whoever waits; one that was open stays so."""

    def __init__(self) -> None:
        self._open: Set[str] = set()
        self._again_at: Dict[str, float] = {}

    def open(self, address: str) -> bool:
        """Says whether somebody has accepted connections there. What takes long, as a full backlog, is done less often."""
        began = time.monotonic()
        if address not in self._open and began >= self._again_at.get(address, 0.0):
            if accepts(address):
                self._open.add(address)
            ended = time.monotonic()
            self._again_at[address] = ended + max(KNOCK_EVERY_S, KNOCK_PART * (ended - began))
        return address in self._open

    def shut(self, addresses: Iterable[str]) -> None:
        """Forgets that these were open: whoever accepted there has ended."""
        self._open.difference_update(addresses)


def stranger(leased: Iterable[Tuple[str, int]], own: Callable[[], Iterable[int]]) -> Optional[int]:
    """Returns the first of these ports on which a process listens that is none of ``own``; None where there is none.

    The kernel's list of sockets (/proc/net/tcp) has their inodes, a process's open files the inodes that are its own. Between
    the two a process can end, or hand a socket to one that it has just started: only what still listens, and still is
    nobody's, after several looks is a stranger's.

    Args:
        leased: host and port. Who was given the usual loopback address may listen on every address, so anybody else on that
            port is in the way; who has one of its own shares the port with other addresses.
        own: returns the processes that are now.
    """
    wanted = list(leased)
    suspects = _listening(wanted)
    for _ in range(LOOKS):
        if not suspects:
            return None
        ours: Set[int] = set()
        for pid in own():
            ours |= _sockets(pid)
        still = _listening(wanted)
        suspects = {inode: port for inode, port in suspects.items() if inode in still and inode not in ours}
    return min(suspects.values(), default=None)


def _listening(leased: Iterable[Tuple[str, int]]) -> Dict[int, int]:
    """Returns the sockets that listen on one of these addresses, each with its port."""
    hosts: Dict[int, Set[str]] = {}
    for host, port in leased:
        hosts.setdefault(port, set()).add(host)
    found: Dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        try:
            with open("/proc/net/%s" % name) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields: List[str] = line.split()
            address, _, number = fields[1].rpartition(":")
            port = int(number, 16)
            if fields[3] == LISTENING and port in hosts and _in_the_way(_readable(address), hosts[port]):
                found[int(fields[9])] = port
    return found


def _in_the_way(address: str, hosts: Set[str]) -> bool:
    return address in EVERY or address in hosts or LOOPBACK in hosts


def _readable(address: str) -> str:
    """Returns an address of the kernel's list, which has each of its words as the machine keeps it, as one reads it."""
    words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
    data = b"".join(words)
    if data[:12] == MAPPED:
        data = data[12:]
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


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
