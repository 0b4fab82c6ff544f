"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays, one row per person, no pickle inside.

`imgname`, `center`, `scale` and `gtkps` are carried through from the released file by each person's source row, so that
a loader which reads these keys without asking finds what it knows. Of people no row stands for (merged in, or from a
source of another layout) imgname is the manifest's name of the image, centre and scale are those of the box, and every
keypoint has confidence 0: not seen. `shape` has eleven columns, the kid axis last: a reader that takes ten loses the
size of children. `z_sigma_m` and `height_sigma_m` are NaN where the solver gives none; z_covariance is one matrix an
image and has no place in rows. `data.sources.camerahmr` reads it back. Foreign names (pose_cam, trans_cam, cam_int ...)
end here. Memory: one row group and the names of the images; the arrays grow in temporary files.

The released file a run was made from is the one whose name and sha256 the manifest tells; a file of other bytes is
never taken.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.exports.job import ExportError, ExportJob, SubsetPlan
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.label_files import IMAGE_FILE, LabelColumns, RunLabels, flatten_table, person_leaf
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import MappedNpz, open_member
from dto_pipeline.data.scratch import FlatColumn
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location
from dto_pipeline.data.tars import split_address
from dto_pipeline.reading import parse_json

CARRIED = ("imgname", "center", "scale", "gtkps")
NO_BOX = "persons without a box: center and scale are NaN"
NO_KEYPOINTS = "persons without keypoints: gtkps has confidence 0"
_SHAPES = {"center": (2,), "scale": (), "gtkps": (44, 3)}  # of one person, where no release tells another
_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]
_LABELS = {"pose_cam": "pose", "shape": "betas", "trans_cam": "transl"} | {
    name: name for name in ("z_sigma_m", "height_sigma_m")
}  # key -> our column
_PEOPLE = (*_LABELS.values(), "bbox_xyxy", "source_row")
_NAMES_AT_ONCE = 1 << 13

_Release = dict[str, np.ndarray]  # arrays that are carried through, mapped


def write_camerahmr(job: ExportJob) -> None:
    """One npz per subset."""
    columns = ("image_path", *CAMERA_COLUMNS, *map(person_leaf, _PEOPLE))
    for subset in job.taken:
        releases = {run.name: _open_release(run, job.labels) for run in subset.runs}
        shapes = {key: _carried_shape(subset, key, [*filter(None, releases.values())]) for key in _SHAPES}
        names: list[str] = []
        counts: list[int] = []
        arrays: dict[str, FlatColumn] = {}
        for run in subset.runs:
            for table in job.tables([run], columns, image_files=True):
                labels, release = flatten_table(table, _PEOPLE), releases[run.name] or {}
                names += _name_images(labels, release)
                counts += np.diff(labels.starts).tolist()
                for key, values in (_carry(job, labels, release, shapes) | _take(labels)).items():
                    kind = "<f8" if key == "cam_int" else "<f4"
                    arrays.setdefault(key, FlatColumn(kind, values.shape[1:])).append(values)
        path = f"{subset.subset}-dto.npz"
        with zipfile.ZipFile(job.folder / path, "w") as archive:
            text = np.dtype(f"<U{max(map(len, names))}")
            with open_member(archive, "imgname", text, (subset.persons,), packed=True) as stream:
                for start in range(0, len(names), _NAMES_AT_ONCE):
                    part = slice(start, start + _NAMES_AT_ONCE)
                    stream.write(np.repeat(np.array(names[part], text), counts[part]).tobytes())
            for key, column in arrays.items():
                with open_member(archive, key, column.dtype, (subset.persons, *column.tail)) as stream:
                    stream.write(column.mapped().data)
        job.add(path, subset.images, subset.persons)


