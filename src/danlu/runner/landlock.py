"""Landlock: a process and all that it starts write only below the folders that are named, and reach no process outside.

It needs no privilege and cannot be undone. A process inside traces and looks into only what is inside with it (always), and
signals only that (version 6 of Landlock). Structures and numbers: linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION = 1
PATH_BENEATH = 1
WRITE_FILE, TRUNCATE, REFER = 1 << 1, 1 << 14, 1 << 13
CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
"""To remove and make files, folders, links, pipes, sockets and devices."""
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
FILES_VERSION, SCOPE_VERSION = 3, 6
"""From which version on it keeps from truncating (Linux 6.2), and from sending signals (6.12)."""


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(number, *arguments))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, "Landlock: %s" % os.strerror(error))
    return found


def version() -> int:
    """Returns what this kernel has of it; 0 for nothing."""
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)
    except OSError:
        return 0


def enter(found: int, folders: Iterable[str], files: Iterable[str], *, scoped: bool) -> None:
    """Puts this process, which must have no-new-privileges, into a domain of its own.

    Args:
        found: the version.
        folders: below them everything may be changed; without any, what is written is not restricted at all.
        files: below them what exists may be written to, and nothing made.
        scoped: no signals, and no abstract sockets, reach what is outside.

    Raises:
        OSError: the kernel refuses.
    """
    folders = list(folders)
    write_file = WRITE_FILE | (TRUNCATE if found >= FILES_VERSION else 0)
    every = (write_file | CHANGE_FOLDER | REFER) if folders else 0
    scopes = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS if scoped else 0
    # an older kernel takes a shorter structure
    asked = struct.pack("=QQQ", every, 0, scopes)[: 8 if found < 4 else 16 if found < SCOPE_VERSION else 24]
    ruleset = _call(CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)
    try:
        if folders:
            for path in folders:
                _allow(ruleset, path, every)
            for path in files:
                _allow(ruleset, path, write_file)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= WRITE_FILE | TRUNCATE
        rule = struct.pack("=Qi", rights, opened)
        _call(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)
