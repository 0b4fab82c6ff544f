"""Interface between the driver's loop and its workers, and the simplest pool: this process.

A worker has a name and one shard at a time. Times in seconds on the pool's own monotonic clock.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DeviceLost, one_line
from dto_pipeline.run.lease import process_name


class Runner(Protocol):
    """Does shards. Light until `warm_up`, which loads models in the worker's process: the runner is sent there."""

    def warm_up(self) -> None: ...

    def run(self, shard: int, attempt: int = 1) -> Receipt:
        """Do one shard and publish it; raises if the shard cannot be done."""


@dataclass(frozen=True)
class Event:
    """News of a worker."""

    worker: str
    node: str = field(default="", kw_only=True)  # its machine; "" = unknown


@dataclass(frozen=True)
class WorkerPlaced(Event):
    """It has its CPUs and GPUs and loads; from now on it may hang."""


@dataclass(frozen=True)
class WorkerReady(Event):
    """It has loaded and can be given a shard."""


@dataclass(frozen=True)
class ShardDone(Event):
    shard: int
    receipt: Receipt


@dataclass(frozen=True)
class ShardProgress(Event):
    shard: int
    images: int  # done


@dataclass(frozen=True)
class ShardRaised(Event):
    """The runner raised; the worker goes on unless `fatal`."""

    shard: int
    error: str  # one line
    detail: str  # trace
    fatal: bool = False


@dataclass(frozen=True)
class WorkerLost(Event):
    """It is gone, with its shard."""

    error: str  # one line
    detail: str = ""
    blameless: bool = False  # True: pre-empted or drained, it does not count against its shard
    begun: bool = True  # False: as far as known it had not begun its shard
    out_of_memory: bool = False  # True: it was ended because its machine lacked memory


@dataclass(frozen=True)
class WorkerDraining(Event):
    """Its machine is about to be taken away: it gets no more shards."""


class WorkerPool:
    """Starts, feeds and ends workers. Names are never used twice; no event of a lost worker follows."""

    def start_worker(self) -> str:
        """Ask for one more worker; `WorkerPlaced` follows where that is known, then `WorkerReady` or `WorkerLost`."""
        raise NotImplementedError

    def assign(self, worker: str, shard: int, attempt: int) -> None:
        """Give a shard to an idle worker."""
        raise NotImplementedError

    def wait(self, timeout_s: float) -> list[Event]:
        """The next events, in order; empty after `timeout_s` without any."""
        raise NotImplementedError

    def kill(self, worker: str) -> None:
        """End a worker and drop its shard; no event of it follows. It may be lost already."""

    def avoid_node(self, node: str) -> None:
        """Start no more workers on a machine."""

    def close(self) -> None:
        """End all workers."""

    def now(self) -> float:
        """Monotonic clock [s]."""
        return time.monotonic()


class FailedAttempt(NamedTuple):
    """An attempt that a shard has used up."""

    shard: int
    attempts: int  # so far
    given_up: bool  # True: no more attempts, else it is queued again


class WorkerCounts(NamedTuple):
    """State of the workers, for display."""

    working: int = 0  # ready, on nodes that stay
    leaving: int = 0  # finish their shard before their node is taken away
    loading: int = 0  # have their CPUs and GPUs, and load
    wanted: int = 0  # there is work for so many
    images: int = 0  # done in unfinished shards
    idle_s: float = 0.0  # for so long no worker has been ready


class Ledger(Protocol):
    """Records events: in files and on a progress line in a real run, in counters in a simulation."""

    def shard_done(self, receipt: Receipt) -> None:
        """A shard is finished; its receipt is on disk."""

    def attempt_failed(self, attempt: FailedAttempt, worker: str, error: str, detail: str) -> None:
        """A shard used up an attempt."""

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        """A worker died, or was ended because its machine lacked memory; it is replaced while there is work."""

    def tick(self, workers: WorkerCounts) -> None:
        """Called every few seconds at least."""


class InProcessPool(WorkerPool):
    """One worker: this process, which nothing can end. Without Ray, and without a watchdog for hangs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._events: list[Event] = []
        self._started = 0

    def start_worker(self) -> str:
        self._started += 1
        worker = f"{process_name()}/{self._started}"
        try:
            self._runner.warm_up()
            self._events.append(WorkerReady(worker))
        except Exception as error:
            self._events.append(WorkerLost(worker, one_line(error), traceback.format_exc()))
        return worker

    def assign(self, worker: str, shard: int, attempt: int) -> None:
        """Do the shard; returns when it is done."""
        try:
            self._events.append(ShardDone(worker, shard, self._runner.run(shard, attempt)))
        except Exception as error:
            fatal = isinstance(error, DeviceLost)
            self._events.append(ShardRaised(worker, shard, one_line(error), traceback.format_exc(), fatal))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events
