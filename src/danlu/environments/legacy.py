"""The thirteen frameworks that a platform of 2018 offered, and how each of them runs today. Only data.

docs/explanation/frameworks-of-2018.md tells the same at length; a test holds them together.
"""

from __future__ import annotations

from typing import Final

from danlu.domain.views import FrameworkOf2018, Ran

F = FrameworkOf2018
FRAMEWORKS_OF_2018: Final = (
    F(
        name="CNTK",
        runs=Ran.IMAGE,
        by="Ubuntu 16.04: Python 3.5 and OpenMPI 1.10",
        how="pip install cntk==2.7, its last release (2019), whose wheels need that OpenMPI; models go on as ONNX",
    ),
    F(
        name="TensorFlow",
        runs=Ran.ENVIRONMENT,
        by="tensorflow-1",
        how="programs of 2018 as they are; new ones: tensorflow",
    ),
    F(
        name="Horovod",
        runs=Ran.ENVIRONMENT,
        by="horovod",
        how="0.28 with TensorFlow 2.15 and Gloo, built from its sources: it was never released as a wheel",
    ),
    F(
        name="Keras",
        runs=Ran.ENVIRONMENT,
        by="keras",
        how="Keras 3 on JAX; programs for tf.keras of 2018: tensorflow-1",
    ),
    F(
        name="Caffe",
        runs=Ran.IMAGE,
        by="Ubuntu 20.04: the package caffe-cpu, Python 3.8",
        how="apt install caffe-cpu python3-caffe-cpu; there is no wheel (the package caffe of the index is an empty one)",
    ),
    F(
        name="Caffe2",
        runs=Ran.SUCCESSOR,
        by="PyTorch 1.8.1",
        how="it was merged into it: requirements torch==1.8.1, numpy<1.24, protobuf<3.21, future, six on Python 3.8",
    ),
    F(
        name="Chainer",
        runs=Ran.ENVIRONMENT,
        by="chainer",
        how="7.8.1, its last release, on CPUs; its authors went on to PyTorch",
    ),
    F(
        name="Deep Water",
        runs=Ran.SUCCESSOR,
        by="H2O",
        how="given up by H2O.ai; the package h2o (needs Java) has its own deep learning, and xgboost the boosted trees",
    ),
    F(name="MXNet", runs=Ran.ENVIRONMENT, by="mxnet", how="1.9.1, its last release (2022), on CPUs"),
    F(
        name="DIGITS",
        runs=Ran.IMAGE,
        by="nvidia/digits",
        how="a web page that drives Caffe and Torch, archived; what it did, Danlu's jobs and metrics do",
    ),
    F(
        name="Theano",
        runs=Ran.IMAGE,
        by="python:3.7 with a C compiler",
        how="pip install theano==1.0.5 'numpy<1.20': no wheels, and it compiles as it runs; successor: requirements pytensor",
    ),
    F(
        name="Torch",
        runs=Ran.SUCCESSOR,
        by="PyTorch",
        how="Lua's Torch 7 ended in 2017; PyTorch has its tensors: pytorch",
    ),
    F(
        name="PyTorch",
        runs=Ran.ENVIRONMENT,
        by="pytorch",
        how="PyTorch 2, with CUDA and without; code of 0.4 and 1 mostly runs",
    ),
)
