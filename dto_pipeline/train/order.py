"""In which order an epoch shows the images, and which rank gets which: the same for any number of reading processes.

An order is drawn from (seed, epoch) alone: row groups of label files are shuffled, consecutive ones are joined to
windows of about `shuffle_images` images, and the images of a window are shuffled. So neighbours come from all subsets
while a reader holds the labels of one window only. The order of a whole epoch costs 8 bytes an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from dto_pipeline.data.label_pieces import Piece

_ORDER, _DRAWS = 0, 1  # streams of chance: never the same numbers for both


class Turn(NamedTuple):
    """One image of an epoch."""

    epoch: int
    position: int  # in the epoch's order: decides the augmentation
    image: int  # of the index, pieces end to end


@dataclass(frozen=True)
class PieceSizes:
    """How many images each piece has, and which share of an epoch's visits."""

    counts: np.ndarray  # (k,) int64
    weights: np.ndarray  # (k,) float64 times an epoch each image of the piece is seen

    @property
    def starts(self) -> np.ndarray:
        """(k + 1,) int64: number of each piece's first image."""
        return np.concatenate([[0], np.cumsum(self.counts)])


def measure_pieces(pieces: Sequence[Piece], weights: Sequence[float]) -> PieceSizes:
    """Sizes of the pieces; `weights`: one per label set, () = 1 each."""
    sets = np.array([piece.label_set for piece in pieces], np.int64)
    each = np.asarray(weights, np.float64)[sets] if len(weights) else np.ones(len(pieces))
    return PieceSizes(np.array([piece.rows.size for piece in pieces], np.int64), each)


def epoch_order(sizes: PieceSizes, seed: int, epoch: int, window: int) -> np.ndarray:
    """The images of an epoch in order.

    With weights of 1 every image is there once; with w, floor(w) times, and once more with probability w - floor(w).

    Args:
        sizes: of the pieces.
        seed, epoch: decide everything.
        window: images that are shuffled among each other.

    Returns:
        (n,) int64 image numbers.
    """
    random = np.random.default_rng([_ORDER, seed, epoch])
    starts = sizes.starts
    windows: list[np.ndarray] = []
    gathered: list[np.ndarray] = []
    images = 0
    for piece in random.permutation(len(sizes.counts)):
        numbers = np.arange(starts[piece], starts[piece + 1])
        whole, rest = divmod(float(sizes.weights[piece]), 1.0)
        visits = int(whole) + (random.random(numbers.size) < rest)
        gathered.append(np.repeat(numbers, visits))
        images += numbers.size
        if images >= window:
            windows.append(random.permutation(np.concatenate(gathered)))
            gathered, images = [], 0
    if gathered:
        windows.append(random.permutation(np.concatenate(gathered)))
    return np.concatenate(windows) if windows else np.zeros(0, np.int64)


def draw_random(seed: int, turn: Turn) -> np.random.Generator:
    """The chance that varies one image of one epoch."""
    return np.random.default_rng([_DRAWS, seed, turn.epoch, turn.position])


class EpochBatches(Sampler[list[Turn]]):
    """One rank's batches of an epoch, from any step on: step s takes the s-th `batch * world` images of the order.

    Every rank has the same number of steps. In the last one the images that are left are dealt out, so that a rank may
    get fewer than `batch`, or none.
    """

    def __init__(self, sizes: PieceSizes, seed: int, window: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self._sizes, self._seed, self._window = sizes, seed, window
        self._batch, self._rank, self._world = batch, rank, world
        self.start(0)

    def start(self, epoch: int, step: int = 0) -> None:
        """What the next iteration gives: the batches of `epoch` from `step` on."""
        self._epoch, self._step = epoch, step
        self._order = epoch_order(self._sizes, self._seed, epoch, self._window)

    def __len__(self) -> int:
        """Steps of the whole epoch."""
        return math.ceil(len(self._order) / (self._batch * self._world))

    def __iter__(self) -> Iterator[list[Turn]]:
        together = self._batch * self._world
        for step in range(self._step, len(self)):
            positions = range(step * together, min((step + 1) * together, len(self._order)))[self._rank :: self._world]
            yield [Turn(self._epoch, position, int(self._order[position])) for position in positions]
