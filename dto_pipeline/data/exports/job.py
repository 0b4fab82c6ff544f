"""What every format's writer receives: what is taken of which runs, where images are, how progress is told.

People and images are chosen by label columns alone, and those left out are counted by reason; no number of a label is
changed, but an export's `num_persons` and `z_covariance` are those of the people taken. All is known before anything is
written: files checked, images and people counted per subset in one pass over a few narrow columns. Counts decide names
(``-00000-of-00012``) and array headers, so the writing pass can stream. The folder is written aside, described by
export.json and given its name at the end; what a killed export leaves beside the place, the next one removes. No clock:
equal exports have equal bytes. Memory: one row group; image keys only where two runs share a subset.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import glob
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import ragged_column, read_numbers, single_array
from dto_pipeline.data.files import is_temporary, sha256_file, staged, sync, write_json_atomic
from dto_pipeline.data.label_files import EXPECTED_ERROR, NO_LIMITS, Z_SIGMA, LabelFile, Limits, RunLabels
from dto_pipeline.data.storage import Location, sha256_of
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import SUBSET_NAME
from dto_pipeline.reading import parse_json
from dto_pipeline.status import PersonStatus

EXPORT_SCHEMA = "dto-export/1"
EXPORT_FILE = "export.json"
PERSON_CHOICES = PERSONS_ALL, PERSONS_VALID, PERSONS_MOVED = "all", "valid", "moved"
Z_COVARIANCE = "z_covariance"  # the one column of an image that is indexed by its people
SELECTION_COLUMNS = (
    *("is_optimized", "is_accepted", "mean_height_deviation", EXPECTED_ERROR, "num_persons"),
    *("persons.list.element.status", f"persons.list.element.{Z_SIGMA}"),
)
"""Parquet columns that decide; a projection needs these besides its own."""


class ExportError(DtoError):
    """An export that cannot be made; the message says why and the next step."""


@dataclass(frozen=True)
class Selection:
    """What to take. Persons are judged first, then images by the people that remain."""

    accepted_only: bool = False  # images that are optimised and score below the threshold
    max_deviation: float | None = None  # that threshold in sigma; None = the run's own (column is_accepted)
    min_persons: int = 0  # people of an image that remain
    persons: str = PERSONS_ALL  # all; valid: without unusable labels; moved: only those the fit placed; no duplicates
    limits: Limits = NO_LIMITS  # how certain images and people must be

    def __post_init__(self) -> None:
        if self.persons not in PERSON_CHOICES:
            raise ExportError(f"persons is {self.persons!r}; choose from {PERSON_CHOICES}")
        if self.min_persons < 0:
            raise ExportError(f"min_persons is {self.min_persons}; expected 0 or more")
        if self.max_deviation is not None and not 0 < self.max_deviation < np.inf:
            raise ExportError(f"max_deviation is {self.max_deviation} sigma; expected more than 0, or nothing")

    def describe(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("limits")


def select_rows(table: pa.Table, selection: Selection, left_out: Counter[str] | None = None) -> pa.Table:
    """The images and people of a label table that `selection` takes.

    Args:
        table: of `schema.LABELS_SCHEMA` or a projection with `SELECTION_COLUMNS`; further columns are kept.
        left_out: reason -> images or persons; added to.
    """
    counts = table["num_persons"].to_numpy().astype(np.int64)
    people = single_array(table["persons"]).flatten()
    status = people.field("status").to_numpy(zero_copy_only=False)
    single = status != str(PersonStatus.DUPLICATE)
    chosen = single & _people_taken(status, selection)
    z_sigma, expected = map(read_numbers, (people.field(Z_SIGMA), single_array(table[EXPECTED_ERROR])))
    taken = chosen & selection.limits.people(z_sigma)
    owner = np.repeat(np.arange(counts.size), counts)
    remaining = np.bincount(owner[taken], minlength=counts.size)
    good, crowded = _images_good(table, selection), remaining >= selection.min_persons
    certain = selection.limits.images(expected)
    images = good & certain & crowded
    if left_out is not None:
        left_out["images not accepted"] += int((~good).sum())
        judged = chosen & (good & certain)[owner]
        selection.limits.count(expected[good], z_sigma[judged], left_out)
        left_out[f"images with fewer than {selection.min_persons} persons"] += int((good & certain & ~crowded).sum())
        left_out["persons of these images"] += int((~images[owner] & ~(judged & ~taken)).sum())
        left_out["persons that repeat another, of images taken"] += int((~single & images[owner]).sum())
        left_out[f"persons not {selection.persons}, of images taken"] += int((~chosen & single & images[owner]).sum())
    if images.all() and taken.all():
        return table
    kept = people.filter(pa.array(taken & images[owner]))
    changed = {
        "num_persons": pa.array(remaining[images].astype(np.int32)),
        "persons": ragged_column(remaining[images], kept, pa.list_(table.schema.field("persons").type.value_field)),
    }
    if Z_COVARIANCE in table.column_names:
        chosen_people = np.split(taken, np.cumsum(counts)[:-1])
        triangles = single_array(table[Z_COVARIANCE])
        small = [_shrink_triangle(triangles[i], chosen_people[i]) for i in np.flatnonzero(images).tolist()]
        changed[Z_COVARIANCE] = pa.array(small, triangles.type)
    table = table.filter(pa.array(images))
    for name, column in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return table


def _people_taken(status: np.ndarray, selection: Selection) -> np.ndarray:
    if selection.persons == PERSONS_ALL:
        return np.ones(status.size, dtype=bool)
    if selection.persons == PERSONS_MOVED:
        return status == str(PersonStatus.MOVED)
    return status != str(PersonStatus.INVALID_LABEL)


def _images_good(table: pa.Table, selection: Selection) -> np.ndarray:
    if not selection.accepted_only:
        return np.ones(table.num_rows, dtype=bool)
    if selection.max_deviation is None:
        return table["is_accepted"].to_numpy()
    optimized = table["is_optimized"].to_numpy()
    return optimized & (table["mean_height_deviation"].to_numpy() < selection.max_deviation)


def _shrink_triangle(triangle: pa.ListScalar, kept: np.ndarray) -> np.ndarray | None:
    """The lower triangle (row by row, diagonal included) of an n x n matrix without the people not `kept` (n,)."""
    if not triangle.is_valid:
        return None
    row, column = np.tril_indices(kept.size)
    return np.asarray(triangle.values)[kept[row] & kept[column]]


@dataclass
class SubsetPlan:
    """One subset of an export."""

    subset: str
    runs: list[RunLabels]
    images: int = 0  # taken
    persons: int = 0  # taken
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> images or persons


@dataclass(frozen=True)
class ExportJob:
    """One export on its way; writers add to `notes` and `failures` what only they see."""

    selection: Selection
    subsets: list[SubsetPlan]  # of which something is taken, in alphabetical order
    advance: Callable[[int], object]  # called with the number of images written
    images: Mapping[str, str] | None = None  # subset -> folder or URI of its images, "" = the manifest's; None = none
    labels: Sequence[Location] = ()  # where released label files may lie, for formats that carry parts of them
    notes: Counter[str] = field(default_factory=Counter)  # what a writer left out by its format's rules
    failures: Counter[str] = field(default_factory=Counter)  # what it could not write
    examples: dict[str, str] = field(default_factory=dict)  # failure -> the first of its kind, with the place tried

    def tables(
        self, runs: Sequence[RunLabels], columns: Sequence[str] | None = None, image_files: bool = False
    ) -> Iterator[pa.Table]:
        """The selected rows of some runs, a row group at a time; arguments as of `RunLabels.tables`."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, *SELECTION_COLUMNS]))
        for run in runs:
            for table in run.tables(wanted, image_files):
                yield select_rows(table, self.selection)

    def counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The same tables, their images told to `advance` as they are done with."""
        for table in tables:
            yield table
            self.advance(table.num_rows)


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export."""

    path: str  # relative to the folder
    images: int
    persons: int


