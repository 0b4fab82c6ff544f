"""One shard of a merge: predictions judged, held against the released people of their images, the missing ones added.

The manifest holds no keypoints, so released people are seen through their labels: the body's joints, projected with the
label's camera. Released people keep their order and content; added ones follow, best score first. Nothing depends on
the order of the predictions. Knows tables, not how a manifest is stored. Metres in the camera frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dto_pipeline.bounds import implausible_cameras
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, read_vectors, single_array, struct_column
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.manifest_build.build_report import format_counts
from dto_pipeline.data.manifest_build.shard_rows import MASK_OTHER_SIZE, person_columns
from dto_pipeline.data.sources.predictions import NUM_KEYPOINTS
from dto_pipeline.data.sources.rows import (
    BEHIND_CAMERA,
    MASK_DAMAGED,
    ROW_PROBLEMS,
    LabelRows,
    LabelSource,
    SeenRows,
    find_row_problems,
)
from dto_pipeline.maths.person_matching import (
    BodyViews,
    MatchRule,
    Queries,
    assign_people,
    carry_to_camera,
    compare_people,
    pair_people,
    suppress_duplicates,
    view_bodies,
)
from dto_pipeline.models.body import BodyModel
from dto_pipeline.schema import MANIFEST_PERSON, MANIFEST_SCHEMA, MERGE_SCHEMA
from dto_pipeline.status import PredictionStatus


@dataclass
class MergeReport:
    """Counts of one merge. Every prediction is in exactly one count of `outcomes`."""

    fingerprint: str = ""  # of the new manifest
    images: int = 0
    released: int = 0  # people before
    predictions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # PredictionStatus word -> predictions
    refused: Counter[str] = field(default_factory=Counter)  # reason -> predictions
    by_keypoints: int = 0  # predictions compared by what a detector saw
    by_overlap: int = 0  # predictions compared by the boxes of bodies: no visible keypoint
    carried: int = 0  # predictions of another camera than the label's, moved to it
    images_with_added: int = 0
    notes: Counter[str] = field(default_factory=Counter)  # values taken as unknown -> how many

    @property
    def matched(self) -> int:
        return self.outcomes[PredictionStatus.MATCHED]

    @property
    def duplicates(self) -> int:
        return self.outcomes[PredictionStatus.DUPLICATE]

    @property
    def added(self) -> int:
        return self.outcomes[PredictionStatus.ADDED]

    def count(self, status: PredictionStatus, message: str | None, predictions: int) -> None:
        """Add predictions of one outcome."""
        self.outcomes[str(status)] += predictions
        if status not in (PredictionStatus.ADDED, PredictionStatus.MATCHED, PredictionStatus.DUPLICATE):
            self.refused[f"{status}: {message}" if message else str(status)] += predictions

    def to_json(self) -> dict[str, Any]:
        """Plain nested dict, equal for equal input."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("outcomes", "refused", "notes"):
            tree[name] = dict(sorted(tree[name].items()))
        return tree

    def as_table(self) -> str:
        """Lines of name and count for people."""
        lines = [
            ("images", self.images),
            ("released people", self.released),
            ("predictions", self.predictions),
            ("  matched a released person, dropped", self.matched),
            ("  duplicates of other predictions, dropped", self.duplicates),
            *((f"  refused, {reason}", count) for reason, count in sorted(self.refused.items())),
            ("  added", self.added),
            ("images with added people", self.images_with_added),
            ("compared by keypoints", self.by_keypoints),
            ("compared by overlap of bodies", self.by_overlap),
            ("carried to the label's camera", self.carried),
            *sorted(self.notes.items()),
        ]
        return format_counts(f"merged manifest, fingerprint {self.fingerprint[:16]}", lines)


