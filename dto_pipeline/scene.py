"""The data that passes through the pipeline, from left to right.

`Scene` (CPU, numpy, one image) -> `SceneBatch` (tensors, B x P) -> `PersonMaps` ->
`DepthEvidence` and `HeightPrior` -> `MapProblem` -> `MapSolution` -> `GroupFits` -> `RefinedPeople` -> `PlacedScene`.
Lengths in metres, image positions in pixels; axis letters as in `dto_pipeline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
import torch

from dto_pipeline.status import ImageStatus, PersonStatus

_T = TypeVar("_T", bound="Tensors")
OUTCOMES = tuple(PersonStatus)  # by the code of `GroupFits.outcome`


@dataclass(frozen=True)
class Tensors:
    """A frozen dataclass whose tensors are moved, indexed and changed together."""

    def each(self: _T, change: Callable[..., torch.Tensor], *others: _T) -> _T:
        """A copy with every tensor, also of containers in it, changed by a function of it and those of `others`."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            more = [getattr(other, name) for other in others]
            if isinstance(value, Tensors):
                changed[name] = value.each(change, *more)
            elif isinstance(value, torch.Tensor):
                changed[name] = change(value, *more)
        return dataclasses.replace(self, **changed)

    def to(self: _T, device: torch.device | str, non_blocking: bool = False) -> _T:
        """The same container with every tensor on `device`; `non_blocking`: the copies may still be under way."""
        return self.each(lambda value: value.to(device, non_blocking=non_blocking))

    def take(self: _T, rows: torch.Tensor | int) -> _T:
        """The entries `rows` (n,) of the first axis of every tensor, or one entry without that axis."""
        return self.each(lambda value: value[rows])

    def put(self: _T, rows: torch.Tensor, other: _T) -> _T:
        """A copy whose entries `rows` (n,) of the first axis are those of `other`, in order."""
        return self.each(lambda value, new: value.index_copy(0, rows, new), other)

    def replace(self: _T, **changes: torch.Tensor | Tensors | None) -> _T:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass
class Scene:
    """One image and its P people, on the CPU, in source order. An image with a `problem` cannot be optimised."""

    image_id: str  # "<subset>/<image_path>", the key of the label row
    subset: str
    image_path: str
    width: int  # [px], un-rotated
    height: int  # [px]
    intrinsics: np.ndarray  # (3, 3) float64 [px]
    pose: np.ndarray  # (P, 72) float32 axis-angle, root first
    betas: np.ndarray  # (P, 11) float32, kid axis last (0 where the source has ten)
    transl: np.ndarray  # (P, 3) float32 [m]
    age_years: np.ndarray  # (P,) float32, NaN = unknown
    male_prob: np.ndarray  # (P,) float32 in 0..1, NaN = unknown
    source_row: np.ndarray  # (P,) int64, row of the label file, -1 = added by a detector
    bbox_xyxy: np.ndarray  # (P, 4) float32 [px], NaN = unknown
    det_score: np.ndarray  # (P,) float32, NaN = unknown
    person_problem: list[tuple[PersonStatus, str] | None]  # why a person cannot be used, or None
    same_as: np.ndarray | None = None  # (P,) int64 the person that each one repeats, -1 = none; None = no repeats
    masks: np.ndarray | None = None  # (P, h, w) bool at person-map size
    has_mask: np.ndarray | None = None  # (P,) bool: the mask comes from the image, not from the labelled body
    mask_score: np.ndarray | None = None  # (P,) float32 of the network that made the mask, NaN = from elsewhere
    disparity: np.ndarray | None = None  # (H, W) float32, larger is nearer
    disparity_there: torch.Tensor | None = None  # instead of it: on the GPU, if a network made it there
    image: np.ndarray | None = None  # (H, W, 3) uint8 RGB
    image_sha256: str = ""
    problem: tuple[ImageStatus, str] | None = None
    origin: dict[str, str] = field(default_factory=dict)  # where masks, ages, depth came from

    @property
    def num_people(self) -> int:
        return int(self.transl.shape[0])

    @property
    def usable(self) -> np.ndarray:
        """(P,) bool: labels that can be used."""
        return np.array([problem is None for problem in self.person_problem], bool)


@dataclass(frozen=True)
class SceneBatch(Tensors):
    """B scenes padded to P people and to the largest image of the batch; padding never changes a result."""

    pose: torch.Tensor  # (B, P, 72) float32
    betas: torch.Tensor  # (B, P, 11) float32
    transl: torch.Tensor  # (B, P, 3) float32 [m]
    intrinsics: torch.Tensor  # (B, 3, 3) float64 [px] of the full image
    age_years: torch.Tensor  # (B, P) float32, NaN = unknown
    male_prob: torch.Tensor  # (B, P) float32, NaN = unknown
    present: torch.Tensor  # (B, P) bool: not padding, and a label that can be used
    masks: torch.Tensor  # (B, P, h, w) bool at person-map size, padded with False
    disparity: torch.Tensor  # (B, H, W) float32, padded with 0
    metric: torch.Tensor  # (B,) bool: disparity is `config.METRES_PER_DEPTH` over metres
    image_size: torch.Tensor  # (B, 2) int64: H, W of each image [px]
    map_size: torch.Tensor  # (B, 2) int64: h, w of each person map [px]


