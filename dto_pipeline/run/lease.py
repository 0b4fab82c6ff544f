"""One driver per run: a lease with a heartbeat. Seconds.

    lease/00000007.json    the newest number is the lease; its owner rewrites it every `heartbeat_s`

A driver takes the lease by creating the file with the next number; only one process can do that (create if absent).
Only the owner of a number writes its file: a driver that was paused while another one took over finds a higher number
and stops. The newest file stays when its owner leaves (``released``), so that no number is used twice.

A driver of this machine is judged by its process: if it is dead, the next driver starts at once; if it lives, paused or
not, it keeps a run in a local folder. Any other driver is judged by its heartbeat, and clocks of two hosts are never
compared: who wants the run watches the file for `lease_s` on an own monotonic clock. If it does not change, its owner
is dead.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dto_pipeline.config import RunConfig
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.receipts import RecordInvalid, parse_record
from dto_pipeline.data.storage import Location, Store, open_store
from dto_pipeline.errors import DtoError

LEASE_FOLDER = "lease"
LOOK_S = 1.0  # how often the lease of a driver that may be dead is read
LEASE_SCHEMA = "dto-lease/1"
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts the machine's sleep, where there is one
_NAME = re.compile(r"(\d{8})\.json")
_LOG = logging.getLogger(__name__)


class RunLocked(DtoError):
    """Another driver works on this run; the message names it."""


class RunLockLost(DtoError):
    """Another driver took this run over, or this one could not write its heartbeat in time."""


@dataclass(frozen=True)
class LeaseRecord:
    """Content of a lease file."""

    pid: int
    host: str
    machine: str  # boot and pid namespace of the process; "" = unknown
    process: str  # when that process started, by its machine's count: pids are reused
    token: str  # one per driver
    since: str  # UTC, by the owner's clock; for display
    beat: int
    beat_at: str  # UTC, by the owner's clock; for display
    heartbeat_s: float
    lease_s: float
    released: bool = False  # True: its owner gave it back

    @property
    def state(self) -> str:
        """``alive``, ``gone``, or ``on another host`` (not known here)."""
        if self.host != socket.gethostname() or (self.machine and self.machine != machine_mark()):
            return "on another host"
        found = process_mark(self.pid)
        return "alive" if found and self.process in ("", found) else "gone"

    @property
    def is_free(self) -> bool:
        """Whether it was given back, or its owner is known to be dead."""
        return self.released or (bool(self.machine) and self.state == "gone")

    def describe(self) -> str:
        """Process, host and start, as text."""
        return f"process {self.pid} on {self.host} since {self.since}"

    def to_bytes(self) -> bytes:
        return json_bytes({"schema": LEASE_SCHEMA, **asdict(self)})


class DriverLock:
    """Context manager that holds a run for this process, with a heartbeat in a daemon thread; `check` it regularly."""

    def __init__(
        self, root: Location, config: RunConfig | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        """`config`: `lease_s` and `heartbeat_s` of the run in the folder `root`; `clock`: monotonic [s]."""
        self._store, self._is_local = open_store(root), isinstance(root, Path)
        self._clock = clock or (lambda: time.clock_gettime(_CLOCK))
        self._epoch = 0
        self._record = new_record(config or RunConfig())
        self._lost = ""  # why, once it is
        self._renewed_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)

    def __enter__(self) -> DriverLock:
        """Take the lease: at once if it is free, else after watching its owner for as long as the lease lasts.

        Raises: RunLocked if a live driver holds the run; DtoError if the folder cannot be written.
        """
        try:
            before = self._take()
        except OSError as error:
            if isinstance(error, DtoError):
                raise
            advice = "make it writable, or room on the disk, or choose another folder"
            raise DtoError(f"{self._store.root} cannot be written ({error}); {advice}") from error
        if before is not None and not before.released:
            advice = "if a run without workers dies at the same image again, --workers 1 finds that image and goes on"
            _LOG.warning("%s drove %s and died; %s", before.describe(), self._store.root, advice)
        self._renewed_at = self._clock()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the heartbeat and give the lease back, if it is still ours."""
        self._stop.set()
        self._thread.join()
        try:
            if not self._lost and _epochs(self._store)[-1:] == [self._epoch]:
                self._store.replace(_name(self._epoch), replace(self._record, released=True).to_bytes())
        except OSError as problem:  # others wait until it expires, or this process ends; an earlier error matters more
            _LOG.warning("the lease of %s could not be given back: %s", self._store.root, problem)

    def _take(self) -> LeaseRecord | None:
        """Create the next lease file; returns the record of the one before."""
        while True:
            epoch, data = read_newest(self._store)
            record = parse_lease(data)
            if self._is_local and record is not None and not record.is_free and record.state == "alive":
                raise self._locked(record)
            free = data is None or (record is not None and record.is_free)
            if (free or self._watch(epoch, data, record)) and self._claim(epoch + 1):
                return record

    def _watch(self, epoch: int, data: bytes | None, record: LeaseRecord | None) -> bool:
        """Watch a lease; True if it did not change, False if its owner gave it back.

        A file that cannot be read is watched for two heartbeats only: a live owner rewrites it at each heartbeat.
        """
        patience = record.lease_s if record else 2 * self._record.heartbeat_s
        who = record.describe() if record else "an unreadable lease"
        _LOG.warning("%s is held by %s: taken over if nothing changes for %.0f s", self._store.root, who, patience)
        started = self._clock()
        while self._clock() - started < patience:
            time.sleep(LOOK_S)
            found = read_newest(self._store)
            if found != (epoch, data):
                now = parse_lease(found[1])
                if now is not None and now.is_free:
                    return False
                raise self._locked(now)
        return True

    def _locked(self, record: LeaseRecord | None) -> RunLocked:
        who, until = "another process", ""
        if record is not None and not record.released:
            who = f"{record.describe()} (heartbeat {record.beat}, every {record.heartbeat_s:g} s)"
            until = f": its lease ends {record.lease_s:g} s after its last heartbeat"
        advice = f"wait for it, or stop it and start again{until}"
        return RunLocked(f"{self._store.root} is being worked on by {who}; {advice}")

    def check(self, ask: bool = False) -> None:
        """`ask`: look for another driver now, not only at the next heartbeat.

        Raises:
            RunLockLost: another driver has the run, or the heartbeat could not be written.
        """
        if ask:
            self.beat()
        if self._lost:
            raise RunLockLost(self._lost)

    def _claim(self, epoch: int) -> bool:
        """Create the lease file `epoch`; if the store's answer was lost, the token shows whether it is ours."""
        name, data = _name(epoch), self._record.to_bytes()
        if not self._store.create(name, data) and self._store.read(name) != data:
            return False
        self._epoch = epoch
        for older in _epochs(self._store):
            if older < epoch:
                self._store.remove(_name(older))
        return True

    def _keep_beating(self) -> None:
        while not self._lost and not self._stop.wait(self._record.heartbeat_s):
            self.beat()
        if self._lost:
            _LOG.error("%s", self._lost)

    def beat(self) -> None:
        """Write the heartbeat, or find that another driver has the run."""
        asked_at, root = self._clock(), self._store.root
        try:
            epoch, data = read_newest(self._store)
            if epoch > self._epoch:
                record = parse_lease(data)
                who = record.describe() if record else "another driver"
                self._lost = f"{root} was taken over by {who}: this driver wrote no heartbeat for too long and stops"
                return
            self._record = replace(self._record, beat=self._record.beat + 1, beat_at=_utc_now())
            self._store.replace(_name(self._epoch), self._record.to_bytes())
            self._renewed_at = asked_at
        except OSError as error:
            _LOG.warning("the heartbeat of %s could not be written: %s", root, error)
            silent = asked_at - self._renewed_at
            if silent >= self._record.lease_s:
                advice = "finished shards stay done; start again when the storage can be written"
                self._lost = f"the lease of {root} could not be renewed for {silent:.0f} s ({error}); {advice}"


