"""Every knob of training, once: frozen dataclasses, one per room, with unit and origin.

The manner is that of `dto_pipeline.config`: YAML, ``room.key=value`` overrides, unknown keys refused. A preset is a
tree of knobs below the user's own; see `PRESETS` for all that tells the paper's settings from ours. "MA-HMR": arXiv
2511.13282.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dto_pipeline.config import BodyConfig, ConfigError, build_rooms, read_tree
from dto_pipeline.train.architecture import PATCH, Architecture, ArchitectureError
from dto_pipeline.train.data_config import AugmentConfig, DataConfig

PRINCIPAL_POINTS = ("true", "centre")
POSE_DISTANCES = ("matrix", "axis_angle")
DEPTHS = ("transl", "pelvis")
PRECISIONS = ("float32", "bfloat16")
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {},  # the defaults below
    "paper": {  # exactly as published, see docs/training.md
        "model": {"principal_point": "centre", "prune_by_image": False},
        "loss": {
            "pose_distance": "axis_angle",
            "depth_of": "pelvis",
            "over_all_joints": True,
            "sum_fov": True,
            "empty_slots": True,
            "share_all_counts": False,
            "denoise_untrusted": True,
            "pair_sigma": 0.0,
        },
        "augment": {
            "all_joints_count": True,
            "clamp_cells": True,
            "keep_unvaried": False,
            "half_pixel": True,
            "vary_flat": False,
        },
        "loop": {"warm_up": 0, "last_rate": 0.0},
    },
}


@dataclass(frozen=True)
class EncoderConfig:
    """DINOv2: published weights to start from, and the shape of the encoder."""

    model: str = ""  # hub name or folder of a DINOv2 of transformers whose weights begin; "" = untrained
    revision: str = ""  # commit a hub name is pinned to
    offline: bool = False  # never ask the hub, only its cache on this machine
    width: int = 768  # of tokens (ViT-B)
    layers: int = 12
    heads: int = 12
    patch: int = 14  # side of a patch, of every DINOv2 [px]
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
    camera: bool = True  # a branch says the field of view (stages 2 and 3); False = 60 degrees over S (stage 1)
    denoising: int = 0  # groups of denoising queries in training (stage 1: 10)
    principal_point: str = "true"  # true: people are placed by the label's; centre: the image's middle always
    prune_by_image: bool = True  # tokens of an image never depend on its neighbours in the batch


@dataclass(frozen=True)
class LossConfig:
    """Weights (stage 3 of MA-HMR) and how losses are measured. A weight of 0 switches a loss off."""

    preset: str = "ours"  # see `PRESETS`; other keys change single knobs of it
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
    fov_over: float = 3.0  # factor on a field of view that is estimated too large
    pose_distance: str = "matrix"  # matrix: entries of rotation matrices; axis_angle: as published, jumps at pi
    depth_of: str = "transl"  # what predicted distances are compared with: SMPL's transl, or the pelvis, as published
    over_all_joints: bool = False  # divide the 2D loss by all joints, as published, not by those that count
    sum_fov: bool = False  # sum over images rather than their mean, as published: then it grows with the batch
    empty_slots: bool = False  # denoising confidence over empty slots too and once more / groups, as published
    denoise_untrusted: bool = False  # denoising queries start from poses that are no labels too, as published
    share_all_counts: bool = True  # two processes with half a batch learn what one learns; published: people only
    # a pair whose labels' z differ with posterior variance v counts 1 / (1 + v / pair_sigma^2) [m]; 0 = all alike
    pair_sigma: float = 0.3


@dataclass(frozen=True)
class MatchConfig:
    """Costs of the optimal assignment of queries to people (MA-HMR)."""

    confidence: float = 1.0
    boxes: float = 1.0
    giou: float = 1.0
    image_joints: float = 20.0


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast, how often."""

    steps: int = 100_000  # may be raised when a training goes on: the rates of later steps change with it
    init: str = ""  # weights to begin from: a released .bin or .pth, or a checkpoint or folder of a training
    rate: float = 1e-5  # highest learning rate of AdamW (MA-HMR)
    encoder_rate: float = 1.0  # factor on the rate of the encoder's weights; 0 = they stay as they are
    last_rate: float = 0.05  # share of the rate at the end of the cosine
    warm_up: int = 500  # steps over which the rate rises
    weight_decay: float = 1e-4
    clip: float = 1.0  # of the gradient's norm
    precision: str = "float32"  # see `PRECISIONS`; bfloat16 = autocast
    log_every: int = 20  # steps between rows of metrics
    evaluate_every: int = 2000  # steps between evaluations on held-out images; 0 = only at the end
    checkpoint_every: int = 1000  # steps
    pictures: int = 4  # held-out images drawn at each evaluation
    seed: int = 0  # of the untrained weights; order and augmentation have their own
    workers: int = 0  # DDP workers as Ray actors; 0 = this process, without Ray
    gpu: bool = False  # one GPU per worker, NCCL; otherwise CPU and gloo
    torch_threads: int = 1  # intra-op threads per worker on CPU
    max_failures: int = 3  # lost workers after which Ray gives up

    @property
    def world(self) -> int:
        """Processes that share a step."""
        return max(1, self.workers)


