"""Damage that a file's size and footer do not show: label files read again and compared with their receipts.

A start looks at sizes and footers, which costs nothing; a flipped bit needs the whole file. Knows the run's folder;
writes nothing (`directory.settle_records` takes away what is damaged, then the shards are done again).
"""

from __future__ import annotations

from collections.abc import Mapping

from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.store import sha256_of
from dto_pipeline.run.directory import RunDirectory
from dto_pipeline.run.publishing import count_statuses
from dto_pipeline.run.receipt import Receipt


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file is not the one their receipt tells of -> why. Reads all of them."""
    reasons = {shard: _damage(directory, shard, receipt) for shard, receipt in sorted(done.items())}
    return {shard: reason for shard, reason in reasons.items() if reason}


def _damage(directory: RunDirectory, shard: int, receipt: Receipt) -> str:
    path = directory.label_file(shard)
    try:
        found = sha256_of(path)
        if found != receipt.label_sha256:
            return f"the sha256 of its label file is {found[:16]}, the receipt says {receipt.label_sha256[:16]}"
        table, key = read_labels(path), read_label_metadata(path).get("shard_key")
    except (LabelsError, OSError) as error:
        return f"its label file cannot be read: {error}"
    if (*count_statuses(table), key) != (receipt.image_status, receipt.person_status, receipt.shard_key):
        return "its receipt does not count what its label file holds"
    return ""
