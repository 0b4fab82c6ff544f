"""How a file comes into being: written under a temporary name beside its place, synced, then given its name at once.

Knows two ways of naming: `commit_new` (only if nobody was first; for anything that says "done") and `commit_over`
(the last writer wins; for reports). A reader never sees half a file; a killed writer leaves a ``.<name>.tmp-<uuid>``
that `is_temporary` knows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{32}", re.DOTALL)
_CHUNK = 1 << 20  # bytes


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path` (made if missing); whatever still bears it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
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
