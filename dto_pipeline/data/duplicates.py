"""Find label rows of an image that show the same person, as annotators and detectors leave them.

Two rows show one person if place, pose, shape and (where both are known) box are nearly the same. Two real people are
never that alike: people so close to each other touch, and then their poses differ; somebody hidden behind another of
the same outline is not labelled. Pure arrays, all images at once. Metres, radians, pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dto_pipeline.maths.person_matching import box_iou, suppress_duplicates

MAX_COMPARED = 1000  # people of one image; the rows of larger images are not compared
_PAIRS_AT_ONCE = 1 << 20  # pairs listed at once, which bounds memory ...
_POSES_AT_ONCE = 1 << 14  # ... and pairs whose poses are compared at once
_EQUAL = 1e-5  # rows whose numbers all differ by at most this are copies, whatever their boxes say
_JOINTS = 24


@dataclass(frozen=True)
class SamePerson:
    """Largest differences between two label rows of one person; all must hold.

    Networks that detect a person twice differ by a few degrees, a few centimetres sideways and a few percent of the
    distance. Different people of synthetic crowds that stand still differ by at least 0.11 rad in pose (141 people, all
    pairs) and stand 0.5 m apart.
    """

    sideways: float = 0.10  # [m] across the line of sight: less than half a torso's width, a toddler's included
    depth: float = 0.15  # [m] along it: less than a torso's depth ...
    depth_share: float = 0.03  # ... or this share of the distance, by which labels of far people scatter
    mean_angle: float = 0.15  # [rad] mean over the 24 joints of the angle between rotations
    root_angle: float = 0.35  # [rad] of the body as a whole: people who hug face each other
    shape: float = 1.0  # of every beta: a child is not an adult
    kid_axis: float = 0.3  # of the last beta
    box_overlap: float = 0.5  # intersection over union, where both boxes are known


@dataclass(frozen=True)
class LabelledPeople:
    """n label rows, image by image."""

    pose: np.ndarray  # (n, 72) [rad]
    betas: np.ndarray  # (n, 11)
    transl: np.ndarray  # (n, 3) [m]
    bbox_xyxy: np.ndarray  # (n, 4) [px], NaN = unknown
    det_score: np.ndarray  # (n,), NaN = not from a detector
    has_mask: np.ndarray  # (n,) bool
    usable: np.ndarray  # (n,) bool: the others are not compared
    counts: np.ndarray  # (m,) int people of each image


def find_duplicates(people: LabelledPeople, rule: SamePerson = SamePerson()) -> np.ndarray:
    """(n,) int64 position of the row that each row repeats, -1 = none.

    Of the rows of one person the best is kept: one with a mask, else a released label rather than a detection, else the
    higher score, else the first. Each other row repeats the best kept row that shows the same person.
    """
    image = np.repeat(np.arange(people.counts.size), people.counts)
    rank = np.empty(image.size, np.int64)
    score = np.where(np.isnan(people.det_score), np.inf, people.det_score)
    rank[np.lexsort((-score, ~people.has_mask, image))] = np.arange(image.size)
    same = [_same_pairs(people, pairs, rule) for pairs in _pairs(people.counts)]
    first, second = np.concatenate([np.zeros((2, 0), np.int64), *same], axis=1)
    better, worse = (np.where(rank[first] < rank[second], *sides) for sides in ((first, second), (second, first)))
    return suppress_duplicates(better, worse, rank)


def _pairs(counts: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs (2, k) of rows of one image, in blocks."""
    starts = np.cumsum(counts) - counts
    for size in np.unique(counts[(counts > 1) & (counts <= MAX_COMPARED)]).tolist():
        pairs, begins = np.stack(np.triu_indices(size, 1)), starts[counts == size]
        for some in np.split(begins, range(0, begins.size, max(1, _PAIRS_AT_ONCE // pairs.shape[1]))):
            block = (some[:, None] + pairs[:, None]).reshape(2, -1)
            yield from np.split(block, range(_POSES_AT_ONCE, block.shape[1], _POSES_AT_ONCE), axis=1)


def _same_pairs(people: LabelledPeople, pairs: np.ndarray, rule: SamePerson) -> np.ndarray:
    """Those of the pairs (2, k) that show one person: they are near, and pose, shape and box are alike, or all numbers
    are equal."""
    pairs = pairs[:, people.usable[pairs].all(axis=0)]
    one, other = people.transl[pairs].astype(np.float64)
    z = np.minimum(one[:, 2], other[:, 2])
    with np.errstate(over="ignore", invalid="ignore"):
        aside = np.linalg.norm(one[:, :2] / one[:, 2:] - other[:, :2] / other[:, 2:], axis=1) * z
        apart = np.abs(one[:, 2] - other[:, 2])
        pairs = pairs[:, (aside <= rule.sideways) & (apart <= np.maximum(rule.depth, rule.depth_share * z))]
        first, second = pairs
        shape = np.abs(people.betas[first] - people.betas[second])
        alike = (shape[:, :-1] <= rule.shape).all(axis=1) & (shape[:, -1] <= rule.kid_axis)
        dot = np.abs((_quaternions(people.pose[first]) * _quaternions(people.pose[second])).sum(axis=-1))
        angle = 2 * np.arccos(dot.clip(max=1))  # (k, 24) between the rotations
        alike &= (angle.mean(axis=1) <= rule.mean_angle) & (angle[:, 0] <= rule.root_angle)
        alike &= ~(box_iou(people.bbox_xyxy[first], people.bbox_xyxy[second]) < rule.box_overlap)
        numbers = (people.pose, people.betas, people.transl)
        copies = [np.abs(values[first] - values[second]).max(axis=1) <= _EQUAL for values in numbers]
    return pairs[:, alike | np.logical_and.reduce(copies)]


def _quaternions(pose: np.ndarray) -> np.ndarray:
    vector = pose.reshape(-1, _JOINTS, 3).astype(np.float64)
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    return np.concatenate([np.cos(half), vector / 2 * np.sinc(half / np.pi)], axis=-1)
