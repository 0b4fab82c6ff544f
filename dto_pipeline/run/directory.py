"""A run on disk: where its files lie, what it was started with, and which shards are done.

Knows names, run.json, receipts and failures; knows nothing of tensors, Parquet or Ray. The files are the only state:
pending = the manifest's shards - receipts. Creating, voiding and sweeping happen under the driver's lock only.

    run.json                     config and its hash, manifest fingerprint, versions
    labels/shard-00042.parquet   one row per image
    receipts/shard-00042.json    written last; exists = done
    failures/shard-00042.json    last error and tries; never counts as done
    failures/shard-00042.hand.json    the image a worker has in hand, while a shard is worked image by image
    driver.lock                  who drives the run now
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from dto_pipeline import __version__
from dto_pipeline.config import PipelineConfig, describe_difference
from dto_pipeline.data.files import create_json, is_temporary, write_bytes_atomic, write_json_atomic
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import identify_networks
from dto_pipeline.run.lock import DriverLock
from dto_pipeline.run.receipt import Failure, Receipt, RecordInvalid, read_failure, read_receipt
from dto_pipeline.schema import LABELS_SCHEMA_NAME

RUN_SCHEMA = "dto-run/1"
LIBRARIES = ("torch", "numpy", "pyarrow")  # another version of these may change a byte of the labels
_SHARD_RECORD = re.compile(r"shard-(\d{5,})\.json")
_HAND_RECORD = re.compile(r"shard-(\d{5,})\.hand\.json")


class RunMismatch(DtoError):
    """A run folder that belongs to other settings; the message names each difference on a line of its own."""


class RunDirectoryError(DtoError):
    """A folder that is not a run; the message says what was found."""


class ManifestFacts(Protocol):
    """What a run records of its manifest."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def subset(self) -> str: ...
    @property
    def num_shards(self) -> int: ...
    @property
    def num_images(self) -> int: ...
    @property
    def num_people(self) -> int: ...


@dataclass(frozen=True)
class RunIdentity:
    """What decides the bytes of a run's labels, and how many there will be."""

    config: dict[str, Any]  # PipelineConfig.to_dict of the first start
    config_hash: str
    manifest_path: str  # where it was; another place with the same fingerprint is the same manifest
    manifest_fingerprint: str
    subset: str
    shards: int
    images: int
    persons: int
    versions: dict[str, str]