def _open_release(run: RunLabels, named: Sequence[Location]) -> _Release | None:
    """Arrays of the label file a run was made from; None where it was no file of CameraHMR's.

    Args:
        named: places to look at before those that the manifest tells.

    Raises: ExportError: it is not there, with the places tried, or an array that is carried through is damaged.
    """
    manifest = run.open_manifest()
    if manifest.dataset.get("source") != "camerahmr":
        return None
    try:
        entry = parse_json(manifest.metadata["label_files"])[0]
        name, size, sha256 = (entry[key] for key in ("file", "bytes", "sha256"))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{manifest.path}: footer garbles its label files ({error}); build it again") from error
    tried = []
    for place in dict.fromkeys([*(place for place in named if isinstance(place, Path)), *_places(manifest, name)]):
        if not place.is_file():
            tried.append(f"{place}: no such file")
        elif place.stat().st_size != size or sha256_file(place) != sha256:
            tried.append(f"{place}: another file (its sha256 is not {sha256[:16]})")
        else:
            try:
                npz = MappedNpz(place)
                return {key: npz.array(key) for key in CARRIED if key in npz.keys}  # all have `imgname`
            except PickleRefused as error:
                raise ExportError(str(error)) from error
    raise ExportError(
        f"run {run.name}: its label file {name}, of which {', '.join(CARRIED)} are carried through, was not "
        f"found ({'; '.join(tried[:3]) or 'nothing tells where it is'}); name it with --labels"
    )


def _places(manifest: Manifest, file: str) -> Iterator[Path]:
    """Where the label file may be: below the data root, which the images folder tells, or above the manifest."""
    images, root = Path(str(manifest.dataset.get("images", ""))), manifest.images_root
    names = [name for name in dict.fromkeys([file, str(manifest.dataset.get("labels", ""))]) if name]
    if isinstance(root, Path) and images.parts and root.parts[-len(images.parts) :] == images.parts:
        yield from (root.parents[len(images.parts) - 1] / name for name in names)
    if isinstance(manifest.path, Path):
        yield from (folder / name for folder in manifest.path.absolute().parents for name in names)


def _carried_shape(subset: SubsetPlan, key: str, releases: list[_Release]) -> tuple[int, ...]:
    """Of one person in a carried array: a released scale may have two numbers, keypoints are of any number."""
    shapes = {release[key].shape[1:] for release in releases if key in release} or {_SHAPES[key]}
    if len(shapes) > 1:
        raise ExportError(f"subset {subset.subset}: {key} has the shapes {sorted(shapes)}; export its runs apart")
    return shapes.pop()


def _name_images(labels: LabelColumns, release: _Release) -> list[str]:
    """As the release calls the images of its people; others as the manifest does, images in tars by their keys."""
    pairs = zip(labels.images[IMAGE_FILE], labels.images["image_path"], strict=True)
    names = [key if split_address(file) else file for file, key in pairs]
    if release:
        row = labels.people["source_row"]
        told, first = np.unique(labels.owner[row >= 0], return_index=True)
        published = decode_names(np.asarray(release["imgname"][row[row >= 0][first]]))
        for image, name in zip(told.tolist(), published.tolist(), strict=True):
            names[image] = name
    return names


def _carry(
    job: ExportJob, labels: LabelColumns, release: _Release, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Entries of the released file by source row; where a person has none, what its box tells."""
    row, box = labels.people["source_row"], labels.people["bbox_xyxy"]
    sides = box[:, 2:] - box[:, :2]
    own = {"center": (box[:, :2] + box[:, 2:]) / 2, "scale": sides.max(axis=1) / _BOX_UNIT, "gtkps": np.zeros(len(row))}
    carried = {}
    for key, shape in shapes.items():
        values = np.zeros((len(row), *shape), np.float32)
        values[...] = own[key] if own[key].shape == values.shape else own[key].reshape(-1, *(1,) * len(shape))
        known = (row >= 0) & (key in release)
        if known.any():
            values[known] = release[key][row[known]]
        if key == "gtkps":
            job.notes[NO_KEYPOINTS] += int((~known).sum())
        carried[key] = values
    job.notes[NO_BOX] += int((~np.isfinite(carried["center"]).all(axis=1)).sum())
    return carried


def _take(labels: LabelColumns) -> dict[str, np.ndarray]:
    """What is our own, under the names of the layout."""
    return {key: labels.people[name] for key, name in _LABELS.items()} | {"cam_int": labels.intrinsics[labels.owner]}
