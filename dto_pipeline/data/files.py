"""How a file comes into being: written under a temporary name beside its place, synced, then given its name at once.

Knows two ways of naming: `commit_new` (only if nobody was first; for anything that says "done") and `commit_over`
(the last writer wins; for reports). A reader never sees half a file; a killed writer leaves a ``.<name>.tmp-<hex>``
that `is_temporary` knows. The name tells whose it is, so that the next one can take away what a dead process left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{32}", re.DOTALL)
_MARK_DIGITS = 16  # hexadecimal: 8 of the process's id, 8 of where that id means something
_FOLDER = re.compile(rf"dto-[a-z]+-([0-9a-f]{{{_MARK_DIGITS}}})-.+", re.DOTALL)
_CHUNK = 1 << 20  # bytes


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path` (made if missing); whatever still bears it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{_own_mark()}{uuid.uuid4().hex[:_MARK_DIGITS]}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def commit_new(temporary: Path, path: Path) -> bool:
    """Give a finished temporary file its name if the name is free.

    Returns:
        True if this call created `path`; False if it existed, which then stays untouched.

    Raises:
        OSError: with advice where the file system has no hard links.
    """
    sync(temporary)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            advice = "the file system has no hard links, which create-if-absent needs; write to another one"
            raise OSError(error.errno, advice, str(path)) from error
        raise
    sync(path.parent)
    return True


def commit_over(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, replacing what bore it."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, replacing what was there."""
    write_bytes_atomic(path, json_bytes(value))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what was there."""
    with staged(path) as temporary:
        temporary.write_bytes(data)
        commit_over(temporary, path)


def is_temporary(name: str) -> bool:
    """True for a name `staged` hands out: the leftover of a killed writer, unless one is alive."""
    return _TEMPORARY.fullmatch(name) is not None


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(value: Any) -> bytes:
    """JSON as this project writes it: keys in order, a line each."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """A folder among the system's temporary ones that `sweep_abandoned` knows; `purpose`: one word in small letters."""
    return tempfile.TemporaryDirectory(prefix=f"dto-{purpose}-{_own_mark()}-")


def sweep_abandoned(stem: Path | None = None) -> int:
    """Remove temporary folders that processes of this machine left when they were killed.

    Args:
        stem: also half-written files beside it whose names begin with its own, without suffix.

    Returns:
        How many were removed. What belongs to a living process, or to one that cannot be seen from here, stays.
    """
    found = [
        (entry, match[1]) for entry in _entries(Path(tempfile.gettempdir())) if (match := _FOLDER.fullmatch(entry.name))
    ]
    if stem is not None:
        begin = f".{stem.stem}."
        named = [entry for entry in _entries(stem.parent) if entry.name.startswith(begin) and is_temporary(entry.name)]
        found += [(entry, entry.name[-2 * _MARK_DIGITS : -_MARK_DIGITS]) for entry in named]
    dead = [entry for entry, mark in found if _is_dead(mark)]
    for entry in dead:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return sum(not entry.exists() for entry in dead)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or not to be listed: nothing to sweep
        return []


def _own_mark() -> str:
    return f"{os.getpid() & 0xFFFFFFFF:08x}{_machine()}"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where this process's id means something: one boot of one machine, one space of process ids (containers)."""
    told = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            told.append(os.readlink(place) if place.endswith("pid") else Path(place).read_text())
        except OSError:
            told.append("")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[: _MARK_DIGITS // 2]


def _is_dead(mark: str) -> bool:
    """Whether the process a mark tells of was one of this machine and is gone."""
    if mark[_MARK_DIGITS // 2 :] != _machine():
        return False
    try:
        os.kill(int(mark[: _MARK_DIGITS // 2], 16), 0)
    except ProcessLookupError:
        return True
    except (OverflowError, OSError):
        return False
    return False
