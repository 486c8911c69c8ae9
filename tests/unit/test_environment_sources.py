"""Environments by name and by requirements: what is accepted, what is refused and why, what identifies them."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.domain.environments import HOST, EnvironmentSource
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.mirrors import uv_variables
from danlu.environments.requirements import check
from danlu.environments.sources import lock_text, own_python, source_digest, source_for
from danlu.environments.uv_command import failure
from danlu.errors import EnvironmentFailed, InvalidSpec, StorageFull, UnknownEnvironment

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
BUILDABLE = [entry for entry in CATALOGUE.values() if entry.buildable]


def test_names_lead_to_sources() -> None:
    assert source_for("python", None, None) == EnvironmentSource(catalogue="python", python=OWN)
    assert source_for("tensorflow-1", None, None) == EnvironmentSource(catalogue="tensorflow-1", python="3.11")
    assert source_for("python", None, "3.9").python == "3.9"
    assert source_for("python", "six\r\n\r\n", None) == EnvironmentSource(requirements="six\n", python=OWN)


@pytest.mark.parametrize(("name", "meant"), [("tensorflow1", "tensorflow-1"), ("pyton", "python"), ("scikit", "")])
def test_unknown_names_get_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UnknownEnvironment) as caught:
        source_for(name, None, None)
    assert name in caught.value.message
    assert (f"did you mean {meant}?" in caught.value.next_step) == bool(meant)
    assert "danlu env ls" in caught.value.next_step


@pytest.mark.parametrize(
    ("env", "requirements", "python", "said"),
    [
        (HOST, None, None, "nothing to build"),
        ("tensorflow-1", "six", None, "exclude each other"),
        ("tensorflow-1", None, "3.12", "3.11 only"),
        ("sklearn", None, "3.9", "3.11 or later"),
        ("python", None, "3.7", "3.8 or later"),
        ("python", None, "2.7", "not a version"),
        ("python", "six", "3.11.4", "not a version"),
    ],
)
def test_what_cannot_be_built_is_refused(env: str, requirements: str | None, python: str | None, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        source_for(env, requirements, python)


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "numpy==2.1.0",
        "numpy>=2,<3",
        "numpy >= 2 , < 3  # why",
        "requests[socks,security]~=2.31 ; python_version >= '3.8'",
        "zope.interface!=5.0",
        "torch===2.1.0+cpu",
        "six (>=1.0)",
        "ruamel_yaml>0.1,<=0.18",
        "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274",
        "six==1.17.0 \\\n    --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274",
        "thing @ https://example.org/wheels/thing-1.0-py3-none-any.whl",
        "https://example.org/thing-1.0-py3-none-any.whl#sha256=00",
        "",
        "# -e . is only a remark",
    ],
)
def test_packages_are_accepted(line: str) -> None:
    assert source_for("python", line, None).requirements == line.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-e .", "-e names a file"),
        ("-e git+https://example.org/a.git", "-e names a file"),
        ("-r more.txt", "-r names a file"),
        ("-rmore.txt", "names a file"),
        ("--requirement=more.txt", "--requirement names a file"),
        ("-c limits.txt", "-c names a file"),
        ("--index-url https://example.org/simple", "--index-url cannot choose an index"),
        ("--extra-index-url=https://example.org/simple", "--extra-index-url cannot choose an index"),
        ("-i https://example.org/simple", "-i cannot choose an index"),
        ("--find-links /srv/wheels", "--find-links cannot choose an index"),
        ("-f/srv/wheels", "cannot choose an index"),
        ("--pre", "--pre is an option"),
        ("--no-binary :all:", "--no-binary is an option"),
        (".", "a path"),
        ("./thing", "a path"),
        ("../thing", "a path"),
        ("/etc/passwd", "a path"),
        ("~/thing", "a path"),
        ("wheels/thing-1.0-py3-none-any.whl", "a path"),
        ("thing-1.0-py3-none-any.whl", "a path"),
        ("C:\\thing", "only wheels"),
        ("thing @ ./thing.whl", "a path"),
        ("thing @ file:///srv/thing.whl", "a path"),
        ("file:///srv/thing.whl", "a path"),
        ("thing @ git+https://example.org/a.git", "only wheels"),
        ("git+ssh://git@example.org/a.git", "password|only wheels"),
        ("thing @ https://example.org/thing-1.0.tar.gz", "only wheels"),
        ("thing @ http://example.org/thing-1.0-py3-none-any.whl", "only wheels"),
        ("thing @ https://user:secret@example.org/thing-1.0-py3-none-any.whl", "password"),
        ("thing @ https://example.org/${HOME}/thing-1.0-py3-none-any.whl", "variables"),
        ("numpy = 2", "not a package"),
        ("numpy 2", "not a package"),
        ("!!", "not a package"),
        ("import numpy", "not a package"),
        ("six --hash=sha256:00 --index-url https://example.org", "not a package"),
        ("six \\\n --index-url https://example.org", "backslash"),
        ("six \\\n# remark", "backslash"),
        ("six \\\n ; python_version > '3'", "backslash"),
        ("six \\", "backslash"),
        ("# x \\\n-r /srv/keys/token", "-r names a file"),
        ("six # x \\\n-r /srv/keys/token", "-r names a file"),
        ("six==1.0.zip", "a path"),
        ("thing.tgz[a]", "a path"),
        ("six[-r]", "not a package"),
        ("six==-r", "not a package"),
        ("six ; os_name == '/srv'", "not a package"),
        ("six ; os_name == 'a\u2028-r /srv'", "not a package"),
        ("six\u2028-r /srv", "not a package"),
        ("thing @ https://127.0.0.1/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("thing @ https://2130706433/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("thing @ https://0x7f.0.0.1/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("thing @ https://[::1]/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("https://localhost:8443/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("https://a.LOCALHOST/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("https://metadata.google.internal/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("https://metadata/thing-1.0-py3-none-any.whl", "full name of a host"),
        ("six ; python_version > '3' --index-url https://example.org", "not a package"),
        ("si\0x", "NUL"),
        ("si\ud800x", "half a character"),
    ],
)
def test_what_reaches_outside_is_refused(line: str, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said) as caught:
        source_for("python", f"six\n# remark\n{line}\n", None)
    number = 4 if "names a file" in said and "\n" in line else 3
    assert "line " not in caught.value.message or f"line {number}" in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("numpy >= 2 , < 3  # why", "numpy>=2,<3"),
        ("six (>=1.0)", "six>=1.0"),
        (
            "requests[socks, security]~=2.31;python_version>=\"3.8\"and  os_name   not   in 'nt'",
            "requests[socks,security]~=2.31 ; python_version >= '3.8' and os_name not in 'nt'",
        ),
        ("a==1 \\\n  --hash=sha256:00 \\\n  --hash sha256:11\nb", "a==1 --hash=sha256:00 --hash=sha256:11\n\n\nb"),
        (
            "a@https://example.org/a.whl#sha256=00;os_name=='x'",
            "a @ https://example.org/a.whl#sha256=00 ; os_name == 'x'",
        ),
        ("https://example.org:8443/a%20b.whl --hash=sha256:00", "https://example.org:8443/a%20b.whl --hash=sha256:00"),
        ("# a \\\nsix", "\nsix"),
    ],
)
def test_uv_is_given_what_was_understood(given: str, written: str) -> None:
    assert check(given) == written + "\n"
    assert check(check(given)) == check(given)


PIECES = st.sampled_from(
    [
        *"\\#-;@/.~[](){}$='\"\t\n\r \x0b\x0c\x85\u2028", "${HOME}", " \\\n", "# x \\\n", " #", "-r", "-e", "--",
        "six", "numpy>=2",
        " --hash=sha256:00", "--hash", "-r /srv/keys", "--index-url", "https://example.org/a.whl", "a @ ", "file:///", " ; ",
        "python_version", "'3'", " and ", "==1.0", "../", "[x]", ",", "git+https://",
    ]
)  # fmt: skip
LINE = re.compile(
    r"(?:[A-Za-z0-9._-]+(?:\[[A-Za-z0-9._,-]+\])?(?: @ )?)?(?:https://[A-Za-z0-9.-]+(?::\d+)?/[^\s\\$;'\"{}]*\.whl(?:#[^\s\\$;'\"{}#]*)?)?"
    r"(?:(?:[<>=!~]{1,3}[A-Za-z0-9][A-Za-z0-9._+*!-]*,?)*)(?: ;(?: (?:[a-z_]+|[<>=!~]{1,3}|[()]|'[A-Za-z0-9._+*!, -]*'))+)?"
    r"(?: --hash=[a-z0-9]+:[0-9a-fA-F]+)*"
)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_option_path_or_variable_ever_reaches_uv(text: str) -> None:
    try:
        written = check(text)
    except InvalidSpec:
        return
    assert written.isascii()
    assert "\\" not in written
    assert "$" not in written
    for line in written.split("\n"):
        assert LINE.fullmatch(line), line
        words = line.split()
        assert not any(word.startswith("-") and not word.startswith("--hash=") for word in words)
        assert not any("/" in word and not word.startswith("https://") for word in words)


def test_too_many_lines_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="more than"):
        source_for("python", "six\n" * 20_001, None)


def test_digests_tell_sources_apart() -> None:
    sources = [source_for(entry.name, None, None) for entry in BUILDABLE]
    sources += [
        source_for("python", text, version) for text in ("six", "six==1.17.0") for version in (None, "3.12", "3.13")
    ]
    digests = {source_digest(source) for source in set(sources)}
    assert len(digests) == len(set(sources))
    assert source_digest(source_for("python", "six\r\n", None)) == source_digest(source_for("python", "six  ", None))


@pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
def test_locks_hold_exact_versions_with_hashes_and_name_no_index(entry) -> None:
    lock = lock_text(entry)
    lines = [line for line in lock.splitlines() if line[:1].isalnum()]
    assert bool(lines) == bool(entry.requirements)
    assert all("==" in line and line.endswith("\\") for line in lines)
    assert "://" not in lock
    assert lock.count("--hash=sha256:") >= len(lines)
    for requirement in entry.requirements:
        assert any(line.startswith(requirement.split("=")[0].split(">")[0].split("<")[0] + "==") for line in lines)


def test_the_server_says_how_its_index_is_reached_and_nothing_else(tmp_path) -> None:
    home = {"HOME": str(tmp_path), "SSL_CERT_FILE": "/certificates"}
    given = {**home, "HTTPS_PROXY": "http://proxy", "UV_DEFAULT_INDEX": "https://a", "UV_INDEX_MINE_PASSWORD": "p"}
    others = {
        "DANLU_TOKEN": "secret",
        "UV_CACHE_DIR": "/x",
        "UV_LINK_MODE": "symlink",
        "VIRTUAL_ENV": "/y",
        "PYTHONPATH": "/z",
    }
    assert uv_variables({**given, **others, "PIP_INDEX_URL": "https://b"}) == given


def test_an_index_that_is_set_for_pip_reaches_uv(tmp_path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip" / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror/simple\nextra-index-url =\n  https://a/\n  https://b/\ntrusted-host = mirror\n"
    )
    home = {"HOME": str(tmp_path), "SSL_CERT_FILE": "/certificates"}
    assert uv_variables(home) == {
        **home,
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_INDEX": "https://a/ https://b/",
        "UV_INSECURE_HOST": "mirror",
    }
    assert uv_variables({**home, "PIP_INDEX_URL": "https://other"})["UV_DEFAULT_INDEX"] == "https://other"


def test_uv_failures_keep_its_words() -> None:
    words = ["Resolved 2 packages", "error: No solution found", "  cause: Because a has no usable wheels ..."]
    hint = "hint: Wheels are required for `a` because building from source is disabled (i.e., with `--no-build`)"
    found = failure("resolve", 1, [*words, hint])
    assert isinstance(found, EnvironmentFailed)
    assert found.details == {"stage": "resolve"}
    assert "No solution found" in found.message
    assert "wheels only" in found.message
    assert "--no-build" not in found.message
    assert "Resolved" not in found.message
    full = failure("install", 2, ["error: failed to write", "  cause: No space left on device (os error 28)"])
    assert isinstance(full, StorageFull)
    assert "cannot be reached" in failure("resolve", 2, ["error: Failed to fetch: `x`", "  cause: dns error"]).message
    assert len(failure("install", 1, ["error: x" * 1000] * 1000).message) < 4096
    assert own_python() == OWN
