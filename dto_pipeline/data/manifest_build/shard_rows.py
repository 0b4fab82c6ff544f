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

from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.data.cameras import describe_off_centre, is_off_centre
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.duplicates import People, find_duplicates
from dto_pipeline.data.image_decoding import ImageHeader
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.manifest_build.build_report import ManifestReport
from dto_pipeline.data.manifest_build.findings import MASKS, PERSON, Findings
from dto_pipeline.data.manifest_build.seen_people import SeenPeople, join_seen
from dto_pipeline.data.sources.rows import (
    MASK_DAMAGED,
    ROW_PROBLEMS,
    SEEN_RANGES,
    LabelRows,
    LabelSource,
    SeenRows,
    find_row_problems,
)
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.data.tar_images import TarPlacement
from dto_pipeline.schema import MANIFEST_PERSON, MANIFEST_SCHEMA
from dto_pipeline.status import ImageStatus, UnusableImage

MASK_OTHER_SIZE = "instance mask is of another size than the image"
CENTRED = "label rows without a principal point, taken as the image's centre"
REPEATED = "duplicate, the same person as another label row of the image"
_PERSON_PROBLEMS = (*ROW_PROBLEMS, MASK_DAMAGED, MASK_OTHER_SIZE)
_CAMERA_FAULTS = (
    "",
    "intrinsics differ between its label rows; expected one camera per image",
    "intrinsics are not finite",
    "focal lengths are not positive",
    "intrinsics have skew or a last row other than 0 0 1",
    CAMERA_BEYOND,
)
_CENTRE = np.array([[False, False, True], [False, False, True], [False, False, False]])  # of intrinsics
_SAME_CAMERA = 1e-3  # largest difference between intrinsics of one image [px]
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
    placement: TarPlacement | None = None  # None = the images are plain files


def build_shard(
    inputs: ManifestInputs,
    shard: int,
    pool: Executor,
    report: ManifestReport,
    findings: Findings,
    advance: Callable[[int], Any],
) -> pa.Table:
    """Rows of one shard.

    Args:
        inputs: what to join.
        shard: its number; it holds images shard * shard_images and following.
        pool: threads that read image headers, and masks in tars.
        report: counts are added to it.
        findings: what cannot be used is added to it.
        advance: called with the number of images done.

    Returns:
        Table of `schema.MANIFEST_SCHEMA`.
    """
    index, dataset = inputs.index, inputs.dataset
    images = range(shard * dataset.shard_images, min((shard + 1) * dataset.shard_images, index.num_images))
    offsets = index.offsets[images.start : images.stop + 1]
    counts, rows = np.diff(offsets), index.rows[offsets[0] : offsets[-1]]
    files = index.image_file[images.start : images.stop]
    labels = inputs.source.rows(rows)
    masks_beside = inputs.images if dataset.masks == "detection" else None
    seen = join_seen(labels, inputs.sidecar.rows(rows), counts, files, masks_beside, pool)
    headers, problems = _read_headers(inputs, images, pool, advance)
    sizes = np.array([(header.width, header.height) for header in headers], dtype=np.int64).reshape(-1, 2)
    intrinsics, centred = centre_cameras(labels.intrinsics, np.repeat(sizes, counts, axis=0))
    camera, camera_fault = judge_cameras(intrinsics, counts)
    beyond = (camera_fault == 0) & implausible_cameras(camera, sizes[:, 0], sizes[:, 1])
    camera_fault[beyond] = _CAMERA_FAULTS.index(CAMERA_BEYOND)
    off_centre = (sizes[:, 0] > 0) & (camera_fault == 0) & is_off_centre(camera, sizes)
    missing = [problem is not None and problem[0] is ImageStatus.IMAGE_MISSING for problem in problems]
    report.rows_without_image += int(counts[missing].sum())
    _add_camera_problems(problems, files, camera, camera_fault)
    if dataset.principal_point == "centre":
        for image in np.flatnonzero(off_centre).tolist():
            text = describe_off_centre(files[image], headers[image], camera[image])
            problems[image] = problems[image] or (ImageStatus.SIZE_MISMATCH, text)
    lost = np.array([problem is not None for problem in problems])
    trusted = np.where(lost[:, None], 0, sizes)
    person_problem = _judge_people(labels, seen.rows, np.repeat(trusted, counts, axis=0))
    report.off_centre += int(off_centre.sum())
    report.turned += sum(header.orientation != 1 for header in headers)
    report.camera_faults.update(_CAMERA_FAULTS[code] for code in camera_fault[camera_fault > 0].tolist())
    report.rows_unusable += int((np.repeat(lost, counts) | (person_problem > 0)).sum())
    _count(report, counts, problems, seen.rows, centred)
    for image, problem in enumerate(problems):
        if problem is not None:
            findings.add(str(problem[0]), files[image], problem[1])
    for image, reason in seen.unreadable.items():
        findings.add(MASKS, files[image], reason, used=True)
    _note_people(report, findings, files, rows, person_problem, labels, seen.rows, counts)
    place = np.arange(rows.size) - np.repeat(offsets[:-1] - offsets[0], counts)
    words = pick_words(_PERSON_PROBLEMS, person_problem)
    people = struct_column(MANIFEST_PERSON, person_columns(labels, seen.rows, np.arange(rows.size), place, rows, words))
    return build_table(
        MANIFEST_SCHEMA,
        {
            **_image_columns(inputs, images, camera, sizes, problems, seen),
            "shard": np.full(len(images), shard),
            "num_persons": counts,
            "persons": ragged_column(counts, people, MANIFEST_SCHEMA.field("persons").type),
        },
    )


