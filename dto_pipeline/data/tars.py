"""Images inside tars: an index of where every member lies, the member of each image that labels name, an image store.

The index is a Parquet file beside the manifest, one row group a tar; a manifest names an image in a tar by the address
``<tar>!<member>``. Tars are never unpacked: a member is read from its place. Entries that `tar_walk` refuses stay in
the index with the reason. The folder may be local or behind a URI. Offsets and sizes in bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from os.path import splitext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.images import TAR_MARK, ImageCorrupt, ImageMissing, ImageStore
from dto_pipeline.data.parquet import READ_ERRORS, check_file, footer_text, new_parquet, open_parquet
from dto_pipeline.data.storage import (
    STORAGE_ERRORS,
    Location,
    as_location,
    beside,
    error_text,
    exists,
    list_names,
    open_store,
    read_bytes,
    write_bytes,
    written,
)
from dto_pipeline.data.tar_walk import Member, sample_key, walk_tar
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import check_relative
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import TAR_INDEX_SCHEMA, TAR_INDEX_SCHEMA_NAME

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")  # in order of preference where one sample has several
_THREADS = 4  # tars read at the same time, because reading headers is waiting for the disk


class TarIndexError(DtoError, ValueError):
    """An index that cannot be used, or an address that is not in it; the message names the next step."""


@dataclass(frozen=True)
class TarSummary:
    """One tar as a whole."""

    tar: str
    size: int  # -1 = could not be read
    members: int  # rows of the index, refused ones included
    refused: int
    problem: str | None = None  # damage of the tar as a whole

    @property
    def usable(self) -> int:
        """Members that can be read."""
        return self.members - self.refused


def split_address(address: str) -> tuple[str, str] | None:
    """(tar, member) of ``<tar>!<member>``, or None for the path of a plain file."""
    tar, mark, member = address.partition(TAR_MARK)
    return (tar + TAR_MARK[:-1], member) if mark and member else None


def list_tars(root: Location) -> list[str]:
    """Every ``*.tar`` below `root`, relative to it, in order of name.

    Raises: TarIndexError: there is none, the folder cannot be listed, or a name holds the mark of addresses.
    """
    try:
        tars = sorted(name for name in list_names(root, (".tar",)) if name.endswith(".tar"))
    except FileNotFoundError as error:
        raise TarIndexError(f"images folder {root} does not exist; check --data-root or --images") from error
    except STORAGE_ERRORS as error:
        raise TarIndexError(f"images folder {root} cannot be listed: {error}") from error
    if not tars:
        raise TarIndexError(f"{root} holds no *.tar; expected the tars of the images below it (images_in: tars)")
    if marked := [tar for tar in tars if TAR_MARK in tar]:
        raise TarIndexError(f"tar {marked[0]!r}: expected a path without {TAR_MARK!r}, the mark of addresses in tars")
    return tars


def build_tar_index(root: Location, out: Location, progress: bool = False) -> list[TarSummary]:
    """Locate every member of the tars below a folder. An index of the same tars and sizes is kept as it is.

    Args:
        root: folder or URI the tars lie under.
        out: the index file (Parquet), beside the manifest.

    Returns:
        One summary per tar, by name. A tar that cannot be read has a `problem`, and no members.

    Raises: TarIndexError: as `list_tars`.
    """
    root, tars, summaries = as_location(root), list_tars(root), []
    with ThreadPoolExecutor(_THREADS) as pool:
        with suppress(TarIndexError, FileNotFoundError):  # no index, a broken one, or a tar is gone: build it
            known = TarImages(out, root).summaries
            sizes = {summary.tar: summary.size for summary in known}
            if [*sizes] == tars and [*pool.map(open_store(root).size, tars)] == [*sizes.values()]:
                return known
        with written(out) as temporary, new_parquet(temporary, TAR_INDEX_SCHEMA) as writer:
            listings = pool.map(lambda tar: _list_members(root, tar), tars)
            for summary, members in tqdm(listings, "tars", len(tars), disable=not progress):
                if members:
                    writer.write_table(_rows(summary.tar, members), row_group_size=len(members))
                summaries.append(summary)
            footer = json.dumps([dataclasses.astuple(summary) for summary in summaries])
            writer.add_key_value_metadata({"schema": TAR_INDEX_SCHEMA_NAME, "tars": footer})
    return summaries


def _list_members(root: Location, tar: str) -> tuple[TarSummary, list[Member]]:
    try:
        with open_store(root).open(check_relative(tar)) as source:
            size, (members, problem) = source.size(), walk_tar(source)
    except OSError as error:
        return TarSummary(tar, -1, 0, 0, f"cannot be read: {error_text(error)}"), []
    refused = sum(member.problem is not None for member in members)
    return TarSummary(tar, size, len(members), refused, problem), members


def _rows(tar: str, members: list[Member]) -> pa.Table:
    keys = [sample_key(member.name) for member in members]
    columns = {
        "tar": [tar] * len(keys),
        "member": [member.name for member in members],
        "key": [key for key, _ in keys],
        "extension": [extension for _, extension in keys],
        **{name: [getattr(member, name) for member in members] for name in ("offset", "size", "problem")},
    }
    return build_table(TAR_INDEX_SCHEMA, columns)


class TarImages(ImageStore):
    """Members of indexed tars, named ``<tar>!<member>``, and plain files below the folder of the tars.

    The index is in memory, about 0.1 kB a member.

    Args:
        path: the index file.
        root: folder or URI of the tars.

    Raises: TarIndexError: not an index, or one of another version, or damaged.
    """

    def __init__(self, path: Location, root: Location) -> None:
        super().__init__(as_location(root))
        self.path = as_location(path)
        with open_parquet(self.path, TarIndexError) as file:
            check_file(self.path, file, TAR_INDEX_SCHEMA, TarIndexError)
            try:
                metadata = footer_text(file)
                if metadata["schema"] != TAR_INDEX_SCHEMA_NAME:
                    raise ValueError(f"it is {metadata['schema']}, expected {TAR_INDEX_SCHEMA_NAME}")
                self.summaries = [TarSummary(*fields) for fields in parse_json(metadata["tars"])]
                self._rows = file.read(["member", "offset", "size", "problem"])
                counts = [summary.members for summary in self.summaries]
                if min(counts, default=0) < 0 or sum(counts) != self._rows.num_rows:
                    raise ValueError(f"its footer counts {sum(counts)} members, it has {self._rows.num_rows}")
                pairs = zip(accumulate(counts, initial=0), self.summaries, strict=False)
                self._places = {check_relative(summary.tar): (start, summary) for start, summary in pairs}
            except (KeyError, TypeError, ValueError, AttributeError, *READ_ERRORS) as error:
                raise TarIndexError(f"{self.path} cannot be used ({error}); build the manifest again") from error

    def rows(self, tar: str) -> pa.Table:
        """member, offset, size and problem of every entry of one tar, in tar order. Raises: KeyError."""
        start, summary = self._places[tar]
        return self._rows.slice(start, summary.members)

    def members(self) -> Iterator[tuple[str, str]]:
        """(address, name) of the usable images of all tars, in order; tar by tar."""
        endings = rf"\.({'|'.join(IMAGE_EXTENSIONS)})$"
        for summary in self.summaries:
            rows = self.rows(summary.tar)
            names = rows["member"].filter(pc.is_null(rows["problem"]))
            names = names.filter(pc.match_substring_regex(names, endings, ignore_case=True))
            yield from ((f"{summary.tar}!{name}", name) for name in names.to_pylist())

    def problems(self) -> Iterator[tuple[str, str]]:
        """(address, reason) of every refused entry of every tar."""
        for summary in self.summaries:
            rows = self.rows(summary.tar).select(["member", "problem"])
            refused = rows.filter(pc.is_valid(rows["problem"])).to_pylist()
            yield from ((f"{summary.tar}!{entry['member']}", entry["problem"]) for entry in refused)

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`; a member whose tar has changed its size since it was indexed counts as corrupt."""
        address = split_address(image_file)
        if address is None:
            try:
                return super().read_bytes(image_file, limit)
            except ImageMissing as error:
                raise ImageMissing(f"image {image_file} is in none of the tars, and no file beside them") from error
        tar, entry = address[0], self._find(image_file, *address)
        wanted = entry["size"] if limit is None else min(entry["size"], limit)
        try:
            with open_store(self.root).open(tar) as source:
                found, data = source.size(), source.read_at(wanted, entry["offset"])
        except FileNotFoundError as error:
            raise ImageMissing(f"image {image_file}: {tar} does not exist") from error
        except OSError as error:
            raise ImageCorrupt(f"image {image_file}: {image_file} cannot be read: {error_text(error)}") from error
        if found != (size := self._places[tar][1].size):
            raise ImageCorrupt(
                f"image {image_file}: {tar} has {found} bytes, {size} when indexed; build the index again"
            )
        if len(data) != wanted:
            raise ImageCorrupt(f"image {image_file}: {image_file}: {len(data)} of {wanted} bytes could be read")
        return data

    def _find(self, image_file: str, tar: str, name: str) -> dict[str, Any]:
        """The index's row of a member; raises as `read_bytes`."""
        if tar not in self._places:
            raise ImageMissing(f"image {image_file}: the tar index does not know the tar {tar!r}; build it again")
        rows = self.rows(tar)
        entries = rows.filter(pc.equal(rows["member"], name)).to_pylist()
        if not entries:
            advice = "if the tar is new, build the index again"
            raise ImageMissing(f"image {image_file}: {tar} has no member {name!r}; {advice}")
        entry = next((entry for entry in entries if entry["problem"] is None), entries[0])
        if entry["problem"] is not None:
            raise ImageCorrupt(f"image {image_file}: {image_file} {entry['problem']}")
        return entry


