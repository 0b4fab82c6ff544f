"""Where a batch makes a GPU wait for the program, counted on any machine.

A GPU does its work behind the program. Whoever asks it for a number, for how many entries a list has, or hands it
numbers from the program's own memory makes both wait for each other. On a CPU the same calls cost nothing and are seen
all the same: `count_waits` looks at every operation, with the work done in a GPU's order (`maths.ordered`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dto_pipeline
from dto_pipeline.maths import ordered

# Where a batch may wait, how often, and why. A place is a file and a function; anything else is a fault. Once more it
# waits for its results, which `collate.split_batch` copies together.
PLACES: dict[str, tuple[int, str]] = {
    "models/rasterizer.py:rasterize": (2, "who is drawn: padding is not set up"),
    "models/rasterizer.py:_set_up": (2, "how many triangles face the camera and hold a pixel: half of them or less"),
    "models/rasterizer.py:_chunks": (2, "where lists of candidate pixels are cut: bounds memory"),
    "maths/depth_evidence.py:list_pixels": (2, "how many pixels show anybody: a twentieth to a half of the image"),
    "maths/refine.py:refine_people": (1, "who moved, or changes along the kid axis: only they are posed again"),
    "optimizer.py:_measure_again": (2, "joint: which images are drawn again, and which of them change"),
}
_ASKS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "lift_fresh"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
_MASKS = (torch.bool, torch.uint8)
_PACKAGE = Path(dto_pipeline.__file__).parent
# of torch: counters on the host, moves from a device to the same one
_HOST_WORK = tuple(Path(torch.__file__).parent / part for part in ("optim", "nn/utils"))


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """In this block a CPU works as a GPU would: the same operations in the same order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "_AS_ON_GPU", True)
        yield


@contextmanager
def count_waits() -> Iterator[Counter[tuple[str, str]]]:
    """Count in this block: (place, operation) -> how often; the work is done as on a GPU."""
    found: Counter[tuple[str, str]] = Counter()
    with as_on_gpu(), _Operations(found), _Calls(found):
        yield found
    for where in [where for where in found if not where[0]]:
        del found[where]


def waits_of(work: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """What `work` asks for when it is done again: what is carried to a device once is there by then."""
    with as_on_gpu():
        work()
    with count_waits() as found:
        work()
    return found


def unexpected_waits(found: Counter[tuple[str, str]]) -> dict[str, int]:
    """Places that wait without being listed in `PLACES`, or more often than it says: how often each does."""
    by_place: Counter[str] = Counter()
    for (place, _), times in found.items():
        by_place[place] += times
    return {place: times for place, times in by_place.items() if times > PLACES.get(place, (0, ""))[0]}


class _Operations(TorchDispatchMode):
    """Operations whose result's size, or whose result, the program needs to know."""

    def __init__(self, found: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        kwargs = kwargs or {}
        if _asks(name, args, kwargs):
            self._found[_place(), name] += 1
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """Copies between the device and the program's memory, which on a CPU are no operation at all."""

    def __init__(self, found: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        moves = (
            name == "to" and not kwargs.get("non_blocking") and any(_is_device(v) for v in (*args, *kwargs.values()))
        )
        if moves or name in ("cpu", "tolist"):
            self._found[_place(), name] += 1
        return func(*args, **kwargs)


def _asks(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype in _MASKS for index in args[1])
    return name in _ASKS


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"))


def _place() -> str:
    """File and function of this package that is at work; empty within torch's `_HOST_WORK`."""
    frame = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            return f"{file.relative_to(_PACKAGE).as_posix()}:{frame.f_code.co_name}"
        if any(file.is_relative_to(folder) for folder in _HOST_WORK):
            return ""
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
