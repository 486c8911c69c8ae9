"""``danlu diff``: what is different between two jobs, or between a job and a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Names, Output, several
from danlu.cli.session import connect
from danlu.cli.terminal import Messages, paint
from danlu.domain.resources import format_bytes
from danlu.errors import DanluError, InvalidRequest

if TYPE_CHECKING:
    from danlu.client.comparing import FileChange, Side

SHOWN_LINES: Final = 200
"""Of all texts together; -o json has more of them."""
SHOWN_FILES: Final = 100
NOISE: Final = {"ran_s": 0.5, "cpu_s": 0.5, "peak_memory_bytes": 4 * 2**20}
"""By so much, or by a hundredth, two runs of the same differ as well."""
FILES: Final = (".yaml", ".yml", ".json")
MARKS: Final = {"added": "A", "removed": "D", "changed": "M", "mode": "m"}
STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}
Pairs = dict[str, tuple[Any, Any]]


def diff(
    *job: Names,
    file: Annotated[
        str | None, Parameter(name=("--file", "-f"), help="compare the job with this job file and its folder")
    ] = None,
    brief: Annotated[bool, Parameter(help="name files that differ, and leave out their lines"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Show what differs between two jobs: specification, code, environment; beside it, how both went.

    With one job: between the job that it repeats and itself. With -f: between the job and a file that you have here.
    Exits as diff does: with 0 when nothing that was asked for differs, 1 when something does, 2 when that cannot be told.

    Example: danlu diff gan-11 gan-12
    """
    from danlu.cli.dispatch import show

    try:
        return _diff(several(job), file, brief=brief, form=output, common=common)
    except DanluError as error:
        show(error)
        return exits.USAGE


def _diff(names: list[str], file: str | None, *, brief: bool, form: out.Format, common: Common | None) -> int:
    from danlu.client import comparing

    if len(names) > (1 if file else 2):
        given = ", ".join(names)
        raise InvalidRequest(
            f"this takes one job or two, with -f one; these are named: {given}", next_step="danlu diff A B"
        )
    if file is None and len(names) == 2 and names[1].endswith(FILES):
        raise InvalidRequest(
            f"{names[1]} is the name of a file, not of a job", next_step=f"danlu diff {names[0]} -f {names[1]}"
        )
    messages = Messages(quiet=form in ("json", "yaml"))
    with connect(common, messages) as client:
        messages.status("comparing")
        if file is not None:
            old, new = comparing.of_job(client, names[0]), _of_file(file, names[0])
        elif len(names) == 1:
            old, new = comparing.predecessor(client, names[0])
        else:
            old, new = (comparing.of_job(client, name) for name in names)
        fields, environment = comparing.specification(old, new), comparing.environment(old, new)
        origin = comparing.origin(old, new)
        files = comparing.code(client, old, new, texts=not brief)
        went = comparing.results(client, old.job, new.job) if old.job is not None and new.job is not None else {}
        messages.clear()
    different = bool(fields or environment or files)
    if form in ("json", "yaml"):
        _structured(form, (old, new), (fields, environment, origin, went), files)
    elif form == "name":
        for path in (
            *fields,
            *(f"environment.{name}" for name in environment),
            *(f"code/{change.path}" for change in files),
        ):
            out.write(path)
    else:
        _tell(old, new, fields, environment, files)
        _tell_pairs("where the code came from", origin)
        _tell_results(went)
    return exits.FAILED if different else exits.OK


def _of_file(file: str, name: str) -> Side:
    from danlu.cli.apply import described_in
    from danlu.client.comparing import of_folder
    from danlu.client.submitting import spec_of

    found = described_in(file)
    chosen = [one for one in found if one[0].get("name") == name] or found
    if len(chosen) > 1:
        raise InvalidRequest(f"{file} describes {len(found)} jobs, none of them {name}", next_step="give one that name")
    fields, folder = chosen[0]
    return of_folder(file, spec_of(fields), folder)


def _structured(form: out.Format, sides: tuple[Side, Side], found: tuple[Pairs, ...], files: list[FileChange]) -> None:
    fields, environment, origin, went = found

    def pairs(changes: Pairs) -> list[dict[str, Any]]:
        return [{"field": name, "old": old, "new": new} for name, (old, new) in changes.items()]

    code = [
        {
            "path": change.path,
            "change": change.kind,
            "old_bytes": None if change.old is None else change.old.size,
            "new_bytes": None if change.new is None else change.new.size,
            "diff": None if change.text is None else "\n".join(change.text),
        }
        for change in files
    ]
    out.structured(
        {
            "old": sides[0].described(), "new": sides[1].described(), "different": bool(fields or environment or files),
            "specification": pairs(fields), "code": code, "environment": pairs(environment),
            "git": pairs(origin), "results": pairs(went),
        },
        form,
    )  # fmt: skip


