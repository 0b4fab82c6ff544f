"""What a merge of predictions into a manifest found: counts for a person as a table, for a script as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dto_pipeline.status import PredictionStatus

_KEPT_OUT = (PredictionStatus.MATCHED, PredictionStatus.DUPLICATE)


@dataclass
class MergeReport:
    """Counts of one merge. Every prediction is in exactly one count of `outcomes`."""

    fingerprint: str = ""  # of the new manifest
    images: int = 0
    released: int = 0  # people before
    predictions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # PredictionStatus word -> predictions
    refused: Counter[str] = field(default_factory=Counter)  # reason -> predictions
    by_keypoints: int = 0  # predictions compared by what a detector saw
    by_overlap: int = 0  # predictions compared by the boxes of bodies: no visible keypoint
    carried: int = 0  # predictions of another camera than the label's, moved to it
    images_with_added: int = 0
    notes: Counter[str] = field(default_factory=Counter)  # values taken as unknown -> how many

    @property
    def matched(self) -> int:
        return self.outcomes[PredictionStatus.MATCHED]

    @property
    def duplicates(self) -> int:
        return self.outcomes[PredictionStatus.DUPLICATE]

    @property
    def added(self) -> int:
        return self.outcomes[PredictionStatus.ADDED]

    def count(self, status: PredictionStatus, message: str | None, predictions: int) -> None:
        """Add predictions of one outcome."""
        self.outcomes[str(status)] += predictions
        if status is not PredictionStatus.ADDED and status not in _KEPT_OUT:
            self.refused[f"{status}: {message}" if message else str(status)] += predictions

    def to_json(self) -> dict[str, Any]:
        """Plain nested dict, equal for equal input."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("outcomes", "refused", "notes"):
            tree[name] = dict(sorted(tree[name].items()))
        return tree

    def as_table(self) -> str:
        """Lines of name and count for people."""
        lines = [
            ("images", self.images),
            ("released people", self.released),
            ("predictions", self.predictions),
            ("  matched a released person, dropped", self.matched),
            ("  duplicates of other predictions, dropped", self.duplicates),
            *((f"  refused, {reason}", count) for reason, count in sorted(self.refused.items())),
            ("  added", self.added),
            ("images with added people", self.images_with_added),
            ("compared by keypoints", self.by_keypoints),
            ("compared by overlap of bodies", self.by_overlap),
            ("carried to the label's camera", self.carried),
            *sorted(self.notes.items()),
        ]
        width = max(len(name) for name, _ in lines)
        table = [f"merged manifest, fingerprint {self.fingerprint[:16]}"]
        return "\n".join(table + [f"  {name:<{width}}  {count:>9}" for name, count in lines])