@dataclass(frozen=True)
class PersonMaps(Tensors):
    """Person and distance at each pixel of the person map: the initial labels, rendered."""

    person: torch.Tensor  # (B, h, w) int64 index along P, -1 = background or padding
    z: torch.Tensor  # (B, h, w) float32 [m], 0 without a person
    visible_vertices: torch.Tensor  # (B, P) int64


@dataclass(frozen=True)
class DepthEvidence(Tensors):
    """Measurements of each person in the depth map; without meaning (NaN) where not `usable`."""

    depth: torch.Tensor  # (B, P, 2) float64: mean relative depth; last axis MEAN, GROUND
    z: torch.Tensor  # (B, P, 2) float64 [m]: mean rendered z over the same pixels
    depth_std: torch.Tensor  # (B, P) float64: population standard deviation of depth
    slope: torch.Tensor  # (B, P) float64 [m per depth unit] within the person, row means removed
    corr: torch.Tensor  # (B, P) float64: Pearson correlation of the same
    pixels: torch.Tensor  # (B, P, 4) int64: at first, inside the outlier cut, near the line, of those near the ground
    bounds: torch.Tensor  # (B, P, 2) float64: the open outlier cut on depth
    ground_row: torch.Tensor  # (B, P) float64: percentile row the ground evidence starts at [px]
    usable: torch.Tensor  # (B, P) bool
    cut: torch.Tensor  # (B, P) int64: 0 usable, 1 too small at first, 2 too small after the outlier cut, -1 absent
    group: torch.Tensor  # (B, P) int64: NEAR, FAR, or -1 where not usable
    unit: torch.Tensor  # (B,) float64: the map's disparity over the published network's


@dataclass(frozen=True)
class HeightMixture(Tensors):
    """Height of each person as K normal laws of the logarithm of the height [log m]; the last is anybody's."""

    weight: torch.Tensor  # (B, P, K) float64, sums to 1 but for rounding
    mean: torch.Tensor  # (B, P, K) float64
    variance: torch.Tensor  # (B, P, K) float64


@dataclass(frozen=True)
class HeightPrior(Tensors):
    """Height of each person in the label, and of people of its class."""

    height: torch.Tensor  # (B, P) float64 [m] label height in the rest pose
    height_class: torch.Tensor  # (B, P) int64, see HEIGHT_CLASSES
    mean: torch.Tensor  # (B, P) float64 [m]
    sigma: torch.Tensor  # (B, P) float64 [m]
    mixture: HeightMixture | None = None  # solver.mode joint only; mean and sigma are those of its first K - 1 laws


@dataclass(frozen=True)
class MapProblem(Tensors):
    """N independent fits z = alpha * depth + beta over P people each."""

    height: torch.Tensor  # (N, P) float64 [m]
    z: torch.Tensor  # (N, P) float64 [m]
    depth: torch.Tensor  # (N, P) float64
    depth_std: torch.Tensor  # (N, P) float64
    slope: torch.Tensor  # (N, P) float64 [m per depth unit]
    corr: torch.Tensor  # (N, P) float64
    prior_mean: torch.Tensor  # (N, P) float64 [m]
    prior_sigma: torch.Tensor  # (N, P) float64 [m]
    active: torch.Tensor  # (N, P) bool: who takes part at first


@dataclass(frozen=True)
class MapSolution(Tensors):
    """The N fits. alpha or beta is not finite where the group is empty, or its depths are equal without spread."""

    alpha: torch.Tensor  # (N,) float64 [m per depth unit]
    beta: torch.Tensor  # (N,) float64 [m]
    active: torch.Tensor  # (N, P) bool: who is still in the fit
    rejected_order: torch.Tensor  # (N, P) int64: 0, 1, ... in the order set aside, -1 = not set aside
    num_optimized: torch.Tensor  # (N,) int64: people that count as optimised
    deviation: torch.Tensor  # (N,) float64: mean |height - prior mean| / sigma of those kept
    alpha_min: torch.Tensor  # (N,) float64: the lower bound in force
    plane: torch.Tensor  # (N,) bool: the group faced the camera as one plane in the last round
    rounds: torch.Tensor  # (N,) int64: rounds used
    goes_on: torch.Tensor  # (N,) bool: somebody was set aside in the last round, so the rest is to be fitted again


