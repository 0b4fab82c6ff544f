"""Finished runs: their label files for exports and other readers, damage found in them, and runs made of labels that
exist already.

`finish_run` makes run.json, label files and receipts around tables from elsewhere, so that predictions are looked at,
checked, exported and merged as any run is.

    failures/shard-00042.damage.json    `dto verify` found the shard's label file damaged; the next launch looks again
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.label_files import LabelFile, RunLabels
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt, shard_name
from dto_pipeline.data.storage import absolute, as_location, sha256_of
from dto_pipeline.run.folder import (
    FAILURES,
    RunDirectory,
    RunDirectoryError,
    open_run,
    read_identity,
    scan_run,
    settle_records,
)
from dto_pipeline.run.identity import identify_run, settle_config
from dto_pipeline.run.pool import process_name
from dto_pipeline.run.publish import (
    LabelTable,
    ShardWork,
    commit_receipt,
    count_statuses,
    find_standing,
    label_footer,
    list_generations,
    publish_labels,
    shard_key,
)

DAMAGE_SCHEMA = "dto-damage/1"
_NOTE = re.compile(r"shard-(\d{5,})\.damage\.json")
_NAMED = 5  # shards an error lists


def read_run_labels(run_dir: str | Path, partial: bool = False, manifests: Sequence[str | Path] = ()) -> RunLabels:
    """The label files of a run.

    Args:
        run_dir: the run's folder.
        partial: take what is done of a run that is not finished.
        manifests: where its manifest may lie now, in place of what run.json says.

    Raises:
        RunDirectoryError: not a run, or shards have no valid receipt and `partial` is not set.
    """
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    scan = scan_run(directory, identity)
    missing = [shard for shard in range(identity.shards) if shard not in scan.done]
    if missing and not partial:
        named = ", ".join(map(str, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
        void = "".join(f"; shard {shard}: {reason}" for shard, reason in list(scan.void.items())[:_NAMED])
        raise RunDirectoryError(
            f"{run_dir} is not finished: {len(missing)} of {identity.shards} shards have no valid receipt "
            f"({named}){void}; `dto run` does what is left, --partial takes what is done"
        )
    files = [
        LabelFile(path, shard, scan.done[shard].rows, scan.done[shard].label_sha256)
        for shard, path in scan.labels.files.items()
    ]
    return RunLabels(
        name=str(run_dir),
        subset=identity.subset,
        manifest=as_location(identity.manifest_path),
        manifest_fingerprint=identity.manifest_fingerprint,
        config_hash=identity.config_hash,
        shards=identity.shards,
        files=tuple(files),
        named_manifests=tuple(map(as_location, manifests)),
    )


def finish_run(
    directory: RunDirectory,
    manifest: Manifest,
    config: PipelineConfig,
    read_labels: Callable[[int], LabelTable],
    facts: dict[str, str],
    body_sha256: str,
) -> None:
    """Make a folder the finished run of a manifest.

    Args:
        directory: the folder.
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
            standing = find_standing(directory, identity, shard, highest=generations.get(shard, -1))
            if standing.receipt is not None:
                continue
            started, table = time.perf_counter(), read_labels(shard)
            key = shard_key(identity, table.column("image_id").to_pylist())
            footer = label_footer(identity, shard, key, table, {"body_sha256": body_sha256})
            table = publish_labels(directory, shard, standing.free, table, footer)
            work = ShardWork(process_name(), 1, False, round(time.perf_counter() - started, 6), time.time(), {})
            commit_receipt(directory, identity, shard, standing.free, key, table, work)
        settle_records(directory, scan_run(directory, identity))


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file is not the one their receipt tells of -> why. Reads all of them.

    A flipped bit shows neither in size nor in footer, which is all that a launch looks at by itself.
    """
    reasons = {shard: _damage(directory, shard, receipt) for shard, receipt in sorted(done.items())}
    return {shard: reason for shard, reason in reasons.items() if reason}


def note_damage(directory: RunDirectory, shards: Iterable[int]) -> None:
    """Leave word for the next launch. Raises: OSError where the folder cannot be written."""
    for shard in shards:
        directory.store.replace(_note_name(shard), json_bytes({"schema": DAMAGE_SCHEMA, "shard": shard}))


def noted_damage(directory: RunDirectory) -> list[int]:
    """Shards that somebody found damaged since they were last done."""
    names = [_NOTE.fullmatch(name) for name in directory.store.entries(FAILURES)]
    return sorted(int(match[1]) for match in names if match)


def clear_notes(directory: RunDirectory, shards: Iterable[int]) -> None:
    """The shards have been looked at."""
    for shard in shards:
        directory.store.remove(_note_name(shard))


def _note_name(shard: int) -> str:
    return f"{FAILURES}/{shard_name(shard)}.damage.json"


def _damage(directory: RunDirectory, shard: int, receipt: Receipt) -> str:
    path = directory.label_file(shard, receipt.generation)
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
