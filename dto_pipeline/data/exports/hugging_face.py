"""A Hugging Face dataset folder: compacted Parquet, README.md with one configuration per subset, Croissant metadata.

``datasets.load_dataset(FOLDER, "<subset>")`` opens it from disk or from the hub. Images are named, not included: most
of these data sets may not be redistributed. Croissant 1.0 is JSON-LD (mlcommons.org/croissant/1.0); it lists every file
with its sha256 and every column with its meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import yaml

from dto_pipeline import __version__
from dto_pipeline.data.exports.compacted import write_parquet
from dto_pipeline.data.exports.job import ExportJob, Selection, Subset, describe_provenance
from dto_pipeline.schema import COORDINATES, IMAGE_COLUMNS, LABELS_SCHEMA_NAME, PERSON_COLUMNS, Column

CARD, CROISSANT = "README.md", "croissant.json"
LICENCE = "cc-by-nc-4.0"  # of labels derived from CameraHMR's
TITLE = "Scene-consistent metric SMPL labels of crowds (DTO)"
SUMMARY = (
    "SMPL bodies (pose, shape with kid axis, metric translation) of all people of an image, placed jointly by "
    "Depth-conditioned Translation Optimization (DTO, arXiv 2511.13282). Labels only: images are named, not included."
)
_PAPER = "https://arxiv.org/abs/2511.13282"
_PARQUET = "application/x-parquet"
_PEOPLE = "people in source order, none dropped"


def write_hugging_face(job: ExportJob) -> None:
    """The Parquet files of every subset, the card and the Croissant file."""
    write_parquet(job)
    metadata = json.dumps(croissant_metadata(job.taken, job.files), indent=2, ensure_ascii=False) + "\n"
    for name, text in ((CARD, dataset_card(job.taken, job.selection)), (CROISSANT, metadata)):
        (job.folder / name).write_text(text)
        job.add(name)


def dataset_card(subsets: list[Subset], selection: Selection) -> str:
    """README.md of the folder: YAML for the hub, then text for people."""
    front_matter = {
        "pretty_name": TITLE,
        "license": LICENCE,
        "tags": ["3d", "human-mesh-recovery", "smpl", "crowds", "croissant"],
        "configs": [
            {
                "config_name": subset.name,
                "data_files": [{"split": "train", "path": f"data/{subset.name}/*.parquet"}],
                "default": subset is subsets[0],
            }
            for subset in subsets
        ],
    }
    numbers = [(s.name, s.images, s.optimized, s.accepted, s.persons, s.moved, _licence(s)) for s in subsets]
    columns = [*(c.row() for c in IMAGE_COLUMNS), ("`persons`", "list of persons", "", _PEOPLE)]
    columns += [c.row("persons[].") for c in PERSON_COLUMNS]
    chosen = ", ".join(f"{key} = {value}" for key, value in selection.describe().items())
    provenance = dict.fromkeys(row for subset in subsets for row in _provenance(subset))
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False)}---

# {TITLE}

{SUMMARY}

```python
from datasets import load_dataset

labels = load_dataset("PATH_OR_HUB_NAME", "{subsets[0].name}", split="train")
accepted = labels.filter(lambda row: row["is_accepted"])
people = accepted[0]["persons"]          # a list, one entry per person, in source order
```

One row is one image. Coordinates: {COORDINATES}. SMPL's `transl` is added after skinning: the pelvis is not at
`transl`. The last of the eleven `betas` is the kid axis of SMPL+A. Missing numbers are NaN, missing words null.

For training take images with `is_accepted`, and people whose `status` is not `invalid_label`. The joint solver also
gives the uncertainty of its labels: `expected_error_m` and `z_covariance` of an image, `z_sigma_m` and
`height_sigma_m` of a person; in mode `paper` they are null and NaN.

## Subsets

{_table("subset, images, optimized, accepted, persons, moved, licence", numbers)}
The labels are {LICENCE.upper()} unless a subset's licence says otherwise. Images are not part of this dataset:
`image_path` is the published key of each, `image_sha256` identifies the file that was labelled. The SMPL body model has
a licence of its own.

Written by dto_pipeline {__version__}; selection: {chosen}. Hashes, shortened:

{_table("subset, solver, depth, body model, config, manifest", provenance)}
## Columns (schema `{LABELS_SCHEMA_NAME}`)

{_table("column, type, unit, meaning", columns)}"""


def _provenance(subset: Subset) -> Iterable[tuple[str, ...]]:
    """What made the labels of each run, as rows of the card's table."""
    for run in subset.runs:
        *made, config_hash = describe_provenance(run.footer).values()
        yield subset.name, *made, f"`{config_hash[:16]}`", f"`{run.manifest_fingerprint[:16]}`"


def _licence(subset: Subset) -> str:
    found = dict.fromkeys(run.footer.get("licence") or "not stated in the dataset's description" for run in subset.runs)
    return "; ".join(found)


def _table(head: str, rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table; signs that Markdown would interpret are replaced."""
    names = head.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    cells = [[str(cell).replace("|", "/").replace("<", "&lt;").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def croissant_metadata(subsets: list[Subset], files: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of croissant.json."""
    distribution: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": file["path"],
            "name": file["path"].rsplit("/", 1)[-1],
            "contentUrl": file["path"],
            "encodingFormat": _PARQUET,
            "sha256": file["sha256"],
        }
        for file in files
    ]
    distribution += [
        {
            "@type": "cr:FileSet",
            "@id": f"files-{subset.name}",
            "encodingFormat": _PARQUET,
            "includes": f"data/{subset.name}/*.parquet",
        }
        for subset in subsets
    ]
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
        "distribution": distribution,
        "recordSet": [_record_set(subset) for subset in subsets],
    }


def _record_set(subset: Subset) -> dict[str, Any]:
    """One record per image; the list of people has its parts as sub-fields."""
    name = subset.name
    persons = {
        "@type": "cr:Field",
        "@id": f"{name}/persons",
        "name": "persons",
        "description": _PEOPLE,
        "repeated": True,
        "subField": [_field(name, column, "persons", f"$[*].{column.name}") for column in PERSON_COLUMNS],
    }
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"One record per image of {name}. {_licence(subset)}",
        "key": {"@id": f"{name}/image_id"},
        "field": [*(_field(name, column) for column in IMAGE_COLUMNS), persons],
    }


def _field(subset: str, column: Column, source: str = "", path: str = "") -> dict[str, Any]:
    """A column of images, or, with a JSON path in the column `source`, of people."""
    kinds = {pa.types.is_boolean: "Boolean", pa.types.is_integer: "Integer", pa.types.is_floating: "Float"}
    extract = {"extract": {"column": source or column.name}, **({"transform": [{"jsonPath": path}]} if path else {})}
    return {
        "@type": "cr:Field",
        "@id": "/".join(filter(None, (subset, source, column.name))),
        "name": column.name,
        "description": column.text + (f" [{column.unit}]" if column.unit else ""),
        "dataType": next((f"sc:{name}" for fits, name in kinds.items() if fits(column.item_kind)), "sc:Text"),
        **({"repeated": True} if column.item_kind is not column.kind else {}),
        "source": {"fileSet": {"@id": f"files-{subset}"}, **extract},
    }


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{word: f"cr:{word}" for word in ("citeAs", "column", "extract", "field", "fileSet", "includes", "jsonPath")},
    **{word: f"cr:{word}" for word in ("key", "recordSet", "repeated", "source", "subField", "transform")},
}
