"""A Hugging Face dataset folder: compacted Parquet, README.md with one configuration per subset, Croissant metadata.

``datasets.load_dataset(FOLDER, "<subset>")`` opens it from disk or, pushed as it is, from the hub. Images are named,
never included: most of these data sets may not be redistributed. The numbers of a subset are gathered while its tables
pass by, as sums only. Memory: one row group. Equal input gives equal text: no clock.

Croissant 1.0 is JSON-LD: every file with its sha256, every column with its meaning (mlcommons.org/croissant/1.0).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from dto_pipeline import __version__
from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.compacted import write_subset
from dto_pipeline.data.exports.job import ExportJob, Selection, describe_making
from dto_pipeline.schema import COORDINATES, IMAGE_COLUMNS, LABELS_SCHEMA_NAME, PERSON_COLUMNS, Column
from dto_pipeline.status import ImageStatus, PersonStatus

CARD, CROISSANT = "README.md", "croissant.json"
LICENCE = "cc-by-nc-4.0"  # of labels derived from CameraHMR's
TITLE = "Scene-consistent metric SMPL labels of crowds (DTO)"
SUMMARY = (
    "SMPL bodies (pose, shape with kid axis, metric translation) of all people of an image, placed jointly by "
    "Depth-conditioned Translation Optimization (DTO, arXiv 2511.13282). Labels only: images are named, not included."
)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_PARQUET = "application/x-parquet"
_PAPER = "https://arxiv.org/abs/2511.13282"


@dataclass
class CardSubset:
    """One configuration of the dataset, and sums over its images and people."""

    name: str
    footer: dict[str, str]  # of its label files: licence, config_hash, versions ...
    makings: list[dict[str, str]]  # solver, depth, body, config_hash; one unless runs were mixed
    files: list[str] = field(default_factory=list)  # relative to the folder
    sums: Counter[str] = field(default_factory=Counter)  # images, persons, accepted, optimized
    deviation: float = 0.0  # sum over optimised images [sigma]
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # ("image" or "person", word)

    @property
    def licence(self) -> str:
        """What users must know, as the dataset's description tells it."""
        return self.footer.get("licence") or "not stated in the dataset's description"

    def add(self, table: pa.Table) -> None:
        """Count the rows of a label table."""
        people = single_array(table["persons"]).flatten()
        optimized = table["is_optimized"].to_numpy()
        accepted = int(table["is_accepted"].to_numpy().sum())
        self.sums.update(images=table.num_rows, persons=len(people), accepted=accepted, optimized=int(optimized.sum()))
        self.deviation += float(table["mean_height_deviation"].to_numpy()[optimized].sum(dtype=np.float64))
        for kind, words in (("image", single_array(table["status"])), ("person", people.field("status"))):
            self.statuses.update({(kind, one["values"]): one["counts"] for one in words.value_counts().to_pylist()})


def write_hugging_face(job: ExportJob) -> None:
    """The Parquet files of every subset, then the card and the Croissant file that describe them."""
    subsets = []
    for subset in job.taken:
        makings = [describe_making(run.footer) for run in subset.runs if run.footer]
        unlike = [making for place, making in enumerate(makings) if making not in makings[:place]]
        card = CardSubset(subset.subset, subset.runs[0].footer, unlike)
        card.files = write_subset(job, subset, card.add)
        subsets.append(card)
    metadata = croissant_metadata(subsets, {file.path: file.sha256 for file in job.files})
    for name, text in (
        (CARD, dataset_card(subsets, job.selection)),
        (CROISSANT, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"),
    ):
        (job.folder / name).write_text(text)
        job.add(name)


def dataset_card(subsets: list[CardSubset], selection: Selection) -> str:
    """README.md of the folder: YAML for the hub, then text for people."""
    images = sum(subset.sums["images"] for subset in subsets)
    front_matter = {
        "pretty_name": TITLE,
        "license": LICENCE,
        "tags": ["3d", "human-mesh-recovery", "smpl", "crowds", "croissant"],
        "size_categories": [next((name for limit, name in _SIZES if images < limit), "1M<n<10M")],
        "configs": [
            {
                "config_name": subset.name,
                "data_files": [{"split": "train", "path": f"data/{subset.name}/*.parquet"}],
                **({"default": True} if subset is subsets[0] else {}),
            }
            for subset in subsets
        ],
    }
    licences = "\n".join(f"- **{subset.name}**: {subset.licence}" for subset in subsets)
    people = ("`persons`", "list of persons", "", "people in source order, none dropped")
    columns = [*(c.row() for c in IMAGE_COLUMNS), people, *(c.row("persons[].") for c in PERSON_COLUMNS)]
    chosen = ", ".join(f"{key} = {value}" for key, value in selection.describe().items())
    makings = [
        (
            *(subset.name, making["solver"], making["depth"], making["body"], f"`{making['config_hash'][:16]}`"),
            f"`{subset.footer.get('manifest_fingerprint', '')[:16]}`",
        )
        for subset in subsets
        for making in subset.makings
    ]
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False)}---

