"""RelativeHuman's metrics: ordinal depth (PCDR at 0.2 m, all and by age), mPCKh at 0.6, precision, recall and F1.

Plain arrays in, numbers out; opens no file and knows no body model. Positions in pixels, z in metres. Two modes:

`reference` equals the published metric, faults included; without anybody missed that one breaks down, here the result
says so in its status. `corrected` is the same metric with these corrections, each by its name:

* index: a person without visible joints is left out, and no longer shifts the index at which the depth layers and ages
  of the others are read; in images without prediction such a person is not counted as missed either;
* pckh: people with fewer than two visible joints (or all in one point) have no size to compare with: they are left out
  of the mean, instead of counting -1;
* box: boxes span the joints visible in the annotation, on both sides; unlabelled ones do not stretch them to (-2, -2).
  Somebody with one visible joint has no box: the joint must lie inside the prediction's box;
* rank: pairs are matched in order of their root mean square joint distance; the spectral norm grows with the number of
  visible joints, so that hidden people chose first;
* budget: a pair that does not overlap uses up nothing; it no longer ends the matching early;
* detection: true positives are the matched people (predictions minus missed people can turn negative).

Metric: PCDR from Sun et al., "Putting People in their Place" (RelativeHuman); mPCKh counts joints within 0.143 of the
diagonal of a person's visible box, 0.6 of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from dto_pipeline.data.sources.relative_human import (
    AGES,
    EVALUATED_JOINTS,
    UNKNOWN,
    Annotation,
    evaluated_joints,
)

__all__ = [
    "GROUPS",
    "MODES",
    "RELATIONS",
    "Annotation",
    "EvaluatedImage",
    "ImageTally",
    "MetricInputError",
    "MetricStatus",
    "RelativeHumanResult",
    "evaluate_relative_human",
    "pool_tallies",
    "tally_image",
]

MODES = ("reference", "corrected")
GROUPS = ("all", *AGES)  # people of unknown age count in `all` only
RELATIONS = ("same", "nearer", "farther")  # of the later person of a pair, seen from the earlier one
DEPTH_MARGIN = np.float32(0.2)  # same layer: closer than this; else farther apart than this [m]
MISSED_WEIGHT = 0.3  # pairs that a missed person costs
PCK_FRACTION = np.float32(0.143)  # of the diagonal of the visible box
MIN_IOU = 0.05  # boxes overlapping less cannot belong to one person


class MetricInputError(ValueError):
    """Arrays that do not fit together; the message names the image."""


class MetricStatus(StrEnum):
    """Whether the numbers of a result mean something."""

    OK = "ok"
    NO_ANNOTATION = "no_annotation"  #: nobody to find; nothing is defined but the counts
    NOTHING_MISSED = "nothing_missed"  #: `reference` only: the published metric raises here; the numbers are by formula


@dataclass(frozen=True)
class EvaluatedImage:
    """One image: who is in it, and who was predicted (P people)."""

    name: str  # file name; tells the two 19-joint layouts apart
    annotations: tuple[Annotation, ...]
    keypoints: np.ndarray  # (P, 14, 2) [px], in the order of EVALUATED_JOINTS
    depth: np.ndarray  # (P,) z of the translation [m]
    predicted: bool = True  # False: there is no prediction for this image

    def __post_init__(self) -> None:
        shape = np.shape(self.keypoints)
        if len(shape) != 3 or shape[1:] != (len(EVALUATED_JOINTS), 2) or np.shape(self.depth) != shape[:1]:
            found = f"keypoints {shape} and depth {np.shape(self.depth)}"
            raise MetricInputError(f"{self.name}: {found}; expected (P, 14, 2) and (P,)")


@dataclass(frozen=True)
class ImageTally:
    """What one image adds to the metrics; sums of these are the metrics, so images can be drawn again (bootstrap)."""

    name: str
    matches: np.ndarray  # (M, 2) int64: prediction, annotation, in the order found
    missed: np.ndarray  # (K,) int64 annotations
    correct: np.ndarray  # (5,) int64 pairs in the right order, by GROUPS
    pairs: np.ndarray  # (5,) int64 pairs, by GROUPS
    relations: np.ndarray  # (3,) int64 pairs, by RELATIONS
    missed_people: np.ndarray  # (5,) int64, by GROUPS
    pckh: np.ndarray  # (<= M,) float32 share of right joints of each matched person that counts
    predictions: int


@dataclass(frozen=True)
class RelativeHumanResult:
    """The metrics of a set of images. None = undefined (nothing to divide by)."""

    mode: str
    status: MetricStatus
    pcdr: dict[str, float | None]  # by GROUPS, fractions at 0.2 m
    mpckh: float | None  # fraction at 0.6 of a head
    matched_people: int
    missed: int
    predictions: int
    false_positives: int
    pairs: dict[str, int]  # by RELATIONS
    precision: float | None  # not rounded; the published tool prints two decimals
    recall: float | None
    f1: float | None
    images: tuple[ImageTally, ...] = field(repr=False)


def evaluate_relative_human(images: Sequence[EvaluatedImage], mode: str = "corrected") -> RelativeHumanResult:
    """Metrics of a data set in one of `MODES` (see the module).

    Raises:
        ValueError: an unknown mode.
        KeypointLayoutError: an annotation with neither 14 nor 19 joints.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose from {MODES}")
    return pool_tallies([tally_image(image, mode) for image in images], mode)