def plan_subsets(runs: Sequence[RunLabels], selection: Selection, advance: Callable[[int], object]) -> list[SubsetPlan]:
    """Check every label file against its receipt and count what `selection` takes.

    Args:
        runs: of any subsets; runs of one subset must not share images.
        advance: called with the number of images looked at.

    Raises:
        ExportError: a file is not what its receipt says, an image is in two runs, or nothing is selected.
    """
    for run in runs:
        if SUBSET_NAME.fullmatch(run.subset) is None:  # it names folders and files of the export
            raise ExportError(f"run {run.name} is of subset {run.subset!r}; expected letters, digits, '.', '-' and '_'")
    names = sorted({run.subset for run in runs})
    subsets = [SubsetPlan(name, [run for run in runs if run.subset == name]) for name in names]
    for subset in subsets:
        _count_subset(subset, selection, advance)
    if not any(subset.images for subset in subsets):
        reasons: Counter[str] = sum((subset.left_out for subset in subsets), Counter())
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the runs are empty"
        raise ExportError(
            f"no image is left to export: {found}; loosen --accepted-only, --max-error, --max-z-sigma, --min-persons "
            "or --persons"
        )
    return subsets


def _count_subset(subset: SubsetPlan, selection: Selection, advance: Callable[[int], object]) -> None:
    seen: dict[str, str] = {}  # image_id -> run, where the subset has several
    columns = [*SELECTION_COLUMNS, *(["image_id"] if len(subset.runs) > 1 else [])]
    for run in subset.runs:
        for file in run.files:
            _check_label_file(run, file)
        for table in run.tables(columns):
            for image_id in table["image_id"].to_pylist() if len(subset.runs) > 1 else ():
                if image_id in seen:
                    raise ExportError(
                        f"image {image_id} is in {seen[image_id]} and in {run.name}; export one of the two runs"
                    )
                seen[image_id] = run.name
            taken = select_rows(table, selection, subset.left_out)
            subset.images += taken.num_rows
            subset.persons += int(taken["num_persons"].to_numpy().sum())
            advance(table.num_rows)


