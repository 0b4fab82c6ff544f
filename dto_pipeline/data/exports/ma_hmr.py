"""MA-HMR's training labels: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``, one array `annots`, see `annots_pickle`.

insta1 and insta2 become one file, keys with ``insta-train/`` before them; an image of both keeps the people of insta1.
Foreign names (smpl_param, trans, focal, princpt ...) end here. Memory: one row group, and the keys of an earlier subset
of the same file (about 100 bytes an image).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.exports.annots_pickle import END_STREAM, ImagePeople, image_records, start_stream
from dto_pipeline.data.exports.folder import ExportedFile
from dto_pipeline.data.exports.inputs import read_footer
from dto_pipeline.data.exports.job import ExportJob
from dto_pipeline.data.exports.npz_stream import create_npz, open_member
from dto_pipeline.data.exports.plan import SubsetPlan
from dto_pipeline.data.exports.provenance import describe_making

_COLUMNS = (
    *("image_path", "fx", "fy", "cx", "cy", "persons.list.element.pose.list.element"),
    *("persons.list.element.betas.list.element", "persons.list.element.transl.list.element"),
)
_SIGMAS = ("persons.list.element.z_sigma_m", "persons.list.element.height_sigma_m")
REPEATED = "images already taken from an earlier subset of the same file"


def write_ma_hmr(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per data set that has images."""
    names = list(dict.fromkeys(file_name(subset.subset) for subset in job.subsets))
    return [
        _write_file(job, folder, name, [subset for subset in job.subsets if file_name(subset.subset) == name])
        for name in names
    ]


def file_name(subset: str) -> str:
    """The npz a subset goes to."""
    return f"{'INSTA' if _is_insta(subset) else subset.upper()}_CHMR_SMPL_OPT.npz"


def image_key(subset: str, image_path: str) -> str:
    """The key of an image in its npz."""
    return f"insta-train/{image_path}" if _is_insta(subset) else image_path


def _is_insta(subset: str) -> bool:
    return subset in ("insta", "insta1", "insta2")


def _write_file(job: ExportJob, folder: Path, name: str, subsets: list[SubsetPlan]) -> ExportedFile:
    images = persons = 0
    with create_npz(folder / name) as archive, open_member(archive, "annots", np.dtype(object), ()) as stream:
        stream.write(start_stream())
        for people in _all_people(job, subsets):
            stream.write(image_records(people))
            images += len(people.keys)
            persons += int(people.counts.sum())
        stream.write(END_STREAM)
    return ExportedFile(name, images, persons)


def _all_people(job: ExportJob, subsets: list[SubsetPlan]) -> Iterator[ImagePeople]:
    taken: set[str] = set()
    for number, subset in enumerate(subsets):
        fresh: set[str] = set()
        sure = any(describe_making(read_footer(run))["solver"] == "joint" for run in subset.runs)
        for table in job.tables(subset, (*_COLUMNS, *(_SIGMAS if sure else ()))):
            keys = [image_key(subset.subset, path) for path in table["image_path"].to_pylist()]
            new = np.array([key not in taken for key in keys], dtype=bool)
            job.notes[REPEATED] += int((~new).sum())
            if number < len(subsets) - 1:
                fresh.update(keys)
            if new.any():
                yield _people(table.filter(pa.array(new)), list(compress(keys, new)), sure)
        taken |= fresh


def _people(table: pa.Table, keys: list[str], sure: bool) -> ImagePeople:
    people = single_array(table["persons"]).flatten()
    return ImagePeople(
        keys=keys,
        counts=table["num_persons"].to_numpy(),
        focal=np.stack([table["fx"].to_numpy(), table["fy"].to_numpy()], axis=1),
        princpt=np.stack([table["cx"].to_numpy(), table["cy"].to_numpy()], axis=1),
        betas=read_vectors(people.field("betas")),
        pose=read_vectors(people.field("pose")),
        transl=read_vectors(people.field("transl")),
        sigmas=(_column(people, "z_sigma_m"), _column(people, "height_sigma_m")) if sure else None,
    )


def _column(people: pa.StructArray, name: str) -> np.ndarray:
    """(n, 1) of one number per person."""
    return people.field(name).to_numpy(zero_copy_only=False).reshape(-1, 1)
