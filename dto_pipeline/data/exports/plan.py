"""What an export will write, known before it writes: files checked, images and people counted per subset.

One pass over a few narrow columns. Counts decide names (``-00000-of-00012``) and array headers, so the writing pass can
stream. Memory: one row group; image keys only where two runs share a subset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dto_pipeline.data.exports.inputs import ExportError, RunLabels, check_label_file, read_tables
from dto_pipeline.data.exports.selection import SELECTION_COLUMNS, Selection, select_rows
from dto_pipeline.paths import SUBSET_NAME


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
            f"no image is left to export: {found}; loosen --accepted-only, --max-error, "
            "--max-z-sigma, --min-persons or --persons"
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
