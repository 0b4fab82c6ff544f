"""One export: the selected images and people of some runs, the folder they are written to, and the report.

Images and people are selected by label columns, and those left out are counted by reason. Label values are copied as
they are; only `num_persons` and `z_covariance` follow the selection. The label files are checked and counted in a first
pass over a few columns, because file names (``-00000-of-00012``) and array headers need the counts. No timestamps:
equal exports have equal bytes. Memory: one row group of 1024 images; image keys only where runs share a subset.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import ragged_column, single_array
from dto_pipeline.data.files import sha256_file, staged, sweep_abandoned, sync
from dto_pipeline.data.label_files import EXPECTED_ERROR, NO_LIMITS, Z_SIGMA, Limits, RunLabels, flatten_table
from dto_pipeline.data.storage import Location, sha256_of
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import SUBSET_NAME
from dto_pipeline.reading import parse_json
from dto_pipeline.status import PersonStatus

EXPORT_FILE = "export.json"
PERSON_CHOICES = PERSONS_ALL, PERSONS_VALID, PERSONS_MOVED = "all", "valid", "moved"
Z_COVARIANCE = "z_covariance"  # the only image column indexed by people
SELECTION_COLUMNS = ("is_optimized", "is_accepted", "mean_height_deviation", EXPECTED_ERROR, "num_persons")
SELECTION_PEOPLE = ("status", Z_SIGMA)  # columns of images and of people that `select_rows` needs


class ExportError(DtoError):
    """An export that cannot be made; the message says why and the next step."""


@dataclass(frozen=True)
class Selection:
    """Which images and people to export. People are selected first, then images by the people that remain."""

    accepted_only: bool = False  # images that are optimised and score below the threshold
    max_deviation: float | None = None  # that threshold [sigma]; None = the run's own (column is_accepted)
    min_persons: int = 0  # selected people of an image
    persons: str = PERSONS_ALL  # all; valid: usable labels; moved: placed by the fit. Duplicates never
    limits: Limits = NO_LIMITS  # on the uncertainty of images and people

    def describe(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("limits")


def select_rows(table: pa.Table, selection: Selection, left_out: Counter[str] | None = None) -> pa.Table:
    """The selected images and people of a label table.

    Args:
        table: of `schema.LABELS_SCHEMA` or a projection with the columns above; further columns are kept.
        left_out: reason -> images or persons; added to.
    """
    columns = flatten_table(table.select([*SELECTION_COLUMNS, "persons"]), SELECTION_PEOPLE)
    images, owner, z_sigma = columns.images, columns.owner, columns.people[Z_SIGMA]
    status, expected = columns.people["status"], images[EXPECTED_ERROR]
    single = status != str(PersonStatus.DUPLICATE)
    chosen = (
        single
        & {
            PERSONS_ALL: single,
            PERSONS_VALID: status != str(PersonStatus.INVALID_LABEL),
            PERSONS_MOVED: status == str(PersonStatus.MOVED),
        }[selection.persons]
    )
    good = np.ones(table.num_rows, dtype=bool)
    if selection.accepted_only and selection.max_deviation is None:
        good = images["is_accepted"]
    elif selection.accepted_only:
        good = images["is_optimized"] & (images["mean_height_deviation"] < selection.max_deviation)
    certain = good & selection.limits.images(expected)
    taken = chosen & selection.limits.people(z_sigma)
    remaining = np.bincount(owner[taken], minlength=good.size)
    kept = certain & (remaining >= selection.min_persons)
    if left_out is not None:
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
    """The rows of the images (N,) and people (n,) that are true; `remaining`: people of each such image."""
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
class SubsetPlan:
    """One subset of an export. The counts are of what is selected."""

    subset: str
    runs: list[RunLabels]
    images: int = 0
    optimized: int = 0
    accepted: int = 0
    persons: int = 0
    moved: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> images or persons

    def count(self, run: RunLabels, selection: Selection, run_of: dict[str, str]) -> Iterator[int]:
        """Check a run's label files against its receipts and count what is selected; yields numbers of images read.

        `run_of`: image_id -> name of its run, of the subset's runs so far. Raises: ExportError: a file is not the one
        its receipt describes, or an image is in two runs.
        """
        several = len(self.runs) > 1
        for file in run.files:
            if (found := sha256_of(file.path)) != file.sha256:
                raise ExportError(
                    f"{file.path} has sha256 {found[:16]}..., its receipt says {file.sha256[:16]}...: the file was "
                    "changed or damaged; delete the shard's receipt and run again"
                )
        for table in run.tables([*SELECTION_COLUMNS, *(["image_id"] if several else [])], SELECTION_PEOPLE):
            for image_id in table["image_id"].to_pylist() if several else ():
                if image_id in run_of:
                    both = f"{run_of[image_id]} and in {run.name}"
                    raise ExportError(f"image {image_id} is in {both}; export one of the two runs")
                run_of[image_id] = run.name
            rows = select_rows(table, selection, self.left_out)
            status = single_array(rows["persons"]).flatten().field("status").to_numpy(zero_copy_only=False)
            self.images += rows.num_rows
            self.optimized += int(rows["is_optimized"].to_numpy().sum())
            self.accepted += int(rows["is_accepted"].to_numpy().sum())
            self.persons += status.size
            self.moved += int((status == str(PersonStatus.MOVED)).sum())
            yield table.num_rows

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
class ExportedFile:
    """One complete file of an export."""

    path: str  # relative to the folder
    images: int
    persons: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportJob:
    """An export in progress, and its report at the end; writers add to the last four fields."""

    out: Path
    folder: Path  # where files are written; renamed to `out` when all are complete
    selection: Selection
    subsets: list[SubsetPlan]  # in alphabetical order
    advance: Callable[[int], object]  # called with the number of images written
    images: Mapping[str, str] | None = None  # subset -> folder or URI of its images, "" = the manifest's; None = none
    labels: Sequence[Location] = ()  # places of released label files, for formats that copy parts of them
    files: list[ExportedFile] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)  # what the format has no place for
    failures: Counter[str] = field(default_factory=Counter)  # what could not be written
    examples: dict[str, str] = field(default_factory=dict)  # failure -> its first case

    @property
    def taken(self) -> list[SubsetPlan]:
        """The subsets with at least one selected image."""
        return [subset for subset in self.subsets if subset.images]

    def tables(
        self,
        runs: Sequence[RunLabels],
        columns: Sequence[str] | None = None,
        people: Sequence[str] | None = None,
        image_files: bool = False,
    ) -> Iterator[pa.Table]:
        """The selected rows of some runs, one row group at a time; arguments as of `RunLabels.tables`."""
        columns = None if columns is None else list(dict.fromkeys([*columns, *SELECTION_COLUMNS]))
        people = None if people is None else list(dict.fromkeys([*people, *SELECTION_PEOPLE]))
        for run in runs:
            for table in run.tables(columns, people, image_files):
                rows = select_rows(table, self.selection)
                yield rows
                self.advance(rows.num_rows)

    def add(self, path: str, images: int = 0, persons: int = 0) -> None:
        """Record a complete file of the folder."""
        place = self.folder / path
        self.files.append(ExportedFile(path, int(images), int(persons), place.stat().st_size, sha256_file(place)))

    @property
    def exit_code(self) -> int:
        """0: everything selected was written; 1: something could not be, see `failures`."""
        return 1 if self.failures.total() else 0

    def as_table(self) -> str:
        """Text for a terminal."""
        lines = []
        for subset in self.subsets:
            lines.append(f"{subset.subset:<12} {subset.images:>9} images {subset.persons:>9} persons taken")
            lines += [f"{'':<12} {count:>9} {reason} left out" for reason, count in subset.left_out.items() if count]
        lines += [f"{'':<12} {count:>9} {note}" for note, count in sorted((self.notes + self.failures).items())]
        lines += [f"{'':<12} for example: {text}" for text in self.examples.values()]
        lines.append(f"{len(self.files)} files in {self.out}, listed with sha256 in {self.out / EXPORT_FILE}")
        return "\n".join(lines)


def plan_subsets(runs: Sequence[RunLabels], selection: Selection, advance: Callable[[int], object]) -> list[SubsetPlan]:
    """The subsets of some runs, checked and counted; `advance` is called with the number of images read.

    Raises: ExportError: see `SubsetPlan.count`, or nothing is selected.
    """
    for run in runs:
        if SUBSET_NAME.fullmatch(run.subset) is None:  # it names folders and files of the export
            raise ExportError(f"run {run.name} is of subset {run.subset!r}; expected letters, digits, '.', '-' and '_'")
    names = sorted({run.subset for run in runs})
    subsets = [SubsetPlan(name, [run for run in runs if run.subset == name]) for name in names]
    for subset in subsets:
        run_of: dict[str, str] = {}
        for run in subset.runs:
            for images in subset.count(run, selection, run_of):
                advance(images)
    if not any(subset.images for subset in subsets):
        reasons: Counter[str] = sum((subset.left_out for subset in subsets), Counter())
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the runs are empty"
        options = "--accepted-only, --max-error, --max-z-sigma, --min-persons or --persons"
        raise ExportError(f"no image is left to export: {found}; loosen {options}")
    return subsets


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name that is renamed to `out` when the block ends without an error.

    Folders left by killed exports to the same place on this machine are removed first. Raises: ExportError: `out`
    exists and is not an empty folder, or cannot be replaced by one.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder; remove it or choose another -o")
    if not out.name or os.path.ismount(out):  # the current folder, or the top of a disk
        raise ExportError(f"{out} stays where it is, and an export is renamed to its place; name a new folder in it")
    out = out.resolve()  # a link stays, too
    sweep_abandoned(out)
    with staged(out) as folder:
        folder.mkdir()
        yield folder
        for path in (*folder.rglob("*"), folder):
            sync(path)
        try:
            os.rename(folder, out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ExportError(f"{out} appeared while the export was written; remove it or choose another -o") from error
        sync(out.parent)


def describe_making(footer: Mapping[str, str]) -> dict[str, str]:
    """Solver, depth network (or files), body and config hash of a label file; "unknown" where its footer has none."""
    try:
        config = parse_json(footer.get("config", "{}"))
        solver, depth, body = (dict(config.get(name, {})) for name in ("solver", "depth", "body"))
    except (ValueError, TypeError, AttributeError):  # damaged: `SubsetPlan.count` refuses the file by its sha256
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
