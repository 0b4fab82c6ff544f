"""CameraHMR's flat layout: ``<subset>-dto.npz``, plain arrays, one row per person, no pickle inside.

`data.sources.camerahmr` reads it back. `shape` has eleven columns, the kid axis last: a reader that takes ten loses the
size of children. imgname is the manifest's name of the image, or the published key where that lies in a tar. Foreign
names (pose_cam, trans_cam, cam_int ...) end here. Memory: one row group; each array is a pass over its own columns.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, read_cameras
from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.exports.folder import ExportedFile
from dto_pipeline.data.exports.inputs import IMAGE_FILE
from dto_pipeline.data.exports.job import ExportJob
from dto_pipeline.data.exports.npz_stream import create_npz, open_member
from dto_pipeline.data.exports.plan import SubsetPlan
from dto_pipeline.data.tar_index import split_address

_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]
_PERSON = "persons.list.element"


@dataclass(frozen=True)
class _Member:
    """One array of the file: where its values come from."""

    key: str
    dtype: str
    shape: tuple[int, ...]  # of one person
    columns: tuple[str, ...]  # Parquet's names
    values: Callable[[pa.Table], np.ndarray]  # (n, *shape) of the people of a table


def write_camerahmr_files(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per subset."""
    files = []
    for subset in job.subsets:
        name = f"{subset.subset}-dto.npz"
        with create_npz(folder / name) as archive:
            _write_names(job, archive, subset)
            for member in _MEMBERS:
                _write_member(job, archive, subset, member)
        files.append(ExportedFile(name, subset.images, subset.persons))
    return files


def _write_member(job: ExportJob, archive: zipfile.ZipFile, subset: SubsetPlan, member: _Member) -> None:
    # The pass over poses is half of all bytes: it alone moves the progress bar.
    tables = job.tables if member.key == "pose_cam" else job.plan.tables
    shape = (subset.persons, *member.shape)
    with open_member(archive, member.key, np.dtype(member.dtype), shape) as stream:
        for table in tables(subset, member.columns):
            stream.write(np.ascontiguousarray(member.values(table), member.dtype).tobytes())


def _write_names(job: ExportJob, archive: zipfile.ZipFile, subset: SubsetPlan) -> None:
    """Text of fixed width: one pass to find the width, one to write."""
    width = max(len(name) for names, _ in _image_names(job, subset) for name in names)
    dtype = np.dtype(f"<U{width}")
    with open_member(archive, "imgname", dtype, (subset.persons,), packed=True) as stream:
        for names, counts in _image_names(job, subset):
            stream.write(np.repeat(np.array(names, dtype), counts).tobytes())


def _image_names(job: ExportJob, subset: SubsetPlan) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names of the images of each row group, and how many people each has."""
    for table in job.plan.tables(subset, ("image_path",), image_files=True):
        pairs = zip(table[IMAGE_FILE].to_pylist(), table["image_path"].to_pylist(), strict=True)
        yield [key if split_address(file) else file for file, key in pairs], table["num_persons"].to_numpy()


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


_MEMBERS = (
    _Member("center", "<f4", (2,), _column("bbox_xyxy"), _centres),
    _Member("scale", "<f4", (), _column("bbox_xyxy"), _sizes),
    _Member("pose_cam", "<f4", (72,), _column("pose"), _vectors("pose")),
    _Member("shape", "<f4", (NUM_BETAS,), _column("betas"), _vectors("betas")),
    _Member("trans_cam", "<f4", (3,), _column("transl"), _vectors("transl")),
    _Member("cam_int", "<f8", (3, 3), CAMERA_COLUMNS, _intrinsics),
)
