"""How a file that somebody else wrote is opened: regular files only, read with a bound, and JSON or YAML of any depth.

A named pipe in the place of an image would hang its reader for ever, and /dev/zero would fill the memory. So what a
name leads to (links are followed) is looked at before it is opened, and once more when it is open. A parser that runs
out of stack is damage like any other. Knows no dataset and no run. Sizes in bytes.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

MOST_TEXT = 1 << 26  # of a config, a dataset description or a record: a thousand times what any of them needs
_PIECE = 1 << 16
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


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
    # Not blocking: were it made a pipe in this moment, opening would wait for a writer. Regular files do not care.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | Path) -> None:
    """Refuse what is no regular file, for libraries that open files by their names; raises as `open_regular`."""
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
            return stream.read(min(limit, size))  # asked for more, Python sets so much memory aside
        pieces: list[bytes] = []  # some mounts call every file empty
        while limit and (piece := stream.read(min(limit, _PIECE))):
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)


def parse_json(data: bytes | str) -> Any:
    """The value of JSON; raises ValueError whatever is wrong with it: bytes that are not UTF-8, nesting, numbers."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def parse_yaml(data: bytes | str) -> Any:
    """The value of YAML, plain types only; raises ValueError whatever is wrong with it."""
    try:
        return yaml.safe_load(data.decode() if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (yaml.YAMLError, TypeError, AttributeError, OverflowError) as error:  # of PyYAML's constructors
        raise ValueError(str(error) or type(error).__name__) from error


def _check_mode(mode: int, path: str | Path) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IrregularFile(errno.EISDIR, "it is a folder; expected a file", str(path))
    what = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
    raise IrregularFile(errno.EINVAL, f"it is {what}; expected a regular file", str(path))
