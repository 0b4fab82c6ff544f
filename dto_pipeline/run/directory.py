"""A run's folder: where its files lie, what it was started with, and which shards are done.

Knows names, run.json, receipts and failures; knows nothing of tensors, Parquet or Ray. The files are the only state:
pending = the manifest's shards - receipts. The folder may be local or a URI, see `data.store`. Creating, voiding and
sweeping happen under the driver's lock only; a driver that lost it raises `RunLockLost` instead.

    run.json                     config and its hash, manifest fingerprint, versions, hashes of body and networks
    labels/shard-00042.parquet   one row per image
    receipts/shard-00042.json    written last; exists = done
    failures/shard-00042.json    last error and tries; never counts as done
    failures/shard-00042.hand.json    the image a worker has in hand, see `run.suspects`
    lease/00000001.json          who drives the run now, see `run.lease`
    driver.lock                  local folders: locked by the driver's process
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from dto_pipeline.config import RunConfig, shorten
from dto_pipeline.data.files import is_temporary, json_bytes
from dto_pipeline.data.storage import Location, Store, StoreError, join_location
from dto_pipeline.data.store import open_store, read_many
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import IrregularFile, parse_json
from dto_pipeline.run.identity import RunIdentity, describe_run_difference
from dto_pipeline.run.lease import LEASE_FOLDER
from dto_pipeline.run.lock import DriverLock
from dto_pipeline.run.receipt import Failure, Receipt, RecordInvalid, parse_failure, parse_receipt, read_receipt
from dto_pipeline.run.run_record import check_run_record

RUN_SCHEMA = "dto-run/1"
Place = TypeVar("Place", bound=Location)
LABELS, RECEIPTS, FAILURES = "labels", "receipts", "failures"
_RESTORE = "put run.json back as it was, or start anew in another folder: the labels stay where they are"
_SHARD_RECORD = re.compile(r"shard-(\d{5,})\.json")
_NAMED = 5  # files an error lists
_FOOTER_TAIL = 1 << 16  # bytes; the key-value part stands at the end of a Parquet file, well within them


class RunMismatch(DtoError):
    """A run folder that belongs to other settings; the message names each difference on a line of its own."""


class RunDirectoryError(DtoError):
    """A folder that is not a run; the message says what was found."""


@dataclass
class _Guard:
    """The lock this process holds on a run, if it drives it."""

    lock: DriverLock | None = None


@dataclass(frozen=True)
class RunDirectory(Generic[Place]):
    """The names inside one run's folder: Paths where it is local, URIs where it is one."""

    root: Place
    _guard: _Guard = field(default_factory=_Guard, init=False, compare=False, repr=False)

    @property
    def store(self) -> Store:
        return open_store(self.root)

    @property
    def run_file(self) -> Place:
        return self._at("run.json")

    @property
    def labels(self) -> Place:
        return self._at(LABELS)

    @property
    def receipts(self) -> Place:
        return self._at(RECEIPTS)

    @property
    def failures(self) -> Place:
        return self._at(FAILURES)

    @property
    def lock_file(self) -> Place:
        return self._at("driver.lock")

    def label_file(self, shard: int) -> Place:
        return self._at(label_name(shard))

    def receipt_file(self, shard: int) -> Place:
        return self._at(receipt_name(shard))

    def failure_file(self, shard: int) -> Place:
        return self._at(failure_name(shard))

    def is_run(self) -> bool:
        """True if the folder holds a run.json."""
        try:
            return self.store.size("run.json") > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def create_folders(self) -> None:
        """Raises: RunDirectoryError where the folder cannot be made, or cannot be created in safely."""
        try:
            self.store.prepare((LABELS, RECEIPTS, FAILURES, LEASE_FOLDER))
        except StoreError:
            raise
        except OSError as error:
            raise RunDirectoryError(f"{self.root} cannot be made a run's folder ({error}); choose another") from error

    def lock(self, config: RunConfig | None = None) -> DriverLock:
        """Hold the run for this process; see `DriverLock`. What changes the run then checks that it is still held."""
        self._guard.lock = DriverLock(self.lock_file, config)
        return self._guard.lock

    def check_lock(self, ask: bool = True) -> None:
        """Nothing where this process does not hold the run; see `DriverLock.check`. Raises: RunLockLost."""
        if self._guard.lock is not None:
            self._guard.lock.check(ask)

    def _at(self, name: str) -> Place:
        root: Location = self.root
        return cast(Place, root / name if isinstance(root, Path) else join_location(root, name))


