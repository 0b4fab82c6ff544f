"""Where files may lie: on this machine, or behind a URI of any file system pyarrow or fsspec reaches.

A *location* is a `Path` (local: read by memory map, written as `data.files` does) or a URI (``s3://...``, ``gs://...``,
``memory://...``), a `str`. ``file://`` becomes a `Path`, so that local files are never slow. Knows no format.
Credentials come from the environment; a URI that holds a password is refused, because manifests remember their roots.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from dto_pipeline.data.files import commit_over, staged, temporary_folder, write_bytes_atomic
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import check_relative, resolve_inside
from dto_pipeline.reading import IrregularFile, check_regular, open_regular

Location = Path | str
STORAGE_ERRORS = (OSError, pa.ArrowException)  # what a file system raises besides FileNotFoundError
_PIECE = 1 << 23  # bytes copied at once
_LOG = logging.getLogger(__name__)


class StorageError(DtoError, OSError):
    """A URI that cannot be used, or a file system that is not there; the message says which."""


class StoreError(StorageError):
    """A folder that cannot be used as a store, or a request that failed for good; names place, key and next step."""


class Store(Protocol):
    """One folder. Every method may raise `StoreError` or another OSError where the storage fails."""

    @property
    def root(self) -> Location:
        """The folder."""
        ...

    def prepare(self, folders: Iterable[str]) -> None:
        """Make the folder ready for writing, and make sure that `create` can be relied on."""

    def read(self, name: str, tail: int = 0) -> bytes:
        """A file's bytes, or its last `tail`; raises FileNotFoundError."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file; raises FileNotFoundError."""
        ...

    def entries(self, folder: str = "") -> dict[str, int]:
        """Name -> size of the files directly in a folder; {} where there is no such folder."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name; True if this call did, False if it existed and was left alone."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, whatever bore its name."""

    def remove(self, name: str) -> None:
        """Take a file away; it may be gone already."""