@dataclass(frozen=True)
class Posterior(Tensors):
    """Uncertainty of the joint fit; NaN for people it did not place."""

    z_covariance: torch.Tensor  # (B, P, P) float64 [m^2] of the distances along the camera axis
    height_sigma: torch.Tensor  # (B, P) float64 [m] standard deviation of the height
    depth_model: torch.Tensor  # (B,) int64, index into `maths.line_posterior.DEPTH_MODELS`, -1 = no line
    disparity_line: torch.Tensor  # (B, 2) float64: p, q of 1 / z = p * disparity + q where that model was chosen


@dataclass(frozen=True)
class GroupFits(Tensors):
    """The near and the far line of each scene, who moves by them, and the score of the image."""

    alpha: torch.Tensor  # (B, 2) float64 as finally used; NaN where a group has fewer than two people
    beta: torch.Tensor  # (B, 2) float64 [m]
    used_ground: torch.Tensor  # (B,) bool: the near group was placed by ground evidence
    z: torch.Tensor  # (B, P) float64 [m] of the label, by the evidence that was used
    new_z: torch.Tensor  # (B, P) float64 [m] on the line of the person's group
    outcome: torch.Tensor  # (B, P) int64, index into OUTCOMES
    num_optimized: torch.Tensor  # (B, 2) int64 people that count as optimised
    is_optimized: torch.Tensor  # (B,) bool
    deviation: torch.Tensor  # (B,) float64: mean height deviation of the image [sigma]
    posterior: Posterior | None = None  # solver.mode joint only


@dataclass(frozen=True)
class RefinedPeople(Tensors):
    """The new labels of a batch."""

    betas: torch.Tensor  # (B, P, 11) float64
    transl: torch.Tensor  # (B, P, 3) float64 [m]
    scale: torch.Tensor  # (B, P) float64: factor on distance and height (1 where not moved)
    beta_index: torch.Tensor  # (B, P) int64: the coefficient that was changed (0 or KID_AXIS), -1 = none
    height: torch.Tensor  # (B, P) float64 [m] after
    fits: GroupFits


@dataclass(frozen=True)
class OptimizedScenes:
    """Everything that `SceneOptimizer` computes for a batch."""

    batch: SceneBatch
    maps: PersonMaps
    evidence: DepthEvidence
    prior: HeightPrior
    people: RefinedPeople


# numbers (P,) of people in a `PlacedScene`: their type, and their value where nothing was computed
_Floats = Annotated[np.ndarray, np.float32, np.nan]
_Codes = Annotated[np.ndarray, np.int32, -1]
_Counts = Annotated[np.ndarray, np.int32, 0]
_UNSET: Any = None


@dataclass
class PlacedScene:
    """One scene after the optimiser, on the CPU and unpadded: all a label row needs. P people in source order."""

    scene: Scene
    status: ImageStatus
    message: str | None
    person_status: list[PersonStatus]  # P
    person_message: list[str | None]  # P
    betas: np.ndarray  # (P, 11) float32
    transl: np.ndarray  # (P, 3) float32 [m]
    scale: Annotated[np.ndarray, np.float32, 1] = _UNSET
    beta_index: _Codes = _UNSET
    height_class: _Codes = _UNSET
    height_init_m: _Floats = _UNSET
    height_m: _Floats = _UNSET
    prior_mean_m: _Floats = _UNSET
    prior_sigma_m: _Floats = _UNSET
    depth_mean: _Floats = _UNSET
    depth_std: _Floats = _UNSET
    slope: _Floats = _UNSET
    corr: _Floats = _UNSET
    mask_pixels: _Counts = _UNSET
    visible_vertices: _Counts = _UNSET
    depth_group: Annotated[np.ndarray, np.int8, -1] = _UNSET
    z_sigma_m: _Floats = _UNSET
    height_sigma_m: _Floats = _UNSET
    is_optimized: bool = False
    is_accepted: bool = False
    deviation: float = 0.0
    expected_error: float | None = None  # [m] mean of |error of z| over the people placed; None = unknown
    alpha: tuple[float, float] = (float("nan"), float("nan"))  # near, far
    beta: tuple[float, float] = (float("nan"), float("nan"))
    used_ground: bool = False
    z_covariance: np.ndarray | None = None  # (P (P + 1) / 2,) float32 [m^2] lower triangle, row by row
    depth_model: str | None = None  # of `maths.line_posterior.DEPTH_MODELS`
    disparity_line: tuple[float, float] = (float("nan"), float("nan"))  # 1 / z = first * disparity + second
    extra: dict[str, Any] = field(default_factory=dict)  # columns of the table at extra.NAME: (P,) numbers, one number

    def __post_init__(self) -> None:
        for name, (dtype, missing) in PERSON_RESULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, np.full(self.scene.num_people, missing, dtype))


PERSON_RESULTS: dict[str, tuple[type, float]] = {  # by field: type, and value where nothing was computed
    name: hint.__metadata__
    for name, hint in get_type_hints(PlacedScene, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
