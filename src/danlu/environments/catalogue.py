"""The catalogue: environments that are ready to use by name. Only data; to change a version, edit it here and relock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from danlu.domain.environments import HOST


@dataclass(frozen=True, slots=True)
class SourceBuild:
    """A package that was never released as a wheel: one is made of its source (see wheels.py), by setuptools.

    Attributes:
        package: a name of the entry's lock, which pins its version and the hash of its source. Whatever its build imports
            is in the same lock.
        variables: what its build reads.
        programs: what its build runs, each with the Debian package that has it.
    """

    package: str
    variables: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One environment of the catalogue.

    Attributes:
        name: what users type.
        description: one line, for ``danlu env ls``.
        python: the one version that it works with, e.g. ``3.11``; None: the server's own, or the one asked for.
        oldest_python: where ``python`` is None, the oldest version that its lock covers.
        requirements: what ``relock`` resolves into ``locks/NAME.txt``.
        from_source: those of its packages that have no wheel. All others, and all that users name, have one or are refused.
        variables: set for its jobs, unless they set them themselves.
        hook: the folder beside this file whose files go into site-packages, or None.
        buildable: False for the interpreter that the user stands in.
    """

    name: str
    description: str
    python: str | None = None
    oldest_python: str = "3.8"
    requirements: tuple[str, ...] = ()
    from_source: tuple[SourceBuild, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    hook: str | None = None
    buildable: bool = True


_ENTRIES = (
    CatalogueEntry(name="python", description="plain Python, no packages"),
    CatalogueEntry(
        name="sklearn",
        description="scikit-learn and NumPy",
        oldest_python="3.11",
        requirements=("scikit-learn>=1.6,<2", "numpy>=2,<3"),
    ),
    CatalogueEntry(
        name="tensorflow-1",
        description="TensorFlow 1 programs, unchanged: TensorFlow 2.15, which imports as tensorflow.compat.v1",
        python="3.11",
        oldest_python="3.11",
        requirements=(
            "tensorflow==2.15.1",  # the last with tf.estimator
            "numpy>=1.23.5,<1.24",  # the last with np.bool, np.float, np.int, np.object, which code of that time uses
            "protobuf<4.26",
            "setuptools<81",  # tensorboard imports pkg_resources
        ),
        # 1 leaves out TensorFlow's INFO lines about this machine's CPU, which say nothing about the program. Warnings and
        # errors stay. oneDNN stays on, as TensorFlow has it: off is much slower, for the sake of the last bits of a float.
        variables={"TF_CPP_MIN_LOG_LEVEL": "1"},
        hook="tf1",
    ),
    CatalogueEntry(
        name="horovod",
        description="Horovod 0.28 for TensorFlow 2.15, its ranks joined by Gloo, on CPUs: compiled once, for some minutes",
        python="3.11",
        oldest_python="3.11",
        requirements=(
            "horovod==0.28.1",  # its last release
            "tensorflow==2.15.1",  # the last with the Keras 2 that Horovod's callbacks and optimizer need
            "numpy>=1.26,<2",
            "protobuf<4.26",
            "setuptools<81",  # tensorboard imports pkg_resources; and Horovod's build
        ),
        from_source=(
            SourceBuild(
                "horovod",
                variables={
                    "HOROVOD_WITH_TENSORFLOW": "1",
                    "HOROVOD_WITHOUT_PYTORCH": "1",
                    "HOROVOD_WITHOUT_MXNET": "1",
                    "HOROVOD_WITH_GLOO": "1",
                    "HOROVOD_WITHOUT_MPI": "1",
                    "HOROVOD_CPU_OPERATIONS": "GLOO",
                    "CXXFLAGS": "-w",  # thousands of lines of warnings, which nobody here can mend
                },
                programs={"cmake": "cmake", "make": "make", "c++": "g++"},
            ),
        ),
        variables={"TF_CPP_MIN_LOG_LEVEL": "1"},
    ),
    CatalogueEntry(
        name=HOST,
        description="the Python that you stand in, on a single-user platform: nothing is built",
        buildable=False,
    ),
)

CATALOGUE: Final[Mapping[str, CatalogueEntry]] = {entry.name: entry for entry in _ENTRIES}
