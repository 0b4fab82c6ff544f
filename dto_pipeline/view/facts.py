"""Everything the report tells of a run's labels, counted shard by shard: memory does not grow with the run.

Draws nothing. Heights and distances in metres, deviations in sigma.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

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
from dto_pipeline.run.report import RunStatus, read_status
from dto_pipeline.status import PLACED, ImageStatus
from dto_pipeline.view.plots import Histogram
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


def _two(edges: np.ndarray, names: tuple[str, ...]) -> dict[str, Histogram]:
    return {name: Histogram.empty(edges, 2) for name in names}


@dataclass
class Facts:
    """All numbers of the report. Two series of a histogram are before and after."""

    status: RunStatus
    heights: dict[str, Histogram] = field(default_factory=lambda: _two(np.arange(0.4, 2.2501, 0.05), HEIGHT_CLASSES))
    distances: dict[str, Histogram] = field(default_factory=lambda: _two(np.arange(0, 40.1, 1.0), (*GROUPS,)))
    scales: Histogram = field(default_factory=lambda: Histogram.empty(np.geomspace(0.25, 4, 41)))
    deviations: Histogram = field(default_factory=lambda: Histogram.empty(np.arange(0, 4.01, 0.1)))
    crowds: Histogram = field(default_factory=lambda: Histogram.empty(np.arange(0, 31.1, 1.0) - 0.5))  # persons a scene
    # data set -> images, optimized, accepted and failed ones; persons, those of accepted images and those moved
    subsets: dict[str, Counter[str]] = field(default_factory=dict)
    group_status: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in GROUPS})
    ground_used: int = 0  # images whose near group was placed by ground evidence
    # limit [m] -> accepted images of at most this expected error, and people of accepted images of at most this sigma
    certain: dict[float, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(LIMITS, (0, 0)))
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # image key, status, message; the first ones
    footer: dict[str, str] = field(default_factory=dict)  # of one label file: versions, models, label files

    @property
    def total(self) -> Counter[str]:
        """All subsets together."""
        return sum(self.subsets.values(), Counter())


def gather_facts(run: RunFiles) -> Facts:
    """Read every finished shard of a run once.

    Raises:
        LabelsError: a label file is damaged; `dto verify` names all of them.
    """
    facts = Facts(read_status(run.directory.root))
    leaves = [*_IMAGES, *(person_leaf(name) for name in _PEOPLE)]
    for shard in run.shards:
        _add_shard(facts, flatten_table(read_label_files([run.label_file(shard)], leaves), _PEOPLE))
    for shard in run.shards[:1]:
        facts.footer = read_label_metadata(run.label_file(shard))
    return facts


def _add_shard(facts: Facts, columns: LabelColumns) -> None:
    images, people = columns.images, columns.people
    moved, failed = np.isin(people["status"], PLACED), np.isin(images["status"], _FAILED)
    accepted = images["is_accepted"].astype(bool)
    of_accepted = accepted[columns.owner]
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
    for most, (count, persons) in facts.certain.items():
        limits = Limits(most, most)
        count += int(limits.images(images[EXPECTED_ERROR][accepted]).sum())
        facts.certain[most] = count, persons + int(limits.people(people[Z_SIGMA][of_accepted]).sum())
    of_image = {"optimized": images["is_optimized"], "accepted": accepted, "failed": failed}
    of_person = {"accepted persons": of_accepted, "moved": moved}
    for name in np.unique(images["subset"]).tolist():
        own, their = images["subset"] == name, images["subset"][columns.owner] == name
        part = facts.subsets.setdefault(name, Counter())
        part.update({"images": int(own.sum()), "persons": int(their.sum())})
        part.update({key: int(values[own].sum()) for key, values in of_image.items()})
        part.update({key: int(values[their].sum()) for key, values in of_person.items()})
    for row in np.flatnonzero(failed)[: _FAILURES_SHOWN - len(facts.failures)]:
        facts.failures.append((images["image_id"][row], images["status"][row], images["message"][row] or ""))
