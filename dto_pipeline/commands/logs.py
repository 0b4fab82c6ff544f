"""Where log lines go: a terminal for people, JSON lines for machines.

Knows the `logging` module. A line may carry numbers: ``extra={"facts": {...}}`` become keys of its JSON object. Times
are UTC, seconds.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from dto_pipeline.errors import DtoError
from dto_pipeline.terminal import PrintableFormatter

LEVELS = ("debug", "info", "warning", "error")
STDERR = "-"  # in place of a file: JSON lines instead of lines for people
_PEOPLE = PrintableFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


class LogFileError(DtoError, OSError):
    """A log file that cannot be written; the message names it."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, facts, and the trace of an error."""

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


def configure_logs(level: str = "warning", json_file: str | None = None) -> None:
    """Set up the process's log.

    Args:
        level: least level that is shown, of `LEVELS`.
        json_file: file that JSON lines are appended to, from ``info`` on, beside what is shown; "-" = stderr shows JSON
            lines of `level` itself; None = no JSON.

    Raises:
        LogFileError: the file cannot be opened.
    """
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(JsonLines() if json_file == STDERR else _PEOPLE)
    shown.setLevel(level.upper())
    handlers: list[logging.Handler] = [shown]
    least = shown.level
    if json_file not in (None, STDERR):
        handlers.append(_open_json(Path(str(json_file))))
        least = min(least, logging.INFO)
    logging.basicConfig(level=least, handlers=handlers, force=True)


def _open_json(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise LogFileError(f"log file {path} cannot be written ({error}); choose another for --log-json") from error
    handler.setFormatter(JsonLines())
    handler.setLevel(logging.INFO)
    return handler
