"""GPUs: declared in words, named by their product."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from danlu.domain.resources import MAX_GPUS
from danlu.errors import ExecutorUnavailable, InvalidSpec
from danlu.executors.local.gpus import declared, found_by, kind_of


@pytest.mark.parametrize(("text", "kinds"), [
    ("0", []),
    ("1", ["gpu"]),
    ("8", ["gpu"] * 8),
    ("2:h100", ["h100", "h100"]),
    ("2:h100,1:a100", ["h100", "h100", "a100"]),
    (" 1:rtx-4090 , 1:a100-80gb.x ", ["rtx-4090", "a100-80gb.x"]),
    ("0:h100,1", ["gpu"]),
    (str(MAX_GPUS), ["gpu"] * MAX_GPUS),
])  # fmt: skip
def test_gpus_are_declared(text: str, kinds: list[str]) -> None:
    gpus = declared(text)
    assert [gpu.kind for gpu in gpus] == kinds
    assert [gpu.index for gpu in gpus] == list(range(len(kinds)))
    assert all(gpu.declared for gpu in gpus)


@pytest.mark.parametrize("text", [
    "", ",", "x", "-1", "1.5", "h100", "2:", ":h100", "2:H100", "2 h100", "1,,2", "2:h100:3", str(MAX_GPUS + 1), "99999,1",
    "9" * 100, "1:" + "x" * 64, "²", "1:-a", "1\n2",
])  # fmt: skip
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidSpec, match="does not declare GPUs") as caught:
        declared(text)
    assert "--gpus 8" in caught.value.next_step


@pytest.mark.parametrize(("product", "kind"), [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA H200 NVL", "h200"),
    ("NVIDIA A100-SXM4-40GB", "a100"),
    ("NVIDIA A100 80GB PCIe", "a100"),
    ("NVIDIA B200", "b200"),
    ("NVIDIA GB200", "gb200"),
    ("Tesla V100-SXM2-16GB", "v100"),
    ("Tesla T4", "t4"),
    ("Tesla P100-PCIE-16GB", "p100"),
    ("Tesla K80", "k80"),
    ("NVIDIA L4", "l4"),
    ("NVIDIA L40S", "l40s"),
    ("NVIDIA A10G", "a10g"),
    ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ("NVIDIA GeForce RTX 3060 Ti", "rtx-3060-ti"),
    ("NVIDIA GeForce GTX 1080 Ti", "gtx-1080-ti"),
    ("NVIDIA RTX A6000", "a6000"),
    ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-generation"),
    ("Quadro RTX 8000", "quadro-rtx-8000"),
    ("NVIDIA TITAN V", "titan-v"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100"),
    ("", "gpu"),
    ("NVIDIA", "gpu"),
    ("???", "gpu"),
])  # fmt: skip
def test_the_kind_is_the_short_name_of_the_product(product: str, kind: str) -> None:
    assert kind_of(product) == kind
    assert declared(f"1:{kind}")[0].kind == kind


class NvmlError(Exception):
    """As pynvml.NVMLError."""


class Nvml:
    """A driver whose GPUs in ``lost`` have fallen off the bus."""

    NVMLError = NvmlError

    def __init__(self, lost: set[int], *, counts: bool = True) -> None:
        self.lost, self.counts, self.open = lost, counts, 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library's own names
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if not self.counts:
            raise NvmlError("Unknown Error")
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, device: int) -> bytes:  # noqa: N802
        return b"NVIDIA H200"

    def nvmlDeviceGetUUID(self, device: int) -> str:  # noqa: N802
        return f"GPU-{device}"

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=2**30)


def test_a_lost_gpu_is_left_out_and_the_others_keep_their_numbers(caplog: pytest.LogCaptureFixture) -> None:
    nvml = Nvml({1})
    assert [(gpu.index, gpu.kind, gpu.uuid) for gpu in found_by(nvml)] == [(0, "h200", "GPU-0"), (2, "h200", "GPU-2")]
    assert "GPU 1 is left out" in caplog.text
    assert "GPU is lost" in caplog.text
    assert nvml.open == 0


def test_a_driver_that_cannot_count_is_no_machine_without_gpus() -> None:
    nvml = Nvml(set(), counts=False)
    with pytest.raises(ExecutorUnavailable, match="Unknown Error"):
        found_by(nvml)
    assert nvml.open == 0
