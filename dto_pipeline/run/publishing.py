"""From a shard's rows to its published files: the footer, adoption of orphans, the receipt.

Knows label tables and the run's folder; knows nothing of models, batches or Ray. A label file never holds anything that
varies between equal runs: no clock, no worker, no path of a machine.

The same order everywhere: the label file is created under its final name if that is free (local: written beside it,
synced, linked; object stores: one conditional PUT, which is whole or absent), then the receipt likewise. What may
happen in between, on any store:

- killed before the label file is complete: nothing is visible, the shard is pending;
- killed between the two: the label file is an orphan; its footer's key and the hash of its rows let the next try adopt
  it without computing anything;
- two writers, or a zombie that comes late: the second one's file is refused. Both would have been the same bytes, and
  the receipt is of what lies there: size and sha256 are read back from the store, never taken from memory;
- an answer lost on the way: the PUT sent again finds its own object, which is compared by key and adopted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dto_pipeline.data.digest import TableDigest
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.storage import join_location
from dto_pipeline.data.store import sha256_of
from dto_pipeline.run.directory import (
    LABELS,
    RunDirectory,
    label_name,
    publish_receipt,
    receipt_name,
    shard_name,
    why_void,
)
from dto_pipeline.run.identity import RunIdentity, label_settings
from dto_pipeline.run.receipt import Receipt, RecordInvalid, read_receipt
from dto_pipeline.run.sanity import count_signs

_LOG = logging.getLogger(__name__)
LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only


class PublishError(RuntimeError):
    """Two writers left different files for one shard; trying again settles it."""


@dataclass(frozen=True)
class ShardWork:
    """What varies between two equal runs of a shard, for its receipt."""

    worker: str
    attempt: int
    adopted: bool
    wall_s: float
    finished_at: float
    stage_seconds: dict[str, float]


def shard_key(identity: RunIdentity, image_ids: Sequence[str]) -> str:
    """sha256 (hex) over all that decides a shard's bytes, and the rows' ids in order.

    The config's hash covers the content of body model and networks.
    """
    facts = [identity.config_hash, identity.manifest_fingerprint, identity.versions, list(image_ids)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def label_footer(
    identity: RunIdentity, shard: int, key: str, table: LabelTable, facts: dict[str, str]
) -> dict[str, str]:
    """Text of a label file's footer; `facts` adds what only the caller knows (body model, licence ...)."""
    return {
        "config": json.dumps(label_settings(identity.config), sort_keys=True),
        "config_hash": identity.config_hash,
        "manifest_fingerprint": identity.manifest_fingerprint,
        "subset": identity.subset,
        "shard": str(shard),
        "shards": str(identity.shards),
        "images": str(table.num_rows),
        "shard_key": key,
        "rows_sha256": _rows_sha256(table),
        "versions": json.dumps(identity.versions, sort_keys=True),
        "inputs": json.dumps(identity.inputs, sort_keys=True),
        **facts,
    }


def read_valid_receipt(directory: RunDirectory, identity: RunIdentity, shard: int) -> Receipt | None:
    """The receipt of a shard if it has one that holds."""
    try:
        receipt = read_receipt(directory.receipt_file(shard))
        label_bytes = directory.store.size(label_name(shard))
    except (FileNotFoundError, RecordInvalid):
        return None
    return None if why_void(receipt, shard, identity, label_bytes) else receipt


def find_orphan(directory: RunDirectory, shard: int, key: str, image_ids: Sequence[str]) -> LabelTable | None:
    """The rows of a label file that somebody finished without leaving a receipt.

    Returns:
        The table if the footer carries `key`, the rows are the right ones and their hash is the footer's; None where
        there is no file, or one that is not ours (it is then removed, so that the shard can be published).
    """
    path, store = directory.label_file(shard), directory.store
    try:
        store.size(label_name(shard))
    except FileNotFoundError:
        return None
    try:
        footer, table = read_label_metadata(path), read_labels(path)
        if footer.get("shard_key") != key or table.column("image_id").to_pylist() != list(image_ids):
            reason = "it belongs to other settings or rows"
        elif footer.get("rows_sha256") != _rows_sha256(table):
            reason = "its rows are not those that were written"
        else:
            return table
    except (LabelsError, OSError) as error:
        reason = str(error)
    _LOG.warning("shard %d: %s has no receipt and cannot be adopted (%s); it is replaced", shard, path, reason)
    store.remove(label_name(shard))
    return None


def publish_labels(directory: RunDirectory, shard: int, table: LabelTable, footer: dict[str, str]) -> None:
    """Write a shard's label file if it is not there.

    Raises:
        PublishError: another worker published a file that is not this shard's.
    """
    path = directory.label_file(shard)
    created = write_label_shard(table, path, footer)
    if not created and read_label_metadata(path).get("shard_key") != footer["shard_key"]:
        raise PublishError(f"{path} appeared meanwhile and belongs to other settings; it is replaced at the next try")


