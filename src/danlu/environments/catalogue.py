"""The catalogue: environments that are ready to use by name. Only data; to change a version, edit it here and relock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from danlu.domain.environments import HOST

# what is read when a library is loaded, as tracing getenv and os.environ through the imports has shown
_PYTHON: Final = ("PYTHON*", "LD_*", "GLIBC*")
_NUMPY: Final = (*_PYTHON, "NPY_*", "NUMPY_*", "OPENBLAS_*", "GOTO*", "MKL_*", "OMP_*", "GOMP_*", "KMP_*")
_ONEDNN: Final = ("ONEDNN_*", "DNNL_*", "MKLDNN_*")
_SCIPY: Final = (*_NUMPY, "SCIPY_*")
_SKLEARN: Final = (*_SCIPY, "SKLEARN_*", "JOBLIB_*", "LOKY_*")
_GOOGLE: Final = ("TF_*", "ABSL_*", "GCS_*", "GRPC_*", "TEST_*", "ENABLE_RUNTIME_UPTIME_TELEMETRY")
_KERAS: Final = ("KERAS_*", "HDF5_*")
_TENSORFLOW: Final = (
    *_NUMPY, *_ONEDNN, *_GOOGLE, *_KERAS, "XLA_*", "CUDA_*", "PROTOCOL_BUFFERS_*", "TEMPORARILY_DISABLE_PROTOBUF*", "WRAPT_*",
    "PILLOW_*", "SETUPTOOLS_*", "DISTUTILS_*",
)  # fmt: skip
_JAX: Final = (
    *_SCIPY, *_GOOGLE, "JAX*", "XLA_*", "CUDA_*", "TPU_*", "CHECK_VMA", "EAGER_CONSTANT_FOLDING", "MPITRAMPOLINE_*",
)  # fmt: skip
_TORCH: Final = (
    *_NUMPY, *_ONEDNN, "TORCH*", "PYTORCH*", "TRITON*", "AOT*", "INDUCTOR_*", "CUDA_*", "CUBLAS*", "NVRTC_*", "NVIDIA_*",
    "KINETO_*", "SYMPY_*", "MPMATH_*", "FX_*", "PT2_*", "CUTLASS_*", "CUTEDSL_*", "FLYDSL_*", "ENABLE_*", "LOG_*",
    "PARTITIONER_*", "COMPILE_STROBELIGHT_*", "DUMP_AOTI_*", "FAKE_ALLOW_META", "UNSAFE_SKIP_*", "PILLOW_*",
)  # fmt: skip


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
        newest_python: where ``python`` is None, the newest version that its packages have wheels for; None: any.
        requirements: what ``relock`` resolves into ``locks/NAME.txt``.
        from_source: those of its packages that have no wheel. All others, and all that users name, have one or are refused.
        variables: set for its jobs, unless they set them themselves.
        read_at_import: variables that its packages read when they are imported, or beginnings of their names and ``*``: a
            job that sets one of them needs an interpreter that has not imported them yet.
        preload: modules that are worth importing before a job asks for them.
        frameworks: names of domain/frameworks.py, for whose gangs it has the packages; empty: none.
        hook: the folder beside this file whose files go into site-packages, or None.
        buildable: False for the interpreter that the user stands in.
    """

    name: str
    description: str
    python: str | None = None
    oldest_python: str = "3.8"
    newest_python: str | None = None
    requirements: tuple[str, ...] = ()
    from_source: tuple[SourceBuild, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    read_at_import: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    frameworks: tuple[str, ...] = ()
    hook: str | None = None
    buildable: bool = True


_ENTRIES = (
    CatalogueEntry(name="python", description="plain Python, no packages", read_at_import=_PYTHON),
    CatalogueEntry(
        name="tensorflow",
        description="TensorFlow 2, with Keras 3",
        oldest_python="3.11",
        newest_python="3.13",
        requirements=("tensorflow>=2.21,<3", "tensorboard>=2.20,<3", "numpy>=2,<3"),
        variables={"TF_CPP_MIN_LOG_LEVEL": "1"},
        read_at_import=_TENSORFLOW,
        preload=("tensorflow", "keras"),
        frameworks=("tensorflow",),
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
        read_at_import=_TENSORFLOW,
        preload=("tensorflow",),
        frameworks=("tensorflow",),
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
        read_at_import=(*_TENSORFLOW, "HOROVOD_*"),
        preload=("tensorflow", "horovod.tensorflow"),
        frameworks=("horovod", "tensorflow"),
    ),
    CatalogueEntry(
        name="keras",
        description="Keras 3 on JAX; on TensorFlow it is in the environment tensorflow",
        oldest_python="3.11",
        requirements=("keras>=3.12,<4", "jax>=0.9,<1", "numpy>=2,<3"),
        variables={"KERAS_BACKEND": "jax"},
        read_at_import=(*_JAX, *_KERAS),
        preload=("jax.numpy", "keras"),
        frameworks=("jax",),
    ),
    CatalogueEntry(
        name="pytorch",
        description="PyTorch, with CUDA and without: 5 GB, built when first asked for",
        oldest_python="3.11",
        requirements=("torch>=2.15,<3", "torchvision", "numpy>=2,<3"),
        read_at_import=_TORCH,
        preload=("torch", "torch._dynamo"),
        frameworks=("pytorch",),
    ),
    CatalogueEntry(
        name="jax",
        description="JAX with Optax, for CPUs; for GPUs: requirements jax[cuda13] and optax",
        oldest_python="3.11",
        requirements=("jax>=0.9,<1", "optax>=0.2,<1", "numpy>=2,<3"),
        read_at_import=_JAX,
        preload=("jax", "jax.numpy", "optax"),
        frameworks=("jax",),
    ),
    CatalogueEntry(
        name="mxnet",
        description="MXNet 1.9.1, its last release, for CPUs",
        python="3.11",
        oldest_python="3.11",
        requirements=(
            "mxnet==1.9.1",
            "numpy>=1.23.5,<1.24",  # the last with np.bool, which MXNet uses
        ),
        read_at_import=(*_NUMPY, "MXNET_*", "DMLC_*", "PS_*", "OPENCV_*", "ACC_*"),
        preload=("mxnet",),
        frameworks=("mxnet",),
    ),
    CatalogueEntry(
        name="chainer",
        description="Chainer 7.8.1, its last release, for CPUs",
        python="3.11",  # the last with distutils, which the last NumPy that Chainer knows needs
        oldest_python="3.11",
        requirements=(
            "chainer==7.8.1",
            "numpy>=1.23.5,<1.24",  # the last with np.bool
            "protobuf<3.21",
            "setuptools<74",  # the last with distutils.msvccompiler, which numpy.distutils imports
        ),
        from_source=(SourceBuild("chainer"),),
        read_at_import=(*_NUMPY, "CHAINER*", "CUPY_*", "CUDA_*", "SETUPTOOLS_*", "DISTUTILS_*"),
        preload=("chainer",),
    ),
    CatalogueEntry(
        name="sklearn",
        description="scikit-learn and NumPy",
        oldest_python="3.11",
        requirements=("scikit-learn>=1.6,<2", "numpy>=2,<3"),
        read_at_import=_SKLEARN,
        preload=("sklearn", "sklearn.linear_model"),
    ),
    CatalogueEntry(
        name="xgboost",
        description="XGBoost with scikit-learn and NumPy, for CPUs",
        oldest_python="3.11",
        requirements=("xgboost-cpu>=3.1,<4", "scikit-learn>=1.6,<2", "numpy>=2,<3"),
        read_at_import=(*_SKLEARN, "XGBOOST_*"),
        preload=("xgboost", "sklearn"),
    ),
    CatalogueEntry(
        name=HOST,
        description="the Python that you stand in, on a single-user platform: nothing is built",
        buildable=False,
    ),
)

CATALOGUE: Final[Mapping[str, CatalogueEntry]] = {entry.name: entry for entry in _ENTRIES}
