"""A Hugging Face dataset folder: compacted Parquet, README.md with one configuration per subset, Croissant metadata.

``datasets.load_dataset(FOLDER, "<subset>")`` opens it from disk or, pushed as it is, from the hub. Images are named,
never included: most of these data sets may not be redistributed. Memory: one row group.

Croissant 1.0 is JSON-LD: every file with its sha256, every column with its meaning (mlcommons.org/croissant/1.0).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from dto_pipeline import __version__
from dto_pipeline.data.exports.card import LICENCE, SUMMARY, CardSubset, SubsetStatistics, dataset_card
from dto_pipeline.data.exports.inputs import read_footer
from dto_pipeline.data.exports.job import ExportedFile, ExportJob
from dto_pipeline.data.exports.parquet import write_subset
from dto_pipeline.data.exports.provenance import describe_making
from dto_pipeline.data.files import sha256_file
from dto_pipeline.schema import LABEL_PERSON, LABELS_SCHEMA

CARD, CROISSANT = "README.md", "croissant.json"


def write_hugging_face(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """The Parquet files of every subset, then the card and the Croissant file that describe them."""
    files: list[ExportedFile] = []
    subsets = []
    for subset in job.subsets:
        statistics = SubsetStatistics()
        own = write_subset(job, folder, subset, statistics.add)
        footers = [read_footer(run) for run in subset.runs]
        makings = [describe_making(footer) for footer in footers if footer]
        unlike = [making for place, making in enumerate(makings) if making not in makings[:place]]
        subsets.append(CardSubset(subset.subset, statistics, footers[0], unlike, [file.path for file in own]))
        files += own
    digests = {file.path: sha256_file(folder / file.path) for file in files}
    (folder / CARD).write_text(dataset_card(subsets, job.plan.selection))
    metadata = croissant_metadata(subsets, digests)
    (folder / CROISSANT).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
    return [*files, ExportedFile(CARD, 0, 0), ExportedFile(CROISSANT, 0, 0)]


_PARQUET = "application/x-parquet"
_PAPER = "https://arxiv.org/abs/2511.13282"


def croissant_metadata(subsets: list[CardSubset], digests: dict[str, str]) -> dict[str, Any]:
    """The content of croissant.json.

    Args:
        digests: file, relative to the folder -> sha256 (hex).
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "dto-labels",
        "description": SUMMARY,
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": __version__,
        "license": f"https://spdx.org/licenses/{LICENCE.upper()}.html",
        "url": _PAPER,
        "citeAs": f"Depth-conditioned Translation Optimization (DTO), {_PAPER}",
        "distribution": [entry for subset in subsets for entry in _distribution(subset, digests)],
        "recordSet": [_record_set(subset) for subset in subsets],
    }


def _distribution(subset: CardSubset, digests: dict[str, str]) -> list[dict[str, Any]]:
    """The files of a subset, and the set they form."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path.rsplit("/", 1)[-1],
            "contentUrl": path,
            "encodingFormat": _PARQUET,
            "sha256": digests[path],
        }
        for path in subset.files
    ]
    file_set = {
        "@type": "cr:FileSet",
        "@id": _file_set(subset),
        "encodingFormat": _PARQUET,
        "includes": f"data/{subset.name}/*.parquet",
    }
    return [*files, file_set]


def _record_set(subset: CardSubset) -> dict[str, Any]:
    fields = [_field(subset, subset.name, field) for field in LABELS_SCHEMA if field.name != "persons"]
    return {
        "@type": "cr:RecordSet",
        "@id": subset.name,
        "name": subset.name,
        "description": f"One record per image of {subset.name}. {subset.licence}",
        "key": {"@id": f"{subset.name}/image_id"},
        "field": [*fields, _persons(subset)],
    }


def _persons(subset: CardSubset) -> dict[str, Any]:
    """The list of people, its parts as sub-fields."""
    name = f"{subset.name}/persons"
    parts = [LABEL_PERSON.field(i) for i in range(LABEL_PERSON.num_fields)]
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": "persons",
        "description": "people in source order, none dropped",
        "repeated": True,
        "subField": [_field(subset, name, part, [{"jsonPath": f"$[*].{part.name}"}]) for part in parts],
    }


def _field(
    subset: CardSubset, parent: str, field: pa.Field, transform: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    told = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    unit = f" [{told['unit']}]" if "unit" in told else ""
    source: dict[str, Any] = {
        "fileSet": {"@id": _file_set(subset)},
        "extract": {"column": "persons" if transform else field.name},
    }
    repeated = {"repeated": True} if _is_vector(field.type) else {}
    return {
        "@type": "cr:Field",
        "@id": f"{parent}/{field.name}",
        "name": field.name,
        "description": told.get("description", field.name) + unit,
        "dataType": _data_type(field.type),
        **repeated,
        "source": {**source, "transform": transform} if transform else source,
    }


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind)


def _data_type(kind: pa.DataType) -> str:
    if _is_vector(kind):
        return _data_type(kind.value_type)
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _file_set(subset: CardSubset) -> str:
    return f"files-{subset.name}"


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
