"""Files and folders on this machine or behind a URI, through one set of functions.

A *location* is a `Path`, or a URI (``s3://...``, ``https://...``) as a `str`; ``file://`` becomes a `Path`. A *store*
is a folder at a location. Its files appear whole or not at all: in `LocalStore` by links and renames, behind URIs
(`object_store.RemoteStore`) by conditional PUT. A URI with a password is refused, because manifests hold their roots.
Sizes in bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa

from dto_pipeline.data.files import (
    replaced,
    sha256_file,
    temporary_folder,
    write_bytes_atomic,
    write_new,
)
from dto_pipeline.data.object_store import RemoteStore, open_remote
from dto_pipeline.data.object_store import StorageError as StorageError
from dto_pipeline.data.object_store import StoreError as StoreError
from dto_pipeline.paths import check_relative, resolve_inside
from dto_pipeline.reading import IrregularFile, check_regular, read_regular, read_start

Location = Path | str
STORAGE_ERRORS = (OSError, pa.ArrowException)  # what reading a place raises besides FileNotFoundError
_REQUESTS = 32  # at once, where every read is a request over the network
_MOST_BYTES = 1 << 32  # of one file that is read whole; label files are the largest, with some MB
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or mounted here. Names are relative to it, with ``/`` between parts.

    Every method, here and of `RemoteStore`, may also raise `StoreError` or another OSError: the storage failed.
    """

    root: Path

    def prepare(self, folders: Iterable[str]) -> None:
        """Make the folders, and make sure that `create` never replaces a file."""
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A file's bytes, or the first `limit` of them; raises FileNotFoundError."""
        return read_regular(self.root / name, _MOST_BYTES) if limit is None else read_start(self.root / name, limit)

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access; raises FileNotFoundError."""
        check_regular(self.root / name)
        return pa.OSFile(os.fsencode(self.root / name))  # pyarrow takes text in UTF-8 only

    def version_of(self, name: str) -> tuple[int, object]:
        """Size and time of change of a file; raises FileNotFoundError."""
        found = (self.root / name).stat()
        return found.st_size, found.st_mtime_ns

    def size(self, name: str) -> int:
        """Bytes of a file; raises FileNotFoundError."""
        return self.version_of(name)[0]

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.root / name).is_file()

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the files directly in a folder; {} where there is no such folder."""
        found: dict[str, int] = {}
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # renamed or removed meanwhile
                    if entry.is_file(follow_symlinks=True):
                        found[entry.name] = entry.stat().st_size
        return found

    def walk(self, endings: tuple[str, ...] = ("",)) -> Iterator[str]:
        """Every file below the folder with one of the endings (in any case), in no particular order.

        Links to folders are followed, but every folder is read once, so that circles of links end: under its own name
        where it lies below, else under the first of its links by name. Raises: FileNotFoundError: no such folder.
        """
        seen, folders, links = set[str](), [""], list[str]()
        while folders or links:
            links.sort(reverse=True)
            below = folders.pop() if folders else links.pop()
            real = os.path.realpath(self.root / below)  # inode numbers mean little on some mounts
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(self.root / below) as entries:
                for entry in entries:
                    name = f"{below}/{entry.name}" if below else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    elif entry.is_symlink() and entry.is_dir():
                        links.append(name)
                    elif entry.name.lower().endswith(endings):
                        yield name
                    elif entry.is_symlink() and not entry.is_file():
                        _LOG.warning("%s is a link that leads nowhere: its files are missing", self.root / name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name. True: this call wrote it; False: it existed, and stays."""
        return write_new(self.root / name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, replacing an older one."""
        write_bytes_atomic(self.root / name, data)

    def remove(self, name: str) -> None:
        """Delete a file; it may be gone already."""
        (self.root / name).unlink(missing_ok=True)


Store = LocalStore | RemoteStore


def open_store(root: Location) -> Store:
    """The store at a folder or URI; raises StoreError where a URI names no bucket or cannot be opened."""
    place = as_location(root)
    return LocalStore(place) if isinstance(place, Path) else open_remote(place)


def as_location(text: str | Path) -> Location:
    """A path or URI as a location.

    Raises: StorageError: a URI that is malformed, holds a password, or names a file of another machine.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        host, slash, path = text.removeprefix("file://").partition("/")
        if host not in ("", "localhost") or not slash:
            raise StorageError(f"{text} names the machine {host!r}, no path of this one; expected file:///FOLDER")
        return Path(unquote(slash + path))
    try:
        has_password = urlsplit(text).password is not None
    except ValueError as error:
        raise StorageError(f"{text} is not a URI: {error}") from error
    if has_password:
        raise StorageError("a URI with a password is not used: it would end up in the manifest; set the environment")
    return text


def absolute(location: str | Path) -> Location:
    """The location; a local one is made independent of the working directory."""
    place = as_location(location)
    return place.absolute() if isinstance(place, Path) else place


def _with_path(uri: str, change: Callable[[str], str]) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=change(parts.path)))


def join_location(root: Location, name: str) -> Location:
    """The location of `name` under a folder; see `paths.check_relative` for what is refused."""
    if isinstance(root, Path):
        return resolve_inside(root, name)
    before, below = "/" if urlsplit(root).netloc else "", quote(check_relative(name))
    return _with_path(root, lambda path: before + f"{path.rstrip('/')}/{below}".lstrip("/"))


def beside(location: Location, suffix: str) -> Location:
    """The location of a manifest's accompanying file: its name with `suffix` in place of ``.parquet``."""
    if isinstance(location, Path):
        return location.with_name(location.name.removesuffix(".parquet") + suffix)
    return _with_path(location, lambda path: path.removesuffix(".parquet") + suffix)


def base_name(location: Location) -> str:
    """Last part of a location."""
    return location.name if isinstance(location, Path) else PurePosixPath(urlsplit(location).path).name


def parent_and_name(location: Location) -> tuple[Location, str]:
    """The folder of a file, and its name there; a URI keeps its query. Raises: StorageError where it names no file."""
    if isinstance(location, Path):
        return location.parent, location.name
    if not (name := base_name(location)):
        raise StorageError(f"{location} names no file; expected for example s3://BUCKET/FOLDER/FILE")
    return _with_path(location, lambda path: path.rstrip("/").rpartition("/")[0]), unquote(name)


def find_file(location: Location) -> tuple[Store, str]:
    """The store of a file, and its name there; raises as `parent_and_name` and `open_store`."""
    folder, name = parent_and_name(as_location(location))
    return open_store(folder), name


def exists(location: Location) -> bool:
    """True if there is a file."""
    store, name = find_file(location)
    return store.exists(name)


def folder_exists(location: Location, unknown: bool = True) -> bool:
    """True if there is a folder; behind a URI, anything below it; `unknown` where the server refuses to list."""
    location = as_location(location)
    if isinstance(location, Path):
        return location.is_dir()
    try:
        return any(True for _ in open_remote(location).walk())
    except FileNotFoundError:
        return False
    except STORAGE_ERRORS:  # reading may be allowed where listing is not
        return unknown


def is_there(location: Location) -> bool:
    """True if there is a file or a folder; False also where the storage does not answer."""
    try:
        return exists(location) or folder_exists(location, unknown=False)
    except STORAGE_ERRORS:
        return False


def read_many(root: Location, names: Sequence[str], tail: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of many files, or the last `tail` of each, in order; files that are gone are left out.

    Behind URIs many are requested at once. What was read stays in memory until the caller takes it.
    """
    store = open_store(root)

    def read(name: str) -> tuple[str, bytes | None]:
        try:
            if tail is None:
                return name, store.read(name)
            with store.open(name) as file:
                return name, file.read_at(tail, max(0, file.size() - tail))
        except FileNotFoundError:
            return name, None

    with ThreadPoolExecutor(1 if isinstance(store, LocalStore) else _REQUESTS, thread_name_prefix="store") as threads:
        yield from ((name, data) for name, data in threads.map(read, names) if data is not None)


def read_bytes(location: Location) -> bytes:
    """A file's bytes; raises FileNotFoundError."""
    store, name = find_file(location)
    return store.read(name)


def sha256_of(location: Location) -> str:
    """sha256 (hex) of a file's bytes, wherever it lies; raises FileNotFoundError."""
    if isinstance(location, Path):
        return sha256_file(location)
    return hashlib.sha256(read_bytes(location)).hexdigest()


def list_names(root: Location, endings: tuple[str, ...]) -> Iterator[str]:
    """Names, relative to a folder, of the files below it with one of the endings; see `LocalStore.walk`."""
    return open_store(root).walk(endings)


@contextmanager
def local_copy(location: Location, endings: tuple[str, ...] = ("",)) -> Iterator[Path]:
    """The file or folder as a local path: itself where it is local, else a copy that is removed after the block.

    Of a folder only names with these `endings` are copied. Raises: FileNotFoundError, StorageError.
    """
    if isinstance(location, Path):
        yield location
        return
    parent, file = parent_and_name(location)
    with temporary_folder("dto-copy-") as folder:
        target = folder / base_name(location)
        try:
            open_remote(str(parent)).download(file, target)
        except FileNotFoundError:
            for name in sorted(list_names(location, endings)):
                (local := target / check_relative(name)).parent.mkdir(parents=True, exist_ok=True)
                open_remote(location).download(name, local)
        yield target


def fetch(place: Location, stack: ExitStack, error: Callable[[str], Exception]) -> Path:
    """`local_copy` of label files or a run until `stack` closes; raises `error` if there is nothing."""
    try:
        return stack.enter_context(local_copy(place, (".parquet", ".npz", ".json")))
    except FileNotFoundError as cause:
        raise error(f"{place} does not exist; check the path, --data-root and the dataset YAML") from cause


@contextmanager
def written(location: Location) -> Iterator[Path]:
    """A local file to write, which appears at the location when the block ends without an error.

    It is renamed to a local place (see `data.files`), and uploaded to others.
    """
    if isinstance(location, Path):
        with replaced(location) as temporary:
            yield temporary
        return
    with temporary_folder("dto-write-") as folder:
        local = folder / base_name(location)
        yield local
        parent, name = parent_and_name(location)
        open_remote(str(parent)).replace(name, local)


def write_bytes(location: Location, data: bytes) -> None:
    """Write `data` to a location, replacing what was there."""
    store, name = find_file(location)
    store.replace(name, data)


def error_text(error: BaseException) -> str:
    """Text of a storage error without its path: it may end up in labels, which are equal on every machine."""
    if isinstance(error, IrregularFile):
        return str(error.strerror)
    if isinstance(error, StoreError):
        return error.reason
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else type(error).__name__