# {TITLE}

{SUMMARY}

## Use

```python
from datasets import load_dataset

labels = load_dataset("PATH_OR_HUB_NAME", "{subsets[0].name}", split="train")
accepted = labels.filter(lambda row: row["is_accepted"])
people = accepted[0]["persons"]          # a list, one entry per person, in source order
```

One row is one image; `persons` keeps everybody of the source labels, also those that were not moved (see `status`).
Coordinates: {COORDINATES}. SMPL's `transl` is added after skinning: the pelvis is not at `transl`. `betas` has eleven
numbers, the last is the kid axis of SMPL+A. Missing numbers are NaN, missing words null.

For training take images with `is_accepted`, and people whose `status` is not `invalid_label`. Labels of the joint
solver tell how wrong they may be: `expected_error_m` of an image, `z_sigma_m` of a person [m]; take the small ones.

## Numbers

{_numbers(subsets)}
## Columns (schema `{LABELS_SCHEMA_NAME}`)

{_table(("column", "type", "unit", "meaning"), columns)}
## Licences

Labels: {LICENCE.upper()} unless a subset says otherwise. Images are not part of this dataset; `image_path` is the
published key of each, `image_sha256` tells whether yours is the one that was labelled. The SMPL body model has a
licence of its own.

{licences}

## Provenance

Written by dto_pipeline {__version__}; selection: {chosen}. Hashes, shortened:

{_table(("subset", "solver", "depth", "body model", "config", "manifest"), makings)}
How sure the solver is stands in `z_sigma_m` and `height_sigma_m` of each person and in `z_covariance` of each image;
they are NaN and null where the solver gives none (mode `paper`).
"""


def _numbers(subsets: list[CardSubset]) -> str:
    """Counts of each subset and of each status."""
    head = (
        *("subset", "images", "optimized", "accepted", "mean deviation [sigma]", "persons", "moved"),
        "persons an image",
    )
    counts = []
    for subset in subsets:
        images, optimized, persons = (subset.sums[name] for name in ("images", "optimized", "persons"))
        moved = subset.statuses["person", PersonStatus.MOVED]
        deviation, crowd = _ratio(subset.deviation, optimized), _ratio(persons, images)
        counts.append((subset.name, images, optimized, subset.sums["accepted"], deviation, persons, moved, crowd))
    statuses = [
        (f"{kind} `{word}`", *(subset.statuses[kind, word] for subset in subsets), word.advice)
        for kind, words in (("image", ImageStatus), ("person", PersonStatus))
        for word in words
        if any(subset.statuses[kind, word] for subset in subsets)
    ]
    return f"{_table(head, counts)}\n{_table(('status', *(s.name for s in subsets), 'meaning'), statuses)}"


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "-"


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    """A Markdown table that shows every text as it is."""
    lines = [head, ("---",) * len(head), *rows]
    cells = [[str(cell).replace("|", "/").replace("<", "&lt;").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


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
    together = {"@type": "cr:FileSet", "@id": f"files-{subset.name}", "encodingFormat": _PARQUET}
    return [*files, {**together, "includes": f"data/{subset.name}/*.parquet"}]


def _record_set(subset: CardSubset) -> dict[str, Any]:
    """One record per image; the list of people has its parts as sub-fields."""
    name = subset.name
    people = {
        "@type": "cr:Field",
        "@id": f"{name}/persons",
        "name": "persons",
        "description": "people in source order, none dropped",
        "repeated": True,
        "subField": [_field(name, column, in_person=True) for column in PERSON_COLUMNS],
    }
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"One record per image of {name}. {subset.licence}",
        "key": {"@id": f"{name}/image_id"},
        "field": [*(_field(name, column) for column in IMAGE_COLUMNS), people],
    }


def _field(subset: str, column: Column, in_person: bool = False) -> dict[str, Any]:
    """A column, or a part of a person."""
    listed = pa.types.is_fixed_size_list(column.kind) or pa.types.is_list(column.kind)
    inner = column.kind.value_type if listed else column.kind
    is_kind = {
        "sc:Boolean": pa.types.is_boolean(inner),
        "sc:Integer": pa.types.is_integer(inner),
        "sc:Float": pa.types.is_floating(inner),
    }
    source = {
        "fileSet": {"@id": f"files-{subset}"},
        "extract": {"column": "persons" if in_person else column.name},
        **({"transform": [{"jsonPath": f"$[*].{column.name}"}]} if in_person else {}),
    }
    return {
        "@type": "cr:Field",
        "@id": f"{subset}/persons/{column.name}" if in_person else f"{subset}/{column.name}",
        "name": column.name,
        "description": column.text + (f" [{column.unit}]" if column.unit else ""),
        "dataType": next((name for name, fits in is_kind.items() if fits), "sc:Text"),
        **({"repeated": True} if listed else {}),
        "source": source,
    }


_OWN_WORDS = (
    *("citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
    *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
    **{word: f"cr:{word}" for word in _OWN_WORDS},
}
