"""A run's label files and the receipts that vouch for them: names, generations, and which files count.

    labels/shard-00042.parquet       receipts/shard-00042.json       generation 0
    labels/shard-00042.r1.parquet    receipts/shard-00042.r1.json    generation 1: repaired, or done again after damage

No file is ever overwritten: what is done again gets the next generation. Of a shard the highest generation counts whose
receipt holds. Receipts stay for good, so that a process that was frozen cannot take an old generation for a free one;
label files that do not count any more are removed, so that somebody who reads the folder and knows no receipts sees
every image once. Whoever reads a run asks `count_labels` which files count.

Everything that may vary between two equal runs (time, worker, attempt) lives in receipts and never in a label file.
Times in seconds, clocks in seconds since 1970 UTC.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from dto_pipeline.config_tree import shorten
from dto_pipeline.data.storage import (
    Location,
    base_name,
    exists,
    join_location,
    open_store,
    parent_and_name,
    read_bytes,
    read_many,
)
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import IrregularFile, parse_json
from dto_pipeline.status import ImageStatus

RECEIPT_SCHEMA = "dto-receipt/1"
LABELS, RECEIPTS = "labels", "receipts"  # folders of a run
_FILE = re.compile(r"shard-(\d{5,})(?:\.r([1-9]\d{0,3}))?\.(?:parquet|json)")
_MOST_SECONDS = 1e10  # three centuries, as a duration or since 1970: NaN and infinity are beyond it as well
_MOST_COUNT = 1 << 53  # the largest whole number that every reader of JSON keeps
_FAILED_WORDS = frozenset(str(status) for status in ImageStatus if status.is_failure)


class RecordInvalid(DtoError):
    """A receipt or failure file that cannot be read; the message says which and what was found."""


@dataclass(frozen=True)
class Receipt:
    """Proof that one shard is done: what is in its label file, and how the work went."""

    shard: int
    rows: int
    images: int
    persons: int
    image_status: dict[str, int]  # ImageStatus word -> images
    person_status: dict[str, int]  # PersonStatus word -> persons
    label_sha256: str
    label_bytes: int
    shard_key: str  # hash of config, manifest and row ids; also in the label file's footer
    config_hash: str
    manifest_fingerprint: str
    worker: str  # host:pid
    attempt: int  # 1 = the first
    adopted: bool  # True: the label file was found complete, nothing was computed
    wall_s: float  # from reading the manifest to publishing, repairs added [s]
    finished_at: float  # clock when the label file was published [s since 1970 UTC]
    stage_seconds: dict[str, float] = field(default_factory=dict)  # stage -> busy time, threads added up [s]
    signs: dict[str, int] = field(default_factory=dict)  # `run.sanity.count_signs`; empty in those of older versions
    generation: int = 0  # of the label file, see the module

    @property
    def failed_images(self) -> int:
        """Images whose labels are as given because they could not be processed."""
        return sum(count for word, count in self.image_status.items() if word in _FAILED_WORDS)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": RECEIPT_SCHEMA, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class CountedLabels:
    """Which label files of a run count."""

    root: Location
    done: dict[int, Receipt] = field(default_factory=dict)  # shard -> the receipt that counts; in order
    void: dict[int, str] = field(default_factory=dict)  # shards none of whose receipts holds -> why not the newest
    surplus: tuple[str, ...] = ()  # label files that do not count although another one of their shard does
    orphans: frozenset[int] = frozenset()  # shards with a label file and no receipt that holds

    @cached_property
    def files(self) -> dict[int, Location]:
        """shard -> the label file that counts; in order."""
        return {shard: join_location(self.root, label_name(r.shard, r.generation)) for shard, r in self.done.items()}


def shard_name(shard: int, generation: int = 0) -> str:
    """A shard as its files' names spell it."""
    return f"shard-{shard:05d}.r{generation}" if generation else f"shard-{shard:05d}"


def label_name(shard: int, generation: int = 0) -> str:
    """A shard's label file, below the run's folder."""
    return f"{LABELS}/{shard_name(shard, generation)}.parquet"


def receipt_name(shard: int, generation: int = 0) -> str:
    """A shard's receipt, likewise."""
    return f"{RECEIPTS}/{shard_name(shard, generation)}.json"


def parse_name(name: str) -> tuple[int, int] | None:
    """(shard, generation) of a label file's or a receipt's name; None for any other name."""
    match = _FILE.fullmatch(name)
    return match and (int(match[1]), int(match[2] or 0))


