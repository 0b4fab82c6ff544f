"""A manifest built: labels, sidecar and image headers joined shard by shard, report and findings beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.files import json_bytes, sha256_file, sweep_abandoned
from dto_pipeline.data.manifest import report_path
from dto_pipeline.data.manifest_build.build_inputs import ManifestInputs, open_inputs
from dto_pipeline.data.manifest_build.build_report import ManifestReport
from dto_pipeline.data.manifest_build.findings import (
    Findings,
    findings_path,
    look_for_depth,
    note_duplicates,
    note_source,
    note_tars,
    note_unlabelled,
    open_findings,
)
from dto_pipeline.data.manifest_build.shard_rows import build_shard
from dto_pipeline.data.manifest_build.writer import describe_origin, open_manifest_writer
from dto_pipeline.data.sources.rows import NoticingSource
from dto_pipeline.data.storage import Location, as_location, base_name, write_bytes
from dto_pipeline.status import ImageStatus

_HEADER_THREADS = 16  # image headers are read waiting for the disk, not computing


def build_manifest(
    dataset: Dataset,
    out: Location,
    progress: bool = True,
    against: Sequence[Location] = (),
    unlabelled: bool = True,
) -> ManifestReport:
    """Join labels, sidecar and image headers into a manifest, shard by shard; its report and findings lie beside it.

    Args:
        dataset: what to build from.
        out: the manifest's file or URI.
        progress: show a progress line.
        against: other manifests whose images are compared with these (insta1 and insta2 overlap).
        unlabelled: list images that no label names, which walks through the whole images folder.

    Raises:
        LabelFileError, SidecarError, TarIndexError, StorageError, FindingsError: a file is missing or cannot be used.
    """
    out = as_location(out)
    sweep_abandoned(out if isinstance(out, Path) else None)
    report = ManifestReport(dataset=dataset.name, findings_file=base_name(findings_path(out)))
    with ExitStack() as stack:
        inputs = open_inputs(dataset, out, stack, progress)
        findings = stack.enter_context(open_findings(out))
        report.also_in = note_duplicates(findings, inputs.index, [as_location(other) for other in against])
        if isinstance(inputs.source, NoticingSource):
            note_source(findings, inputs.source.findings)
        if inputs.placement is not None:
            note_tars(findings, inputs.placement)
        _write_manifest(inputs, out, report, findings, progress)
        if dataset.depth_root is not None:
            looked = look_for_depth(inputs.index, dataset.depth_root, dataset.depth_suffix)
            report.depth_looked, report.depth_missing, example = looked
            if example:
                report.examples[ImageStatus.DEPTH_MISSING] = example
        if unlabelled:
            note_unlabelled(findings, inputs.index, dataset.images_root, inputs.placement)
        report.findings = findings.counts
    write_bytes(report_path(out), json_bytes(report.to_json()))
    return report


def _write_manifest(
    inputs: ManifestInputs, out: Location, report: ManifestReport, findings: Findings, progress: bool
) -> None:
    with open_manifest_writer(out) as writer:
        for table in _shard_tables(inputs, report, findings, progress):
            writer.add(table)
        report.fingerprint = writer.fingerprint
        files = [
            {"file": _shown(path, inputs.dataset.root), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in inputs.files
        ]
        writer.finish(describe_origin(inputs.dataset, files))


def _shard_tables(
    inputs: ManifestInputs, report: ManifestReport, findings: Findings, progress: bool
) -> Iterator[pa.Table]:
    total = inputs.index.num_images
    with (
        ThreadPoolExecutor(_HEADER_THREADS) as pool,
        tqdm(total=total, unit="image", desc=inputs.dataset.name, disable=not progress) as bar,
    ):
        for shard in range(inputs.num_shards):
            yield build_shard(inputs, shard, pool, report, findings, bar.update)


def _shown(path: Path, root: Location) -> str:
    """An input file as the footer calls it: relative to the data root, or by its name where it lies elsewhere."""
    inside = isinstance(root, Path) and path.is_relative_to(root)
    return str(path.relative_to(root)) if inside else path.name
