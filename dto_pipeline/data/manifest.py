"""The manifest: everything a run takes in, one Parquet file, one row per image, shards fixed in it.

Row group k is shard k. The footer tells the dataset, the label files with sha256, the counts, the roots and a
fingerprint over what the rows say; the roots are outside the fingerprint, so a manifest means the same on another
machine. Equal inputs under equal roots give identical bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dto_pipeline import __version__
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.digest import TableDigest
from dto_pipeline.data.files import commit_over, sha256_file, staged, write_json_atomic
from dto_pipeline.data.image_index import index_images
from dto_pipeline.data.images import ImageFolder
from dto_pipeline.data.manifest_report import ManifestReport
from dto_pipeline.data.manifest_rows import ManifestInputs, build_shard
from dto_pipeline.data.parquet import READ_ERRORS, check_schema, footer_text, open_parquet, writer_settings
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.errors import DtoError
from dto_pipeline.schema import COORDINATES, MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME

_HEADER_THREADS = 16  # image headers are read waiting for the disk, not computing


class ManifestError(DtoError, ValueError):
    """A manifest that cannot be used; the message names it and the next step."""


class ShardSize(NamedTuple):
    """How much work a shard is."""

    images: int
    people: int


@dataclass(frozen=True)
class Manifest:
    """An open manifest: small, picklable, holds no file handle."""

    path: Path
    fingerprint: str  # sha256 over what the rows say
    dataset: dict[str, Any]  # the description it was built from, see `data.dataset.Dataset`
    shard_sizes: list[ShardSize]
    images_root: Path
    depth_root: Path | None
    metadata: dict[str, str]  # the whole footer

    @classmethod
    def open(cls, path: str | Path) -> Manifest:
        """Read a manifest's footer.

        Raises:
            ManifestError: missing, truncated, not a manifest, or of another schema version.
        """
        path = Path(path)
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
    def _from_footer(cls, path: Path, footer: dict[str, str], groups: list[int]) -> Manifest:
        try:
            sizes = [ShardSize(*pair) for pair in json.loads(footer["shards"])]
            roots, dataset = json.loads(footer["roots"]), json.loads(footer["dataset"])
            images_root, depth_root = Path(roots["images"]), roots["depth"] and Path(roots["depth"])
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
    def num_shards(self) -> int:
        return len(self.shard_sizes)

    @property
    def num_images(self) -> int:
        return sum(size.images for size in self.shard_sizes)

    @property
    def num_people(self) -> int:
        return sum(size.people for size in self.shard_sizes)

    def read_shard(self, shard: int) -> pa.Table:
        """Rows of one shard, `schema.MANIFEST_SCHEMA`.

        Raises:
            IndexError: no such shard.
            ManifestError: the file changed or was damaged since it was opened.
        """
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard} of {self.path}; it has shards 0 .. {self.num_shards - 1}")
        try:
            with open_parquet(self.path, ManifestError) as file:
                return file.read_row_group(shard)
        except READ_ERRORS as error:
            raise ManifestError(f"{self.path}, shard {shard} cannot be read ({error}); build it again") from error


def build_manifest(dataset: Dataset, out: Path, progress: bool = True) -> ManifestReport:
    """Join labels, sidecar and image headers into a manifest, shard by shard, and write its report beside it.

    Args:
        dataset: what to build from.
        out: the manifest's file, for example insta1.parquet; replaced if it exists. The report becomes
            insta1.report.json.
        progress: show a progress bar on stderr.

    Raises:
        LabelFileError, SidecarError: a whole input file is missing or cannot be used.
    """
    report = ManifestReport(dataset=dataset.name)
    with ExitStack() as stack:
        source = stack.enter_context(SOURCES[dataset.source](dataset.labels_path))
        sidecar = stack.enter_context(Sidecar(dataset.sidecar_path, source.num_rows))
        images, index = ImageFolder(dataset.images_root), index_images(source, dataset.key_parts)
        inputs = ManifestInputs(dataset, source, sidecar, images, index)
        files = [*source.files, *([sidecar.path] if sidecar.path else [])]
        _write_manifest(inputs, out, report, files, progress)
    write_json_atomic(report_path(out), report.to_json())
    return report


def report_path(manifest: Path) -> Path:
    """Where the report of a manifest lies."""
    return manifest.with_suffix(".report.json")


def _write_manifest(
    inputs: ManifestInputs, out: Path, report: ManifestReport, files: list[Path], progress: bool
) -> None:
    digest, sizes = TableDigest(), []
    with staged(out) as temporary:
        with pq.ParquetWriter(temporary, MANIFEST_SCHEMA, **writer_settings(MANIFEST_SCHEMA)) as writer:
            for table in _shard_tables(inputs, report, progress):
                digest.update(table)
                sizes.append(ShardSize(table.num_rows, int(table["num_persons"].to_numpy().sum())))
                writer.write_table(table, row_group_size=table.num_rows)
            report.fingerprint = digest.hexdigest()
            writer.add_key_value_metadata(_footer(inputs.dataset, report, sizes, files))
        commit_over(temporary, out)


def _shard_tables(inputs: ManifestInputs, report: ManifestReport, progress: bool) -> Iterator[pa.Table]:
    total = inputs.index.num_images
    with (
        ThreadPoolExecutor(_HEADER_THREADS) as pool,
        tqdm(total=total, unit="image", desc=inputs.dataset.name, disable=not progress) as bar,
    ):
        for shard in range(inputs.num_shards):
            yield build_shard(inputs, shard, pool, report, bar.update)


def _footer(dataset: Dataset, report: ManifestReport, sizes: list[ShardSize], files: list[Path]) -> Mapping[str, str]:
    """Text of the footer, in a fixed order."""
    facts: dict[str, Any] = {
        "counts": {"images": report.images, "persons": report.persons, "shards": report.shards},
        "dataset": dataset.describe(),
        "label_files": [
            {"file": str(path.relative_to(dataset.root)), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in files
        ],
        "roots": {"images": str(dataset.images_root), "depth": dataset.depth_root and str(dataset.depth_root)},
        "shards": sizes,
    }
    texts = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
    texts.update(schema=MANIFEST_SCHEMA_NAME, pipeline_version=__version__, coordinates=COORDINATES)
    texts["fingerprint"] = report.fingerprint
    return dict(sorted(texts.items()))