def count_labels(root: Location, config_hash: str, manifest_fingerprint: str) -> CountedLabels:
    """Read the receipts of a run and the sizes of its label files; opens no label file.

    Args:
        root: the run's folder.
        config_hash, manifest_fingerprint: what run.json says; receipts of another config or manifest do not hold.
    """
    places = sorted(place for name in open_store(root).entries(RECEIPTS) if (place := parse_name(name)))
    names = {receipt_name(*place): place for place in places}
    receipts = list(read_many(root, list(names)))  # before the sizes: a label file is there before its receipt
    labels = {place: size for name, size in open_store(root).entries(LABELS).items() if (place := parse_name(name))}
    done: dict[int, Receipt] = {}
    void: dict[int, str] = {}
    for name, data in receipts:
        place = names[name]
        try:
            receipt = parse_receipt(data, join_location(root, name))
            reason = why_void(receipt, place, config_hash, manifest_fingerprint, labels.get(place))
        except RecordInvalid as error:
            reason = str(error)
        if reason:
            void[place[0]] = reason
        else:
            done[place[0]] = receipt
    surplus = [place for place in labels if place[0] in done and place[1] != done[place[0]].generation]
    return CountedLabels(
        root,
        dict(sorted(done.items())),
        {shard: reason for shard, reason in void.items() if shard not in done},
        tuple(label_name(*place) for place in sorted(surplus)),
        frozenset(shard for shard, _ in labels if shard not in done),
    )


def find_run_labels(folder: Location) -> list[Location] | None:
    """The label files of a run's folder that count, by shard; None where the folder is no run, or has no receipts.

    ``labels`` in place of the run's folder means the same. Raises: RecordInvalid: its run.json cannot be read.
    """
    if base_name(folder) == LABELS:
        folder = parent_and_name(folder)[0]
    if not exists(join_location(folder, "run.json")):
        return None
    store = open_store(folder)
    try:
        found = parse_json(store.read("run.json"))
        keys = found["config_hash"], found["manifest"]["manifest_fingerprint"]
    except (KeyError, TypeError, ValueError, IrregularFile) as error:
        raise RecordInvalid(f"{join_location(folder, 'run.json')} cannot be read ({error}); put it back") from error
    return list(count_labels(folder, *keys).files.values()) if store.entries(RECEIPTS) else None


def why_void(
    receipt: Receipt, place: tuple[int, int], config_hash: str, manifest_fingerprint: str, label_bytes: int | None
) -> str:
    """Why a receipt does not count, "" where it does; `place` is what its name tells, `label_bytes` None = no file."""
    if (receipt.shard, receipt.generation) != place:
        return f"its receipt is of shard {receipt.shard}, generation {receipt.generation}"
    if receipt.config_hash != config_hash or receipt.manifest_fingerprint != manifest_fingerprint:
        return "its receipt is of another config, body model, network or manifest"
    if label_bytes is None:
        return "its label file is missing"
    if label_bytes != receipt.label_bytes:
        return f"its label file has {label_bytes} bytes, the receipt says {receipt.label_bytes}"
    return ""


def read_receipt(path: Location) -> Receipt:
    """Raises: RecordInvalid, or FileNotFoundError."""
    return parse_receipt(read_bytes(path), path)


def parse_receipt(data: bytes, path: Location) -> Receipt:
    """A receipt's bytes; errors name `path`. Raises: RecordInvalid."""
    receipt = Receipt(**parse_record(data, path, RECEIPT_SCHEMA, Receipt))
    counts = (receipt.rows, sum(receipt.image_status.values()), sum(receipt.person_status.values()))
    if counts != (receipt.images, receipt.images, receipt.persons):
        found = f"{receipt.images} images and {receipt.persons} persons, but {counts[0]} rows, {counts[1]} images and "
        raise RecordInvalid(f"{path} counts {found}{counts[2]} persons by status; it was edited, delete it")
    return receipt


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several status counts, words in alphabetical order."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def parse_record(data: bytes, path: Location, schema: str, record: type) -> dict[str, Any]:
    """The fields of a record's JSON; those it does not know are left out. Raises: RecordInvalid."""
    try:
        found = parse_json(data)
    except ValueError as error:
        raise RecordInvalid(f"{path} is not JSON ({error}); it was cut short or edited, delete it") from error
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise RecordInvalid(f"{path} is not a {schema} record; delete it, or use the version that wrote it")
    names = {f.name for f in dataclasses.fields(record)}
    required = {f.name for f in dataclasses.fields(record) if f.default is f.default_factory}  # both MISSING
    if missing := required - found.keys():
        raise RecordInvalid(f"{path} lacks {sorted(missing)}; delete it, or use the version that wrote it")
    values = {name: found[name] for name in names if name in found}
    if wrong := impossible_fields(values, record):
        name = wrong[0]
        raise RecordInvalid(f"{path}: {name} is {shorten(values[name])}; it was edited, delete it")
    return values


def impossible_fields(values: Mapping[str, Any], record: type) -> list[str]:
    """Fields of a record, a dataclass of texts, truths, counts, seconds and dicts of them, that hold the impossible.

    JSON writes 5.0 as 5 in some hands.
    """
    return [name for name, hint in _hints(record).items() if name in values and not _is_possible(values[name], hint)]


def _is_possible(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is dict:
        inner = typing.get_args(hint)[1]
        return isinstance(value, dict) and all(_is_possible(item, inner) for item in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MOST_SECONDS
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_COUNT
    return isinstance(value, hint)


@cache
def _hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)