def pool_tallies(tallies: Sequence[ImageTally], mode: str) -> RelativeHumanResult:
    """Metrics of any selection of images that were tallied in `mode`; an image may appear more than once."""
    correct, pairs, missed_people = (_summed(tallies, name) for name in ("correct", "pairs", "missed_people"))
    relations = _summed(tallies, "relations", len(RELATIONS))
    shares = np.concatenate([np.zeros(0, np.float32), *[tally.pckh for tally in tallies]])
    matched = sum(len(tally.matches) for tally in tallies)
    missed = int(missed_people[0])
    predictions = sum(tally.predictions for tally in tallies)
    precision, recall, f1 = _detection(matched, missed, predictions, mode)
    return RelativeHumanResult(
        mode=mode,
        status=_status(matched, missed, mode),
        pcdr={
            group: float(correct[g] / (pairs[g] + MISSED_WEIGHT * missed_people[g])) if pairs[g] else None
            for g, group in enumerate(GROUPS)
        },
        mpckh=float(shares.mean(dtype=np.float64)) if len(shares) else None,
        matched_people=matched,
        missed=missed,
        predictions=predictions,
        false_positives=predictions - matched,
        pairs={name: int(count) for name, count in zip(RELATIONS, relations, strict=True)},
        precision=precision,
        recall=recall,
        f1=f1,
        images=tuple(tallies),
    )


def tally_image(image: EvaluatedImage, mode: str) -> ImageTally:
    """Match one image's predictions to its people and count what the metrics are made of."""
    people = _select_people(image, mode)
    predictions = len(image.depth) if image.predicted else 0
    keypoints = np.asarray(image.keypoints, dtype=np.float32)[:predictions]
    with np.errstate(invalid="ignore"):  # joints that are not finite match nobody
        matches = _match(keypoints, people, mode)
    found, owner = matches.T
    z = np.asarray(image.depth, dtype=np.float32)[found]
    is_missed = ~np.isin(np.arange(len(people.index)), owner)
    correct, pairs, relations = _count_pairs(people.depth_id[owner], people.age[owner], z)
    return ImageTally(
        name=image.name,
        matches=np.stack([found, people.index[owner]], axis=1),
        missed=people.index[is_missed],
        correct=correct,
        pairs=pairs,
        relations=relations,
        missed_people=_of_group(people.age[is_missed]).sum(axis=1),
        pckh=_pckh(keypoints[found], people.joints[owner], people.visible[owner], mode),
        predictions=predictions,
    )


