"""How this project's Parquet files are compressed, opened and checked.

Settings measured best on label data: zstd level 3, BYTE_STREAM_SPLIT instead of dictionaries on floating-point leaves,
page index. Equal input and versions give identical bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.storage import Location, find_file
from dto_pipeline.reading import IrregularFile

ROWS_PER_GROUP = 1024  # images
_FOOTERS: dict[Any, pq.FileMetaData] = {}  # parsed footer of the file last opened with `again`
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises on a damaged file


def writer_settings(schema: pa.Schema) -> dict[str, Any]:
    """Keyword arguments of ``pq.ParquetWriter`` for files of this project."""
    leaves = [leaf for field in schema for leaf in parquet_leaves(field.name, field.type)]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [path for path, kind in leaves if not pa.types.is_floating(kind)],
        "column_encoding": {path: "BYTE_STREAM_SPLIT" for path, kind in leaves if pa.types.is_floating(kind)},
        "write_page_index": True,
        "write_page_checksum": True,  # a damaged page is refused, not read as other numbers
    }


@contextmanager
def new_parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of a local file; pyarrow is not given names: it takes ``a:b/c`` for a URI and needs names in UTF-8."""
    with path.open("wb") as stream, pq.ParquetWriter(stream, schema, **writer_settings(schema)) as writer:
        yield writer


class _CallingThread(pq.ParquetFile):
    """Read by the calling thread: a thread of Arrow that still holds bytes of Python (a store's) when the process ends
    aborts it, or waits for ever (apache/arrow issues 34314 and 50482). `pre_buffer` reads by such threads too."""

    def __init__(self, source: pa.NativeFile, metadata: pq.FileMetaData | None) -> None:
        super().__init__(source, metadata=metadata, page_checksum_verification=True, pre_buffer=False)

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        return super().read(columns, **{**options, "use_threads": False})

    def read_row_group(self, i: int, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        return super().read_row_group(i, columns, **{**options, "use_threads": False})


def open_parquet(path: Location, error: type[Exception], again: bool = False) -> pq.ParquetFile:
    """Open a Parquet file. Raises: `error` with a next step: it is missing, or damaged (names that are not UTF-8 too).

    `again`: for a file that is opened repeatedly: its footer (0.2 s with 10,000 row groups) is parsed again only if its
    size or time has changed.
    """
    try:
        store, name = find_file(path)
        key = (path, *store.version_of(name)) if again else None
        footer = _FOOTERS.get(key)
        file = _CallingThread(store.open(name), footer)
        if footer is not None:
            return file
        footer_text(file)
        for field in file.schema_arrow:
            deque(parquet_leaves(field.name, field.type), maxlen=0)
        if key:
            _FOOTERS.clear()  # of one file at a time
            _FOOTERS[key] = file.metadata
        return file
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist; check the path, or make the file first") from cause
    except IrregularFile as cause:
        raise error(f"{path}: {cause.strerror}") from cause
    except READ_ERRORS as cause:
        if isinstance(path, str) and isinstance(cause, OSError):
            advice = "check bucket, credentials and endpoint; if they are right, write the file again"
            raise error(f"{path} cannot be read ({cause}); {advice}") from cause
        reason = str(cause).strip()
        raise error(f"{path} is not a whole Parquet file ({reason}); it may be truncated, write it again") from cause


def footer_text(file: pq.ParquetFile) -> dict[str, str]:
    """The text entries of the footer, without pyarrow's own."""
    pairs = file.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in pairs.items() if key != b"ARROW:schema"}


def check_schema(path: Location, found: pa.Schema, expected: pa.Schema, error: type[Exception]) -> None:
    """Raise `error` if the columns are not those of `expected`; it names the first difference."""
    if found.equals(expected, check_metadata=False):
        return
    names, wanted = (
        [leaf.replace(".list.element", "") for field in schema for leaf, _ in parquet_leaves(field.name, field.type)]
        for schema in (found, expected)
    )
    if names != wanted:
        missing, extra = sorted(set(wanted) - set(names)), sorted(set(names) - set(wanted))
        what = f"columns differ from the schema: missing {missing}, unknown {extra}"
        raise error(f"{path}: {what}; if another version wrote it, make it again with this one")
    wrong, right = next(pair for pair in zip(found, expected, strict=True) if not pair[0].equals(pair[1]))
    found_kind, expected_kind = (f"{field.type}{'' if field.nullable else ' not null'}" for field in (wrong, right))
    raise error(f"{path}: column {right.name!r} is {found_kind}; expected {expected_kind}")


def check_file(path: Location, file: pq.ParquetFile, expected: pa.Schema, error: type[Exception]) -> None:
    """Raise `error` if the columns are not those of `expected`, in Arrow's description or in Parquet's own.

    pyarrow reads columns by Parquet's names; a column whose name is damaged there would be left out without a word.
    """
    check_schema(path, file.schema_arrow, expected, error)
    leaves = [leaf for field in expected for leaf, _ in parquet_leaves(field.name, field.type)]
    names = [file.schema.column(i).path for i in range(len(file.schema))]
    if names != leaves:
        unknown = sorted(set(names) - set(leaves))
        raise error(f"{path} is damaged: unknown columns {unknown}; fetch it again, or make it anew")


def parquet_leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet's name and the type of each column of values in a field, which may hold lists and structs."""
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from parquet_leaves(f"{path}.{kind.field(i).name}", kind.field(i).type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from parquet_leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind
