"""Publish a shard: the label file with its footer, then the receipt; adopt label files without a receipt.

Each file is created under a name that was never used; then label files of older generations are removed. A process
that is killed in between leaves nothing visible, or a label file that the next attempt adopts by the key and hash in
its footer, or an older file that the next launch removes. So does a process that is late, or that gets no answer from
the store. Equal runs have equal label files; a receipt describes the file as read back from the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import (
    Receipt,
    RecordInvalid,
    label_name,
    parse_receipt,
    receipt_name,
    why_void,
)
from dto_pipeline.data.storage import sha256_of
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import LabelTable, RunDirectory, count_statuses
from dto_pipeline.run.identity import RunIdentity, identify_run, label_settings, settle_config
from dto_pipeline.run.lease import DriverLock, process_name
from dto_pipeline.run.sanity import count_signs

_LOG = logging.getLogger(__name__)


class PublishError(RuntimeError):
    """Two workers wrote different files for one generation of a shard; another attempt uses the next generation."""


@dataclass(frozen=True)
class ShardFiles:
    """Which files of one shard exist."""

    receipt: Receipt | None  # the valid one of the newest generation
    free: int  # the first generation that nobody has used
    orphan: int | None  # a generation above `receipt` with a label file and no receipt


def find_shard_files(
    directory: RunDirectory, identity: RunIdentity, shard: int, first: int = 0, highest: int = -1
) -> ShardFiles:
    """Look at the generations of a shard, from `first` up to an unused one above `highest`.

    Generations up to `highest` may have no files: the label file of an attempt that died was removed.
    """
    found = ShardFiles(None, first, None)
    keys = identity.config_hash, identity.manifest_fingerprint
    for generation in count(first):
        label_bytes = _or_none(directory.store.size, label_name(shard, generation))
        data = _or_none(directory.store.read, receipt_name(shard, generation))
        if label_bytes is None and data is None and generation > highest:
            return found
        try:
            receipt = None if data is None else parse_receipt(data, directory.receipt_file(shard, generation))
        except RecordInvalid:
            receipt = None
        if receipt is not None and not why_void(receipt, (shard, generation), *keys, label_bytes):
            found = ShardFiles(receipt, generation + 1, None)
        elif label_bytes is not None or data is not None:
            found = ShardFiles(found.receipt, generation + 1, generation if data is None else None)
    raise AssertionError("generations without end")


def shard_key(identity: RunIdentity, image_ids: Sequence[str]) -> str:
    """sha256 (hex) over everything that decides a shard's bytes, and the row ids in order."""
    facts = [identity.config_hash, identity.manifest_fingerprint, identity.versions, list(image_ids)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _image_ids(table: LabelTable) -> list[str]:
    ids: list[str] = table.column("image_id").to_pylist()
    return ids


def find_orphan(
    directory: RunDirectory, identity: RunIdentity, shard: int, generation: int, image_ids: Sequence[str]
) -> LabelTable | None:
    """Rows of a label file without a receipt; None unless key, rows and their hash are those of this shard."""
    path = directory.label_file(shard, generation)
    try:
        footer, table = read_label_metadata(path), read_labels(path)
        if footer.get("shard_key") != shard_key(identity, image_ids) or _image_ids(table) != list(image_ids):
            reason = "it belongs to other settings or rows"
        elif footer.get("rows_sha256") != rows_sha256(table):
            reason = "its rows are not those that were written"
        else:
            return table
    except (LabelsError, OSError) as error:
        reason = str(error)
    message = "shard %d: %s has no receipt and cannot be adopted (%s); it is done again"
    _LOG.warning(message, shard, path, reason)
    return None


def publish_labels(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    generation: int,
    table: LabelTable,
    facts: Mapping[str, str],
) -> LabelTable:
    """Create a shard's label file, or take the one that another worker created meanwhile; returns its rows.

    `facts`: what the footer says about inputs (body model, licence ...). Raises: PublishError if the file that exists
    is not this shard's.
    """
    ids = _image_ids(table)
    footer = {
        "config": json.dumps(label_settings(identity.config), sort_keys=True),
        "config_hash": identity.config_hash,
        "manifest_fingerprint": identity.manifest_fingerprint,
        "subset": identity.subset,
        "shard": str(shard),
        "shards": str(identity.shards),
        "images": str(table.num_rows),
        "shard_key": shard_key(identity, ids),
        "rows_sha256": rows_sha256(table),
        "versions": json.dumps(identity.versions, sort_keys=True),
        "inputs": json.dumps(identity.inputs, sort_keys=True),
        **facts,
    }
    path = directory.label_file(shard, generation)
    if write_label_shard(table, path, footer):
        return table
    found = find_orphan(directory, identity, shard, generation, ids)
    if found is None:
        raise PublishError(f"{path} was created meanwhile with other content; the next attempt uses another name")
    return found


def commit_receipt(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    generation: int,
    table: LabelTable,
    wall_s: float,
    stages: Mapping[str, float] = MappingProxyType({}),
    attempt: int = 1,
    adopted: bool = False,
) -> Receipt:
    """Declare a published shard done; counts come from `table`, hash and size from the file itself.

    Then remove label files of older generations, or this one if a newer one counts by now. `wall_s`, `stages`: seconds
    of the work, in all and by stage.

    Returns:
        The receipt that counts: another worker's if it was first.

    Raises:
        PublishError: another worker declared this generation done, and its receipt is not valid.
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
        shard_key=shard_key(identity, _image_ids(table)),
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
        raise PublishError(f"{directory.receipt_file(shard, generation)} is another worker's and not valid")
    for older in range(counting.generation):
        directory.store.remove(label_name(shard, older))
    return counting


def _or_none(ask: Callable[[str], Any], name: str) -> Any:
    """The store's answer about a file; None if it does not exist."""
    try:
        return ask(name)
    except FileNotFoundError:
        return None


def finish_run(
    directory: RunDirectory,
    lock: DriverLock,
    manifest: Manifest,
    config: PipelineConfig,
    read_labels: Callable[[int], LabelTable],
    facts: dict[str, str],
    body_sha256: str,
) -> None:
    """Make a folder the finished run of a manifest, so that all verbs read predictions like any run.

    Args:
        lock: of the folder, held.
        manifest: its rows are those of the labels, shard by shard.
        config: options that readers need, above all the body model.
        read_labels: shard -> its label table.
        facts: versions of run.json that identify what made the labels.
        body_sha256: of the body model.

    Raises: RunMismatch: the folder belongs to another run.
    """
    plain = identify_run(settle_config(config, manifest), manifest)
    identity = dataclasses.replace(plain, versions={**plain.versions, **facts})
    identity = files.open_run(directory, identity, lock)
    for shard in range(manifest.num_shards):
        found = find_shard_files(directory, identity, shard)
        if found.receipt is None:
            started, where = time.perf_counter(), (directory, identity, shard, found.free)
            table = publish_labels(*where, read_labels(shard), {"body_sha256": body_sha256})
            commit_receipt(*where, table, time.perf_counter() - started)
    files.remove_surplus(directory, files.scan_run(directory, identity))
