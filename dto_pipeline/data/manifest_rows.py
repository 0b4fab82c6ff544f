"""Manifest rows of one shard: label rows and sidecar rows joined to image headers, faults found and counted.

Nothing is dropped: an image or person that cannot be used is a row with a problem. Knows how inputs are judged, not how
the manifest is stored. Sizes and intrinsics in pixels, lengths in metres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from posixpath import splitext
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.manifest_report import ManifestReport
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, LabelRows, LabelSource, find_row_problems
from dto_pipeline.data.sources.sidecar import MASK_DAMAGED, Sidecar, SidecarRows
from dto_pipeline.schema import MANIFEST_PERSON, MANIFEST_SCHEMA
from dto_pipeline.status import ImageStatus, UnusableImage

MASK_OTHER_SIZE = "instance mask is of another size than the image"
_PERSON_PROBLEMS = (*ROW_PROBLEMS, MASK_DAMAGED, MASK_OTHER_SIZE)
_CAMERA_FAULTS = (
    "",
    "intrinsics differ between its label rows; expected one camera per image",
    "intrinsics are not finite",
    "focal lengths are not positive",
    "intrinsics have skew or a last row other than 0 0 1",
)
_SAME_CAMERA = 1e-3  # largest difference between intrinsics of one image [px]
_CENTRE_TOLERANCE = 1.0  # |2 c - size| that still counts as centred [px]
_HEADERS_AT_ONCE = 64  # images a thread reads per call

Problem = tuple[ImageStatus, str]


@dataclass(frozen=True)
class ManifestInputs:
    """Everything a manifest is made from, opened."""

    dataset: Dataset
    source: LabelSource
    sidecar: Sidecar
    images: ImageStore
    index: ImageIndex

    @property
    def num_shards(self) -> int:
        return -(-self.index.num_images // self.dataset.shard_images)


def build_shard(
    inputs: ManifestInputs, shard: int, pool: Executor, report: ManifestReport, advance: Callable[[int], Any]
) -> pa.Table:
    """Rows of one shard.

    Args:
        inputs: what to join.
        shard: its number; it holds images shard * shard_images and following.
        pool: threads that read image headers.
        report: counts are added to it.
        advance: called with the number of images done.

    Returns:
        Table of `schema.MANIFEST_SCHEMA`.
    """
    index, size = inputs.index, inputs.dataset.shard_images
    images = range(shard * size, min((shard + 1) * size, index.num_images))
    offsets = index.offsets[images.start : images.stop + 1]
    counts = np.diff(offsets)
    rows = index.rows[offsets[0] : offsets[-1]]
    labels, seen = inputs.source.rows(rows), inputs.sidecar.rows(rows)
    camera, camera_fault = judge_cameras(labels.intrinsics, counts)
    sizes, problems = _read_headers(inputs, images, pool, advance)
    off_centre = (sizes[:, 0] > 0) & (camera_fault == 0) & _is_off_centre(camera, sizes)
    files = index.image_file[images.start : images.stop]
    _add_camera_problems(problems, files, camera, camera_fault)
    if inputs.dataset.principal_point == "centre":
        _add_size_problems(problems, files, camera, sizes, off_centre)
    person_problem = _judge_people(labels, seen, np.repeat(sizes, counts, axis=0))
    _count(report, counts, problems, seen, person_problem, int(off_centre.sum()))
    people = struct_column(MANIFEST_PERSON, _person_columns(labels, seen, rows, counts, person_problem))
    persons = ragged_column(counts, people, MANIFEST_SCHEMA.field("persons").type)
    columns = _image_columns(inputs, images, camera, sizes, problems)
    shards = np.full(len(images), shard)
    return build_table(MANIFEST_SCHEMA, {**columns, "shard": shards, "num_persons": counts, "persons": persons})


def judge_cameras(intrinsics: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One camera per image from the cameras its people tell.

    Args:
        intrinsics: (n, 3, 3) float64, people image by image.
        counts: (m,) int >= 1, people of each image.

    Returns:
        (m, 3, 3) intrinsics of each image's first person, (m,) int fault, 0 = none, see `_CAMERA_FAULTS`.
    """
    starts = np.cumsum(counts) - counts
    camera = intrinsics[starts]
    with np.errstate(invalid="ignore"):
        apart = np.abs(intrinsics - np.repeat(camera, counts, axis=0)).max(axis=(1, 2))
    same = np.minimum.reduceat(apart <= _SAME_CAMERA, starts)
    plain = np.array([[np.nan, 0, np.nan], [0, np.nan, np.nan], [0, 0, 1]])
    faults = (
        ~np.isfinite(camera).all(axis=(1, 2)),
        ~same,
        (camera[:, 0, 0] <= 0) | (camera[:, 1, 1] <= 0),
        ((camera != plain) & ~np.isnan(plain)).any(axis=(1, 2)),
    )
    return camera, np.select(faults, (2, 1, 3, 4), default=0)


def _read_headers(
    inputs: ManifestInputs, images: range, pool: Executor, advance: Callable[[int], Any]
) -> tuple[np.ndarray, list[Problem | None]]:
    """(m, 2) int width and height, 0 where unreadable, and what was found wrong with each image's name or file."""
    index, store = inputs.index, inputs.images

    def read(some: range) -> list[tuple[int, int, Problem | None]]:
        return [_read_header(store, index.image_file[image], index.problem.get(image)) for image in some]

    blocks = [images[start : start + _HEADERS_AT_ONCE] for start in range(0, len(images), _HEADERS_AT_ONCE)]
    found = []
    for block in pool.map(read, blocks):
        found.extend(block)
        advance(len(block))
    sizes = np.array([(width, height) for width, height, _ in found], dtype=np.int64).reshape(-1, 2)
    return sizes, [problem for _, _, problem in found]


