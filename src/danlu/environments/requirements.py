"""A user's requirements.txt: names of packages pass, whatever reaches outside the package index is refused by line.

The build runs on the server, as the server. So a line must not read the server's files (``-r``, ``-e``, paths, ``file:``)
or its variables (uv expands ``${NAME}`` in URLs), must not choose where packages come from (that is the administrator's),
and must not run code to build something (``git+https:``, archives of sources). An HTTPS address of a wheel is allowed.
"""

from __future__ import annotations

import re

from danlu.errors import InvalidSpec

MAX_BYTES = 1_048_576
MAX_LINES = 20_000

_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9._]*[A-Za-z0-9])?\s*(?:\[[-A-Za-z0-9._,\s]*\])?")
_VERSIONS = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[^\s,;()<>=!~]+"
_SPECIFIER = re.compile(rf"\s*(?:\(?\s*{_VERSIONS}(?:\s*,\s*{_VERSIONS})*\s*,?\s*\)?)?\s*(?:;(?!.*\s-).*)?")
_WHEEL = re.compile(r"https://[^\s@/?#]+/[^\s?#]*\.whl(?:#[^\s]*)?\s*(?:;(?!.*\s-).*)?", re.IGNORECASE)
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


def normalized(text: str) -> str:
    """Returns the text with one kind of line end and nothing after each line; its lines keep their numbers."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def check(text: str) -> None:
    """Refuses what cannot be installed on the server.

    Raises:
        InvalidSpec: a line is not a package's name with versions, or is more than that; its number and text are named.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES or text.count("\n") > MAX_LINES:
        raise InvalidSpec(f"requirements: more than {MAX_BYTES:,} bytes or {MAX_LINES:,} lines")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidSpec(
            "requirements: there is a NUL or half a character in it", next_step="give a text file, as UTF-8"
        )
    for number, line in _logical_lines(text):
        problem = _problem(line)
        if problem is not None:
            said, step = problem
            raise InvalidSpec(f"requirements, line {number}: {said}: {line[:200]!r}", next_step=step, line=number)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Returns (number, text) of each line that says something; lines ended by a backslash are joined."""
    found: list[tuple[int, str]] = []
    held, start = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        start = start if held else number
        if raw.endswith("\\"):
            held += raw[:-1] + " "
            continue
        line = re.sub(r"(^|\s)#.*$", "", held + raw).strip()
        held = ""
        if line:
            found.append((start, line))
    if held.strip():
        found.append((start, held.strip()))
    return found


def _problem(line: str) -> tuple[str, str] | None:
    """Returns what is wrong with one line and what to do, or None."""
    if "${" in line:
        return "variables are not expanded on the server", "write the value itself"
    if line.startswith("-"):
        option = re.split(r"[\s=]", line, maxsplit=1)[0]
        if option in _INDEX_OPTIONS or option[:2] in ("-i", "-f"):
            return f"{option} cannot choose an index on the server", _INDEX_STEP
        if option in _FILE_OPTIONS or option[:2] in ("-r", "-c", "-e"):
            return (
                f"{option} names a file that the server does not have",
                "put the lines of that file here; your own code needs no line: the job runs in its folder",
            )
        return f"{option} is an option, and only packages can be listed", "remove the line"
    line = re.sub(r"\s--hash[=\s]\s*\w+:[0-9a-fA-F]+", "", line)
    match = _NAME.match(line)
    rest = line[match.end() :] if match else ""
    if match and re.match(r"\s*@", rest):
        return _address_problem(rest.strip()[1:].strip())
    if re.match(r"[A-Za-z][A-Za-z0-9+.]*:", line):
        return _address_problem(line)
    if line[0] in "./~\\" or re.match(r"[^\s<>=!~;@\[]*[/\\]", line) or re.match(r"\S+\.(whl|tar\.gz|zip)\b", line):
        return "a path names nothing on the server", "name the package as the index knows it, e.g. numpy==2.1.0"
    if not match or not _SPECIFIER.fullmatch(rest):
        return "not a package with versions", "write lines such as numpy>=2,<3"
    return None


def _address_problem(address: str) -> tuple[str, str] | None:
    if _WHEEL.fullmatch(address):
        return None
    if "://" in address and "@" in address.split("://", 1)[1].split("/", 1)[0]:
        return "an address with a password in it would be readable by others", "ask the administrator to set the index"
    if address.startswith(("file:", ".", "/", "~")):
        return "a path names nothing on the server", "name the package as the index knows it, e.g. numpy==2.1.0"
    return (
        "only wheels are installed, from https:// addresses that end in .whl",
        "name a released version, or the address of a wheel",
    )
