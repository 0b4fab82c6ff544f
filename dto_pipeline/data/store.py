"""A folder whose files appear whole or not at all, wherever it lies: what a run is kept in.

Knows what one may do to such a file (read, create if absent, replace, remove, list) and nothing of runs. Two kinds:
local folders (links and renames, see `data.files`), and object stores by conditional PUT (`data.object_store`); any
other is refused in one sentence. Names are relative to the folder, with ``/`` between parts. Sizes in bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dto_pipeline.data.files import commit_new, sha256_bytes, sha256_file, staged, write_bytes_atomic
from dto_pipeline.data.object_store import open_remote
from dto_pipeline.data.storage import Location, Store, as_location, parent_and_name
from dto_pipeline.reading import open_regular, read_regular

_REQUESTS = 32  # at once, where every read is a request over the network
_MOST_BYTES = 1 << 32  # of one file that is read whole; label files are the largest, with some MB
_WINDOW = 512  # files asked for before the first of them is dealt with


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or mounted here."""

    root: Path

    def prepare(self, folders: Iterable[str]) -> None:
        """Make the folders."""
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def read(self, name: str, tail: int = 0) -> bytes:
        """A file's bytes, or its last `tail`; raises FileNotFoundError."""
        if not tail:
            return read_regular(self.root / name, _MOST_BYTES)
        with open_regular(f"{self.root}/{name}") as stream:
            size = os.fstat(stream.fileno()).st_size
            return os.pread(stream.fileno(), tail, max(0, size - tail))

    def size(self, name: str) -> int:
        """Bytes of a file; raises FileNotFoundError."""
        return (self.root / name).stat().st_size

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the files directly in a folder; {} where there is no such folder."""
        found: dict[str, int] = {}
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    _add_entry(found, entry)
        except FileNotFoundError:
            return {}
        return found

    def create(self, name: str, data: bytes) -> bool:
        """Write under a temporary name, sync, then link to the name if it is free."""
        with staged(self.root / name) as temporary:
            temporary.write_bytes(data)
            return commit_new(temporary, self.root / name)

    def replace(self, name: str, data: bytes) -> None:
        """Write under a temporary name, sync, then rename."""
        write_bytes_atomic(self.root / name, data)

    def remove(self, name: str) -> None:
        """Unlink a file; it may be gone already."""
        (self.root / name).unlink(missing_ok=True)


def open_store(root: Location) -> Store:
    """The store at a folder or URI.

    Raises:
        StoreError: a URI that names no bucket, or that nothing opens.
    """
    place = as_location(root)
    return LocalStore(place) if isinstance(place, Path) else open_remote(place)


def read_many(root: Location, names: Sequence[str], tail: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and bytes (or the last `tail` of them) of many files, in order; those that are gone by now are left out.

    Over a network many are asked for at once; a bounded number is in memory.
    """
    store = open_store(root)

    def read(name: str) -> tuple[str, bytes | None]:
        try:
            return name, store.read(name, tail)
        except FileNotFoundError:
            return name, None

    if isinstance(store, LocalStore):
        yield from ((name, data) for name, data in map(read, names) if data is not None)
        return
    with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="store") as threads:
        for start in range(0, len(names), _WINDOW):
            found = threads.map(read, names[start : start + _WINDOW])
            yield from ((name, data) for name, data in found if data is not None)


def read_bytes(location: Location) -> bytes:
    """A file's bytes; raises FileNotFoundError."""
    if isinstance(location, Path):
        return read_regular(location, _MOST_BYTES)
    folder, name = parent_and_name(location)
    return open_store(folder).read(name)


def create_bytes(location: Location, data: bytes) -> bool:
    """Write a file if there is none; see `Store.create`."""
    folder, name = parent_and_name(location)
    return open_store(folder).create(name, data)


def sha256_of(location: Location) -> str:
    """sha256 (hex) of a file's bytes, wherever it lies; raises FileNotFoundError."""
    return sha256_file(location) if isinstance(location, Path) else sha256_bytes(read_bytes(location))


def _add_entry(found: dict[str, int], entry: os.DirEntry[str]) -> None:
    try:
        if entry.is_file(follow_symlinks=True):
            found[entry.name] = entry.stat().st_size
    except FileNotFoundError:
        return  # a temporary file that was given its name, or taken away, under our eyes