def centre_cameras(intrinsics: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, int]:
    """Principal points put into the image's centre where both coordinates are unknown and the focal length is told.

    Args:
        intrinsics: (n, 3, 3) float64.
        sizes: (n, 2) int width and height, 0 = unknown.

    Returns:
        (n, 3, 3) float64, and how many were filled; those of images of unknown size stay unknown.
    """
    unknown = _lacks_centre(intrinsics) & (sizes[:, 0] > 0)
    if unknown.any():
        intrinsics = intrinsics.copy()
        intrinsics[unknown, :2, 2] = sizes[unknown] / 2
    return intrinsics, int(unknown.sum())


def judge_cameras(intrinsics: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One camera per image from the cameras its people tell.

    Args:
        intrinsics: (n, 3, 3) float64, people image by image.
        counts: (m,) int >= 1, people of each image.

    Returns:
        (m, 3, 3) intrinsics of each image's first person, (m,) int fault, 0 = none, see `_CAMERA_FAULTS`.
    """
    starts = np.cumsum(counts) - counts
    known = intrinsics[starts]
    intrinsics = np.where(_lacks_centre(intrinsics)[:, None, None] & _CENTRE, 0, intrinsics)  # will be the image's
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
    return known, np.select(faults, (2, 1, 3, 4), default=0)


def _lacks_centre(intrinsics: np.ndarray) -> np.ndarray:
    """(n,) bool: neither coordinate of the principal point is told, the focal length is."""
    return np.isnan(intrinsics[:, :2, 2]).all(axis=1) & np.isfinite(intrinsics[:, 0, 0])


def _read_headers(
    inputs: ManifestInputs, images: range, pool: Executor, advance: Callable[[int], Any]
) -> tuple[list[ImageHeader], list[Problem | None]]:
    """Headers of the images, of size 0 where unreadable, and what was found wrong with each image's name or file."""
    index, store = inputs.index, inputs.images

    def read(image: int) -> tuple[ImageHeader, Problem | None]:
        if image in index.problem:
            return ImageHeader(0, 0), (ImageStatus.LABEL_INVALID, f"image name: {index.problem[image]}")
        try:
            return store.header(index.image_file[image]), None
        except UnusableImage as error:
            return ImageHeader(0, 0), (error.status, str(error))

    blocks = [images[start : start + _HEADERS_AT_ONCE] for start in range(0, len(images), _HEADERS_AT_ONCE)]
    headers, problems = list[ImageHeader](), list[Problem | None]()
    for block in pool.map(lambda block: [read(image) for image in block], blocks):
        headers += [header for header, _ in block]
        problems += [problem for _, problem in block]
        advance(len(block))
    return headers, problems


def _add_camera_problems(
    problems: list[Problem | None], files: Sequence[str], camera: np.ndarray, fault: np.ndarray
) -> None:
    """A camera that cannot be used goes before a file that cannot be read, which may be mended."""
    for image in np.flatnonzero(fault).tolist():
        found = ", ".join(f"{value:g}" for value in camera[image].ravel())
        text = f"image {files[image]}: {_CAMERA_FAULTS[fault[image]]}; the first row says [{found}]"
        status, other = problems[image] or (ImageStatus.LABEL_INVALID, "")
        if status is not ImageStatus.LABEL_INVALID or not other:
            problems[image] = (ImageStatus.LABEL_INVALID, f"{text}; {other}" if other else text)


def _judge_people(labels: LabelRows, seen: SeenRows, image_size: np.ndarray) -> np.ndarray:
    """(n,) int index into `_PERSON_PROBLEMS`; 0 = usable. `image_size` (n, 2): width, height, 0 = unknown."""
    problem = find_row_problems(labels.pose, labels.betas, labels.transl)
    compared = (seen.mask_width > 0) & (image_size[:, 0] > 0)
    other_size = compared & ((seen.mask_width != image_size[:, 0]) | (seen.mask_height != image_size[:, 1]))
    mask_problem = np.select((seen.mask_damaged, other_size), (len(ROW_PROBLEMS), len(ROW_PROBLEMS) + 1), default=0)
    return np.where(problem > 0, problem, mask_problem)


def person_columns(
    labels: LabelRows, seen: SeenRows, some: np.ndarray, place: np.ndarray, source_row: np.ndarray, problem: pa.Array
) -> dict[str, Any]:
    """Columns of `schema.MANIFEST_PERSON` for some people (m,) of n; `place` (m,) is theirs in the image."""
    return {
        "person_index": place,
        "source_row": source_row,
        **{name: getattr(labels, name)[some] for name in ("pose", "betas", "transl", "bbox_xyxy")},
        **{name: getattr(seen, name)[some] for name in (*SEEN_RANGES, "mask_height", "mask_width")},
        "mask_rle": seen.mask_rle.take(pa.array(some)),
        "problem": problem,
    }


def _image_columns(
    inputs: ManifestInputs,
    images: range,
    camera: np.ndarray,
    sizes: np.ndarray,
    problems: Sequence[Problem | None],
    seen: SeenPeople,
) -> dict[str, Any]:
    dataset, index = inputs.dataset, inputs.index
    keys = index.image_path[images.start : images.stop]
    has_depth = [dataset.depth_root is not None and image not in index.problem for image in images]
    names = index.image_name[images.start : images.stop]
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
        "image_file": index.image_file[images.start : images.stop],
        "depth_file": [
            splitext(name)[0] + dataset.depth_suffix if has else None
            for name, has in zip(names, has_depth, strict=True)
        ],
        "mask_origin": seen.mask_origin,
        "attribute_origin": seen.attribute_origin,
        "problem_status": [problem and str(problem[0]) for problem in problems],
        "problem": [problem and problem[1] for problem in problems],
    }


