"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays, one row per person, no pickle inside.

`imgname`, `center`, `scale` and `gtkps` are carried through from the released file by each person's source row, so that
a loader which reads these keys without asking finds what it knows. Of people no row stands for (merged in, or from a
source of another layout) imgname is the manifest's name of the image, centre and scale are those of the box, and every
keypoint has confidence 0: not seen. `shape` has eleven columns, the kid axis last: a reader that takes ten loses the
size of children. `z_sigma_m` and `height_sigma_m` are NaN where the solver gives none; z_covariance is one matrix an
image and has no place in rows. `data.sources.camerahmr` reads it back. Foreign names (pose_cam, trans_cam, cam_int ...)
end here. Memory: one row group; each array is a pass over its own columns.

The released file a run was made from is the one whose name and sha256 the manifest tells; a file of other bytes is
never taken.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, read_cameras
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.exports.job import ExportedFile, ExportError, ExportJob, SubsetPlan
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.label_files import IMAGE_FILE, RunLabels, person_leaf
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import MappedNpz, NpzError, open_member
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import split_address
from dto_pipeline.reading import parse_json

NUM_KEYPOINTS = 44  # of the released files: OpenPose's 25 and 19 more
CARRIED = ("imgname", "center", "scale", "gtkps")
NO_BOX = "persons without a box: center and scale are NaN"
NO_KEYPOINTS = "persons without keypoints: gtkps has confidence 0"
_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]

_Release = dict[str, np.ndarray]  # arrays that are carried through, mapped
_Releases = Mapping[str, _Release | None]  # of each run, by its name


@dataclass(frozen=True)
class _Member:
    """One array of the file: where its values come from."""

    key: str
    shape: tuple[int, ...]  # of one person; of what is carried through, where no release tells another
    columns: tuple[str, ...]  # of people, or of images, to read
    values: Callable[[pa.Table], np.ndarray]  # (n, *shape) of the people of a table
    carried: bool = False  # from the released file, where a person has a row there
    dtype: str = "<f4"


