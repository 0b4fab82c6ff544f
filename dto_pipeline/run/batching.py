"""Which scenes of a shard are optimised together: images of like shape, at most so many at once.

Knows sizes only, never an image. Padding costs time and memory, nothing else, so like goes with like; the plan is a
pure function of the shard's rows and of the batch size, so a shard that is done again is cut the same way. Pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dto_pipeline.config import BY_DEVICE, PipelineConfig, RunConfig

_LEAST_THREADS_GPU = 4  # that decode, however few cores there are
MAX_PADDING = 1.5  # padded pixels of a batch per pixel of its images: beyond it a new batch is cheaper
MAX_BATCH_PIXELS = 1 << 26  # padded pixels of a batch: bounds the disparity tensor to 256 MB
# people times pixels of their maps, padded: bounds masks to 256 MB, and all else of 1,365 people to 1.4 GB
MAX_BATCH_MASKS = 1 << 28
MAX_WINDOW_PIXELS = 1 << 27  # of images loaded together, with their disparity 0.9 GB: those of 100 Mpx come one by one


@dataclass(frozen=True)
class SceneSize:
    """What the planner needs to know of one image."""

    height: int  # [px], 0 = unknown
    width: int  # [px], 0 = unknown
    people: int


def size_on(config: PipelineConfig, option: str, on_gpu: bool) -> int:
    """The value of an option of `config.BY_DEVICE` on a device; of decoding threads no more than half the cores."""
    told, by_device = _told(config, option), BY_DEVICE[option][on_gpu]
    if told or option != "run.decode_threads" or not on_gpu:
        return told or by_device
    return max(_LEAST_THREADS_GPU, min(by_device, (os.cpu_count() or 1) // 2))


def gpus_per_worker(config: RunConfig, there: int) -> float:
    """What an actor asks of Ray: as told; else one of the GPUs `there`, or a part of one where workers are more."""
    if config.gpus_per_worker >= 0:
        return config.gpus_per_worker
    if config.device == "cpu" or there == 0:
        return float(config.device.startswith("cuda"))
    return 1 / -(-config.workers // there)


def describe_sizes(config: PipelineConfig) -> str:
    """What the options of `config.BY_DEVICE` are for a run, in words."""
    words = {"run.batch_images": "images a batch", "run.decode_threads": "decoding threads"}
    parts = []
    for option, what in words.items():
        told, (on_cpu, on_gpu) = _told(config, option), BY_DEVICE[option]
        parts.append(f"{told} {what}" if told else f"{on_cpu} {what} ({on_gpu} on a GPU)")
    if config.depth.source == "model":  # on a CPU a network sees one image at a time
        parts.append(f"on a GPU {config.depth.batch or BY_DEVICE['depth.batch'][1]} images a network batch")
    return ", ".join(parts)


def _told(config: PipelineConfig, option: str) -> int:
    section, name = option.split(".")
    return int(getattr(getattr(config, section), name))


def plan_batches(sizes: Sequence[SceneSize], batch_images: int, map_side: int = 512) -> list[list[int]]:
    """Cut a shard into batches.

    Args:
        sizes: one per image, in manifest order.
        batch_images: most images of a batch.
        map_side: longest side of a person map [px], see `EvidenceConfig.render_max_side`.

    Returns:
        Lists of positions in `sizes`; every position occurs exactly once. Neighbours in a batch have like shapes, and
        like numbers of people where the shape is the same.

    Raises:
        ValueError: `batch_images` below 1.
    """
    if batch_images < 1:
        raise ValueError(f"batch_images is {batch_images}, expected at least 1")
    order = sorted(range(len(sizes)), key=lambda i: (_sort_key(sizes[i]), i))
    return list(_cut(sizes, order, batch_images, map_side))


def cut_windows(sizes: Sequence[SceneSize], order: Sequence[int], images: int) -> list[list[int]]:
    """Cut positions in `sizes`, in their order, into windows that are loaded together.

    A window holds at most `images` and, unless it is a single image, `MAX_WINDOW_PIXELS`.
    """
    windows: list[list[int]] = []
    pixels = 0
    for position in order:
        own = sizes[position].height * sizes[position].width
        if not windows or len(windows[-1]) == images or pixels + own > MAX_WINDOW_PIXELS:
            windows.append([])
            pixels = 0
        windows[-1].append(position)
        pixels += own
    return windows


def _sort_key(size: SceneSize) -> tuple[int, int, int]:
    return size.height, size.width, size.people


def _cut(sizes: Sequence[SceneSize], order: Sequence[int], batch_images: int, map_side: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for position in order:
        together = [sizes[i] for i in [*batch, position]]
        if batch and (len(batch) == batch_images or _too_padded(together) or _too_crowded(together, map_side)):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _too_padded(sizes: Sequence[SceneSize]) -> bool:
    if any(size.height * size.width == 0 for size in sizes):
        return True  # whatever it turns out to be, the others' memory was planned without it
    padded = len(sizes) * max(size.height for size in sizes) * max(size.width for size in sizes)
    own = sum(size.height * size.width for size in sizes)
    return padded > MAX_BATCH_PIXELS or padded > MAX_PADDING * own


def _too_crowded(sizes: Sequence[SceneSize], map_side: int) -> bool:
    side = max(max(size.height, size.width) for size in sizes)
    shrunk = min(1.0, map_side / side) ** 2
    largest = max(size.height for size in sizes) * max(size.width for size in sizes) * shrunk
    return len(sizes) * max(size.people for size in sizes) * largest > MAX_BATCH_MASKS
