"""The shape of the code, enforced: who imports whom, how large things are, how they are called, what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "danlu"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_PARAMETERS = 6

PURE = {"errors", "domain"}
# layer -> what it may import besides itself; `a.b` means that module alone
ALLOWED: dict[str, set[str]] = {
    "__init__": {"errors", "client"},  # named for type checkers; loaded when used: importing it costs nothing
    "errors": set(),
    "config": {"errors"},
    "domain": {"errors"},
    "scheduler": PURE,
    "tuning": PURE,
    "database": PURE,
    "blobs": PURE,
    "executors": {*PURE, "runner"},
    "environments": PURE,
    "api": PURE,
    "services": {*PURE, "database", "blobs", "scheduler", "tuning", "api", "environments.catalogue", "environments.sources",
                 "environments.dockerfile", "environments.legacy", "runner.redaction", "runner.gang"},
    "controllers": {
        *PURE, "database", "blobs", "scheduler", "tuning", "executors", "environments", "api", "services",
    },
    "server": {*PURE, "api", "services"},
    "console": {*PURE, "api", "services"},
    "client": {*PURE, "scheduler", "api", "config", "blobs.folders", "runner.transfer"},
    "cli": {*PURE, "scheduler", "api", "client"},
    "runner": set(),
    "serving": PURE,
}  # fmt: skip
EVERYBODY = {"runner.formats", "runner.frames", "__version__", ""}
COMPOSERS = {"server/main.py", "server/offline.py", "server/executors.py", "server/blobs.py"}
"""They alone put the layers together, for a server and for what is done without one, and may import all of them."""

# These may only shrink. Whoever removes a reason removes its line: a line without need fails too.
IMPORTS_TO_MEND: set[tuple[str, str]] = set()
LONG_FUNCTIONS = {
    ("database/migrations/versions/0001_first_schema.py", "upgrade"),  # a list of tables, written by Alembic
}
MANY_PARAMETERS = {
    ("cli/logs.py", "logs"),  # a command's parameters are its flags
}
FORBIDDEN_NAMES = re.compile(r"(Manager|Handler|Helper|Processor|Impl)$")
FORBIDDEN_MODULES = {"utils", "util", "common", "misc", "helpers", "helper"}
OLD_PYTHON = (3, 8)
"""What runs on the job's interpreter."""


@cache
def sources() -> tuple[Path, ...]:
    return tuple(sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, at any depth, absolute."""
    package = ["danlu", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Returns what a file imports of danlu, without ``danlu.``."""
    return {name.removeprefix("danlu").lstrip(".") for name in imported(path) if name.split(".")[0] == "danlu"}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


# imports


def test_every_layer_is_known() -> None:
    assert {layer_of(path) for path in sources()} <= set(ALLOWED)


def wrong_imports() -> set[tuple[str, str]]:
    found = set()
    for path in sources():
        layer = layer_of(path)
        if name_of(path) in COMPOSERS:
            continue
        allowed = (
            ALLOWED[layer]
            | {layer}
            | (EVERYBODY if layer not in ("errors", "domain", "scheduler", "__init__") else set())
        )
        found |= {(name_of(path), ".".join(name.split(".")[:2])) for name in ours(path) if not within(name, allowed)}
    return found


def test_imports_point_down() -> None:
    assert wrong_imports() - IMPORTS_TO_MEND == set()


def test_no_exception_from_that_is_kept_without_need() -> None:
    assert IMPORTS_TO_MEND - wrong_imports() == set()


def test_layers_do_not_import_each_other_in_a_circle() -> None:
    reached: dict[str, set[str]] = {}

    def below(layer: str, path: tuple[str, ...] = ()) -> set[str]:
        assert layer not in path, f"a circle: {' -> '.join((*path, layer))}"
        if layer not in reached:
            direct = {one.split(".")[0] for one in ALLOWED[layer]}
            reached[layer] = direct.union(*(below(one, (*path, layer)) for one in direct))
        return reached[layer]

    for layer in ALLOWED:
        below(layer)


IMPURE = {
    "asyncio", "os", "pathlib", "random", "secrets", "shutil", "socket", "sqlite3", "subprocess", "tempfile", "threading",
    "time", "urllib", "uuid", "sqlalchemy", "httpx2", "fastapi",
}  # fmt: skip
PURE_BUT = {("domain/environments.py", "pathlib")}  # a path as a value; nothing is opened


def test_pure_layers_touch_nothing() -> None:
    found = {
        (name_of(path), name.split(".")[0])
        for path in sources()
        if layer_of(path) in ("errors", "domain", "scheduler", "tuning")
        for name in imported(path)
        if name.split(".")[0] in IMPURE
    }
    assert found == PURE_BUT


@pytest.mark.parametrize(
    ("library", "layers"),
    [
        ("sqlalchemy", {"database"}),
        ("alembic", {"database"}),
        ("psycopg", {"database"}),
        ("sqlite3", {"database"}),
        ("fastapi", {"server", "console"}),
        ("uvicorn", {"server"}),
        ("httpx2", {"client"}),
        ("cyclopts", {"cli"}),
        ("pynvml", {"executors"}),
        ("lightkube", {"executors"}),
        ("prometheus_client", {"services"}),
        ("obstore", {"blobs"}),
    ],
)
def test_a_library_has_one_home(library: str, layers: set[str]) -> None:
    found = {layer_of(path) for path in sources() for name in imported(path) if name.split(".")[0] == library}
    assert found <= layers


def test_the_runner_and_the_sdk_need_the_standard_library_alone() -> None:
    for path in sources():
        if layer_of(path) not in ("runner", "__init__"):
            continue
        wrong = {
            name
            for name in imported(path)
            if name.split(".")[0] not in {*sys.stdlib_module_names, "danlu", "__future__"}
        }
        assert wrong == set(), name_of(path)
        own = {"runner"} if layer_of(path) == "runner" else ALLOWED["__init__"]
        assert all(within(name, own) for name in ours(path)), name_of(path)


def test_the_runner_and_the_sdk_are_python_3_8() -> None:
    for path in sources():
        if layer_of(path) in ("runner", "__init__"):
            ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=OLD_PYTHON)


