"""The report of a manifest build or a merge: counts, as a table and as JSON, and findings.

Findings are a Parquet file next to the manifest, a row for everything that cannot be used, with the reason. What a
finding with `used` is about takes part in the run all the same. Findings stay in memory until the end (0.3 kB each). If
more than a given share of the images or label rows cannot be used, the manifest is written all the same, and the build
ends with exit code 1 and the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import splitext
from typing import Any

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.parquet import new_parquet
from dto_pipeline.data.storage import (
    STORAGE_ERRORS,
    Location,
    beside,
    error_text,
    exists,
    join_location,
    list_names,
    written,
)
from dto_pipeline.data.tars import IMAGE_EXTENSIONS, TarPlacement
from dto_pipeline.schema import FINDINGS_SCHEMA
from dto_pipeline.status import ImageStatus, PredictionStatus

WITHOUT_LABELS, TAR, TAR_MEMBER = "image_without_labels", "tar_damaged", "tar_member_refused"
REPEATED_KEY, MASKS, SOURCE = "repeated_key", "masks_unreadable", "source"
PERSON, ALSO_IN = "person", "also_in"
_DEPTH_CHECKS = 1000  # images whose depth map is looked for: shows if 5 % are missing, with few requests to a store
_THREADS = 16
_LEAST_BOXES = 10  # fewer people with a box, or with keypoints, are not judged
_MOST_APART = 0.25  # nobody is apart on sound crowds; 36 % where y points up, 67 % where x is mirrored
_ROWS_PER_GROUP = 1 << 15
_ENDINGS = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
_WORDS = {  # in the table, for counts whose names say too little
    "persons": "persons (label rows)",
    "rows_unusable": "label rows that cannot be used",
    "depth_looked": "depth maps looked for",
    "depth_missing": "depth maps missing, of these",
    "boxes_compared": "persons compared with their box",
    "keypoints_compared": "predictions compared with their keypoints",
    "keypoints_apart": "keypoints not of their own body, of these",
    "boxes_apart": "elsewhere or of another size, of these",
    "masks_given": "persons with mask",
    "age_known": "persons of known age",
    "male_prob_known": "persons of known gender",
    "released": "persons before",
}
_STEPS = {
    "values of age_years": "give years, NaN or -1 where they are not known",
    "values of bbox_xyxy": "give left, top, right, bottom in pixels of the image, not width and height",
    "values of male_prob": "give the probability of a man from 0 to 1, NaN or -1 where it is not known",
}  # what cannot be used -> the next step


class _Counts:
    """Counts of a build or a merge, as JSON and as a table."""

    boxes_compared: int  # people with a box and a usable label
    boxes_apart: int  # of these, who stand elsewhere or are of another size than their box

    def note_boxes(self, compared: int, apart: int) -> None:
        self.boxes_compared += compared
        self.boxes_apart += apart

    @property
    def box_complaint(self) -> str:
        """That boxes and places contradict each other; "" = they agree, or too few are known."""
        if self.boxes_compared < _LEAST_BOXES or self.boxes_apart <= _MOST_APART * self.boxes_compared:
            return ""
        return (
            f"{self.boxes_apart} of {self.boxes_compared} people with a box stand elsewhere or are of another size: "
            "bbox_xyxy must be left, top, right, bottom in pixels of the whole image, transl in metres for the camera "
            "of the whole image (not of a crop, nor of another focal length), and both of the same image"
        )

    def to_json(self) -> dict[str, Any]:
        """The counts as plain values; keys of inner dicts are sorted strings, so that equal input gives equal JSON."""
        return {
            name: {str(key): count for key, count in sorted(value.items())} if isinstance(value, dict) else value
            for name, value in vars(self).items()
            if name != "found"
        }

    def count_lines(self, title: str) -> str:
        counts = dict[str, int]()
        for name, value in self.to_json().items():
            words = _WORDS.get(name, name.replace("_", " "))
            several = {f"{words}: {key}": count for key, count in value.items()} if isinstance(value, dict) else {}
            counts |= {text: count for text, count in (several or {words: value}).items() if isinstance(count, int)}
        width = max(map(len, counts))
        return "\n".join([title, *(f"  {words:<{width}}  {count:>9}" for words, count in counts.items())])


@dataclass
class ManifestReport(_Counts):
    """Counts of one build. Every image and label row of the input is in `images` and `persons`."""

    dataset: str = ""
    fingerprint: str = ""
    images: int = 0
    persons: int = 0
    shards: int = 0
    image_problems: Counter[str] = field(default_factory=Counter)  # ImageStatus word -> images
    rows_unusable: int = 0  # label rows that cannot be used, or whose image cannot
    depth_looked: int = 0  # images whose depth map was looked for: a sample of all; 0 = no depth folder
    depth_missing: int = 0  # how many of these images have none
    person_problems: Counter[str] = field(default_factory=Counter)  # reason -> persons
    masks_given: int = 0  # persons with a mask; of the others the outline of the rendered body is used
    age_known: int = 0
    male_prob_known: int = 0
    boxes_compared: int = 0
    boxes_apart: int = 0
    notes: Counter[str] = field(default_factory=Counter)  # values taken as unknown -> how many
    findings: Counter[str] = field(default_factory=Counter)  # kind of row in the findings file -> how many
    findings_file: str = ""  # its name
    examples: dict[str, str] = field(default_factory=dict)  # ImageStatus word -> the first message
    found: list[tuple] = field(default_factory=list, repr=False)  # rows of the findings file

    def add(self, kind: str, image: str, reason: str, label_row: int | None = None, used: bool = False) -> None:
        """Add a finding; `used`: what it is about takes part in the run all the same."""
        self.findings[kind] += 1
        self.found.append((kind, image, label_row, reason, used))

    def write_findings(self, manifest: Location) -> None:
        with written(findings_path(manifest)) as local, new_parquet(local, FINDINGS_SCHEMA) as writer:
            if self.found:
                columns = dict(zip(FINDINGS_SCHEMA.names, zip(*self.found, strict=True), strict=True))
                writer.write_table(build_table(FINDINGS_SCHEMA, columns), row_group_size=_ROWS_PER_GROUP)

    def complaint(self, share: float) -> str:
        """Why the manifest cannot be used, the commonest cause first; "" if at most `share` of everything is lost."""
        if not self.images:
            return "the label file names no image: there is nothing to run"
        parts: dict[str, tuple[int, int, Mapping[str, int]]] = {  # what -> lost, all, lost by reason
            "images": (self.image_problems.total(), self.images, self.image_problems),
            "label rows": (self.rows_unusable, self.persons, self.person_problems),
            "depth maps looked for": (self.depth_missing, self.depth_looked, {"depth_missing": self.depth_missing}),
        }
        known_of = {"age_years": self.age_known, "male_prob": self.male_prob_known, "bbox_xyxy": self.boxes_compared}
        for name, known in known_of.items():
            strange = {text: count for text, count in self.notes.items() if text.startswith(name)}
            lost = sum(strange.values())
            parts[f"values of {name}"] = lost, lost + known, strange
        over = [f"{lost} of {total} {what}" for what, (lost, total, _) in parts.items() if lost > share * total]
        boxes = self.box_complaint if share < 1 else ""
        if not over:
            return boxes and f"{boxes}; mend it and build again before a run"
        causes = list[tuple[float, str]]()
        for what, (_, total, reasons) in parts.items():
            for reason, count in reasons.items():
                if count:
                    step = self.examples.get(reason, _STEPS.get(what, "the findings file names the rows"))
                    causes.append((-count / total, f"  {reason}: {count} of {total} {what}; {step}"))
        lines = [f"{', '.join(over)} cannot be used, more than {share:.3g} of all (--max-failed-images):"]
        lines += [text for _, text in sorted(causes, key=lambda cause: cause[0])]
        if damaged := self.findings[TAR]:
            lines.append(f"  {damaged} tars are damaged: fetch them again; {self.findings_file} says where each breaks")
        return "\n".join([*lines, *([f"  {boxes}"] if boxes else []), "mend the cause and build again before a run"])

    def as_table(self) -> str:
        mean = f"{self.persons / self.images if self.images else 0.0:.2f} persons an image"
        table = self.count_lines(f"manifest of {self.dataset}, fingerprint {self.fingerprint[:16]}, {mean}")
        return "\n".join([table, *(f"  first {word}: {text}" for word, text in sorted(self.examples.items()))])

    def note_tars(self, placement: TarPlacement) -> None:
        """Add damaged tars, members that are refused, and images that have the key of another."""
        for summary in placement.images.summaries:
            if summary.problem:
                self.add(TAR, summary.tar, f"{summary.problem}; {summary.usable} members can be read", used=True)
        for member, problem in placement.images.problems():
            self.add(TAR_MEMBER, member, problem)
        for taken, other in placement.repeated:
            self.add(REPEATED_KEY, other, f"has the key of {taken}, which is taken")

    def note_unlabelled(self, index: ImageIndex, root: Location, placement: TarPlacement | None) -> None:
        """Add images that no label row names, and a missing image of almost the same name; call it after the shards."""

        def folded(name: str) -> str:
            return splitext(name)[0].casefold()

        named = set(index.image_file)
        similar = {folded(name): name for kind, name, *_ in self.found if kind == ImageStatus.IMAGE_MISSING}
        in_tars = placement and (address for address, _ in placement.images.members())
        try:
            for name in in_tars or list_names(root, _ENDINGS):
                if name not in named:
                    near = similar.get(folded(name))
                    hint = f"; {near}, which is missing, differs in case or extension only" if near else ""
                    self.add(WITHOUT_LABELS, name, f"no label row names this image{hint}")
        except STORAGE_ERRORS as error:
            self.add(WITHOUT_LABELS, "", f"the images folder cannot be listed: {error_text(error)}")

    def look_for_depth(self, index: ImageIndex, root: Location, suffix: str) -> None:
        """Count the missing depth maps of some images, evenly spread over all."""

        def is_there(name: str) -> bool:
            try:
                return exists(join_location(root, name))
            except STORAGE_ERRORS:
                return False

        images = [image for image in range(index.num_images) if image not in index.problem]
        images = images[:: -(-len(images) // _DEPTH_CHECKS) or 1]
        names = [splitext(index.image_name[image])[0] + suffix for image in images]
        with ThreadPoolExecutor(_THREADS) as pool:
            missing = [name for name, there in zip(names, pool.map(is_there, names), strict=True) if not there]
        self.depth_looked, self.depth_missing = len(names), len(missing)
        if missing:
            found = f"depth map {missing[0]} does not exist below {root}"
            if isinstance(root, Path) and not root.is_dir():
                found = f"there is no depth folder {root}"
            self.examples[ImageStatus.DEPTH_MISSING] = (
                f"{found}; write the maps, name their folder (--depth) and ending (depth_suffix), or build with "
                "--depth '' where a network makes them (depth.source=model)"
            )

    def note_shared_images(self, index: ImageIndex, others: Sequence[Location]) -> None:
        """Add images whose key another manifest has too. Raises: ManifestError: it cannot be read."""
        own = set(index.image_path) if others else set()
        for other in map(Manifest.open, others):
            for shard in range(other.num_shards):
                rows = other.read_shard(shard, ["image_path", "image_id"])
                for key, image_id in zip(rows["image_path"].to_pylist(), rows["image_id"].to_pylist(), strict=True):
                    if key in own:
                        self.add(ALSO_IN, key, f"also in {other.subset} as {image_id}", used=True)


@dataclass
class MergeReport(_Counts):
    """Counts of one merge; `outcomes` counts every prediction once."""

    fingerprint: str = ""  # of the new manifest
    images: int = 0
    released: int = 0  # people before
    predictions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # PredictionStatus word -> predictions
    refused: Counter[str] = field(default_factory=Counter)  # reason -> predictions
    boxes_compared: int = 0
    boxes_apart: int = 0
    keypoints_compared: int = 0  # predictions with keypoints
    keypoints_apart: int = 0  # of these, whose keypoints are mostly elsewhere than the joints of their own body
    notes: Counter[str] = field(default_factory=Counter)  # values taken as unknown -> how many

    def count(self, verdicts: Mapping[str, int]) -> None:
        """Add predictions; `verdicts`: a PredictionStatus word, perhaps with ": reason" -> how many."""
        for verdict, predictions in sorted(verdicts.items()):
            status = verdict.partition(":")[0]
            self.predictions += predictions
            self.outcomes[status] += predictions
            if status not in (PredictionStatus.ADDED, PredictionStatus.MATCHED, PredictionStatus.DUPLICATE):
                self.refused[verdict] += predictions

    def as_table(self) -> str:
        return self.count_lines(f"merged manifest, fingerprint {self.fingerprint[:16]}")

    @property
    def complaint(self) -> str:
        """Why the merge cannot be kept: no usable prediction, or columns that contradict each other; "" = it can."""
        unusable = self.refused - Counter({str(PredictionStatus.BELOW_MIN_SCORE): self.predictions})
        if self.predictions and unusable.total() == self.predictions:
            return f"none of the {self.predictions} predictions could be used: mostly {unusable.most_common(1)[0][0]}"
        if self.keypoints_apart > 0.5 * max(self.keypoints_compared, _LEAST_BOXES):
            return (
                f"the keypoints of {self.keypoints_apart} of {self.keypoints_compared} predictions lie elsewhere than "
                "the joints of their own bodies, so that nobody is recognised: check their order (17: COCO, 25: "
                "BODY_25, 45: smplx), u before v, pixels of the whole image, and that transl is for the camera given"
            )
        strange = [
            f"{count} of {self.predictions} values of {text}"
            for text, count in self.notes.most_common(1)
            if count > _MOST_APART * self.predictions
        ]
        return strange[0] if strange else self.box_complaint


def findings_path(manifest: Location) -> Location:
    return beside(manifest, ".findings.parquet")
