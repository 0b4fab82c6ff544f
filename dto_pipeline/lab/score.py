"""How far the demo's labels are from its truth, before and after.

Takes placed scenes and the arrays of `truth.npz`; the definitions are those of `evaluate.synthetic`. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dto_pipeline.evaluate.synthetic import Placement, as_table, compare_placements
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus


@dataclass(frozen=True)
class DemoScore:
    """Errors by selection of people, before and after; counts of statuses."""

    comparison: dict[str, dict[str, dict[str, float]]]
    image_status: dict[str, int]
    person_status: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return vars(self)

    def as_table(self) -> str:
        return as_table(self.comparison)


def score_demo(placed: Sequence[PlacedScene], truth: dict[str, np.ndarray], body: BodyModel) -> DemoScore:
    """Compare every person whose label is finite with its truth.

    Args:
        placed: all images of the demo's run.
        truth: arrays of `demo.dataset.read_truth`, one row per label row.
        body: the model the labels belong to.
    """
    row = np.concatenate([item.scene.source_row for item in placed])
    image = np.repeat(np.arange(len(placed)), [item.scene.num_people for item in placed])
    finite = np.concatenate([np.isfinite(item.scene.pose).all(1) for item in placed])
    moved = np.array([status is PersonStatus.MOVED for item in placed for status in item.person_status])
    accepted = np.repeat([item.is_accepted for item in placed], [item.scene.num_people for item in placed])
    whole = np.repeat([not item.status.is_failure for item in placed], [item.scene.num_people for item in placed])
    selections = {"all people": finite & whole, "moved": moved, "accepted images": finite & accepted}
    comparison = compare_placements(
        _placement([(item.scene.transl, item.scene.betas) for item in placed], body),
        _placement([(item.transl, item.betas) for item in placed], body),
        Placement(z=truth["transl"][row, 2], height=truth["height"][row]),
        image,
        selections,
    )
    return DemoScore(
        comparison=comparison,
        image_status=_counts([str(item.status) for item in placed]),
        person_status=_counts([str(status) for item in placed for status in item.person_status]),
    )


def choose_pictures(placed: Sequence[PlacedScene], count: int) -> list[PlacedScene]:
    """Scenes worth looking at: those with most people moved, then one that was not accepted."""

    def moved(item: PlacedScene) -> int:
        return sum(status is PersonStatus.MOVED for status in item.person_status)

    by_people = sorted((item for item in placed if item.is_optimized), key=moved, reverse=True)
    doubtful = [item for item in by_people if not item.is_accepted][:1]
    good = [item for item in by_people if item.is_accepted][: count - len(doubtful)]
    return good + doubtful


def _placement(people: Sequence[tuple[np.ndarray, np.ndarray]], body: BodyModel) -> Placement:
    betas = torch.from_numpy(np.concatenate([betas for _, betas in people]).astype(np.float64))
    z = np.concatenate([transl[:, 2] for transl, _ in people]).astype(np.float64)
    return Placement(z=z, height=body.rest_height(betas).numpy())


def _counts(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}