def _read_header(store: ImageStore, image_file: str, name_problem: str | None) -> tuple[int, int, Problem | None]:
    if name_problem is not None:
        return 0, 0, (ImageStatus.LABEL_INVALID, f"image name: {name_problem}")
    try:
        return *store.size(image_file), None
    except UnusableImage as error:
        return 0, 0, (error.status, str(error))


def _is_off_centre(camera: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return (np.abs(2 * camera[:, :2, 2] - sizes) > _CENTRE_TOLERANCE).any(axis=1)


def _add_camera_problems(
    problems: list[Problem | None], files: Sequence[str], camera: np.ndarray, fault: np.ndarray
) -> None:
    for image in np.flatnonzero(fault).tolist():
        found = ", ".join(f"{value:g}" for value in camera[image].ravel())
        text = f"image {files[image]}: {_CAMERA_FAULTS[fault[image]]}; the first row says [{found}]"
        problems[image] = problems[image] or (ImageStatus.LABEL_INVALID, text)


def _add_size_problems(
    problems: list[Problem | None], files: Sequence[str], camera: np.ndarray, sizes: np.ndarray, off_centre: np.ndarray
) -> None:
    for image in np.flatnonzero(off_centre).tolist():
        width, height = sizes[image]
        cx, cy = camera[image, :2, 2]
        text = (
            f"image {files[image]} is {width} x {height}, its principal point {cx:g}, {cy:g} "
            f"expects {2 * cx:g} x {2 * cy:g}; "
            "if off-centre cameras are right here, set principal_point: free in the dataset YAML"
        )
        problems[image] = problems[image] or (ImageStatus.SIZE_MISMATCH, text)


def _judge_people(labels: LabelRows, seen: SidecarRows, image_size: np.ndarray) -> np.ndarray:
    """(n,) int index into `_PERSON_PROBLEMS`; 0 = usable. `image_size` (n, 2): width, height, 0 = unknown."""
    problem = find_row_problems(labels.pose, labels.betas, labels.transl)
    compared = (seen.mask_width > 0) & (image_size[:, 0] > 0)
    other_size = compared & ((seen.mask_width != image_size[:, 0]) | (seen.mask_height != image_size[:, 1]))
    mask_problem = np.select((seen.mask_damaged, other_size), (len(ROW_PROBLEMS), len(ROW_PROBLEMS) + 1), default=0)
    return np.where(problem > 0, problem, mask_problem)


def _person_columns(
    labels: LabelRows, seen: SidecarRows, rows: np.ndarray, counts: np.ndarray, problem: np.ndarray
) -> dict[str, Any]:
    starts = np.cumsum(counts) - counts
    return {
        "person_index": np.arange(rows.size) - np.repeat(starts, counts),
        "source_row": rows,
        "pose": labels.pose,
        "betas": labels.betas,
        "transl": labels.transl,
        "bbox_xyxy": labels.bbox_xyxy,
        "det_score": seen.det_score,
        "age_years": seen.age_years,
        "male_prob": seen.male_prob,
        "mask_rle": seen.mask_rle,
        "mask_height": seen.mask_height,
        "mask_width": seen.mask_width,
        "problem": pick_words(_PERSON_PROBLEMS, problem),
    }


def _image_columns(
    inputs: ManifestInputs, images: range, camera: np.ndarray, sizes: np.ndarray, problems: Sequence[Problem | None]
) -> dict[str, Any]:
    dataset = inputs.dataset
    files = inputs.index.image_file[images.start : images.stop]
    keys = inputs.index.image_path[images.start : images.stop]
    has_depth = [bool(dataset.depth) and image not in inputs.index.problem for image in images]
    return {
        "image_id": [f"{dataset.name}/{key}" for key in keys],
        "subset": [dataset.name] * len(keys),
        "image_path": keys,
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        "fx": camera[:, 0, 0],
        "fy": camera[:, 1, 1],
        "cx": camera[:, 0, 2],
        "cy": camera[:, 1, 2],
        "image_file": files,
        "depth_file": [
            splitext(file)[0] + dataset.depth_suffix if has else None
            for file, has in zip(files, has_depth, strict=True)
        ],
        "problem_status": [problem and str(problem[0]) for problem in problems],
        "problem": [problem and problem[1] for problem in problems],
    }


def _count(
    report: ManifestReport,
    counts: np.ndarray,
    problems: Sequence[Problem | None],
    seen: SidecarRows,
    person_problem: np.ndarray,
    off_centre: int,
) -> None:
    report.images += counts.size
    report.persons += int(counts.sum())
    report.shards += 1
    histogram = np.bincount(counts)
    report.persons_per_image.update({int(n): int(histogram[n]) for n in np.flatnonzero(histogram)})
    report.off_centre += off_centre
    for people, problem in zip(counts.tolist(), problems, strict=True):
        if problem is not None:
            report.image_problems[str(problem[0])] += 1
            report.examples.setdefault(str(problem[0]), problem[1])
            report.rows_without_image += people if problem[0] is ImageStatus.IMAGE_MISSING else 0
    reasons = np.bincount(person_problem, minlength=len(_PERSON_PROBLEMS))
    report.person_problems.update({str(_PERSON_PROBLEMS[i]): int(reasons[i]) for i in np.flatnonzero(reasons) if i})
    given = len(seen.mask_rle) - seen.mask_rle.null_count
    report.masks_given += given
    report.masks_missing += len(seen.mask_rle) - given
    report.masks_empty += int(seen.mask_empty.sum())
    report.age_known += int(np.isfinite(seen.age_years).sum())
    report.male_prob_known += int(np.isfinite(seen.male_prob).sum())
    report.notes.update(Counter(seen.notes))
