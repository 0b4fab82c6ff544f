"""A finished run whose labels were made elsewhere: run.json, label files and receipts around tables that exist.

So that predictions are looked at, checked, exported and merged as any run is. Knows run folders and label tables; knows
nothing of what made them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import absolute
from dto_pipeline.run.directory import RunDirectory, open_run
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.inputs import settle_config
from dto_pipeline.run.pool import process_name
from dto_pipeline.run.publishing import (
    LabelTable,
    ShardWork,
    commit_receipt,
    label_footer,
    publish_labels,
    read_valid_receipt,
    shard_key,
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
    with directory.lock():
        identity = open_run(directory, identity)
        for shard in range(manifest.num_shards):
            if read_valid_receipt(directory, identity, shard):
                continue
            started, table = time.perf_counter(), read_labels(shard)
            key = shard_key(identity, table.column("image_id").to_pylist())
            directory.label_file(shard).unlink(missing_ok=True)  # labels nobody vouches for
            publish_labels(
                directory, shard, table, label_footer(identity, shard, key, table, {"body_sha256": body_sha256})
            )
            work = ShardWork(process_name(), 1, False, round(time.perf_counter() - started, 6), time.time(), {})
            commit_receipt(directory, identity, shard, key, table, work)
