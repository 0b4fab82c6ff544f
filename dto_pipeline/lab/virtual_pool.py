"""Workers that only pretend to work, on a clock that jumps from event to event; and the scenario they play.

Knows the `WorkerPool` protocol and chance; knows no files, no Ray and no driver. Seconds, virtual unless it says CPU.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run.pool import Event, ShardDone, WorkerLost, WorkerPlaced, WorkerReady

_P = ParamSpec("_P")
_R = TypeVar("_R")


class ScenarioError(DtoError):
    """A scenario that cannot be simulated; the message names the value and what was expected."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    images: int = 10_000_000
    workers: int = 512
    mtbf_s: float = 7200.0  # mean time between the failures of one worker, exponential [s]; inf = none dies
    shard_images: int = 1000
    image_s: float = 0.04  # work of one image on one worker [s]
    queue_s: float = 0.0  # from asking for a worker to its place on a machine [s]
    start_s: float = 60.0  # from there to its first shard [s]
    spread: float = 0.1  # a shard takes between 1 - spread and 1 + spread of its usual time
    preempted: float = 0.0  # share of deaths known to be the node's doing: no shard is charged
    hanging: float = 0.0  # share of workers that never come to the end of their start
    poison: int = 0  # shards that kill every worker that tries them, half way through
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "workers", "shard_images"):
            _expect(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("mtbf_s", "image_s"):
            _expect(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("spread", "preempted", "hanging"):
            _expect(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; expected 0 to 1")
        for name in ("queue_s", "start_s"):
            _expect(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected 0 or more")
        _expect(0 <= self.poison <= self.shards, f"poison is {self.poison}; expected 0 to {self.shards} (all shards)")

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_images)

    @property
    def shard_s(self) -> float:
        """Usual work of a full shard [s]."""
        return self.shard_images * self.image_s

    @property
    def ideal_s(self) -> float:
        """Least time the run could take: start-up once, no queue, then the work split evenly over all workers [s]."""
        return self.start_s + self.images * self.image_s / self.workers


def _metered(
    method: Callable[Concatenate[VirtualPool, _P], _R],
) -> Callable[Concatenate[VirtualPool, _P], _R]:
    """Add the CPU time of a method to the pool's own, so that it can be told from the driver's."""

    @functools.wraps(method)
    def timed(pool: VirtualPool, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        began = time.thread_time_ns()
        answer = method(pool, *args, **kwargs)
        pool.own_ns += time.thread_time_ns() - began
        return answer

    return timed


@dataclass
class _Hands:
    """One pretended worker: what it was given; the first is being worked on since `since`."""

    shards: deque[tuple[int, int]] = field(default_factory=deque)  # (shard, attempt)
    since: float = 0.0


class VirtualPool:
    """A `WorkerPool` whose clock jumps from event to event."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._random = random.Random(scenario.seed)
        self._seconds = _shard_seconds(scenario, self._random)
        self.poison = frozenset(self._random.sample(range(scenario.shards), scenario.poison))
        self._time = 0.0
        self._hands: dict[str, _Hands] = {}
        self._coming: list[tuple[float, int, Event]] = []  # heap of (when, tie-breaker, what)
        self._count = self._started = 0
        self.useful_s = self.lost_s = 0.0
        self.deaths = self.preemptions = self.events = 0
        self.own_ns = 0  # CPU time spent in here

    @_metered
    def start_worker(self) -> str:
        self._started += 1
        worker = f"worker-{self._started}"
        self._hands[worker] = _Hands()
        self._later(self._scenario.queue_s, WorkerPlaced(worker))
        if not (self._scenario.hanging and self._random.random() < self._scenario.hanging):
            self._later(self._scenario.queue_s + self._scenario.start_s, WorkerReady(worker))
        if math.isfinite(self._scenario.mtbf_s):
            blameless = self._random.random() < self._scenario.preempted
            death = WorkerLost(worker, "the node was taken" if blameless else "it died", blameless=blameless)
            self._later(self._random.expovariate(1 / self._scenario.mtbf_s), death)
        return worker

    @_metered
    def assign(self, worker: str, shard: int, attempt: int) -> None:
        hands = self._hands[worker]
        hands.shards.append((shard, attempt))
        if len(hands.shards) == 1:
            self._begin(worker, hands)

    @_metered
    def wait(self, timeout_s: float) -> list[Event]:
        """The next event within `timeout_s`, with all of the same instant."""
        until = self._time + timeout_s
        events: list[Event] = []
        while self._coming and self._coming[0][0] <= (self._time if events else until):
            when, _, event = heapq.heappop(self._coming)
            if event.worker in self._hands:
                self._time = when
                self._account(event)
                events.append(event)
        if not events:
            self._time = until
        self.events += len(events)
        return events

    @_metered
    def kill(self, worker: str) -> None:
        self._lose(worker)

    def avoid_node(self, node: str) -> None:
        """Virtual workers have no nodes."""

    def now(self) -> float:
        return self._time

    def close(self) -> None:
        self._coming.clear()

    def _account(self, event: Event) -> None:
        if isinstance(event, WorkerLost):
            self.deaths += 1
            self.preemptions += event.blameless
            self._lose(event.worker)
        elif isinstance(event, ShardDone):
            hands = self._hands[event.worker]
            self.useful_s += self._time - hands.since
            hands.shards.popleft()
            if hands.shards:
                self._begin(event.worker, hands)

    def _lose(self, worker: str) -> None:
        hands = self._hands.pop(worker)
        if hands.shards:
            self.lost_s += self._time - hands.since

    def _begin(self, worker: str, hands: _Hands) -> None:
        shard, attempt = hands.shards[0]
        hands.since = self._time
        seconds = self._seconds[shard]
        if shard in self.poison:
            self._later(seconds / 2, WorkerLost(worker, f"shard {shard} killed it"))
        else:
            self._later(seconds, ShardDone(worker, shard, _receipt(self._scenario, worker, shard, attempt, seconds)))

    def _later(self, seconds: float, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._coming, (self._time + seconds, self._count, event))


def _shard_seconds(scenario: Scenario, source: random.Random) -> Sequence[float]:
    """Work of every shard [s]; the last one holds what is left."""
    sizes = [scenario.shard_images] * scenario.shards
    sizes[-1] = scenario.images - scenario.shard_images * (scenario.shards - 1)
    return [size * scenario.image_s * (1 + scenario.spread * source.uniform(-1, 1)) for size in sizes]


def _receipt(scenario: Scenario, worker: str, shard: int, attempt: int, seconds: float) -> Receipt:
    """A receipt as far as driver and ledger look at it."""
    images = min(scenario.shard_images, scenario.images - shard * scenario.shard_images)
    return Receipt(
        shard=shard,
        rows=images,
        images=images,
        persons=0,
        image_status={},
        person_status={},
        label_sha256="",
        label_bytes=0,
        shard_key="",
        config_hash="",
        manifest_fingerprint="",
        worker=worker,
        attempt=attempt,
        adopted=False,
        wall_s=seconds,
        finished_at=0.0,
    )


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ScenarioError(message)
