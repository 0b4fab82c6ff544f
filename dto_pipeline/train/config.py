"""Every option of training: frozen dataclasses, one per section, with unit and origin. YAML and overrides as in
`dto_pipeline.config`; a preset is a tree of options below the user's own. "MA-HMR": arXiv 2511.13282."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from dto_pipeline.config import BodyConfig
from dto_pipeline.config_tree import ABOVE_ZERO, Sections, build_sections, expect, read_tree
from dto_pipeline.data.label_files import Limits

PATCH, CELL, GROUP = 14, 28, 56  # sides of tokens of level 0, 1 and 2 [px]
_PUBLISHED: dict[str, dict[str, Any]] = {
    **{name: {"as_published": True} for name in ("model", "augment")},
    "loss": {"as_published": True, "pair_sigma": 0.0},
    "loop": {"warm_up": 0, "last_rate": 0.0},
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"ours": {}, "paper": _PUBLISHED}  # see docs/training.md
_CHOICES: dict[str, tuple[Any, ...]] = {
    **{"loss.preset": tuple(PRESETS), "model.betas": (10, 11), "loop.precision": ("float32", "bfloat16")},
    "data.select": ("accepted", "optimized", "all"),
}
# section.key -> least and most, where not 0 and infinity; those of sizes bound the memory that a file's network takes
_RANGES: dict[str, tuple[float, float]] = {
    **{"encoder.width": (1, 4096), "encoder.layers": (1, 64), "encoder.heads": (1, 256), "encoder.hidden": (0, 16384)},
    **{"model.width": (1, 4096), "model.layers": (1, 24), "model.heads": (1, 256), "model.hidden": (1, 16384)},
    **{"encoder.additional": (0, 16), "model.denoising": (0, 100), "model.queries": (1, 2000)},
    **{"data.input_size": (GROUP, 5600), "data.holdout": (0, 0.999), "data.patience": (1e-3, inf)},
    **{f"loop.{key}": (1, inf) for key in ("steps", "log_every", "checkpoint_every", "torch_threads")},
    **{f"data.{key}": (1, inf) for key in ("max_people", "batch_images", "shuffle_images")} | {"loop.clip": ABOVE_ZERO},
    **{f"augment.{key}": (0, 1) for key in ("flip", "crop", "occlude", "colour")} | {"data.min_joints": (1, 45)},
    **{"augment.max_angle": (0, 180), "augment.min_scale": (1e-3, 1e3), "augment.max_scale": (1e-3, 1e3)},
}


@dataclass(frozen=True)
class EncoderConfig:
    """DINOv2: published weights to start from, and the shape of the encoder."""

    model: str = ""  # hub name or folder of a DINOv2 of transformers to start from; "" = untrained
    revision: str = ""  # commit a hub name is pinned to
    offline: bool = False  # never ask the hub, only its cache on this machine
    width: int = 768  # of tokens (ViT-B)
    layers: int = 12
    heads: int = 12
    hidden: int = 0  # of the blocks' perceptrons; 0 = four times the width
    additional: int = 3  # blocks that read the scale map; fewer where the encoder has no more layers


@dataclass(frozen=True)
class ModelConfig:
    """Decoder, heads and tokens (numbers of MA-HMR)."""

    queries: int = 50  # people an image can have at most
    width: int = 768
    heads: int = 4
    layers: int = 6
    hidden: int = 2048  # of the decoder's feed-forward layers
    betas: int = 11  # shape coefficients that are predicted: 10, or 11 with the kid axis
    camera: bool = True  # a branch predicts the field of view (stages 2 and 3); False = 60 degrees over S (stage 1)
    denoising: int = 0  # groups of denoising queries in training (stage 1: 10)
    as_published: bool = False  # the image's middle is the principal point, tokens depend on the batch's other images


@dataclass(frozen=True)
class LossConfig:
    """Weights (those of MA-HMR's stage 3) and how losses are measured. A weight of 0 switches a loss off."""

    preset: str = "ours"  # see `PRESETS`; options that are set too take precedence over it
    confidence: float = 4.0
    pose: float = 5.0
    betas: float = 3.0
    boxes: float = 2.0
    giou: float = 2.0
    joints: float = 8.0
    image_joints: float = 40.0
    inverse_depth: float = 0.0  # stage 1: 0.5
    relative_metric: float = 0.5
    relative_layer: float = 0.0  # RelativeHuman: 0.5
    fov: float = 0.5
    map_confidence: float = 4.0
    map_scale: float = 4.0
    reach: float = 1.0  # pairs of people farther apart than this in z do not enter the relative metric loss [m]
    as_published: bool = False  # with the faults of the published losses, see docs/training.md
    # a pair whose labels' z differ with posterior variance v counts 1 / (1 + v / pair_sigma^2) [m]; 0 = all alike
    pair_sigma: float = 0.3


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast, how often."""

    steps: int = 100_000  # may be raised when a training is continued; learning rates of later steps change with it
    init: str = ""  # weights to begin from: a released .bin or .pth, or a checkpoint or folder of a training
    rate: float = 1e-5  # highest learning rate of AdamW (MA-HMR)
    encoder_rate: float = 1.0  # factor on the rate of the encoder's weights; 0 = they stay as they are
    last_rate: float = 0.05  # share of the rate at the end of the cosine
    warm_up: int = 500  # steps over which the rate rises
    weight_decay: float = 1e-4
    clip: float = 1.0  # of the gradient's norm
    precision: str = "float32"  # bfloat16 = autocast
    log_every: int = 20  # steps between rows of metrics
    evaluate_every: int = 2000  # steps between evaluations on held-out images; 0 = only at the end
    checkpoint_every: int = 1000  # steps
    seed: int = 0  # of the untrained weights; order and augmentation have their own
    workers: int = 0  # DDP workers as Ray actors; 0 = this process, without Ray
    gpu: bool = False  # one GPU per worker, NCCL; otherwise CPU and gloo
    torch_threads: int = 1  # intra-op threads per worker on CPU
    max_failures: int = 3  # lost workers after which Ray gives up


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. `weights`, `images`, `trust`, `complete` hold one entry per entry of `labels`, or none."""

    labels: tuple[str, ...] = ()  # runs, exports in Parquet, label files, DTO-Humans' and RelativeHuman's npz
    weights: tuple[float, ...] = ()  # how many times an epoch each image of these labels is seen; none = once
    images: tuple[str, ...] = ()  # folder or URI of the photographs; "" = those the run's manifest names
    trust: tuple[str, ...] = ()  # "3d", or "2d": only places in the picture and cameras are labels; none = 3d
    complete: tuple[bool, ...] = ()  # all people in these images are labelled; none = true
    select: str = "accepted"  # images: accepted, optimized or all; never those without people
    max_error: float = 0.0  # images of at most this expected error of z [m], where labels have it; 0 = all
    max_z_sigma: float = 0.0  # bodies of at most this sigma of z [m], of others only the box is used; 0 = all
    holdout: float = 0.0  # share of the images kept for evaluation, chosen by a hash of their names (ours)
    input_size: int = 1288  # S, the longer side of an input [px], a multiple of 56
    max_people: int = 50  # of one image, the nearest are kept; as many as the network has queries
    min_joints: int = 4  # a body with fewer of its 45 joints inside the picture is left out
    # J_regressor_extra.npy (9, V) of the body: RelativeHuman's 14 joints; "" = the 12 of them that SMPL's tree has
    regressor: str = ""
    batch_images: int = 4  # of one rank
    workers: int = 2  # processes of a rank that read images; 0 = read in the training process
    patience: float = 300.0  # time after which a batch that has not been read ends the training [s]
    shuffle_images: int = 8192  # neighbours in an epoch come from this many images; bounds memory (ours)
    seed: int = 0  # of order and augmentation

    def __post_init__(self) -> None:
        for name in ("weights", "images", "trust", "complete"):
            found, wanted = len(getattr(self, name)), len(self.labels)
            expect(found in (0, wanted), f"data.{name} has {found} entries; expected {wanted}, one per data.labels")
        expect(set(self.trust) <= {"3d", "2d"}, f"data.trust is {self.trust}; expected 3d or 2d, one per data.labels")

    @property
    def limits(self) -> Limits:
        """Limits on the uncertainty of images and bodies."""
        return Limits(self.max_error or None, self.max_z_sigma or None)


@dataclass(frozen=True)
class AugmentConfig:
    """Random variation of an image and its labels, for every image and epoch (numbers of MA-HMR)."""

    max_angle: float = 15.0  # about the camera's axis, uniform on both sides [degree]
    min_scale: float = 0.8  # of the focal length
    max_scale: float = 1.8
    flip: float = 0.5  # probability of a mirror image
    crop: float = 0.8  # probability that the bottom is cut off, below the lowest chest
    occlude: float = 0.6  # probability, for each person, of a rectangle of noise over a part of its box
    colour: float = 0.2  # factors of brightness, contrast and saturation are drawn from 1 -+ this
    as_published: bool = False  # with the faults of the published targets, see docs/training.md


def without_augmentation(config: AugmentConfig) -> AugmentConfig:
    """The config without variation, for evaluation."""
    return replace(config, max_angle=0.0, min_scale=1.0, max_scale=1.0, flip=0.0, crop=0.0, occlude=0.0, colour=0.0)


@dataclass(frozen=True)
class TrainConfig(Sections):
    """All sections of training."""

    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    loop: LoopConfig = LoopConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    body: BodyConfig = field(default_factory=BodyConfig)

    def __post_init__(self) -> None:
        self.check(_CHOICES, _RANGES)
        encoder, model, side = self.encoder, self.model, self.data.input_size
        expect(self.augment.min_scale <= self.augment.max_scale, "augment.min_scale is over augment.max_scale")
        expect(side % GROUP == 0, f"data.input_size is {side}; expected a multiple of {GROUP}")
        fits = encoder.width % encoder.heads == 0 and model.width % model.heads == 0 and model.width % 4 == 0
        expect(fits, f"encoder.width {encoder.width} and model.width {model.width} are no multiples of their heads")
        learns = bool(encoder.model or self.loop.init) or self.loop.encoder_rate > 0
        expect(learns, "loop.encoder_rate is 0 and the encoder is untrained; name one (encoder.model) or let it learn")


def load_train_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    below: Callable[[str], Mapping[str, Mapping[str, Any]]] = lambda _: {},
) -> TrainConfig:
    """Defaults, preset, `below` (options made of `loop.init`), a YAML file and ``section.key=value`` overrides, in this
    order. Raises: ConfigError: what cannot be used, named."""
    tree = read_tree(path, overrides)
    return train_config_from_dict(_merge(below(str(tree.get("loop", {}).get("init") or "")), tree))


def train_config_from_dict(tree: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Inverse of `TrainConfig.to_dict`; missing keys take the preset's values, unknown ones are refused."""
    preset = tree.get("loss", {}).get("preset", LossConfig.preset)
    expect(isinstance(preset, str) and preset in PRESETS, f"loss.preset is {preset!r}; choose from {tuple(PRESETS)}")
    return TrainConfig(**build_sections(TrainConfig, _merge(PRESETS[preset], tree)))


def _merge(below: Mapping[str, Mapping[str, Any]], above: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**below.get(name, {}), **above.get(name, {})} for name in {**below, **above}}