def locate_images(
    tars: TarImages, names: Sequence[str], key_parts: int
) -> tuple[list[str | None], list[tuple[str, str]]]:
    """Find the images that a label file names in some tars, where their folders may have other names.

    A name and a member belong together when their last `key_parts` path parts are equal up to the extension, case
    included. Of several such members the one with the name's own extension is taken, then jpg, jpeg, png, then the
    first; the others are reported.

    Args:
        names: n distinct names like ``insta-train/a/b/c.jpg``.
        key_parts: 3 for INSTA, 1 for the others.

    Returns:
        The address of each image, None = not found; pairs of the address taken and another that fits the same name.
    """
    wanted = [splitext(_tail(name, key_parts)) for name in names]
    found: dict[str, list[tuple[str, str]]] = {stem: [] for stem, _ in wanted}  # (extension, address)
    for address, member in tars.members():
        stem, _, extension = _tail(member, key_parts).rpartition(".")
        if stem in found:
            found[stem].append((extension.lower(), address))
    ranked = []
    for stem, extension in wanted:
        own = extension[1:].lower()
        by_kind = sorted(found[stem], key=lambda one: (one[0] != own, IMAGE_EXTENSIONS.index(one[0])))
        ranked.append([address for _, address in by_kind])
    repeated = [(fitting[0], other) for fitting in ranked for other in fitting[1:]]
    return [fitting[0] if fitting else None for fitting in ranked], repeated


