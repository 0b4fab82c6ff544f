"""Safe output of text from files, tables, and logs: control characters and direction marks are shown as escapes.

Names in label files, tars and folders are not trusted: U+009B begins a command of the terminal, U+202E shows
``gpj.exe`` as ``exe.jpg``. Everything that the command line prints, logs or writes into a page passes here. Logs are
lines of text or JSON; ``extra={"facts": {...}}`` of a log call become keys of its JSON object.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from dto_pipeline.errors import DtoError

# control characters (C0, DEL, C1), direction marks, line and paragraph separators, byte order mark, surrogates
UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_SILENT_S = 5.0  # what takes less has no progress line [s]
_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}]")


def printable(text: str) -> str:
    r"""The text with unprintable characters as escapes (``\x9b``, ``\u202e``); line breaks and tabs stay."""

    def escape(found: re.Match[str]) -> str:
        sign = found.group()
        return sign if sign in "\n\t" else f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"

    return _UNPRINTABLE.sub(escape, text)


def progress_bar(items: Iterable[Any] | None, unit: str, total: int | None = None) -> Any:
    """A tqdm of `items`, or of `total` bytes, for what may take minutes: on a terminal only, while it lasts."""
    from tqdm import tqdm

    scale = unit == "B"
    return tqdm(items, unit=unit, total=total, unit_scale=scale, delay=_SILENT_S, leave=False, disable=None)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


class PrintableFormatter(logging.Formatter):
    """Log lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def printable_stdout(stream: TextIO) -> Iterator[None]:
    """Pass everything printed to `stream`, standard output, through `printable` within the block."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # its encoding may lack letters of names
    with redirect_stdout(_PrintableStream(stream)):  # a full stream, by __getattr__
        yield


class _PrintableStream:
    """A text stream that escapes what is written to it, but for a carriage return at the start (progress lines)."""

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


class JsonLines(logging.Formatter):
    """A JSON object per line: UTC time, level, logger, message, facts, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(level: str = "warning", json_file: str | None = None, replace: bool = True) -> None:
    """Set up the process's log on stderr, from `level` on; `replace` an earlier setup, or keep it.

    `json_file`: a file to which JSON lines are appended too, from ``info`` on; "-" = JSON lines on stderr instead of
    text. Raises: DtoError: it cannot be opened.
    """
    shown: logging.Handler = logging.StreamHandler(sys.stderr)
    people = PrintableFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    shown.setFormatter(JsonLines() if json_file == "-" else people)
    shown.setLevel(level.upper())
    handlers = [shown]
    if json_file not in (None, "-"):
        path = Path(str(json_file))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
        except OSError as error:
            raise DtoError(f"log file {path} cannot be written ({error}); choose another for --log-json") from error
        handlers[1].setFormatter(JsonLines())
        handlers[1].setLevel(logging.INFO)
    logging.basicConfig(level=min(handler.level for handler in handlers), handlers=handlers, force=replace)
