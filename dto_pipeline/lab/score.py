"""How far the demo's labels are from its truth, as given and after each solver.

Takes placed scenes and the arrays of `truth.npz`; the definitions are those of `evaluate.placements`. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.evaluate.placements import Placement, as_table, compare_placements
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus

Placements = Mapping[str, Sequence[PlacedScene]]  # solver -> all images of its run, the same in each


@dataclass(frozen=True)
class DemoScore:
    """Errors by selection of people, as given and after each solver; people accepted, and counts of statuses."""

    comparison: dict[str, dict[str, dict[str, float]]]
    accepted: dict[str, int]  # solver -> people of images it accepts
    image_status: dict[str, dict[str, int]]
    person_status: dict[str, dict[str, int]]

    def as_table(self) -> str:
        people = next(iter(self.comparison["all people"].values()))["persons"]
        accepted = ", ".join(f"{name} {count}" for name, count in self.accepted.items())
        head = f"{' -> '.join(self.comparison['all people'])}; of {people:.0f} people in accepted images: {accepted}"
        return f"{head}\n\n{as_table(self.comparison)}"


def score_demo(placed: Placements, truth: dict[str, np.ndarray], body: BodyModel) -> DemoScore:
    """Compare every person whose label is finite with its truth.

    Args:
        placed: by solver; the first one's labels as given come before all. "moved" are whom the first one moves.
        truth: arrays of `demo.dataset.read_truth`, one row per label row.
        body: the model the labels belong to.
    """
    first = next(iter(placed.values()))
    row = np.concatenate([item.scene.source_row for item in first])
    image = np.repeat(np.arange(len(first)), [item.scene.num_people for item in first])
    finite = np.concatenate([np.isfinite(item.scene.pose).all(1) for item in first])
    moved = np.array([status is PersonStatus.MOVED for item in first for status in item.person_status])
    whole = finite & np.array([not item.status.is_failure for item in first])[image]
    accepted = {name: finite & np.array([item.is_accepted for item in items])[image] for name, items in placed.items()}
    comparison = compare_placements(
        {"labels": _placement([(item.scene.transl, item.scene.betas) for item in first], body)}
        | {name: _placement([(item.transl, item.betas) for item in items], body) for name, items in placed.items()},
        Placement(z=truth["transl"][row, 2], height=truth["height"][row]),
        image,
        {
            "all people": whole,
            f"moved by {next(iter(placed))}": moved,
            **{f"accepted by {name}": people for name, people in accepted.items()},
        },
    )
    return DemoScore(
        comparison=comparison,
        accepted={name: int(people.sum()) for name, people in accepted.items()},
        image_status={name: _counts([str(item.status) for item in items]) for name, items in placed.items()},
        person_status={
            name: _counts([str(status) for item in items for status in item.person_status])
            for name, items in placed.items()
        },
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
