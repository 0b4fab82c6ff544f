"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays without pickles, one row per person.

`imgname`, `center`, `scale` and `gtkps`, which loaders of this layout need, are copied from the released file the run
was made from, by each person's source row. People without a source row (merged in, or of a source in another layout)
get the manifest's image name, centre and scale of their box, and keypoints of confidence 0. `shape` has eleven columns,
the kid axis last. `z_sigma_m` and `height_sigma_m` are NaN where the solver gives none. `z_covariance` is not written,
as it belongs to an image. `data.sources.camerahmr` reads the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.exports.job import ExportError, ExportJob, Subset
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.label_files import IMAGE_FILE, LabelColumns, RunLabels, flatten_table
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import NpzFile, open_member
from dto_pipeline.data.sources.camerahmr import BOX_UNIT
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location
from dto_pipeline.data.tars import split_address
from dto_pipeline.reading import parse_json

NO_BOX = "persons without a box: center and scale are NaN"
NO_KEYPOINTS = "persons without keypoints: gtkps has confidence 0"
_SHAPES = {"center": (2,), "scale": (), "gtkps": (44, 3)}  # of one person, unless the released file differs
_COPIED = ("imgname", *_SHAPES)
_LABELS = {"pose_cam": "pose", "shape": "betas", "trans_cam": "transl"} | {
    name: name for name in ("z_sigma_m", "height_sigma_m")
}  # key -> our column
_IMAGES = ("image_path", IMAGE_FILE, *CAMERA_COLUMNS, "persons")
_PEOPLE = (*_LABELS.values(), "bbox_xyxy", "source_row")

_Release = dict[str, np.ndarray]  # arrays of a released file; empty = the run was made from none


def write_camerahmr(job: ExportJob) -> None:
    """One npz per subset."""
    for subset in job.taken:
        releases = [_open_release(run, job.labels) for run in subset.runs]
        shapes = {key: _shape_of_one(subset, key, releases) for key in _SHAPES}
        parts = [
            _arrays(job, flatten_table(table.select(_IMAGES), _PEOPLE), release, shapes)
            for tables, release in zip(subset.tables, releases, strict=True)
            for table in job.read(_drain(tables))
        ]
        releases.clear()
        path = f"{subset.name}-dto.npz"
        with zipfile.ZipFile(job.folder / path, "w") as archive:
            for key in list(parts[0]):
                arrays = [part.pop(key) for part in parts]
                dtype = reduce(np.promote_types, {array.dtype for array in arrays})  # names are of several lengths
                shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
                with open_member(archive, key, dtype, shape, packed=key == "imgname") as stream:
                    for array in arrays:
                        stream.write(np.ascontiguousarray(array, dtype).data)
        job.add(path, subset.images, subset.persons)


def _drain(tables: list[pa.Table]) -> Iterator[pa.Table]:
    """The tables, each forgotten once it was used: what it held and what is made of it would fill the memory twice."""
    while tables:
        yield tables.pop(0)


def _arrays(
    job: ExportJob, labels: LabelColumns, release: _Release, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The file's arrays for the n people of some images."""
    with np.errstate(over="ignore"):  # what single precision cannot hold becomes infinite
        return {
            "imgname": np.array(_name_images(labels, release), str)[labels.owner],
            **{key: _copy(job, key, shape, labels, release) for key, shape in shapes.items()},
            **{key: labels.people[name].astype(np.float32) for key, name in _LABELS.items()},
            "cam_int": labels.intrinsics[labels.owner],
        }


def _open_release(run: RunLabels, named: Sequence[Location]) -> _Release:
    """The released file a run was made from, known by the sha256 that the manifest recorded.

    Args:
        named: places to try first.

    Raises: ExportError: it is at none of the places. PickleRefused: it is damaged.
    """
    manifest = run.open_manifest()
    if manifest.dataset.get("source") != "camerahmr":
        return {}
    try:
        entry = parse_json(manifest.metadata["label_files"])[0]
        name, size, sha256 = (entry[key] for key in ("file", "bytes", "sha256"))
    except (ValueError, LookupError, TypeError) as error:
        raise ExportError(f"{manifest.path}: footer garbles its label files ({error}); build it again") from error
    tried = []
    for place in dict.fromkeys([*(place for place in named if isinstance(place, Path)), *_places(manifest, name)]):
        if not place.is_file():
            tried.append(f"{place}: no such file")
        elif place.stat().st_size != size or sha256_file(place) != sha256:
            tried.append(f"{place}: another file (its sha256 is not {sha256[:16]})")
        else:
            npz = NpzFile(place)
            return {key: npz.array(key) for key in _COPIED if key in npz.keys}
    raise ExportError(
        f"run {run.name}: its label file {name}, of which {', '.join(_COPIED)} are copied, was not found "
        f"({'; '.join(tried[:3])}); name it with --labels"
    )


def _places(manifest: Manifest, file: str) -> Iterator[Path]:
    """Where the label file may be: below any folder above the images or the manifest."""
    names = [name for name in (file, str(manifest.dataset.get("labels", ""))) if name]
    for place in (manifest.images_root, manifest.path):
        if isinstance(place, Path):
            yield from (folder / name for folder in place.absolute().parents for name in names)


def _shape_of_one(subset: Subset, key: str, releases: list[_Release]) -> tuple[int, ...]:
    """The shape of one person's entry: a released scale may be two numbers, gtkps may have any number of keypoints."""
    shapes = {release[key].shape[1:] for release in releases if key in release} or {_SHAPES[key]}
    if len(shapes) > 1:
        raise ExportError(f"subset {subset.name}: {key} has the shapes {sorted(shapes)}; export its runs apart")
    return shapes.pop()


def _name_images(labels: LabelColumns, release: _Release) -> list[str]:
    """Names of the images: as in the release, else as in the manifest; for images in tars their published keys."""
    pairs = zip(labels.images[IMAGE_FILE], labels.images["image_path"], strict=True)
    names = [key if split_address(file) else file for file, key in pairs]
    if release:
        row = labels.people["source_row"]
        images, first = np.unique(labels.owner[row >= 0], return_index=True)
        published = decode_names(np.asarray(release["imgname"][row[row >= 0][first]]))
        for image, name in zip(images.tolist(), published.tolist(), strict=True):
            names[image] = name
    return names


def _copy(job: ExportJob, key: str, shape: tuple[int, ...], labels: LabelColumns, release: _Release) -> np.ndarray:
    """(n, *shape): entries of the release by source row; for people without one, computed from their box."""
    row, box = labels.people["source_row"], labels.people["bbox_xyxy"]
    values = np.zeros((len(row), *shape), np.float32)
    if key == "center":
        values[...] = (box[:, :2] + box[:, 2:]) / 2
    elif key == "scale":
        side = (box[:, 2:] - box[:, :2]).max(axis=1) / BOX_UNIT
        values[...] = side.reshape(-1, *(1,) * len(shape))
    known = (row >= 0) & (key in release)
    if known.any():
        values[known] = release[key][row[known]]
    if key == "gtkps":
        job.notes[NO_KEYPOINTS] += int((~known).sum())
    elif key == "center":
        job.notes[NO_BOX] += int((~np.isfinite(values).all(axis=1)).sum())
    return values