@dataclass(frozen=True)
class TrainConfig:
    """All rooms of training."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    body: BodyConfig = field(default_factory=BodyConfig)

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("model.principal_point", self.model.principal_point, PRINCIPAL_POINTS),
            ("loss.pose_distance", self.loss.pose_distance, POSE_DISTANCES),
            ("loss.depth_of", self.loss.depth_of, DEPTHS),
            ("loss.preset", self.loss.preset, tuple(PRESETS)),
            ("loop.precision", self.loop.precision, PRECISIONS),
        ):
            _expect(value in choices, f"{key} is {value!r}; choose from {choices}")
        _expect(self.encoder.patch == PATCH, f"encoder.patch is {self.encoder.patch}; expected {PATCH}")
        _expect(self.loop.steps >= 1, f"loop.steps is {self.loop.steps}; expected at least 1")
        _expect(self.model.denoising >= 0, f"model.denoising is {self.model.denoising}; expected 0 or more groups")
        for key in ("log_every", "checkpoint_every"):
            _expect(getattr(self.loop, key) >= 1, f"loop.{key} must be at least 1")
        learns = bool(self.encoder.model or self.loop.init) or self.loop.encoder_rate > 0
        _expect(learns, "loop.encoder_rate is 0 and the encoder is untrained; name one (encoder.model) or let it learn")
        try:
            self.architecture()
        except ArchitectureError as error:
            raise ConfigError(f"encoder, model or data.input_size: {error}") from error

    def architecture(self) -> Architecture:
        """The network's sizes."""
        encoder, model = self.encoder, self.model
        return Architecture(
            input_size=self.data.input_size,
            encoder_width=encoder.width,
            encoder_heads=encoder.heads,
            encoder_layers=encoder.layers,
            encoder_hidden=4 * encoder.width,
            additional=min(encoder.additional, encoder.layers - 1),
            width=model.width,
            heads=model.heads,
            decoder_layers=model.layers,
            hidden=model.hidden,
            queries=model.queries,
            betas=model.betas,
            camera=model.camera,
            denoising=model.denoising > 0,
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dict, JSON-ready (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def load_train_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    below: Callable[[str], Mapping[str, Mapping[str, Any]]] = lambda _: {},
) -> TrainConfig:
    """Defaults, the preset's options, an optional YAML file and ``room.key=value`` overrides, in this order.

    Args:
        path, overrides: see there.
        below: options that stand between preset and file, made of the file's `loop.init`.

    Raises:
        ConfigError: a file, preset, room, key or value that cannot be used, named.
    """
    tree = read_tree(path, overrides)
    under = below(str(tree.get("loop", {}).get("init") or ""))
    return train_config_from_dict({room: {**under.get(room, {}), **tree.get(room, {})} for room in {**under, **tree}})


def train_config_from_dict(tree: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Inverse of `TrainConfig.to_dict`; missing keys take the preset's values, unknown ones are refused."""
    preset = tree.get("loss", {}).get("preset", LossConfig.preset)
    _expect(isinstance(preset, str) and preset in PRESETS, f"loss.preset is {preset!r}; choose from {tuple(PRESETS)}")
    below = PRESETS[preset]
    merged = {room: {**below.get(room, {}), **tree.get(room, {})} for room in {**below, **tree}}
    return TrainConfig(**build_rooms(TrainConfig, merged))


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
