"""Networks on a CPU see one image at a time, each on one thread.

Convolutions and matrix products of another batch, or cut up for another number of threads, end in other last bits; of
one image on one thread they are always the same. More threads then see more images at once. On a GPU batches are what
makes a network fast: there the company of an image counts (see docs/promise.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def seen_at_once(device: torch.device, batch: int) -> int:
    """How many images (or people) a network sees together where a config says `batch`."""
    return 1 if device.type == "cpu" else batch


def map_alone(device: torch.device, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`work` of every item, in order; on a CPU each on one thread, as many at once as torch has threads here."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # the last word of any thread is what new ones begin with
