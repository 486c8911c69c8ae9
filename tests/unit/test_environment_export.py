"""An environment as a list of packages and as a recipe for an image: what its lock says, for its Python, and nothing else."""

from __future__ import annotations

import base64
import re

import pytest

from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.dockerfile import dockerfile
from danlu.environments.sources import hook_files, lock_text, locked_packages, own_python, source_for
from danlu.errors import InvalidSpec

BUILDABLE = [entry for entry in CATALOGUE.values() if entry.buildable]
EACH = pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
LOCK = """\
a==1 \\
    --hash=sha256:00 \\
    --hash=sha256:11
b==2 ; python_full_version < '3.12' and sys_platform == 'linux' \\
    --hash=sha256:22
b==3 ; python_full_version >= '3.12' and python_full_version < '3.14' and sys_platform == 'linux' \\
    --hash=sha256:33
"""


@pytest.mark.parametrize(
    ("python", "packages"),
    [("3.9", ("a==1", "b==2")), ("3.11.7", ("a==1", "b==2")), ("3.12.1", ("a==1", "b==3")), ("3.14.0", ("a==1",))],
)
def test_a_locks_packages_are_those_of_its_python(python: str, packages: tuple[str, ...]) -> None:
    assert locked_packages(LOCK, python) == packages


@EACH
def test_each_package_is_locked_once_for_a_python(entry: CatalogueEntry) -> None:
    for python in [entry.python] if entry.python else ["3.11", "3.12", "3.13"]:
        names = [package.partition("==")[0] for package in locked_packages(lock_text(entry), python)]
        assert len(set(names)) == len(names), python
        for requirement in entry.requirements:
            assert re.split(r"[<>=\[]", requirement)[0] in names, (requirement, python)


def test_a_dockerfile_has_every_package_with_its_hashes() -> None:
    text = dockerfile("mine", "3.12", LOCK, None)
    assert text.splitlines()[1] == "FROM python:3.12-slim"
    assert '    "a==1 --hash=sha256:00 --hash=sha256:11" \\' in text.splitlines()
    assert text.count("--hash=") == LOCK.count("--hash=")
    assert "--require-hashes --only-binary :all:" in text
    assert dockerfile("empty", "3.12", "# no packages\n", None).count("RUN") == 0


@EACH
def test_every_environment_can_be_exported(entry: CatalogueEntry) -> None:
    lock = lock_text(entry)
    text = dockerfile(entry.name, "3.11", lock, entry)
    assert text.count("--hash=") == lock.count("--hash=")
    assert "://" not in text
    assert all(f'ENV {name}="{value}"' in text for name, value in entry.variables.items())
    for build in entry.from_source:
        own = next(run for run in text.split("RUN ") if f'"{build.package}==' in run)
        assert "--no-binary :all: --no-build-isolation" in own
        assert all(f'{name}="{value}"' in own for name, value in build.variables.items())
    for path in () if entry.hook is None else hook_files(entry.hook):
        run = next(run for run in text.split("RUN ") if f"/{path.name}" in run)
        encoded = "".join(re.findall(r"^    ([A-Za-z0-9+/=]+) \\$", run, re.MULTILINE))
        assert base64.b64decode(encoded) == path.read_bytes()
    # no word of a lock means anything to the shell within double quotes
    quoted = re.findall(r'^    "(.*)" \\$', text, re.MULTILINE)
    assert not any(set(line) & set('$`\\"!') - ({"!"} if "!=" in line else set()) for line in quoted)


def test_the_python_nearest_to_the_servers_own_is_taken() -> None:
    entry = CATALOGUE["tensorflow"]
    minor = int(own_python().split(".")[1])
    assert entry.newest_python is not None
    newest, oldest = (int(version.split(".")[1]) for version in (entry.newest_python, entry.oldest_python))
    assert source_for("tensorflow", None, None).python == f"3.{max(oldest, min(minor, newest))}"
    with pytest.raises(InvalidSpec, match=r"later than 3\.13") as caught:
        source_for("tensorflow", None, "3.14")
    assert caught.value.next_step