@dataclass(frozen=True)
class _People:
    """The A annotated people of an image that take part."""

    index: np.ndarray  # (A,) int64 reported annotation, whose layer and age are read
    joints: np.ndarray  # (A, 14, 2) float32 [px]
    visible: np.ndarray  # (A, 14) bool
    depth_id: np.ndarray  # (A,) int64
    age: np.ndarray  # (A,) int64


def _select_people(image: EvaluatedImage, mode: str) -> _People:
    """Who takes part; in `reference` the indices of predicted images count on as if nobody had been dropped."""
    index = np.array([i for i, a in enumerate(image.annotations) if a.kp2d is not None], dtype=np.int64)
    joints = np.zeros((len(index), len(EVALUATED_JOINTS), 2), dtype=np.float32)
    visible = np.zeros(joints.shape[:2], dtype=bool)
    for row, i in enumerate(index):
        joints[row], visible[row] = evaluated_joints(image.annotations[i].kp2d, image.name)
    taken = visible.any(axis=1)
    if mode == "corrected":
        index, joints, visible = index[taken], joints[taken], visible[taken]
    elif image.predicted:
        index, joints, visible = index[: taken.sum()], joints[taken], visible[taken]
    depth_id = np.array([image.annotations[i].depth_id for i in index], dtype=np.int64)
    age = np.array([image.annotations[i].age for i in index], dtype=np.int64)
    return _People(index, joints, visible, depth_id, age)


def _match(keypoints: np.ndarray, people: _People, mode: str) -> np.ndarray:
    """Greedy matching, nearest pairs first (at equal distance the lower prediction, then the lower person).

    Args:
        keypoints: (P, 14, 2) float32 predictions [px]. people: A of them.

    Returns:
        (M, 2) int64: prediction, row of `people`, in the order found.
    """
    distance = _pair_distance(keypoints, people, mode)
    overlaps = _pair_overlaps(keypoints, people, mode)
    spent = int(mode == "reference")
    matches: list[tuple[int, int]] = []
    used_up = 0
    free_prediction, free_person = np.ones(len(keypoints), bool), np.ones(len(people.index), bool)
    for flat in np.argsort(distance, axis=None, kind="stable"):
        if len(matches) == len(free_person) or len(matches) + used_up >= len(free_prediction):
            break
        prediction, person = divmod(int(flat), len(free_person))
        if not overlaps[prediction, person]:
            used_up += spent
        elif free_prediction[prediction] and free_person[person]:
            matches.append((prediction, person))
            free_prediction[prediction] = free_person[person] = False
    return np.array(matches, dtype=np.int64).reshape(-1, 2)


def _pair_distance(keypoints: np.ndarray, people: _People, mode: str) -> np.ndarray:
    """(P, A) float64 distance of every pair over the annotation's visible joints [px].

    `reference`: largest singular value of the (joints x 2) difference, from the closed form for its 2 x 2 Gram matrix;
    `corrected`: root mean square over the visible joints.
    """
    difference = keypoints.astype(np.float64)[:, None] - people.joints.astype(np.float64)
    x, y = np.moveaxis(np.where(people.visible[..., None], difference, 0.0), -1, 0)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    if mode == "corrected":
        return np.sqrt((xx + yy) / people.visible.sum(axis=1))
    return np.sqrt((xx + yy + np.hypot(xx - yy, 2.0 * xy)) / 2.0)


def _pair_overlaps(keypoints: np.ndarray, people: _People, mode: str) -> np.ndarray:
    """(P, A) bool: the joint boxes of a pair overlap enough to be one person. Joints that are not finite never do."""
    all_joints = np.ones((len(keypoints), 1, len(EVALUATED_JOINTS)), dtype=bool)
    boxes = _boxes(keypoints[:, None], all_joints)
    if mode == "reference":
        return _iou(boxes, _boxes(people.joints, np.ones_like(people.visible))) >= MIN_IOU
    person_boxes = _boxes(people.joints, people.visible)
    enough = _iou(_boxes(keypoints[:, None], people.visible), person_boxes) >= MIN_IOU
    contained = (boxes[..., :2] <= person_boxes[..., :2]) & (person_boxes[..., 2:] <= boxes[..., 2:])
    return np.where(people.visible.sum(axis=1) > 1, enough, contained.all(axis=-1))


