"""Input of networks: sizes, resizing and position tables as Depth Anything's code has them, and batches.

The published inference code is `Resize(518, 518, lower_bound, multiple of 14, INTER_CUBIC)`, then ImageNet's mean and
deviation; the output is resized to the image by bilinear interpolation, with aligned corners in V2, without in V1. The
image processor of transformers resizes otherwise (640 x 427 becomes 518 x 350 there, 770 x 518 here) and is not used.
torch's bicubic interpolation without antialiasing is OpenCV's INTER_CUBIC (a = -0.75, pixel centres at +0.5, borders
repeated, no clipping); tests compare it with numpy: equal within 1e-5 of full scale.

On a CPU a network computes one image at a time, on one thread, because the last bits of convolutions and matrix
products depend on the batch and on the number of threads. On a GPU batches are needed for speed, and the last bits of a
map depend on the other images of its batch (docs/promise.md). Pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.maths.ordered import constant

PATCH = 14  # sides are multiples of it [px]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OFFSET = 0.1  # patches that the published code adds to a grid, so that rounding never loses one
CROP_SIDE = 224  # of crops of people [px]
_Result = TypeVar("_Result")


class Instances(NamedTuple):
    """People found in one image, at person-map size."""

    masks: np.ndarray  # (Q, h, w) bool
    score: np.ndarray  # (Q,) float32 in 0 .. 1: probability of the class, times the mean probability over the mask


def network_size(height: int, width: int, short_side: int, multiple: int = PATCH) -> tuple[int, int]:
    """Size (h, w) [px] of the network's input for an H x W image.

    The shorter side becomes `short_side`, the longer keeps the shape of the image; both are rounded to the nearest
    multiple (ties to the even one) and up where that falls below `short_side`.
    """
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

    Returns: (B, 3, h, w) float32, normalised by ImageNet's mean and deviation.
    """
    pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
    if tuple(pixels.shape[2:]) != tuple(size):
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
    mean, std = (constant(c, images.device, torch.float32).view(1, 3, 1, 1) for c in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def resize_to_image(output: torch.Tensor, height: int, width: int, corners: bool = True) -> torch.Tensor:
    """The network's maps (B, h, w) at image size (B, height, width), float32: bilinear; `corners`: aligned or not."""
    maps = output.to(torch.float32)[:, None]
    return functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=corners)[:, 0]


def stretch_positions(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """DINOv2's table of positions (n * n, C), of a square of patches, for a grid -> (rows, columns, C) float32.

    As published: by scale factors of (rows + 0.1) / n, so row i reads the table at (i + 0.5) n / (rows + 0.1) - 0.5
    (cubic, a = -0.75, borders repeated, no antialiasing). transformers interpolates to the size itself, which changes a
    person's relative depth by 0.01-0.08 % on a small trained network.
    """
    side = round(len(table) ** 0.5)
    square = table.unflatten(0, (side, side)).permute(2, 0, 1)[None].float()
    scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
    with torch.autocast(table.device.type, enabled=False):
        return functional.interpolate(square, scale_factor=scale, mode="bicubic")[0].permute(1, 2, 0)


def run_in_batches(
    device: torch.device,
    sizes: Sequence[Hashable],
    batch: int,
    work: Callable[[list[int]], Iterable[_Result]],
) -> list[_Result]:
    """Results of items in order; `work` gets the positions of at most `batch` items of one size.

    On a CPU each batch is computed on one thread, and as many batches at once as torch has threads here.
    """
    same: dict[Hashable, list[int]] = {}
    for position, size in enumerate(sizes):
        same.setdefault(size, []).append(position)
    plan = [found[start : start + batch] for found in same.values() for start in range(0, len(found), batch)]
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        parts = [work(positions) for positions in plan]
    else:
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                parts = list(pool.map(work, plan))
        finally:
            torch.set_num_threads(threads)  # new threads begin with the last number that any thread set
    results = {
        p: one for positions, part in zip(plan, parts, strict=True) for p, one in zip(positions, part, strict=True)
    }
    return [results[position] for position in range(len(sizes))]


def images_at_once(device: torch.device, batch: int) -> int:
    """How many images (or people) a network computes together where a config says `batch`."""
    return 1 if device.type == "cpu" else batch
