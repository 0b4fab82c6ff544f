"""Manifest rows of one shard: label rows and sidecar rows joined to image headers, faults found and counted.

Nothing is dropped: an image or person that cannot be used is a row with a problem. Knows how inputs are judged, not how
the manifest is stored. Sizes and intrinsics in pixels, lengths in metres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from posixpath import splitext
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.data.cameras import describe_off_centre, is_off_centre
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.duplicates import People, find_duplicates
from dto_pipeline.data.image_decoding import ImageHeader
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.manifest_build.build_inputs import ManifestInputs
from dto_pipeline.data.manifest_build.build_report import ManifestReport
from dto_pipeline.data.manifest_build.findings import MASKS, Findings, note_people
from dto_pipeline.data.manifest_build.seen_people import SeenPeople, join_seen
from dto_pipeline.data.sources.rows import ROW_PROBLEMS, LabelRows, find_row_problems
from dto_pipeline.data.sources.sidecar import MASK_DAMAGED, SidecarRows
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
_UNREAD = ImageHeader(0, 0)
_HEADERS_AT_ONCE = 64  # images a thread reads per call

Problem = tuple[ImageStatus, str]


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
    index, size = inputs.index, inputs.dataset.shard_images
    images = range(shard * size, min((shard + 1) * size, index.num_images))
    offsets = index.offsets[images.start : images.stop + 1]
    counts = np.diff(offsets)
    rows = index.rows[offsets[0] : offsets[-1]]
    files = index.image_file[images.start : images.stop]
    labels = inputs.source.rows(rows)
    seen = join_seen(labels, inputs.sidecar.rows(rows), counts, files, inputs.mask_store, pool)
    headers, problems = _read_headers(inputs, images, pool, advance)
    sizes = np.array([(header.width, header.height) for header in headers], dtype=np.int64).reshape(-1, 2)
    intrinsics, centred = centre_cameras(labels.intrinsics, np.repeat(sizes, counts, axis=0))
    camera, camera_fault = judge_cameras(intrinsics, counts)
    beyond = (camera_fault == 0) & implausible_cameras(camera, sizes[:, 0], sizes[:, 1])
    camera_fault = np.where(beyond, _CAMERA_FAULTS.index(CAMERA_BEYOND), camera_fault)
    off_centre = (sizes[:, 0] > 0) & (camera_fault == 0) & is_off_centre(camera, sizes)
    report.turned += sum(header.orientation != 1 for header in headers)
    report.rows_without_image += int(counts[[_is_missing(problem) for problem in problems]].sum())
    _add_camera_problems(problems, files, camera, camera_fault)
    if inputs.dataset.principal_point == "centre":
        _add_size_problems(problems, files, camera, headers, off_centre)
    trusted = np.where([[problem is None] for problem in problems], sizes, 0)
    person_problem = _judge_people(labels, seen.rows, np.repeat(trusted, counts, axis=0))
    repeats = _find_repeats(labels, seen.rows, counts, person_problem)
    _count_images(report, counts, problems, camera_fault, int(off_centre.sum()))
    _count_people(report, seen, person_problem, centred)
    lost = np.repeat([problem is not None for problem in problems], counts)
    report.rows_unusable += int((lost | (person_problem > 0)).sum())
    _note(findings, files, problems, seen, (rows, counts, person_problem))
    _note_repeats(report, findings, files, (rows, counts), repeats)
    people = struct_column(MANIFEST_PERSON, _person_columns(labels, seen.rows, rows, counts, person_problem))
    persons = ragged_column(counts, people, MANIFEST_SCHEMA.field("persons").type)
    columns = _image_columns(inputs, images, camera, sizes, problems, seen)
    shards = np.full(len(images), shard)
    return build_table(MANIFEST_SCHEMA, {**columns, "shard": shards, "num_persons": counts, "persons": persons})


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

    def read(some: range) -> list[tuple[ImageHeader, Problem | None]]:
        return [_read_header(store, index.image_file[image], index.problem.get(image)) for image in some]

    blocks = [images[start : start + _HEADERS_AT_ONCE] for start in range(0, len(images), _HEADERS_AT_ONCE)]
    found = []
    for block in pool.map(read, blocks):
        found.extend(block)
        advance(len(block))
    return [header for header, _ in found], [problem for _, problem in found]


def _read_header(store: ImageStore, image_file: str, name_problem: str | None) -> tuple[ImageHeader, Problem | None]:
    if name_problem is not None:
        return _UNREAD, (ImageStatus.LABEL_INVALID, f"image name: {name_problem}")
    try:
        return store.header(image_file), None
    except UnusableImage as error:
        return _UNREAD, (error.status, str(error))


def _is_missing(problem: Problem | None) -> bool:
    return problem is not None and problem[0] is ImageStatus.IMAGE_MISSING


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


def _add_size_problems(
    problems: list[Problem | None],
    files: Sequence[str],
    camera: np.ndarray,
    headers: Sequence[ImageHeader],
    off_centre: np.ndarray,
) -> None:
    for image in np.flatnonzero(off_centre).tolist():
        text = describe_off_centre(files[image], headers[image], camera[image])
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
    inputs: ManifestInputs,
    images: range,
    camera: np.ndarray,
    sizes: np.ndarray,
    problems: Sequence[Problem | None],
    seen: SeenPeople,
) -> dict[str, Any]:
    dataset = inputs.dataset
    names = inputs.index.image_name[images.start : images.stop]
    files = inputs.index.image_file[images.start : images.stop]
    keys = inputs.index.image_path[images.start : images.stop]
    knows_depth = dataset.depth_root is not None
    has_depth = [knows_depth and image not in inputs.index.problem for image in images]
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
            splitext(name)[0] + dataset.depth_suffix if has else None
            for name, has in zip(names, has_depth, strict=True)
        ],
        "mask_origin": seen.mask_origin,
        "attribute_origin": seen.attribute_origin,
        "problem_status": [problem and str(problem[0]) for problem in problems],
        "problem": [problem and problem[1] for problem in problems],
    }


def _find_repeats(labels: LabelRows, seen: SidecarRows, counts: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """(n,) position of the row each one repeats, -1 = none; see `data.duplicates`."""
    return find_duplicates(
        People(
            pose=labels.pose,
            betas=labels.betas,
            transl=labels.transl,
            bbox_xyxy=labels.bbox_xyxy,
            det_score=seen.det_score,
            has_mask=seen.mask_rle.is_valid().to_numpy(zero_copy_only=False),
            usable=problem == 0,
            counts=counts,
        )
    )


def _count_images(
    report: ManifestReport, counts: np.ndarray, problems: Sequence[Problem | None], fault: np.ndarray, off_centre: int
) -> None:
    report.images += counts.size
    report.persons += int(counts.sum())
    report.shards += 1
    histogram = np.bincount(counts)
    report.persons_per_image.update({int(n): int(histogram[n]) for n in np.flatnonzero(histogram)})
    report.off_centre += off_centre
    report.camera_faults.update(_CAMERA_FAULTS[code] for code in fault[fault > 0].tolist())
    for problem in problems:
        if problem is not None:
            report.image_problems[str(problem[0])] += 1
            report.examples.setdefault(str(problem[0]), problem[1])


def _count_people(report: ManifestReport, seen: SeenPeople, person_problem: np.ndarray, centred: int) -> None:
    reasons = np.bincount(person_problem, minlength=len(_PERSON_PROBLEMS))
    report.person_problems.update({str(_PERSON_PROBLEMS[i]): int(reasons[i]) for i in np.flatnonzero(reasons) if i})
    rows = seen.rows
    given = len(rows.mask_rle) - rows.mask_rle.null_count
    report.masks_given += given
    report.masks_missing += len(rows.mask_rle) - given
    report.masks_empty += int(rows.mask_empty.sum())
    report.age_known += int(np.isfinite(rows.age_years).sum())
    report.male_prob_known += int(np.isfinite(rows.male_prob).sum())
    report.notes.update(Counter(rows.notes))
    if centred:
        report.notes[CENTRED] += centred


def _note(
    findings: Findings,
    files: Sequence[str],
    problems: Sequence[Problem | None],
    seen: SeenPeople,
    people: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Everything that keeps an image, a person or a mask out; `people` are label rows, counts, problems of persons."""
    for file, problem in zip(files, problems, strict=True):
        if problem is not None:
            findings.add(str(problem[0]), file, problem[1])
    for image, reason in seen.unreadable.items():
        findings.add(MASKS, files[image], reason, used=True)
    rows, counts, person_problem = people
    bad = np.flatnonzero(person_problem)
    images = np.repeat(np.arange(counts.size), counts)[bad].tolist()
    reasons = [str(_PERSON_PROBLEMS[code]) for code in person_problem[bad].tolist()]
    note_people(findings, [files[image] for image in images], rows[bad], reasons)


def _note_repeats(
    report: ManifestReport,
    findings: Findings,
    files: Sequence[str],
    people: tuple[np.ndarray, np.ndarray],
    repeats: np.ndarray,
) -> None:
    """Label rows that repeat another of their image; the run says so again of each (status duplicate)."""
    rows, counts = people
    again = np.flatnonzero(repeats >= 0)
    if again.size:
        report.person_problems[REPEATED] += again.size
        images = np.repeat(np.arange(counts.size), counts)[again].tolist()
        reasons = [f"the same person as label row {row}: a duplicate" for row in rows[repeats[again]].tolist()]
        note_people(findings, [files[image] for image in images], rows[again], reasons)
