"""One export: the selected images and people of some runs, the folder they are written to, and the report.

Images and people are selected by label columns, and those left out are counted by reason. Label values are copied
unchanged; only `num_persons` and `z_covariance` are cut to the selected people. Everything selected is read before the
first file is written, because file names (``-00000-of-00012``) and array headers need the counts: 0.7 kB a person, 2 GB
for 560,000 images of 4.8 people. There are no timestamps, so equal exports have equal bytes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import ragged_column, single_array
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.label_files import EXPECTED_ERROR, NO_LIMITS, Z_SIGMA, Limits, RunLabels, flatten_table
from dto_pipeline.data.storage import Location
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_json
from dto_pipeline.status import PersonStatus

EXPORT_FILE = "export.json"
PERSON_CHOICES = ("all", "valid", "moved")
Z_COVARIANCE = "z_covariance"  # the only column of images with entries per person
_SELECTION_COLUMNS = ("is_optimized", "is_accepted", "mean_height_deviation", EXPECTED_ERROR, "persons")


class ExportError(DtoError):
    """An export that cannot be made; the message says why and the next step."""


@dataclass(frozen=True)
class Selection:
    """Which images and people to export. People are selected first, then images by the people that remain."""

    accepted_only: bool = False  # only images that are optimised and score below the threshold
    max_deviation: float | None = None  # that threshold [sigma]; None = the run's own (column is_accepted)
    min_persons: int = 0  # selected people of an image
    persons: str = "all"  # valid: with usable labels; moved: placed by the fit. Duplicates are never exported
    limits: Limits = NO_LIMITS  # on the uncertainty of images and people

    def describe(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("limits")


def select_rows(table: pa.Table, selection: Selection, left_out: Counter[str]) -> pa.Table:
    """The selected images and people of a label table.

    Args:
        table: of `schema.LABELS_SCHEMA`; further columns are kept.
        left_out: reason -> images or persons; added to.
    """
    columns = flatten_table(table.select(_SELECTION_COLUMNS), ("status", Z_SIGMA))
    images, owner, z_sigma = columns.images, columns.owner, columns.people[Z_SIGMA]
    status, expected = columns.people["status"], images[EXPECTED_ERROR]
    single = status != str(PersonStatus.DUPLICATE)
    valid, moved = status != str(PersonStatus.INVALID_LABEL), status == str(PersonStatus.MOVED)
    chosen = single & dict(zip(PERSON_CHOICES, (single, valid, moved), strict=True))[selection.persons]
    good = images["is_accepted"] if selection.accepted_only else np.ones(table.num_rows, bool)
    if selection.accepted_only and selection.max_deviation is not None:
        good = images["is_optimized"] & (images["mean_height_deviation"] < selection.max_deviation)
    certain = good & selection.limits.images(expected)
    taken = chosen & selection.limits.people(z_sigma)
    remaining = np.bincount(owner[taken], minlength=good.size)
    kept = certain & (remaining >= selection.min_persons)

    judged = chosen & certain[owner]
    left_out["images not accepted"] += int((~good).sum())
    selection.limits.count(expected[good], z_sigma[judged], left_out)
    left_out[f"images with fewer than {selection.min_persons} persons"] += int((certain & ~kept).sum())
    left_out["persons of these images"] += int((~kept[owner] & ~(judged & ~taken)).sum())
    left_out["persons that repeat another, of images taken"] += int((~single & kept[owner]).sum())
    left_out[f"persons not {selection.persons}, of images taken"] += int((~chosen & single & kept[owner]).sum())
    if kept.all() and taken.all():
        return table
    return _cut(table, kept, taken & kept[owner], remaining[kept], columns.starts)


def _cut(
    table: pa.Table, images: np.ndarray, people: np.ndarray, remaining: np.ndarray, starts: np.ndarray
) -> pa.Table:
    """The rows of the chosen images (N,) and people (n,), both bool; `remaining`: people of each chosen image."""
    kept = single_array(table["persons"]).flatten().filter(pa.array(people))
    changed = {
        "num_persons": pa.array(remaining.astype(np.int32)),
        "persons": ragged_column(remaining, kept, pa.list_(table.schema.field("persons").type.value_field)),
    }
    if Z_COVARIANCE in table.column_names:
        triangles, small = single_array(table[Z_COVARIANCE]), list[np.ndarray | None]()
        for image in np.flatnonzero(images).tolist():  # lower triangles, row by row, diagonal included
            crowd = people[starts[image] : starts[image + 1]]
            row, column = np.tril_indices(crowd.size)
            inside = crowd[row] & crowd[column]
            small.append(np.asarray(triangles[image].values)[inside] if triangles[image].is_valid else None)
        changed[Z_COVARIANCE] = pa.array(small, triangles.type)
    table = table.filter(pa.array(images))
    for name, column in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return table


@dataclass
class Subset:
    """One subset of an export. The counts are of what is selected."""

    name: str
    runs: list[RunLabels]
    tables: list[list[pa.Table]] = field(default_factory=list)  # of each run the selected rows, by row group
    images: int = 0
    optimized: int = 0
    accepted: int = 0
    persons: int = 0
    moved: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> images or persons

    def add(self, tables: list[pa.Table]) -> None:
        """Take and count the selected rows of the next run."""
        self.tables.append(tables)
        for rows in tables:
            status = single_array(rows["persons"]).flatten().field("status").to_numpy(zero_copy_only=False)
            self.images += rows.num_rows
            self.optimized += int(rows["is_optimized"].to_numpy().sum())
            self.accepted += int(rows["is_accepted"].to_numpy().sum())
            self.persons += status.size
            self.moved += int((status == str(PersonStatus.MOVED)).sum())

    def describe(self) -> dict[str, Any]:
        """The subset's entry in export.json, without paths."""
        runs = [
            {
                "config_hash": run.config_hash,
                "manifest_fingerprint": run.manifest_fingerprint,
                "shards": run.shards,
                "shards_exported": len(run.files),
                "label_sha256": {f"{file.shard:05d}": file.sha256 for file in run.files},
            }
            for run in self.runs
        ]
        return {"images": self.images, "persons": self.persons, "left_out": dict(self.left_out), "runs": runs}


