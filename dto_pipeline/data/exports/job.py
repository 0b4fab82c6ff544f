"""What every format's writer receives: the plan, the folder, where images are, how progress is told.

The plan is known before anything is written: files checked, images and people counted per subset in one pass over a few
narrow columns. Counts decide names (``-00000-of-00012``) and array headers, so the writing pass can stream. The folder
is written aside, described by export.json and given its name at the end; a killed export leaves only
``.<name>.tmp-<uuid>`` beside the place, which the next export to that place removes once its owner is dead. No clock:
equal exports have equal bytes. Memory: one row group; image keys only where two runs share a subset.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dto_pipeline.data.exports.inputs import ExportError, RunLabels, check_label_file, read_tables
from dto_pipeline.data.exports.selection import SELECTION_COLUMNS, Selection, select_rows
from dto_pipeline.data.files import is_temporary, sha256_file, sync, write_json_atomic
from dto_pipeline.data.storage import Location
from dto_pipeline.paths import SUBSET_NAME


@dataclass(frozen=True)
class ExportJob:
    """One export on its way; writers add to `notes` and `failures` what only they see."""

    plan: ExportPlan
    images: (
        Mapping[str, str] | None
    )  # subset -> folder or URI of its image files, "" = the manifest's; None = no images
    advance: Callable[[int], object]  # called with the number of images written
    notes: Counter[str] = field(default_factory=Counter)  # what a writer left out by its format's rules
    failures: Counter[str] = field(default_factory=Counter)  # what it could not write
    examples: dict[str, str] = field(default_factory=dict)  # failure -> the first of its kind, with the place tried
    labels: Sequence[Location] = ()  # where released label files may lie, for formats that carry parts of them

    @property
    def subsets(self) -> list[SubsetPlan]:
        """Subsets of which something is taken."""
        return [subset for subset in self.plan.subsets if subset.images]

    def tables(self, subset: SubsetPlan, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """`ExportPlan.tables`, counted."""
        for table in self.plan.tables(subset, columns):
            yield table
            self.advance(table.num_rows)

    def tables_with_files(self, subset: SubsetPlan) -> Iterator[tuple[RunLabels, pa.Table]]:
        """All columns and `IMAGE_FILE`, counted, with the run each table is from."""
        for run in subset.runs:
            for table in self.plan.run_tables(run, None, image_files=True):
                yield run, table
                self.advance(table.num_rows)


@dataclass
class SubsetPlan:
    """One subset of an export."""

    subset: str
    runs: list[RunLabels]
    images: int = 0  # taken
    persons: int = 0  # taken
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> images or persons


@dataclass(frozen=True)
class ExportPlan:
    """Subsets in alphabetical order, with what is taken of them."""

    selection: Selection
    subsets: list[SubsetPlan]

    def tables(
        self, subset: SubsetPlan, columns: Sequence[str] | None = None, image_files: bool = False
    ) -> Iterator[pa.Table]:
        """The selected rows of a subset, a row group at a time; `columns` and `image_files` as in `read_tables`."""
        for run in subset.runs:
            yield from self.run_tables(run, columns, image_files)

    def run_tables(self, run: RunLabels, columns: Sequence[str] | None, image_files: bool) -> Iterator[pa.Table]:
        """As `tables`, of one run."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, *SELECTION_COLUMNS]))
        for table in read_tables(run, wanted, image_files):
            yield select_rows(table, self.selection)


def count_images(runs: Sequence[RunLabels]) -> int:
    """Images of the label files of some runs, taken or not."""
    return sum(file.rows for run in runs for file in run.files)


