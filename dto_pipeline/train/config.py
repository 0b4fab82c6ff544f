"""Every knob of training, once: frozen dataclasses, one per room, with unit and origin.

The manner is that of `dto_pipeline.config`: YAML, ``room.key=value`` overrides, unknown keys refused. A preset is a
tree of knobs below the user's own; see `PRESETS` for all that tells the paper's settings from ours. "MA-HMR": arXiv
2511.13282.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dto_pipeline.config import BodyConfig, ConfigError, build_rooms, read_tree
from dto_pipeline.train.data_config import AugmentConfig, DataConfig

PRINCIPAL_POINTS = ("true", "centre")
QUERY_STARTS = ("tokens", "places")
POSE_DISTANCES = ("matrix", "axis_angle")
PRECISIONS = ("float32", "bfloat16")
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {},  # the defaults below
    "paper": {
        "model": {"principal_point": "centre", "queries_from": "places"},
        "loss": {
            "pose_distance": "axis_angle",
            "confidence_over_queries": True,
            "sum_fov": True,
            "pair_sigma": 0.0,
        },
    },
}


@dataclass(frozen=True)
class EncoderConfig:
    """DINOv2: published weights, or an untrained one of this shape."""

    model: str = ""  # hub name or folder of a DINOv2 of transformers; "" = untrained, of the shape below
    revision: str = ""  # commit a hub name is pinned to
    offline: bool = False  # never ask the hub, only its cache on this machine
    width: int = 768  # of tokens (ViT-B)
    layers: int = 12
    heads: int = 12
    patch: int = 14  # side of a patch [px]


@dataclass(frozen=True)
class ModelConfig:
    """Decoder and heads (numbers of MA-HMR where it gives them)."""

    queries: int = 50  # people an image can have at most
    # tokens: the surest tokens' own proposals (two stages, as Deformable DETR); places: learnt boxes (MA-HMR)
    queries_from: str = "tokens"
    width: int = 768
    heads: int = 4
    layers: int = 6
    betas: int = 11  # shape coefficients that are predicted: 10, or 11 with the kid axis
    first_fov: float = 0.5235987755982988  # vertical field of view before training, pi / 6 [rad]
    least_fov: float = 0.08  # [rad]
    principal_point: str = "true"  # true: that of the intrinsics given; centre: the image's centre always


@dataclass(frozen=True)
class LossConfig:
    """Weights (the DTO-Humans stage of MA-HMR) and how losses are measured. A weight of 0 switches a loss off."""

    preset: str = "ours"  # see `PRESETS`; other keys change single knobs of it
    confidence: float = 4.0
    pose: float = 5.0
    betas: float = 3.0
    boxes: float = 2.0
    giou: float = 2.0
    joints: float = 8.0
    image_joints: float = 40.0
    relative_metric: float = 0.5
    fov: float = 0.5
    relative_layer: float = 0.5
    proposals: float = 1.0  # factor on all losses of what tokens say, see `ModelConfig.queries_from` (ours)
    # factors of the shape coefficients: large ones change the body most; the last is the kid axis
    beta_factors: tuple[float, ...] = (2.56, 1.28, 0.64, 0.64, 0.32, 0.32, 0.32, 0.32, 0.32, 0.32, 10.0)
    focal_alpha: float = 0.25  # focal loss of the confidence
    focal_gamma: float = 2.0
    reach: float = 1.0  # pairs of people farther apart than this in z do not enter the relative metric loss [m]
    fov_over: float = 3.0  # factor on a field of view that is estimated too large
    pose_distance: str = "matrix"  # matrix: entries of rotation matrices; axis_angle: MA-HMR, which jumps at pi
    confidence_over_queries: bool = False  # divide the confidence loss by the number of queries once more, as MA-HMR
    sum_fov: bool = False  # sum over images rather than their mean, as MA-HMR: then it grows with the batch
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

    steps: int = 100_000
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
            ("model.queries_from", self.model.queries_from, QUERY_STARTS),
            ("loss.pose_distance", self.loss.pose_distance, POSE_DISTANCES),
            ("loss.preset", self.loss.preset, tuple(PRESETS)),
            ("loop.precision", self.loop.precision, PRECISIONS),
            ("model.betas", self.model.betas, (10, 11)),
        ):
            _expect(value in choices, f"{key} is {value!r}; choose from {choices}")
        proposed = self.model.queries_from == "places" or self.loss.proposals > 0
        _expect(proposed, "loss.proposals is 0, so that tokens never learn to propose; use model.queries_from=places")
        for room, key in (("model", "queries"), ("model", "layers"), ("loop", "steps")):
            found = getattr(getattr(self, room), key)
            _expect(found >= 1, f"{room}.{key} is {found}; expected at least 1")
        for key in ("log_every", "checkpoint_every"):
            _expect(getattr(self.loop, key) >= 1, f"loop.{key} must be at least 1")
        learns = bool(self.encoder.model) or self.loop.encoder_rate > 0
        _expect(learns, "loop.encoder_rate is 0 and the encoder is untrained; name one (encoder.model) or let it learn")
        _expect(len(self.loss.beta_factors) == 11, "loss.beta_factors needs 11 numbers")
        self._check_sizes()

    def _check_sizes(self) -> None:
        for room, key in (("encoder", "width"), ("model", "width")):
            width, heads = getattr(getattr(self, room), key), getattr(self, room).heads
            _expect(width % heads == 0, f"{room}.width is {width}, no multiple of {room}.heads = {heads}")
        _expect(self.model.width % 8 == 0, f"model.width is {self.model.width}; expected a multiple of 8")
        side, patch = self.data.input_size, self.encoder.patch
        known = self.encoder.model == ""  # a published encoder says its patch itself
        _expect(not known or side % patch == 0, f"data.input_size is {side}, no multiple of encoder.patch = {patch}")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dict, JSON-ready (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def load_train_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, the preset's knobs, an optional YAML file and ``room.key=value`` overrides, in this order.

    Raises:
        ConfigError: a file, preset, room, key or value that cannot be used, named.
    """
    return train_config_from_dict(read_tree(path, overrides))


def train_config_from_dict(tree: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Inverse of `TrainConfig.to_dict`; missing keys take the preset's values, unknown ones are refused."""
    preset = tree.get("loss", {}).get("preset", LossConfig.preset)
    _expect(preset in PRESETS, f"loss.preset is {preset!r}; choose from {tuple(PRESETS)}")
    below = PRESETS[preset]
    merged = {room: {**below.get(room, {}), **tree.get(room, {})} for room in {**below, **tree}}
    return TrainConfig(**build_rooms(TrainConfig, merged))


def stored_config(tree: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """`train_config_from_dict` of what a training wrote: before 0.3.0 no config said that queries started at places."""
    return train_config_from_dict({**tree, "model": {"queries_from": "places", **tree.get("model", {})}})


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
