"""The text of a Hugging Face dataset card: configurations, what the columns mean, numbers, licences.

Text in, text out; opens no file. The numbers of a subset are gathered while its tables pass by, as sums only. Equal
input gives equal text: no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from dto_pipeline import __version__
from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.selection import Selection
from dto_pipeline.schema import COORDINATES, IMAGE_COLUMNS, LABELS_SCHEMA_NAME, PERSON_COLUMNS
from dto_pipeline.status import ImageStatus, PersonStatus

LICENCE = "cc-by-nc-4.0"  # of labels derived from CameraHMR's
TITLE = "Scene-consistent metric SMPL labels of crowds (DTO)"
SUMMARY = (
    "SMPL bodies (pose, shape with kid axis, metric translation) of all people of an image, placed jointly by "
    "Depth-conditioned Translation Optimization (DTO, arXiv 2511.13282). Labels only: images are named, not included."
)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclass(frozen=True)
class CardSubset:
    """One configuration of the dataset."""

    name: str
    statistics: SubsetStatistics
    footer: dict[str, str]  # of its label files: licence, config_hash, versions ...
    makings: list[dict[str, str]]  # solver, depth, body, config_hash; one unless runs were mixed
    files: list[str]  # relative to the folder

    @property
    def licence(self) -> str:
        """What users must know, as the dataset's description tells it."""
        return self.footer.get("licence") or "not stated in the dataset's description"


def dataset_card(subsets: list[CardSubset], selection: Selection) -> str:
    """README.md of the folder: YAML for the hub, then text for people."""
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(subsets), sort_keys=False)}---\n",
        f"# {TITLE}\n\n{SUMMARY}\n",
        _usage(subsets),
        _statistics(subsets),
        _statuses(subsets),
        _heights(subsets),
        _columns(),
        _licences(subsets),
        _provenance(subsets, selection),
    ]
    return "\n".join(sections)


def _front_matter(subsets: list[CardSubset]) -> dict[str, object]:
    images = sum(subset.statistics.images for subset in subsets)
    return {
        "pretty_name": TITLE,
        "license": LICENCE,
        "tags": ["3d", "human-mesh-recovery", "smpl", "crowds", "croissant"],
        "size_categories": [next((name for limit, name in _SIZES if images < limit), "1M<n<10M")],
        "configs": [
            {
                "config_name": subset.name,
                "data_files": [{"split": "train", "path": f"data/{subset.name}/*.parquet"}],
                **({"default": True} if position == 0 else {}),
            }
            for position, subset in enumerate(subsets)
        ],
    }


def _usage(subsets: list[CardSubset]) -> str:
    return f"""## Use

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
"""


def _statistics(subsets: list[CardSubset]) -> str:
    names = ("images", "optimized", "accepted", "mean deviation [sigma]", "persons", "moved", "persons an image")
    rows = []
    for subset in subsets:
        own = subset.statistics
        rows.append(
            (
                *(subset.name, own.images, own.optimized, own.accepted, _ratio(own.deviation, own.optimized)),
                *(own.persons, own.person_status[str(PersonStatus.MOVED)], _ratio(own.persons, own.images)),
            )
        )
    return f"## Numbers\n\n{_table(('subset', *names), rows)}"


def _statuses(subsets: list[CardSubset]) -> str:
    rows = [
        (f"{kind} `{status}`", *(getattr(s.statistics, f"{kind}_status")[str(status)] for s in subsets), status.advice)
        for kind, words in (("image", ImageStatus), ("person", PersonStatus))
        for status in words
        if any(getattr(s.statistics, f"{kind}_status")[str(status)] for s in subsets)
    ]
    return _table(("status", *(subset.name for subset in subsets), "meaning"), rows)


