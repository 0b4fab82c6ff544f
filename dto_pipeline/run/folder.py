"""A run's folder: names of its files, run.json, and which shards are done.

The files are the only state: a shard is pending until it has a valid receipt. The folder may be local or a URI, see
`data.storage`.

    run.json                     config and its hash, manifest fingerprint, versions, hashes of body and networks
    labels/shard-00042.parquet   one row per image
    receipts/shard-00042.json    written last; exists and is valid = done
    labels/shard-00042.r1.parquet, receipts/shard-00042.r1.json    the same, repaired or done again: `data.receipts`
    failures/shard-00042.json    last error and attempts; never counts as done
    failures/shard-00042.in-flight.json    the image that a worker has begun, see `run.deaths`
    lease/00000001.json          which driver has the run, see `run.lease`

Label files and receipts are only created, under names that were never used before, and only label files that do not
count are removed. So a driver that lost its lease, or a worker that was paused, can only waste time. Failure records
and in-flight notes are replaced and removed: they decide about attempts, never about labels.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.config_tree import build_sections, shorten
from dto_pipeline.data.files import is_abandoned, is_temporary, json_bytes
from dto_pipeline.data.label_files import LabelFile, RunLabels
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.receipts import (
    LABELS,
    RECEIPTS,
    CountedLabels,
    Receipt,
    RecordInvalid,
    count_labels,
    impossible_fields,
    label_name,
    parse_name,
    parse_record,
    receipt_name,
    shard_name,
)
from dto_pipeline.data.storage import (
    Location,
    Store,
    StoreError,
    as_location,
    join_location,
    list_names,
    open_store,
    read_many,
    sha256_of,
)
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import IrregularFile, parse_json
from dto_pipeline.run.identity import RunIdentity, describe_run_difference
from dto_pipeline.run.lease import LEASE_FOLDER, DriverLock
from dto_pipeline.run.sanity import judge_run
from dto_pipeline.terminal import progress_bar

_LOG = logging.getLogger(__name__)
RUN_SCHEMA = "dto-run/1"
FAILURE_SCHEMA = "dto-failure/1"
_MOST_SHARDS = 10_000_000  # a billion images or more; a larger number is damage
_READ = {
    "body": ("model_path", "kid_axis"),
    "depth": ("kind", "scale", "root"),
    "joint": ("hold_z_sigma",),
    "refine": ("accept_below",),
    "solver": ("mode", "max_height"),
}  # section of the config -> keys that readers of finished runs ask for
Place = TypeVar("Place", bound=Location)
FAILURES = "failures"
_RESTORE = "put run.json back as it was, or start anew in another folder: the labels stay where they are"
_FAILURE = re.compile(r"shard-(\d{5,})\.json")
_NOTE = re.compile(r"shard-\d{5,}\.[a-z-]+\.json")
_NAMED = 5  # files an error lists
LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only
_FOOTER_TAIL = 1 << 16  # bytes read of every label file; footers with a long list of inputs are longer
_MANIFEST_FACTS = ("manifest_path", "manifest_fingerprint", "subset", "shards", "images", "persons")


def failure_name(shard: int, note: str = "") -> str:
    """Name of a shard's failure record below the run's folder, or of a note of that kind."""
    return f"{FAILURES}/{shard_name(shard)}{note and f'.{note}'}.json"


class RunMismatch(DtoError):
    """The run folder was made with other settings; the message has one line for each difference."""


class RunDirectoryError(DtoError):
    """A folder that is not a run or cannot become one; the message says what was found."""


@dataclass(frozen=True)
class RunDirectory(Generic[Place]):
    """The names inside one run's folder: Paths if it is local, else URIs."""

    root: Place

    @property
    def store(self) -> Store:
        return open_store(self.root)

    def at(self, name: str) -> Place:
        """The place of a file of the run's folder."""
        root: Location = self.root
        return cast(Place, root / name if isinstance(root, Path) else join_location(root, name))

    def label_file(self, shard: int, generation: int = 0) -> Place:
        return self.at(label_name(shard, generation))

    def receipt_file(self, shard: int, generation: int = 0) -> Place:
        return self.at(receipt_name(shard, generation))

    def failure_file(self, shard: int) -> Place:
        return self.at(failure_name(shard))

    def is_run(self) -> bool:
        """True if the folder holds a run.json."""
        return self.store.exists("run.json")

    def create_folders(self) -> None:
        """Raises: RunDirectoryError if the folder cannot be made, or its file system cannot create files safely."""
        try:
            self.store.prepare((LABELS, RECEIPTS, FAILURES, LEASE_FOLDER))
        except StoreError:
            raise
        except OSError as error:
            raise RunDirectoryError(f"{self.root} cannot be made a run's folder ({error}); choose another") from error

    def lock(self, config: RunConfig | None = None) -> DriverLock:
        """Hold the run for this process; see `DriverLock`."""
        return DriverLock(self.root, config)


