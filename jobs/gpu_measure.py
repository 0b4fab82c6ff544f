"""Measurements of `jobs/gpu_check.py`: CUDA events on a GPU, the clock on a CPU; waits; results of two devices."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import dto_pipeline.optimizer
from dto_pipeline.lab.bench import Meter
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import OptimizedScenes, SceneBatch
from tests.waits import waits_of

PARTS = (
    *("rasterize", "count_visible_vertices", "measure_depth_evidence"),
    *("fit_groups", "fit_crowds", "refine_people"),
)  # functions that `dto_pipeline.optimizer` calls, in their order
# Relative, of numbers from the same inputs on two devices. A pixel on a body's edge may fall to either side, because a
# GPU multiplies and adds in one rounding; decisions (groups, outcomes) have to be the same.
TOLERANCE = {"evidence": 5e-3, "people": 1e-3}
COUNTS = {"pixels"}  # whole numbers, but not decisions


def count_waits(work: Callable[[], Any], device: torch.device) -> Counter[str]:
    """Lines of this program that wait for the GPU; on a CPU, lines that would wait, see `tests.waits`."""
    if device.type != "cuda":
        return Counter({f"{place}: {what}": count for (place, what), count in waits_of(work).items()})
    work()  # so that what is copied to the device only once is there
    found: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda text, *_, **__: found.update([_caller()] if "synchroniz" in str(text) else [])
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def _caller() -> str:
    """The innermost line of the package on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if "dto_pipeline/" in frame.filename:
            return f"{frame.filename.rpartition('dto_pipeline/')[2]}:{frame.lineno} {frame.name}"
    return "elsewhere"


def time_parts(optimizer: SceneOptimizer, batch: SceneBatch, device: torch.device, repeats: int) -> dict[str, float]:
    """Median milliseconds of each of `PARTS`, of `vertices` and of the whole pass."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        meters: dict[str, Meter] = defaultdict(lambda: Meter(device.type))
        with ExitStack() as stack:
            for name in PARTS:
                timed = meters[name](getattr(dto_pipeline.optimizer, name))
                stack.enter_context(patch.object(dto_pipeline.optimizer, name, timed))
            vertices = meters["vertices"](optimizer.body.vertices)
            stack.enter_context(patch.object(type(optimizer.body), "vertices", lambda _, *a, v=vertices: v(*a)))
            meters["whole"](optimizer)(batch)
        for name, meter in meters.items():
            if seconds := meter.seconds:  # 0: this function was not called
                found[name].append(1000 * seconds)
    return {name: statistics.median(values[1:] or values) for name, values in found.items()}


def least_ms(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The least time of some repeats, after one to warm up."""
    found = []
    for _ in range(repeats + 1):
        meter = Meter(device.type)
        meter(work)()
        found.append(1000 * meter.seconds)
    return min(found[1:])


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def busy_stream(device: torch.device) -> Iterator[None]:
    """Meanwhile another stream of the device multiplies matrices (on a CPU: nothing)."""
    if device.type != "cuda":
        yield
        return
    stream, matrix = torch.cuda.Stream(), torch.randn(4096, 4096, device=device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2000):  # some seconds, queued at once
            matrix = torch.tanh(matrix @ matrix)
    yield
    stream.synchronize()


def compare_devices(optimizer: SceneOptimizer, batch: SceneBatch) -> tuple[float, dict[str, str]]:
    """Compute a batch on its device and on the CPU. Returns the worst relative difference, and what differs."""
    there = optimizer(batch)
    optimizer.body.to("cpu")
    here = optimizer(batch.to("cpu"))
    worst, differing = 0.0, {}
    for part in ("evidence", "people"):
        for name, mine, other in _pairs(getattr(here, part), getattr(there, part).to("cpu")):
            if not mine.is_floating_point() and name not in COUNTS:
                if changed := int((mine != other).sum()):
                    differing[f"{part}.{name}"] = f"{changed} of {mine.numel()}"
                continue
            both = mine.isfinite() & other.isfinite()
            off = ((mine - other).abs() / mine.abs().clamp(min=1e-3))[both]
            largest, limit = float(off.amax()) if off.numel() else 0.0, TOLERANCE[part]
            worst = max(worst, largest)
            if largest > limit or bool((mine.isfinite() != other.isfinite()).any()):
                differing[f"{part}.{name}"] = f"{largest:.1e}, expected {limit:.0e} at most"
    return worst, differing


def _pairs(mine: Any, other: Any) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for one in dataclasses.fields(mine):
        a, b = getattr(mine, one.name), getattr(other, one.name)
        if isinstance(a, torch.Tensor):
            yield one.name, a, b
        elif dataclasses.is_dataclass(a):
            yield from _pairs(a, b)


def digest_of(result: OptimizedScenes) -> str:
    """Hash of every bit of a result."""
    whole = hashlib.sha256()
    for part in ("maps", "evidence", "prior", "people"):
        for _, values, _ in _pairs(getattr(result, part), getattr(result, part)):
            whole.update(values.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()