def test_importing_the_sdk_costs_nothing() -> None:
    code = "import sys; a = set(sys.modules); import danlu; print(*sorted(set(sys.modules) - a))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["danlu"]


DIALECTS = re.compile(r"dialect|sqlite_where|postgresql|psycopg|\bsqlite\b", re.IGNORECASE)
DIALECT_SAID = {
    "services/platform.py",  # danlu status tells which one it is
    "server/diagnosis.py",  # a file on a network's file system is not safe
}
"""Beside the composers, who choose."""


def code_of(path: Path) -> str:
    """Returns a file's code without its documentation and messages: names, and texts of one word."""
    nodes = list(ast.walk(tree(path)))
    names = [
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
    ]
    names += [node.arg or "" for node in nodes if isinstance(node, ast.keyword)]
    texts = [
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
    ]
    return "\n".join([*names, *texts])


def test_which_database_it_is_matters_to_nobody_else() -> None:
    found = {
        name_of(path)
        for path in sources()
        if layer_of(path) not in ("database", "config")
        and name_of(path) not in COMPOSERS
        and DIALECTS.search(code_of(path))
    }
    assert found == DIALECT_SAID


# sizes


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Counts every parameter, by keyword or not, but self and cls."""
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(node.args.kwonlyargs)


def test_files_are_small() -> None:
    for path in (*sources(), *(ROOT / "tests").rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


def test_functions_are_short() -> None:
    found = {
        (name_of(path), node.name)
        for path in sources()
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert found == LONG_FUNCTIONS


def test_functions_have_few_parameters() -> None:
    found = {
        (name_of(path), node.name)
        for path in sources()
        for node in functions(path)
        if parameters(node) > MAX_PARAMETERS
    }
    assert found - MANY_PARAMETERS == set()
    existing = {(name_of(path), node.name) for path in sources() for node in functions(path)}
    assert (MANY_PARAMETERS & existing) - found == set(), "these are mended: take them off the list"


# names


def test_names_say_something() -> None:
    for path in sources():
        assert path.stem not in FORBIDDEN_MODULES, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                assert not FORBIDDEN_NAMES.search(node.name), f"{name_of(path)}: class {node.name}"


def test_every_module_says_what_it_owns() -> None:
    for path in sources():
        assert ast.get_docstring(tree(path)), name_of(path)


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_only_the_terminal_prints() -> None:
    for path in sources():
        if layer_of(path) not in ("cli", "runner", "__init__"):
            assert "print" not in set(calls(path)), name_of(path)


def test_only_the_composer_reads_the_environment() -> None:
    """On the server's side, an option comes from Settings."""
    for path in sources():
        if layer_of(path) in ("domain", "scheduler", "database", "blobs", "services", "controllers", "api"):
            text = path.read_text(encoding="utf-8")
            assert "os.environ" not in text, name_of(path)
            assert "getenv" not in text, name_of(path)


def test_nothing_sets_a_clock_or_a_die_aside_from_its_argument() -> None:
    for path in sources():
        if layer_of(path) in ("domain", "scheduler", "services"):
            used = set(calls(path))
            assert not used & {
                "time.time",
                "time.time_ns",
                "time.monotonic",
                "datetime.now",
                "random.random",
                "uuid.uuid4",
            }, path


# tests


def test_tests_do_not_sleep_or_patch() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        used = set(calls(path))
        assert not used & {"time.sleep", "sleep", "asyncio.sleep"}, path
        if "process" not in path.relative_to(ROOT).parts:
            assert not any(
                call.startswith(("monkeypatch.setattr", "mock.", "unittest.mock", "patch")) for call in used
            ), path


# the repository

WORDS = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "../" + "shared",
    "/" + "work" + "/main",
    "/" + "work" + "/shared",
    "proxy.golang" + ".org",  # the registry; modules are called after golang.org, as others after their homes
    "npmjs" + ".org",
    "crates" + ".io",
    "huggingface" + ".co",
]


def test_nothing_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:  # a source archive has no git
        files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    else:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    for path in files:
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes().decode(errors="replace")
            found = [word for word in WORDS if word in text]
            assert not found, f"{path.relative_to(ROOT)} has {found}"
