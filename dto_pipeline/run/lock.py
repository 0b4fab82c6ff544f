"""One driver per run: an advisory lock on a file of the run's folder.

Knows flock and the pid and host of whoever holds it. The kernel drops the lock with the process, however it died, so a
dead driver's lock is simply taken over. It refuses nothing across hosts on file systems whose flock is local to a host;
there two drivers waste work but cannot harm it (files are created if absent, and equal).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from dto_pipeline.errors import DtoError


class RunLocked(DtoError):
    """Another driver is at work on this run; the message names it."""


@dataclass(frozen=True)
class LockHolder:
    """Who wrote the lock file last and has not left in good order."""

    pid: int
    host: str

    @property
    def state(self) -> str:
        """``alive``, ``gone``, or ``on another host`` (cannot be told from here)."""
        if self.host != socket.gethostname():
            return "on another host"
        return "alive" if Path(f"/proc/{self.pid}").exists() else "gone"


class DriverLock:
    """Context manager that holds a run for this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def __enter__(self) -> DriverLock:
        """Raises: RunLocked when a live driver holds the run."""
        stream = self.path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise RunLocked(_refusal(self.path)) from error
        self._stream = stream
        self._write({"pid": os.getpid(), "host": socket.gethostname()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(None)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, holder: dict[str, object] | None) -> None:
        # In place, not by renaming: the lock belongs to this inode.
        if self._stream is None:
            return
        self._stream.truncate(0)
        if holder is not None:
            self._stream.write(json.dumps(holder) + "\n")
        self._stream.flush()


def read_holder(path: Path) -> LockHolder | None:
    """Who holds the run, by what the file says; None when nobody does."""
    try:
        found = json.loads(path.read_text())
        return LockHolder(int(found["pid"]), str(found["host"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never locked, left in good order, or caught in the middle of a write


def _refusal(path: Path) -> str:
    holder = read_holder(path)
    who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    return f"{path.parent} is being worked on by {who}; wait for it, or stop it and start again"
