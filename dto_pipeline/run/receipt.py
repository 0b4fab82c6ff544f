"""A shard's life as two small records: the receipt (done, with numbers) and the failure (tried, with the last error).

Knows their fields and their JSON; knows nothing of folders, Ray or tensors. Everything that may vary between two equal
runs (time, worker, attempt) lives here and never in a label file. Times in seconds, clocks in seconds since 1970 UTC.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dto_pipeline.config import shorten
from dto_pipeline.data.storage import Location
from dto_pipeline.data.store import read_bytes
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_json
from dto_pipeline.status import ImageStatus

RECEIPT_SCHEMA = "dto-receipt/1"
FAILURE_SCHEMA = "dto-failure/1"
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
    attempt: int  # 1 = first try
    adopted: bool  # True: the label file was found complete, nothing was computed
    wall_s: float  # from reading the manifest to publishing, repairs added [s]
    finished_at: float  # clock when the label file was published [s since 1970 UTC]
    stage_seconds: dict[str, float] = field(default_factory=dict)  # stage -> busy time, threads added up [s]
    signs: dict[str, int] = field(default_factory=dict)  # `run.sanity.count_signs`; empty in those of older versions

    @property
    def failed_images(self) -> int:
        """Images whose labels are as given because they could not be processed."""
        return sum(count for word, count in self.image_status.items() if word in _FAILED_WORDS)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": RECEIPT_SCHEMA, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Failure:
    """What went wrong with a shard that is not done; never counts as done."""

    shard: int
    attempts: int  # tries that were charged to the shard
    given_up: bool  # True: quarantined until somebody asks for a retry
    error: str  # of the last try, one line
    worker: str
    failed_at: float  # [s since 1970 UTC]
    detail: str = ""  # trace of the last try
    deaths: int = 0  # of the tries, those that ended with their process
    suspects: dict[str, int] = field(default_factory=dict)  # image_id -> processes that died with it alone in hand
    memory: dict[str, int] = field(default_factory=dict)  # image_id -> those of them for which memory ran out

    def to_dict(self) -> dict[str, Any]:
        return {"schema": FAILURE_SCHEMA, **dataclasses.asdict(self)}


def read_receipt(path: Location) -> Receipt:
    """Raises: RecordInvalid, or FileNotFoundError."""
    return parse_receipt(read_bytes(path), path)


def parse_receipt(data: bytes, path: Location) -> Receipt:
    """A receipt's bytes; errors name `path`. Raises: RecordInvalid."""
    receipt = Receipt(**_parse_record(data, path, RECEIPT_SCHEMA, Receipt))
    counts = (receipt.rows, sum(receipt.image_status.values()), sum(receipt.person_status.values()))
    if counts != (receipt.images, receipt.images, receipt.persons):
        found = f"{receipt.images} images and {receipt.persons} persons, but {counts[0]} rows, {counts[1]} images and "
        raise RecordInvalid(f"{path} counts {found}{counts[2]} persons by status; it was edited, delete it")
    return receipt


def parse_failure(data: bytes, path: Location) -> Failure:
    """A failure's bytes; errors name `path`. Raises: RecordInvalid."""
    return Failure(**_parse_record(data, path, FAILURE_SCHEMA, Failure))


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several status counts, words in alphabetical order."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _parse_record(data: bytes, path: Location, schema: str, record: type) -> dict[str, Any]:
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
    """Fields of a record that hold what it cannot say: another type, no number, less than nothing or beyond all sense.

    Args:
        record: a dataclass of texts, truths, counts, seconds and dicts of them. JSON writes 5.0 as 5 in some hands.
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