def _boxes(joints: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(..., 4) float64 left, top, right, bottom of the counted ones of (..., 14, 2) joints."""
    points, counted = joints.astype(np.float64), counted[..., None]
    low = np.where(counted, points, np.inf).min(axis=-2)
    high = np.where(counted, points, -np.inf).max(axis=-2)
    return np.concatenate([low, high], axis=-1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) intersection over union of (..., 4) boxes whose last pixel belongs to them (width = max - min + 1)."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1.0
    shared = size.clip(min=0.0).prod(axis=-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + 1.0).prod(axis=-1) for box in (a, b))
    return shared / (area_a + area_b - shared)


def _count_pairs(depth_id: np.ndarray, age: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of M matched people whose order in depth is right.

    Args:
        depth_id, age: (M,) int64. z: (M,) float32 [m]. All in the order of matching.

    Returns:
        Right pairs (5,), pairs (5,), both by GROUPS, and pairs by RELATIONS (3,); int64.
    """
    first, second = np.triu_indices(len(z), k=1)
    known = (depth_id[first] != UNKNOWN) & (depth_id[second] != UNKNOWN)
    first, second = first[known], second[known]
    step, dz = depth_id[second] - depth_id[first], z[second] - z[first]
    relation = np.stack([step == 0, step < 0, step > 0])
    right = np.stack([np.abs(dz) < DEPTH_MARGIN, dz < -DEPTH_MARGIN, dz > DEPTH_MARGIN])
    in_group = _of_group(age[first]) | _of_group(age[second])
    is_right = (relation & right).any(axis=0)
    return (in_group & is_right).sum(axis=1), in_group.sum(axis=1), relation.sum(axis=1)


def _of_group(age: np.ndarray) -> np.ndarray:
    """(5, n) bool: who of n people belongs to each of GROUPS."""
    return np.concatenate([np.ones((1, len(age)), bool), age == np.arange(len(AGES))[:, None]])


def _pckh(predicted: np.ndarray, joints: np.ndarray, visible: np.ndarray, mode: str) -> np.ndarray:
    """Share of right joints of M matched people, in `reference` -1 for those without two visible joints.

    Args:
        predicted, joints: (M, 14, 2) float32 [px]. visible: (M, 14) bool.

    Returns:
        (<= M,) float32.
    """
    error = np.linalg.norm(predicted - joints, axis=-1)
    box = _boxes(joints, visible).astype(np.float32)
    diagonal = np.linalg.norm(box[:, 2:] - box[:, :2], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = visible & (error / diagonal[:, None] < PCK_FRACTION)
    count = visible.sum(axis=1)
    share = (near.sum(axis=1) / count).astype(np.float32)
    if mode == "corrected":
        return share[(count >= 2) & (diagonal > 0)]
    return np.where(count >= 2, share, np.float32(-1.0))


def _detection(
    matched: int, missed: int, predictions: int, mode: str
) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1; `reference` takes predictions minus missed people for true positives."""
    positives = matched if mode == "corrected" else predictions - missed
    precision = _ratio(positives, positives + predictions - matched)
    recall = _ratio(positives, positives + missed)
    if precision is None or recall is None:
        return precision, recall, None
    return precision, recall, _ratio(2.0 * precision * recall, precision + recall)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _status(matched: int, missed: int, mode: str) -> MetricStatus:
    if matched + missed == 0:
        return MetricStatus.NO_ANNOTATION
    if mode == "reference" and missed == 0:
        return MetricStatus.NOTHING_MISSED
    return MetricStatus.OK


def _summed(tallies: Sequence[ImageTally], name: str, length: int = len(GROUPS)) -> np.ndarray:
    """(length,) int64 sum of one field over images."""
    return np.sum([np.zeros(length, np.int64), *[getattr(tally, name) for tally in tallies]], axis=0)
