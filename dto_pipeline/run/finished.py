"""Finished runs: their label files for exports and training, damage found in them, and runs made of ready labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.label_files import LabelFile, RunLabels
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.data.storage import absolute, as_location, sha256_of
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, open_run, read_identity, scan_run, settle_records
from dto_pipeline.run.identity import identify_run, settle_config
from dto_pipeline.run.publish import (
    LabelTable,
    commit_receipt,
    count_statuses,
    find_standing,
    label_footer,
    list_generations,
    publish_labels,
    shard_key,
)

_NAMED = 5  # shards an error lists


def read_run_labels(run_dir: str | Path, partial: bool = False, manifests: Sequence[str | Path] = ()) -> RunLabels:
    """The label files of a run, for exports and training.

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
    files = scan.labels.files.items()
    return RunLabels(
        name=str(run_dir),
        subset=identity.subset,
        manifest=as_location(identity.manifest_path),
        manifest_fingerprint=identity.manifest_fingerprint,
        config_hash=identity.config_hash,
        shards=identity.shards,
        files=tuple(LabelFile(path, n, scan.done[n].rows, scan.done[n].label_sha256) for n, path in files),
        named_manifests=tuple(map(as_location, manifests)),
    )


def find_damage(directory: RunDirectory, done: Mapping[int, Receipt]) -> dict[int, str]:
    """Shards whose label file is not the one their receipt tells of -> why. Reads all of them.

    A flipped bit shows neither in size nor in footer, which is all that a launch looks at by itself.
    """
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
            spent = time.perf_counter() - started
            commit_receipt(directory, identity, shard, standing.free, key, table, spent)
        settle_records(directory, scan_run(directory, identity))
