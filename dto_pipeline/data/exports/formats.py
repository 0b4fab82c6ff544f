"""`export_labels`: labels of finished runs in one of the formats that other tools read.

To add a format: a writer that takes an `ExportJob`, a line in `FORMATS`, and its name and help in `commands/export.py`.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dto_pipeline import __version__
from dto_pipeline.data.exports.compacted import write_parquet, write_persons
from dto_pipeline.data.exports.flat_npz import write_camerahmr
from dto_pipeline.data.exports.hugging_face import write_hugging_face
from dto_pipeline.data.exports.job import (
    EXPORT_FILE,
    ExportError,
    ExportJob,
    Selection,
    Subset,
    describe_provenance,
    select_rows,
)
from dto_pipeline.data.exports.ma_hmr import write_ma_hmr
from dto_pipeline.data.exports.webdataset import write_webdataset
from dto_pipeline.data.files import json_bytes, staged, sweep_abandoned, sync
from dto_pipeline.data.label_files import RunLabels
from dto_pipeline.data.storage import as_location, sha256_of
from dto_pipeline.paths import SUBSET_NAME
from dto_pipeline.schema import COORDINATES

EXPORT_SCHEMA = "dto-export/1"


@dataclass(frozen=True)
class Format:
    """One format: its writer and its default selection."""

    write: Callable[[ExportJob], None]
    selection: Selection
    takes_images: bool = False
    image_files: bool = False  # it needs the manifest's names of the image files, even without images


_TRAINING = Selection(accepted_only=True, min_persons=1, persons="valid")

FORMATS: dict[str, Format] = {
    "parquet": Format(write_parquet, Selection()),
    "persons": Format(write_persons, Selection(min_persons=1)),
    "ma-hmr": Format(write_ma_hmr, _TRAINING),
    "camerahmr": Format(write_camerahmr, _TRAINING, image_files=True),
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
        images: subset -> folder or URI of its images, for formats that hold images; "" = the place that the run's
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
        with tqdm(total=rows, unit="image", desc="read", disable=not progress) as bar:
            subsets = _load_subsets(runs, selection, chosen.image_files or images is not None, bar.update)
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
            "subsets": {subset.name: subset.describe() for subset in subsets},
            "notes": dict(job.notes),
            "failures": dict(job.failures),
            "files": job.files,
        }
        (folder / EXPORT_FILE).write_bytes(json_bytes(facts))
    return job


def _check_alike(runs: Sequence[RunLabels]) -> None:
    """Raises: ExportError: two runs differ in what made their labels; the message names both and the differences."""
    known = [(run, describe_provenance(run.footer)) for run in runs if run.files]
    for run, facts in known[1:]:
        first, expected = known[0]
        differences = [f"{fact}: {expected[fact]} and {own}" for fact, own in facts.items() if own != expected[fact]]
        if differences:
            advice = "export them apart, or say --mixed"
            raise ExportError(f"{first.name} and {run.name} were not made alike ({'; '.join(differences)}); {advice}")


def _load_subsets(
    runs: Sequence[RunLabels], selection: Selection, image_files: bool, advance: Callable[[int], object]
) -> list[Subset]:
    """The selected rows of some runs; `advance` is called with the number of images read.

    Raises: ExportError: a label file is not the one its receipt describes, an image is in two runs of a subset, or
    nothing is selected.
    """
    for run in runs:
        if SUBSET_NAME.fullmatch(run.subset) is None:  # it names folders and files of the export
            raise ExportError(f"run {run.name} is of subset {run.subset!r}; expected letters, digits, '.', '-' and '_'")
    names = sorted({run.subset for run in runs})
    subsets = [Subset(name, [run for run in runs if run.subset == name]) for name in names]
    for subset in subsets:
        run_of: dict[str, str] = {}
        for run in subset.runs:
            _check_files(run)
            tables = []
            for table in run.tables(image_files=image_files):
                for image in table["image_id"].to_pylist() if len(subset.runs) > 1 else ():
                    if image in run_of:
                        both = f"{run_of[image]} and in {run.name}"
                        raise ExportError(f"image {image} is in {both}; export one of the two runs")
                    run_of[image] = run.name
                tables.append(select_rows(table, selection, subset.left_out))
                advance(table.num_rows)
            subset.add(tables)
    if not any(subset.images for subset in subsets):
        reasons: Counter[str] = sum((subset.left_out for subset in subsets), Counter())
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the runs are empty"
        options = "--accepted-only, --max-error, --max-z-sigma, --min-persons or --persons"
        raise ExportError(f"no image is left to export: {found}; loosen {options}")
    return subsets


def _check_files(run: RunLabels) -> None:
    """Compare label files with their receipts. Raises: ExportError."""
    for file in run.files:
        try:
            found = sha256_of(file.path)
        except FileNotFoundError as error:
            raise ExportError(f"{file.path} is gone: a launch has done its shard again; export again") from error
        if found != file.sha256:
            raise ExportError(
                f"{file.path} has sha256 {found[:16]}..., its receipt says {file.sha256[:16]}...: the file was "
                "changed or damaged; delete the shard's receipt and run again"
            )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name that is renamed to `out` when the block ends without an error.

    Folders left by killed exports to the same place on this machine are removed first. Raises: ExportError: `out`
    exists and is not an empty folder, or cannot be replaced by one.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder; remove it or choose another -o")
    if not out.name or os.path.ismount(out):  # the current folder, or the top of a disk
        raise ExportError(f"{out} stays where it is, and an export is renamed to its place; name a new folder in it")
    out = out.resolve()  # a link stays, too
    sweep_abandoned(out)
    with staged(out) as folder:
        folder.mkdir()
        yield folder
        for path in (*folder.rglob("*"), folder):
            sync(path)
        try:
            os.rename(folder, out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ExportError(f"{out} appeared while the export was written; remove it or choose another -o") from error
        sync(out.parent)
