"""MA-HMR's training labels: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``, one array `annots`.

    {image key: [{"smpl_param": {"shape": (11,), "pose": (72,), "trans": (3,)},
                  "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

float32; `cam_param` is one object, shared by the people of an image. Where the solver gives its uncertainty a person
has two more entries, "z_sigma_m" (1,) and "height_sigma_m" (1,), which readers of the layout ignore. insta1 and insta2
go to one file, with keys that begin with ``insta-train/``; an image of both keeps the people of insta1.

The dictionary is pickled in parts of one row group (`pickled_array`), because as a whole it takes 1.3 kB a person.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.exports.job import ExportJob, Subset, describe_provenance
from dto_pipeline.data.label_files import flatten_table
from dto_pipeline.data.npz import open_member

REPEATED = "images already taken from an earlier subset of the same file"
_PROTOCOL = 3  # numpy 1.23 on Python 3.8 reads it
_OURS, _PUBLISHED = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"  # numpy 2 reads both names
_EMPTY_DICT = 5  # bytes of a pickled dictionary before its first entry: protocol, empty dictionary, place in the memo
_PARAMETERS = {"shape": "betas", "pose": "pose", "trans": "transl"}  # key of smpl_param -> our column
_SIGMAS = ("z_sigma_m", "height_sigma_m")


def write_ma_hmr(job: ExportJob) -> None:
    """One npz per data set that has images."""
    names = ["INSTA" if _is_insta(subset.name) else subset.name.upper() for subset in job.taken]
    for name in dict.fromkeys(names):
        subsets = [subset for subset, own in zip(job.taken, names, strict=True) if own == name]
        path, counts = f"{name}_CHMR_SMPL_OPT.npz", np.zeros(2, np.int64)
        with (
            zipfile.ZipFile(job.folder / path, "w") as archive,
            open_member(archive, "annots", np.dtype(object), ()) as stream,
        ):
            for part in pickled_array(_annotations(job, subsets, counts)):
                stream.write(part)
        job.add(path, *counts)


def pickled_array(parts: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """An array () of one dictionary as a pickle that numpy of both generations reads, from parts of the dictionary.

    A pickled dictionary is an empty one and then instructions that add entries, so those of all parts may follow each
    other. The parts use the same memo numbers, which is harmless: no part refers to another.
    """
    holder = np.empty((), object)
    holder[()] = {}
    stream = pickle.dumps(holder, _PROTOCOL).replace(_OURS, _PUBLISHED)
    entries = stream.rindex(b"}") + 3  # after the empty dictionary and its place in the memo
    yield stream[:entries]
    for part in parts:
        yield pickle.dumps(part, _PROTOCOL).replace(_OURS, _PUBLISHED, 1)[_EMPTY_DICT:-1]
    yield stream[entries:]


def _is_insta(subset: str) -> bool:
    return subset in ("insta", "insta1", "insta2")


def _annotations(job: ExportJob, subsets: list[Subset], counts: np.ndarray) -> Iterator[dict[str, Any]]:
    """Annotations of the images of each row group; images and people are added to `counts` (2,)."""
    taken: set[str] = set()
    for subset in subsets:
        new_keys: set[str] = set()
        prefix = "insta-train/" if _is_insta(subset.name) else ""
        joint = any(describe_provenance(run.footer)["solver"] == "joint" for run in subset.runs)
        for table in job.read(chain(*subset.tables)):
            found = _read(table, prefix, _SIGMAS if joint else ())
            job.notes[REPEATED] += len(found.keys() & taken)
            new_keys |= found.keys()
            part = {key: crowd for key, crowd in found.items() if key not in taken}
            counts += (len(part), sum(map(len, part.values())))
            yield part
        taken |= new_keys


def _read(table: pa.Table, prefix: str, sigmas: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Key -> people of the images of a label table."""
    labels = flatten_table(table, (*_PARAMETERS.values(), *sigmas))
    people, starts = labels.people, labels.starts.tolist()
    further = {name: people[name][:, None] for name in sigmas}
    cameras = np.stack([labels.images[name] for name in CAMERA_COLUMNS], axis=1).astype(np.float32)
    found: dict[str, list[dict[str, Any]]] = {}
    for path, start, end, camera in zip(labels.images["image_path"], starts, starts[1:], cameras, strict=False):
        shared = {"focal": camera[:2], "princpt": camera[2:]}
        found[prefix + path] = [
            {
                "smpl_param": {name: people[column][person] for name, column in _PARAMETERS.items()},
                "cam_param": shared,
                **{name: values[person] for name, values in further.items()},
            }
            for person in range(start, end)
        ]
    return found