MAX_PREDICTIONS = 1000  # per image: all pairs of them are compared
_IMAGE_NAMES = ("image_file", "image_path", "image_id")  # what a prediction may call its image
_SAME_CAMERA = 1e-3  # largest difference between intrinsics that are the same camera [px]
_ORIGIN = "predictions"
_NOT_IN_FRONT = "no joint is in front of the camera"
_S = PredictionStatus
_VERDICTS: tuple[tuple[PredictionStatus, str | None], ...] = (
    (_S.ADDED, None),
    *((_S.INVALID_LABEL, reason) for reason in ROW_PROBLEMS[1:]),
    (_S.INVALID_LABEL, MASK_DAMAGED),
    (_S.INVALID_LABEL, MASK_OTHER_SIZE),
    (_S.INVALID_LABEL, _NOT_IN_FRONT),
    (_S.IMAGE_UNUSABLE, None),
    (_S.INVALID_CAMERA, None),
    (_S.INVALID_SCORE, None),
    (_S.BELOW_MIN_SCORE, None),
    (_S.CROWD_TOO_LARGE, None),
    (_S.MATCHED, None),
    (_S.DUPLICATE, None),
)
_CODE = {verdict: code for code, verdict in enumerate(_VERDICTS)}
_UNDECIDED = 0  # = added, unless something is found


@dataclass(frozen=True)
class MergeOptions:
    """What is added."""

    min_score: float = 0.5  # predictions of a lower det_score are refused; 4D-Humans' detector threshold
    match: MatchRule = field(default_factory=MatchRule)


@dataclass(frozen=True)
class MergeInputs:
    """Everything predictions are merged from, opened."""

    predictions: LabelSource
    index: ImageIndex  # predictions by image
    image_of: Mapping[str, int]  # name of an image in the prediction file -> image in the index
    body: BodyModel
    options: MergeOptions


@dataclass(frozen=True)
class _Shard:
    """One shard of m images and the n predictions for them."""

    table: pa.Table
    cameras: np.ndarray  # (m, 3, 3) float64 intrinsics of each image
    row: np.ndarray  # (n,) int64 row of the prediction file
    image: np.ndarray  # (n,) int64 row of the shard
    labels: LabelRows
    seen: SeenRows
    keypoints: np.ndarray  # (n, 45, 3) float32 u, v [px], confidence (0 = not told)


def merge_shard(
    table: pa.Table, inputs: MergeInputs, taken: np.ndarray, report: MergeReport
) -> tuple[pa.Table, pa.Table]:
    """Add the people a shard misses.

    Args:
        table: one shard, `schema.MANIFEST_SCHEMA`.
        inputs: what to add from.
        taken: (images of the index,) bool, which were found in a shard so far; this shard's are marked.
        report: counts are added to it.

    Returns:
        the new shard; the outcomes of all predictions for its images, `schema.MERGE_SCHEMA`, by prediction row.
    """
    shard = _load(table, inputs, taken)
    own, verdict = _judge(shard, inputs.options.min_score)
    chosen = _rank(shard, verdict)
    transl, views, found = _stand(shard, chosen, own, inputs.body, report)
    shard.labels.transl[chosen], verdict[chosen] = transl, found  # from here on before the label's camera
    chosen, views = chosen[found == _UNDECIDED], views[torch.from_numpy(found == _UNDECIDED)]
    same_released, same_predicted = (np.full(shard.row.size, -1, dtype=np.int64) for _ in range(2))
    verdict[chosen], same_released[chosen], original = _compare(shard, chosen, views, inputs, report)
    same_predicted[chosen] = np.append(shard.row[chosen], -1)[original]
    _count(report, shard, verdict)
    words, messages = zip(*_VERDICTS, strict=True)
    outcomes = outcome_table(
        shard.row,
        single_array(table["image_id"]).take(pa.array(shard.image)),
        pick_words([str(word) for word in words], verdict),
        pick_words(messages, verdict),
        shard.seen.det_score,
        same_released,
        same_predicted,
    )
    return _append(shard, chosen[verdict[chosen] == _UNDECIDED]), outcomes.take(np.argsort(shard.row))


