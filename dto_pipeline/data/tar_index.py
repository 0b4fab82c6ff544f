"""The index of a folder of tars: where every member lies, so that any of them is read in place with one seek.

Knows the index file (Parquet, one row group per tar) and the address ``<tar>!<member>`` by which a manifest names an
image in a tar. Tars are only read, never unpacked; entries that `tar_walk` refuses stay in the index with their
reason. The folder may be local or any file system pyarrow reaches by URI (``s3://...``). Offsets and sizes in bytes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.parquet import READ_ERRORS, check_schema, footer_text, open_parquet, writer_settings
from dto_pipeline.data.storage import (
    Location,
    Store,
    as_location,
    error_text,
    exists,
    join_location,
    list_names,
    open_input,
    open_store,
    written,
)
from dto_pipeline.data.tar_walk import Listing, sample_key, walk_tar
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import UnsafePath, check_relative
from dto_pipeline.reading import parse_json
from dto_pipeline.schema import TAR_INDEX_SCHEMA, TAR_INDEX_SCHEMA_NAME

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png")  # in order of preference where one sample has several
_MARK = ".tar!"  # ends the tar's part of an address
_THREADS = 4  # tars read at the same time: headers are small reads that wait for the disk
_LISTINGS_KEPT = 256  # tars whose rows stay in memory, about 200 KB each


class TarIndexError(DtoError, ValueError):
    """An index that cannot be used, or an address that is not in it; the message names the next step."""


class MemberUnreadable(OSError):
    """A member that is refused, damaged, or no longer where the index says."""


class TarMissing(MemberUnreadable):
    """The tar itself is gone."""


@dataclass(frozen=True)
class TarMember:
    """One usable file inside a tar."""

    tar: str  # relative to the root
    name: str
    offset: int
    size: int

    @property
    def address(self) -> str:
        """``<tar>!<member>``, what a manifest keeps."""
        return f"{self.tar}!{self.name}"

    @property
    def extension(self) -> str:
        """Everything behind the first dot of the base name, in lower case."""
        return sample_key(self.name)[1].lower()


@dataclass(frozen=True)
class TarSummary:
    """What the index knows about one tar as a whole."""

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
    tar, mark, member = address.partition(_MARK)
    return (tar + _MARK[:-1], member) if mark and member else None


def list_tars(root: Location) -> list[str]:
    """Every ``*.tar`` below `root`, relative to it, in order of name.

    Raises:
        FileNotFoundError: no such folder.
    """
    return sorted(name for name in list_names(root, (".tar",)) if name.endswith(".tar"))


def build_tar_index(root: Location, tars: Sequence[str], out: Location, progress: bool = False) -> list[TarSummary]:
    """Locate every member of some tars, once: an index of the same tars at the same sizes is kept as it is.

    Args:
        root: folder or URI the tars lie under.
        tars: their names relative to `root`; none may leave it.
        out: the index file (Parquet), beside the manifest.

    Returns:
        One summary per tar, in the given order. A tar that cannot be read has a `problem`, and no members.

    Raises:
        TarIndexError: a tar named twice, outside of the root, or not ending in ``.tar``.
    """
    _check_names(tars)
    root = as_location(root)
    if exists(out) and (known := _fresh_summaries(root, tars, out)) is not None:
        return known
    summaries = []
    with (
        written(out) as temporary,
        ThreadPoolExecutor(_THREADS) as pool,
        pq.ParquetWriter(temporary, TAR_INDEX_SCHEMA, **writer_settings(TAR_INDEX_SCHEMA)) as writer,
    ):
        listings = pool.map(lambda tar: _list_one(root, tar), tars)
        for tar, listing in tqdm(zip(tars, listings, strict=True), "tars", len(tars), disable=not progress):
            if listing.members:
                writer.write_table(_rows(tar, listing), row_group_size=len(listing.members))
            summaries.append(_summary(tar, listing))
        writer.add_key_value_metadata(_metadata(summaries))
    return summaries


class TarIndex:
    """An open index over its tars, for any number of threads; holds the listings of the last few tars in memory.

    Args:
        path: the index file.
        root: folder or URI of the tars.

    Raises:
        TarIndexError: not an index, or one of another version.
    """

    def __init__(self, path: Location, root: Location) -> None:
        self.path = as_location(path)
        self._parquet = open_parquet(self.path, TarIndexError)
        check_schema(self.path, self._parquet.schema_arrow, TAR_INDEX_SCHEMA, TarIndexError)
        self.summaries = _read_summaries(self.path, footer_text(self._parquet))
        with_rows = [summary.tar for summary in self.summaries if summary.members]
        self._group = {tar: k for k, tar in enumerate(with_rows)}
        self._size = {summary.tar: summary.size for summary in self.summaries}
        self._root = as_location(root)
        self._kept: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = Lock()  # of the rows kept and the Parquet file

    def rows(self, tar: str) -> pa.Table:
        """Every entry of one tar as `schema.TAR_INDEX_SCHEMA`, in tar order, refused ones included."""
        if tar not in self._size:
            raise TarIndexError(f"the tar index does not know the tar {tar!r}; build it again")
        if tar not in self._group:
            return TAR_INDEX_SCHEMA.empty_table()
        with self._lock:
            if tar not in self._kept:
                self._kept[tar] = self._read_group(tar)
                if len(self._kept) > _LISTINGS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(tar)
            return self._kept[tar]

    def _read_group(self, tar: str) -> pa.Table:
        try:
            return self._parquet.read_row_group(self._group[tar])
        except READ_ERRORS as error:
            raise TarIndexError(f"{self.path} is damaged ({error}); build the manifest again") from error

    def images(self) -> Iterator[TarMember]:
        """The usable images of all tars, in order; one tar at a time in memory."""
        endings = pa.array(IMAGE_EXTENSIONS)
        for summary in self.summaries:
            rows = self.rows(summary.tar)
            wanted = pc.and_(pc.is_null(rows["problem"]), pc.is_in(pc.utf8_lower(rows["extension"]), value_set=endings))
            yield from _as_members(summary.tar, rows.filter(wanted))

    def members(self) -> Iterator[TarMember]:
        """Every usable member of all tars, whatever its extension; one tar at a time in memory."""
        for summary in self.summaries:
            rows = self.rows(summary.tar)
            yield from _as_members(summary.tar, rows.filter(pc.is_null(rows["problem"])))

    def problems(self) -> pa.Table:
        """Every refused entry of every tar as `schema.TAR_INDEX_SCHEMA`."""
        tables = [self.rows(summary.tar) for summary in self.summaries if summary.refused]
        refused = [table.filter(pc.is_valid(table["problem"])) for table in tables]
        return pa.concat_tables([TAR_INDEX_SCHEMA.empty_table(), *refused])

    def find(self, address: str) -> TarMember:
        """The member behind ``<tar>!<member>``.

        Raises:
            TarIndexError: no address, or a tar or member that the index does not know.
            MemberUnreadable: the entry is known and refused.
        """
        parts = split_address(address)
        if parts is None:
            raise TarIndexError(f"{address!r} is no address of the form <tar>!<member>")
        tar, name = parts
        rows = self.rows(tar)
        entries = rows.filter(pc.equal(rows["member"], name)).to_pylist()
        if not entries:
            raise TarIndexError(f"{tar} has no member {name!r}; if the tar is new, build the index again")
        entry = next((entry for entry in entries if entry["problem"] is None), entries[0])
        if entry["problem"] is not None:
            raise MemberUnreadable(f"{address} {entry['problem']}")
        return TarMember(tar, name, entry["offset"], entry["size"])

    def read(self, address: str, limit: int | None = None) -> bytes:
        """The bytes of the member behind an address, exactly as stored; see `find` and `read_member`."""
        return self.read_member(self.find(address), limit)

    def read_member(self, member: TarMember, limit: int | None = None) -> bytes:
        """The bytes of a member, or the first `limit` of them (a header).

        Raises:
            TarMissing: the tar is gone.
            MemberUnreadable: it changed its size since it was indexed, ends too early, or cannot be read.
        """
        wanted = member.size if limit is None else min(member.size, limit)
        try:
            with open_input(join_location(self._root, member.tar)) as source:
                found, data = source.size(), source.read_at(wanted, member.offset)
        except FileNotFoundError as error:
            raise TarMissing(f"{member.tar} does not exist") from error
        except OSError as error:
            raise MemberUnreadable(f"{member.address} cannot be read: {error_text(error)}") from error
        if found != self._size.get(member.tar):
            size = self._size.get(member.tar)
            raise MemberUnreadable(f"{member.tar} has {found} bytes, {size} when indexed; build the index again")
        if len(data) != wanted:
            raise MemberUnreadable(f"{member.address}: {len(data)} of {wanted} bytes could be read")
        return data


def _as_members(tar: str, rows: pa.Table) -> Iterator[TarMember]:
    columns = rows.select(["member", "offset", "size"]).to_pydict()
    for name, offset, size in zip(*columns.values(), strict=True):
        yield TarMember(tar, name, offset, size)


def _check_names(tars: Sequence[str]) -> None:
    for tar in tars:
        try:
            tidy = check_relative(tar)
        except UnsafePath as error:
            raise TarIndexError(f"tar {tar!r}: {error}") from error
        if tidy != tar or not tar.endswith(".tar") or _MARK in tar:
            raise TarIndexError(
                f"tar {tar!r}: expected a plain path below the root that ends in .tar, without '{_MARK}'"
            )
    if len(set(tars)) != len(tars):
        raise TarIndexError("a tar is named twice; name each once")


def _list_one(root: Location, tar: str) -> Listing:
    try:
        with open_input(join_location(root, tar)) as source:
            return walk_tar(source)
    except OSError as error:
        return Listing((), -1, f"cannot be read: {error_text(error)}")


def _rows(tar: str, listing: Listing) -> pa.Table:
    split = [sample_key(member.name) for member in listing.members]
    columns = {
        "tar": [tar] * len(split),
        "member": [member.name for member in listing.members],
        "key": [key for key, _ in split],
        "extension": [extension for _, extension in split],
        "offset": [member.offset for member in listing.members],
        "size": [member.size for member in listing.members],
        "problem": [member.problem for member in listing.members],
    }
    return build_table(TAR_INDEX_SCHEMA, columns)


def _summary(tar: str, listing: Listing) -> TarSummary:
    refused = sum(member.problem is not None for member in listing.members)
    return TarSummary(tar, listing.size, len(listing.members), refused, listing.problem)


def _metadata(summaries: Sequence[TarSummary]) -> dict[str, str]:
    tars = [[s.tar, s.size, s.members, s.refused, s.problem] for s in summaries]
    return {"schema": TAR_INDEX_SCHEMA_NAME, "tars": json.dumps(tars)}


def _read_summaries(path: Location, metadata: dict[str, str]) -> list[TarSummary]:
    if metadata.get("schema") != TAR_INDEX_SCHEMA_NAME:
        found = metadata.get("schema", "no schema name")
        raise TarIndexError(f"{path} is {found}; expected {TAR_INDEX_SCHEMA_NAME}. Build the index again")
    try:
        return [TarSummary(*fields) for fields in parse_json(metadata["tars"])]
    except (KeyError, TypeError, ValueError) as error:
        raise TarIndexError(f"{path}: footer lacks or garbles {error}; build the index again") from error


def _fresh_summaries(root: Location, tars: Sequence[str], out: Location) -> list[TarSummary] | None:
    """Summaries of an existing index if it is about these tars as they are now, else None."""
    try:
        known = _read_summaries(out, footer_text(open_parquet(out, TarIndexError)))
    except TarIndexError:
        return None  # of another version, or broken: it is replaced
    if [summary.tar for summary in known] != list(tars):
        return None
    store = open_store(root)
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(lambda tar: _size(store, tar), tars))
    return known if sizes == [summary.size for summary in known] else None


def _size(store: Store, tar: str) -> int:
    """Bytes of a tar; -1 = it is not there."""
    try:
        return store.size(tar)
    except FileNotFoundError:
        return -1