def _heights(subsets: list[CardSubset]) -> str:
    rows = [
        (subset.name, name, own.people, _ratio(own.before, own.people), _ratio(own.after, own.people))
        for subset in subsets
        for name, own in sorted(subset.statistics.heights.items())
    ]
    head = ("subset", "height class", "persons moved", "mean height before [m]", "mean height after [m]")
    return f"Height classes come from age and gender estimates.\n\n{_table(head, rows)}" if rows else ""


def _columns() -> str:
    people = ("`persons`", "list of persons", "", "people in source order, none dropped")
    rows = [*(c.row() for c in IMAGE_COLUMNS), people, *(c.row("persons[].") for c in PERSON_COLUMNS)]
    return f"## Columns (schema `{LABELS_SCHEMA_NAME}`)\n\n{_table(('column', 'type', 'unit', 'meaning'), rows)}"


def _licences(subsets: list[CardSubset]) -> str:
    lines = "\n".join(f"- **{subset.name}**: {subset.licence}" for subset in subsets)
    return f"""## Licences

Labels: {LICENCE.upper()} unless a subset says otherwise. Images are not part of this dataset; `image_path` is the
published key of each, `image_sha256` tells whether yours is the one that was labelled. The SMPL body model has a
licence of its own.

{lines}
"""


def _provenance(subsets: list[CardSubset], selection: Selection) -> str:
    rows = [
        (
            *(subset.name, *(making[fact] for fact in ("solver", "depth", "body")), f"`{making['config_hash'][:16]}`"),
            f"`{subset.footer.get('manifest_fingerprint', '')[:16]}`",
        )
        for subset in subsets
        for making in subset.makings
    ]
    chosen = ", ".join(f"{key} = {value}" for key, value in selection.describe().items())
    table = _table(("subset", "solver", "depth", "body model", "config", "manifest"), rows)
    return f"""## Provenance

Written by dto_pipeline {__version__}; selection: {chosen}. Hashes, shortened:

{table}
How sure the solver is stands in `z_sigma_m` and `height_sigma_m` of each person and in `z_covariance` of each image;
they are NaN and null where the solver gives none (mode `paper`).
"""


def _ratio(part: float, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    """Text that a Markdown table shows as it is."""
    return str(value).replace("|", "/").replace("<", "&lt;").replace("\n", " ")


@dataclass
class HeightSums:
    """Sums over the people of one height class."""

    people: int = 0
    before: float = 0.0  # [m]
    after: float = 0.0  # [m]


@dataclass
class SubsetStatistics:
    """Sums over the images and people of a subset."""

    images: int = 0
    persons: int = 0
    accepted: int = 0
    optimized: int = 0
    deviation: float = 0.0  # sum over optimised images [sigma]
    image_status: Counter[str] = field(default_factory=Counter)
    person_status: Counter[str] = field(default_factory=Counter)
    heights: dict[str, HeightSums] = field(default_factory=dict)  # height class -> sums over people that moved

    def add(self, table: pa.Table) -> None:
        """Count the rows of a label table."""
        people = single_array(table["persons"]).flatten()
        optimized = table["is_optimized"].to_numpy()
        self.images += table.num_rows
        self.persons += len(people)
        self.accepted += int(table["is_accepted"].to_numpy().sum())
        self.optimized += int(optimized.sum())
        self.deviation += float(table["mean_height_deviation"].to_numpy()[optimized].sum(dtype=np.float64))
        self.image_status.update(_count(single_array(table["status"])))
        self.person_status.update(_count(people.field("status")))
        moved = people.filter(pc.equal(people.field("status"), "moved"))
        classes = moved.field("height_class").to_numpy(zero_copy_only=False)
        before, after = (moved.field(name).to_numpy(zero_copy_only=False) for name in ("height_init_m", "height_m"))
        for name in sorted({name for name in classes if name is not None}):
            sums, own = self.heights.setdefault(name, HeightSums()), classes == name
            sums.people += int(own.sum())
            sums.before += float(before[own].sum(dtype=np.float64))
            sums.after += float(after[own].sum(dtype=np.float64))


def _count(words: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in words.value_counts().to_pylist()}
