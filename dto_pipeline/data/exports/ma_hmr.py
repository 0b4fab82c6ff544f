"""MA-HMR's training labels: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``, one array `annots`.

insta1 and insta2 become one file, keys with ``insta-train/`` before them; an image of both keeps the people of insta1.
Foreign names (smpl_param, trans, focal, princpt ...) end here.

    {image key: [{"smpl_param": {"shape": (11,), "pose": (72,), "trans": (3,)},
                  "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

float32; `cam_param` is one object, shared by the people of an image. Where the solver tells how sure it is, a person
has two more entries, "z_sigma_m" (1,) and "height_sigma_m" (1,), which readers of the two above do not look at.

The dictionary is never in memory: it is pickled part by part (`pickled_array`), a row group of images each. Besides a
row group there are the keys of an earlier subset of the same file (about 100 bytes an image).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.exports.job import ExportedFile, ExportJob, SubsetPlan, describe_making
from dto_pipeline.data.npz import open_member

REPEATED = "images already taken from an earlier subset of the same file"
_PROTOCOL = 3  # numpy 1.23 on Python 3.8 reads it
_OURS, _PUBLISHED = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"  # numpy 2 knows the name of numpy 1 too
_EMPTY_DICT = 5  # bytes of a pickled dictionary before its first entry: protocol, empty dictionary, place in the memo
_PARAMETERS = {"shape": "betas", "pose": "pose", "trans": "transl"}  # of smpl_param -> of a person
_SIGMAS = ("z_sigma_m", "height_sigma_m")
_COLUMNS = (
    *("image_path", *CAMERA_COLUMNS),
    *(f"persons.list.element.{column}.list.element" for column in _PARAMETERS.values()),
)


def write_ma_hmr(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per data set that has images."""
    files = []
    names = {subset.subset: "INSTA" if _is_insta(subset.subset) else subset.subset.upper() for subset in job.subsets}
    for name in dict.fromkeys(names.values()):
        subsets = [subset for subset in job.subsets if names[subset.subset] == name]
        path, counts = f"{name}_CHMR_SMPL_OPT.npz", np.zeros(2, np.int64)
        with (
            zipfile.ZipFile(folder / path, "w") as archive,
            open_member(archive, "annots", np.dtype(object), ()) as stream,
        ):
            for part in pickled_array(_count(_annotations(job, subsets), counts)):
                stream.write(part)
        files.append(ExportedFile(path, *counts.tolist()))
    return files


def pickled_array(parts: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """An array () of one dictionary as a pickle that numpy of both generations reads, from parts of the dictionary.

    A pickled dictionary is an empty one and commands that put entries into it: those of every part follow each other.
    What a part says of its own place in the memo nobody asks for.
    """
    holder = np.empty((), object)
    holder[()] = {}
    stream = pickle.dumps(holder, _PROTOCOL).replace(_OURS, _PUBLISHED)
    entries = stream.rindex(b"}") + 3  # behind the empty dictionary and its place in the memo
    yield stream[:entries]
    for part in parts:
        yield pickle.dumps(part, _PROTOCOL).replace(_OURS, _PUBLISHED, 1)[_EMPTY_DICT:-1]
    yield stream[entries:]


def _count(parts: Iterable[dict[str, Any]], counts: np.ndarray) -> Iterator[dict[str, Any]]:
    """The same parts, their images and people added to `counts` (2,)."""
    for part in parts:
        counts += (len(part), sum(map(len, part.values())))
        yield part


def _is_insta(subset: str) -> bool:
    return subset in ("insta", "insta1", "insta2")


def _annotations(job: ExportJob, subsets: list[SubsetPlan]) -> Iterator[dict[str, Any]]:
    """Annotations of the images of each row group."""
    taken: set[str] = set()
    for subset in subsets:
        fresh: set[str] = set()
        sure = any(describe_making(run.footer)["solver"] == "joint" for run in subset.runs)
        columns = (*_COLUMNS, *(f"persons.list.element.{name}" for name in _SIGMAS if sure))
        for table in job.counted(job.tables(subset.runs, columns)):
            found = _read(table, "insta-train/" if _is_insta(subset.subset) else "", sure)
            job.notes[REPEATED] += len(found.keys() & taken)
            if subset is not subsets[-1]:
                fresh |= found.keys()
            yield {key: people for key, people in found.items() if key not in taken}
        taken |= fresh


def _read(table: pa.Table, prefix: str, sure: bool) -> dict[str, list[dict[str, Any]]]:
    """Key -> people of the images of a label table."""
    persons = single_array(table["persons"]).flatten()
    parameters = {name: read_numbers(persons.field(column)) for name, column in _PARAMETERS.items()}
    columns = {name: persons.field(name).to_numpy(zero_copy_only=False)[:, None] for name in _SIGMAS if sure}
    cameras = np.stack([table[name].to_numpy() for name in CAMERA_COLUMNS], axis=1).astype(np.float32)
    ends = np.cumsum(table["num_persons"].to_numpy()).tolist()
    found: dict[str, list[dict[str, Any]]] = {}
    for path, start, end, camera in zip(table["image_path"].to_pylist(), [0, *ends], ends, cameras, strict=False):
        shared = {"focal": camera[:2], "princpt": camera[2:]}
        found[prefix + path] = [
            {
                "smpl_param": {name: values[person] for name, values in parameters.items()},
                "cam_param": shared,
                **{name: values[person] for name, values in columns.items()},
            }
            for person in range(start, end)
        ]
    return found
