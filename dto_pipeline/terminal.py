"""Text that comes from files, made safe to show: what moves a cursor or turns the reading direction is written out.

Names in label files, tars and folders are a stranger's: U+009B begins a command of the terminal, U+202E shows
``gpj.exe`` as ``exe.jpg``. Everything the command line prints, logs or writes into a page passes here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

# control characters (C0, DEL, C1), direction marks, line and paragraph separators, byte order mark, half characters
UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}]")
_KEPT = "\n\t"


def printable(text: str) -> str:
    r"""The text with all that is no character to read as an escape (``\x9b``, ``\u202e``); lines and tabs stay."""
    return _UNPRINTABLE.sub(_escape, text)


class PrintableFormatter(logging.Formatter):
    """Log lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def printable_stdout(stream: TextIO) -> Iterator[None]:
    """What is printed to `stream`, standard output, goes through `printable` for as long as the block lasts."""
    with redirect_stdout(_PrintableStream(stream)):  # all of a stream, by __getattr__
        yield


class _PrintableStream:
    """A text stream whose writes are printable; a return at the start of a write stays: it redraws a progress line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        begin = "\r" if text.startswith("\r") else ""
        return self._stream.write(begin + printable(text.removeprefix("\r")))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(found: re.Match[str]) -> str:
    sign = found.group()
    if sign in _KEPT:
        return sign
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"
