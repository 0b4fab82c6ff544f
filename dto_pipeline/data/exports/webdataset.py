"""WebDataset shards: ``<subset>/<subset>-000000.tar`` and following, of 1000 samples each.

A sample is ``KEY.json`` with the labels (the columns of `dto-labels/1`) and, where images are asked for, ``KEY.jpg``
with the bytes of the image file as they are. KEY is ``<subset>/<image_path>`` without ``.jpg``; webdataset cuts names
at the first dot, so no KEY has one (`sample_key`). An image that cannot be read, or is not the one that was labelled,
leaves its sample out, counted. JSON floats have the fewest digits that give the same value back; NaN is null. Equal
input gives identical bytes. Memory: one row group and one image.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.exports.job import ExportedFile, ExportJob, SubsetPlan
from dto_pipeline.data.images import MAX_FILE_BYTES, ImageStore
from dto_pipeline.data.label_files import IMAGE_FILE
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images
from dto_pipeline.status import UnusableImage

SAMPLES = 1000  # of a tar
MISSING = "samples left out: image file cannot be read"
CHANGED = "samples left out: image file is not the one that was labelled (sha256)"
_EXTENSIONS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}  # by first bytes: an image named .jpg may be a PNG

Sample = tuple[str, int, list[tuple[str, bytes]]]  # key, persons, (extension, contents) of each member


def write_webdataset(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """Tars of every subset."""
    files: list[ExportedFile] = []
    for subset in job.subsets:
        (folder / subset.subset).mkdir()
        samples = _samples_with_images(job, subset) if job.images is not None else _samples(job, subset)
        for number, first in enumerate(samples):
            name = f"{subset.subset}/{subset.subset}-{number:06d}.tar"
            images, persons = _write_tar(folder / name, chain([first], islice(samples, SAMPLES - 1)))
            files.append(ExportedFile(name, images, persons))
    return files


def sample_key(image_id: str) -> str:
    """A name without dots that is different for every image.

    ``.jpg`` at the end is dropped; other dots and percent signs become %2E and %25; a name that never had an extension
    ends in a bare percent sign.
    """
    stem = image_id.removesuffix(".jpg")
    escaped = stem.replace("%", "%25").replace(".", "%2E")
    return escaped if stem != image_id or "." in image_id.rsplit("/", 1)[-1] else escaped + "%"


def _write_tar(path: Path, samples: Iterable[Sample]) -> tuple[int, int]:
    """Returns how many images and persons it holds."""
    images = persons = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, people, members in samples:
            images, persons = images + 1, persons + people
            for extension, contents in members:
                entry = tarfile.TarInfo(f"{key}.{extension}")  # date 1970, no owner: equal bytes everywhere
                entry.size = len(contents)
                tar.addfile(entry, io.BytesIO(contents))
    return images, persons


def _samples(job: ExportJob, subset: SubsetPlan) -> Iterator[Sample]:
    for table in job.counted(job.tables(subset.runs)):
        columns = (table["image_id"].to_pylist(), table["num_persons"].to_pylist(), json_rows(table))
        for image_id, people, text in zip(*columns, strict=True):
            yield sample_key(image_id), people, [("json", text.as_py().encode())]


def _samples_with_images(job: ExportJob, subset: SubsetPlan) -> Iterator[Sample]:
    assert job.images is not None
    for run in subset.runs:
        manifest = run.open_manifest()
        root = as_location(job.images[subset.subset] or manifest.images_root)
        store = open_images(root, manifest.path)
        for table in job.counted(job.tables([run], image_files=True)):
            texts = json_rows(table.drop_columns([IMAGE_FILE]))
            columns = [table[name].to_pylist() for name in ("image_id", "num_persons", IMAGE_FILE, "image_sha256")]
            for image_id, people, file, sha256, text in zip(*columns, texts, strict=True):
                image = _read_image(store, file, sha256, job, root)
                if image is not None:
                    yield sample_key(image_id), people, [image, ("json", text.as_py().encode())]


def _read_image(store: ImageStore, file: str, sha256: str, job: ExportJob, root: Location) -> tuple[str, bytes] | None:
    """(extension, contents) of an image file, or None where it cannot be used."""
    try:
        contents = store.read_bytes(file, MAX_FILE_BYTES)
    except UnusableImage as error:
        job.failures[MISSING] += 1
        job.examples.setdefault(MISSING, f"{error}; looked for in {root}")
        return None
    if sha256 and hashlib.sha256(contents).hexdigest() != sha256:
        job.failures[CHANGED] += 1
        job.examples.setdefault(CHANGED, f"{file} in {root}")
        return None
    known = (extension for magic, extension in _EXTENSIONS.items() if contents.startswith(magic))
    return next(known, file.rsplit(".", 1)[-1].lower()), contents


def json_rows(table: pa.Table) -> pa.StringArray:
    """One JSON object per row, keys in column order."""
    return _objects(table.column_names, [column.combine_chunks() for column in table.columns])


def json_values(array: pa.Array) -> pa.StringArray:
    """JSON text of every element; nulls become ``null``."""
    kind = array.type
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        text = _objects(names, [array.field(name) for name in names])
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        text = _lists(array)
    elif pa.types.is_string(kind):
        text = _strings(array)
    elif pa.types.is_floating(kind):
        text = pc.if_else(pc.is_finite(array), array.cast(pa.string()), None)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        text = array.cast(pa.string())
    else:
        raise TypeError(f"no JSON for a column of {kind}")
    return pc.fill_null(text, "null")


def _objects(names: list[str], columns: list[pa.Array]) -> pa.StringArray:
    parts: list[pa.Array | str] = []
    for position, (name, column) in enumerate(zip(names, columns, strict=True)):
        parts += [f"{'{' if position == 0 else ','}{json.dumps(name)}:", json_values(column)]
    return pc.binary_join_element_wise(*parts, "}", "")


def _lists(array: pa.Array) -> pa.StringArray:
    """``[a,b]`` of variable and fixed lists alike; null where the list is."""
    items = json_values(array.flatten())  # without those of null lists
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), items), ",")
    return pc.if_else(array.is_valid(), pc.binary_join_element_wise("[", joined, "]", ""), None)


def _strings(array: pa.Array) -> pa.StringArray:
    """Quoted and escaped once per distinct string."""
    encoded = array.dictionary_encode()
    words = [None if word is None else json.dumps(word, ensure_ascii=False) for word in encoded.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(encoded.indices)
