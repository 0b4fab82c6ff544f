"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays, one row per person, no pickle inside.

`imgname`, `center`, `scale` and `gtkps` are carried through from the released file by each person's source row, so that
a loader which reads these keys without asking finds what it knows. Of people no row stands for (merged in, or from a
source of another layout) imgname is the manifest's name of the image, centre and scale are those of the box, and every
keypoint has confidence 0: not seen. `shape` has eleven columns, the kid axis last: a reader that takes ten loses the
size of children. `z_sigma_m` and `height_sigma_m` are NaN where the solver gives none; z_covariance is one matrix an
image and has no place in rows. `data.sources.camerahmr` reads it back. Foreign names (pose_cam, trans_cam, cam_int ...)
end here. Memory: one row group; each array is a pass over its own columns.

The released file a run was made from (`Release`) is the one whose name and sha256 the manifest tells; a file of other
bytes is never taken.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, read_cameras
from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.exports.inputs import IMAGE_FILE, ExportError, RunLabels, open_manifest
from dto_pipeline.data.exports.job import ExportedFile, ExportJob, SubsetPlan
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import MappedNpz, NpzError, open_member
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tar_index import split_address
from dto_pipeline.reading import parse_json

NUM_KEYPOINTS = 44  # of the released files: OpenPose's 25 and 19 more
CARRIED = ("imgname", "center", "scale", "gtkps")


class Release:
    """An open label file of CameraHMR: mapped arrays, taken by row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            npz = MappedNpz(path)
            self._arrays = {key: npz.array(key) for key in CARRIED if key in npz.keys}
        except NpzError as error:
            raise ExportError(str(error)) from error

    def holds(self, key: str) -> bool:
        """Whether the file has an array; all have `imgname`, some lack the others."""
        return key in self._arrays

    def tail(self, key: str) -> tuple[int, ...]:
        """Shape of one person's entry."""
        return self._arrays[key].shape[1:]

    def rows(self, key: str, index: np.ndarray) -> np.ndarray:
        """(n, ...) the entries of some rows."""
        return np.asarray(self._arrays[key][index])

    def names(self, index: np.ndarray) -> np.ndarray:
        """(n,) str `imgname` of some rows, as published."""
        return decode_names(self.rows("imgname", index))


def open_release(run: RunLabels, manifest: Manifest, named: Sequence[Location]) -> Release | None:
    """The label file of a run; None where it was no file of CameraHMR's.

    Args:
        named: places to look at before those that the manifest tells.

    Raises:
        ExportError: it is not there, with the places tried.
    """
    if manifest.dataset.get("source") != "camerahmr":
        return None
    entry = _label_file(manifest)
    tried = []
    for place in dict.fromkeys(
        [*(p for p in map(as_location, named) if isinstance(p, Path)), *_places(manifest, entry)]
    ):
        if not place.is_file():
            tried.append(f"{place}: no such file")
        elif place.stat().st_size != entry["bytes"] or sha256_file(place) != entry["sha256"]:
            tried.append(f"{place}: another file (its sha256 is not {entry['sha256'][:16]})")
        else:
            return Release(place)
    raise ExportError(
        f"run {run.name}: its label file {entry['file']}, of which {', '.join(CARRIED)} are carried through, was not "
        f"found ({'; '.join(tried[:3]) or 'nothing tells where it is'}); name it with --labels"
    )


def _label_file(manifest: Manifest) -> dict[str, Any]:
    """What the footer says of the first label file: file, bytes, sha256. Raises: ExportError."""
    try:
        entry = parse_json(manifest.metadata["label_files"])[0]
        return {key: entry[key] for key in ("file", "bytes", "sha256")}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{manifest.path}: footer garbles its label files ({error}); build it again") from error


def _places(manifest: Manifest, entry: dict[str, str]) -> Iterator[Path]:
    """Where the label file may be: below the data root, which the images folder tells, or above the manifest."""
    images, root = str(manifest.dataset.get("images", "")), manifest.images_root
    names = list(dict.fromkeys([entry["file"], str(manifest.dataset.get("labels", ""))]))
    inside = isinstance(root, Path) and images and root.parts[-len(Path(images).parts) :] == Path(images).parts
    if isinstance(root, Path) and inside:
        yield from (Path(*root.parts[: -len(Path(images).parts)]) / name for name in names if name)
    if isinstance(manifest.path, Path):
        yield from (folder / name for folder in manifest.path.absolute().parents for name in names if name)


_Releases = Mapping[str, Release | None]  # of each run, by its name

_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]
_PERSON = "persons.list.element"
NO_BOX = "persons without a box: center and scale are NaN"
NO_KEYPOINTS = "persons without keypoints: gtkps has confidence 0"


@dataclass(frozen=True)
class _Member:
    """One array of the file: where its values come from."""

    key: str
    dtype: str
    shape: tuple[int, ...]  # of one person; of what is carried through, where no release tells another
    columns: tuple[str, ...]  # Parquet's names
    values: Callable[[pa.Table], np.ndarray]  # (n, *shape) of the people of a table
    carried: bool = False  # from the released file, where a person has a row there


