"""The manifest: everything a run takes in, one Parquet file, one row per image, shards fixed in it.

Row group k is shard k. The footer tells the dataset, the label files with sha256, the counts, the roots and a
fingerprint over what the rows say; the roots are outside the fingerprint, so a manifest means the same on another
machine. Equal inputs under equal roots give identical bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from dto_pipeline.config import shorten
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.files import json_bytes, sha256_file, sweep_abandoned
from dto_pipeline.data.manifest_findings import (
    Findings,
    findings_path,
    look_for_depth,
    note_duplicates,
    note_source,
    note_tars,
    note_unlabelled,
    open_findings,
)
from dto_pipeline.data.manifest_inputs import ManifestInputs, open_inputs
from dto_pipeline.data.manifest_report import ManifestReport
from dto_pipeline.data.manifest_rows import build_shard
from dto_pipeline.data.manifest_writer import ShardSize, describe_origin, open_manifest_writer
from dto_pipeline.data.parquet import READ_ERRORS, check_schema, footer_text, open_parquet
from dto_pipeline.data.sources.rows import NoticingSource
from dto_pipeline.data.storage import Location, as_location, base_name, beside, write_bytes
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME
from dto_pipeline.status import ImageStatus

_PARTS = 3  # last parts of a manifest's path that it may be found by after a move
_HEADER_THREADS = 16  # image headers are read waiting for the disk, not computing


class ManifestError(DtoError, ValueError):
    """A manifest that cannot be used; the message names it and the next step."""


@dataclass(frozen=True)
class Manifest:
    """An open manifest: small, picklable, holds no file handle."""

    path: Location
    fingerprint: str  # sha256 over what the rows say
    dataset: dict[str, Any]  # the description it was built from, see `data.dataset.Dataset`
    shard_sizes: list[ShardSize]
    images_root: Location
    depth_root: Location | None
    metadata: dict[str, str]  # the whole footer

    @classmethod
    def open(cls, path: Location) -> Manifest:
        """Read a manifest's footer.

        Raises:
            ManifestError: missing, truncated, not a manifest, or of another schema version.
        """
        path = as_location(path)
        if str(path).endswith((".yaml", ".yml")):
            advice = f"make its manifest first: dto manifest build {path} --data-root DIR -o FILE"
            raise ManifestError(f"{path} describes a data set; {advice}")
        with open_parquet(path, ManifestError) as file:
            footer = footer_text(file)
            if footer.get("schema") != MANIFEST_SCHEMA_NAME:
                advice = "build it again with `dto manifest build`"
                raise ManifestError(
                    f"{path} has schema {footer.get('schema')!r}; expected {MANIFEST_SCHEMA_NAME!r}, {advice}"
                )
            check_schema(path, file.schema_arrow, MANIFEST_SCHEMA, ManifestError)
            groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
        return cls._from_footer(path, footer, groups)

    @classmethod
    def _from_footer(cls, path: Location, footer: dict[str, str], groups: list[int]) -> Manifest:
        try:
            sizes = [ShardSize(*_counts(pair)) for pair in parse_json(footer["shards"])]
            roots, dataset = parse_json(footer["roots"]), parse_json(footer["dataset"])
            dataset["name"]
            images_root, depth_root = as_location(roots["images"]), roots["depth"] and as_location(roots["depth"])
            fingerprint = footer["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: footer lacks or garbles {error}; build the manifest again") from error
        if groups != [size.images for size in sizes]:
            raise ManifestError(f"{path}: {len(groups)} row groups do not match its shards; build the manifest again")
        return cls(path, fingerprint, dataset, sizes, images_root, depth_root, footer)

    @property
    def subset(self) -> str:
        return str(self.dataset["name"])

    @property
    def body(self) -> str:
        """The body model the data set's YAML names; "" = none."""
        return str(self.dataset.get("body", ""))

    @property
    def num_shards(self) -> int:
        return len(self.shard_sizes)

    @property
    def num_images(self) -> int:
        return sum(size.images for size in self.shard_sizes)

    @property
    def num_people(self) -> int:
        return sum(size.people for size in self.shard_sizes)

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one shard, `schema.MANIFEST_SCHEMA`, or some columns of it.

        Raises:
            IndexError: no such shard.
            ManifestError: the file changed or was damaged since it was opened.
        """
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard} of {self.path}; it has shards 0 .. {self.num_shards - 1}")
        try:
            with open_parquet(self.path, ManifestError, again=True) as file:
                return file.read_row_group(shard, columns=columns and list(columns))
        except READ_ERRORS as error:
            raise ManifestError(f"{self.path}, shard {shard} cannot be read ({error}); build it again") from error


def find_manifest(recorded: Location, run_dir: Location, fingerprint: str, named: Sequence[Location] = ()) -> Manifest:
    """The manifest a run was made from.

    Args:
        recorded: where run.json says it is; if it is not there, it is looked for under the last parts of that path in
            the run's folder and the folders above it, so that a run and its manifest may move together.
        run_dir: the run's folder.
        fingerprint: of the manifest, by run.json.
        named: places in place of `recorded`, one of which must be it.

    Raises:
        ManifestError: none of these is it; names the first place and what was found there.
    """
    problem = ""
    for place in named or [as_location(recorded), *_nearby(recorded, run_dir)]:
        try:
            manifest = Manifest.open(place)
        except ManifestError as error:
            problem = problem or str(error)
            continue
        if manifest.fingerprint == fingerprint:
            return manifest
        told = f"expected fingerprint {fingerprint[:16]}, found {manifest.fingerprint[:16]}"
        problem = problem or f"{place} is another manifest now, not the one of this run ({told})"
    raise ManifestError(f"{problem}; name the manifest with --manifest, or put it back")


def _nearby(recorded: Location, run_dir: Location) -> Iterator[Path]:
    """Existing files below the run's folder and those above it that are called like the end of a path."""
    recorded, run_dir = as_location(recorded), as_location(run_dir)
    if not (isinstance(recorded, Path) and isinstance(run_dir, Path)):
        return
    here = run_dir.absolute()
    for folder in (here, *here.parents):
        for parts in range(min(_PARTS, len(recorded.parts)), 0, -1):
            place = folder.joinpath(*recorded.parts[-parts:])
            if place != recorded and place.is_file():
                yield place


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


def _counts(pair: Sequence[Any]) -> list[int]:
    """Raises: ValueError where one is no count."""
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in pair):
        raise ValueError(f"shard of {shorten(pair)}")
    return list(pair)


def report_path(manifest: Location) -> Location:
    """Where the report of a manifest lies."""
    return beside(as_location(manifest), ".report.json")


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
