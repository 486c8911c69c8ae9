"""What a folder of code probably needs: its environment, by what it imports and requires; its program. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

ENVIRONMENTS: Final[Mapping[str, frozenset[str]]] = {
    "tensorflow-1": frozenset({"tensorflow_core", "tensorflow.contrib", "tensorflow.examples"}),
    "horovod": frozenset({"horovod"}),
    "mxnet": frozenset({"mxnet", "gluonnlp", "gluoncv"}),
    "chainer": frozenset({"chainer", "chainerrl", "chainermn"}),
    "pytorch": frozenset({"torch", "torchvision"}),
    "tensorflow": frozenset({"tensorflow", "tensorflow_datasets", "tensorflow_addons"}),
    "jax": frozenset({"jax", "flax", "optax"}),
    "keras": frozenset({"keras"}),
    "xgboost": frozenset({"xgboost"}),
    "sklearn": frozenset({"sklearn"}),
}
"""Modules that name an environment, the most telling environment first."""
DISTRIBUTIONS: Final = {"scikit-learn": "sklearn", "tensorflow-gpu": "tensorflow", "tensorflow-cpu": "tensorflow"}
"""Packages whose module is called otherwise."""
COMMON: Final = frozenset({"numpy", "scipy", "six", "setuptools", "wheel", "pip", "danlu"})
"""Packages that come with an environment's own, or with every one."""
PROGRAMS: Final = ("train.py", "main.py", "run.py", "train.sh", "run.sh")
OLD_TENSORFLOW: Final = re.compile(
    r"(?<!v1)(?<!\w)(?:tf|tensorflow)\.(?:Session|InteractiveSession|placeholder|app\.run|app\.flags|flags|contrib|layers\.dense"
    r"|global_variables_initializer|get_variable|estimator|train\.\w+Optimizer|train\.Saver|train\.MonitoredTrainingSession"
    r"|logging\.set_verbosity)\b"
)
_IMPORT: Final = re.compile(r"^[ \t]*(?:from[ \t]+(\w[\w.]*)[ \t]+import\b|import[ \t]+([\w., \t]+))", re.MULTILINE)
_PLAIN: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[\w,.\s-]*\])?\s*((?:[<>=!~][^;#@]*)?)(?:;[^#]*)?(?:#.*)?"
)
_MAIN: Final = re.compile(r"^if __name__ == ['\"]__main__['\"]", re.MULTILINE)


class Environment(NamedTuple):
    """What was guessed: a name, or requirements as text; and why."""

    name: str
    requirements: str
    why: str


def imported(source: str) -> set[str]:
    """Returns the modules that a Python program imports, each with the packages above it. Python 2 will do too."""
    found: set[str] = set()
    for whole, several in _IMPORT.findall(source):
        for word in [whole] if whole else several.split(","):
            parts = (word.split() or [""])[0].split(".")
            found.update(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return found - {""}


def packages(requirements: str) -> dict[str, str] | None:
    """Returns package -> versions of a requirements.txt; None where it has lines that are more than that."""
    found: dict[str, str] = {}
    for raw in requirements.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        plain = _PLAIN.fullmatch(line)
        if plain is None:
            return None
        found[re.sub(r"[-_.]+", "-", plain[1].lower())] = plain[2].strip()
    return found


def environment(sources: Mapping[str, str], requirements: str, known: Collection[str]) -> Environment:
    """Returns the environment that a folder probably needs.

    Args:
        sources: the Python programs by name.
        requirements: the text of its requirements.txt, "" without one.
        known: the environments that there are; none where that is not known.
    """
    modules = {name: imported(text) for name, text in sources.items()}
    needed = packages(requirements)
    asked = {DISTRIBUTIONS.get(name, name.replace("-", "_")): version for name, version in (needed or {}).items()}

    def there(name: str) -> bool:
        return not known or name in known

    if there("tensorflow-1") and (why := _old_tensorflow(sources, modules, asked.get("tensorflow", ""))):
        return Environment("tensorflow-1", "", why)
    for name, telling in ENVIRONMENTS.items():
        if needed and set(asked) - COMMON and not set(asked) - COMMON - telling and there(name):
            return Environment(name, "", f"requirements.txt asks for {', '.join(sorted(set(asked) - COMMON))}")
    if needed and set(asked) - COMMON:
        return Environment("", requirements, f"requirements.txt asks for {len(needed)} packages")
    for name, telling in ENVIRONMENTS.items():
        for file, found in modules.items():
            if found & telling and there(name):
                return Environment(name, "", f"{file} imports {min(found & telling)}")
    return Environment("python", "", "nothing that is imported asks for another")


def _old_tensorflow(sources: Mapping[str, str], modules: Mapping[str, set[str]], version: str) -> str:
    if re.match(r"[=~<]=?\s*1\.", version):
        return f"requirements.txt asks for tensorflow{version}"
    for file, text in sources.items():
        if modules[file] & ENVIRONMENTS["tensorflow-1"]:
            return f"{file} imports {min(modules[file] & ENVIRONMENTS['tensorflow-1'])}"
        if "tensorflow" in modules[file] and (old := OLD_TENSORFLOW.search(text)):
            return f"{file} uses {old[0]}"
    return ""


def command(sources: Mapping[str, str], scripts: Iterable[str]) -> str:
    """Returns the command that a folder is probably run by; "" where nothing tells.

    Args:
        sources: its Python programs by name, those in folders below it too.
        scripts: its shell scripts.
    """
    present = {*(name for name in sources if "/" not in name), *scripts}
    named = next((name for name in PROGRAMS if name in present), "")
    if not named:
        top = sorted(name for name in present if name.endswith(".py") and name not in ("setup.py", "conftest.py"))
        runnable = [name for name in top if _MAIN.search(sources[name])] or top
        named = runnable[0] if len(runnable) == 1 else ""
    if not named:
        return ""
    return f"python {named}" if named.endswith(".py") else f"sh {named}"