def write_camerahmr_files(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per subset."""
    files = []
    for subset in job.subsets:
        name = f"{subset.subset}-dto.npz"
        releases = {run.name: open_release(run, open_manifest(run), job.labels) for run in subset.runs}
        with zipfile.ZipFile(folder / name, "w") as archive:
            _write_names(job, archive, subset, releases)
            for member in _MEMBERS:
                _write_member(job, archive, subset, member, releases)
        files.append(ExportedFile(name, subset.images, subset.persons))
    return files


def _write_member(
    job: ExportJob,
    archive: zipfile.ZipFile,
    subset: SubsetPlan,
    member: _Member,
    releases: _Releases,
) -> None:
    tail = _tail(subset, member, releases)
    columns = (*member.columns, *(_SOURCE_ROW if member.carried else ()))
    with open_member(archive, member.key, np.dtype(member.dtype), (subset.persons, *tail)) as stream:
        for run in subset.runs:
            for table in job.plan.run_tables(run, columns, False):
                values = np.ascontiguousarray(member.values(table), member.dtype)
                if member.carried:
                    values = _carry(job, table, values, tail, member.key, releases[run.name])
                stream.write(values.tobytes())
                job.advance(table.num_rows if member.key == "pose_cam" else 0)  # half of all bytes: it moves the bar


def _tail(subset: SubsetPlan, member: _Member, releases: _Releases) -> tuple[int, ...]:
    """Shape of one person's entry, as the released files have it."""
    held = [release for release in releases.values() if member.carried and release and release.holds(member.key)]
    tails = {release.tail(member.key) for release in held}
    if len(tails) > 1:
        raise ExportError(f"subset {subset.subset}: {member.key} has the shapes {sorted(tails)}; export its runs apart")
    return tails.pop() if tails else member.shape


def _carry(
    job: ExportJob, table: pa.Table, own: np.ndarray, tail: tuple[int, ...], key: str, release: Release | None
) -> np.ndarray:
    """Entries of the released file by source row; our own where a person has none."""
    if own.shape[1:] != tail:  # a box has one size, a released scale may have two; keypoints are of any number
        own = np.broadcast_to(own.reshape(*own.shape[:1], *(1,) * len(tail)), (len(own), *tail)).copy()
    row = _people(table).field("source_row").to_numpy(zero_copy_only=False)
    known = row >= 0 if release is not None and release.holds(key) else np.zeros(len(row), bool)
    if release is not None and known.any():
        own = own.copy()
        own[known] = release.rows(key, row[known])
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
        for table in job.plan.run_tables(run, ("image_path", *_SOURCE_ROW), True):
            pairs = zip(table[IMAGE_FILE].to_pylist(), table["image_path"].to_pylist(), strict=True)
            names = [key if split_address(file) else file for file, key in pairs]
            counts, release = table["num_persons"].to_numpy(), releases[run.name]
            if release is not None:
                row = _people(table).field("source_row").to_numpy(zero_copy_only=False)
                owner = np.repeat(np.arange(len(names)), counts)
                told, first = np.unique(owner[row >= 0], return_index=True)
                published = release.names(row[row >= 0][first])
                for image, name in zip(told.tolist(), published.tolist(), strict=True):
                    names[image] = name
            yield names, counts


def _people(table: pa.Table) -> pa.StructArray:
    return single_array(table["persons"]).flatten()


def _boxes(table: pa.Table) -> np.ndarray:
    return read_vectors(_people(table).field("bbox_xyxy"))


def _centres(table: pa.Table) -> np.ndarray:
    boxes = _boxes(table)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sizes(table: pa.Table) -> np.ndarray:
    boxes = _boxes(table)
    return (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / _BOX_UNIT


def _intrinsics(table: pa.Table) -> np.ndarray:
    return np.repeat(read_cameras(table), table["num_persons"].to_numpy(), axis=0)


def _vectors(name: str) -> Callable[[pa.Table], np.ndarray]:
    return lambda table: read_vectors(_people(table).field(name))


def _column(name: str) -> tuple[str]:
    return (f"{_PERSON}.{name}.list.element",)


def _numbers(name: str) -> Callable[[pa.Table], np.ndarray]:
    return lambda table: _people(table).field(name).to_numpy(zero_copy_only=False)


def _unseen(table: pa.Table) -> np.ndarray:
    return np.zeros(len(_people(table)), np.float32)


_SOURCE_ROW = (f"{_PERSON}.source_row",)
_MEMBERS = (
    _Member("center", "<f4", (2,), _column("bbox_xyxy"), _centres, carried=True),
    _Member("scale", "<f4", (), _column("bbox_xyxy"), _sizes, carried=True),
    _Member("gtkps", "<f4", (NUM_KEYPOINTS, 3), (), _unseen, carried=True),
    _Member("pose_cam", "<f4", (72,), _column("pose"), _vectors("pose")),
    _Member("shape", "<f4", (NUM_BETAS,), _column("betas"), _vectors("betas")),
    _Member("trans_cam", "<f4", (3,), _column("transl"), _vectors("transl")),
    _Member("z_sigma_m", "<f4", (), (f"{_PERSON}.z_sigma_m",), _numbers("z_sigma_m")),
    _Member("height_sigma_m", "<f4", (), (f"{_PERSON}.height_sigma_m",), _numbers("height_sigma_m")),
    _Member("cam_int", "<f8", (3, 3), CAMERA_COLUMNS, _intrinsics),
)
