"""A run's label files and receipts: their names, generations, and which files count.

    labels/shard-00042.parquet       receipts/shard-00042.json       generation 0
    labels/shard-00042.r1.parquet    receipts/shard-00042.r1.json    generation 1: repaired, or done again after damage

No file is ever overwritten: a shard that is done again gets the next generation. The highest generation whose receipt
holds counts (`count_labels`). Receipts are kept for good, so that a process that was suspended cannot take an old
generation for a free one. Label files that no longer count are removed, so that the folder holds every image once.

What may differ between two equal runs (time, worker, attempt) is in receipts, never in label files. Times in seconds,
clocks in seconds since 1970 UTC.
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
    read_many,
)
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import IrregularFile, parse_json
from dto_pipeline.status import ImageStatus

RECEIPT_SCHEMA = "dto-receipt/1"
LABELS, RECEIPTS = "labels", "receipts"  # folders of a run
_FILE = re.compile(r"shard-(\d{5,})(?:\.r([1-9]\d{0,3}))?\.(?:parquet|json)")
# The largest count that every reader of JSON keeps; three centuries [s], as a duration or since 1970 (not NaN).
_MOST: dict[Any, float] = {int: 1 << 53, float: 1e10}
_hints = cache(typing.get_type_hints)
_FAILED_WORDS = frozenset(str(status) for status in ImageStatus if status.is_failure)


class RecordInvalid(DtoError):
    """A receipt, failure or run.json that cannot be read; the message names it and what was found."""


@dataclass(frozen=True)
class Receipt:
    """The record that a shard is done: what is in its label file, and how it was made."""

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
    adopted: bool  # the label file was found complete, nothing was computed
    wall_s: float  # from reading the manifest to publishing, repairs added [s]
    finished_at: float  # clock when the label file was published [s since 1970 UTC]
    stage_seconds: dict[str, float] = field(default_factory=dict)  # stage -> busy time, threads added up [s]
    signs: dict[str, int] = field(default_factory=dict)  # `run.sanity.count_signs`; empty in receipts of older versions
    generation: int = 0  # of the label file, see the module

    @property
    def failed_images(self) -> int:
        """Images whose labels are as given because they could not be processed."""
        return sum(count for word, count in self.image_status.items() if word in _FAILED_WORDS)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": RECEIPT_SCHEMA, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class CountedLabels:
    """The label files of a run that count."""

    root: Location
    done: dict[int, Receipt] = field(default_factory=dict)  # shard -> the receipt that counts; in order
    void: dict[int, str] = field(default_factory=dict)  # shards none of whose receipts holds -> why not the newest
    surplus: tuple[str, ...] = ()  # label files that do not count: another one of the shard does, or they are damaged

    @cached_property
    def files(self) -> dict[int, Location]:
        """shard -> the label file that counts; in order."""
        return {shard: join_location(self.root, label_name(r.shard, r.generation)) for shard, r in self.done.items()}


def shard_name(shard: int, generation: int = 0) -> str:
    """The stem of a shard's files."""
    return f"shard-{shard:05d}.r{generation}" if generation else f"shard-{shard:05d}"


def label_name(shard: int, generation: int = 0) -> str:
    """The name of a shard's label file in the run's folder."""
    return f"{LABELS}/{shard_name(shard, generation)}.parquet"


def receipt_name(shard: int, generation: int = 0) -> str:
    """The name of a shard's receipt in the run's folder."""
    return f"{RECEIPTS}/{shard_name(shard, generation)}.json"


def parse_name(name: str) -> tuple[int, int] | None:
    """(shard, generation) of a label file's or a receipt's name; None for any other name."""
    match = _FILE.fullmatch(name)
    return match and (int(match[1]), int(match[2] or 0))


def count_labels(root: Location, config_hash: str, manifest_fingerprint: str) -> CountedLabels:
    """Which label files in the run's folder `root` count, from the receipts and the sizes of the label files.

    `config_hash`, `manifest_fingerprint`: those of run.json; receipts of others do not hold.
    """
    places = _find_receipts(root)
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
    lost = {shard: reason for shard, reason in void.items() if shard not in done}
    if lost and _find_receipts(root) != places:  # a launch has replaced label files meanwhile
        return count_labels(root, config_hash, manifest_fingerprint)
    surplus = [place for place in labels if place[0] in done and place[1] != done[place[0]].generation]
    return CountedLabels(
        root,
        dict(sorted(done.items())),
        lost,
        tuple(label_name(*place) for place in sorted(surplus)),
    )


def _find_receipts(root: Location) -> list[tuple[int, int]]:
    """(shard, generation) of the receipts in a run's folder, in order."""
    return sorted(place for name in open_store(root).entries(RECEIPTS) if (place := parse_name(name)))


def find_run_labels(folder: Location) -> list[Location] | None:
    """The label files of a run's folder, or its ``labels``, that count, by shard; None where it is no run.

    Raises: RecordInvalid: its run.json cannot be read.
    """
    if base_name(folder) == LABELS:
        folder = parent_and_name(folder)[0]
    if not exists(join_location(folder, "run.json")):
        return None
    try:
        found = parse_json(open_store(folder).read("run.json"))
        keys = found["config_hash"], found["manifest"]["manifest_fingerprint"]
    except (KeyError, TypeError, ValueError, IrregularFile) as error:
        raise RecordInvalid(f"{join_location(folder, 'run.json')} cannot be read ({error}); put it back") from error
    return list(count_labels(folder, *keys).files.values())


def why_void(
    receipt: Receipt, place: tuple[int, int], config_hash: str, manifest_fingerprint: str, label_bytes: int | None
) -> str:
    """Why a receipt does not hold; "" = it holds. `place`: of its name; `label_bytes`: None = no label file."""
    if (receipt.shard, receipt.generation) != place:
        return f"its receipt is of shard {receipt.shard}, generation {receipt.generation}"
    if receipt.config_hash != config_hash or receipt.manifest_fingerprint != manifest_fingerprint:
        return "its receipt is of another config, body model, network or manifest"
    if label_bytes is None:
        return "its label file is missing"
    if label_bytes != receipt.label_bytes:
        return f"its label file has {label_bytes} bytes, the receipt says {receipt.label_bytes}"
    return ""


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
    """The fields of a record's JSON, without unknown ones. Raises: RecordInvalid."""
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
    """Fields with an impossible value, of a dataclass of str, bool, int, float and dicts of them; 5 is a float too."""
    return [name for name, hint in _hints(record).items() if name in values and not _is_possible(values[name], hint)]


def _is_possible(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is dict:
        inner = typing.get_args(hint)[1]
        return isinstance(value, dict) and all(_is_possible(item, inner) for item in value.values())
    if hint in _MOST:
        return isinstance(value, int | hint) and not isinstance(value, bool) and 0 <= value <= _MOST[hint]
    return isinstance(value, hint)
