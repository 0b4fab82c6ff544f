"""Stand-ins for the tests of the driver: receipts out of nothing, and workers in virtual time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.loop import (
    Event,
    FailedAttempt,
    ShardDone,
    ShardRaised,
    WorkerCounts,
    WorkerLost,
    WorkerPlaced,
    WorkerPool,
    WorkerReady,
)

START_S = 3.0  # a fake worker needs this long to be ready
DONE, RAISE, DIE, PREEMPTED, HANG = "done", "raise", "die", "preempted", "hang"


def make_receipt(shard: int, **changes) -> Receipt:
    values = {
        "shard": shard,
        "rows": 4,
        "images": 4,
        "persons": 9,
        "image_status": {"optimized": 3, "image_missing": 1},
        "person_status": {"moved": 7, "not_run": 2},
        "label_sha256": "0" * 64,
        "label_bytes": 5,
        "shard_key": "key",
        "config_hash": "config",
        "manifest_fingerprint": "manifest",
        "worker": "here:1",
        "attempt": 1,
        "adopted": False,
        "wall_s": 1.0,
        "finished_at": 1000.0 + shard,
        "stage_seconds": {"body": 0.5},
    }
    return Receipt(**{**values, **changes})


def make_manifest(shards: int = 3, images: int = 4, people: int = 9, **changes: Any) -> Any:
    """As far as identity and plan look at one: shards of so many images and people each."""
    sizes = [SimpleNamespace(images=images, people=people)] * shards
    facts = {
        "fingerprint": "manifest",
        "path": "m.parquet",
        "subset": "tiny",
        "num_shards": shards,
        "shard_sizes": sizes,
    }
    facts |= {"num_images": shards * images, "num_people": shards * people}
    return SimpleNamespace(**{**facts, **changes})


def make_config(**changes) -> RunConfig:
    values = {"workers": 2, "max_attempts": 3, "shard_timeout_s": 1000.0, "max_failed_shards": 5}
    return RunConfig(**{"warm_up_timeout_s": 500.0, **values, **changes})


@dataclass
class FakeLedger:
    """Keeps what the loop reports."""

    done: list[int] = field(default_factory=list)
    failed: list[FailedAttempt] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ticks: list[WorkerCounts] = field(default_factory=list)

    def shard_done(self, receipt: Receipt) -> None:
        self.done.append(receipt.shard)

    def attempt_failed(self, attempt: FailedAttempt, worker: str, error: str, detail: str) -> None:
        self.failed.append(attempt)

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        self.lost.append(error)

    def tick(self, workers: WorkerCounts) -> None:
        self.ticks.append(workers)

    @property
    def given_up(self) -> list[int]:
        return [attempt.shard for attempt in self.failed if attempt.given_up]


class FakePool(WorkerPool):
    """Workers in virtual time. `behaviour(shard, attempt)` says what happens, `seconds(shard)` how long it takes."""

    def __init__(
        self,
        behaviour: Callable[[int, int], str] = lambda shard, attempt: DONE,
        seconds: Callable[[int], float] = lambda shard: 10.0,
        starts: Iterator[str] | None = None,
        interrupt_at: float = float("inf"),
    ) -> None:
        self._behaviour, self._seconds = behaviour, seconds
        # Per worker: "ready", "fail", "hang" (it has its place and loads for ever) or "never" (it has no place); None =
        # all get ready.
        self._starts = starts
        self._interrupt_at = interrupt_at  # when somebody presses Ctrl-C
        self._time = 0.0
        self.busy: dict[str, int] = {}  # worker -> its shard
        self._events: list[tuple[float, int, str, Event | None]] = []  # (when, tie-breaker, worker, what)
        self._count = 0
        self.started: list[str] = []
        self.killed: list[str] = []
        self.avoided: list[str] = []
        self.executions: list[tuple[str, int, int]] = []  # (worker, shard, attempt) in the order they began

    def start_worker(self) -> str:
        worker = f"fake-{len(self.started) + 1}"
        self.started.append(worker)
        fate = next(self._starts) if self._starts is not None else "ready"
        if fate != "never":
            self._later(0.0, worker, WorkerPlaced(worker, node="somewhere"))
        if fate in ("ready", "fail"):
            self._later(START_S, worker, WorkerReady(worker) if fate == "ready" else WorkerLost(worker, "no start"))
        return worker

    def assign(self, worker: str, shard: int, attempt: int, following: int | None = None) -> None:
        self.busy[worker] = shard
        self.executions.append((worker, shard, attempt))
        fates: dict[str, Event] = {
            DONE: ShardDone(worker, shard, make_receipt(shard, attempt=attempt)),
            RAISE: ShardRaised(worker, shard, "it raised", "trace"),
            DIE: WorkerLost(worker, "it died"),
            PREEMPTED: WorkerLost(worker, "the node was taken", blameless=True),
        }
        fate = self._behaviour(shard, attempt)
        if fate != HANG:
            self._later(self._seconds(shard), worker, fates[fate])

    def wait(self, timeout_s: float) -> list[Event]:
        if self._time > self._interrupt_at:
            raise KeyboardInterrupt
        if not self._events or self._events[0][0] > self._time + timeout_s:
            self._time += timeout_s
            return []
        self._time, _, worker, event = heapq.heappop(self._events)
        if worker in self.killed or event is None:
            return []
        if isinstance(event, WorkerLost):
            self.killed.append(worker)
        elif isinstance(event, ShardDone | ShardRaised):
            del self.busy[worker]
        return [event]

    def kill(self, worker: str) -> None:
        self.killed.append(worker)

    def avoid_node(self, node: str) -> None:
        self.avoided.append(node)

    def now(self) -> float:
        return self._time

    def close(self) -> None:
        self._events.clear()

    def _later(self, seconds: float, worker: str, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._time + seconds, self._count, worker, event))


class QuickRunner:
    """Does nothing, and says where: its receipts name process and GPUs."""

    def warm_up(self):
        pass

    def run(self, shard, attempt=1, following=None):
        import ray  # not where a fake pool is enough

        gpus = ",".join(str(number) for number in ray.get_gpu_ids())
        return make_receipt(shard, worker=f"{process_name()} {gpus}")


class StuckRunner(QuickRunner):
    """Cannot even be unpacked, as where PyTorch lies on a file system that does not answer."""

    def __init__(self):
        self.weights = "far away"  # without a state there would be nothing to unpack

    def __setstate__(self, state):
        time.sleep(3600)
