"""The filter of system calls, run by an interpreter of its few instructions: what each call gets, on each processor."""

from __future__ import annotations

import errno
import struct

import pytest

from danlu.domain.isolation import MEANING, Layer
from danlu.runner import sandbox, seccomp

ALLOWED, EPERM, ENOSYS, KILLED = "allowed", "EPERM", "ENOSYS", "killed"
X86, ARM = seccomp.MACHINES["x86_64"], seccomp.MACHINES["aarch64"]
NEW_USER, NEW_TIME, CLONE_FILES = 0x10000000, 0x80, 0x400


def verdict(lines: bytes, number: int, audit: int, first: int = 0) -> str:
    """Returns what a filter says of a call: struct seccomp_data is number, architecture, where from, six arguments."""
    data = struct.pack("=IIQ6Q", number, audit, 0, first, 0, 0, 0, 0, 0)
    program = [struct.unpack_from("=HBBI", lines, at) for at in range(0, len(lines), 8)]
    at, loaded = 0, 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == seccomp.LOAD:
            (loaded,) = struct.unpack_from("=I", data, value)
        elif code == seccomp.RETURN:
            if value == seccomp.KILL:
                return KILLED
            return ALLOWED if value == seccomp.ALLOW else errno.errorcode[value & 0xFFFF]
        else:
            true = loaded == value if code == seccomp.EQUAL else bool(loaded & value)
            at += yes if true else no


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])
@pytest.mark.parametrize("tenants", [True, False])
def test_every_call_gets_what_its_list_says(machine: seccomp.Machine, *, tenants: bool) -> None:
    lines = seccomp.program(machine, tenants=tenants)
    assert len(lines) // 8 < 256, "a jump reaches no further"
    where_several = EPERM if tenants else ALLOWED
    expected = [
        *((seccomp.ALWAYS, EPERM), (seccomp.TENANTS, where_several), (seccomp.ABSENT, ENOSYS)),
        (seccomp.UNSEEN, ENOSYS if tenants else ALLOWED),
    ]
    listed = set()
    for calls, what in expected:
        for name, numbers in calls.items():
            number = numbers[machine.column]
            if number is not None:
                assert verdict(lines, number, machine.audit) == what, name
                listed.add(number)
    assert {verdict(lines, n, machine.audit) for n in set(range(600)) - listed} == {ALLOWED}


@pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])
def test_threads_and_processes_are_made_but_no_namespaces(machine: seccomp.Machine) -> None:
    lines = seccomp.program(machine, tenants=True)
    clone, unshare = (seccomp.FLAGS[name][machine.column] or 0 for name in ("clone", "unshare"))
    threads = 0x3D0F00  # as the C library makes one
    assert verdict(lines, clone, machine.audit, threads) == ALLOWED
    assert verdict(lines, clone, machine.audit, 17) == ALLOWED
    assert verdict(lines, clone, machine.audit, NEW_USER | 17) == EPERM
    assert verdict(lines, unshare, machine.audit, CLONE_FILES) == ALLOWED
    assert verdict(lines, unshare, machine.audit, NEW_TIME) == EPERM
    assert verdict(lines, clone, machine.audit, NEW_TIME | 17) == ALLOWED, "part of a signal's number there"


def test_calls_of_another_architecture_end_the_process() -> None:
    for machine, other in ((X86, ARM), (ARM, X86)):
        assert verdict(seccomp.program(machine, tenants=False), 0, other.audit) == KILLED
    i386 = 0x40000003
    assert verdict(seccomp.program(X86, tenants=True), 1, i386) == KILLED
    assert verdict(seccomp.program(X86, tenants=True), seccomp.X32 | 1, X86.audit) == KILLED


def test_no_call_is_in_two_lists() -> None:
    every = [seccomp.ALWAYS, seccomp.TENANTS, seccomp.ABSENT, seccomp.UNSEEN, seccomp.FLAGS]
    for column in (0, 1):
        numbers = [found[column] for calls in every for found in calls.values() if found[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_the_runner_names_layers_as_the_records_do() -> None:
    assert {*sandbox.MOUNTED, *sandbox.KEPT_APART} <= {*Layer}
    assert {*MEANING} == {*Layer}
