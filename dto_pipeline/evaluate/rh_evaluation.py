"""RelativeHuman's metrics: ordinal depth (PCDR at 0.2 m, all and by age), mPCKh at 0.6, precision, recall and F1.

`evaluate_relative_human` takes arrays, `evaluate_rh` the bodies of any file; there a predicted person that cannot be
used (not finite, behind the camera) counts as predicted and matches nobody. Mode `reference` equals the published
metric with its faults. (The published code fails if nobody is missed; here the status says so.) Mode `corrected` is the
same metric with the six corrections of docs/evaluation.md. Positions in pixels, z in metres.

PCDR is from Sun et al., "Putting People in their Place" (RelativeHuman); mPCKh counts joints within 0.143 of the
diagonal of a person's visible box, 0.6 of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.people import People
from dto_pipeline.data.sources.relative_human import AGES, EVALUATED_JOINTS, UNKNOWN, Annotation, evaluated_joints
from dto_pipeline.evaluate.evaluation import (
    Evaluation,
    EvaluationError,
    Measure,
    Statistic,
    Sums,
    mean_of,
    ratio,
)
from dto_pipeline.evaluate.matching import by_image, join_images, match_pairs, pair_distance
from dto_pipeline.maths.camera import project
from dto_pipeline.maths.person_matching import box_iou, joint_boxes
from dto_pipeline.models.body import BodyModel

MODES = ("reference", "corrected")
GROUPS = ("all", *AGES)  # people of unknown age count in `all` only
RELATIONS = ("same", "nearer", "farther")  # of the later person of a pair, seen from the earlier one
DEPTH_MARGIN = np.float32(0.2)  # same layer: closer than this; else farther apart than this [m]
MISSED_WEIGHT = 0.3  # a missed person counts as so many wrong pairs
PCK_FRACTION = np.float32(0.143)  # of the diagonal of the visible box
MIN_IOU = 0.05  # boxes overlapping less cannot belong to one person
EXTRA_HEAD_TOP, EXTRA_NECK = 3, 2  # rows of J_regressor_extra
Z_GUARD = 1e-6  # added to z before dividing, as in the recorded cases [m]


@dataclass(frozen=True)
class EvaluatedImage:
    """One image: its annotated people, and P predicted ones."""

    name: str  # file name; its length decides between the two layouts of 19 joints
    annotations: tuple[Annotation, ...]
    keypoints: np.ndarray  # (P, 14, 2) [px], in the order of EVALUATED_JOINTS
    depth: np.ndarray  # (P,) z of the translation [m]
    predicted: bool = True  # False: there is no prediction for this image


def _pcdr(group: str) -> Statistic:
    def of(sums: Sums) -> np.ndarray:
        pairs = sums[f"pairs_{group}"]
        counted = np.where(pairs > 0, pairs + MISSED_WEIGHT * sums[f"missed_{group}"], 0.0)
        return 100 * ratio(sums[f"correct_{group}"], counted)

    return of


def _f1(sums: Sums) -> np.ndarray:
    precision, recall = (ratio(sums["positives"], sums[whole]) for whole in ("judged", "wanted"))
    return 100 * ratio(2 * precision * recall, precision + recall)


MEASURES = (
    *(Measure(f"pcdr_{group}", f"PCDR at 0.2 m, {group}", "%", _pcdr(group)) for group in GROUPS),
    Measure("mpckh", "mPCKh at 0.6", "%", mean_of("pckh", "pckh_people", 100)),
    Measure("precision", "precision", "%", mean_of("positives", "judged", 100)),
    Measure("recall", "recall", "%", mean_of("positives", "wanted", 100)),
    Measure("f1", "F1", "%", _f1),
)


@dataclass(frozen=True)
class RelativeHumanResult:
    """The metrics of N images; an image may appear more than once."""

    mode: str
    matches: list[np.ndarray]  # of each image: (M, 2) int64 prediction and annotation, in the order found
    missed: list[np.ndarray]  # of each image: (K,) int64 annotations
    sums: dict[str, np.ndarray]  # name -> (N,); `MEASURES` and counts are computed from them

    def count(self, name: str) -> int:
        """Sum over images."""
        return int(np.sum(self.sums.get(name, 0)))

    def share(self, key: str) -> float | None:
        """One of `MEASURES` as a fraction, None = nothing to divide by; the published tool rounds precision, recall and
        F1, this does not."""
        if not self.sums:
            return None
        pooled = {name: values.sum() for name, values in self.sums.items()}
        (value,) = (float(measure.of(pooled)) / 100 for measure in MEASURES if measure.key == key)
        return None if np.isnan(value) else value

    @property
    def status(self) -> str:
        """Whether the numbers mean something: ``ok``; ``no_annotation``: only the counts do; or, in `reference`,
        ``nothing_missed``: the published metric raises there, the numbers are by formula."""
        if self.count("matched") + self.count("missed_all") == 0:
            return "no_annotation"
        return "nothing_missed" if self.mode == "reference" and self.count("missed_all") == 0 else "ok"


def evaluate_relative_human(images: Sequence[EvaluatedImage], mode: str = "corrected") -> RelativeHumanResult:
    """Metrics of a data set in one of `MODES` (see the module).

    Raises:
        EvaluationError: an unknown mode.
        KeypointLayoutError: an annotation with neither 14 nor 19 joints.
    """
    if mode not in MODES:
        raise EvaluationError(f"mode is {mode!r}; choose from {MODES}")
    parts = [_count_image(image, mode) for image in images]
    names = parts[0][2] if parts else ()
    sums = {name: np.array([own[name] for _, _, own in parts], np.float64) for name in names}
    return RelativeHumanResult(mode, [matches for matches, _, _ in parts], [missed for _, missed, _ in parts], sums)


def _count_image(image: EvaluatedImage, mode: str) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Matches, missed annotations and sums of one image, see `RelativeHumanResult`."""
    index, joints, visible = _select_people(image, mode)
    predictions = len(image.depth) if image.predicted else 0
    keypoints = np.asarray(image.keypoints, dtype=np.float32)[:predictions]
    with np.errstate(invalid="ignore"):  # joints that are not finite match nobody
        distance = pair_distance(keypoints, joints, visible, mode == "reference")
        overlaps = _pair_overlaps(keypoints, joints, visible, mode)
        found, owner = match_pairs(distance, overlaps, mode == "reference").T
    depth_id, age = (
        np.array([getattr(image.annotations[i], name) for i in index], np.int64) for name in ("depth_id", "age")
    )
    is_missed = ~np.isin(np.arange(len(index)), owner)
    z = np.asarray(image.depth, dtype=np.float32)[found]
    correct, pairs, relations = _count_pairs(depth_id[owner], age[owner], z)
    missed = _of_group(age[is_missed]).sum(axis=1)
    pckh = _pckh(keypoints[found], joints[owner], visible[owner], mode)
    # true positives; `reference` takes predictions minus missed people for them
    positives = len(found) if mode == "corrected" else predictions - missed[0]
    sums = {
        **{f"correct_{group}": correct[g] for g, group in enumerate(GROUPS)},
        **{f"pairs_{group}": pairs[g] for g, group in enumerate(GROUPS)},
        **{f"missed_{group}": missed[g] for g, group in enumerate(GROUPS)},
        **dict(zip(RELATIONS, relations, strict=True)),
        "matched": len(found),
        "predictions": predictions,
        "extra": predictions - len(found),
        "positives": positives,
        "judged": positives + predictions - len(found),
        "wanted": positives + missed[0],
        "pckh": pckh.sum(dtype=np.float64),
        "pckh_people": len(pckh),
    }
    return np.stack([found, index[owner]], axis=1), index[is_missed], sums


