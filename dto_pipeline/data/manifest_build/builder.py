"""A manifest built: labels, sidecar and image headers joined shard by shard, report and findings beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.files import json_bytes, sha256_file, sweep_abandoned
from dto_pipeline.data.image_index import index_images
from dto_pipeline.data.images import ImageFolder
from dto_pipeline.data.manifest import report_path
from dto_pipeline.data.manifest_build.build_report import ManifestReport
from dto_pipeline.data.manifest_build.findings import (
    SOURCE,
    Findings,
    findings_path,
    look_for_depth,
    note_shared_images,
    note_tars,
    note_unlabelled,
    open_findings,
)
from dto_pipeline.data.manifest_build.shard_rows import ManifestInputs, ShardBuilder
from dto_pipeline.data.manifest_build.writer import describe_origin, open_manifest_writer
from dto_pipeline.data.recognise import FileKind, UnknownFile, recognise
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.data.storage import Location, as_location, base_name, fetch, write_bytes
from dto_pipeline.data.tars import place_in_tars, tar_index_path
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
        LabelFileError, TarIndexError, StorageError, ManifestError: a file is missing or cannot be used.
    """
    out = as_location(out)
    sweep_abandoned(out if isinstance(out, Path) else None)
    report = ManifestReport(dataset=dataset.name, findings_file=base_name(findings_path(out)))
    with ExitStack() as stack:
        inputs = open_inputs(dataset, out, stack, progress)
        findings = stack.enter_context(open_findings(out))
        report.also_in = note_shared_images(findings, inputs.index, [as_location(other) for other in against])
        for finding in inputs.source.findings:
            findings.add(SOURCE, finding.image, finding.reason)
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


def open_inputs(dataset: Dataset, out: Location, stack: ExitStack, progress: bool) -> ManifestInputs:
    """Open what a description names, wherever it lies; `stack` removes copies of what lies behind URIs.

    Raises:
        LabelFileError, TarIndexError, StorageError: a file is missing, cannot be used, or is of another kind than the
            description says.
    """
    places = (dataset.place("predictions"), dataset.sidecar_path)
    predictions, sidecar_file = (None if place is None else fetch(place, stack, LabelFileError) for place in places)
    labels = fetch(dataset.labels_path, stack, LabelFileError)
    try:
        kind = recognise(labels)
    except UnknownFile:
        kind = None  # its reader says more
    found = "labels" if kind is FileKind.DTO_LABELS else str(kind)
    if kind is not None and found != dataset.source:
        advice = f"set source: {found} (--source {found})" if found in SOURCES else "no source reads that"
        raise LabelFileError(
            f"{labels} holds {kind.words}, and the description says source: {dataset.source}; {advice}"
        )
    options = dataclasses.replace(dataset.source_options, predictions=predictions)
    source = SOURCES[dataset.source](labels, options)
    sidecar = Sidecar(sidecar_file, source.num_rows)
    index = index_images(source, dataset.key_parts)
    if dataset.images_in == "folder":
        index = index.with_prefixes(dataset.image_prefixes)
        return ManifestInputs(dataset, source, sidecar, ImageFolder(dataset.images_root), index)
    placed = place_in_tars(index, dataset.images_root, dataset.key_parts, tar_index_path(out), progress)
    return ManifestInputs(dataset, source, sidecar, placed.images, placed.index, placed)


def _write_manifest(
    inputs: ManifestInputs, out: Location, report: ManifestReport, findings: Findings, progress: bool
) -> None:
    total, root = inputs.index.num_images, inputs.dataset.root
    with (
        open_manifest_writer(out) as writer,
        ThreadPoolExecutor(_HEADER_THREADS) as pool,
        tqdm(total=total, unit="image", desc=inputs.dataset.name, disable=not progress) as bar,
    ):
        shards = ShardBuilder(inputs, report, findings, pool, bar.update)
        for shard in range(-(-total // inputs.dataset.shard_images)):
            writer.add(shards.build(shard))
        report.fingerprint = writer.fingerprint
        files = []
        for path in [*inputs.source.files, *([inputs.sidecar.path] if inputs.sidecar.path else [])]:
            inside = isinstance(root, Path) and path.is_relative_to(root)
            name = str(path.relative_to(root)) if inside else path.name
            files.append({"file": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
        writer.finish(describe_origin(inputs.dataset, files))
