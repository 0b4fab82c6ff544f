"""Where files may lie: on this machine, or behind a URI that `data.object_store` opens.

A *location* is a `Path` (local: read by memory map, written as `data.files` does) or a URI (``s3://...``, ``gs://...``,
``https://...``), a `str`. ``file://`` becomes a `Path`, so that local files are never slow. Knows no format.
Credentials come from the environment; a URI that holds a password is refused, because manifests remember their roots.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa

from dto_pipeline.data.files import commit_over, staged, temporary_folder, write_bytes_atomic
from dto_pipeline.data.object_store import StorageError as StorageError
from dto_pipeline.data.object_store import StoreError as StoreError
from dto_pipeline.data.object_store import open_remote
from dto_pipeline.paths import check_relative, resolve_inside
from dto_pipeline.reading import IrregularFile, check_regular, open_regular

Location = Path | str
STORAGE_ERRORS = (OSError, pa.ArrowException)  # what reading a place raises besides FileNotFoundError
_LOG = logging.getLogger(__name__)


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
        StorageError: a URI that is malformed, holds a password, or names a file of another machine.
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        host, slash, path = text.removeprefix("file://").partition("/")
        if host not in ("", "localhost") or not slash:
            raise StorageError(f"{text} names the machine {host!r}, no path of this one; expected file:///FOLDER")
        return Path(unquote(slash + path))
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


def open_input(location: Location) -> pa.NativeFile:
    """Open a file for random access; a local one only if it is a regular file.

    Raises:
        FileNotFoundError: no such file. OSError: it cannot be opened.
    """
    location = as_location(location)
    if isinstance(location, Path):
        check_regular(location)
        return pa.OSFile(str(location))
    folder, name = parent_and_name(location)
    return pa.PythonFile(open_remote(str(folder)).open(name), mode="r")


def version_of(location: Location) -> tuple[int, object]:
    """Size and time of change of a file; raises FileNotFoundError."""
    if isinstance(location, Path):
        found = location.stat()
        return found.st_size, found.st_mtime_ns
    folder, name = parent_and_name(location)
    return open_remote(str(folder)).version_of(name)


def exists(location: Location) -> bool:
    """True if there is a file."""
    location = as_location(location)
    if isinstance(location, Path):
        return location.is_file()
    folder, name = parent_and_name(location)
    return open_remote(str(folder)).exists(name)


def folder_exists(location: Location) -> bool:
    """True if there is a folder, or, behind a URI, anything below it; also where a server will not say.

    Raises:
        StorageError: a URI that no store opens.
    """
    location = as_location(location)
    if isinstance(location, Path):
        return location.is_dir()
    store = open_remote(location)
    try:
        return next(store.walk(), None) is not None
    except STORAGE_ERRORS:  # whoever may read objects may not be allowed to list them: reading will tell
        return True


def is_there(location: Location) -> bool:
    """True if there is a file or a folder; False also where the storage cannot be asked."""
    location = as_location(location)
    if isinstance(location, Path):
        return location.exists()
    try:
        return exists(location) or next(open_remote(location).walk(), None) is not None
    except STORAGE_ERRORS:
        return False


def read_head(root: Location, name: str, limit: int | None) -> bytes:
    """The first `limit` bytes (None = all) of a file below a folder.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        UnsafePath: `name` leaves the folder.
    """
    root = as_location(root)
    if isinstance(root, str):
        return open_remote(root).read_head(check_relative(name), limit)
    with open_regular(root / check_relative(name)) as source:
        return source.read(-1 if limit is None else limit)


def list_names(root: Location, endings: tuple[str, ...]) -> Iterator[str]:
    """Every file below a folder whose name ends so (in any case), relative to `root`; in no particular order.

    Links are followed, see `_list_local`.

    Raises:
        FileNotFoundError: no such folder.
    """
    root = as_location(root)
    if isinstance(root, Path):
        yield from _list_local(root, endings)
        return
    found = False
    for name in open_remote(root).walk():
        found = True
        if name.lower().endswith(endings):
            yield name
    if not found:
        raise FileNotFoundError(f"nothing lies below {root}")


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

    Local places change at once (see `data.files`). Elsewhere the finished file is uploaded: an object appears whole.
    """
    if isinstance(location, Path):
        with staged(location) as temporary:
            yield temporary
            commit_over(temporary, location)
        return
    with temporary_folder("dto-write-") as folder:
        local = Path(folder) / base_name(location)
        yield local
        parent, name = parent_and_name(location)
        open_remote(str(parent)).upload(name, local)


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
    parent, file = parent_and_name(location)
    with contextlib.suppress(FileNotFoundError):
        open_remote(str(parent)).download(file, target)
        return
    target.unlink()
    for name in sorted(list_names(location, endings)):
        (local := target / check_relative(name)).parent.mkdir(parents=True, exist_ok=True)
        open_remote(location).download(name, local)