def write_camerahmr_files(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per subset."""
    files = []
    for subset in job.subsets:
        name = f"{subset.subset}-dto.npz"
        releases = {run.name: _open_release(run, job.labels) for run in subset.runs}
        with zipfile.ZipFile(folder / name, "w") as archive:
            _write_names(job, archive, subset, releases)
            for member in _MEMBERS:
                _write_member(job, archive, subset, member, releases)
        files.append(ExportedFile(name, subset.images, subset.persons))
    return files


def _open_release(run: RunLabels, named: Sequence[Location]) -> _Release | None:
    """Arrays of the label file a run was made from; None where it was no file of CameraHMR's.

    Args:
        named: places to look at before those that the manifest tells.

    Raises:
        ExportError: it is not there, with the places tried.
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
    for place in dict.fromkeys(
        [*(p for p in map(as_location, named) if isinstance(p, Path)), *_places(manifest, name)]
    ):
        if not place.is_file():
            tried.append(f"{place}: no such file")
        elif place.stat().st_size != size or sha256_file(place) != sha256:
            tried.append(f"{place}: another file (its sha256 is not {sha256[:16]})")
        else:
            return _map_release(place)
    raise ExportError(
        f"run {run.name}: its label file {name}, of which {', '.join(CARRIED)} are carried through, was not "
        f"found ({'; '.join(tried[:3]) or 'nothing tells where it is'}); name it with --labels"
    )


def _map_release(path: Path) -> _Release:
    """Raises: ExportError where an array that is carried through is damaged."""
    try:
        npz = MappedNpz(path)
        return {key: npz.array(key) for key in CARRIED if key in npz.keys}  # all have `imgname`, some lack the others
    except NpzError as error:
        raise ExportError(str(error)) from error


def _places(manifest: Manifest, file: str) -> Iterator[Path]:
    """Where the label file may be: below the data root, which the images folder tells, or above the manifest."""
    images, root = Path(str(manifest.dataset.get("images", ""))), manifest.images_root
    names = [name for name in dict.fromkeys([file, str(manifest.dataset.get("labels", ""))]) if name]
    if isinstance(root, Path) and images.parts and root.parts[-len(images.parts) :] == images.parts:
        yield from (root.parents[len(images.parts) - 1] / name for name in names)
    if isinstance(manifest.path, Path):
        yield from (folder / name for folder in manifest.path.absolute().parents for name in names)


def _write_member(
    job: ExportJob, archive: zipfile.ZipFile, subset: SubsetPlan, member: _Member, releases: _Releases
) -> None:
    held = [
        release[member.key] for release in releases.values() if member.carried and release and member.key in release
    ]
    tails = {array.shape[1:] for array in held} or {member.shape}
    if len(tails) > 1:
        raise ExportError(f"subset {subset.subset}: {member.key} has the shapes {sorted(tails)}; export its runs apart")
    (tail,) = tails
    columns = (*member.columns, *(_SOURCE_ROW if member.carried else ()))
    with open_member(archive, member.key, np.dtype(member.dtype), (subset.persons, *tail)) as stream:
        for run in subset.runs:
            for table in job.tables([run], columns):
                values = np.ascontiguousarray(member.values(table), member.dtype)
                if member.carried:
                    values = _carry(job, table, values, tail, member.key, releases[run.name])
                stream.write(values.tobytes())
                job.advance(table.num_rows if member.key == "pose_cam" else 0)  # half of all bytes: it moves the bar


def _carry(
    job: ExportJob, table: pa.Table, own: np.ndarray, tail: tuple[int, ...], key: str, release: _Release | None
) -> np.ndarray:
    """(n, *tail) entries of the released file by source row; our own where a person has none."""
    if own.shape[1:] != tail:  # a box has one size, a released scale may have two; keypoints are of any number
        own = np.broadcast_to(own.reshape(*own.shape[:1], *(1,) * len(tail)), (len(own), *tail))
    known = np.zeros(len(own), bool)
    if release is not None and key in release:
        row = _of_people("source_row")(table)
        known = row >= 0
        own = own.copy()
        own[known] = release[key][row[known]]
    if key == "gtkps":
        job.notes[NO_KEYPOINTS] += int((~known).sum())
    if key == "center":
        job.notes[NO_BOX] += int((~np.isfinite(own).all(axis=1)).sum())
    return own


def _write_names(job: ExportJob, archive: zipfile.ZipFile, subset: SubsetPlan, releases: _Releases) -> None:
    """Text of fixed width: one pass to find the width, one to write."""
    width = max(len(name) for names, _ in _image_names(job, subset, releases) for name in names)
    dtype = np.dtype(f"<U{width}")
    with open_member(archive, "imgname", dtype, (subset.persons,), packed=True) as stream:
        for names, counts in _image_names(job, subset, releases):
            stream.write(np.repeat(np.array(names, dtype), counts).tobytes())


def _image_names(job: ExportJob, subset: SubsetPlan, releases: _Releases) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names of the images of each row group, and how many people each has."""
    for run in subset.runs:
        for table in job.tables([run], ("image_path", *_SOURCE_ROW), image_files=True):
            pairs = zip(table[IMAGE_FILE].to_pylist(), table["image_path"].to_pylist(), strict=True)
            names = [key if split_address(file) else file for file, key in pairs]
            counts, release = table["num_persons"].to_numpy(), releases[run.name]
            if release is not None:
                row = _of_people("source_row")(table)
                owner = np.repeat(np.arange(len(names)), counts)
                told, first = np.unique(owner[row >= 0], return_index=True)
                published = decode_names(np.asarray(release["imgname"][row[row >= 0][first]]))
                for image, name in zip(told.tolist(), published.tolist(), strict=True):
                    names[image] = name
            yield names, counts


def _of_people(name: str) -> Callable[[pa.Table], np.ndarray]:
    """Reads a column of people: (n,) or (n, k)."""
    return lambda table: read_numbers(single_array(table["persons"]).flatten().field(name))


def _centres(table: pa.Table) -> np.ndarray:
    boxes = _of_people("bbox_xyxy")(table)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sizes(table: pa.Table) -> np.ndarray:
    boxes = _of_people("bbox_xyxy")(table)
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / _BOX_UNIT


def _intrinsics(table: pa.Table) -> np.ndarray:
    return np.repeat(read_cameras(table), table["num_persons"].to_numpy(), axis=0)


def _from_labels(key: str, name: str, shape: tuple[int, ...]) -> _Member:
    return _Member(key, shape, (person_leaf(name),), _of_people(name))


_SOURCE_ROW, _BOX = (person_leaf("source_row"),), (person_leaf("bbox_xyxy"),)
_MEMBERS = (
    _Member("center", (2,), _BOX, _centres, carried=True),
    _Member("scale", (), _BOX, _sizes, carried=True),
    _Member("gtkps", (NUM_KEYPOINTS, 3), _SOURCE_ROW, lambda t: 0 * _of_people("source_row")(t), carried=True),
    _from_labels("pose_cam", "pose", (72,)),
    _from_labels("shape", "betas", (NUM_BETAS,)),
    _from_labels("trans_cam", "transl", (3,)),
    _from_labels("z_sigma_m", "z_sigma_m", ()),
    _from_labels("height_sigma_m", "height_sigma_m", ()),
    _Member("cam_int", (3, 3), CAMERA_COLUMNS, _intrinsics, dtype="<f8"),
)