# --- for people


def _tell(old: Side, new: Side, fields: Pairs, environment: Pairs, files: list[FileChange]) -> None:
    for sign, side in (("-", old), ("+", new)):
        job = side.job
        said = "" if job is None else f"  {job.id}  {wording.outcome(job) if not job.live else job.state}"
        out.write(paint(f"{sign * 3} {side.label}{said}", "bold", sys.stdout))
    if not (fields or environment or files):
        out.write("nothing that was asked for differs: specification, code and environment are the same")
    _tell_pairs("specification", fields)
    _tell_files(files)
    _tell_pairs("environment", environment)


def _tell_pairs(title: str, changes: Pairs) -> None:
    if not changes:
        return
    out.write("")
    out.write(title)
    for name, (old, new) in changes.items():
        if any(isinstance(value, str) and "\n" in value for value in (old, new)):
            from danlu.domain.differences import text_difference

            lines = text_difference((old or "").encode(), (new or "").encode(), name) or [
                f"-{name}: ...",
                f"+{name}: ...",
            ]
            _lines(lines[:SHOWN_LINES])
            continue
        texts = [None if value is None else _value(name, value) for value in (old, new)]
        for sign, value, text in (("-", old, texts[0]), ("+", new, texts[1])):
            if text is not None:
                kind = "   (a line for /bin/sh)" if texts[0] == texts[1] and isinstance(value, str) else ""
                _lines([f"{sign} {name}: {text}{kind}"])


def _value(name: str, value: Any) -> str:
    last = name.rpartition(".")[2]
    if isinstance(value, int) and not isinstance(value, bool) and last in ("memory", "log_limit", "shm", "disk"):
        return format_bytes(value)
    if isinstance(value, float) and last in ("max_time", "grace", "notice", "backoff", "linger"):
        return wording.duration(value)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        import shlex

        return shlex.join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tell_files(files: list[FileChange]) -> None:
    if not files:
        return
    numbers = {kind: sum(change.kind == kind for change in files) for kind in MARKS}
    out.write("")
    out.write("code  " + ", ".join(f"{number:,} {kind}" for kind, number in numbers.items() if number))
    for change in files[:SHOWN_FILES]:
        style = {"A": "green", "D": "red"}.get(MARKS[change.kind])
        out.write("  " + paint(f"{MARKS[change.kind]} {_clean(change.path)}{_sizes(change)}", style, sys.stdout))
    if len(files) > SHOWN_FILES:
        out.write(f"  and {len(files) - SHOWN_FILES:,} more: -o name lists them")
    left = SHOWN_LINES
    for change in files:
        if not change.text:
            continue
        if left <= 0:
            out.write("  the lines of further files are left out: -o json has them")
            return
        out.write("")
        _lines(change.text[:left])
        if len(change.text) > left:
            out.write(f"  {len(change.text) - left:,} more lines: -o json has them")
        left -= len(change.text)


def _sizes(change: FileChange) -> str:
    def size(entry: Any) -> str:
        if entry.kind == "link":
            return f"link to {_clean(entry.target)}"
        return format_bytes(entry.size) + (f", {wording.count(entry.files, 'file')}" if entry.kind == "dir" else "")

    sizes = [size(entry) for entry in (change.old, change.new) if entry is not None]
    if change.kind == "mode" and change.new is not None:
        return "  can be executed now" if change.new.mode & 0o100 else "  cannot be executed any more"
    return "  " + " → ".join(dict.fromkeys(sizes))


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.write("  " + paint(_clean(line), STYLES.get(line[:1]), sys.stdout))


def _clean(text: str) -> str:
    """Returns a text without what would steer the terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _tell_results(went: Pairs) -> None:
    if not went:
        return
    forms: dict[str, Callable[[Any], str]] = {
        "ran_s": wording.duration, "cpu_s": wording.duration, "peak_memory_bytes": format_bytes,
    }  # fmt: skip
    out.write("")
    out.write("how they went")
    rows = []
    for name, (old, new) in went.items():
        if old is None and new is None:
            continue
        form = forms.get(name, _plain)
        cells = [form(value) if value is not None else "-" for value in (old, new)]
        rows.append([name.removesuffix("_s").removesuffix("_bytes"), *cells, _change(name, old, new)])
    for line in out.table_lines(("NAME", "", "", ""), rows, with_head=False, most=out.room(2)):
        out.write(f"  {line}")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _clean(str(value))


def _change(name: str, old: Any, new: Any) -> str:
    if old == new:
        return "="
    if not isinstance(old, int | float) or not isinstance(new, int | float) or isinstance(old, bool):
        return ""
    if name in NOISE and abs(new - old) <= max(NOISE[name], abs(old) / 100):
        return "≈"
    return f"{(new - old) / abs(old) * 100:+.1f} %" if old else ""
