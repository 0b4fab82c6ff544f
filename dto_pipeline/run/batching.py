"""Which scenes of a shard are optimised together: images of like shape, at most so many at once.

Knows sizes only, never an image. Padding costs time and memory, nothing else, so like goes with like; the plan is a
pure function of the shard's rows and of the batch size, so a shard that is done again is cut the same way. Pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PADDING = 1.5  # padded pixels of a batch per pixel of its images: beyond it a new batch is cheaper
MAX_BATCH_PIXELS = 1 << 26  # padded pixels of a batch: bounds the disparity tensor to 256 MB
MAX_WINDOW_PIXELS = 1 << 27  # of images loaded together, with their disparity 0.9 GB: those of 100 Mpx come one by one


@dataclass(frozen=True)
class SceneSize:
    """What the planner needs to know of one image."""

    height: int  # [px], 0 = unknown
    width: int  # [px], 0 = unknown
    people: int


def plan_batches(sizes: Sequence[SceneSize], batch_images: int) -> list[list[int]]:
    """Cut a shard into batches.

    Args:
        sizes: one per image, in manifest order.
        batch_images: most images of a batch.

    Returns:
        Lists of positions in `sizes`; every position occurs exactly once. Neighbours in a batch have like shapes, and
        like numbers of people where the shape is the same.

    Raises:
        ValueError: `batch_images` below 1.
    """
    if batch_images < 1:
        raise ValueError(f"batch_images is {batch_images}, expected at least 1")
    return list(_cut(sizes, sorted(range(len(sizes)), key=lambda i: (_sort_key(sizes[i]), i)), batch_images))


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


def _cut(sizes: Sequence[SceneSize], order: Sequence[int], batch_images: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) == batch_images or _too_padded([sizes[i] for i in [*batch, position]])):
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
