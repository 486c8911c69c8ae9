"""System calls that a job has no use for are refused: a filter for this process and all that it starts, for ever.

What is refused is what changes the machine, reaches beyond the job, or has been a way into the kernel again and again. The
filter is a small program that the kernel runs at each call (classic BPF, as linux/filter.h has it); for calls that are
always allowed the kernel remembers the answer (Linux 5.11), so that they cost nothing. Numbers: arch/x86/entry/syscalls and
asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Dict, List, NamedTuple, Optional, Tuple


class Machine(NamedTuple):
    """An architecture: where its numbers are in the tables below, its own mark, its number of seccomp(2)."""

    column: int
    audit: int
    seccomp: int


MACHINES: Dict[str, Machine] = {"x86_64": Machine(0, 0xC000003E, 317), "aarch64": Machine(1, 0xC00000B7, 277)}
X32 = 0x40000000
Calls = Dict[str, Tuple[Optional[int], Optional[int]]]
"""By name: the number on x86_64 and on aarch64, where there is one."""

ALWAYS: Calls = {
    # keys are the user's, not the job's
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # programs and pages that the kernel runs or waits for
    "bpf": (321, 280), "userfaultfd": (323, 282), "lookup_dcookie": (212, 18), "fanotify_init": (300, 262),
    # files by number, past the folders that lead to them
    "open_by_handle_at": (304, 265),
    # the machine as a whole
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "create_module": (174, None), "query_module": (178, None),
    "get_kernel_syms": (177, None), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "iopl": (172, None), "ioperm": (173, None),
    "syslog": (103, 116), "vhangup": (153, 58), "nfsservctl": (180, 42), "uselib": (134, None), "ustat": (136, None),
    "sysfs": (139, None), "_sysctl": (156, None),
}  # fmt: skip
TENANTS: Calls = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "setns": (308, 268),
    "perf_event_open": (298, 241), "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
"""Refused besides where several people share the machine: who has it alone may make namespaces and profiles of his own."""
NAMING = frozenset({"sethostname", "unshare"})
"""With which the runner gives a task a host name of its own (see hostname.py), before the task is sealed."""
ABSENT: Calls = {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)}
"""As if the kernel had them not: libraries then do without. What io_uring does, no filter sees."""
UNSEEN: Calls = {"clone3": (435, 435)}
"""Its flags are in memory, where a filter cannot look; without it the C library calls clone."""
FLAGS: Calls = {"clone": (56, 220), "unshare": (272, 97)}
NEW_NAMESPACES: Dict[str, int] = {"clone": 0x7E020000, "unshare": 0x7E020080}
"""The flags that make namespaces; CLONE_NEWTIME has a meaning of its own in clone."""

SET_MODE_FILTER, SPEC_ALLOW = 1, 4
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER_AT, MACHINE_AT, FIRST_ARGUMENT_AT = 0, 4, 16


def program(machine: Machine, *, tenants: bool, naming: bool = False) -> bytes:
    """Returns the filter.

    Calls of another architecture (32-bit programs, x32) end the process: their numbers mean other calls.

    Args:
        machine: for which processor.
        tenants: several people share the machine.
        naming: host names of one's own can be made.
    """
    refused = {**ALWAYS, **(TENANTS if tenants else {})}
    flags = FLAGS if tenants else {}
    if naming:
        refused, flags = ({n: c for n, c in calls.items() if n not in NAMING} for calls in (refused, flags))
    absent = {**ABSENT, **(UNSEEN if tenants else {})}
    lines: List[Tuple[int, int, str, str]] = [
        (LOAD, MACHINE_AT, "", ""),
        (EQUAL, machine.audit, "", "kill"),
        (LOAD, NUMBER_AT, "", ""),
    ]
    if machine is MACHINES["x86_64"]:
        lines.append((ANY_BIT, X32, "kill", ""))
    for calls, end in ((refused, "refused"), (absent, "absent"), (flags, "")):
        for name, numbers in calls.items():
            number = numbers[machine.column]
            if number is not None:
                lines.append((EQUAL, number, end or name, ""))
    lines.append((RETURN, ALLOW, "", ""))
    labels: Dict[str, int] = {}
    for name in flags:
        labels[name] = len(lines)
        lines += [
            (LOAD, FIRST_ARGUMENT_AT, "", ""),
            (ANY_BIT, NEW_NAMESPACES[name], "refused", ""),
            (RETURN, ALLOW, "", ""),
        ]
    for name, value in (("refused", REFUSE | errno.EPERM), ("absent", REFUSE | errno.ENOSYS), ("kill", KILL)):
        labels[name] = len(lines)
        lines.append((RETURN, value, "", ""))
    return b"".join(
        struct.pack("=HBBI", code, *(labels[to] - at - 1 if to else 0 for to in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(lines)
    )


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]


_later: Optional[bytes] = None


def refuse(*, tenants: bool, naming: bool = False) -> None:
    """Puts the filter on this process, which must have no-new-privileges.

    Args:
        tenants: see ``program``.
        naming: this process can make host names; what it starts cannot, once that is sealed.

    Raises:
        OSError: it has no effect here.
    """
    global _later
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        raise OSError(errno.ENOSYS, "no list of system calls for %s" % os.uname().machine)
    _put(machine, program(machine, tenants=tenants, naming=naming))
    _later = program(machine, tenants=tenants) if naming else None


def seal() -> None:
    """Puts the whole filter on a forked process, if its parent has not."""
    machine = MACHINES.get(os.uname().machine)
    if _later is not None and machine is not None:
        _put(machine, _later)


def _put(machine: Machine, lines: bytes) -> None:
    found = _Program(len(lines) // 8, lines)
    libc = ctypes.CDLL(None, use_errno=True)
    # a filter must not make a job's processes slower: Linux before 5.16 would forbid them speculation
    if libc.syscall(machine.seccomp, SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(found)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "seccomp: %s" % os.strerror(number))
