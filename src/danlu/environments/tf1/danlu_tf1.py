"""Lets programs written for TensorFlow 1 run on TensorFlow 2, unchanged.

Copied into an environment's site-packages, where a ``.pth`` file imports it when Python starts. A user's module that imports
``tensorflow`` gets ``tensorflow.compat.v1``, after one ``disable_v2_behavior()``. Libraries (what lies in the environment or
in the standard library) get the real one; ``sys.modules["tensorflow"]`` stays the real one: ``tensorflow.python...`` works.

``builtins.__import__`` is replaced: the documented way to see an import together with the module that asks for it. Finders on
``sys.meta_path`` do not see who asks, and are not called again for what is loaded. The replacement takes itself out of
tracebacks. ``importlib.import_module`` is replaced when ``importlib`` is first imported: Python starts as fast as before.

Present with ``-c``, ``-m``, ``-i``, ``-E`` and ``-I``, and in every process that multiprocessing starts; absent with ``-S``,
where there is no TensorFlow either. Known limit: C code that looks into ``sys.modules`` (``pickle``) meets the real one.
"""

from __future__ import annotations

import builtins
import os
import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would cost more at each start of Python than all of this
    from collections.abc import Mapping, Sequence
    from types import ModuleType, TracebackType
    from typing import Any

_TOP = "tensorflow"
_GONE = {
    "contrib": "tensorflow.contrib is not in TensorFlow 2, on which this environment runs: its layers are in tf.layers and "
    "tf.keras.layers, its metrics in tf.metrics; tf_slim and tensorflow_addons are packages of their own",
    "examples": "tensorflow.examples is not in TensorFlow 2, on which this environment runs: its data sets are in "
    "tf.keras.datasets, e.g. tf.keras.datasets.mnist.load_data()",
}
_LIBRARIES = (os.__file__.rpartition(os.sep)[0] + os.sep, sys.prefix + os.sep)
_PARTS = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)

_import = builtins.__import__
_lock = allocate_lock()
_v1: ModuleType | None = None


def _library(path: str) -> bool:
    return path.startswith(_LIBRARIES) or any(part in path for part in _PARTS)


def _of_user(namespace: Mapping[str, object]) -> bool:
    """Whether code with these globals is the user's: a file outside the libraries, or no file (a shell, a notebook)."""
    path = namespace.get("__file__")
    if isinstance(path, str):
        return not _library(os.path.abspath(path))  # noqa: PTH100
    return namespace.get("__name__", "__main__") in (
        "__main__",
        "__mp_main__",
    )  # TensorFlow makes modules without a file too


def _version_1(real: ModuleType) -> ModuleType | None:
    """Returns tensorflow.compat.v1, version 2 behaviour switched off; None if ``real`` is a module of the user's own."""
    global _v1
    if _v1 is None:
        path = getattr(real, "__file__", None)
        if not isinstance(path, str) or not _library(os.path.abspath(path)):  # noqa: PTH100
            return None
        v1 = _import("tensorflow.compat.v1", None, None, ("v1",), 0)
        with _lock:
            if _v1 is None:
                _switch(v1)
                _v1 = v1
    return _v1


def _switch(v1: Any) -> None:
    logging = _import("logging", None, None, (), 0)
    logger = logging.getLogger("tensorflow")
    quiet, logger.disabled = (
        logger.disabled,
        True,
    )  # it would say that disable_v2_behavior is deprecated: not the user's call
    try:
        v1.disable_v2_behavior()
    finally:
        logger.disabled = quiet
    wrapped = getattr(v1, "_tfmw_wrapped_module", v1)
    if "__getattr__" not in vars(wrapped):
        wrapped.__getattr__ = _missing


def _missing(name: str) -> None:
    raise AttributeError(_GONE.get(name, f"module 'tensorflow' has no attribute {name!r}"))


def _find(v1: ModuleType, parts: list[str]) -> Any:
    """Returns what version 1 has under a dotted name, or None."""
    found: Any = v1
    for part in parts:
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


def _import_real(name: str, fromlist: Sequence[str]) -> ModuleType:
    try:
        return _import(name, None, None, fromlist, 0)
    except ModuleNotFoundError as error:
        said = _GONE.get(name.split(".")[1] if "." in name else "")
        if said is None or not str(error.name).startswith(_TOP):
            raise
        raise ModuleNotFoundError(said, name=error.name) from None


def _user_import(name: str, fromlist: Sequence[str] | None) -> Any:
    """Imports ``tensorflow`` or something below it for a user's module; returns what an import statement needs."""
    v1 = _version_1(_import(_TOP, None, None, (), 0))
    if v1 is None:
        return _import(name, None, None, fromlist, 0)
    parts = name.split(".")[1:]
    if not parts:
        for item in fromlist or ():
            if item != "*" and getattr(v1, item, None) is None:
                _adopt(v1, item)
        return v1
    found = None if parts[0] == "compat" else _find(v1, parts)
    if found is None:
        found = _import_real(name, fromlist or ())
        if not fromlist:
            real = sys.modules[_TOP]
            if parts[0] == "compat":
                return real
            if getattr(v1, parts[0], None) is None:
                setattr(v1, parts[0], getattr(real, parts[0], None) or sys.modules[_TOP + "." + parts[0]])
            return v1
    return found if fromlist else v1


def _adopt(v1: ModuleType, item: str) -> None:
    """Gives version 1 what only the real one has, such as ``tensorflow.python``; raises ImportError for what has gone."""
    real = _import(_TOP, None, None, (item,), 0)
    found = getattr(real, item, None) or sys.modules.get(_TOP + "." + item)
    if found is not None:
        setattr(v1, item, found)
    elif item in _GONE:
        raise ImportError(_GONE[item], name=_TOP)


def _without_own(trace: TracebackType | None) -> TracebackType | None:
    """Returns a traceback without the frames of this file at its head; they say nothing about the program."""
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    return trace


def _danlu_import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    try:
        if level == 0 and name.partition(".")[0] == _TOP:
            asking = sys._getframe(1).f_globals if globals is None else globals  # __import__("tensorflow") gives none
            if _of_user(asking):
                return _user_import(name, fromlist)
        module = _import(name, globals, locals, fromlist, level)
        if name == "importlib" and level == 0:
            _wrap_import_module(module)
        return module
    except BaseException as error:
        error.__traceback__ = _without_own(error.__traceback__)
        raise


def _wrap_import_module(importlib: Any) -> None:
    real = importlib.import_module
    if getattr(real, "__module__", None) == __name__:
        return

    def import_module(name: str, package: str | None = None) -> Any:
        try:
            if name.partition(".")[0] == _TOP and _of_user(sys._getframe(1).f_globals):
                return _user_import(name, None if name == _TOP else ("__name__",))
            return real(name, package)
        except BaseException as error:
            error.__traceback__ = _without_own(error.__traceback__)
            raise

    import_module.__doc__ = real.__doc__
    importlib.import_module = import_module


builtins.__import__ = _danlu_import
if "importlib" in sys.modules and hasattr(sys.modules["importlib"], "import_module"):
    _wrap_import_module(sys.modules["importlib"])