def outcome_table(*columns: Any) -> pa.Table:
    """Rows of `schema.MERGE_SCHEMA` from its columns, in order."""
    return build_table(MERGE_SCHEMA, dict(zip(MERGE_SCHEMA.names, columns, strict=True)))


def _load(table: pa.Table, inputs: MergeInputs, taken: np.ndarray) -> _Shard:
    """The predictions for the images of a shard; an image of theirs is taken only once."""
    owners, parts = [], [np.zeros(0, dtype=np.int64)]
    offsets, rows = inputs.index.offsets, inputs.index.rows
    for shard_row, spelled in enumerate(zip(*(table[name].to_pylist() for name in _IMAGE_NAMES), strict=True)):
        for image in sorted({inputs.image_of[name] for name in spelled if name in inputs.image_of}):
            if not taken[image]:
                taken[image] = True
                parts.append(rows[offsets[image] : offsets[image + 1]])
                owners.append(np.full(parts[-1].size, shard_row))
    row = np.concatenate(parts)
    labels = inputs.predictions.rows(row)
    assert labels.seen is not None  # both kinds of prediction files always tell it
    keypoints = np.zeros((row.size, NUM_KEYPOINTS, 3), np.float32) if labels.keypoints is None else labels.keypoints
    image_row = np.concatenate([parts[0], *owners])
    return _Shard(table, read_cameras(table), row, image_row, labels, labels.seen, keypoints)


