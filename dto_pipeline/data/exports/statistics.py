"""Numbers that describe a subset, gathered while its tables pass by: counts of statuses, heights by class.

Knows label columns; keeps sums only. Heights in metres, deviations in sigma.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import single_array


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