@dataclass(frozen=True)
class RunScan:
    """What the files of a run say about its shards."""

    done: dict[int, Receipt]  # receipts that hold
    failures: dict[int, Failure]  # of shards that are not done
    void: dict[int, str] = field(default_factory=dict)  # shard -> why its receipt does not count
    settled: tuple[int, ...] = ()  # shards that are done and still have a failure record
    unreadable: dict[int, str] = field(default_factory=dict)  # shard -> why its failure record counts as none
    damaged: frozenset[int] = frozenset()  # of `void`, shards whose label file is not to be adopted either

    def with_failures(self, found: Iterable[Failure]) -> RunScan:
        """The same with failures that were found, or written, after it."""
        shards = {failure.shard: failure for failure in found}
        failures = {**self.failures, **{s: f for s, f in shards.items() if s not in self.done}}
        settled = tuple(sorted({*self.settled, *(shards.keys() & self.done.keys())}))
        return replace(self, failures=failures, settled=settled)

    def only(self, shards: Iterable[int]) -> dict[int, Receipt]:
        """Receipts of these shards, as far as they are done."""
        return {shard: self.done[shard] for shard in shards if shard in self.done}

    def without(self, damage: Mapping[int, str]) -> RunScan:
        """The same with shards that a closer look found damaged -> why: they are done again."""
        done = {shard: receipt for shard, receipt in self.done.items() if shard not in damage}
        return replace(self, done=done, void={**self.void, **damage}, damaged=self.damaged | damage.keys())


def shard_name(shard: int) -> str:
    """A shard as its files' names spell it."""
    return f"shard-{shard:05d}"


def label_name(shard: int) -> str:
    """A shard's label file, below the run's folder."""
    return f"{LABELS}/{shard_name(shard)}.parquet"


def receipt_name(shard: int) -> str:
    """A shard's receipt, likewise."""
    return f"{RECEIPTS}/{shard_name(shard)}.json"


def failure_name(shard: int) -> str:
    """A shard's last failure, likewise."""
    return f"{FAILURES}/{shard_name(shard)}.json"


def open_run(directory: RunDirectory, identity: RunIdentity) -> RunIdentity:
    """Create a run, or check that an existing one is the same. Call it under the lock.

    Returns:
        What run.json holds (of the first start, where the run existed).

    Raises:
        RunMismatch: other settings, another manifest or other versions, one difference a line.
        RunDirectoryError: run.json cannot be read.
    """
    directory.create_folders()
    if not directory.is_run():
        directory.check_lock()
        directory.store.create("run.json", json_bytes(_identity_to_dict(identity)))
    recorded = read_identity(directory)
    differences = describe_run_difference(recorded, identity)
    if not differences:
        return recorded
    if holds_labels(directory):
        advice = "use the recorded settings to go on, or another folder to start anew"
        raise RunMismatch("\n".join([f"{directory.root} belongs to another run; {advice}:", *differences]))
    _begin_anew(directory, identity)
    return identity


def holds_labels(directory: RunDirectory) -> bool:
    """Whether a run has made anything that other settings would make otherwise: a label file or a receipt."""
    names = (name for folder in (LABELS, RECEIPTS) for name in directory.store.entries(folder))
    return any(not is_temporary(name) for name in names)


def _begin_anew(directory: RunDirectory, identity: RunIdentity) -> None:
    """Forget a launch that failed before its first label: its run.json and what it wrote of failures."""
    for name in directory.store.entries(FAILURES):
        directory.check_lock()
        directory.store.remove(f"{FAILURES}/{name}")
    directory.check_lock()
    directory.store.replace("run.json", json_bytes(_identity_to_dict(identity)))