def commit_receipt(
    directory: RunDirectory, identity: RunIdentity, shard: int, key: str, table: LabelTable, work: ShardWork
) -> Receipt:
    """Declare a published shard done; counts come from `table`, hash and size from the file itself."""
    return publish_receipt(directory, _make_receipt(directory, identity, shard, key, table, work, label_name(shard)))


def stage_repair(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    table: LabelTable,
    footer: dict[str, str],
    work: ShardWork,
) -> Receipt:
    """Write another version of a finished shard's labels aside. Nothing changes before the driver commits it.

    So a zombie, or a second worker at the same shard, can only leave a file that nobody asks for. What cannot differ
    between two workers of one try is in the footer; their files have names of their own, which their receipts tell.

    Returns:
        The receipt the shard would have; `commit_repair` takes it.
    """
    name = staged_label_name(shard, _token(shard, work.worker, work.attempt, work.finished_at))
    place = join_location(directory.root, name)
    write_label_shard(table, place, footer)
    return _make_receipt(directory, identity, shard, footer["shard_key"], table, work, name)


def commit_repair(directory: RunDirectory, receipt: Receipt) -> bool:
    """Put what `stage_repair` wrote in the place of the shard's labels. The driver does this, under its lock.

    Returns:
        True if the shard changed; False if the new file is the old one, or the receipt that of the shard as it is.
    """
    token = _token(receipt.shard, receipt.worker, receipt.attempt, receipt.finished_at)
    try:
        changed = read_receipt(directory.receipt_file(receipt.shard)).label_sha256 != receipt.label_sha256
    except (FileNotFoundError, RecordInvalid):
        changed = True  # lost meanwhile: it is written anew with the labels
    if changed:
        replace_shard(directory, receipt, token)
    directory.store.remove(staged_label_name(receipt.shard, token))
    return changed


def replace_shard(directory: RunDirectory, receipt: Receipt, token: str) -> None:
    """Put a staged label file in the place of a finished shard's, with its receipt. For the driver, under its lock.

    The old receipt goes first: whatever is killed in between, an old or a new file stands whole and is adopted. The
    lock is asked for before each write, because a driver may be frozen between two of them and wake when another one
    has the run. What remains is a freeze between question and write: stores have no write that holds only under a
    lease. A label file that is put there so late lies beside the other driver's receipt, which its size or `dto verify`
    gives away.
    """
    store = directory.store
    directory.check_lock()  # whoever took over has swept the staged file
    data = store.read(staged_label_name(receipt.shard, token))
    directory.check_lock()
    store.remove(receipt_name(receipt.shard))
    directory.check_lock()
    store.replace(label_name(receipt.shard), data)
    directory.check_lock()
    store.replace(receipt_name(receipt.shard), json_bytes(receipt.to_dict()))


def staged_label_name(shard: int, token: str) -> str:
    """Where a worker leaves a label file that the driver puts in the place of another; swept like all leftovers."""
    return f"{LABELS}/.{shard_name(shard)}.parquet.tmp-{token}"


def _token(shard: int, worker: str, attempt: int, finished_at: float) -> str:
    """Name of a staged file, from what its receipt holds; 32 hexadecimal digits, so that it is swept as a leftover."""
    return hashlib.sha256(json.dumps([shard, worker, attempt, finished_at]).encode()).hexdigest()[:32]


def _make_receipt(
    directory: RunDirectory,
    identity: RunIdentity,
    shard: int,
    key: str,
    table: LabelTable,
    work: ShardWork,
    name: str,
) -> Receipt:
    """Receipt of the label file `name` of the run, whose rows are `table`."""
    images, people = count_statuses(table)
    return Receipt(
        shard=shard,
        rows=table.num_rows,
        images=table.num_rows,
        persons=sum(people.values()),
        image_status=images,
        person_status=people,
        label_sha256=sha256_of(join_location(directory.root, name)),
        label_bytes=directory.store.size(name),
        shard_key=key,
        config_hash=identity.config_hash,
        manifest_fingerprint=identity.manifest_fingerprint,
        worker=work.worker,
        attempt=work.attempt,
        adopted=work.adopted,
        wall_s=work.wall_s,
        finished_at=work.finished_at,
        stage_seconds=work.stage_seconds,
        signs=count_signs(table, identity.config),
    )


def _rows_sha256(table: LabelTable) -> str:
    digest = TableDigest()
    digest.update(table)
    return digest.hexdigest()


def count_statuses(table: LabelTable) -> tuple[dict[str, int], dict[str, int]]:
    """Status words of the images and of the persons of a label table, counted."""
    persons = table.column("persons").combine_chunks().flatten().field("status").to_pylist()
    images = Counter(table.column("status").to_pylist())
    return dict(sorted(images.items())), dict(sorted(Counter(persons).items()))
