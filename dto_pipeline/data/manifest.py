"""The manifest: the whole input of a run in one Parquet file, one row per image, cut into shards.

Row group k is shard k. The footer holds the dataset, the label files with sha256, the counts, the roots and a
fingerprint of the rows; the roots are not part of the fingerprint, so that it is the same on every machine. Equal
inputs under equal roots give identical bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dto_pipeline.config_tree import shorten
from dto_pipeline.data.parquet import READ_ERRORS, check_file, footer_text, open_parquet
from dto_pipeline.data.storage import Location, as_location, beside, exists
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME

_SCHEMA_NAME = MANIFEST_SCHEMA_NAME.partition("/")[0]  # without the version
_PARTS = 3  # a manifest that was moved is found by at most so many last parts of its path


class ManifestError(DtoError, ValueError):
    """A manifest that cannot be used; the message names it and the next step."""


class ShardSize(NamedTuple):
    """Counts of one shard."""

    images: int
    people: int


@dataclass(frozen=True)
class Manifest:
    """What the footer of a manifest says; small, can be pickled, holds no open file."""

    path: Location
    fingerprint: str  # sha256 of the rows' contents
    dataset: dict[str, Any]  # the description it was built from, see `data.dataset.Dataset`
    shard_sizes: list[ShardSize]
    images_root: Location
    depth_root: Location | None
    metadata: dict[str, str]  # the whole footer

    @classmethod
    def open(cls, path: Location) -> Manifest:
        """Read a manifest's footer. Raises: ManifestError where it is missing, damaged, or of another schema."""
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
            check_file(path, file, MANIFEST_SCHEMA, ManifestError)
            groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
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
        """The body model that the data set's YAML names; "" = none."""
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
        """The rows of one shard, all columns of `schema.MANIFEST_SCHEMA` or some.

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
        recorded: where it was, by run.json; if it is not there, the last parts of this path are looked for in the run's
            folder and the folders above, so that a run and its manifest may be moved together.
        run_dir: the run's folder.
        fingerprint: of the manifest, by run.json.
        named: looked at instead of `recorded`; one of them must be the manifest.

    Raises: ManifestError: none of these is the manifest; names the first place and what was found there.
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
        found = f"expected fingerprint {fingerprint[:16]}, found {manifest.fingerprint[:16]}"
        problem = problem or f"{place} is another manifest now, not the one of this run ({found})"
    raise ManifestError(f"{problem}; name the manifest with --manifest, or put it back")


def _nearby(recorded: Location, run_dir: Location) -> Iterator[Path]:
    """Files in the run's folder, or in one above it, whose path ends like the recorded one."""
    recorded, run_dir = as_location(recorded), as_location(run_dir)
    if not (isinstance(recorded, Path) and isinstance(run_dir, Path)):
        return
    here = run_dir.absolute()
    for folder in (here, *here.parents):
        for parts in range(min(_PARTS, len(recorded.parts)), 0, -1):
            place = folder.joinpath(*recorded.parts[-parts:])
            if place != recorded and place.is_file():
                yield place


def _counts(pair: Sequence[Any]) -> list[int]:
    """Raises: ValueError: one is not a count."""
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in pair):
        raise ValueError(f"shard of {shorten(pair)}")
    return list(pair)


def check_outputs(manifest: Location, companions: Iterable[Location], inputs: Iterable[Location | None]) -> None:
    """Check that a manifest and the `companions` beside it would replace no input and no file of another kind.

    Raises: ManifestError: they would.
    """
    taken = {place.resolve() if isinstance(place, Path) else place for place in inputs if place is not None}
    for place in (manifest, *companions):
        if (place.resolve() if isinstance(place, Path) else place) in taken and exists(place):
            raise ManifestError(f"{place} would be replaced and is an input; choose another name for the manifest (-o)")
    if exists(manifest):
        with suppress(ManifestError), open_parquet(manifest, ManifestError) as file:
            if footer_text(file).get("schema", "").startswith(_SCHEMA_NAME):
                return
        raise ManifestError(f"{manifest} exists and is no manifest; choose another name for the manifest (-o)")


def report_path(manifest: Location) -> Location:
    """Where the report of a manifest is."""
    return beside(as_location(manifest), ".report.json")
