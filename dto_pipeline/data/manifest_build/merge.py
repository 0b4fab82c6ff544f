"""Add predicted people to a manifest of released labels where the labels miss them.

A prediction of a person who is in the labels already is dropped, the others are added; `maths.person_matching` decides
who is the same person. The manifest holds no keypoints; in their place the joints of the labelled bodies are projected
with the label's camera. Released people keep their order and content; added ones follow, best score first, whatever the
order of the predictions. Memory holds the predictions and one shard. A report and the outcome of every prediction are
written next to the new manifest. Metres in the camera frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import build_table, ragged_column, single_array, struct_column
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.image_index import WHOLE_NAME, index_images
from dto_pipeline.data.label_files import check_one_body, flatten_table
from dto_pipeline.data.manifest import Manifest, ManifestError, check_outputs, report_path
from dto_pipeline.data.manifest_build.build_report import MergeReport
from dto_pipeline.data.manifest_build.builder import PERSON_PROBLEMS, judge_cameras, judge_people, person_columns
from dto_pipeline.data.manifest_build.writer import describe_files, open_manifest_writer
from dto_pipeline.data.parquet import new_parquet
from dto_pipeline.data.people import FileKind, recognise
from dto_pipeline.data.sources.dto_labels import open_dto_labels
from dto_pipeline.data.sources.predictions import NUM_KEYPOINTS, open_predictions, order_keypoints
from dto_pipeline.data.sources.rows import (
    BEHIND_CAMERA,
    ROW_PROBLEMS,
    LabelFileError,
    LabelRows,
    LabelSource,
    SourceOptions,
    count_misplaced,
    find_row_problems,
    judge_boxes,
    pick,
)
from dto_pipeline.data.storage import Location, as_location, base_name, beside, fetch, write_bytes, written
from dto_pipeline.data.tars import carry_tar_index
from dto_pipeline.maths.camera import carry_to_camera
from dto_pipeline.maths.person_matching import (
    HEAD_FACTOR,
    MIN_CONFIDENCE,
    MIN_SHARE,
    BodyViews,
    assign_people,
    compare_people,
    pairs_within,
    suppress_duplicates,
    view_bodies,
)
from dto_pipeline.models.body import BodyModel
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import MANIFEST_PERSON, MANIFEST_SCHEMA, MERGE_SCHEMA, MERGE_SCHEMA_NAME
from dto_pipeline.status import PredictionStatus as Status

MIN_SCORE = 0.5  # predictions of a lower det_score are refused; 4D-Humans' detector threshold
MAX_PREDICTIONS = 1000  # per image: all pairs of them are compared
_IMAGE_NAMES = ("image_file", "image_path", "image_id")  # what a prediction may call its image
_SAME_CAMERA = 1e-3  # largest difference between intrinsics that are the same camera [px]
_ORIGIN = "predictions"
_ADDED, _MATCHED, _DUPLICATE = map(str, (Status.ADDED, Status.MATCHED, Status.DUPLICATE))
# A prediction's verdict is the word of its status, followed by ": reason" for an unusable label.


def merge_predictions(
    manifest: Location,
    predictions: Location,
    out: Location,
    body: BodyModel,
    min_score: float = MIN_SCORE,
    progress: bool = True,
) -> MergeReport:
    """Write a new manifest: the old one with the people it misses.

    Args:
        manifest: made by `builder.build_manifest`, or by an earlier merge.
        predictions: npz or Parquet, see `data.sources.predictions`, or a run of `dto predict`, or its label files;
            every person needs a det_score.
        out: the new manifest; beside it <out>.report.json and <out>.predictions.parquet, the outcomes, are written.
        body: model the labels and the predictions belong to.
        min_score: least det_score of an added person.

    Raises:
        ManifestError: the manifest cannot be used, or `out` would replace an input.
        LabelFileError, LabelsError: the predictions cannot be used as a whole, or are of another body model.
    """
    manifest, predictions, out = (as_location(place) for place in (manifest, predictions, out))
    check_outputs(out, (outcomes_path(out), report_path(out)), (manifest, predictions))
    with ExitStack() as stack:
        source = Manifest.open(fetch(manifest, stack, ManifestError))
        try:
            earlier = list(parse_json(source.metadata.get("merged", "[]")))
            bodies = {f"the people merged into {source.path}": str(entry["body_sha256"]) for entry in earlier}
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{source.path}: its footer lists merges wrongly ({error}); build it again") from error
        people = _open_people(fetch(predictions, stack, LabelFileError), bodies, body)
        merge = _Merge(people, body, min_score)
        carry_tar_index(manifest, out)
        with open_manifest_writer(out) as writer:
            for shard in tqdm(range(source.num_shards), unit="shard", desc=source.subset, disable=not progress):
                writer.add(merge.merge_shard(source.read_shard(shard)))
            merge.report.fingerprint = writer.fingerprint
            footer = {"schema": MERGE_SCHEMA_NAME, "manifest_fingerprint": writer.fingerprint}
            outcomes = merge.list_outcomes().replace_schema_metadata(footer)
            with written(outcomes_path(out)) as local, new_parquet(local, outcomes.schema) as file:
                file.write_table(outcomes)  # gets its name before the manifest, as the report does
            rule = {"head_factor": HEAD_FACTOR, "min_share": MIN_SHARE, "min_confidence": MIN_CONFIDENCE}
            entry = {
                "manifest": {
                    **describe_files(base_name(manifest), [Path(source.path)]),
                    "fingerprint": source.fingerprint,
                },
                "predictions": describe_files(base_name(predictions), people.files),
                "body_sha256": body.sha256,
                "options": {"min_score": min_score, "match": rule},
                "outcomes": merge.report.outcomes,
            }
            writer.finish({"merged": [*earlier, entry]}, source.metadata)
            write_bytes(report_path(out), json_bytes(merge.report.to_json()))
    return merge.report


def outcomes_path(manifest: Location) -> Location:
    """Where the outcome of every prediction lies: next to the merged manifest."""
    return beside(as_location(manifest), ".predictions.parquet")


def _open_people(path: Path, bodies: dict[str, str], body: BodyModel) -> LabelSource:
    """Open labels or a prediction file. Raises: LabelFileError: the body model of the labels, or one of `bodies` (whose
    -> sha256), is known and is not `body`."""
    if recognise(path) is FileKind.LABELS:
        people = open_dto_labels(path, SourceOptions())
        bodies = {**bodies, f"{people.files[0]}": check_one_body(people.files)}
    else:
        people = open_predictions(path)
    for what, sha in bodies.items():
        if sha and sha != body.sha256:
            raise LabelFileError(
                f"{what} belong to the body model of sha256 {sha}, body.model_path names that of {body.sha256}; name "
                "the body model of both (--set body.model_path=PATH)"
            )
    return people


@dataclass(frozen=True)
class _Shard:
    """One shard of m images and the n predictions for them."""

    table: pa.Table
    cameras: np.ndarray  # (m, 3, 3) float64 intrinsics of each image
    row: np.ndarray  # (n,) int64 row of the prediction file
    image: np.ndarray  # (n,) int64 row of the shard
    labels: LabelRows
    keypoints: np.ndarray  # (n, 45, 3) float32 u, v [px], confidence (0 = unknown)


class _Merge:
    """Merges predictions into shards one after the other; keeps the outcome of each of the N predictions."""

    def __init__(self, people: LabelSource, body: BodyModel, min_score: float) -> None:
        self.report = MergeReport()
        self._people, self._body, self._min_score = people, body, min_score
        self._index = index = index_images(people, WHOLE_NAME)
        self._image_of = {name: image for image, name in enumerate(index.image_name) if image not in index.problem}
        self._taken = np.zeros(index.num_images, dtype=bool)  # images of the predictions that were found in a shard
        owner = np.repeat(np.arange(index.num_images), np.diff(index.offsets))[np.argsort(index.rows)]
        self._outcomes: dict[str, Any] = {  # of `schema.MERGE_SCHEMA`; stays so for images that are in no shard
            "prediction_row": np.arange(owner.size),
            "image": np.array(index.image_name, dtype=object)[owner],
            "status": np.full(owner.size, str(Status.IMAGE_UNKNOWN), dtype=object),
            "message": np.array([index.problem.get(image) for image in owner.tolist()], dtype=object),
            "det_score": pick(people.columns.get("det_score"), np.arange(owner.size), ()),
            "same_as_source_row": np.full(owner.size, -1),
            "same_as_prediction_row": np.full(owner.size, -1),
        }

    def merge_shard(self, table: pa.Table) -> pa.Table:
        """The rows of a shard, with the people they miss."""
        shard = self._load(table)
        own, verdict = self._judge(shard)
        chosen = _rank(shard, verdict)
        transl, views, found = self._move(shard, chosen, own)
        shard.labels.transl[chosen], verdict[chosen] = transl, found  # from here on for the label's camera
        chosen, views = chosen[found == _ADDED], views[found == _ADDED]
        verdict[chosen], same_released, original = self._compare(shard, chosen, views)
        rows, outcomes = shard.row, self._outcomes
        outcomes["image"][rows] = np.array(table["image_id"].to_pylist(), dtype=object)[shard.image]
        outcomes["status"][rows] = [text.partition(": ")[0] for text in verdict.tolist()]
        outcomes["message"][rows] = [text.partition(": ")[2] or None for text in verdict.tolist()]
        outcomes["same_as_source_row"][rows[chosen]] = same_released
        outcomes["same_as_prediction_row"][rows[chosen]] = np.append(rows[chosen], -1)[original]
        self.report.images += table.num_rows
        self.report.released += int(table["num_persons"].to_numpy().sum())
        self.report.notes.update(shard.labels.seen.notes)
        self.report.count(Counter(verdict.tolist()))
        return _append(shard, chosen[verdict[chosen] == _ADDED])

    def list_outcomes(self) -> pa.Table:
        """The outcome of every prediction, once all shards are merged; counts those whose image is in no shard."""
        unknown = int(np.diff(self._index.offsets)[~self._taken].sum())
        self.report.count({str(Status.IMAGE_UNKNOWN): unknown} if unknown else {})
        return build_table(MERGE_SCHEMA, self._outcomes)

    def _load(self, table: pa.Table) -> _Shard:
        """The predictions for the images of a shard, without images that were found before."""
        owners, parts, index = [], [np.zeros(0, dtype=np.int64)], self._index
        for shard_row, spelled in enumerate(zip(*(table[name].to_pylist() for name in _IMAGE_NAMES), strict=True)):
            for image in sorted({self._image_of[name] for name in spelled if name in self._image_of}):
                if not self._taken[image]:
                    self._taken[image] = True
                    parts.append(index.rows[index.offsets[image] : index.offsets[image + 1]])
                    owners.append(np.full(parts[-1].size, shard_row))
        row, image_row = np.concatenate(parts), np.concatenate([parts[0], *owners])
        labels = self._people.rows(row)
        boxes, strange = judge_boxes(labels.bbox_xyxy)
        self.report.notes.update(strange)
        labels = dataclasses.replace(labels, bbox_xyxy=boxes)
        return _Shard(table, read_cameras(table), row, image_row, labels, order_keypoints(labels.keypoints, row.size))

    def _judge(self, shard: _Shard) -> tuple[np.ndarray, np.ndarray]:
        """Camera (n, 3, 3) each prediction was made for, and its verdict (n,) object."""
        table, labels, seen, image = shard.table, shard.labels, shard.labels.seen, shard.image
        size = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)[image]
        own = labels.intrinsics.copy()
        unknown = np.isnan(own).all(axis=(1, 2))
        own[unknown] = shard.cameras[image[unknown]]
        own, fault, _ = judge_cameras(own, np.ones(len(own), np.int64), size)
        problem = judge_people(labels, size)
        self.report.note_boxes(*count_misplaced(labels, own, (problem == 0) & (fault == 0)))
        found = {_invalid(reason): problem == code for code, reason in enumerate(PERSON_PROBLEMS) if reason}
        checks = {
            str(Status.IMAGE_UNUSABLE): table["problem_status"].is_valid().to_numpy()[image],
            str(Status.INVALID_SCORE): ~np.isfinite(seen.det_score),
            str(Status.BELOW_MIN_SCORE): seen.det_score < self._min_score,
            **{_invalid(reason): found[_invalid(reason)] for reason in ROW_PROBLEMS if reason},
            str(Status.INVALID_CAMERA): fault > 0,
            **found,
        }
        return own, _select(checks)

    def _move(self, shard: _Shard, chosen: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, BodyViews, np.ndarray]:
        """The chosen (k,) predictions, made for cameras `own`, moved to the label's camera: transl (k, 3) float32 that
        shows them at the same place, views, and verdict (k,)."""
        labels, cameras = shard.labels, shard.cameras[shard.image[chosen]]
        joints = self._joints(labels.pose[chosen], labels.betas[chosen], labels.transl[chosen])
        transl, pelvis = labels.transl[chosen], joints[:, 0]
        given = transl.astype(np.float64), pelvis, own[chosen], cameras
        carried = carry_to_camera(*map(torch.from_numpy, given)).float().numpy()
        other = (np.abs(own[chosen] - cameras) > _SAME_CAMERA).any(axis=(1, 2))
        moved = np.where(other[:, None], carried, transl)
        views = view_bodies(joints + (moved.astype(np.float64) - transl)[:, None], cameras)
        faults = {
            _invalid(BEHIND_CAMERA): ~(moved[:, 2] > 0) | ~np.isfinite(moved).all(axis=1),
            _invalid("no joint is in front of the camera"): np.isnan(views.box).any(axis=1),
        }
        return moved, views, _select(faults)

    def _compare(
        self, shard: _Shard, chosen: np.ndarray, views: BodyViews
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Verdict (k,) of the chosen predictions, source_row (k,) of the released person each one is, and the position
        (k,) among the chosen of the prediction it repeats; -1 = none.

        Of a person predicted twice the prediction that matches a released person is kept, else the first.
        """
        image, keypoints = shard.image[chosen], shard.keypoints[chosen]
        given = (keypoints[..., 2] >= MIN_CONFIDENCE).any(axis=1)
        itself = np.arange(len(image))
        apart = compare_people(keypoints, views, views, (itself, itself))[0] <= MIN_SHARE
        self.report.keypoints_compared += int(given.sum())
        self.report.keypoints_apart += int((given & apart).sum())
        references, source_row, owner = self._view_released(shard, np.unique(image))
        pairs = pairs_within(image, owner)
        partner = assign_people(*compare_people(keypoints, views, references, pairs), pairs, image)
        matched, rank = partner >= 0, np.empty(len(image), np.int64)
        rank[np.lexsort((~matched, image))] = np.arange(len(image))
        worse, better = pairs_within(image, image)
        open_pairs = ~matched[worse] & (rank[better] < rank[worse])
        worse, better = worse[open_pairs], better[open_pairs]
        same = compare_people(keypoints, views, views, (worse, better))[0] > MIN_SHARE
        original = suppress_duplicates(better[same], worse[same], rank)
        verdict = _select({_MATCHED: matched, _DUPLICATE: original >= 0})
        return verdict, np.append(source_row, -1)[partner], original

    def _view_released(self, shard: _Shard, images: np.ndarray) -> tuple[BodyViews, np.ndarray, np.ndarray]:
        """The r usable released people of some images, their source rows (r,) and their images (r,)."""
        columns = flatten_table(shard.table.select(["persons"]), ("pose", "betas", "transl", "source_row"))
        *body, source_row = columns.people.values()
        asked = np.isin(columns.owner, images) & (find_row_problems(*body) == 0)
        owner, joints = columns.owner[asked], self._joints(*(values[asked] for values in body))
        return view_bodies(joints, shard.cameras[owner]), source_row[asked], owner

    def _joints(self, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
        """(n, 45, 3) float64 [m]."""
        if not len(pose):
            return np.zeros((0, NUM_KEYPOINTS, 3))
        return self._body.joints(*map(torch.from_numpy, (pose, betas, transl))).double().numpy()


def _invalid(reason: str) -> str:
    return f"{Status.INVALID_LABEL}: {reason}"


def _select(checks: dict[str, np.ndarray]) -> np.ndarray:
    """(n,) object: the first verdict whose check holds for the prediction, else `_ADDED`."""
    codes = np.select(list(checks.values()), range(1, len(checks) + 1), default=0)
    return np.array([_ADDED, *checks], dtype=object)[codes]


def _rank(people: _Shard, verdict: np.ndarray) -> np.ndarray:
    """Positions (k,) of the usable predictions: by image, best score first, equal scores by content; the others beyond
    `MAX_PREDICTIONS` of an image get their verdict."""
    sound = np.flatnonzero(verdict == _ADDED)
    labels, seen = people.labels, people.labels.seen
    numbers = (labels.transl, labels.pose, labels.betas, labels.bbox_xyxy, people.keypoints.reshape(-1, 135))
    content = np.concatenate([*numbers, seen.age_years[:, None], seen.male_prob[:, None]], axis=1)[sound]
    words = np.ascontiguousarray(content, dtype="<f4").view(np.dtype((np.void, content.shape[1] * 4))).ravel()
    masks = np.array(seen.mask_rle.fill_null(b"").take(pa.array(sound)).to_pylist(), dtype=object)
    ties = [np.unique(values, return_inverse=True)[1].ravel() for values in (masks, words)]
    order = sound[np.lexsort((*ties, -seen.det_score[sound], people.image[sound]))]
    counts = np.bincount(people.image[order])
    place = np.arange(order.size) - (np.cumsum(counts) - counts)[people.image[order]]
    verdict[order[place >= MAX_PREDICTIONS]] = str(Status.CROWD_TOO_LARGE)
    return order[place < MAX_PREDICTIONS]


def _append(shard: _Shard, added: np.ndarray) -> pa.Table:
    """The rows of a shard, with the predictions `added` (positions, best first) after the released people."""
    if added.size == 0:
        return shard.table
    table, seen, image = shard.table, shard.labels.seen, shard.image[added]
    persons = single_array(table["persons"])
    released = persons.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    new = np.bincount(image, minlength=released.size)
    place = released[image] + np.arange(added.size) - (np.cumsum(new) - new)[image]
    nothing = pa.nulls(added.size, pa.string())
    columns = person_columns(shard.labels, added, place, np.full(added.size, -1), nothing)
    owner = np.concatenate([np.repeat(np.arange(released.size), released), image])
    items = pa.concat_arrays([persons.flatten().cast(MANIFEST_PERSON), struct_column(MANIFEST_PERSON, columns)])
    joined = ragged_column(released + new, items.take(pa.array(np.argsort(owner, kind="stable"))), persons.type)
    rows: dict[str, Any] = {name: table[name] for name in table.column_names}
    brings = {  # origins to which the predictions are added: which of the added people have a mask, an age or gender
        "mask_origin": seen.mask_height[added] > 0,
        "attribute_origin": np.isfinite(seen.age_years[added]) | np.isfinite(seen.male_prob[added]),
    }
    for name, some in brings.items():
        before = single_array(table[name])
        longer = pc.coalesce(pc.binary_join_element_wise(before, _ORIGIN, "+"), _ORIGIN)
        rows[name] = pc.if_else(pa.array(np.isin(np.arange(len(before)), image[some])), longer, before)
    return build_table(MANIFEST_SCHEMA, {**rows, "num_persons": released + new, "persons": joined})
