"""Compiles the modules below a folder to byte code, on all cores. A program of its own, for the Python of an environment.

It needs Python 3.8 and its standard library. What it does is what compileall does, less what that spends on handing files to
its workers one by one, and on collecting garbage, of which compiling leaves none in cycles.
"""

from __future__ import annotations

import gc
import os
import py_compile
import struct
import sys

NUMBER = struct.Struct("=I")
KEPT_CYCLES = 500  # files between two collections, should there be any after all


def sources(folder: str) -> list[str]:
    """Returns the paths of the modules below a folder, the largest first, so that no core ends late."""
    found = []
    for at, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(at, name)
            if name.endswith(".py") and not os.path.islink(path):
                found.append((os.path.getsize(path), path))
    return [path for _, path in sorted(found, reverse=True)]


def compile_all(paths: list[str], queue: int) -> bool:
    """Compiles what it takes from the queue, of these, until that is empty; returns whether all could be compiled."""
    gc.disable()
    whole = True
    while True:
        taken = os.read(queue, NUMBER.size)  # reading moves the place of all: no two take the same
        if not taken:
            return whole
        number = NUMBER.unpack(taken)[0]
        try:
            py_compile.compile(paths[number], doraise=True)
        except (py_compile.PyCompileError, OSError, ValueError, RecursionError, MemoryError):
            whole = False
        if not number % KEPT_CYCLES:
            gc.collect()


def main(folder: str) -> int:
    """Shares the work among as many processes as there are cores for this one; returns the exit status."""
    paths = sources(folder)
    children = []
    queue = os.memfd_create("files")
    os.write(queue, b"".join(map(NUMBER.pack, range(len(paths)))))
    os.lseek(queue, 0, os.SEEK_SET)
    for _ in range(min(len(os.sched_getaffinity(0)), len(paths)) - 1):
        child = os.fork()
        if child == 0:
            os._exit(not compile_all(paths, queue))
        children.append(child)
    failed = not compile_all(paths, queue)
    for child in children:
        failed = os.waitpid(child, 0)[1] != 0 or failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