def as_location(text: str | Path) -> Location:
    """A path or URI as a location.

    Raises:
        StorageError: a URI that is malformed or holds a password.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        return Path(open_root(text)[1])
    try:
        if urlsplit(text).password is not None:
            raise StorageError(
                "a URI with a password is not used: it would end up in the manifest; set the environment"
            )
    except ValueError as error:
        raise StorageError(f"{text} is not a URI: {error}") from error
    return text


def absolute(location: str | Path) -> Location:
    """The location, a local one independent of the working directory."""
    place = as_location(location)
    return place.absolute() if isinstance(place, Path) else place


def join_location(root: Location, name: str) -> Location:
    """The location of `name` under a folder; see `paths.check_relative` for what is refused."""
    if isinstance(root, Path):
        return resolve_inside(root, name)
    parts = urlsplit(root)
    below = f"{parts.path.rstrip('/')}/{quote(check_relative(name))}"
    if not parts.netloc:
        below = below.lstrip("/")
    return urlunsplit(parts._replace(path=below))


def beside(location: Location, suffix: str) -> Location:
    """The location with `suffix` in place of its own: where what belongs to a file lies."""
    if isinstance(location, Path):
        return location.with_suffix(suffix)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=str(PurePosixPath(parts.path).with_suffix(suffix))))


def base_name(location: Location) -> str:
    """Last part of a location."""
    return location.name if isinstance(location, Path) else PurePosixPath(urlsplit(location).path).name


def parent_and_name(location: Location) -> tuple[Location, str]:
    """The folder of a file, and the file's name in it; a URI keeps its query.

    Raises:
        StorageError: a URI that has no part beyond its host or bucket.
    """
    if isinstance(location, Path):
        return location.parent, location.name
    parts = urlsplit(location)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    if not name:
        raise StorageError(f"{location} names no file; expected for example s3://BUCKET/FOLDER/FILE")
    return urlunsplit(parts._replace(path=folder)), unquote(name)


@lru_cache(maxsize=256)  # a client per bucket is made once, not once per file
def open_root(root: Location) -> tuple[pafs.FileSystem, str]:
    """File system and base path of a folder or file.

    Raises:
        StorageError: a scheme that neither pyarrow nor fsspec knows, or a file system that cannot be reached.
    """
    if isinstance(root, Path) or "://" not in root:
        return pafs.LocalFileSystem(), str(Path(root).absolute())
    try:
        files, base = pafs.FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        files, base = _open_with_fsspec(root, error)
    except STORAGE_ERRORS as error:
        raise StorageError(f"{root} cannot be opened: {error}") from error
    return files, base.rstrip("/")


def open_file_root(location: Location) -> tuple[pafs.FileSystem, str]:
    """As `open_root` for a file, with one client for all files of its folder."""
    if isinstance(location, Path) or "/" not in urlsplit(location).path.strip("/"):
        return open_root(location)
    folder, name = parent_and_name(location)
    files, base = open_root(folder)
    return files, f"{base}/{name}"


def open_input(files: pafs.FileSystem, path: str) -> pa.NativeFile:
    """Open a file of a file system for random access; a local one only if it is a regular file."""
    if isinstance(files, pafs.LocalFileSystem):
        check_regular(path)
    return files.open_input_file(path)


def exists(location: Location) -> bool:
    """True if there is a file."""
    if isinstance(location, Path):
        return location.is_file()
    files, path = open_root(location)
    return files.get_file_info(path).is_file


def is_there(location: Location) -> bool:
    """True if there is a file or a folder; False also where the storage cannot be asked."""
    if isinstance(location, Path):
        return location.exists()
    try:
        files, path = open_root(location)
        return files.get_file_info(path).type != pafs.FileType.NotFound
    except STORAGE_ERRORS:
        return False


def folder_exists(location: Location) -> bool:
    """True if there is a folder, or, behind a URI, anything of that name; also where a server will not say.

    Raises:
        StorageError: a URI that no file system opens.
    """
    if isinstance(location, Path):
        return location.is_dir()
    files, path = open_root(location)
    try:
        return files.get_file_info(path).type != pafs.FileType.NotFound
    except STORAGE_ERRORS:  # whoever may read objects may not be allowed to list them: reading will tell
        return True


def read_head(root: Location, name: str, limit: int | None) -> bytes:
    """The first `limit` bytes (None = all) of a file below a folder.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        UnsafePath: `name` leaves the folder.
    """
    files, base = open_root(root)
    with open_input(files, f"{base}/{check_relative(name)}") as source:
        size = source.size()
        return source.read_at(size if limit is None else min(limit, size), 0)


def list_names(root: Location, endings: tuple[str, ...]) -> Iterator[str]:
    """Every file below a folder whose name ends so (in any case), relative to `root`; in no particular order.

    Links are followed, see `_list_local`.

    Raises:
        FileNotFoundError: no such folder.
    """
    if isinstance(root, Path) or "://" not in root:
        yield from _list_local(Path(root), endings)
        return
    files, base = open_root(root)
    for info in files.get_file_info(pafs.FileSelector(base, recursive=True)):
        if info.is_file and info.path.lower().endswith(endings):
            yield info.path.lstrip("/").removeprefix(base.lstrip("/")).lstrip("/")


@contextmanager
def local_copy(location: Location, endings: tuple[str, ...] = ("",)) -> Iterator[Path]:
    """The file or folder as a local path: itself where it is local, else a copy that lives as long as the block.

    Args:
        location: a file, or a folder of which only names with these `endings` are copied.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: it cannot be copied.
    """
    if isinstance(location, Path):
        yield location
        return
    with temporary_folder("dto-copy-") as folder:
        target = Path(folder) / base_name(location)
        _download(location, target, endings)
        yield target


def fetch(place: Location, stack: ExitStack, error: Callable[[str], Exception]) -> Path:
    """A `local_copy` of Parquet, npz and a run's records that lives as long as `stack`.

    `error` is raised where nothing is there.
    """
    try:
        return stack.enter_context(local_copy(place, (".parquet", ".npz", ".json")))
    except FileNotFoundError as cause:
        raise error(f"{place} does not exist; check the path, --data-root and the dataset YAML") from cause


@contextmanager
def written(location: Location) -> Iterator[Path]:
    """A local file to write; it takes its place at the location when the block ends without an error.

    Local places change at once (see `data.files`). Elsewhere the finished file is uploaded under a temporary name and
    moved, so that no reader sees half of it; on an object store a move is a copy.
    """
    if isinstance(location, Path):
        with staged(location) as temporary:
            yield temporary
            commit_over(temporary, location)
        return
    with temporary_folder("dto-write-") as folder:
        local = Path(folder) / base_name(location)
        yield local
        _upload(local, location)


def write_bytes(location: Location, data: bytes) -> None:
    """Write `data` to a location, replacing what was there."""
    if isinstance(location, Path):
        write_bytes_atomic(location, data)
        return
    with written(location) as local:
        local.write_bytes(data)


def error_text(error: BaseException) -> str:
    """Text of a storage error without paths: it may end up in labels, which are equal on every machine."""
    if isinstance(error, IrregularFile):
        return str(error.strerror)
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else type(error).__name__


def _open_with_fsspec(root: str, cause: pa.ArrowInvalid) -> tuple[pafs.FileSystem, str]:
    """For the schemes pyarrow has no client of its own for; fsspec comes with torch and transformers."""
    try:
        from fsspec.core import url_to_fs

        files, base = url_to_fs(root)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{root}: neither pyarrow ({cause}) nor fsspec ({error}) opens this URI") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(files)), base


def _list_local(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Walks with `os.scandir`, one folder in memory at a time.

    Links to folders are followed, but every folder is read once: under its plain name where it has one below `root`,
    else under the first of its links by name. So links that lead in circles end.
    """
    links: list[str] = []
    seen: set[str] = set()  # real places; inode numbers mean little on some mounts
    yield from _walk_plain(root, "", endings, seen, links)
    while links:
        later: list[str] = []
        for name in sorted(links):
            yield from _walk_plain(root, name, endings, seen, later)
        links = later


