"""Build a manifest: join labels, sidecar and image headers shard by shard, and count what cannot be used.

Nothing is dropped: an image or person that cannot be used is a row with a problem. The report and the findings are
written next to the manifest. Sizes and intrinsics in pixels, lengths in metres.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from posixpath import splitext
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.data.cameras import camera_columns, describe_off_centre, is_off_centre
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.duplicates import LabelledPeople, find_duplicates
from dto_pipeline.data.files import json_bytes, sweep_abandoned
from dto_pipeline.data.image_index import ImageIndex, index_images
from dto_pipeline.data.images import ImageHeader, ImageStore
from dto_pipeline.data.manifest import check_outputs, report_path
from dto_pipeline.data.manifest_build.build_report import MASKS, PERSON, SOURCE, ManifestReport, findings_path
from dto_pipeline.data.manifest_build.seen_people import join_seen
from dto_pipeline.data.manifest_build.writer import describe_files, describe_origin, open_manifest_writer
from dto_pipeline.data.people import recognise
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import (
    MASK_DAMAGED,
    ROW_PROBLEMS,
    SEEN_RANGES,
    LabelFileError,
    LabelRows,
    LabelSource,
    count_misplaced,
    find_row_problems,
    judge_boxes,
)
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.data.storage import Location, as_location, base_name, fetch, write_bytes
from dto_pipeline.data.tars import place_in_tars, tar_index_path
from dto_pipeline.schema import MANIFEST_PERSON, MANIFEST_SCHEMA
from dto_pipeline.status import ImageStatus, UnusableImage

CENTRED = "label rows without a principal point, taken as the image's centre"
TURNED = "images with an EXIF note that turns them, taken as stored: labels must be of the unturned picture"
REPEATED = "duplicate, the same person as another label row of the image"
PERSON_PROBLEMS = (*ROW_PROBLEMS, MASK_DAMAGED, "instance mask is of another size than the image")
_CAMERA_FAULTS = (
    "",
    "intrinsics differ between its label rows; expected one camera per image",
    "intrinsics are not finite",
    "focal lengths are not positive",
    "intrinsics have skew or a last row other than 0 0 1",
    CAMERA_BEYOND,
)
_BEYOND = _CAMERA_FAULTS.index(CAMERA_BEYOND)
_SAME_CAMERA = 1e-3  # largest difference between intrinsics of one image [px]
_HEADER_THREADS = 16  # reading headers is mostly waiting for the disk
_HEADERS_AT_ONCE = 64  # images that a task of a thread reads

Problem = tuple[ImageStatus, str]


@dataclass(frozen=True)
class _Inputs:
    """What shards are made of."""

    dataset: Dataset
    source: LabelSource
    sidecar: Sidecar
    index: ImageIndex
    images: ImageStore
    report: ManifestReport  # counts what cannot be used


def build_manifest(
    dataset: Dataset,
    out: Location,
    progress: bool = True,
    against: Sequence[Location] = (),
    unlabelled: bool = True,
) -> ManifestReport:
    """Write a manifest, and next to it its report and findings.

    Args:
        against: other manifests; images that are in one of them too are reported (insta1 and insta2 overlap).
        unlabelled: report images that no label names, for which the whole images folder is listed.

    Raises:
        LabelFileError, LabelsError, PickleRefused, TarIndexError, StorageError, ManifestError: a file is missing or
            cannot be used.
    """
    out = as_location(out)
    read = map(dataset.place, ("labels", "predictions", "sidecar"))
    check_outputs(out, (findings_path(out), report_path(out)), read)
    sweep_abandoned(out if isinstance(out, Path) else None)
    report = ManifestReport(dataset=dataset.name, findings_file=base_name(findings_path(out)))
    with ExitStack() as stack:
        source, sidecar = _open_labels(dataset, stack)
        index, placement = index_images(source, dataset.key_parts), None
        images: ImageStore
        if dataset.images_in == "tars":
            placement = place_in_tars(index, dataset.images_root, dataset.key_parts, tar_index_path(out), progress)
            index, images = placement.index, placement.images
        else:
            index, images = index.with_prefixes(dataset.image_prefixes), ImageStore(dataset.images_root)
        if dataset.depth_root is not None:
            index = index.with_own_depth_maps()
        report.note_shared_images(index, [as_location(other) for other in against])
        for finding in source.findings:
            report.add(SOURCE, finding.image, finding.reason)
        for image in source.empty_images:
            report.add(SOURCE, image, "listed without people")
        if placement is not None:
            report.note_tars(placement)
        with _new_manifest(_Inputs(dataset, source, sidecar, index, images, report), out, progress):
            if dataset.depth_root is not None:
                report.look_for_depth(index, dataset.depth_root, dataset.depth_suffix)
            if unlabelled:
                report.note_unlabelled(index, dataset.images_root, placement)
            report.write_findings(out)
            write_bytes(report_path(out), json_bytes(report.to_json()))
    return report


def _open_labels(dataset: Dataset, stack: ExitStack) -> tuple[LabelSource, Sidecar]:
    """Open the label file and the sidecar of a data set; `stack` removes the local copies of files behind URIs."""
    places = (dataset.place("predictions"), dataset.place("sidecar"))
    predictions, sidecar = (None if place is None else fetch(place, stack, LabelFileError) for place in places)
    labels = fetch(dataset.labels_path, stack, LabelFileError)
    kind = recognise(labels)
    if kind != dataset.source:
        advice = f"set source: {kind} (--source {kind})" if kind in SOURCES else "no source reads that"
        raise LabelFileError(
            f"{labels} holds {kind.words}, and the description says source: {dataset.source}; {advice}"
        )
    source = SOURCES[kind](labels, dataclasses.replace(dataset.source_options, predictions=predictions))
    return source, Sidecar(sidecar, source.num_rows)


@contextmanager
def _new_manifest(inputs: _Inputs, out: Location, progress: bool) -> Iterator[None]:
    """Write the manifest. It gets its name after the block: a build that is killed leaves none without a report."""
    dataset, source, sidecar = inputs.dataset, inputs.source, inputs.sidecar
    total, root = inputs.index.num_images, dataset.root
    with open_manifest_writer(out) as writer:
        with (
            ThreadPoolExecutor(_HEADER_THREADS) as pool,
            tqdm(total=total, unit="image", desc=dataset.name, disable=not progress) as bar,
        ):
            for start in range(0, total, dataset.shard_images):
                images = range(start, min(start + dataset.shard_images, total))
                writer.add(_build_shard(inputs, images, _read_headers(inputs, images, pool, bar.update), pool))
        inputs.report.shards, inputs.report.fingerprint = len(writer.sizes), writer.fingerprint
        inputs_of = {path: [path] for path in source.files}
        if dataset.source == "labels":  # one entry, because every label file's footer holds this list
            labels = dataset.labels_path
            inputs_of = {labels if isinstance(labels, Path) else Path(base_name(labels)): source.files}
        inputs_of |= {sidecar.path: [sidecar.path]} if sidecar.path else {}
        files = []
        for path, parts in inputs_of.items():
            inside = isinstance(root, Path) and path.is_relative_to(root)
            files.append(describe_files(str(path.relative_to(root)) if inside else path.name, parts))
        writer.finish(describe_origin(dataset, files))
        yield


def _read_headers(
    inputs: _Inputs, images: range, pool: Executor, advance: Callable[[int], Any]
) -> list[tuple[ImageHeader, Problem | None]]:
    """Header (of size 0 where there is a problem) and problem of each image; `advance` counts the images on the bar."""
    index = inputs.index

    def read(image: int) -> tuple[ImageHeader, Problem | None]:
        if image in index.problem:
            return ImageHeader(0, 0), (ImageStatus.LABEL_INVALID, f"image name: {index.problem[image]}")
        try:
            return inputs.images.header(index.image_file[image]), None
        except UnusableImage as error:
            return ImageHeader(0, 0), (error.status, str(error))

    blocks = [images[start : start + _HEADERS_AT_ONCE] for start in range(0, len(images), _HEADERS_AT_ONCE)]
    found = list[tuple[ImageHeader, Problem | None]]()
    for block in pool.map(lambda block: [read(image) for image in block], blocks):
        found += block
        advance(len(block))
    return found


def _build_shard(
    inputs: _Inputs, images: range, headers: Sequence[tuple[ImageHeader, Problem | None]], pool: Executor
) -> pa.Table:
    """The rows of some images, of `schema.MANIFEST_SCHEMA`; the threads of `pool` read the masks beside the images."""
    index, dataset, some = inputs.index, inputs.dataset, slice(images.start, images.stop)
    offsets = index.offsets[images.start : images.stop + 1]
    counts, rows = np.diff(offsets), index.rows[offsets[0] : offsets[-1]]
    names, keys, files = index.image_name[some], index.image_path[some], index.image_file[some]
    labels = inputs.source.rows(rows)
    masks_beside = inputs.images if dataset.masks == "detection" else None
    seen = join_seen(labels, inputs.sidecar.rows(rows), counts, files, masks_beside, pool)
    boxes, strange = judge_boxes(labels.bbox_xyxy)
    labels = dataclasses.replace(labels, seen=seen.rows, bbox_xyxy=boxes)
    sizes = np.array([(header.width, header.height) for header, _ in headers], dtype=np.int64).reshape(-1, 2)
    camera, fault, centred = judge_cameras(labels.intrinsics, counts, sizes)
    off_centre = (dataset.principal_point == "centre") & (sizes[:, 0] > 0) & is_off_centre(camera, sizes)
    fault[off_centre & (fault == _BEYOND)] = 0  # those bounds are in image sides: the file is wrong, say, a placeholder
    problems = [problem for _, problem in headers]
    for image in np.flatnonzero(fault).tolist():
        problems[image] = _camera_problem(files[image], camera[image], int(fault[image]), problems[image])
    for image in np.flatnonzero(off_centre).tolist():
        text = describe_off_centre(files[image], headers[image][0], camera[image])
        problems[image] = problems[image] or (ImageStatus.SIZE_MISMATCH, text)
    resized = inputs.source.is_resized(rows, np.repeat(sizes, counts, axis=0))
    for image in np.unique(np.repeat(np.arange(len(counts)), counts)[resized]).tolist():
        text = f"image {files[image]} is {sizes[image, 0]} x {sizes[image, 1]}; its labels were made on another size"
        problems[image] = problems[image] or (ImageStatus.LABEL_INVALID, text)
    turned = sum(header.orientation != 1 for header, _ in headers)
    inputs.report.notes.update(strange | {text: n for text, n in ((CENTRED, centred), (TURNED, turned)) if n})
    _note_images(inputs.report, files, problems, seen.unreadable)
    lost = np.array([problem is not None for problem in problems])
    person_problem = judge_people(labels, np.repeat(np.where(lost[:, None], 0, sizes), counts, axis=0))
    inputs.report.rows_unusable += int((np.repeat(lost, counts) | (person_problem > 0)).sum())
    usable = (person_problem == 0) & ~np.repeat(lost, counts)
    inputs.report.note_boxes(*count_misplaced(labels, np.repeat(camera, counts, axis=0), usable))
    _note_people(inputs.report, np.repeat(np.array(files, object), counts), rows, labels, counts, person_problem)
    place = np.arange(rows.size) - np.repeat(offsets[:-1] - offsets[0], counts)
    people = person_columns(labels, np.arange(rows.size), place, rows, pick_words(PERSON_PROBLEMS, person_problem))
    depth = [
        None if dataset.depth_root is None or image in index.problem else splitext(name)[0] + dataset.depth_suffix
        for image, name in zip(images, names, strict=True)
    ]
    columns = {
        "shard": np.full(len(images), images.start // dataset.shard_images),
        "image_id": [f"{dataset.name}/{key}" for key in keys],
        "subset": [dataset.name] * len(keys),
        "image_path": keys,
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        **camera_columns(camera),
        "image_file": files,
        "depth_file": depth,
        "mask_origin": seen.mask_origin,
        "attribute_origin": seen.attribute_origin,
        "problem_status": [problem and str(problem[0]) for problem in problems],
        "problem": [problem and problem[1] for problem in problems],
        "num_persons": counts,
        "persons": ragged_column(counts, struct_column(MANIFEST_PERSON, people), MANIFEST_SCHEMA.field("persons").type),
    }
    return build_table(MANIFEST_SCHEMA, columns)


def _note_images(
    report: ManifestReport, files: Sequence[str], problems: Sequence[Problem | None], unreadable: dict[int, str]
) -> None:
    """Count some images and their problems; `unreadable`: image -> why the masks beside it cannot be read."""
    report.images += len(files)
    for file, problem in zip(files, problems, strict=True):
        if problem is not None:
            status, text = str(problem[0]), problem[1]
            report.image_problems[status] += 1
            report.examples.setdefault(status, text)
            report.add(status, file, text)
    for image, reason in unreadable.items():
        report.add(MASKS, files[image], reason, used=True)


def _note_people(
    report: ManifestReport,
    files: np.ndarray,
    rows: np.ndarray,
    labels: LabelRows,
    counts: np.ndarray,
    problem: np.ndarray,
) -> None:
    """Count some people and their problems; who is labelled twice is found again by the run, which gives a status."""
    seen = labels.seen
    report.persons += rows.size
    report.masks_given += int(seen.has_mask.sum())
    report.age_known += int(np.isfinite(seen.age_years).sum())
    report.male_prob_known += int(np.isfinite(seen.male_prob).sum())
    report.notes.update(seen.notes)
    places = {name: getattr(labels, name) for name in ("pose", "betas", "transl", "bbox_xyxy")}
    repeats = find_duplicates(
        LabelledPeople(**places, det_score=seen.det_score, has_mask=seen.has_mask, usable=problem == 0, counts=counts)
    )
    for person in np.flatnonzero(problem).tolist():
        reason = str(PERSON_PROBLEMS[problem[person]])
        report.person_problems[reason] += 1
        report.add(PERSON, files[person], reason, label_row=int(rows[person]))
    for person in np.flatnonzero(repeats >= 0).tolist():
        report.person_problems[REPEATED] += 1
        reason = f"the same person as label row {rows[repeats[person]]}: a duplicate"
        report.add(PERSON, files[person], reason, label_row=int(rows[person]))


def judge_cameras(intrinsics: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """One camera per image, from the cameras of its people.

    Where the focal length is known and the principal point is not, the principal point is the image's centre.

    Args:
        intrinsics: (n, 3, 3) float64, people image by image; counts: (m,) int >= 1, people of each image.
        sizes: (m, 2) int width and height of the images, 0 = unknown.

    Returns:
        (m, 3, 3) intrinsics of each image's first person; (m,) int fault, an index into `_CAMERA_FAULTS`, 0 = none; and
        of how many people the principal point was put into the centre (it stays NaN where the size is unknown).
    """
    starts, size_of = np.cumsum(counts) - counts, np.repeat(sizes, counts, axis=0)
    open_centre = np.isnan(intrinsics[:, :2, 2]).all(axis=1) & np.isfinite(intrinsics[:, 0, 0])
    filled, intrinsics = open_centre & (size_of[:, 0] > 0), intrinsics.copy()
    intrinsics[filled, :2, 2] = size_of[filled] / 2
    known = intrinsics[starts]
    intrinsics[open_centre & ~filled, :2, 2] = 0  # these NaN are no fault of the camera
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
        implausible_cameras(known, sizes[:, 0], sizes[:, 1]),
    )
    return known, np.select(faults, (2, 1, 3, 4, 5), default=0), int(filled.sum())


def _camera_problem(file: str, camera: np.ndarray, fault: int, problem: Problem | None) -> Problem:
    """The problem of an image whose camera cannot be used. It replaces that of a file, which may be repaired later, but
    not that of a name."""
    found = ", ".join(f"{value:g}" for value in camera.ravel())
    text = f"image {file}: {_CAMERA_FAULTS[fault]}; the first row says [{found}]"
    if problem is None:
        return ImageStatus.LABEL_INVALID, text
    return problem if problem[0] is ImageStatus.LABEL_INVALID else (ImageStatus.LABEL_INVALID, f"{text}; {problem[1]}")


def judge_people(labels: LabelRows, image_size: np.ndarray) -> np.ndarray:
    """(n,) int index into `PERSON_PROBLEMS`, 0 = usable; `image_size`: (n, 2) width, height [px], 0 = unknown."""
    problem, seen = find_row_problems(labels.pose, labels.betas, labels.transl), labels.seen
    compared = (seen.mask_width > 0) & (image_size[:, 0] > 0)
    other_size = compared & ((seen.mask_width != image_size[:, 0]) | (seen.mask_height != image_size[:, 1]))
    mask_problem = np.select((seen.mask_damaged, other_size), (len(ROW_PROBLEMS), len(ROW_PROBLEMS) + 1), default=0)
    return np.where(problem > 0, problem, mask_problem)


def person_columns(
    labels: LabelRows, some: np.ndarray, place: np.ndarray, source_row: np.ndarray, problem: pa.Array
) -> dict[str, Any]:
    """The columns of `schema.MANIFEST_PERSON` of some (m,) of n people; `place` (m,): their position in the image."""
    seen = labels.seen
    return {
        "person_index": place,
        "source_row": source_row,
        **{name: getattr(labels, name)[some] for name in ("pose", "betas", "transl", "bbox_xyxy")},
        **{name: getattr(seen, name)[some] for name in (*SEEN_RANGES, "mask_height", "mask_width")},
        "mask_rle": seen.mask_rle.take(pa.array(some)),
        "problem": problem,
    }