def find_strangers(directory: RunDirectory) -> str:
    """Why a folder is not to be made a run: it holds files that are no run's; "" where nothing stands against it."""
    if directory.is_run():
        return ""
    root, own = directory.root, {"run.json", "driver.lock", LABELS, RECEIPTS, FAILURES, LEASE_FOLDER, "lost+found"}
    local = isinstance(root, Path) and root.is_dir()
    names = os.listdir(root) if local else directory.store.entries()  # behind a URI files only, folders are no things
    # a disk's own things are no strangers: lost+found, .snapshot, .nfs0000...
    strangers = sorted(name for name in names if name not in own and not name.startswith("."))
    if not strangers:
        return ""
    named = ", ".join(strangers[:_NAMED]) + (" ..." if len(strangers) > _NAMED else "")
    return f"{root} is not empty and holds no run ({named}); choose another folder (-o), or an empty one"


def read_identity(directory: RunDirectory) -> RunIdentity:
    """What run.json holds. Raises: RunDirectoryError where there is none or it cannot be read."""
    try:
        found = parse_json(directory.store.read("run.json"))
        if found["schema"] != RUN_SCHEMA:
            raise RunDirectoryError(f"{directory.run_file} is {shorten(found['schema'])}, expected {RUN_SCHEMA!r}")
        identity = RunIdentity(
            found["config"],
            found["config_hash"],
            **found["manifest"],
            versions=found["versions"],
            inputs=found.get("inputs", {}),
        )
        check_run_record(identity.config, vars(identity), RunIdentity)
        return identity
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{directory.root} holds no run.json; `dto run` makes one") from error
    except KeyError as error:
        raise RunDirectoryError(f"{directory.run_file} lacks {error}; {_RESTORE}") from error
    except (TypeError, AttributeError, ValueError, IrregularFile) as error:
        raise RunDirectoryError(f"{directory.run_file} cannot be read ({error}); {_RESTORE}") from error


def scan_run(directory: RunDirectory, identity: RunIdentity, footers: bool = False) -> RunScan:
    """Read every receipt and failure, and the sizes of the label files.

    A receipt does not hold when it cannot be read, belongs to another config or manifest, or its label file is missing
    or of another size. A failure that cannot be read is one of no tries, so that its shard is worked like any other.

    Args:
        footers: read the end of every label file too: a file that was swapped for another shard's, or cut and filled
            up again, does not hold either. Rows are not read; their pages carry checksums, and `dto verify` reads all.
    """
    sizes = directory.store.entries(LABELS)
    done: dict[int, Receipt] = {}
    void: dict[int, str] = {}
    for shard, data in _shard_records(directory, RECEIPTS):
        try:
            receipt = parse_receipt(data, directory.receipt_file(shard))
        except RecordInvalid as error:
            void[shard] = str(error)
            continue
        reason = why_void(receipt, shard, identity, sizes.get(f"{shard_name(shard)}.parquet"))
        if reason:
            void[shard] = reason
        else:
            done[shard] = receipt
    if footers:
        void.update(_check_footers(directory, done))
        done = {shard: receipt for shard, receipt in done.items() if shard not in void}
    failures, unreadable = _read_failures(directory)
    settled = tuple(shard for shard in failures if shard in done)
    return RunScan(done, {s: f for s, f in failures.items() if s not in done}, void, settled, unreadable)


def why_void(receipt: Receipt, shard: int, identity: RunIdentity, label_bytes: int | None) -> str:
    """Why a receipt does not count; "" where it does. `label_bytes`: size of the label file, None = there is none."""
    if receipt.shard != shard:
        return f"its receipt is of shard {receipt.shard}"
    if receipt.config_hash != identity.config_hash or receipt.manifest_fingerprint != identity.manifest_fingerprint:
        return "its receipt is of another config, body model, network or manifest"
    if label_bytes is None:
        return "its label file is missing"
    if label_bytes != receipt.label_bytes:
        return f"its label file has {label_bytes} bytes, the receipt says {receipt.label_bytes}"
    return ""


def lacks_receipt_only(directory: RunDirectory, shard: int) -> bool:
    """Whether a shard's labels lie there without a receipt: its process died at the very end."""
    return _exists(directory, label_name(shard)) and not _exists(directory, receipt_name(shard))


def settle_records(directory: RunDirectory, scan: RunScan) -> None:
    """Take away receipts that do not hold, damaged label files and failures of shards that are done.

    Call it under the lock.
    """
    for shard in scan.void:
        directory.check_lock()  # before each: whoever took over may have done the shard, and the name is the same
        directory.store.remove(receipt_name(shard))
        if shard in scan.damaged:
            directory.check_lock()
            directory.store.remove(label_name(shard))
    for shard in scan.settled:
        clear_failure(directory, shard)


