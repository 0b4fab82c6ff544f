"""Write local files whole or not at all: under a temporary name beside the place, synced, then named in one step.

`write_new` names a file only if the name is free (for everything that means "done"), `replaced` replaces (for
reports). A killed writer leaves a ``.<name>.tmp-<hex>``; the name identifies its process, so that `sweep_abandoned`
can remove it. Where a mount lacks a step, another with the same effect is taken, or an error says what is missing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from dto_pipeline.errors import NO_ROOM, DtoError
from dto_pipeline.reading import IrregularFile, open_regular

# Errors of mounts without hard links: FAT, CIFS, VirtualBox, FUSE of all kinds, unions of folders, Android.
_NO_LINKS = {
    *(errno.EPERM, errno.EACCES, errno.EINVAL, errno.EIO, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EMLINK, errno.EXDEV, errno.EPROTO, errno.ENOTTY),
}
# Errors of mounts that cannot sync a folder: VirtualBox, older CIFS, some FUSE. It protects against power cuts only.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of <fcntl.h> and <linux/fs.h>
_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{32}", re.DOTALL)
_MARK_DIGITS = 16  # hexadecimal: 8 of the process's id, 8 of where that id means something
_FOLDER = re.compile(rf"dto-[a-z]+-([0-9a-f]{{{_MARK_DIGITS}}})-.+", re.DOTALL)
_LOG = logging.getLogger(__name__)


@contextmanager
def naming_full_disk(place: str | Path) -> Iterator[None]:
    """Add the place to errors of a full disk, which lack it when an open file is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(place)) from error


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, which is made if missing; what still has that name is removed."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/null would be replaced by a file
        raise IrregularFile(errno.EINVAL, "it is a pipe, socket or device; name a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with naming_full_disk(path):
            yield temporary
    finally:
        _remove(temporary)


def write_new(path: Path, data: bytes) -> bool:
    """Write a file only if the name is free.

    By a link, or by a rename where there are no links: both create the name in one step and never replace a file.

    Returns:
        True if this call created `path`; False if it existed, which then stays untouched.

    Raises: OSError: with advice where the file system can neither link nor rename without replacing.
    """
    with staged(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            refused = _rename_new(temporary, path)
            if refused == errno.EEXIST:
                return False
            if refused:
                advice = (
                    f"the file system makes no hard links ({error.strerror}) and cannot rename without replacing "
                    f"({os.strerror(refused)}), one of which create-if-absent needs; write to another one"
                )
                raise OSError(error.errno, advice, str(path)) from error
    sync(path.parent)
    return True


def _rename_new(temporary: Path, path: Path) -> int:
    """Linux's renameat2 with RENAME_NOREPLACE, which Python lacks; returns its errno, 0 = done."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return errno.ENOSYS
    places = (_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path))
    return ctypes.get_errno() if rename(*places, _RENAME_NOREPLACE) else 0


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name as `staged`; the file written there takes the place of `path` if the block raises nothing."""
    with staged(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, replacing what was there."""
    write_bytes_atomic(path, json_bytes(value))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what was there."""
    with replaced(path) as temporary:
        temporary.write_bytes(data)


def temporary_name(name: str) -> str:
    """A new temporary name for what will be called `name`; it holds the process that writes it."""
    return f".{name}.tmp-{_own_mark()}{uuid.uuid4().hex[:_MARK_DIGITS]}"


def is_temporary(name: str) -> bool:
    """True for a temporary name, of a living writer or a killed one."""
    return _TEMPORARY.fullmatch(name) is not None


def is_abandoned(name: str) -> bool:
    """True for a temporary name of a process of this machine that has ended; False where that cannot be known."""
    return is_temporary(name) and _is_dead(name[-2 * _MARK_DIGITS : -_MARK_DIGITS])


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """JSON as this project writes it: sorted keys, one a line."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut; folders where their file system can do it."""
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FOLDER_SYNC:
            advice = f"the file system cannot sync it ({error.strerror}), so it is not safe there; use another one"
            raise OSError(error.errno, advice, str(path)) from error
        _log_unsynced(path, error.strerror)
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder for temporary files that `sweep_abandoned` knows; `prefix` is like ``dto-word-``. Raises: DtoError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"{prefix}{_own_mark()}-")
    except OSError as error:  # a FileNotFoundError without a path: no usual place can be written
        raise DtoError(f"no temporary folder can be made ({error.strerror}); set TMPDIR to one with room") from error
    with folder as name, naming_full_disk(name):
        yield Path(name)


@lru_cache(maxsize=256)  # once a folder
def _log_unsynced(folder: Path, reason: str | None) -> None:
    after = "after a power cut the newest names in it may be gone; a run would do their shards again"
    _LOG.info("%s: this file system syncs no folders (%s): %s", folder, reason, after)


def sweep_abandoned(stem: Path | None = None) -> int:
    """Remove temporary folders of killed processes of this machine, and count them.

    With `stem` also half-written files and folders next to it whose names begin with its own (without the suffix).
    What belongs to a living process, or to one of another machine or container, stays.
    """
    folders = _entries(Path(tempfile.gettempdir()))
    dead = [entry for entry in folders if (match := _FOLDER.fullmatch(entry.name)) and _is_dead(match[1])]
    if stem is not None:
        begin = f".{stem.stem}."
        dead += [entry for entry in _entries(stem.parent) if entry.name.startswith(begin) and is_abandoned(entry.name)]
    for entry in dead:
        _remove(entry)
    return sum(not entry.exists() for entry in dead)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # there is none, or it cannot be listed
        return []


def _own_mark() -> str:
    return f"{os.getpid() & 0xFFFFFFFF:08x}{_machine()}"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where this process's id is valid, as a hash: one boot of one machine, and one PID namespace (containers)."""
    facts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            facts.append(os.readlink(place) if place.endswith("pid") else Path(place).read_text())
        except OSError:
            facts.append("")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[: _MARK_DIGITS // 2]


def _is_dead(mark: str) -> bool:
    """Whether the process of a mark was one of this machine and has ended."""
    with suppress(OverflowError, OSError):
        try:
            os.kill(int(mark[: _MARK_DIGITS // 2], 16), 0)
        except ProcessLookupError:
            return mark[_MARK_DIGITS // 2 :] == _machine()
    return False


def take_lock(stream: TextIO) -> bool:
    """Lock an open file without waiting; closing the file, or the end of this process, releases the lock.

    Processes forked from this one close their copy of the file, or the lock would outlive this process. On some network
    and FUSE file systems each machine has a lock of its own. False: the file system has no such locks. Raises:
    BlockingIOError: another process holds the lock.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    os.register_at_fork(after_in_child=stream.close)
    return True