def _walk_plain(root: Path, start: str, endings: tuple[str, ...], seen: set[str], links: list[str]) -> Iterator[str]:
    """The files below one folder, links to folders left out: they go to `links`. Folders in `seen` are passed by."""
    pending = [(start, os.path.realpath(root / start))]
    while pending:
        below, real = pending.pop()
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(root / below) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append((name, f"{real.rstrip('/')}/{entry.name}"))
                elif entry.is_symlink() and entry.is_dir():
                    links.append(name)
                elif entry.name.lower().endswith(endings):
                    yield name
                elif entry.is_symlink() and not entry.is_file():
                    _LOG.warning(
                        "%s is a link that leads nowhere: whatever was to be found there is missing", root / name
                    )


def _download(location: str, target: Path, endings: tuple[str, ...]) -> None:
    files, path = open_root(location)
    try:
        if files.get_file_info(path).is_file:
            _copy_out(files, path, target)
            return
        for name in sorted(list_names(location, endings)):
            (local := target / check_relative(name)).parent.mkdir(parents=True, exist_ok=True)
            _copy_out(files, f"{path}/{name}", local)
    except FileNotFoundError:
        raise
    except STORAGE_ERRORS as error:
        raise StorageError(f"{location} cannot be copied here: {error}") from error


def _copy_out(files: pafs.FileSystem, path: str, target: Path) -> None:
    with open_input(files, path) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _PIECE)


def _upload(local: Path, location: str) -> None:
    files, path = open_root(location)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.tmp-{uuid.uuid4().hex}"
    try:
        with open_regular(local) as source, _open_sink(files, temporary, folder) as sink:
            shutil.copyfileobj(source, sink, _PIECE)
        files.move(temporary, path)
    except STORAGE_ERRORS as error:
        if files.get_file_info(temporary).is_file:
            files.delete_file(temporary)
        raise StorageError(f"{location} cannot be written: {error}") from error


def _open_sink(files: pafs.FileSystem, path: str, folder: str) -> pa.NativeFile:
    try:
        return files.open_output_stream(path)
    except FileNotFoundError:
        files.create_dir(folder, recursive=True)
        return files.open_output_stream(path)
