"""`export_labels`: labels of finished runs in one of the formats that other tools read.

To add a format: a writer that takes an `ExportJob`, a line in `FORMATS`, and its name and help in `commands/export.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dto_pipeline import __version__
from dto_pipeline.data.exports.compacted import write_parquet, write_persons
from dto_pipeline.data.exports.flat_npz import write_camerahmr
from dto_pipeline.data.exports.hugging_face import write_hugging_face
from dto_pipeline.data.exports.job import (
    EXPORT_FILE,
    PERSONS_VALID,
    ExportError,
    ExportJob,
    Selection,
    describe_making,
    new_folder,
    plan_subsets,
)
from dto_pipeline.data.exports.ma_hmr import write_ma_hmr
from dto_pipeline.data.exports.webdataset import write_webdataset
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.label_files import RunLabels
from dto_pipeline.data.storage import as_location
from dto_pipeline.schema import COORDINATES

EXPORT_SCHEMA = "dto-export/1"


@dataclass(frozen=True)
class Format:
    """One format: its writer and its default selection."""

    write: Callable[[ExportJob], None]
    selection: Selection
    takes_images: bool = False


_TRAINING = Selection(accepted_only=True, min_persons=1, persons=PERSONS_VALID)

FORMATS: dict[str, Format] = {
    "parquet": Format(write_parquet, Selection()),
    "persons": Format(write_persons, Selection(min_persons=1)),
    "ma-hmr": Format(write_ma_hmr, _TRAINING),
    "camerahmr": Format(write_camerahmr, _TRAINING),
    "webdataset": Format(write_webdataset, _TRAINING, takes_images=True),
    "hf": Format(write_hugging_face, Selection()),
}


def export_labels(
    runs: Sequence[RunLabels],
    format_name: str,
    out: str | Path,
    selection: Selection | None = None,
    images: Mapping[str, str] | None = None,
    progress: bool = True,
    mixed: bool = False,
    labels: Sequence[str | Path] = (),
) -> ExportJob:
    """Write the labels of some runs to a new folder.

    Args:
        runs: of any subsets; those of one subset share no image.
        format_name: a key of `FORMATS`.
        out: folder to make; it appears when everything in it is complete.
        selection: what to export; None = the format's default.
        images: subset -> folder or URI of its images, for formats that can hold images; "" = the place that the run's
            manifest names; None = no images.
        progress: show progress bars on stderr.
        mixed: accept runs that differ in solver, depth network, body or configuration.
        labels: where released label files may be, for formats that copy parts of them.

    Returns:
        The finished job: what was written and left out.

    Raises: ExportError: `out` exists, a label file is not the one of its receipt, or nothing is selected.
    """
    chosen, out = FORMATS[format_name], Path(out)
    if images and not chosen.takes_images:
        able = [name for name, one in FORMATS.items() if one.takes_images]
        raise ExportError(f"format {format_name} holds no images; leave --images out, or choose from {able}")
    if images and (lacking := sorted({run.subset for run in runs} - images.keys())):
        raise ExportError(f"no folder of images is named for {lacking}; give --images SUBSET=DIR for each")
    selection = selection or chosen.selection
    with new_folder(out) as folder:
        if not mixed:
            _check_alike(runs)
        rows = sum(file.rows for run in runs for file in run.files)
        with tqdm(total=rows, unit="image", desc="check", disable=not progress) as bar:
            subsets = plan_subsets(runs, selection, bar.update)
        rows = sum(subset.images for subset in subsets)
        with tqdm(total=rows, unit="image", desc="write", disable=not progress) as bar:
            job = ExportJob(out, folder, selection, subsets, bar.update, images, list(map(as_location, labels)))
            chosen.write(job)
        facts = {
            "schema": EXPORT_SCHEMA,
            "format": format_name,
            "pipeline_version": __version__,
            "coordinates": COORDINATES,
            "selection": selection.describe(),
            "subsets": {subset.subset: subset.describe() for subset in subsets},
            "notes": dict(job.notes),
            "failures": dict(job.failures),
            "files": [vars(file) for file in job.files],
        }
        (folder / EXPORT_FILE).write_bytes(json_bytes(facts))
    return job


def _check_alike(runs: Sequence[RunLabels]) -> None:
    """Raises: ExportError: two runs differ in what made their labels; the message names both and the differences."""
    makings = [(run, describe_making(run.footer)) for run in runs if run.files]
    for run, making in makings[1:]:
        first, expected = makings[0]
        differences = [f"{fact}: {expected[fact]} and {own}" for fact, own in making.items() if own != expected[fact]]
        if differences:
            advice = "export them apart, or say --mixed"
            raise ExportError(f"{first.name} and {run.name} were not made alike ({'; '.join(differences)}); {advice}")
