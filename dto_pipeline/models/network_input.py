"""How images reach networks: sizes and resizing as Depth Anything publishes them, and which are seen together.

The recipe is that of the published inference code (`Resize(518, 518, lower_bound, multiple of 14, INTER_CUBIC)`, then
ImageNet's mean and deviation; the output by bilinear interpolation, corner on corner in V2, not so in V1). The image
processor of transformers resizes otherwise (640 x 427 becomes 518 x 350 there, 770 x 518 here), so it is not used.

`torch`'s bicubic interpolation without antialiasing is OpenCV's INTER_CUBIC: kernel constant a = -0.75, pixel centres
at +0.5, borders repeated, no rounding, no clipping. Tests compare it with a numpy implementation of that definition:
equal within 1e-5 of full scale, the rounding of float32.

On a CPU networks see one image at a time, each on one thread: convolutions and matrix products of another batch, or cut
up for another number of threads, end in other last bits. More threads then see more images at once. On a GPU batches
are what makes a network fast: there the other images of a batch count (see docs/promise.md). Pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.nn import functional

from dto_pipeline.maths.devices import constant

PATCH = 14  # sides are multiples of it [px]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def network_size(height: int, width: int, short_side: int, multiple: int = PATCH) -> tuple[int, int]:
    """Size (h, w) [px] an H x W image is given to the network at.

    The shorter side becomes `short_side`, the longer keeps the shape of the image; both are rounded to the nearest
    multiple (ties to the even one) and up where that falls below `short_side`.
    """
    if min(height, width) < 1 or short_side < multiple:
        raise ValueError(
            f"image {width} x {height} at short side {short_side}: sizes must be positive and the short side at least "
            f"{multiple}; set depth.short_side"
        )
    scale = max(short_side / height, short_side / width)

    def to_multiple(side: float) -> int:
        rounded = round(side / multiple) * multiple
        return rounded if rounded >= short_side else -int(-side // multiple) * multiple

    return to_multiple(scale * height), to_multiple(scale * width)


def resize_to_network(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images as the network expects them.

    Args:
        images: (B, H, W, 3) uint8 RGB, on the device to work on.
        size: (h, w) of `network_size` [px].

    Returns:
        (B, 3, h, w) float32, normalised by ImageNet's mean and deviation.
    """
    pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    if tuple(pixels.shape[2:]) != tuple(size):
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
    mean, std = (constant(c, images.device, torch.float32).view(1, 3, 1, 1) for c in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def resize_to_image(output: torch.Tensor, height: int, width: int, corners: bool = True) -> torch.Tensor:
    """The network's maps (B, h, w) at image size (B, height, width), float32: bilinear, corner on corner or not."""
    maps = output.to(torch.float32)[:, None]
    return functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=corners)[:, 0]


def plan_windows(sizes: Sequence[tuple[int, int]], batch: int) -> list[list[int]]:
    """Batches of positions: equal sizes together, at most `batch` each, every position once, first come first."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for position, size in enumerate(sizes):
        buckets.setdefault(size, []).append(position)
    return [found[start : start + batch] for found in buckets.values() for start in range(0, len(found), batch)]


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
