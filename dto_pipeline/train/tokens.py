"""Which tokens an image gets: cells of 28 px, finer where people are small, coarser where nobody is.

Cells are kept in Z-order, so that a group of 2 x 2 is four rows that follow each other: (0, 0), (0, +1 x), (+1 y, 0),
(+1, +1). Everything holds for the cells of all images of a batch at once. Pure tensors; knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from dto_pipeline.train.architecture import CELL

CONFIDENT = 0.3  # cells from this confidence on show a person
SMALL = 0.5  # cells of smaller scale are looked at more closely
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # y, x of the four patches of a cell


@dataclass(frozen=True)
class Cells:
    """T cells of 28 px of B images, image after image, each in Z-order."""

    image: torch.Tensor  # (T,) int64
    y: torch.Tensor  # (T,) int64 row
    x: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Cells of each image."""
        return torch.bincount(self.image).tolist()


@dataclass(frozen=True)
class Choice:
    """What becomes of the cells."""

    small: torch.Tensor  # (T,) bool, replaced by four finer tokens
    kept: torch.Tensor  # (T,) bool, stay
    background: torch.Tensor  # (T,) bool, four of a group become one


def list_cells(sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Cells:
    """Cells of images of (height, width) px, both multiples of 56."""
    grids = [z_order(height // CELL, width // CELL) for height, width in sizes]
    image = torch.cat([torch.full((len(y),), number) for number, (y, _) in enumerate(grids)])
    y, x = (torch.cat([grid[axis] for grid in grids]) for axis in (0, 1))
    return Cells(image.to(device), y.to(device), x.to(device))


@lru_cache(maxsize=256)
def z_order(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns (n,) of a grid's cells in Z-order: bits of x at even places of the key, of y at odd ones."""
    y, x = (part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    key = sum(((x >> bit & 1) << 2 * bit) + ((y >> bit & 1) << 2 * bit + 1) for bit in range(16))
    order = torch.argsort(torch.as_tensor(key))
    return y[order], x[order]


def choose_tokens(scale_map: torch.Tensor, cells: Cells, by_image: bool, limits: tuple[float, float]) -> Choice:
    """Refine, keep or merge.

    Args:
        scale_map: (T, 2) confidence and scale.
        cells: of the batch.
        by_image: an image never depends on its neighbours. False: as published, where no image of the batch has any
            background, small cells stay beside the finer ones that replace them.
        limits: of confidence and scale, see `CONFIDENT` and `SMALL`.
    """
    confident = scale_map[:, 0] > limits[0]
    small = confident & (scale_map[:, 1] < limits[1])
    valid = confident.view(-1, 4).any(-1).repeat_interleave(4)
    kept = valid & ~small
    if not by_image and bool(valid.all()):
        kept = torch.ones_like(kept)
    return Choice(small, kept, ~valid)