@dataclass(frozen=True)
class ExportJob:
    """An export in progress, and its report at the end; writers add to the last four fields."""

    out: Path
    folder: Path  # where files are written; renamed to `out` when all are complete
    selection: Selection
    subsets: list[Subset]  # in alphabetical order
    advance: Callable[[int], object]  # called with the number of images written
    images: Mapping[str, str] | None = None  # as in `export_labels`
    labels: Sequence[Location] = ()  # as in `export_labels`
    files: list[dict[str, Any]] = field(default_factory=list)  # as export.json lists them
    notes: Counter[str] = field(default_factory=Counter)  # what the format has no place for
    failures: Counter[str] = field(default_factory=Counter)  # what could not be written
    examples: dict[str, str] = field(default_factory=dict)  # failure -> its first case

    @property
    def taken(self) -> list[Subset]:
        """The subsets with at least one selected image."""
        return [subset for subset in self.subsets if subset.images]

    def read(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same tables, each counted as written when the next one is asked for."""
        for table in tables:
            yield table
            self.advance(table.num_rows)

    def add(self, path: str, images: int = 0, persons: int = 0) -> None:
        """Record a complete file of the folder."""
        place = self.folder / path
        facts = {"images": int(images), "persons": int(persons), "bytes": place.stat().st_size}
        self.files.append({"path": path, **facts, "sha256": sha256_file(place)})

    @property
    def exit_code(self) -> int:
        """0: everything selected was written; 1: something could not be, see `failures`."""
        return 1 if self.failures.total() else 0

    def as_table(self) -> str:
        """Text for a terminal."""
        lines = []
        for subset in self.subsets:
            lines.append(f"{subset.name:<12} {subset.images:>9} images {subset.persons:>9} persons taken")
            lines += [f"{'':<12} {count:>9} {reason} left out" for reason, count in subset.left_out.items() if count]
        lines += [f"{'':<12} {count:>9} {note}" for note, count in sorted((self.notes + self.failures).items())]
        lines += [f"{'':<12} for example: {text}" for text in self.examples.values()]
        lines.append(f"{len(self.files)} files in {self.out}, listed with sha256 in {self.out / EXPORT_FILE}")
        return "\n".join(lines)


def describe_provenance(footer: Mapping[str, str]) -> dict[str, str]:
    """Solver, depth network or maps, body and config hash behind a label file; "unknown" where its footer has none."""
    try:
        config = parse_json(footer.get("config", "{}"))
        solver, depth, body = (dict(config.get(name, {})) for name in ("solver", "depth", "body"))
    except (ValueError, TypeError, AttributeError):  # damaged: its sha256 is not the receipt's
        solver, depth, body = {}, {}, {}
    depth_text = f"maps from {depth['source']} ({depth.get('kind', '')})" if "source" in depth else "unknown"
    if depth.get("source") == "model":
        pin = footer.get("depth_revision") or depth.get("revision") or footer.get("depth_sha256", "")[:16]
        name = footer.get("depth_model") or depth.get("model") or "unknown"
        depth_text = f"{name} at {pin}" if pin else str(name)
    digest = footer.get("body_sha256", "")
    body_text = str(body.get("model_path", "")) or ("body" if digest else "unknown")
    return {
        "solver": str(solver.get("mode", "unknown")),
        "depth": depth_text,
        "body": f"{body_text.rstrip('/').rpartition('/')[2]} (sha256 {digest[:16]})" if digest else body_text,
        "config_hash": footer.get("config_hash", "unknown"),
    }