@dataclass(frozen=True)
class RunDirectory:
    """The names inside one run's folder."""

    root: Path

    @property
    def run_file(self) -> Path:
        return self.root / "run.json"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def receipts(self) -> Path:
        return self.root / "receipts"

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    @property
    def lock_file(self) -> Path:
        return self.root / "driver.lock"

    def label_file(self, shard: int) -> Path:
        return self.labels / f"{shard_name(shard)}.parquet"

    def receipt_file(self, shard: int) -> Path:
        return self.receipts / f"{shard_name(shard)}.json"

    def failure_file(self, shard: int) -> Path:
        return self.failures / f"{shard_name(shard)}.json"

    def hand_file(self, shard: int) -> Path:
        return self.failures / f"{shard_name(shard)}.hand.json"

    def staged_label_file(self, shard: int, token: str) -> Path:
        """Where a worker leaves a label file that the driver puts in the place of another; swept like all leftovers."""
        return self.labels / f".{shard_name(shard)}.parquet.tmp-{token}"

    def create_folders(self) -> None:
        """Raises: RunDirectoryError where the folder cannot be made."""
        try:
            for folder in (self.labels, self.receipts, self.failures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{self.root} cannot be made a run's folder ({error}); choose another") from error

    def lock(self) -> DriverLock:
        """Hold the run for this process; see `DriverLock`."""
        return DriverLock(self.lock_file)


@dataclass(frozen=True)
class RunScan:
    """What the files of a run say about its shards."""

    done: dict[int, Receipt]  # receipts that hold
    failures: dict[int, Failure]  # of shards that are not done
    void: dict[int, str] = field(default_factory=dict)  # shard -> why its receipt does not count
    settled: tuple[int, ...] = ()  # shards that are done and still have a failure record


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def identify_run(config: PipelineConfig, manifest: ManifestFacts, manifest_path: str | Path) -> RunIdentity:
    """What a run of `config` over `manifest` with this installation is."""
    return RunIdentity(
        config=config.to_dict(),
        config_hash=config.hash(),
        manifest_path=str(manifest_path),
        manifest_fingerprint=manifest.fingerprint,
        subset=manifest.subset,
        shards=manifest.num_shards,
        images=manifest.num_images,
        persons=manifest.num_people,
        versions={**_installed_versions(), **identify_networks(config)},
    )


def open_run(directory: RunDirectory, identity: RunIdentity) -> RunIdentity:
    """Create a run, or check that an existing one is the same. Call it under the lock.

    Returns:
        What run.json holds (of the first start, where the run existed).

    Raises:
        RunMismatch: other settings, another manifest or other versions, one difference a line.
        RunDirectoryError: run.json cannot be read.
    """
    directory.create_folders()
    if not directory.run_file.exists():
        create_json(directory.run_file, _identity_to_dict(identity))
    recorded = read_identity(directory)
    if differences := describe_run_difference(recorded, identity):
        advice = "use the recorded settings to go on, or another folder to start anew"
        raise RunMismatch("\n".join([f"{directory.root} belongs to another run; {advice}:", *differences]))
    return recorded


def read_identity(directory: RunDirectory) -> RunIdentity:
    """What run.json holds. Raises: RunDirectoryError where there is none or it cannot be read."""
    try:
        found = json.loads(directory.run_file.read_bytes())
        if found["schema"] != RUN_SCHEMA:
            raise RunDirectoryError(f"{directory.run_file} is {found['schema']!r}, expected {RUN_SCHEMA!r}")
        return RunIdentity(found["config"], found["config_hash"], **found["manifest"], versions=found["versions"])
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{directory.root} holds no run.json; `dto run` makes one") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise RunDirectoryError(f"{directory.run_file} cannot be read ({error!r}); restore it or start anew") from error


def describe_run_difference(recorded: RunIdentity, wanted: RunIdentity) -> list[str]:
    """One line per difference that may change a label byte; the `run` room and the manifest's path may differ."""
    lines = describe_difference(_label_rooms(recorded.config), _label_rooms(wanted.config))
    facts = {
        "manifest.fingerprint": (recorded.manifest_fingerprint, wanted.manifest_fingerprint),
        "manifest.shards": (recorded.shards, wanted.shards),
        "manifest.images": (recorded.images, wanted.images),
    }
    for name in sorted(recorded.versions.keys() | wanted.versions.keys()):
        facts[f"versions.{name}"] = (recorded.versions.get(name), wanted.versions.get(name))
    lines += [f"{name}: {before!r} -> {after!r}" for name, (before, after) in facts.items() if before != after]
    if not lines and recorded.config_hash != wanted.config_hash:
        lines = [f"config hash: {recorded.config_hash} -> {wanted.config_hash}"]
    return lines


def scan_run(directory: RunDirectory, identity: RunIdentity) -> RunScan:
    """Read every receipt and failure, and the sizes of the label files (bytes are not read).

    A receipt does not hold when it cannot be read, belongs to another config or manifest, or its label file is missing
    or of another size.
    """
    # Temporary files are not looked at: a worker that outlived its driver may remove them under our eyes.
    sizes = {e.name: e.stat().st_size for e in _entries(directory.labels) if e.name.startswith("shard-")}
    done: dict[int, Receipt] = {}
    void: dict[int, str] = {}
    for shard, path in _shard_records(directory.receipts):
        try:
            receipt = read_receipt(path)
        except RecordInvalid as error:
            void[shard] = str(error)
            continue
        reason = why_void(receipt, shard, identity, sizes.get(directory.label_file(shard).name))
        if reason:
            void[shard] = reason
        else:
            done[shard] = receipt
    failures = _read_failures(directory)
    settled = tuple(shard for shard in failures if shard in done)
    return RunScan(done, {s: f for s, f in failures.items() if s not in done}, void, settled)


def why_void(receipt: Receipt, shard: int, identity: RunIdentity, label_bytes: int | None) -> str:
    """Why a receipt does not count; "" where it does. `label_bytes`: size of the label file, None = there is none."""
    if receipt.shard != shard:
        return f"its receipt is of shard {receipt.shard}"
    if receipt.config_hash != identity.config_hash or receipt.manifest_fingerprint != identity.manifest_fingerprint:
        return "its receipt is of another config or manifest"
    if label_bytes is None:
        return "its label file is missing"
    if label_bytes != receipt.label_bytes:
        return f"its label file has {label_bytes} bytes, the receipt says {receipt.label_bytes}"
    return ""


def settle_records(directory: RunDirectory, scan: RunScan) -> None:
    """Take away receipts that do not hold and failures of shards that are done. Call it under the lock."""
    for shard in scan.void:
        directory.receipt_file(shard).unlink(missing_ok=True)
    for shard in scan.settled:
        clear_failure(directory, shard)


def forget_shard(directory: RunDirectory, shard: int) -> None:
    """Take a finished shard away, to be done again. Call it under the lock.

    The label file goes first: a receipt without labels is void, labels without a receipt would be adopted.
    """
    directory.label_file(shard).unlink(missing_ok=True)
    directory.receipt_file(shard).unlink(missing_ok=True)


def publish_receipt(directory: RunDirectory, receipt: Receipt) -> Receipt:
    """Declare a shard done. Where another worker was first, its receipt stands and is returned."""
    path = directory.receipt_file(receipt.shard)
    return receipt if create_json(path, receipt.to_dict()) else read_receipt(path)


def record_failure(directory: RunDirectory, failure: Failure) -> None:
    """Write or replace the failure of a shard."""
    write_json_atomic(directory.failure_file(failure.shard), failure.to_dict())


def clear_failure(directory: RunDirectory, shard: int) -> None:
    """Forget the failures of a shard: it is done, or is to be tried afresh."""
    directory.failure_file(shard).unlink(missing_ok=True)


def read_shard_failure(directory: RunDirectory, shard: int) -> Failure | None:
    """The failure of one shard, None where there is none. Raises: RecordInvalid."""
    try:
        return read_failure(directory.failure_file(shard))
    except FileNotFoundError:
        return None


def replace_shard(directory: RunDirectory, receipt: Receipt, token: str) -> None:
    """Put a staged label file in the place of a finished shard's, with its receipt. For the driver, under its lock.

    The old receipt goes first: whatever is killed in between, an old or a new file stands whole and is adopted.
    """
    staged = directory.staged_label_file(receipt.shard, token)
    data = staged.read_bytes()
    directory.receipt_file(receipt.shard).unlink(missing_ok=True)
    write_bytes_atomic(directory.label_file(receipt.shard), data)
    write_json_atomic(directory.receipt_file(receipt.shard), receipt.to_dict())


def drop_staged(directory: RunDirectory, shard: int, token: str) -> None:
    """Take a staged label file away."""
    directory.staged_label_file(shard, token).unlink(missing_ok=True)


def write_hand(directory: RunDirectory, shard: int, note: Mapping[str, Any]) -> None:
    """Write down what a worker has in hand, before it begins with it."""
    write_json_atomic(directory.hand_file(shard), note)


def read_hand(directory: RunDirectory, shard: int) -> Any:
    """What a worker wrote down last, as JSON holds it; None where there is nothing that can be read."""
    try:
        return json.loads(directory.hand_file(shard).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def clear_hand(directory: RunDirectory, shard: int) -> None:
    """Nothing of the shard is in hand any more."""
    directory.hand_file(shard).unlink(missing_ok=True)


def shards_in_hand(directory: RunDirectory) -> list[int]:
    """Shards of which something was in hand when somebody last looked up from it."""
    names = [_HAND_RECORD.fullmatch(entry.name) for entry in _entries(directory.failures)]
    return sorted(int(match[1]) for match in names if match)


def sweep_temporary(directory: RunDirectory) -> int:
    """Remove what killed processes left half written; returns how many files. Call it under the lock."""
    folders = (directory.root, directory.labels, directory.receipts, directory.failures)
    leftovers = [Path(e.path) for folder in folders for e in _entries(folder) if is_temporary(e.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _label_rooms(config: Mapping[str, Any]) -> dict[str, Any]:
    return {room: knobs for room, knobs in config.items() if room != "run"}


def _identity_to_dict(identity: RunIdentity) -> dict[str, Any]:
    manifest = ("manifest_path", "manifest_fingerprint", "subset", "shards", "images", "persons")
    return {
        "schema": RUN_SCHEMA,
        "config": identity.config,
        "config_hash": identity.config_hash,
        "manifest": {name: getattr(identity, name) for name in manifest},
        "versions": identity.versions,
    }


def _installed_versions() -> dict[str, str]:
    own = {"dto_pipeline": __version__, "labels": LABELS_SCHEMA_NAME}
    return own | {name: version(name) for name in LIBRARIES}


def _read_failures(directory: RunDirectory) -> dict[int, Failure]:
    failures = {}
    for shard, path in _shard_records(directory.failures):
        try:
            failures[shard] = read_failure(path)
        except RecordInvalid as error:
            failures[shard] = Failure(shard, 0, False, f"unreadable failure record: {error}", "", 0.0)
    return failures


def _shard_records(folder: Path) -> list[tuple[int, Path]]:
    found = [(match, entry) for entry in _entries(folder) if (match := _SHARD_RECORD.fullmatch(entry.name))]
    return sorted((int(match[1]), Path(entry.path)) for match, entry in found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