def plan_export(runs: Sequence[RunLabels], selection: Selection, advance: Callable[[int], object]) -> ExportPlan:
    """Check every label file against its receipt and count what `selection` takes.

    Args:
        runs: of any subsets; runs of one subset must not share images.
        advance: called with the number of images looked at.

    Raises:
        ExportError: a file is not what its receipt says, an image is in two runs, or nothing is selected.
    """
    for run in runs:
        _check_subset(run)
    subsets = [
        SubsetPlan(name, [run for run in runs if run.subset == name]) for name in sorted({run.subset for run in runs})
    ]
    for subset in subsets:
        _count_subset(subset, selection, advance)
    if not any(subset.images for subset in subsets):
        reasons = Counter[str]()
        for subset in subsets:
            reasons.update(subset.left_out)
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count) or "the runs are empty"
        raise ExportError(
            f"no image is left to export: {found}; loosen --accepted-only, --max-error, --max-z-sigma, --min-persons "
            "or --persons"
        )
    return ExportPlan(selection, subsets)


def _count_subset(subset: SubsetPlan, selection: Selection, advance: Callable[[int], object]) -> None:
    seen: dict[str, str] | None = {} if len(subset.runs) > 1 else None  # image_id -> run
    columns = [*SELECTION_COLUMNS, *(["image_id"] if seen is not None else [])]
    for run in subset.runs:
        for file in run.files:
            check_label_file(run, file)
        for table in read_tables(run, columns):
            if seen is not None:
                _check_unique(seen, run, table["image_id"].to_pylist())
            taken = select_rows(table, selection, subset.left_out)
            subset.images += taken.num_rows
            subset.persons += int(taken["num_persons"].to_numpy().sum())
            advance(table.num_rows)


def _check_subset(run: RunLabels) -> None:
    """A subset names folders and files of the export: it must be one part of a path."""
    if SUBSET_NAME.fullmatch(run.subset) is None:
        raise ExportError(f"run {run.name} is of subset {run.subset!r}; expected letters, digits, '.', '-' and '_'")


def _check_unique(seen: dict[str, str], run: RunLabels, image_ids: list[str]) -> None:
    for image_id in image_ids:
        if image_id in seen:
            raise ExportError(f"image {image_id} is in {seen[image_id]} and in {run.name}; export one of the two runs")
        seen[image_id] = run.name


EXPORT_SCHEMA = "dto-export/1"
EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export."""

    path: str  # relative to the folder
    images: int
    persons: int


def check_free(out: Path) -> None:
    """Refuse a place that is taken: an export never mixes with other files. Raises: ExportError."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise ExportError(f"{out} exists and is not an empty folder; remove it or choose another -o")


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; whatever still bears the temporary name at the end is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    staging = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex}")
    staging.mkdir()
    handle = os.open(staging, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: there nobody can lock it to sweep it either
            fcntl.flock(handle, fcntl.LOCK_EX)  # held while we live
        yield staging
    finally:
        os.close(handle)
        shutil.rmtree(staging, ignore_errors=True)  # gone already where it was committed


def commit_folder(staging: Path, out: Path, facts: dict[str, Any], files: list[ExportedFile]) -> None:
    """Write export.json with every file's size and sha256, sync all, give the folder its name.

    Raises:
        ExportError: somebody else put something under that name meanwhile.
    """
    entries = []
    for file in files:
        path = staging / file.path
        sync(path)
        size = path.stat().st_size
        entry = {"path": file.path, "bytes": size, "sha256": sha256_file(path)}
        entries.append({**entry, "images": file.images, "persons": file.persons})
    write_json_atomic(staging / EXPORT_FILE, {"schema": EXPORT_SCHEMA, **facts, "files": entries})
    for folder in sorted(path for path in staging.rglob("*") if path.is_dir()):
        sync(folder)
    sync(staging)
    try:
        os.rename(staging, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ExportError(f"{out} appeared while the export was written; remove it or choose another -o") from error
    sync(out.parent)


def _sweep(out: Path) -> None:
    """Remove what killed exports to this place left; a folder whose owner lives is locked and stays."""
    for path in list(out.parent.iterdir()):
        if not (path.name.startswith(f".{out.name}.tmp-") and is_temporary(path.name) and path.is_dir()):
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # locked, or a file system without locks: leaving it is safe
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)