def _select_people(image: EvaluatedImage, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The A annotated people that are evaluated: (A,) int64 annotation whose layer and age are read, (A, 14, 2) float32
    joints [px], (A, 14) bool visible. In `reference`, people who are dropped still shift the first of these."""
    index = np.array([i for i, a in enumerate(image.annotations) if a.kp2d is not None], dtype=np.int64)
    read = [evaluated_joints(image.annotations[i].kp2d, image.name) for i in index]
    joints = np.array([one for one, _ in read], np.float32).reshape(-1, len(EVALUATED_JOINTS), 2)
    visible = np.array([seen for _, seen in read], bool).reshape(joints.shape[:2])
    taken = visible.any(axis=1)
    if mode == "reference" and not image.predicted:
        return index, joints, visible
    return index[taken] if mode == "corrected" else index[: taken.sum()], joints[taken], visible[taken]


def _pair_overlaps(keypoints: np.ndarray, joints: np.ndarray, visible: np.ndarray, mode: str) -> np.ndarray:
    """(P, A) bool: the joint boxes of a pair overlap enough to be one person; never where a joint is not finite."""
    boxes = joint_boxes(keypoints, np.ones(keypoints.shape[:2], bool))[:, None]
    if mode == "reference":
        return box_iou(boxes, joint_boxes(joints), border=1.0) >= MIN_IOU
    person_boxes = joint_boxes(joints, visible)
    enough = box_iou(joint_boxes(keypoints[:, None], visible), person_boxes, border=1.0) >= MIN_IOU
    contained = (boxes[..., :2] <= person_boxes[..., :2]) & (person_boxes[..., 2:] <= boxes[..., 2:])
    return np.where(visible.sum(axis=1) > 1, enough, contained.all(axis=-1))


def _count_pairs(depth_id: np.ndarray, age: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right pairs (5,) and pairs (5,) by GROUPS, and pairs by RELATIONS (3,), of M matched people in their order."""
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
    """(5, n) bool: which of n people belong to each of GROUPS."""
    return np.concatenate([np.ones((1, len(age)), bool), age == np.arange(len(AGES))[:, None]])


def _pckh(predicted: np.ndarray, joints: np.ndarray, visible: np.ndarray, mode: str) -> np.ndarray:
    """(<= M,) share of right joints of M matched people, in `reference` -1 for those without two visible joints."""
    error = np.linalg.norm(predicted - joints, axis=-1)
    box = joint_boxes(joints, visible).astype(np.float32)
    diagonal = np.linalg.norm(box[:, 2:] - box[:, :2], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = visible & (error / diagonal[:, None] < PCK_FRACTION)
    count = visible.sum(axis=1)
    share = (near.sum(axis=1) / count).astype(np.float32)
    if mode == "corrected":
        return share[(count >= 2) & (diagonal > 0)]
    return np.where(count >= 2, share, np.float32(-1.0))


def project_bodies(
    bodies: Sequence[np.ndarray], intrinsics: np.ndarray, body: BodyModel, regressor: np.ndarray
) -> np.ndarray:
    """The 14 evaluated joints of Q bodies in their images.

    Args:
        bodies: pose (Q, 72), betas (Q, 10 or 11), transl (Q, 3) [m]; intrinsics: (Q, 3, 3) float32 [px].
        regressor: (9, V) J_regressor_extra.

    Returns:
        (Q, 14, 2) float32 [px].
    """
    pose, betas, transl, camera = (torch.from_numpy(np.asarray(values)) for values in (*bodies, intrinsics))
    betas = torch.nn.functional.pad(betas, (0, NUM_BETAS - betas.shape[-1]))
    if not len(pose):
        return np.zeros((0, len(EVALUATED_JOINTS), 2), dtype=np.float32)
    rows = torch.as_tensor(regressor[[EXTRA_HEAD_TOP, EXTRA_NECK]], dtype=pose.dtype)
    points = body.learnt_joints(pose, betas, transl, rows)
    points[..., 2] += Z_GUARD
    return project(points, camera[:, None]).numpy().astype(np.float32)


def evaluate_rh(
    people: People,
    annotations: Mapping[str, Sequence[Annotation]],
    body: BodyModel,
    regressor: np.ndarray,
    mode: str,
) -> Evaluation:
    """RelativeHuman's metric of predicted bodies, in one of `MODES`.

    Args:
        people: predictions; images that are not annotated are counted and left out.
        annotations: image -> people, as `data.sources.relative_human` reads them.
        body: model of the predictions; regressor: (9, V) J_regressor_extra of that model.

    Raises:
        EvaluationError: predictions without a camera, or annotations without joints.
        ImageJoinError: no image in common.
    """
    join = join_images(people.images, list(annotations))
    keypoints, own = _keypoints(people, body, regressor), by_image(people.owner, people.num_images)
    images = []
    for (name, listed), place in zip(annotations.items(), join.found.tolist(), strict=True):
        rows = own[place] if place >= 0 else np.zeros(0, np.int64)
        images.append(EvaluatedImage(name, tuple(listed), keypoints[rows], people.transl[rows, 2], place >= 0))
    result = evaluate_relative_human(images, mode)
    if result.status == "no_annotation":
        raise EvaluationError("no annotated person has a visible joint, so nobody can be found; expected kp2d (14, 3)")
    annotated = [person for listed in annotations.values() for person in listed]
    counts = {
        "images annotated": len(annotations),
        "images without a prediction": int((join.found < 0).sum()),
        "images predicted that are not annotated (left out)": join.unmatched,
        "people annotated": len(annotated),
        "people annotated without keypoints (cannot be found)": sum(person.kp2d is None for person in annotated),
        "people predicted": result.count("predictions"),
        "matched": result.count("matched"),
        "missed": result.count("missed_all"),
        "extra": result.count("extra"),
        "people predicted in images that are not annotated (left out)": int((join.true[people.owner] < 0).sum()),
        "people predicted that cannot be used": int((~people.usable).sum()),
        **{f"pairs: {name}": result.count(name) for name in RELATIONS},
    }
    status = "" if result.status == "ok" else f"status of the metric: {result.status}"
    title, notes = f"{people.source}, RelativeHuman in mode {mode}", (status, join.note, *people.problems[:5])
    settings = {"mode": mode, "body_sha256": body.sha256}
    return Evaluation(title, list(annotations), MEASURES, {mode: result.sums}, counts, notes, settings)


def _keypoints(people: People, body: BodyModel, regressor: np.ndarray) -> np.ndarray:
    """(n, 14, 2) float32 [px]; NaN for people that cannot be used."""
    usable = people.usable
    if not np.isfinite(people.intrinsics[usable]).all():
        raise EvaluationError(
            f"{people.source} does not give the whole camera of its people, so they cannot be projected; add "
            "`intrinsics` (RelativeHuman's annotations hold no image size)"
        )
    points = np.full((people.num_people, len(EVALUATED_JOINTS), 2), np.nan, np.float32)
    kept = people.take(usable)
    bodies, cameras = (kept.pose, kept.betas, kept.transl), kept.intrinsics.astype(np.float32)
    points[usable] = project_bodies(bodies, cameras, body, regressor)
    return points
