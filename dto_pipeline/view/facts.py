"""Everything the report tells of a run, counted shard by shard: memory does not grow with the run.

Joins receipts to label columns; draws nothing. Heights and distances in metres, deviations in sigma, times in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from dto_pipeline.axes import FAR, HEIGHT_CLASSES, NEAR
from dto_pipeline.data.label_files import (
    EXPECTED_ERROR,
    Z_SIGMA,
    LabelColumns,
    Limits,
    flatten_table,
    person_leaf,
    read_label_files,
)
from dto_pipeline.data.labels import read_label_metadata
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run.report import RunStatus, read_status
from dto_pipeline.status import PLACED, ImageStatus
from dto_pipeline.view.run_files import RunFiles

GROUPS = {"near": NEAR, "far": FAR}
_PEOPLE = (
    *("height_class", "height_init_m", "height_m", "scale", "transl", "transl_init", "depth_group", "status"),
    Z_SIGMA,
)
_IMAGES = (
    *("image_id", "subset", "status", "message", "is_optimized", "is_accepted"),
    *("mean_height_deviation", "used_ground_evidence", "num_persons", EXPECTED_ERROR),
)
_FAILURES_SHOWN = 20
LIMITS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)  # of error and sigma that the report tries [m]
_FAILED = [str(status) for status in ImageStatus if status.is_failure]


@dataclass
class Histogram:
    """Counts of one or two series over shared bins; what lies beyond the edges is counted in the outer bins."""

    edges: np.ndarray  # (bins + 1,)
    counts: np.ndarray  # (series, bins)

    @classmethod
    def empty(cls, edges: np.ndarray, series: int = 1) -> Histogram:
        return cls(edges, np.zeros((series, len(edges) - 1), dtype=np.int64))

    def add(self, values: np.ndarray, series: int = 0) -> None:
        finite = values[np.isfinite(values)]
        bins = np.searchsorted(self.edges, finite, side="right") - 1
        self.counts[series] += np.bincount(bins.clip(0, len(self.edges) - 2), minlength=len(self.edges) - 1)


@dataclass
class SubsetFacts:
    """Counts of one data set."""

    images: int = 0
    optimized: int = 0
    accepted: int = 0
    failed: int = 0
    persons: int = 0
    accepted_persons: int = 0  # people of accepted images
    moved: int = 0


@dataclass
class WorkerFacts:
    """What one process did."""

    shards: int = 0
    images: int = 0
    seconds: float = 0.0
    repeated: int = 0


@dataclass
class Facts:
    """All numbers of the report. Two series of a histogram are before and after."""

    status: RunStatus
    heights: dict[str, Histogram]  # height class -> [m]
    distances: dict[str, Histogram]  # group -> [m]
    scales: Histogram
    deviations: Histogram
    crowds: Histogram  # persons per image
    subsets: dict[str, SubsetFacts] = field(default_factory=dict)
    workers: dict[str, WorkerFacts] = field(default_factory=dict)
    group_status: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in GROUPS})
    ground_used: int = 0  # images whose near group was placed by ground evidence
    # limit [m] -> accepted images of at most this expected error, and people of accepted images of at most this sigma
    certain: dict[float, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(LIMITS, (0, 0)))
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # image key, status, message; the first ones
    footer: dict[str, str] = field(default_factory=dict)  # of one label file: versions, models, label files

    @property
    def total(self) -> SubsetFacts:
        """All subsets together."""
        return SubsetFacts(*(sum(counts) for counts in zip(*map(astuple, self.subsets.values()), strict=True)))


def gather_facts(run: RunFiles) -> Facts:
    """Read every finished shard of a run once.

    Raises:
        LabelsError: a label file is damaged; `dto verify` names all of them.
    """
    facts = Facts(
        status=read_status(run.directory.root),
        heights={name: Histogram.empty(np.arange(0.4, 2.2501, 0.05), 2) for name in HEIGHT_CLASSES},
        distances={name: Histogram.empty(np.arange(0, 40.1, 1.0), 2) for name in GROUPS},
        scales=Histogram.empty(np.geomspace(0.25, 4, 41)),
        deviations=Histogram.empty(np.arange(0, 4.01, 0.1)),
        crowds=Histogram.empty(np.arange(0, 31.1, 1.0) - 0.5),
    )
    leaves = [*_IMAGES, *(person_leaf(name) for name in _PEOPLE)]
    for shard in run.shards:
        table = read_label_files([run.label_file(shard)], leaves)
        _add_shard(facts, flatten_table(table, _PEOPLE))
        _add_receipt(facts.workers, run.scan.done[shard])
    for shard in run.shards[:1]:
        facts.footer = read_label_metadata(run.label_file(shard))
    return facts


def _add_shard(facts: Facts, columns: LabelColumns) -> None:
    images, people = columns.images, columns.people
    moved = np.isin(people["status"], PLACED)
    for name, histogram in facts.heights.items():
        own = people["height_class"] == name
        histogram.add(people["height_init_m"][own], 0)
        histogram.add(people["height_m"][own], 1)
    for name, group in GROUPS.items():
        own = people["depth_group"] == group
        facts.group_status[name].update(people["status"][own].tolist())
        facts.distances[name].add(people["transl_init"][own, 2], 0)
        facts.distances[name].add(people["transl"][own, 2], 1)
    facts.scales.add(people["scale"][moved])
    facts.deviations.add(images["mean_height_deviation"][images["is_optimized"]])
    facts.crowds.add(images["num_persons"].astype(np.float64))
    facts.ground_used += int((images["used_ground_evidence"] & images["is_optimized"]).sum())
    _add_certain(facts.certain, columns)
    _add_subsets(facts.subsets, columns, moved)
    _add_failures(facts.failures, images)


def _add_certain(certain: dict[float, tuple[int, int]], columns: LabelColumns) -> None:
    accepted = columns.images["is_accepted"].astype(bool)
    error, sigma = columns.images[EXPECTED_ERROR][accepted], columns.people[Z_SIGMA][accepted[columns.owner]]
    for most, (images, people) in certain.items():
        limits = Limits(most, most)
        certain[most] = images + int(limits.images(error).sum()), people + int(limits.people(sigma).sum())


def _add_subsets(subsets: dict[str, SubsetFacts], columns: LabelColumns, moved: np.ndarray) -> None:
    images = columns.images
    failed = np.isin(images["status"], _FAILED)
    person_subset = images["subset"][columns.owner]
    for name in np.unique(images["subset"]).tolist():
        own, people = images["subset"] == name, person_subset == name
        part = subsets.setdefault(name, SubsetFacts())
        part.images += int(own.sum())
        part.optimized += int(images["is_optimized"][own].sum())
        part.accepted += int(images["is_accepted"][own].sum())
        part.failed += int(failed[own].sum())
        part.persons += int(people.sum())
        part.accepted_persons += int(images["is_accepted"][columns.owner][people].sum())
        part.moved += int(moved[people].sum())


def _add_failures(failures: list[tuple[str, str, str]], images: dict[str, np.ndarray]) -> None:
    room = _FAILURES_SHOWN - len(failures)
    for row in np.flatnonzero(np.isin(images["status"], _FAILED))[:room]:
        failures.append((images["image_id"][row], images["status"][row], images["message"][row] or ""))


def _add_receipt(workers: dict[str, WorkerFacts], receipt: Receipt) -> None:
    worker = workers.setdefault(receipt.worker, WorkerFacts())
    worker.shards += 1
    worker.images += receipt.images
    worker.seconds += receipt.wall_s
    worker.repeated += receipt.attempt - 1


def prior_curve(mean: float, sigma: float, people: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bell of a height prior in persons per bin: x [m] and y, for as many people as the histogram counts."""
    x = np.linspace(edges[0], edges[-1], 120)
    density = np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return x, density * people * float(edges[1] - edges[0])


def share(part: int, whole: int) -> str:
    """``12.3 %``; a dash where there is nothing to share."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def class_priors(config: dict[str, dict[str, Sequence[float]]]) -> dict[str, tuple[float, float]]:
    """Height class -> mean and sigma [m] of a run's config."""
    prior = config["prior"]
    return {name: (prior["mean"][i], prior["sigma"][i]) for i, name in enumerate(HEIGHT_CLASSES)}
