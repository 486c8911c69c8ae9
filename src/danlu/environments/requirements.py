"""A user's requirements.txt: names of packages pass, whatever reaches outside the package index is refused by line.

The build runs on the server. So a line must not read the server's files (``-r``, ``-e``, paths, ``file:``) or its variables
(uv expands ``${NAME}`` in URLs), must not choose where packages come from (that is the administrator's), and must not run
code to build something (``git+https:``, archives of sources). An HTTPS address of a wheel on a named host is allowed.

uv is never given the user's text, which it might read in another way than this file does: each line is taken apart, and what
was understood is written anew, in a small alphabet.
"""

from __future__ import annotations

import re
from typing import Final

from danlu.errors import InvalidSpec

MAX_BYTES: Final = 1_048_576
MAX_LINES: Final = 20_000

_Problem = tuple[str, str]
"""What is wrong with a line, and what to do."""

_NAME = re.compile(r"([A-Za-z0-9](?:[-A-Za-z0-9._]*[A-Za-z0-9])?)\s*(?:\[([-A-Za-z0-9._,\s]*)\])?")
_EXTRA = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9._]*[A-Za-z0-9])?")
_VERSION = re.compile(r"(===|==|~=|!=|<=|>=|<|>)\s*([A-Za-z0-9][-A-Za-z0-9._+*!]*)")
_HASH = re.compile(r"\s--hash(?:=|\s)\s*([a-z0-9]+):([0-9a-fA-F]+)(?=\s|$)")
_MARKER_WORD = re.compile(
    r"""\s*(?:(?P<word>\(|\)|and\b|or\b|not\s+in\b|in\b|===|==|~=|!=|<=|>=|<|>
    |os_name|sys_platform|platform_(?:machine|python_implementation|release|system|version)|python_(?:full_)?version
    |implementation_(?:name|version)|extra)
    |'(?P<single>(?:[A-Za-z0-9._+*!,-]|\ (?=[A-Za-z0-9]))*)'|"(?P<double>(?:[A-Za-z0-9._+*!,-]|\ (?=[A-Za-z0-9]))*)")""",
    re.VERBOSE,
)
_ARCHIVE = re.compile(
    r"\.(?:whl|zip|tar|t?gz|tbz2?|bz2|t?xz|txz|tlz|lzma|lz|t?zst|egg|7z)(?![A-Za-z0-9])", re.IGNORECASE
)
_WHEEL = re.compile(
    r"https://(?P<host>[A-Za-z0-9.-]+)(?::[0-9]{1,5})?/(?:[A-Za-z0-9._~!+,=:@/&-]|%[0-9A-Fa-f]{2})*\.whl"
    r"(?:#(?:[A-Za-z0-9._=&+-]|%[0-9A-Fa-f]{2})*)?",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])")
_LOCAL_HOSTS = (".localhost", ".localdomain", ".local", ".internal")
_INDEX_OPTIONS = (
    "-i",
    "--index-url",
    "--extra-index-url",
    "--default-index",
    "--index",
    "-f",
    "--find-links",
    "--no-index",
)
_FILE_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")
_INDEX_STEP = (
    "remove the line: packages come from the index that the platform's administrator has set; "
    "a package from elsewhere can be named by address: NAME @ https://HOST/PATH/FILE.whl"
)
_NO_PACKAGE: _Problem = ("not a package with versions", "write lines such as numpy>=2,<3")
_A_PATH: _Problem = (
    "a path names nothing on the server",
    "name the package as the index knows it, e.g. numpy==2.1.0",
)


def normalized(text: str) -> str:
    """Returns the text with one kind of line end and nothing after each line; its lines keep their numbers."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def check(text: str) -> str:
    """Returns what uv is to be given for a user's text: its packages, written anew, each at its line's number.

    Raises:
        InvalidSpec: a line is not a package's name with versions, or is more than that; its number and text are named.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES or text.count("\n") > MAX_LINES:
        raise InvalidSpec(f"requirements: more than {MAX_BYTES:,} bytes or {MAX_LINES:,} lines")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidSpec(
            "requirements: there is a NUL or half a character in it", next_step="give a text file, as UTF-8"
        )
    physical = normalized(text).split("\n")
    written = [""] * len(physical)
    for number, line in _logical_lines(physical):
        found = _rewritten(line)
        if isinstance(found, tuple):
            said, step = found
            raise InvalidSpec(f"requirements, line {number}: {said}: {line[:200]!r}", next_step=step, line=number)
        written[number - 1] = found
    return "\n".join(written).rstrip("\n") + "\n"


