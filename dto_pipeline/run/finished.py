"""A run's label files as its receipts vouch for them: what exports and other readers of finished runs start from.

Reads run.json, receipts and the sizes of label files; opens no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dto_pipeline.data.exports.inputs import LabelFile, RunLabels
from dto_pipeline.data.storage import as_location
from dto_pipeline.run.directory import RunDirectory, RunDirectoryError, read_identity, scan_run

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
        LabelFile(directory.label_file(shard), shard, receipt.rows, receipt.label_sha256)
        for shard, receipt in sorted(scan.done.items())
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
