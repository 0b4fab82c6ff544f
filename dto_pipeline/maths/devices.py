"""Whether a batch is worked piece by piece, in a CPU's cache, or at once and without waiting, on a GPU.

The results are the same. A GPU runs behind the program, and every number that the program reads back makes it wait; a
batch may do so only in the places that `tests.waits` lists. A CPU can work as a GPU would (`as_on_gpu`), so that they
are counted on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_AS_ON_GPU: ContextVar[bool] = ContextVar("as_on_gpu", default=False)


def works_at_once(device: torch.device) -> bool:
    """Whether a device works a batch at once, without reading back what could be left out (a GPU)."""
    return device.type != "cpu" or _AS_ON_GPU.get()


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """In this block a CPU works as a GPU would: the same operations in the same order."""
    token = _AS_ON_GPU.set(True)
    try:
        yield
    finally:
        _AS_ON_GPU.reset(token)


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Numbers on a device, copied there once, because a copy makes a GPU wait. Never change the result."""
    with torch.inference_mode(False):  # or nothing that learns could use it
        return torch.tensor(values, dtype=dtype, device=device)
