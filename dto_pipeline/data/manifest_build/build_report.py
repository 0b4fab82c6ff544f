"""What a manifest build or a merge found: counts a person reads as a table and a script as JSON. Knows no file format.

More than a share of images or label rows that cannot be used is a complaint: the manifest is written all the same, and
the build ends with exit code 1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dto_pipeline.data.manifest_build.findings import TAR, UNCOUNTED
from dto_pipeline.status import ImageStatus, PredictionStatus

_CROWDS = {"1 person": (1, 1), "2 people": (2, 2), "3 to 5 people": (3, 5), "6 to 10 people": (6, 10),
           "11 to 20 people": (11, 20), "21 or more people": (21, 1 << 62)}  # fmt: skip


@dataclass
class ManifestReport:
    """Counts of one build. Every image and label row that entered is in `images` and `persons`."""

    dataset: str = ""
    fingerprint: str = ""
    images: int = 0
    persons: int = 0
    shards: int = 0
    persons_per_image: Counter[int] = field(default_factory=Counter)  # people -> images
    image_problems: Counter[str] = field(default_factory=Counter)  # ImageStatus word -> images
    camera_faults: Counter[str] = field(default_factory=Counter)  # what is wrong with an image's camera -> images
    rows_without_image: int = 0  # label rows whose image file does not exist
    rows_unusable: int = 0  # label rows that cannot be used, or whose image cannot
    depth_looked: int = 0  # images whose depth map was looked for: some, spread over all; 0 = none is named
    depth_missing: int = 0  # of these, images without one
    off_centre: int = 0  # images whose size is not (2 cx, 2 cy) within a pixel, refused or not
    turned: int = 0  # images an EXIF note turns or mirrors for viewers; pixels are taken as stored
    person_problems: Counter[str] = field(default_factory=Counter)  # reason -> persons
    masks_given: int = 0
    masks_missing: int = 0  # persons without a mask: their rendered silhouette is used
    masks_empty: int = 0  # given, but without a pixel
    age_known: int = 0
    male_prob_known: int = 0
    notes: Counter[str] = field(default_factory=Counter)  # values taken as unknown -> how many
    also_in: Counter[str] = field(default_factory=Counter)  # other subset -> images it has too
    findings: Counter[str] = field(default_factory=Counter)  # kind of row in the findings file -> how many
    findings_file: str = ""  # its name
    examples: dict[str, str] = field(default_factory=dict)  # ImageStatus word -> the first message

    def complaint(self, share: float) -> str:
        """Why the manifest is no good: counts per cause, the commonest first; "" = at most `share` cannot be used."""
        if not self.images:
            return "the label file names no image: there is nothing to run"
        lost = (
            (self.image_problems.total(), self.images, "images"),
            (self.rows_unusable, self.persons, "label rows"),
            (self.depth_missing, self.depth_looked, "depth maps looked for"),
        )
        over = [f"{part} of {total} {what}" for part, total, what in lost if part > share * total]
        if not over:
            return ""
        advice = f"{self.examples.get(ImageStatus.DEPTH_MISSING, '')}; write the maps, name their folder (--depth) and "
        advice += "ending (depth_suffix), or build with --depth '' where a network looks (depth.source=model)"
        causes = [  # how many, of how many, of what, the reason, the next step
            *(
                (count, self.images, "images", word, self.examples.get(word) or ImageStatus(word).advice)
                for word, count in self.image_problems.items()
            ),
            *(
                (count, self.persons, "label rows", reason, "the findings file names the rows")
                for reason, count in self.person_problems.items()
            ),
        ]
        if self.depth_missing:
            causes.append((self.depth_missing, self.depth_looked, "looked for", "depth maps missing", advice))
        lines = [f"{', '.join(over)} cannot be used, more than {share:.3g} of all (--max-failed-images):"]
        for count, total, what, word, step in sorted(causes, key=lambda cause: -cause[0] / cause[1]):
            lines.append(f"  {word}: {count} of {total} {what}; {step}")
        if damaged := self.findings[TAR]:
            lines.append(f"  {damaged} tars are damaged: fetch them again; {self.findings_file} says where each breaks")
        return "\n".join([*lines, "mend the cause and build again before a run"])

    def to_json(self) -> dict[str, Any]:
        """Plain nested dict, keys in order; those of the histogram are text."""
        tree = _sorted_fields(self)
        tree["persons_per_image"] = {str(people): count for people, count in tree["persons_per_image"].items()}
        return tree

    def as_table(self) -> str:
        """Lines of name and count for people; kinds of findings that other lines tell already are left out."""
        crowds = {
            name: sum(count for people, count in self.persons_per_image.items() if low <= people <= high)
            for name, (low, high) in _CROWDS.items()
        }
        depth = {"depth maps looked for": self.depth_looked, "  of these missing": self.depth_missing}
        lines: list[tuple[str, Any]] = [
            ("images", self.images),
            ("persons (label rows)", self.persons),
            ("persons per image, mean", f"{self.persons / self.images if self.images else 0.0:.2f}"),
            *((f"  images with {people}", count) for people, count in crowds.items()),
            ("shards", self.shards),
            *((f"images {word}", count) for word, count in sorted(self.image_problems.items())),
            ("label rows without image file", self.rows_without_image),
            ("label rows that cannot be used", self.rows_unusable),
            *(depth.items() if self.depth_looked else ()),
            ("images with an off-centre camera", self.off_centre),
            ("images turned by an EXIF note, taken as stored", self.turned),
            *((f"cameras: {fault}", count) for fault, count in sorted(self.camera_faults.items())),
            *((f"images also in {subset}", count) for subset, count in sorted(self.also_in.items())),
            *((f"found: {kind}", count) for kind, count in sorted(self.findings.items()) if kind in UNCOUNTED),
            *((f"persons: {reason}", count) for reason, count in sorted(self.person_problems.items())),
            ("persons with mask", self.masks_given),
            ("  of these empty", self.masks_empty),
            ("persons without mask", self.masks_missing),
            ("persons of known age", self.age_known),
            ("persons of known gender", self.male_prob_known),
            *sorted(self.notes.items()),
        ]
        table = _format_counts(f"manifest of {self.dataset}, fingerprint {self.fingerprint[:16]}", lines)
        return "\n".join([table, *(f"  first {word}: {text}" for word, text in sorted(self.examples.items()))])


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
        if not predictions:
            return
        self.predictions += predictions
        self.outcomes[str(status)] += predictions
        if status not in (PredictionStatus.ADDED, PredictionStatus.MATCHED, PredictionStatus.DUPLICATE):
            self.refused[f"{status}: {message}" if message else str(status)] += predictions

    def to_json(self) -> dict[str, Any]:
        """Plain nested dict, equal for equal input."""
        return _sorted_fields(self)

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
        return _format_counts(f"merged manifest, fingerprint {self.fingerprint[:16]}", lines)


def _sorted_fields(report: ManifestReport | MergeReport) -> dict[str, Any]:
    tree = {f.name: getattr(report, f.name) for f in dataclasses.fields(report)}
    return {name: dict(sorted(value.items())) if isinstance(value, dict) else value for name, value in tree.items()}


def _format_counts(title: str, lines: Iterable[tuple[str, Any]]) -> str:
    """A title, and names and counts below it in two columns."""
    lines = list(lines)
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name:<{width}}  {count:>9}" for name, count in lines)])
