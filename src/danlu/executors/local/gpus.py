"""GPUs of this machine: found by the driver's library, or declared where there are none."""

from __future__ import annotations

import re

from danlu.domain.nodes import Gpu
from danlu.domain.resources import MAX_GPUS
from danlu.errors import InvalidSpec


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

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(
                Gpu(
                    index=index,
                    kind=kind_of(_text(pynvml.nvmlDeviceGetName(device))),
                    uuid=_text(pynvml.nvmlDeviceGetUUID(device)),
                    memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(device).total),
                )
            )
        return tuple(gpus)
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