def read_holder(root: Location) -> LeaseRecord | None:
    """The record of the driver that holds a run, or held it when it died; None if there is none."""
    record = parse_lease(read_newest(open_store(root))[1])
    return None if record is None or record.released else record


def new_record(config: RunConfig) -> LeaseRecord:
    """The record of this process."""
    now, pid = _utc_now(), os.getpid()
    me = pid, socket.gethostname(), machine_mark(), process_mark(pid), uuid.uuid4().hex
    return LeaseRecord(*me, since=now, beat=0, beat_at=now, heartbeat_s=config.heartbeat_s, lease_s=config.lease_s)


def read_newest(store: Store) -> tuple[int, bytes | None]:
    """Number and bytes of the newest lease file; (0, None) if there never was one."""
    while epochs := _epochs(store):
        try:
            return epochs[-1], store.read(_name(epochs[-1]))
        except FileNotFoundError:
            continue  # meanwhile a newer one was created, and this one removed
    return 0, None


def parse_lease(data: bytes | None) -> LeaseRecord | None:
    """The record of a lease file; None if it cannot be read."""
    try:
        return LeaseRecord(**parse_record(data or b"", LEASE_FOLDER, LEASE_SCHEMA, LeaseRecord))
    except RecordInvalid:
        return None


def process_name() -> str:
    """Name of this process in receipts: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def machine_mark() -> str:
    """Identity of this boot of this machine, and of this container's pids; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_mark(pid: int) -> str:
    """When a process of this machine started [kernel ticks]; "" if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _epochs(store: Store) -> list[int]:
    """Numbers of the lease files, ascending."""
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, store.entries(LEASE_FOLDER)) if match)


def _name(epoch: int) -> str:
    return f"{LEASE_FOLDER}/{epoch:08d}.json"


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