def _count(
    report: ManifestReport, counts: np.ndarray, problems: Sequence[Problem | None], seen: SeenRows, centred: int
) -> None:
    report.images += counts.size
    report.persons += int(counts.sum())
    report.shards += 1
    report.persons_per_image.update(counts.tolist())
    for problem in problems:
        if problem is not None:
            report.image_problems[str(problem[0])] += 1
            report.examples.setdefault(str(problem[0]), problem[1])
    given = int(seen.has_mask.sum())
    report.masks_given += given
    report.masks_missing += len(seen.mask_rle) - given
    report.masks_empty += int(seen.mask_empty.sum())
    report.age_known += int(np.isfinite(seen.age_years).sum())
    report.male_prob_known += int(np.isfinite(seen.male_prob).sum())
    report.notes.update(Counter(seen.notes))
    if centred:
        report.notes[CENTRED] += centred


def _note_people(
    report: ManifestReport,
    findings: Findings,
    files: Sequence[str],
    rows: np.ndarray,
    problem: np.ndarray,
    labels: LabelRows,
    seen: SeenRows,
    counts: np.ndarray,
) -> None:
    """Label rows that cannot be used, and those that repeat another of their image, of which the run says so again."""
    image = np.repeat(np.arange(counts.size), counts)
    for person in np.flatnonzero(problem).tolist():
        reason = str(_PERSON_PROBLEMS[problem[person]])
        report.person_problems[reason] += 1
        findings.add(PERSON, files[image[person]], reason, label_row=int(rows[person]))
    repeats = find_duplicates(
        People(
            pose=labels.pose,
            betas=labels.betas,
            transl=labels.transl,
            bbox_xyxy=labels.bbox_xyxy,
            det_score=seen.det_score,
            has_mask=seen.has_mask,
            usable=problem == 0,
            counts=counts,
        )
    )
    for person in np.flatnonzero(repeats >= 0).tolist():
        report.person_problems[REPEATED] += 1
        reason = f"the same person as label row {rows[repeats[person]]}: a duplicate"
        findings.add(PERSON, files[image[person]], reason, label_row=int(rows[person]))
