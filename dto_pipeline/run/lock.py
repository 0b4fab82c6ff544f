"""One driver per run: flock for this machine, a lease with a heartbeat for all others.

Knows both and how they go together; `run.lease` has the rules of the lease. On a local folder the kernel drops the
flock with the process, however it died, so a dead driver of this machine is followed at once; the lease keeps out
drivers of other machines, where flock is often local to each. A URI, or a file system without flock, has the lease
only.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from dto_pipeline.config import RunConfig
from dto_pipeline.data.file_lock import take_lock
from dto_pipeline.data.storage import Location, parent_and_name
from dto_pipeline.data.store import open_store
from dto_pipeline.errors import DtoError
from dto_pipeline.run.lease import (
    Lease,
    RunLocked,
    RunLockLost,
    machine_mark,
    parse_record,
    process_mark,
    read_newest,
    refusal,
)

__all__ = ["DriverLock", "LockHolder", "RunLockLost", "RunLocked", "read_holder"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockHolder:
    """Who holds a run, or held it last and has not left in good order."""

    pid: int
    host: str
    since: str = field(default="", compare=False)  # UTC by its own clock
    beat_at: str = field(default="", compare=False)  # last heartbeat, likewise
    machine: str = field(default="", compare=False)  # see `lease.LeaseRecord`
    process: str = field(default="", compare=False)
    lease_s: float = field(default=0.0, compare=False)  # silence after which it may be followed [s]

    @property
    def state(self) -> str:
        """``alive``, ``gone``, or ``on another host`` (cannot be told from here)."""
        if self.host != socket.gethostname() or (self.machine and self.machine != machine_mark()):
            return "on another host"
        found = process_mark(self.pid)
        return "alive" if found and self.process in ("", found) else "gone"

    def describe(self) -> str:
        """Who, where, in which state, heard of when."""
        beat = f", last heartbeat {self.beat_at} by its clock" if self.beat_at else ""
        return f"pid {self.pid} on {self.host} ({self.state}{beat})"


class DriverLock:
    """Context manager that holds a run for this process."""

    def __init__(self, path: Location, config: RunConfig | None = None) -> None:
        """
        Args:
            path: the run's lock file; leases lie in a folder beside it.
            config: `lease_s` and `heartbeat_s`; None = the defaults.
        """
        self.path = path
        self._store = open_store(parent_and_name(path)[0])
        self._config = config or RunConfig()
        self._stream: TextIO | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> DriverLock:
        """Raises: RunLocked when a live driver holds the run; DtoError where the folder cannot be written."""
        alone = self._take_flock() if isinstance(self.path, Path) else False
        lease = Lease(self._store, self._config)
        try:
            lease.acquire(alone_here=alone)
        except BaseException as error:
            self._drop_flock()
            if isinstance(error, OSError) and not isinstance(error, DtoError):
                raise DtoError(_unwritable(self._store.root, error)) from error
            raise
        self._lease = lease
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        try:
            if lease is not None:
                lease.release()
        except OSError as problem:  # the next driver waits until it expires; what went wrong before matters more
            _LOG.warning("the lease of %s could not be given back: %s", self._store.root, problem)
        finally:
            self._drop_flock()

    def check(self, ask: bool = True) -> None:
        """Make sure the run is still ours; see `Lease.check`. Nothing happens when it is not held.

        Raises:
            RunLockLost: another driver took it over.
        """
        if self._lease is not None:
            self._lease.check(ask)

    def _take_flock(self) -> bool:
        """Lock the file; False where the file system has no flock. Raises: RunLocked."""
        assert isinstance(self.path, Path)
        try:
            stream = self.path.open("a+")
        except OSError as error:
            raise DtoError(_unwritable(self.path.parent, error)) from error
        try:
            locked = take_lock(stream)
        except OSError as error:
            stream.close()
            if isinstance(error, BlockingIOError):
                raise RunLocked(refusal(self._store, parse_record(read_newest(self._store)[1]))) from error
            raise
        if not locked:
            stream.close()
            _LOG.info("%s: no flock here, the lease alone keeps other drivers out", self.path)
            return False
        self._stream = stream
        return True

    def _drop_flock(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _unwritable(place: Location, error: OSError) -> str:
    return f"{place} cannot be written ({error}); make it writable, or room on the disk, or choose another folder"


def read_holder(path: Location) -> LockHolder | None:
    """Who holds the run of a lock file, by what its lease says; None when nobody does."""
    record = parse_record(read_newest(open_store(parent_and_name(path)[0]))[1])
    if record is None or record.released:
        return None
    return LockHolder(
        record.pid, record.host, record.since, record.beat_at, record.machine, record.process, record.lease_s
    )