def _check_label_file(run: RunLabels, file: LabelFile) -> None:
    """Raises: ExportError where a label file is missing, or not the one its receipt was written for."""
    advice = "delete the shard's receipt and run again"
    try:
        found = sha256_of(file.path)
    except FileNotFoundError as error:
        raise ExportError(f"{file.path} of run {run.name} is missing though its receipt exists; {advice}") from error
    if found != file.sha256:
        raise ExportError(
            f"{file.path} has sha256 {found[:16]}..., its receipt says {file.sha256[:16]}...: "
            f"the file was changed or damaged; {advice}"
        )


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; whatever still bears the temporary name at the end is removed.

    Raises:
        ExportError: the place is taken: an export never mixes with other files.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder; remove it or choose another -o")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}.tmp-*"):
        if is_temporary(left.name) and left.is_dir() and any(left.iterdir()):  # an empty one may not be locked yet
            handle, ours = _lock(left)
            if ours:  # its export was killed
                shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    with staged(out) as staging:
        staging.mkdir()
        handle, _ = _lock(staging)  # for as long as we live, however we die
        try:
            yield staging
        finally:
            os.close(handle)


def _lock(folder: Path) -> tuple[int, bool]:
    """An open handle of a folder, and whether the kernel's lock on it is ours until the handle is closed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or the file system has no locks: leaving the folder is safe
        return handle, False
    return handle, True


def commit_folder(staging: Path, out: Path, facts: dict[str, Any], files: list[ExportedFile]) -> None:
    """Write export.json with every file's size and sha256, sync all, give the folder its name.

    Raises:
        ExportError: somebody else put something under that name meanwhile.
    """
    entries = []
    for file in files:
        path = staging / file.path
        sync(path)
        entry = {"path": file.path, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        entries.append({**entry, "images": file.images, "persons": file.persons})
    write_json_atomic(staging / EXPORT_FILE, {"schema": EXPORT_SCHEMA, **facts, "files": entries})
    for folder in sorted(path for path in staging.rglob("*") if path.is_dir()):
        sync(folder)
    sync(staging)
    try:
        os.rename(staging, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ExportError(f"{out} appeared while the export was written; remove it or choose another -o") from error
    sync(out.parent)


def describe_making(footer: Mapping[str, str]) -> dict[str, str]:
    """Solver, depth network (or files), body and config hash of a label file; "unknown" where its footer is silent.

    Since 0.4 the config in a footer tells no place: networks and body are known by what pins them.
    """
    try:
        config = parse_json(footer.get("config", "{}"))
    except ValueError:
        config = None
    told = config if isinstance(config, dict) else {}
    sections = [told.get(name) for name in ("solver", "depth", "body")]
    solver, depth, body = (section if isinstance(section, dict) else {} for section in sections)
    depth_text = f"maps from {depth['source']} ({depth.get('kind', '')})" if "source" in depth else "unknown"
    if depth.get("source") == "model":
        pin = footer.get("depth_revision") or depth.get("revision") or footer.get("depth_sha256", "")[:16]
        name = footer.get("depth_model") or depth.get("model") or "unknown"
        depth_text = f"{name} at {pin}" if pin else str(name)
    digest = footer.get("body_sha256", "")
    body_text = str(body.get("model_path", "")) or ("body" if digest else "unknown")
    return {
        "solver": str(solver.get("mode", "unknown")),
        "depth": depth_text,
        "body": f"{body_text.rstrip('/').rpartition('/')[2]} (sha256 {digest[:16]})" if digest else body_text,
        "config_hash": footer.get("config_hash", "unknown"),
    }
