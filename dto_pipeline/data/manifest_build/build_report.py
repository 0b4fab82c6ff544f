"""What a manifest build found: counts a person reads as a table and a script as JSON. Knows no file format.

More than a share of images or label rows that cannot be used is a complaint: the manifest is written all the same, and
the build ends with exit code 1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dto_pipeline.status import ImageStatus

_TABLED = frozenset(  # kinds of findings no other count stands for
    {"image_without_labels", "tar_damaged", "tar_member_refused", "repeated_key", "masks_unreadable", "source"}
)


class _Cause(NamedTuple):
    """One reason why something cannot be used."""

    lost: int
    whole: int
    what: str  # images, label rows, depth maps
    word: str
    advice: str


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
        lost = self.image_problems.total()
        whole = ((lost, self.images, "images"), (self.rows_unusable, self.persons, "label rows"),
                 (self.depth_missing, self.depth_looked, "depth maps looked for"))  # fmt: skip
        over = [f"{part} of {total} {what}" for part, total, what in whole if part > share * total]
        if not over:
            return ""
        lines = [f"{', '.join(over)} cannot be used, more than {share:.3g} of all (--max-failed-images):"]
        for cause in sorted(self._causes(), key=lambda cause: -cause.lost / cause.whole):
            lines.append(f"  {cause.word}: {cause.lost} of {cause.whole} {cause.what}; {cause.advice}")
        if damaged := self.findings["tar_damaged"]:
            lines.append(f"  {damaged} tars are damaged: fetch them again; {self.findings_file} says where each breaks")
        return "\n".join([*lines, "mend the cause and build again before a run"])

    def _causes(self) -> list[_Cause]:
        images = [
            _Cause(count, self.images, "images", word, self.examples.get(word) or ImageStatus(word).advice)
            for word, count in self.image_problems.items()
        ]
        people = [
            _Cause(count, self.persons, "label rows", reason, "the findings file names the rows")
            for reason, count in self.person_problems.items()
        ]
        advice = f"{self.examples.get(ImageStatus.DEPTH_MISSING, '')}; write the maps, name their folder (--depth) and "
        advice += "ending (depth_suffix), or build with --depth '' where a network looks (depth.source=model)"
        depth = _Cause(self.depth_missing, self.depth_looked, "looked for", "depth maps missing", advice)
        return [*images, *people, *([depth] if self.depth_missing else [])]

    def to_json(self) -> dict[str, Any]:
        """Plain nested dict; keys of the histogram are text, ascending."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tree["persons_per_image"] = {str(n): count for n, count in sorted(self.persons_per_image.items())}
        for name, value in tree.items():
            if isinstance(value, dict) and name != "persons_per_image":
                tree[name] = dict(sorted(value.items()))
        return tree

    def as_table(self) -> str:
        """Lines of name and count for people; kinds of findings that other lines tell already are left out."""
        mean = self.persons / self.images if self.images else 0.0
        lines = [
            ("images", self.images),
            ("persons (label rows)", self.persons),
            ("persons per image, mean", f"{mean:.2f}"),
            *((f"  images with {label}", count) for label, count in self._histogram()),
            ("shards", self.shards),
            *((f"images {word}", count) for word, count in sorted(self.image_problems.items())),
            ("label rows without image file", self.rows_without_image),
            ("label rows that cannot be used", self.rows_unusable),
            *([("depth maps looked for", self.depth_looked)] if self.depth_looked else []),
            *([("  of these missing", self.depth_missing)] if self.depth_looked else []),
            ("images with an off-centre camera", self.off_centre),
            ("images turned by an EXIF note, taken as stored", self.turned),
            *((f"cameras: {fault}", count) for fault, count in sorted(self.camera_faults.items())),
            *((f"images also in {subset}", count) for subset, count in sorted(self.also_in.items())),
            *((f"found: {kind}", count) for kind, count in sorted(self.findings.items()) if kind in _TABLED),
            *((f"persons: {reason}", count) for reason, count in sorted(self.person_problems.items())),
            ("persons with mask", self.masks_given),
            ("  of these empty", self.masks_empty),
            ("persons without mask", self.masks_missing),
            ("persons of known age", self.age_known),
            ("persons of known gender", self.male_prob_known),
            *((reason, count) for reason, count in sorted(self.notes.items())),
        ]
        width = max(len(name) for name, _ in lines)
        table = [f"manifest of {self.dataset}, fingerprint {self.fingerprint[:16]}"]
        table += [f"  {name:<{width}}  {count:>9}" for name, count in lines]
        return "\n".join(table + [f"  first {word}: {text}" for word, text in sorted(self.examples.items())])

    def _histogram(self) -> list[tuple[str, int]]:
        """Images by number of people, in few lines."""
        borders = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, None))
        rows = []
        for low, high in borders:
            count = sum(c for n, c in self.persons_per_image.items() if n >= low and (high is None or n <= high))
            people = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
            rows.append((f"{people} people" if people != "1" else "1 person", count))
        return rows