def _judge(shard: _Shard, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Camera (n, 3, 3) each prediction was made for, and its verdict (n,), an index into `_VERDICTS`."""
    table, labels, seen, image = shard.table, shard.labels, shard.seen, shard.image
    size = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)[image]
    own = labels.intrinsics.copy()
    untold = np.isnan(own).all(axis=(1, 2))
    own[untold] = shard.cameras[image[untold]]
    centred = np.isnan(own[:, :2, 2]).all(axis=1)
    own[centred, :2, 2] = size[centred] / 2
    plain = (own[:, [0, 1, 2, 2], [1, 0, 0, 1]] == 0).all(axis=1) & (own[:, 2, 2] == 1)
    pinhole = np.isfinite(own).all(axis=(1, 2)) & plain & (own[:, [0, 1], [0, 1]] > 0).all(axis=1)
    pinhole &= ~implausible_cameras(own, size[:, 0], size[:, 1])
    other_size = (seen.mask_width > 0) & ((seen.mask_width != size[:, 0]) | (seen.mask_height != size[:, 1]))
    fault = find_row_problems(labels.pose, labels.betas, labels.transl)
    checks = {
        (_S.IMAGE_UNUSABLE, None): table["problem_status"].is_valid().to_numpy()[image],
        (_S.INVALID_SCORE, None): ~np.isfinite(seen.det_score),
        (_S.BELOW_MIN_SCORE, None): seen.det_score < min_score,
        **{(_S.INVALID_LABEL, ROW_PROBLEMS[code]): fault == code for code in range(1, len(ROW_PROBLEMS))},
        (_S.INVALID_CAMERA, None): ~pinhole,
        (_S.INVALID_LABEL, MASK_DAMAGED): seen.mask_damaged,
        (_S.INVALID_LABEL, MASK_OTHER_SIZE): other_size,
    }
    return own, np.select(list(checks.values()), [_CODE[verdict] for verdict in checks], default=_UNDECIDED)


def _rank(people: _Shard, verdict: np.ndarray) -> np.ndarray:
    """Positions (k,) of the sound predictions: by image, best score first, ties by content; marks what is too many."""
    sound = np.flatnonzero(verdict == _UNDECIDED)
    labels, seen = people.labels, people.seen
    numbers = (labels.transl, labels.pose, labels.betas, labels.bbox_xyxy, people.keypoints.reshape(-1, 135))
    content = np.concatenate([*numbers, seen.age_years[:, None], seen.male_prob[:, None]], axis=1)[sound]
    words = np.ascontiguousarray(content, dtype="<f4").view(np.dtype((np.void, content.shape[1] * 4))).ravel()
    masks = np.array(seen.mask_rle.fill_null(b"").take(pa.array(sound)).to_pylist(), dtype=object)
    ties = [np.unique(values, return_inverse=True)[1].ravel() for values in (masks, words)]
    order = sound[np.lexsort((*ties, -seen.det_score[sound], people.image[sound]))]
    counts = np.bincount(people.image[order])
    place = np.arange(order.size) - (np.cumsum(counts) - counts)[people.image[order]]
    verdict[order[place >= MAX_PREDICTIONS]] = _CODE[_S.CROWD_TOO_LARGE, None]
    return order[place < MAX_PREDICTIONS]


def _stand(
    shard: _Shard, chosen: np.ndarray, own: np.ndarray, body: BodyModel, report: MergeReport
) -> tuple[np.ndarray, BodyViews, np.ndarray]:
    """The chosen predictions before the label's camera: transl (k, 3) float32, views, verdict (k,)."""
    labels, cameras = shard.labels, shard.cameras[shard.image[chosen]]
    joints = _joints(body, labels.pose[chosen], labels.betas[chosen], labels.transl[chosen])
    transl = torch.from_numpy(labels.transl[chosen])
    other = (np.abs(own[chosen] - cameras) > _SAME_CAMERA).any(axis=(1, 2))
    camera = torch.from_numpy(cameras)
    carried = carry_to_camera(transl.double(), joints[:, 0], torch.from_numpy(own[chosen]), camera).float()
    moved = torch.where(torch.from_numpy(other)[:, None], carried, transl)
    views = view_bodies(joints + (moved.double() - transl.double())[:, None], camera)
    report.carried += int(other.sum())
    behind = ~(moved[:, 2] > 0).numpy() | ~moved.isfinite().all(dim=1).numpy()
    codes = [_CODE[_S.INVALID_LABEL, reason] for reason in (BEHIND_CAMERA, _NOT_IN_FRONT)]
    return moved.numpy(), views, np.select((behind, views.box.isnan().any(dim=1).numpy()), codes, default=_UNDECIDED)


def _compare(
    shard: _Shard, chosen: np.ndarray, views: BodyViews, inputs: MergeInputs, report: MergeReport
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Verdict (k,) of each chosen prediction, source_row (k,) of the released person it is, and which other it is."""
    rule, image = inputs.options.match, shard.image[chosen]
    points = torch.from_numpy(shard.keypoints[chosen]).double()
    visible = points[..., 2] >= rule.min_confidence
    queries = Queries(views, points[..., :2], visible)
    seen = int(visible.any(dim=1).sum())
    report.by_keypoints += seen
    report.by_overlap += chosen.size - seen
    references, source_row, released = _view_released(shard, np.unique(image), inputs.body)
    here = torch.from_numpy(np.bincount(image, minlength=shard.table.num_rows))
    share, distance = compare_people(queries, references, pair_people(here, released), rule)
    partner = assign_people(share, distance, here, released, rule)
    original = _find_duplicates(queries, here, partner >= 0, rule)
    verdict = np.select((partner >= 0, original >= 0), (_CODE[_S.MATCHED, None], _CODE[_S.DUPLICATE, None]), _UNDECIDED)
    return verdict, np.append(source_row, -1)[partner], original.numpy()


def _find_duplicates(queries: Queries, here: torch.Tensor, matched: torch.Tensor, rule: MatchRule) -> torch.Tensor:
    """(k,) position of the prediction each one repeats, -1 = none: matched ones come first, then the given order."""
    image = torch.repeat_interleave(torch.arange(here.numel()), here)
    order = torch.argsort(image * 2 + ~matched, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel())
    first, second = pair_people(here, here)
    open_pairs = ~matched[first] & (first != second)
    pairs = first[open_pairs], second[open_pairs]
    share, _ = compare_people(queries, queries.views, pairs, rule)
    return suppress_duplicates(share, pairs, place - (here.cumsum(0) - here)[image], rule)


def _view_released(shard: _Shard, images: np.ndarray, body: BodyModel) -> tuple[BodyViews, np.ndarray, torch.Tensor]:
    """Released people of some images whose labels can be seen: views, source_row (r,), people of each image (m,)."""
    persons = single_array(shard.table["persons"])
    owner = np.repeat(np.arange(len(persons)), persons.value_lengths().to_numpy(zero_copy_only=False))
    asked = np.flatnonzero(np.isin(owner, images))
    people = persons.flatten().take(pa.array(asked))
    label = {name: read_vectors(people.field(name)) for name in ("pose", "betas", "transl")}
    sound = find_row_problems(**label) == 0
    owner = owner[asked[sound]]
    joints = _joints(body, *(values[sound] for values in label.values()))
    views = view_bodies(joints, torch.from_numpy(shard.cameras[owner]))
    source_row = people.field("source_row").to_numpy(zero_copy_only=False)[sound]
    return views, source_row, torch.from_numpy(np.bincount(owner, minlength=len(persons)))


def _joints(body: BodyModel, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> torch.Tensor:
    """(n, 45, 3) float64 [m], also of nobody."""
    if not len(pose):
        return torch.zeros(0, NUM_KEYPOINTS, 3, dtype=torch.float64)
    return body.joints(torch.from_numpy(pose), torch.from_numpy(betas), torch.from_numpy(transl)).double()


def _append(shard: _Shard, added: np.ndarray) -> pa.Table:
    """The shard with predictions (their positions, best first) after the released people of their images."""
    if added.size == 0:
        return shard.table
    table, image = shard.table, shard.image[added]
    persons = single_array(table["persons"])
    released = persons.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    new = np.bincount(image, minlength=released.size)
    index = released[image] + np.arange(added.size) - (np.cumsum(new) - new)[image]
    unknown, nothing = np.full(added.size, -1), pa.nulls(added.size, pa.string())
    columns = person_columns(shard.labels, shard.seen, added, index, unknown, nothing)
    people = struct_column(MANIFEST_PERSON, columns)
    owner = np.concatenate([np.repeat(np.arange(released.size), released), image])
    items = pa.concat_arrays([persons.flatten().cast(MANIFEST_PERSON), people])
    joined = ragged_column(released + new, items.take(pa.array(np.argsort(owner, kind="stable"))), persons.type)
    told = {name: table[name] for name in table.column_names} | _origins(shard, added)
    return build_table(MANIFEST_SCHEMA, {**told, "num_persons": released + new, "persons": joined})


def _origins(shard: _Shard, added: np.ndarray) -> dict[str, pa.Array]:
    """Where masks and attributes of each image come from, now that some came with the predictions."""
    seen, image = shard.seen, shard.image
    brings = {
        "mask_origin": seen.mask_height[added] > 0,
        "attribute_origin": np.isfinite(seen.age_years[added]) | np.isfinite(seen.male_prob[added]),
    }
    origins = {}
    for name, some in brings.items():
        before = single_array(shard.table[name])
        longer = pc.coalesce(pc.binary_join_element_wise(before, _ORIGIN, "+"), _ORIGIN)
        origins[name] = pc.if_else(pa.array(np.isin(np.arange(len(before)), image[added[some]])), longer, before)
    return origins


def _count(report: MergeReport, shard: _Shard, verdict: np.ndarray) -> None:
    report.images += shard.table.num_rows
    report.released += int(shard.table["num_persons"].to_numpy().sum())
    report.predictions += verdict.size
    for code, predictions in enumerate(np.bincount(verdict, minlength=len(_VERDICTS)).tolist()):
        if predictions:
            report.count(*_VERDICTS[code], predictions)
    report.images_with_added += np.unique(shard.image[verdict == _UNDECIDED]).size
    report.notes.update(shard.seen.notes)
