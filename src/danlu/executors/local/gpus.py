"""GPUs of this machine: found by the driver's library, or declared where there are none."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any

from danlu.domain.nodes import Gpu
from danlu.domain.resources import MAX_GPUS
from danlu.errors import ExecutorUnavailable, InvalidSpec

LOG = logging.getLogger("danlu.executors")


def declared(text: str) -> tuple[Gpu, ...]:
    """Returns GPUs from ``8``, ``2:h100`` or ``2:h100,1:a100``.

    Raises:
        InvalidSpec: it is none of these.
    """
    gpus: list[Gpu] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?::([a-z0-9][-a-z0-9_.]{0,62}))?\s*", part)
        if match is None or len(gpus) + int(match.group(1)) > MAX_GPUS:
            raise InvalidSpec(
                f"{text!r} does not declare GPUs", next_step="write for example --gpus 8 or --gpus 2:h100,1:a100"
            )
        kind = match.group(2) or "gpu"
        gpus += [Gpu(index=len(gpus) + n, kind=kind, declared=True) for n in range(int(match.group(1)))]
    return tuple(gpus)


def kind_of(product: str) -> str:
    """Returns the short kind of a product's name: ``NVIDIA H100 80GB HBM3`` gives ``h100``."""
    words = re.findall(r"[a-z0-9]+", product.lower())
    known = [w for w in words if re.fullmatch(r"[a-z]{1,4}\d{2,4}[a-z]{0,2}", w)]
    return known[0] if known else "-".join(w for w in words if w not in ("nvidia", "geforce", "tesla"))[:63] or "gpu"


def found() -> tuple[Gpu, ...]:
    """Returns the GPUs that the NVIDIA driver shows; none where there is no driver."""
    import pynvml  # loaded on first use: most commands never ask

    return found_by(pynvml)


def found_by(nvml: Any) -> tuple[Gpu, ...]:
    """Returns the GPUs that the library ``nvml`` shows. One that is lost or cannot be asked is left out, and logged.

    Raises:
        ExecutorUnavailable: the driver is there but cannot count its GPUs.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        count = nvml.nvmlDeviceGetCount()
        return tuple(gpu for gpu in (_found(nvml, index) for index in range(count)) if gpu is not None)
    except nvml.NVMLError as error:
        raise ExecutorUnavailable(
            f"the NVIDIA driver does not tell its GPUs: {error}",
            next_step="look at `nvidia-smi`; to go on without them, start with --gpus 0",
        ) from error
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _found(nvml: Any, index: int) -> Gpu | None:
    try:
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(
            index=index,
            kind=kind_of(_text(nvml.nvmlDeviceGetName(device))),
            uuid=_text(nvml.nvmlDeviceGetUUID(device)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(device).total),
        )
    except nvml.NVMLError as error:
        LOG.warning("GPU %d is left out: the NVIDIA driver cannot ask it (%s)", index, error)
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