@dataclass(frozen=True)
class Failure:
    """The failed attempts at a shard."""

    shard: int
    attempts: int  # used up
    given_up: bool  # True: left out until --retry-failed
    error: str  # of the last attempt, one line
    worker: str
    failed_at: float  # [s since 1970 UTC]
    detail: str = ""  # trace of the last attempt
    deaths: int = 0  # of the attempts, those that ended with their process
    suspects: dict[str, int] = field(default_factory=dict)  # image_id -> processes that died with it alone in work
    memory: dict[str, int] = field(default_factory=dict)  # image_id -> those of them for which memory ran out

    def to_dict(self) -> dict[str, Any]:
        return {"schema": FAILURE_SCHEMA, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RunScan(CountedLabels):
    """State of a run's shards, as its files show it."""

    failures: dict[int, Failure] = field(default_factory=dict)  # shard that is not done -> its failure record; in order
    unreadable: dict[int, str] = field(default_factory=dict)  # such a shard -> why its record cannot be read
    settled: list[int] = field(default_factory=list)  # shards that are done and have a failure record

    @property
    def given_up(self) -> dict[int, Failure]:
        """Shards without attempts left, until --retry-failed; in order."""
        return {shard: failure for shard, failure in self.failures.items() if failure.given_up}

    def without(self, damage: Mapping[int, str]) -> RunScan:
        """This scan with the label files of some shards (-> reason) found damaged, so that the shards are not done."""
        names = (label_name(shard, self.done[shard].generation) for shard in damage)
        done = {shard: receipt for shard, receipt in self.done.items() if shard not in damage}
        return replace(self, done=done, void={**self.void, **damage}, surplus=(*self.surplus, *names))


def open_run(directory: RunDirectory, identity: RunIdentity, lock: DriverLock | None = None) -> RunIdentity:
    """Create a run, or check that an existing one is the same. Call it under the lock.

    Returns:
        The identity in run.json: that of the first launch if the run existed.

    Raises:
        RunMismatch: other settings, another manifest or other versions, one difference a line.
        RunDirectoryError: run.json cannot be read.
    """
    facts = {name: getattr(identity, name) for name in _MANIFEST_FACTS}
    made = {"config": identity.config, "config_hash": identity.config_hash, "manifest": facts}
    own = json_bytes({"schema": RUN_SCHEMA, **made, "versions": identity.versions, "inputs": identity.inputs})
    directory.create_folders()
    if not directory.is_run():
        directory.store.create("run.json", own)
    recorded = read_identity(directory)
    differences = describe_run_difference(recorded, identity)
    if not differences:
        return recorded
    if holds_labels(directory):
        advice = "use the recorded settings"
        if identity.versions != recorded.versions:
            advice = "install the recorded versions (what is done can be read with any)"
        if identity.manifest_fingerprint != recorded.manifest_fingerprint:
            advice = "put its manifest back (built again, it is another one once an image was repaired)"
        advice += " to go on, or take another folder to start anew"
        raise RunMismatch("\n".join([f"{directory.root} belongs to another run; {advice}:", *differences]))
    # A launch failed before its first label: its run.json and failure records are replaced.
    for name in directory.store.entries(FAILURES):
        directory.store.remove(f"{FAILURES}/{name}")
    if lock is not None:
        lock.check(ask=True)  # run.json is the one file that is replaced: another driver may be using it by now
    directory.store.replace("run.json", own)
    return identity


def holds_labels(directory: RunDirectory) -> bool:
    """Whether a run has a label file or a receipt: both depend on its settings."""
    names = (name for folder in (LABELS, RECEIPTS) for name in directory.store.entries(folder))
    return any(not is_temporary(name) for name in names)


def find_foreign_files(directory: RunDirectory) -> str:
    """Why a folder cannot become a run: it holds other files; "" if it can."""
    if directory.is_run():
        return ""
    root, own = directory.root, {"run.json", LABELS, RECEIPTS, FAILURES, LEASE_FOLDER, "lost+found"}
    local = isinstance(root, Path) and root.is_dir()
    names = os.listdir(root) if local else directory.store.entries()  # behind a URI: files only
    # files of the disk itself do not count: lost+found, .snapshot, .nfs0000...
    foreign = sorted(name for name in names if name not in own and not name.startswith("."))
    if not foreign:
        return ""
    named = ", ".join(foreign[:_NAMED]) + (" ..." if len(foreign) > _NAMED else "")
    return f"{root} is not empty and holds no run ({named}); choose another folder (-o), or an empty one"


def read_identity(directory: RunDirectory) -> RunIdentity:
    """The identity in run.json. Raises: RunDirectoryError if there is none or it cannot be read."""
    path = directory.at("run.json")
    try:
        found = parse_json(directory.store.read("run.json"))
        if found["schema"] != RUN_SCHEMA:
            raise RunDirectoryError(f"{path} is {shorten(found['schema'])}, expected {RUN_SCHEMA!r}")
        facts = {"versions": found["versions"], "inputs": found.get("inputs", {})}
        identity = RunIdentity(found["config"], found["config_hash"], **found["manifest"], **facts)
        values = {name: value for name, value in vars(identity).items() if name != "config"}
        if wrong := impossible_fields(values, RunIdentity):
            raise ValueError(f"{wrong[0]} is {shorten(values[wrong[0]])}")
        if identity.shards > _MOST_SHARDS:
            raise ValueError(f"shards is {identity.shards}")
        known = {section: {key: identity.config[section][key] for key in keys} for section, keys in _READ.items()}
        build_sections(PipelineConfig, known)  # checks the types of the options that readers of finished runs use
        return identity
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{directory.root} holds no run.json; `dto run` makes one") from error
    except (TypeError, AttributeError, LookupError, ValueError, IrregularFile) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise RunDirectoryError(f"{path} {what}; {_RESTORE}") from error


def scan_run(directory: RunDirectory, identity: RunIdentity, footers: bool = False) -> RunScan:
    """Read every receipt, the failure records of other shards, and the sizes of the label files.

    `footers`: check the end of every label file too.
    """
    labels = count_labels(directory.root, identity.config_hash, identity.manifest_fingerprint)
    matches = filter(None, map(_FAILURE.fullmatch, directory.store.entries(FAILURES)))
    recorded = sorted(int(match[1]) for match in matches)
    names = {failure_name(shard): shard for shard in recorded if shard not in labels.done}
    scan = RunScan(**vars(labels), settled=[shard for shard in recorded if shard in labels.done])
    for name, data in read_many(directory.root, list(names)):
        try:
            scan.failures[names[name]] = parse_failure(data, directory.at(name))
        except RecordInvalid as error:
            scan.unreadable[names[name]] = str(error)
    return scan.without(_check_footers(scan)) if footers else scan


def list_generations(directory: RunDirectory) -> dict[int, int]:
    """Shard -> its highest generation with a file, where that is not 0."""
    names = (name for folder in (LABELS, RECEIPTS) for name in directory.store.entries(folder))
    highest: dict[int, int] = {}
    for shard, generation in filter(None, map(parse_name, names)):
        if generation:
            highest[shard] = max(generation, highest.get(shard, 0))
    return highest


def read_run_labels(run_dir: str | Path, partial: bool = False, manifests: Sequence[str | Path] = ()) -> RunLabels:
    """The label files of a run, for exports and training.

    Args:
        partial: take what is done of a run that is not finished.
        manifests: where its manifest may be now, in place of the path in run.json.

    Raises:
        RunDirectoryError: not a run, or shards have no valid receipt and `partial` is not set.
    """
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    scan = scan_run(directory, identity)
    missing = [shard for shard in range(identity.shards) if shard not in scan.done]
    if missing and not partial:
        named = ", ".join(map(str, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
        void = "".join(f"; shard {shard}: {reason}" for shard, reason in list(scan.void.items())[:_NAMED])
        raise RunDirectoryError(
            f"{run_dir} is not finished: {len(missing)} of {identity.shards} shards have no valid receipt "
            f"({named}){void}; `dto run` does what is left, --partial takes what is done"
        )
    for text in judge_run(identity, list(scan.done.values())).contradictions:
        _LOG.warning("%s: WRONG: %s", run_dir, text)  # its launch ended with 1 and said so, perhaps long ago
    files = scan.files.items()
    return RunLabels(
        name=str(run_dir),
        subset=identity.subset,
        manifest=as_location(identity.manifest_path),
        manifest_fingerprint=identity.manifest_fingerprint,
        config_hash=identity.config_hash,
        shards=identity.shards,
        files=tuple(LabelFile(path, n, scan.done[n].rows, scan.done[n].label_sha256) for n, path in files),
        named_manifests=tuple(map(as_location, manifests)),
    )


def remove_surplus(directory: RunDirectory, scan: RunScan) -> None:
    """Remove label files that do not count."""
    for name in scan.surplus:
        directory.store.remove(name)


def record_failure(directory: RunDirectory, failure: Failure) -> None:
    """Write or replace the failure record of a shard."""
    directory.store.replace(failure_name(failure.shard), json_bytes(failure.to_dict()))


def read_shard_failure(directory: RunDirectory, shard: int) -> Failure | None:
    """The failure record of one shard; None if there is none or it cannot be read (a launch names it)."""
    try:
        return parse_failure(directory.store.read(failure_name(shard)), directory.failure_file(shard))
    except (FileNotFoundError, RecordInvalid):
        return None


def parse_failure(data: bytes, path: Location) -> Failure:
    """Parse a failure record; errors name `path`. Raises: RecordInvalid."""
    return Failure(**parse_record(data, path, FAILURE_SCHEMA, Failure))


def find_strays(directory: RunDirectory, identity: RunIdentity) -> list[str]:
    """Files in labels/ and its subfolders that belong to no shard, but that a reader of the whole folder would read."""
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = [*list_names(join_location(directory.root, LABELS), ("",))]
    read = (name for name in names if not any(part[0] in "._" for part in name.split("/")))  # hidden ones are not read
    return sorted(name for name in read if (place := parse_name(name)) is None or place[0] >= identity.shards)


def sweep_leftovers(directory: RunDirectory) -> None:
    """Remove half-written files and in-flight notes of processes that died. Call it under the lock.

    Files that drivers write before they hold the lock are removed only if their process is known to be dead.
    """
    store = directory.store
    for folder in ("", LABELS, RECEIPTS, FAILURES, LEASE_FOLDER):
        is_left = is_abandoned if folder in ("", LEASE_FOLDER) else is_temporary
        for name in store.entries(folder):
            if is_left(name) or (folder == FAILURES and _NOTE.fullmatch(name)):
                store.remove(f"{folder}/{name}".lstrip("/"))


def count_statuses(table: LabelTable) -> tuple[dict[str, int], dict[str, int]]:
    """Statuses of the images and of the persons of a label table, counted."""
    persons = table.column("persons").combine_chunks().flatten().field("status").to_pylist()
    images = Counter(table.column("status").to_pylist())
    return dict(sorted(images.items())), dict(sorted(Counter(persons).items()))


def check_label_file(
    directory: RunDirectory, shard: int, receipt: Receipt
) -> tuple[LabelTable | None, dict[str, str], str]:
    """Compare a finished shard's label file with its receipt.

    Returns:
        Its rows (None if it cannot be read), its footer, and the differences; "" = none.
    """
    path, expected = directory.label_file(shard, receipt.generation), receipt.label_sha256
    changed = ""
    try:
        if (sha256 := sha256_of(path)) != expected:
            changed = f"its sha256 is {sha256[:16]}, the receipt says {expected[:16]}"
        table, footer = read_labels(path), read_label_metadata(path)
    except (LabelsError, OSError) as error:
        return None, {}, changed or str(error)
    images, persons = count_statuses(table)
    facts = {
        "rows": (table.num_rows, receipt.rows),
        "images by status": (images, receipt.image_status),
        "persons by status": (persons, receipt.person_status),
        "shard_key": (footer.get("shard_key"), receipt.shard_key),
        "config_hash": (footer.get("config_hash"), receipt.config_hash),
    }
    different = [f"{fact} {held}, the receipt says {said}" for fact, (held, said) in facts.items() if held != said]
    return table, footer, "; ".join(filter(None, [changed, *different]))


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file differs from its receipt -> what was found. Reads every label file."""
    receipts = progress_bar(sorted(done.items()), "shard")
    wrong = {shard: check_label_file(directory, shard, receipt)[2] for shard, receipt in receipts}
    return {shard: f"its label file is damaged: {what}" for shard, what in wrong.items() if what}


def _check_footers(scan: RunScan) -> dict[int, str]:
    """Shards whose label file does not end as Parquet, or whose footer lacks the receipt's shard key -> reason.

    The footer is searched for the key (a sha256, so found nowhere else): that takes microseconds, parsing milliseconds.
    """
    void = dict.fromkeys(scan.done, "its label file is gone")
    shards = {label_name(shard, receipt.generation): shard for shard, receipt in scan.done.items()}
    for name, tail in read_many(scan.root, list(shards), _FOOTER_TAIL):
        shard = shards[name]
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if footer > len(tail):
            footer = min(footer, scan.done[shard].label_bytes)  # of a damaged file any number
            tail = next((data for _, data in read_many(scan.root, [name], footer)), b"")
        if not tail.endswith(b"PAR1"):
            void[shard] = "its label file does not end as Parquet does: it is damaged"
        elif scan.done[shard].shard_key.encode() not in tail:
            void[shard] = "its label file is another shard's: the footer holds another key"
        else:
            del void[shard]
    return void
