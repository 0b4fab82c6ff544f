"""What every format's writer receives: the plan, where images are, and how progress is told. Knows no format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dto_pipeline.data.exports.inputs import RunLabels
from dto_pipeline.data.exports.plan import ExportPlan, SubsetPlan
from dto_pipeline.data.storage import Location


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