def publish_receipt(directory: RunDirectory, receipt: Receipt) -> Receipt:
    """Declare a shard done. Where another worker was first, its receipt stands and is returned."""
    created = directory.store.create(receipt_name(receipt.shard), json_bytes(receipt.to_dict()))
    return receipt if created else read_receipt(directory.receipt_file(receipt.shard))


def record_failure(directory: RunDirectory, failure: Failure) -> None:
    """Write or replace the failure of a shard."""
    directory.check_lock()
    directory.store.replace(failure_name(failure.shard), json_bytes(failure.to_dict()))


def clear_failure(directory: RunDirectory, shard: int) -> None:
    """Forget the failures of a shard: it is done, or is to be tried afresh."""
    directory.check_lock()
    directory.store.remove(failure_name(shard))


def read_shard_failure(directory: RunDirectory, shard: int) -> Failure | None:
    """The failure of one shard; None where there is none, or one that cannot be read (a start's scan names it)."""
    try:
        return parse_failure(directory.store.read(failure_name(shard)), directory.failure_file(shard))
    except (FileNotFoundError, RecordInvalid):
        return None


def sweep_temporary(directory: RunDirectory) -> int:
    """Remove what killed processes left half written; returns how many files. Call it under the lock.

    Asked for once: names of temporary files never come twice, so what was listed before a take-over is nobody's.
    """
    directory.check_lock()
    store = directory.store
    folders = ("", LABELS, RECEIPTS, FAILURES, LEASE_FOLDER)
    leftovers = [f"{folder}/{name}" for folder in folders for name in store.entries(folder) if is_temporary(name)]
    for name in leftovers:
        store.remove(name.lstrip("/"))
    return len(leftovers)


def _exists(directory: RunDirectory, name: str) -> bool:
    try:
        directory.store.size(name)
    except FileNotFoundError:
        return False
    return True


def _identity_to_dict(identity: RunIdentity) -> dict[str, Any]:
    manifest = ("manifest_path", "manifest_fingerprint", "subset", "shards", "images", "persons")
    return {
        "schema": RUN_SCHEMA,
        "config": identity.config,
        "config_hash": identity.config_hash,
        "manifest": {name: getattr(identity, name) for name in manifest},
        "versions": identity.versions,
        "inputs": identity.inputs,
    }


def _read_failures(directory: RunDirectory) -> tuple[dict[int, Failure], dict[int, str]]:
    """Failures by shard, and why some of them hold nothing."""
    failures, unreadable = {}, {}
    for shard, data in _shard_records(directory, FAILURES):
        try:
            failures[shard] = parse_failure(data, directory.failure_file(shard))
        except RecordInvalid as error:
            unreadable[shard] = str(error)
            failures[shard] = Failure(shard, 0, False, f"unreadable failure record: {error}", "", 0.0)
    return failures, unreadable


def _check_footers(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file does not end as a Parquet file with the receipt's shard key in its footer -> why.

    The bytes are looked through, not parsed: a footer takes milliseconds to parse and microseconds to search, and the
    key (sha256 over config, manifest and row ids) stands nowhere else.
    """
    void = dict.fromkeys(done, "its label file is gone")
    shards = {label_name(shard): shard for shard in done}
    for name, tail in read_many(directory.root, list(shards), _FOOTER_TAIL):
        shard = shards[name]
        if not tail.endswith(b"PAR1"):
            void[shard] = "its label file does not end as Parquet does: it is damaged"
        elif done[shard].shard_key.encode() not in tail:
            void[shard] = "its label file is another shard's: the footer holds another key"
        else:
            del void[shard]
    return void


def _shard_records(directory: RunDirectory, folder: str) -> list[tuple[int, bytes]]:
    """Shard and bytes of every record of a folder, in the order of the shards."""
    entries = directory.store.entries(folder)
    shards = {f"{folder}/{name}": int(match[1]) for name in entries if (match := _SHARD_RECORD.fullmatch(name))}
    return sorted((shards[name], data) for name, data in read_many(directory.root, list(shards)))