def _logical_lines(physical: list[str]) -> list[tuple[int, str]]:
    """Returns (number, text) of each line that says something, without remarks.

    A line goes on in the next one only where that holds hashes. Any other backslash stays in the text, and is refused there:
    what a backslash means elsewhere, at the end of a remark say, is not for two parsers to agree on.
    """
    found: list[tuple[int, str]] = []
    held, start = "", 0
    for number, raw in enumerate(physical, 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        following = physical[number].strip() if number < len(physical) else ""
        start = start if held else number
        if line.endswith("\\") and line == raw.strip() and following.startswith("--hash"):
            held += line[:-1] + " "
            continue
        line, held = (held + line).strip(), ""
        if line:
            found.append((start, line))
    return found


def _rewritten(line: str) -> str | _Problem:
    """Returns one line as it was understood, or what is wrong with it."""
    if "${" in line:
        return "variables are not expanded on the server", "write the value itself"
    if line.endswith("\\"):
        return "a backslash can only join a line with its --hash", "write each package on one line"
    if line.startswith("-"):
        return _option_problem(line)
    hashes = "".join(f" --hash={kind}:{digest}" for kind, digest in _HASH.findall(line))
    line = _HASH.sub("", line)
    match = _NAME.match(line)
    rest = line[match.end() :].strip() if match else ""
    if match and rest.startswith("@"):
        address, name = _address(rest[1:].strip()), _name(match)
        return address if isinstance(address, tuple) or name is None else f"{name} @ {address}{hashes}"
    if re.match(r"[A-Za-z][A-Za-z0-9+.]*:", line):
        address = _address(line)
        return address if isinstance(address, tuple) else address + hashes
    if line[0] in "./~\\" or re.match(r"[^\s<>=!~;@\[]*[/\\]", line) or _ARCHIVE.search(line.partition(";")[0]):
        return _A_PATH
    name = None if match is None else _name(match)
    versions, marker = _versions_and_marker(rest)
    if name is None or versions is None or marker is None:
        return _NO_PACKAGE
    return name + versions + marker + hashes


def _option_problem(line: str) -> _Problem:
    option = re.split(r"[\s=]", line, maxsplit=1)[0]
    if option in _INDEX_OPTIONS or option[:2] in ("-i", "-f"):
        return f"{option} cannot choose an index on the server", _INDEX_STEP
    if option in _FILE_OPTIONS or option[:2] in ("-r", "-c", "-e"):
        return (
            f"{option} names a file that the server does not have",
            "put the lines of that file here; your own code needs no line: the job runs in its folder",
        )
    return f"{option} is an option, and only packages can be listed", "remove the line"


def _name(match: re.Match[str]) -> str | None:
    """Returns ``name[extra,extra]``, or None where an extra is no name."""
    extras = [extra.strip() for extra in (match[2] or "").split(",") if extra.strip()]
    if not all(_EXTRA.fullmatch(extra) for extra in extras):
        return None
    return match[1] + (f"[{','.join(extras)}]" if extras else "")


def _versions_and_marker(rest: str) -> tuple[str | None, str | None]:
    """Takes apart what follows a package's name; None for a part that is not understood."""
    given, semicolon, condition = rest.partition(";")
    given = given.strip()
    if given.startswith("(") and given.endswith(")"):
        given = given[1:-1].strip()
    versions = []
    for part in given.removesuffix(",").split(",") if given else ():
        match = _VERSION.fullmatch(part.strip())
        if match is None:
            return None, None
        versions.append(match[1] + match[2])
    return ",".join(versions), _marker(condition) if semicolon else ""


def _marker(condition: str) -> str | None:
    """Returns `` ; CONDITION`` word by word, or None; whether the words make sense is uv's to say."""
    words, at, end = [], 0, len(condition.rstrip())
    while at < end:
        match = _MARKER_WORD.match(condition, at, end)
        if match is None:
            return None
        quoted = match["single"] if match["single"] is not None else match["double"]
        words.append(" ".join(match["word"].split()) if quoted is None else f"'{quoted}'")
        at = match.end()
    return f" ; {' '.join(words)}" if words else None


def _address(text: str) -> str | _Problem:
    """Returns a wheel's address and its marker as they were understood, or what is wrong with them."""
    address, _, condition = text.partition(" ;") if " ;" in text else text.partition(";")
    match = _WHEEL.fullmatch(address.strip())
    if match is not None:
        marker = _marker(condition) if condition.strip() else ""
        if marker is None:
            return _NO_PACKAGE
        return _host_problem(match["host"]) or address.strip() + marker
    if "://" in text:
        host = text.split("://", 1)[1].split("/", 1)[0]
        if "@" in host:
            return (
                "an address with a password in it would be readable by others",
                "ask the administrator to set the index",
            )
        if text.startswith("https://["):
            return _host_problem(host) or _NO_PACKAGE
    if text.startswith(("file:", ".", "/", "~")):
        return _A_PATH
    return (
        "only wheels are installed, from https:// addresses that end in .whl",
        "name a released version, or the address of a wheel",
    )


def _host_problem(host: str) -> _Problem | None:
    """Refuses what names a machine by number, or from inside the server's own network only."""
    if _HOST.fullmatch(host) and not host.lower().endswith(_LOCAL_HOSTS):
        return None
    return (
        f"{host[:80]} is not the full name of a host, and the server fetches nothing from its own network",
        "name a host in full, e.g. https://example.org/FILE.whl, or ask the administrator to set an index",
    )
