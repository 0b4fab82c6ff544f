"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays without pickles, one row per person.

`imgname`, `center`, `scale` and `gtkps` are copied from the released file the run was made from, by each person's
source row, because loaders of this layout need these keys. People without a source row (merged in, or of a source in
another layout) get the manifest's image name, centre and scale of their box, and keypoints of confidence 0. `shape` has
eleven columns, the kid axis last. `z_sigma_m` and `height_sigma_m` are NaN where the solver gives none; `z_covariance`
belongs to an image and has no place here. `data.sources.camerahmr` reads the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, starmap
from pathlib import Path

import numpy as np

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.exports.job import ExportError, ExportJob, Subset
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.label_files import IMAGE_FILE, LabelColumns, RunLabels, flatten_table
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import NpzFile, open_member
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location
from dto_pipeline.data.tars import split_address
from dto_pipeline.reading import parse_json

NO_BOX = "persons without a box: center and scale are NaN"
NO_KEYPOINTS = "persons without keypoints: gtkps has confidence 0"
_SHAPES = {"center": (2,), "scale": (), "gtkps": (44, 3)}  # of one person, where no release has another
_COPIED = ("imgname", *_SHAPES)
_F4 = np.dtype("<f4")
_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]
_LABELS = {"pose_cam": "pose", "shape": "betas", "trans_cam": "transl"} | {
    name: name for name in ("z_sigma_m", "height_sigma_m")
}  # key -> our column
_IMAGES = ("image_path", IMAGE_FILE, *CAMERA_COLUMNS, "persons")
_PEOPLE = (*_LABELS.values(), "bbox_xyxy", "source_row")

_Release = dict[str, np.ndarray]  # arrays of a released file; empty = the run was made from none


def write_camerahmr(job: ExportJob) -> None:
    """One npz per subset, an array after the other."""
    for subset in job.taken:
        releases = [_open_release(run, job.labels) for run in subset.runs]
        pairs = zip(subset.tables, releases, strict=True)
        crowds = [
            (flatten_table(table.select(_IMAGES), _PEOPLE), release)
            for tables, release in pairs
            for table in job.read(tables)
        ]
        names = [_name_images(labels, release) for labels, release in crowds]
        text = np.dtype(f"<U{max(len(name) for some in names for name in some)}")
        arrays: dict[str, tuple[np.dtype, Iterable[np.ndarray]]] = {
            "imgname": (text, (np.array(s, text)[labels.owner] for s, (labels, _) in zip(names, crowds, strict=True)))
        }
        for key in _SHAPES:
            arrays[key] = _F4, starmap(partial(_copy, job, key, _shape_of_one(subset, key, releases)), crowds)
        for key, name in _LABELS.items():
            arrays[key] = _F4, [labels.people[name] for labels, _ in crowds]
        arrays["cam_int"] = np.dtype("<f8"), (labels.intrinsics[labels.owner] for labels, _ in crowds)
        path = f"{subset.name}-dto.npz"
        with zipfile.ZipFile(job.folder / path, "w") as archive, np.errstate(over="ignore"):
            for key, (kind, values) in arrays.items():
                parts = iter(values)
                first = next(parts)
                shape = (subset.persons, *first.shape[1:])
                with open_member(archive, key, kind, shape, packed=kind is text) as stream:
                    for part in chain([first], parts):
                        stream.write(np.ascontiguousarray(part, kind).tobytes())
        job.add(path, subset.images, subset.persons)


def _open_release(run: RunLabels, named: Sequence[Location]) -> _Release:
    """The released file a run was made from, known by the sha256 that the manifest recorded.

    Args:
        named: places to try first.

    Raises: ExportError: it is at none of the places, or it is damaged.
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
            try:
                npz = NpzFile(place)
                return {key: npz.array(key) for key in _COPIED if key in npz.keys}
            except PickleRefused as error:
                raise ExportError(str(error)) from error
    raise ExportError(
        f"run {run.name}: its label file {name}, of which {', '.join(_COPIED)} are copied, was not found "
        f"({'; '.join(tried[:3])}); name it with --labels"
    )


def _places(manifest: Manifest, file: str) -> Iterator[Path]:
    """Where the label file may be: below a folder that the images or the manifest are in."""
    names = [name for name in (file, str(manifest.dataset.get("labels", ""))) if name]
    for place in (manifest.images_root, manifest.path):
        if isinstance(place, Path):
            yield from (folder / name for folder in place.absolute().parents for name in names)


def _shape_of_one(subset: Subset, key: str, releases: list[_Release]) -> tuple[int, ...]:
    """The shape of one person's entry: a released scale may have two numbers, gtkps any number of keypoints."""
    shapes = {release[key].shape[1:] for release in releases if key in release} or {_SHAPES[key]}
    if len(shapes) > 1:
        raise ExportError(f"subset {subset.name}: {key} has the shapes {sorted(shapes)}; export its runs apart")
    return shapes.pop()


def _name_images(labels: LabelColumns, release: _Release) -> list[str]:
    """Names of the images: as in the release; else as in the manifest, for images in tars their published keys."""
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
    """(n, *shape) entries of the release by source row; for people without one, what follows from their box."""
    row, box = labels.people["source_row"], labels.people["bbox_xyxy"]
    values = np.zeros((len(row), *shape), np.float32)
    if key == "center":
        values[...] = (box[:, :2] + box[:, 2:]) / 2
    elif key == "scale":
        side = (box[:, 2:] - box[:, :2]).max(axis=1) / _BOX_UNIT
        values[...] = side.reshape(-1, *(1,) * len(shape))
    known = (row >= 0) & (key in release)
    if known.any():
        values[known] = release[key][row[known]]
    if key == "gtkps":
        job.notes[NO_KEYPOINTS] += int((~known).sum())
    elif key == "center":
        job.notes[NO_BOX] += int((~np.isfinite(values).all(axis=1)).sum())
    return values
