"""Read files that somebody else wrote: regular files only, with a bound on their size; JSON and YAML with named errors.

Opening a named pipe would hang, and /dev/zero would fill the memory, so the kind of a file (links are followed) is
checked before and after it is opened. Sizes in bytes.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

MOST_TEXT = 1 << 26  # of a config, a dataset description or a record: a thousand times what any of them needs
_PIECE = 1 << 16


class IrregularFile(OSError):
    """A folder, pipe, socket or device in the place of a file; `strerror` says so without the path."""


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        FileNotFoundError: there is none.
        IrregularFile: it is a folder, a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    check_regular(path)
    # O_NONBLOCK: if the file has just become a pipe, opening it would wait for a writer. Regular files ignore it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | Path) -> None:
    """Raise as `open_regular` where a path is no regular file, before a library opens it by name."""
    _check_mode(os.stat(path).st_mode, path)


def read_regular(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """All bytes of a file; raises as `open_regular`, and OSError (EFBIG) where it has more than `most`."""
    data = read_start(path, most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes, which no such file needs", str(path))
    return data


def read_start(path: str | Path, limit: int) -> bytes:
    """The first `limit` bytes of a file, or all where it has fewer; raises as `open_regular`."""
    with open_regular(path) as stream:
        if size := os.fstat(stream.fileno()).st_size:
            return stream.read(min(limit, size))  # Python allocates as much as is asked for
        pieces: list[bytes] = []  # on some mounts every file has size 0
        while limit and (piece := stream.read(min(limit, _PIECE))):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)


def parse_json(data: bytes | str) -> Any:
    """The value of JSON; raises ValueError for everything that is wrong, also bytes that are not UTF-8, and nesting."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class _PlainLoader(yaml.SafeLoader):
    """Refuses equal keys, of which PyYAML silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # before `<<` merges others into it
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        for name in (name for name, count in keys.items() if count > 1):
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} comes twice", node.start_mark)
        return node


def parse_yaml(data: bytes | str) -> Any:
    """The value of YAML, plain types only; raises ValueError for everything that is wrong, also equal keys."""
    try:
        return yaml.load(data.decode() if isinstance(data, bytes) else data, _PlainLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (yaml.YAMLError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML's constructors
        raise ValueError(str(error) or type(error).__name__) from error


def _check_mode(mode: int, path: str | Path) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IrregularFile(errno.EISDIR, "it is a folder; expected a file", str(path))
    raise IrregularFile(errno.EINVAL, "it is a pipe, socket or device; expected a regular file", str(path))
