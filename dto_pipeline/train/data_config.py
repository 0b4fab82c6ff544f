"""Knobs of the training data: which labels, how images are varied, how they are shuffled and read.

(DTO) marks values of the DTO-Humans stage of arXiv 2511.13282, (ours) our own choice. Code receives a config; it never
reads one from the air.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from dto_pipeline.config import ConfigError

SELECTIONS = ("accepted", "optimized", "all")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class AugmentConfig:
    """How an image and its labels are varied; drawn anew for every image and epoch (numbers of MA-HMR)."""

    max_angle: float = 15.0  # about the camera's axis, uniform on both sides [degree]
    min_scale: float = 0.8  # of the focal length
    max_scale: float = 1.8
    flip: float = 0.5  # probability of a mirror image
    crop: float = 0.8  # probability that the bottom is cut off, below the lowest chest
    occlude: float = 0.6  # probability, for each person, of a rectangle of noise over a part of its box
    brightness: float = 0.2  # factors are drawn from 1 -+ this
    contrast: float = 0.2
    saturation: float = 0.2
    tries: int = 10  # draws until somebody is left
    # what the preset `paper` does as published, and `ours` mends
    all_joints_count: bool = False  # 2D losses and matching count joints outside the picture as well
    clamp_cells: bool = False  # the scale map marks border cells for vertices outside, and those behind the camera
    keep_unvaried: bool = True  # where no draw leaves anybody, the image is taken as it is; False: it is left out
    vary_flat: bool = True  # images of which only places are labelled are varied too; False: not, and hips never count
    half_pixel: bool = False  # a crop's joints lack the half pixel that its camera gets

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not isinstance(value, bool):
                _expect(math.isfinite(value) and value >= 0, f"augment.{option.name} is {value}; expected 0 or more")
        _expect(0 < self.min_scale <= self.max_scale, "augment.min_scale must be over 0 and at most max_scale")
        _expect(self.tries >= 1, f"augment.tries is {self.tries}; expected at least 1")
        for name in ("flip", "crop", "occlude", "brightness", "contrast", "saturation"):
            _expect(getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; expected at most 1")


def without_augmentation(config: AugmentConfig) -> AugmentConfig:
    """The whole picture as it is: what evaluation sees."""
    still = replace(config, max_angle=0.0, min_scale=1.0, max_scale=1.0, flip=0.0, crop=0.0, occlude=0.0, tries=1)
    return replace(still, brightness=0.0, contrast=0.0, saturation=0.0)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. `weights`, `images` hold one entry per entry of `labels`, or none."""

    labels: tuple[str, ...] = ()  # runs, exports in Parquet, label files, DTO-Humans' and RelativeHuman's npz
    weights: tuple[float, ...] = ()  # times an epoch each image of these labels is seen; none = once
    images: tuple[str, ...] = ()  # folder or URI of the photographs; "" = those the run's manifest names
    trust: tuple[str, ...] = ()  # "3d", or "2d": only places in the picture and cameras are labels; none = 3d
    complete: tuple[bool, ...] = ()  # everybody in these images is labelled; false: others may be found; none = true
    select: str = "accepted"  # images, see `SELECTIONS`
    holdout: float = 0.0  # share of the images kept for evaluation, chosen by a hash of their keys (ours)
    input_size: int = 1288  # S, the longer side of an input [px], a multiple of 56
    max_people: int = 50  # of one image, the nearest are kept; as many as the network has queries
    min_joints: int = 4  # a body with fewer of its 45 joints inside the picture is left out
    batch_images: int = 4  # of one rank
    workers: int = 2  # processes of a rank that read images; 0 = read in the training process
    prefetch: int = 2  # batches each of them reads ahead
    patience: float = 300.0  # a batch that takes the reading processes longer ends the training [s]
    shuffle_images: int = 8192  # neighbours in an epoch come from this many images; bounds memory (ours)
    seed: int = 0  # of order and augmentation

    def __post_init__(self) -> None:
        _expect(self.select in SELECTIONS, f"data.select is {self.select!r}; choose from {SELECTIONS}")
        for name in ("weights", "images", "trust", "complete"):
            found = len(getattr(self, name))
            wanted = len(self.labels)
            _expect(found in (0, wanted), f"data.{name} has {found} entries; expected {wanted}, one per data.labels")
        _expect(all(math.isfinite(w) and w >= 0 for w in self.weights), "data.weights must be 0 or more")
        _expect(set(self.trust) <= {"3d", "2d"}, f"data.trust is {self.trust}; expected 3d or 2d, one per data.labels")
        _expect(self.patience > 0, f"data.patience is {self.patience} s; expected more than 0")
        _expect(0 <= self.holdout < 1, f"data.holdout is {self.holdout}; expected 0 .. less than 1")
        least = {"input_size": 1, "max_people": 1, "min_joints": 1, "batch_images": 1, "prefetch": 1}
        for name, low in {**least, "shuffle_images": 1, "workers": 0, "seed": 0}.items():
            _expect(getattr(self, name) >= low, f"data.{name} is {getattr(self, name)}; expected at least {low}")
