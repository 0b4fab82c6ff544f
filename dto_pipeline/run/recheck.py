"""Damage that a file's size and footer do not show: label files read again and compared with their receipts.

A start looks at sizes and footers, which costs nothing; a flipped bit needs the whole file. `dto verify` reads them all
and leaves a note of each shard that it found damaged; the next start reads these again, or all files where it is asked
to. What it finds itself counts, never the note. `directory.settle_records` then takes away what is damaged, and the
shards are done again.

    failures/shard-00042.damage.json    somebody found the shard's files damaged
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.store import sha256_of
from dto_pipeline.run.directory import FAILURES, RunDirectory, shard_name
from dto_pipeline.run.publishing import count_statuses
from dto_pipeline.run.receipt import Receipt

DAMAGE_SCHEMA = "dto-damage/1"
_NOTE = re.compile(r"shard-(\d{5,})\.damage\.json")


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file is not the one their receipt tells of -> why. Reads all of them."""
    reasons = {shard: _damage(directory, shard, receipt) for shard, receipt in sorted(done.items())}
    return {shard: reason for shard, reason in reasons.items() if reason}


def note_damage(directory: RunDirectory, shards: Iterable[int]) -> None:
    """Leave word for the next start. Raises: OSError where the folder cannot be written."""
    for shard in shards:
        directory.store.replace(_note_name(shard), json_bytes({"schema": DAMAGE_SCHEMA, "shard": shard}))


def noted_damage(directory: RunDirectory) -> list[int]:
    """Shards that somebody found damaged since they were last done."""
    names = [_NOTE.fullmatch(name) for name in directory.store.entries(FAILURES)]
    return sorted(int(match[1]) for match in names if match)


def clear_notes(directory: RunDirectory, shards: Iterable[int]) -> None:
    """The shards have been looked at. Call it under the lock."""
    for shard in shards:
        directory.check_lock()
        directory.store.remove(_note_name(shard))


def _note_name(shard: int) -> str:
    return f"{FAILURES}/{shard_name(shard)}.damage.json"


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
