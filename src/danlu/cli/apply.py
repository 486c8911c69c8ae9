"""``danlu apply``: the jobs described in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from danlu.cli import output as out
from danlu.cli.options import Common, Output, again, own_interpreter
from danlu.cli.session import connect_or_start
from danlu.cli.submitting import send_code, submit
from danlu.cli.terminal import Messages
from danlu.client.submitting import spec_of
from danlu.domain.jobs import Job
from danlu.errors import InvalidSpec

MAX_FILE_BYTES = 4 * 2**20


def apply(
    *,
    file: Annotated[
        str, Parameter(name=("--file", "-f"), allow_leading_hyphen=True, help="YAML or JSON; - reads stdin")
    ],
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Submit the jobs described in a file, and return.

    A job's fields are those of the API; code: names its folder, the file's own when left out, null for none.
    Several jobs are separated by a line of three dashes.

    Example: danlu apply -f danlu.yaml
    """
    checked = described_in(file)
    messages = Messages(quiet=output in ("json", "yaml"))
    jobs: list[Job] = []
    with connect_or_start(common, messages) as client:
        for fields, folder in checked:
            if folder is not None:
                fields |= send_code(client, folder, messages).fields()
            jobs.append(submit(client, spec_of(fields), messages))
    if output in ("json", "yaml"):
        if len(jobs) == 1:
            out.record(jobs[0], output)
        else:
            out.records(jobs, output)
        return 0
    for job in jobs:
        key = f"job/{job.name}" if job.array is None else f"array/{job.array.name}"
        out.write(key + ("" if output == "name" else " submitted"))
    next_one = f"follow it with `danlu logs -f {jobs[0].name}{again(common)}`"
    messages.say(next_one if len(jobs) == 1 else f"see them: danlu get jobs{again(common)}")
    return 0


def described_in(file: str) -> list[tuple[dict[str, Any], Path | None]]:
    """Returns the jobs of a file: the fields of JobSpec, checked, and the folder of the code, which is not read yet.

    Raises:
        InvalidSpec: it cannot be read, or a field is wrong; with the line.
    """
    name, text, base = _read(file)
    return [_checked(name, fields, node, base) for fields, node in _documents(name, text)]


def _read(file: str) -> tuple[str, str, Path]:
    """Returns (what to call it, its text, the folder that it stands in)."""
    try:
        if file == "-":
            return "stdin", sys.stdin.read(MAX_FILE_BYTES + 1), Path.cwd()
        path = Path(file).expanduser().absolute()
        with path.open(encoding="utf-8") as opened:
            return file, opened.read(MAX_FILE_BYTES + 1), path.parent
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        step = "danlu init writes one" if isinstance(error, FileNotFoundError) else ""
        raise InvalidSpec(f"{file} cannot be read: {said}", next_step=step) from error


def _documents(name: str, text: str) -> list[tuple[dict[str, Any], Any]]:
    """Returns each document as (fields, its YAML node, which knows the lines)."""
    import yaml

    if len(text) > MAX_FILE_BYTES:
        raise InvalidSpec(f"{name} has more than {MAX_FILE_BYTES} characters")
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
        loaded = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise InvalidSpec(f"{name}{where}: this is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not loaded:
        raise InvalidSpec(f"{name} describes nothing", next_step="a job needs at least: command: python train.py")
    for document, node in zip(loaded, nodes, strict=True):
        if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
            raise InvalidSpec(
                f"{name} line {node.start_mark.line + 1}: this is not a job: fields with names are expected"
            )
    return list(zip(loaded, nodes, strict=True))


def _checked(name: str, fields: dict[str, Any], node: Any, base: Path) -> tuple[dict[str, Any], Path | None]:
    """Returns the fields of JobSpec, and the folder to send; raises InvalidSpec with the line of what is wrong."""
    fields = dict(fields)
    if (kind := fields.pop("kind", "job")) != "job":
        raise InvalidSpec(
            f"{name} line {_line(node, ['kind'])}: kind {kind!r} is not known", next_step="write kind: job"
        )
    code = fields.pop("code", ".")
    folder = None
    if isinstance(code, str) and code.startswith("sha256:"):
        fields["code"] = code
    elif isinstance(code, str):
        folder = base / Path(code).expanduser()
    elif code is not None:
        raise InvalidSpec(
            f"{name} line {_line(node, ['code'])}: code is a folder's name, or null for none; it is {code!r}"
        )
    if fields.get("env") == "host":
        fields.setdefault("interpreter", own_interpreter())
    try:
        spec_of(fields)
    except InvalidSpec as error:
        raise _with_lines(name, error, node) from error
    return fields, folder


def _with_lines(name: str, error: InvalidSpec, node: Any) -> InvalidSpec:
    problems = error.details.get("problems", [])
    texts = [f"{name} line {_line(node, problem['field'].split('.'))}: {problem['problem']}" for problem in problems]
    steps = [problem["suggestion"] for problem in problems if problem["suggestion"]]
    return InvalidSpec(
        "\n       ".join(texts) or f"{name}: {error.message}", next_step="   ".join(steps), problems=problems
    )


def _line(node: Any, path: list[str]) -> int:
    """Returns the line, from 1, of the deepest part of ``path`` that the document has."""
    import yaml

    line = int(node.start_mark.line) + 1
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
