"""From a shard's rows to its published files: the footer, adoption of orphans, the receipt.

First the label file is created under a name that nobody has used, then the receipt likewise, then label files of older
generations are removed. Whoever is killed in between, comes late or loses an answer leaves nothing visible, an orphan
that the next attempt adopts by its footer's key and hash, or an older file that the next launch removes. A label file
holds nothing that varies between equal runs; a receipt tells of what lies there, read back from the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import (
    LABELS,
    RECEIPTS,
    Receipt,
    RecordInvalid,
    label_name,
    parse_name,
    parse_receipt,
    receipt_name,
    why_void,
)
from dto_pipeline.data.storage import absolute, sha256_of
from dto_pipeline.run.folder import RunDirectory, open_run, scan_run, settle_records
from dto_pipeline.run.identity import RunIdentity, identify_run, label_settings, settle_config
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.sanity import count_signs

_LOG = logging.getLogger(__name__)
LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only


class PublishError(RuntimeError):
    """Two writers left different files for one shard; trying again settles it."""


@dataclass(frozen=True)
class ShardFiles:
    """Which files of one shard are there."""

    receipt: Receipt | None  # of the newest generation that holds
    free: int  # the first generation that nobody has used
    orphan: int | None  # a generation above `receipt` with a label file and no receipt that holds
    vouched: bool  # there is a receipt beside the orphan, which does not hold: its generation is used up


def find_shard_files(
    directory: RunDirectory, identity: RunIdentity, shard: int, first: int = 0, highest: int = -1
) -> ShardFiles:
    """Look at the generations of a shard from `first` on, until one that nobody has used, past all up to `highest`.

    Of those some may have left no trace, as the label file of an attempt that died and was cleared away.
    """
    found = ShardFiles(None, first, None, False)
    keys = identity.config_hash, identity.manifest_fingerprint
    for generation in count(first):
        label_bytes = _ask_or_none(directory.store.size, label_name(shard, generation))
        data = _ask_or_none(directory.store.read, receipt_name(shard, generation))
        if label_bytes is None and data is None and generation > highest:
            return found
        try:
            receipt = None if data is None else parse_receipt(data, directory.receipt_file(shard, generation))
        except RecordInvalid:
            receipt = None
        if receipt is not None and not why_void(receipt, (shard, generation), *keys, label_bytes):
            found = ShardFiles(receipt, generation + 1, None, False)
        elif label_bytes is not None:
            found = ShardFiles(found.receipt, generation + 1, generation, data is not None)
        elif data is not None:
            found = replace(found, free=generation + 1)
    raise AssertionError("generations without end")


def list_generations(directory: RunDirectory) -> dict[int, int]:
    """shard -> the highest generation that a label file or a receipt has; shards without any but 0 are left out."""
    names = (name for folder in (LABELS, RECEIPTS) for name in directory.store.entries(folder))
    highest: dict[int, int] = {}
    for shard, generation in filter(None, map(parse_name, names)):
        if generation:
            highest[shard] = max(generation, highest.get(shard, 0))
    return highest


def lacks_receipt_only(directory: RunDirectory, shard: int) -> bool:
    """Whether labels of a shard lie there without a receipt: their process died at the very end."""
    free = next(n for n in count() if _ask_or_none(directory.store.size, receipt_name(shard, n)) is None)
    return _ask_or_none(directory.store.size, label_name(shard, free)) is not None


def shard_key(identity: RunIdentity, image_ids: Sequence[str]) -> str:
    """sha256 (hex) over all that decides a shard's bytes, and the rows' ids in order."""
    facts = [identity.config_hash, identity.manifest_fingerprint, identity.versions, list(image_ids)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def find_orphan(
    directory: RunDirectory, shard: int, generation: int, key: str, image_ids: Sequence[str]
) -> LabelTable | None:
    """The rows of a label file that somebody finished without leaving a receipt that holds.

    None unless the footer carries `key`, the rows are the right ones and their hash is the footer's.
    """
    path = directory.label_file(shard, generation)
    try:
        footer, table = read_label_metadata(path), read_labels(path)
        if footer.get("shard_key") != key or table.column("image_id").to_pylist() != list(image_ids):
            reason = "it belongs to other settings or rows"
        elif footer.get("rows_sha256") != rows_sha256(table):
            reason = "its rows are not those that were written"
        else:
            return table
    except (LabelsError, OSError) as error:
        reason = str(error)
    _LOG.warning(
        "shard %d: %s has no receipt that holds and cannot be adopted (%s); it is done again", shard, path, reason
    )
    return None


def publish_labels(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    generation: int,
    key: str,
    table: LabelTable,
    facts: Mapping[str, str],
) -> LabelTable:
    """Create a shard's label file, or take the one that another worker created meanwhile; returns its rows.

    `facts`: what the footer tells of the inputs and only the caller knows (body model, licence ...). Raises:
    PublishError where what lies there is not this shard's.
    """
    footer = {
        "config": json.dumps(label_settings(identity.config), sort_keys=True),
        "config_hash": identity.config_hash,
        "manifest_fingerprint": identity.manifest_fingerprint,
        "subset": identity.subset,
        "shard": str(shard),
        "shards": str(identity.shards),
        "images": str(table.num_rows),
        "shard_key": key,
        "rows_sha256": rows_sha256(table),
        "versions": json.dumps(identity.versions, sort_keys=True),
        "inputs": json.dumps(identity.inputs, sort_keys=True),
        **facts,
    }
    path = directory.label_file(shard, generation)
    if write_label_shard(table, path, footer):
        return table
    found = find_orphan(directory, shard, generation, key, table.column("image_id").to_pylist())
    if found is None:
        raise PublishError(f"{path} appeared meanwhile and is not what it should be; the next attempt leaves it alone")
    return found


def commit_receipt(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    generation: int,
    key: str,
    table: LabelTable,
    wall_s: float,
    stages: Mapping[str, float] = MappingProxyType({}),
    attempt: int = 1,
    adopted: bool = False,
) -> Receipt:
    """Declare a published shard done; counts come from `table`, hash and size from the file itself.

    Label files of older generations are removed; this one too where a newer one counts by now. `wall_s`, `stages`:
    seconds that the work took, in all and by stage.

    Returns:
        The receipt that counts: where another worker was first, its own.

    Raises:
        PublishError: another worker declared the generation done, and its label file is not there or another one.
    """
    images, people = count_statuses(table)
    receipt = Receipt(
        shard=shard,
        rows=table.num_rows,
        images=table.num_rows,
        persons=sum(people.values()),
        image_status=images,
        person_status=people,
        label_sha256=sha256_of(directory.label_file(shard, generation)),
        label_bytes=directory.store.size(label_name(shard, generation)),
        shard_key=key,
        config_hash=identity.config_hash,
        manifest_fingerprint=identity.manifest_fingerprint,
        signs=count_signs(table, identity.config),
        generation=generation,
        worker=process_name(),
        attempt=attempt,
        adopted=adopted,
        wall_s=round(wall_s, 6),
        finished_at=time.time(),
        stage_seconds={stage: round(seconds, 6) for stage, seconds in sorted(stages.items())},
    )
    directory.store.create(receipt_name(shard, generation), json_bytes(receipt.to_dict()))
    counting = find_shard_files(directory, identity, shard, generation).receipt
    if counting is None:
        raise PublishError(f"{directory.receipt_file(shard, generation)} is another worker's and does not hold")
    for older in range(counting.generation):
        directory.store.remove(label_name(shard, older))
    return counting


def count_statuses(table: LabelTable) -> tuple[dict[str, int], dict[str, int]]:
    """Status words of the images and of the persons of a label table, counted."""
    persons = table.column("persons").combine_chunks().flatten().field("status").to_pylist()
    images = Counter(table.column("status").to_pylist())
    return dict(sorted(images.items())), dict(sorted(Counter(persons).items()))


def _ask_or_none(ask: Callable[[str], Any], name: str) -> Any:
    """What a store answers about a name; None where there is no such file."""
    try:
        return ask(name)
    except FileNotFoundError:
        return None


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file is not the one their receipt tells of -> why. Reads all of them, for flipped bits."""
    damage = {}
    for shard, receipt in sorted(done.items()):
        path = directory.label_file(shard, receipt.generation)
        try:
            found, told = sha256_of(path), receipt.label_sha256
            if found != told:
                damage[shard] = f"the sha256 of its label file is {found[:16]}, the receipt says {told[:16]}"
                continue
            table, key = read_labels(path), read_label_metadata(path).get("shard_key")
        except (LabelsError, OSError) as error:
            damage[shard] = f"its label file cannot be read: {error}"
            continue
        if (*count_statuses(table), key) != (receipt.image_status, receipt.person_status, receipt.shard_key):
            damage[shard] = "its receipt does not count what its label file holds"
    return damage


