"""What the driver's loop asks of workers and tells its ledger, and the simplest workers: this process.

A worker is named by a string and has one shard at a time. Times in seconds on the pool's own monotonic clock.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DeviceLost, one_line
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.sanity import Charge


class Runner(Protocol):
    """Does shards. Light until `warm_up`, which loads what is heavy in the process that works: it travels there."""

    def warm_up(self) -> None: ...

    def run(self, shard: int, attempt: int = 1) -> Receipt:
        """Do one shard and publish it; raises when the shard cannot be done."""


@dataclass(frozen=True)
class Event:
    """Something that a worker says, or that is said of it. `node`: its machine; "" = nothing is concluded about it."""

    worker: str


@dataclass(frozen=True)
class WorkerPlaced(Event):
    """It has what it asked for and its process runs: it warms up. From now on it may be found hanging."""

    node: str = ""


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


class Crew(NamedTuple):
    """Who is at work at what, for whoever shows it."""

    working: int  # ready; they may be fed
    leaving: int  # they finish their shard before their node goes
    loading: int  # they have their place and warm up
    starting: int  # asked for and not ready, those that load included
    wanted: int  # there is work for so many
    unfinished: int  # shards pending or under way
    images: int  # done of shards under way, by their workers' last word


class Ledger(Protocol):
    """Remembers what happened: files and progress in a real run, counters in a simulation."""

    def shard_done(self, receipt: Receipt) -> None:
        """A shard is finished; its receipt is on disk."""

    def shard_charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        """A shard used up an attempt."""

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        """A worker died, or was ended because its machine lacked memory; it is replaced while there is work."""

    def waiting(self, seconds: float, loading: int) -> None:
        """Nobody has been ready to work for so long; `loading` workers have their place and warm up."""

    def tick(self, crew: Crew) -> None:
        """Time has passed; called every few seconds at least."""


class InProcessPool:
    """A `WorkerPool` of one worker, this process: no Ray, and nobody who watches it: what hangs here, hangs."""

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
        """Work off the shard; takes as long as it takes."""
        try:
            self._events.append(ShardDone(worker, shard, self._runner.run(shard, attempt)))
        except Exception as error:
            fatal = isinstance(error, DeviceLost)
            self._events.append(ShardRaised(worker, shard, one_line(error), traceback.format_exc(), fatal))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def kill(self, worker: str) -> None:
        """A process cannot be taken from itself: the next worker is this one, warmed up anew."""

    def avoid_node(self, node: str) -> None:
        """There is one machine here; its events name none."""

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        """Nothing is left to be ended."""
