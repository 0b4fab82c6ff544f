"""`export_labels`: labels of finished runs in one of the formats other tools read.

Knows the formats by name, with what each takes unless told otherwise, and that runs which were not made alike are not
mixed. Plans (checks and counts), writes aside, commits at once. Memory: about one row group of 1024 images, whatever
the size of the runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dto_pipeline import __version__
from dto_pipeline.data.exports.camerahmr import write_camerahmr_files
from dto_pipeline.data.exports.hugging_face import write_hugging_face
from dto_pipeline.data.exports.job import (
    EXPORT_FILE,
    PERSONS_VALID,
    ExportedFile,
    ExportError,
    ExportJob,
    Selection,
    SubsetPlan,
    commit_folder,
    describe_making,
    plan_subsets,
    staged_folder,
)
from dto_pipeline.data.exports.ma_hmr import write_ma_hmr
from dto_pipeline.data.exports.parquet import write_parquet, write_persons
from dto_pipeline.data.exports.webdataset import write_webdataset
from dto_pipeline.data.label_files import RunLabels
from dto_pipeline.data.storage import as_location
from dto_pipeline.schema import COORDINATES


@dataclass(frozen=True)
class Format:
    """One format: its writer and what it takes by default."""

    write: Callable[[ExportJob, Path], list[ExportedFile]]
    selection: Selection
    takes_images: bool = False


_TRAINING = Selection(accepted_only=True, min_persons=1, persons=PERSONS_VALID)

FORMATS: dict[str, Format] = {
    "parquet": Format(write_parquet, Selection()),
    "persons": Format(write_persons, Selection(min_persons=1)),
    "ma-hmr": Format(write_ma_hmr, _TRAINING),
    "camerahmr": Format(write_camerahmr_files, _TRAINING),
    "webdataset": Format(write_webdataset, _TRAINING, takes_images=True),
    "hf": Format(write_hugging_face, Selection()),
}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and left out."""

    out: Path
    files: list[ExportedFile]
    subsets: list[SubsetPlan]
    notes: Counter[str]  # left out by the format's rules
    failures: Counter[str]  # could not be written
    examples: dict[str, str]  # failure -> the first of its kind

    @property
    def exit_code(self) -> int:
        """0: everything that was selected is there; 1: something could not be written, see `failures`."""
        return 1 if self.failures.total() else 0

    def as_table(self) -> str:
        """Text for a terminal."""
        lines = []
        for subset in self.subsets:
            lines.append(f"{subset.subset:<12} {subset.images:>9} images {subset.persons:>9} persons taken")
            lines += [f"{'':<12} {count:>9} {reason} left out" for reason, count in subset.left_out.items() if count]
        lines += [f"{'':<12} {count:>9} {note}" for note, count in sorted((self.notes + self.failures).items())]
        lines += [f"{'':<12} for example: {text}" for text in self.examples.values()]
        lines.append(f"{len(self.files)} files in {self.out}, listed with sha256 in {self.out / EXPORT_FILE}")
        return "\n".join(lines)


def export_labels(
    runs: Sequence[RunLabels],
    format_name: str,
    out: str | Path,
    selection: Selection | None = None,
    images_root: str | Mapping[str, str] = "",
    progress: bool = True,
    mixed: bool = False,
    labels: Sequence[str | Path] = (),
) -> ExportReport:
    """Write the labels of some runs to a new folder.

    Args:
        runs: of any subsets.
        format_name: a key of `FORMATS`.
        out: folder to make; it appears when everything in it is complete.
        selection: what to take; None = the format's default.
        images_root: folder of the image files, for formats that can hold images; "" = without. Or one for each subset,
            where "" means the place that the run's manifest names.
        progress: show progress bars on stderr.
        mixed: take runs that differ in solver, depth network, body or configuration.
        labels: where released label files lie now, for formats that carry parts of them.

    Raises:
        ExportError: the place is taken, a label file is not what its receipt says, or nothing is selected.
    """
    chosen, out = FORMATS[format_name], Path(out)
    if images_root and not chosen.takes_images:
        able = [name for name, one in FORMATS.items() if one.takes_images]
        raise ExportError(f"format {format_name} holds no images; leave --images out, or choose from {able}")
    selection = selection or chosen.selection
    with staged_folder(out) as staging:
        images = _image_places(runs, images_root)
        if not mixed:
            _check_alike(runs)
        total = sum(file.rows for run in runs for file in run.files)
        with tqdm(total=total, unit="image", desc="check", disable=not progress) as bar:
            subsets = plan_subsets(runs, selection, bar.update)
        total = sum(subset.images for subset in subsets)
        with tqdm(total=total, unit="image", desc="write", disable=not progress) as bar:
            taken = [subset for subset in subsets if subset.images]
            job = ExportJob(selection, taken, bar.update, images, list(map(as_location, labels)))
            files = chosen.write(job, staging)
        facts = {
            "format": format_name,
            "pipeline_version": __version__,
            "coordinates": COORDINATES,
            "selection": selection.describe(),
            "subsets": {subset.subset: _subset_facts(subset) for subset in subsets},
            "notes": dict(job.notes),
            "failures": dict(job.failures),
        }
        commit_folder(staging, out, facts, files)
    return ExportReport(out, files, subsets, job.notes, job.failures, job.examples)


def _image_places(runs: Sequence[RunLabels], places: str | Mapping[str, str]) -> dict[str, str] | None:
    """Where the images of each subset are; None = none are wanted."""
    subsets = sorted({run.subset for run in runs})
    if isinstance(places, str):
        return dict.fromkeys(subsets, places) if places else None
    if lacking := [subset for subset in subsets if subset not in places]:
        raise ExportError(f"no folder of images is named for {lacking}; give --images SUBSET=DIR for each")
    if strange := sorted(set(places) - set(subsets)):
        raise ExportError(f"images are named for {strange}, which no run is of; the runs are of {subsets}")
    return dict(places)


def _check_alike(runs: Sequence[RunLabels]) -> None:
    """Raises: ExportError where two runs differ in what made their labels; the message names both and the fact."""
    made = [(run, describe_making(run.footer)) for run in runs if run.files]
    for run, making in made[1:]:
        first, expected = made[0]
        apart = [fact for fact in making if making[fact] != expected[fact]]
        if apart:
            told = "; ".join(f"{fact}: {_short(expected[fact])} and {_short(making[fact])}" for fact in apart)
            raise ExportError(
                f"{first.name} and {run.name} were not made alike ({told}); export them apart, or say --mixed"
            )


def _short(text: str) -> str:
    return text if len(text) < 64 else text[:16]


def _subset_facts(subset: SubsetPlan) -> dict[str, Any]:
    """What export.json says of a subset: no path of a machine."""
    runs = [
        {
            "config_hash": run.config_hash,
            "manifest_fingerprint": run.manifest_fingerprint,
            "shards": run.shards,
            "shards_exported": len(run.files),
            "label_sha256": {f"{file.shard:05d}": file.sha256 for file in run.files},
        }
        for run in subset.runs
    ]
    counts = {"images": subset.images, "persons": subset.persons, "left_out": dict(subset.left_out)}
    return {**counts, "runs": runs}
