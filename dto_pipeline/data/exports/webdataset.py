"""WebDataset shards: ``<subset>/<subset>-000000.tar`` and following, of 1000 samples each.

A sample is ``KEY.json`` with the columns of `dto-labels/1` and, where images are asked for, ``KEY.jpg`` with the bytes
of the image file. KEY is ``<subset>/<image_path>`` without ``.jpg``; webdataset cuts names at the first dot, so KEY has
none (`escape_key`). A sample whose image cannot be read, now or when it was labelled, or is another one now, is left
out and counted. JSON floats have the fewest digits that give the same float32; NaN is null.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.exports.job import ExportJob, Subset
from dto_pipeline.data.images import MAX_FILE_BYTES, ImageStore
from dto_pipeline.data.label_files import IMAGE_FILE, flatten_table
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images
from dto_pipeline.status import UnusableImage

SAMPLES = 1000  # of a tar
MISSING = "samples left out: image file cannot be read"
CHANGED = "samples left out: image file is not one that was read and labelled (sha256)"
_EXTENSIONS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}  # by first bytes: an image named .jpg may be a PNG

Sample = tuple[str, int, list[tuple[str, bytes]]]  # key, persons, (extension, contents) of each file


def write_webdataset(job: ExportJob) -> None:
    """Tars of every subset."""
    for subset in job.taken:
        (job.folder / subset.name).mkdir()
        samples = _samples(job, subset)
        for number, first in enumerate(samples):
            name = f"{subset.name}/{subset.name}-{number:06d}.tar"
            images = persons = 0
            with tarfile.open(job.folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
                for key, people, members in chain([first], islice(samples, SAMPLES - 1)):
                    images, persons = images + 1, persons + people
                    for extension, contents in members:
                        entry = tarfile.TarInfo(f"{key}.{extension}")  # date 1970, no owner: equal bytes everywhere
                        entry.size = len(contents)
                        tar.addfile(entry, io.BytesIO(contents))
            job.add(name, images, persons)


def escape_key(image_id: str) -> str:
    """A name without dots, different for every image.

    ``.jpg`` at the end is dropped; other dots and percent signs become %2E and %25; a name without an extension ends in
    a bare percent sign.
    """
    stem = image_id.removesuffix(".jpg")
    escaped = stem.replace("%", "%25").replace(".", "%2E")
    return escaped if stem != image_id or "." in image_id.rsplit("/", 1)[-1] else escaped + "%"


def _samples(job: ExportJob, subset: Subset) -> Iterator[Sample]:
    for run, tables in zip(subset.runs, subset.tables, strict=True):
        if job.images is not None:
            manifest = run.open_manifest()
            root = as_location(job.images[subset.name] or manifest.images_root)
            store = open_images(root, manifest.path)
        for table in job.read(tables):
            for row in label_rows(table):
                members = []
                if job.images is not None:
                    image = _read_image(store, row.pop(IMAGE_FILE), row["image_sha256"], job, root)
                    if image is None:
                        continue
                    members.append(image)
                text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                yield escape_key(row["image_id"]), row["num_persons"], [*members, ("json", text.encode())]


def _read_image(store: ImageStore, file: str, sha256: str, job: ExportJob, root: Location) -> tuple[str, bytes] | None:
    """(extension, contents) of an image file, or None where it cannot be used."""
    try:
        contents = store.read_bytes(file, MAX_FILE_BYTES)
    except UnusableImage as error:
        job.failures[MISSING] += 1
        job.examples.setdefault(MISSING, f"{error}; looked for in {root}")
        return None
    if hashlib.sha256(contents).hexdigest() != sha256:
        job.failures[CHANGED] += 1
        job.examples.setdefault(CHANGED, f"{file} in {root}")
        return None
    known = (extension for magic, extension in _EXTENSIONS.items() if contents.startswith(magic))
    return next(known, file.rsplit(".", 1)[-1].lower()), contents


def label_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a label table as plain values, columns in their order."""
    labels = flatten_table(table)
    images = {name: _plain(values) for name, values in labels.images.items()}
    people = {name: _plain(values) for name, values in labels.people.items()}
    persons = [dict(zip(people, values, strict=True)) for values in zip(*people.values(), strict=True)]
    for start, end, *values in zip(labels.starts, labels.starts[1:], *images.values(), strict=False):
        yield {**dict(zip(images, values, strict=True)), "persons": persons[start:end]}


def _plain(values: np.ndarray) -> list[Any]:
    """Python numbers, float32 in its fewest digits, None for NaN and infinity; text unchanged."""
    if values.dtype == object:
        return [_plain(value) if isinstance(value, np.ndarray) else value for value in values]
    if values.dtype == np.float32:
        shortest = pa.array(values.ravel()).cast(pa.string()).cast(pa.float64())
        values = shortest.to_numpy(zero_copy_only=False).reshape(values.shape)
    plain = values.astype(object)
    if values.dtype.kind == "f":
        plain[~np.isfinite(values)] = None
    return list(plain.tolist())