def finish_run(
    directory: RunDirectory,
    manifest: Manifest,
    config: PipelineConfig,
    read_labels: Callable[[int], LabelTable],
    facts: dict[str, str],
    body_sha256: str,
) -> None:
    """Make a folder the finished run of a manifest, so that predictions are looked at, exported and merged as any run.

    Args:
        manifest: its rows are those of the labels, shard by shard.
        config: what readers need to know, above all the body model.
        read_labels: shard -> its label table.
        facts: what made the labels, by name; goes into the versions of run.json, so that another maker's run differs.
        body_sha256: of the body model.

    Raises:
        RunMismatch: the folder belongs to another run.
        RunLocked: somebody else is at work on it.
    """
    plain = identify_run(settle_config(config, manifest), manifest, absolute(manifest.path))
    identity = dataclasses.replace(plain, versions={**plain.versions, **facts})
    directory.create_folders()
    with directory.lock() as lock:
        identity = open_run(directory, identity, lock)
        generations = list_generations(directory)
        for shard in range(manifest.num_shards):
            standing = find_shard_files(directory, identity, shard, highest=generations.get(shard, -1))
            if standing.receipt is not None:
                continue
            started, table = time.perf_counter(), read_labels(shard)
            key = shard_key(identity, table.column("image_id").to_pylist())
            where = directory, identity, shard, standing.free, key
            table = publish_labels(*where, table, {"body_sha256": body_sha256})
            commit_receipt(*where, table, time.perf_counter() - started)
        settle_records(directory, scan_run(directory, identity))