def _tail(key: str, parts: int) -> str:
    return "/".join(key.split("/")[-parts:])


@dataclass(frozen=True)
class TarPlacement:
    """An image index whose images were looked for in tars."""

    index: ImageIndex  # `image_file` is the address of an image that was found, else the label's name
    images: TarImages
    repeated: list[tuple[str, str]]  # see `locate_images`


def tar_index_path(manifest: Location) -> Location:
    """The place of a manifest's tar index."""
    return beside(as_location(manifest), ".tars.parquet")


def place_in_tars(
    index: ImageIndex, root: Location, key_parts: int, index_file: Location, progress: bool = False
) -> TarPlacement:
    """Find the images of an index in the tars below a folder; the index of the tars is written to `index_file`.

    Arguments as in `locate_images`. Raises: TarIndexError as `list_tars`.
    """
    build_tar_index(root, index_file, progress)
    images = TarImages(index_file, root)
    addresses, repeated = locate_images(images, index.image_name, key_parts)
    files = [address or name for address, name in zip(addresses, index.image_name, strict=True)]
    return TarPlacement(dataclasses.replace(index, located=files), images, repeated)


def open_images(images_root: Location, manifest: Location) -> ImageStore:
    """The store of a manifest's images: a folder, and the tars in it where the manifest has a tar index."""
    root, index_file = as_location(images_root), tar_index_path(manifest)
    return TarImages(index_file, root) if exists(index_file) else ImageStore(root)


def carry_tar_index(manifest: Location, derived: Location) -> None:
    """Copy a manifest's tar index, if it has one, to a manifest that was made from it."""
    if exists(tar_index_path(manifest)):
        write_bytes(tar_index_path(derived), read_bytes(tar_index_path(manifest)))
