"""Knobs of the training data: which labels, how images are turned into S x S inputs, how they are shuffled and read.

(DTO) marks values of the DTO-Humans stage of arXiv 2511.13282, (ours) our own choice. Code receives a config; it never
reads one from the air.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from dto_pipeline.config import ConfigError

SELECTIONS = ("accepted", "optimized", "all")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class AugmentConfig:
    """How an image and its labels are varied; drawn anew for every image and epoch."""

    max_angle: float = 15.0  # about the camera's axis, uniform on both sides [degree] (DTO)
    min_scale: float = 0.8  # of the picture, relative to one that just fits the input (DTO)
    max_scale: float = 1.8  # (DTO)
    flip: float = 0.5  # probability of a mirror image (DTO)
    crop: float = 0.8  # probability that the window is placed at random, not on the picture's centre (DTO)
    crop_margin: float = 0.1  # a random window keeps the pelvis of one person this far inside [share of S] (ours)
    brightness: float = 0.2  # factors are drawn from 1 -+ this (ours)
    contrast: float = 0.2  # (ours)
    saturation: float = 0.2  # (ours)

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            _expect(math.isfinite(value) and value >= 0, f"augment.{knob.name} is {value}; expected 0 or more")
        _expect(0 < self.min_scale <= self.max_scale, "augment.min_scale must be over 0 and at most max_scale")
        for name in ("flip", "crop", "brightness", "contrast", "saturation"):
            _expect(getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; expected at most 1")
        _expect(self.crop_margin < 0.5, f"augment.crop_margin is {self.crop_margin}; expected less than 0.5")


NO_AUGMENTATION = AugmentConfig(
    max_angle=0.0, min_scale=1.0, max_scale=1.0, flip=0.0, crop=0.0, brightness=0.0, contrast=0.0, saturation=0.0
)
"""The whole picture, centred: what evaluation sees."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. `weights`, `images` hold one entry per entry of `labels`, or none."""

    labels: tuple[str, ...] = ()  # runs, exports in Parquet, label files, DTO-Humans' and RelativeHuman's npz
    weights: tuple[float, ...] = ()  # times an epoch each image of these labels is seen; none = once
    images: tuple[str, ...] = ()  # folder or URI of the photographs; "" = those the run's manifest names
    select: str = "accepted"  # images, see `SELECTIONS`
    holdout: float = 0.0  # share of the images kept for evaluation, chosen by a hash of their keys (ours)
    input_size: int = 1288  # S, side of the square input [px], a multiple of the encoder's patch (DTO)
    max_people: int = 50  # of one image, the nearest are kept; as many as the network has queries (DTO)
    min_joints: int = 4  # a body with fewer of its 24 joints inside the input is left out (ours)
    batch_images: int = 4  # of one rank
    workers: int = 2  # processes of a rank that read images; 0 = read in the training process
    prefetch: int = 2  # batches each of them reads ahead
    shuffle_images: int = 8192  # neighbours in an epoch come from this many images; bounds memory (ours)
    seed: int = 0  # of order and augmentation

    def __post_init__(self) -> None:
        _expect(self.select in SELECTIONS, f"data.select is {self.select!r}; choose from {SELECTIONS}")
        for name in ("weights", "images"):
            found = len(getattr(self, name))
            wanted = len(self.labels)
            _expect(found in (0, wanted), f"data.{name} has {found} entries; expected {wanted}, one per data.labels")
        _expect(all(math.isfinite(w) and w >= 0 for w in self.weights), "data.weights must be 0 or more")
        _expect(0 <= self.holdout < 1, f"data.holdout is {self.holdout}; expected 0 .. less than 1")
        least = {"input_size": 1, "max_people": 1, "min_joints": 1, "batch_images": 1, "prefetch": 1}
        for name, low in {**least, "shuffle_images": 1, "workers": 0, "seed": 0}.items():
            _expect(getattr(self, name) >= low, f"data.{name} is {getattr(self, name)}; expected at least {low}")
