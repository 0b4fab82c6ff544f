"""What the driver's loop asks of its workers, whatever they run on, and the simplest answer: this process.

A worker is named by a string and has one shard at a time. Times in seconds on the pool's own monotonic clock.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from dataclasses import dataclass
from typing import Protocol

from dto_pipeline.data.receipts import Receipt


class DeviceLost(RuntimeError):
    """The process's accelerator is in a state it does not recover from; the process must be replaced."""


class Runner(Protocol):
    """Does shards. Light until `warm_up`: it travels to the workers before that."""

    def warm_up(self) -> None:
        """Load what is heavy; called once in the process that works."""

    def run(self, shard: int, attempt: int = 1) -> Receipt:
        """Do one shard and publish it; raises when the shard cannot be done."""


@dataclass(frozen=True)
class Event:
    """Something that a worker says, or that is said of it."""

    worker: str


@dataclass(frozen=True)
class WorkerPlaced(Event):
    """It has what it asked for and its process runs: it warms up. From now on it may be found hanging."""

    node: str = ""  # machine it runs on; "" = not told, then nothing is concluded about machines


@dataclass(frozen=True)
class WorkerReady(Event):
    """It has warmed up and may be fed."""

    node: str = ""


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
    """The runner raised; the worker lives on unless `fatal`."""

    shard: int
    error: str  # one line
    detail: str  # trace
    fatal: bool = False


@dataclass(frozen=True)
class WorkerLost(Event):
    """It is gone, with the shard assigned to it."""

    error: str  # one line
    detail: str = ""
    blameless: bool = False  # True: pre-empted or drained, no shard is to be charged
    begun: bool = True  # False: as far as known it had not begun with its shard
    node: str = ""
    out_of_memory: bool = False  # True: it was ended because its machine lacked memory


@dataclass(frozen=True)
class WorkerDraining(Event):
    """Its machine is about to be taken away: it is not to be fed any more."""


class WorkerPool(Protocol):
    """Workers that come, work and go. Names are never used twice; a lost worker is not heard of again."""

    def start_worker(self) -> str:
        """Ask for one more worker; `WorkerPlaced` follows where that is known, then `WorkerReady` or `WorkerLost`."""

    def assign(self, worker: str, shard: int, attempt: int) -> None:
        """Give a worker that has none a shard."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What happened, in order; empty when nothing did within `timeout_s`."""

    def kill(self, worker: str) -> None:
        """End a worker and forget what was assigned to it; no event of that worker follows. It may be lost already."""

    def avoid_node(self, node: str) -> None:
        """Start no more workers on a machine that an event has named."""

    def now(self) -> float:
        """Monotonic clock [s]."""

    def close(self) -> None:
        """End all workers."""


def process_name() -> str:
    """Name of this process as receipts spell it: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def one_line(error: BaseException) -> str:
    """Type and message of an error without line breaks, at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


class InProcessPool:
    """One worker, this process: no Ray, nothing to kill, and nobody who watches it: what hangs here, hangs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._assigned: tuple[str, int, int] | None = None  # worker, shard, attempt
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
        self._assigned = worker, shard, attempt

    def wait(self, timeout_s: float) -> list[Event]:
        """Work off the shard; takes as long as it takes."""
        if not self._events and self._assigned is not None:
            (worker, shard, attempt), self._assigned = self._assigned, None
            try:
                return [ShardDone(worker, shard, self._runner.run(shard, attempt))]
            except Exception as error:
                fatal = isinstance(error, DeviceLost)
                return [ShardRaised(worker, shard, one_line(error), traceback.format_exc(), fatal)]
        events, self._events = self._events, []
        return events

    def kill(self, worker: str) -> None:
        """A process cannot be taken from itself: the next worker is this one, warmed up anew."""
        self._assigned = None

    def avoid_node(self, node: str) -> None:
        """There is one machine here; its events name none."""

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._assigned = None
