"""What decides which wheel is used, how a lock is rewritten for it, and what is said of a compiler's failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from danlu.environments.catalogue import CATALOGUE, CatalogueEntry, SourceBuild
from danlu.environments.pythons import Python
from danlu.environments.sources import lock_text
from danlu.environments.uv_command import MAX_REASON_CHARACTERS, failure
from danlu.environments.wheels import Origin, Wheel, installable, origins, uv_settings
from danlu.errors import EnvironmentFailed, StorageFull

LOCK = f"""\
absl-py==2.5.0 ; sys_platform == 'linux' \\
    --hash=sha256:{"1" * 64} \\
    --hash=sha256:{"2" * 64}
thing==1.0 ; sys_platform == 'linux' \\
    --hash=sha256:{"3" * 64}
wheel==0.48.0 \\
    --hash=sha256:{"4" * 64}
"""
ENTRY = CatalogueEntry(name="e", description="", from_source=(SourceBuild("thing", variables={"A": "1"}),))


def python(version: tuple[int, int, int] = (3, 11, 7), executable: str = "/usr/bin/python3.11") -> Python:
    return Python(Path(executable), version, "cpython", Path("/usr"), Path("/usr"), (Path("/usr"),))


def origin(lock: str = LOCK) -> Origin:
    (found,) = origins(ENTRY, lock, python())
    return found


def test_the_source_is_pinned_by_the_lock_and_built_against_the_rest_of_it() -> None:
    found = origin()
    assert (found.version, found.sha256, found.name) == ("1.0", "3" * 64, "thing 1.0")
    assert found.against == LOCK.replace(LOCK[LOCK.index("thing") : LOCK.index("wheel")], "")
    assert found.line == f"thing==1.0 --hash=sha256:{'3' * 64}\n"
    assert origins(None, LOCK, python()) == ()
    assert origins(CATALOGUE["python"], LOCK, python()) == ()


@pytest.mark.parametrize("lock", ["", LOCK.replace("thing", "think"), LOCK.replace("4" * 64, "3" * 64)[:0]])
def test_a_lock_without_the_source_is_refused(lock: str) -> None:
    with pytest.raises(EnvironmentFailed, match="thing"):
        origins(ENTRY, lock, python())


def test_a_lock_with_several_hashes_for_it_is_refused() -> None:
    several = LOCK.replace(
        f"--hash=sha256:{'3' * 64}\n", f"--hash=sha256:{'3' * 64} \\\n    --hash=sha256:{'5' * 64}\n"
    )
    with pytest.raises(EnvironmentFailed, match="one source"):
        origins(ENTRY, several, python())


def test_whatever_is_in_a_wheel_is_in_its_key() -> None:
    one = origin()
    others = [
        dataclasses.replace(one, version="1.1"),
        dataclasses.replace(one, sha256="5" * 64),
        dataclasses.replace(one, against=one.against.replace("0.48.0", "0.49.0")),
        dataclasses.replace(one, python=python((3, 12, 1))),
        dataclasses.replace(one, build=SourceBuild("thing", variables={"A": "2"})),
        dataclasses.replace(one, build=SourceBuild("other", variables={"A": "1"})),
    ]
    assert len({one.key, *(other.key for other in others)}) == 1 + len(others)
    same = [
        dataclasses.replace(one, python=python((3, 11, 9), "/opt/python3.11")),  # a wheel is a minor version's
        dataclasses.replace(one, build=SourceBuild("thing", variables={"A": "1"}, programs={"c++": "g++"})),
    ]
    assert {other.key for other in same} == {one.key}


def test_the_lock_is_installed_with_the_wheels_own_hash() -> None:
    wheel = Wheel(origin(), Path('/cache/wheels/a"b/thing-1.0-py3-none-any.whl'), "6" * 64)
    assert installable(LOCK, (wheel,)) == LOCK.replace("3" * 64, "6" * 64)
    assert installable(LOCK, ()) == LOCK
    assert uv_settings((wheel,)) == 'find-links = ["/cache/wheels/a\\"b"]\n'
    assert uv_settings(()) == ""


@pytest.mark.parametrize("entry", [entry for entry in CATALOGUE.values() if entry.from_source])
def test_the_catalogues_sources_are_pinned_by_their_locks(entry: CatalogueEntry) -> None:
    found = origins(entry, lock_text(entry), python())
    assert {one.build.package for one in found} == {build.package for build in entry.from_source}
    for one in found:
        assert "setuptools==" in one.against
        assert one.sha256 not in one.against


LONG = "/usr/bin/c++ " + "-I/some/where " * 1000


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            [LONG, "a.cc:3:9: error: 'x' was not declared", "    3 | int y = x;", "make: *** [a.o] Error 1",
             "error: Failed to build `thing`", "  cause: The build backend returned an error", "hint: read"],
            "a.cc:3:9: error: 'x' was not declared\n    3 | int y = x;\nmake: *** [a.o] Error 1",
        ),
        (["CMake Error at CMakeLists.txt:1:", "  no Gloo"], "CMake Error at CMakeLists.txt:1:\n  no Gloo"),
        (["c++: fatal error: Killed signal terminated program cc1plus"],
         "c++: fatal error: Killed signal terminated program cc1plus"),
        (["a.o: in f: undefined reference to `g'"], "a.o: in f: undefined reference to `g'"),
        (["one", "two", "ModuleNotFoundError: No module named 'numpy'"], "ModuleNotFoundError: No module named 'numpy'"),
        (["strange", "words"], "strange\nwords"),
        ([], "it ended with 2"),
        (["error: Failed to build `thing`", "  cause: it is not there"],
         "error: Failed to build `thing`\n  cause: it is not there"),
    ],
)  # fmt: skip
def test_a_compilers_failure_is_told_from_its_first_error_on(said: list[str], expected: str) -> None:
    found = failure("compile", 2, said)
    assert isinstance(found, EnvironmentFailed)
    assert found.message == f"it cannot be built from its source: {expected}"
    assert found.details["stage"] == "compile"
    assert "danlu env build" in found.next_step


def test_a_compilers_failure_is_bounded_and_a_full_disk_is_one() -> None:
    many = failure("compile", 2, [f"a.cc:1:1: error: {LONG}"] * 100)
    assert len(many.message) < MAX_REASON_CHARACTERS + 100
    full = failure("compile", 2, ["cc1plus: fatal error: /tmp/x.s: No space left on device"])
    assert isinstance(full, StorageFull)
    assert "signal 9" in failure("compile", -9, []).message


def test_a_package_that_only_the_catalogue_builds_is_found_there() -> None:
    said = "Because horovod==0.28.1 has no usable wheels and you require horovod==0.28.1, it is unsatisfiable."
    assert "; horovod is in the environment horovod: --env horovod" in str(failure("resolve", 1, [said]).next_step)
    assert "--env" not in str(failure("resolve", 1, [said.replace("horovod", "docopt")]).next_step)
