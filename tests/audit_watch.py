"""Hears what a piece of code does to the world: imports, programs, files, sockets, as Python's audit hooks tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# audit events of whatever a pickle could do
_TELLTALE = ("import", "exec", "compile", "pickle.find_class", "os.", "subprocess.", "open", "socket.", "ctypes.")


class AuditWatch:
    """An audit hook, which can never be removed, with a switch."""

    def __init__(self) -> None:
        self._heard: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._heard is not None and event.startswith(_TELLTALE):
            self._heard.append(f"{event} {args[:1]}")

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """The list that events are written to while the block runs."""
        heard: list[str] = []
        self._heard = heard
        try:
            yield heard
        finally:
            self._heard = None
