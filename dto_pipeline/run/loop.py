"""The driver's loop: feed workers, collect what they say, replace the dead, end the hung, until nothing is left.

Joins the pure `Schedule` to any `WorkerPool`; what is to be remembered goes to a `Ledger`. No files, no Ray, no clock
but the pool's: the same loop drives real workers and, in virtual time, thousands of fake ones. Seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run.budget import FailureBudget
from dto_pipeline.run.pool import (
    Event,
    ShardDone,
    ShardProgress,
    ShardRaised,
    WorkerDraining,
    WorkerLost,
    WorkerPlaced,
    WorkerPool,
    WorkerReady,
)
from dto_pipeline.run.schedule import Charge, Schedule

POLL_S = 5.0  # the loop looks at watchdog and waiting workers at least this often
WATCH_S = 1.0  # and at most this often: it looks at every worker, which thousands of them would make dear
SAY_WAITING_S = 60.0  # how often it says that no worker has come yet
MAX_START_FAILURES = 3  # workers that die in a row before they were ready: the fault is not a shard's ...
START_FAILURE_SHARE = 0.1  # ... and at least this part of all workers: of 512 that start at once some die by chance
MAX_NODE_FAILURES = 5  # workers that die in a row on one node, not all at one shard: the fault is the node's


class RunAborted(DtoError):
    """The run cannot go on; shards that are done stay done. The message says why and what to try."""


class TooManyGivenUp(RunAborted):
    """More shards were given up than `run.max_failed_shards`: the rest of the run stays pending."""

    exit_code = 1  # as for a run that went on to its end and gave shards up


class TooManyFailed(RunAborted):
    """More images failed than `run.max_failed_images`: what is finished stays, the rest of the run stays pending."""

    exit_code = 1  # as for a run that came to its end with so many


class Ledger(Protocol):
    """Remembers what happened: files and progress in a real run, counters in a simulation."""

    def shard_done(self, receipt: Receipt) -> None:
        """A shard is finished; its receipt is on disk."""

    def shard_charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        """A shard used up an attempt; `charge.given_up` says whether it was the last."""

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        """A worker died, or was ended because its machine lacked memory; it is replaced while there is work."""

    def waiting(self, seconds: float, loading: int) -> None:
        """Nobody has been ready to work for so long; `loading` workers have their place and warm up."""

    def tick(self, loading: int) -> None:
        """Time has passed; called every few seconds at least. `loading`: workers that have their place and warm up."""


def drive(schedule: Schedule, pool: WorkerPool, ledger: Ledger, budget: FailureBudget | None = None) -> None:
    """Work until every shard of `schedule` is done or given up.

    Args:
        budget: how many failures are allowed; None = any number.

    Raises:
        RunAborted: workers cannot start.
        TooManyGivenUp: more than `run.max_failed_shards`.
        TooManyFailed: more failures than `budget` allows.
    """
    _Loop(schedule, pool, ledger, budget or FailureBudget(1.0, {})).run()


@dataclass
class _Nodes:
    """Which machine each worker is on, and what died on each since a shard was last finished there."""

    of: dict[str, str] = field(default_factory=dict)  # worker -> node
    deaths: dict[str, list[int | None]] = field(default_factory=dict)  # node -> shards died at, None = while starting
    avoided: set[str] = field(default_factory=set)

    def shard_done(self, worker: str) -> None:
        self.deaths.pop(self.of.get(worker, ""), None)

    def worker_died(self, node: str, shard: int | None) -> bool:
        """Count a death; True when this one makes a node suspicious, and there is another to go to."""
        if not node or node in self.avoided:
            return False
        died = self.deaths.setdefault(node, [])
        died.append(shard)
        others = {other for other in self.of.values() if other} - self.avoided - {node}
        various = None in died or len(set(died)) > 1
        if len(died) < MAX_NODE_FAILURES or not various or not others:
            return False
        self.avoided.add(node)
        return True


class _Loop:
    """State of one `drive`: who is on the way, since when nobody is ready, failed starts in a row."""

    def __init__(self, schedule: Schedule, pool: WorkerPool, ledger: Ledger, budget: FailureBudget) -> None:
        self.schedule, self.pool, self.ledger, self.budget = schedule, pool, ledger, budget
        self.starting: set[str] = set()
        self.loading: dict[str, tuple[float, str]] = {}  # of those, workers that warm up: since when, on which node
        self.draining: set[str] = set()  # of those, workers whose node is about to go: it is told once only
        self.failed_starts: list[str] = []  # the node of each, "" = unknown
        self.nodes = _Nodes()
        self.idle_since = self.said_at = self.watched_at = pool.now()

    def run(self) -> None:
        while not self.schedule.finished:
            for _ in range(self.schedule.workers_missing(len(self.starting))):
                self.starting.add(self.pool.start_worker())
            for assignment in self.schedule.take_assignments(self.pool.now()):
                self.pool.assign(assignment.worker, assignment.shard, assignment.attempt)
            for event in self.pool.wait(POLL_S):
                self._handle(event)
            self._watch()
            self.ledger.tick(len(self.loading))

    def _handle(self, event: Event) -> None:
        handlers: dict[type, Callable[..., None]] = {
            WorkerPlaced: self._worker_placed,
            WorkerReady: self._worker_ready,
            ShardDone: self._shard_done,
            ShardRaised: self._shard_raised,
            WorkerLost: self._worker_lost,
            WorkerDraining: self._worker_draining,
            ShardProgress: lambda event: self.schedule.note_progress(event.worker, event.shard, event.images),
        }
        if event.worker in self.starting or self.schedule.knows(event.worker):  # else it was ended a moment ago
            handlers[type(event)](event)

    def _worker_placed(self, event: WorkerPlaced) -> None:
        if event.worker in self.starting:
            self.loading[event.worker] = self.pool.now(), event.node

    def _worker_ready(self, event: WorkerReady) -> None:
        self.starting.discard(event.worker)
        self.loading.pop(event.worker, None)
        self.failed_starts.clear()
        self.nodes.of[event.worker] = event.node
        self.schedule.add_worker(event.worker)
        if event.worker in self.draining:
            self.draining.discard(event.worker)
            self.schedule.stop_feeding(event.worker)

    def _worker_draining(self, event: WorkerDraining) -> None:
        if event.worker in self.starting:
            self.draining.add(event.worker)
        else:
            self.schedule.stop_feeding(event.worker)

    def _shard_done(self, event: ShardDone) -> None:
        self.schedule.shard_done(event.worker, event.shard, self.pool.now(), not event.receipt.adopted)
        self.nodes.shard_done(event.worker)
        self.ledger.shard_done(event.receipt)
        self.budget.shard_done(event.receipt)
        self._judge()

    def _shard_raised(self, event: ShardRaised) -> None:
        charge = self.schedule.shard_failed(event.worker, event.shard)
        self._charged(charge, event.worker, event.error, event.detail)
        if event.fatal:
            self._end(event.worker, event.error, blameless=True)  # the shard it was at has been charged above

    def _worker_lost(self, event: WorkerLost, in_a_row: bool = True) -> None:
        """`in_a_row`: whether a failed start counts towards those after which the run is stopped."""
        self.ledger.worker_lost(event.worker, event.error, event.out_of_memory)
        node = event.node or self.nodes.of.get(event.worker, "")
        shard = self.schedule.shard_at(event.worker)
        if not event.blameless:
            self._judge_node(node, shard, event.error)
        self.nodes.of.pop(event.worker, None)
        if event.worker in self.starting:
            self._start_failed(event, node, in_a_row)
        elif charge := self.schedule.worker_lost(event.worker, event.blameless, event.begun, event.out_of_memory):
            self._charged(charge, event.worker, event.error, event.detail)

    def _judge_node(self, node: str, shard: int | None, error: str) -> None:
        if self.nodes.worker_died(node, shard):
            self.pool.avoid_node(node)
            self.failed_starts = [other for other in self.failed_starts if other != node]
            died = f"{MAX_NODE_FAILURES} workers in a row died there"
            self.ledger.worker_lost(
                f"node {node}", f"no more workers are started on it: {died}; the last said: {error}"
            )

    def _start_failed(self, event: WorkerLost, node: str, in_a_row: bool) -> None:
        self.starting.discard(event.worker)
        self.loading.pop(event.worker, None)
        self.draining.discard(event.worker)
        if event.blameless or not in_a_row or (node and node in self.nodes.avoided):
            return
        self.failed_starts.append(node)
        failed = len(self.failed_starts)
        elsewhere = any(other and other != node for other in self.nodes.of.values())
        alone = node and elsewhere and set(self.failed_starts) == {node}  # that node's fault, which is judged above
        limit = max(MAX_START_FAILURES, START_FAILURE_SHARE * self.schedule.config.workers)
        if failed >= limit and not alone:
            raise RunAborted(f"{failed} workers in a row could not start; the last said: {event.error}")

    def _charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        self.ledger.shard_charged(charge, worker, error, detail)
        given_up, limit = len(self.schedule.given_up), self.schedule.config.max_failed_shards
        if given_up > limit:
            advice = "look at failures/, then start again with --retry-failed, or raise run.max_failed_shards"
            raise TooManyGivenUp(
                f"{given_up} shards were given up, more than {limit}; the last said: {error}; {advice}"
            )
        self.budget.shard_charged(charge, error)
        self._judge()

    def _judge(self) -> None:
        """Stop where too much was lost; not at the end, where nothing is left to be saved and a summary follows."""
        if not self.schedule.finished and (complaint := self.budget.complaint()):
            raise TooManyFailed(complaint)

    def _watch(self) -> None:
        now = self.pool.now()
        if now - self.watched_at >= WATCH_S:
            self.watched_at = now
            self._end_overdue()
            self._end_stuck()
            self._end_released()
            self._say_waiting()

    def _end_released(self) -> None:
        for worker in self.schedule.workers_released():
            self._end(worker, "its node is being drained; it had nothing left to do", blameless=True)

    def _end_overdue(self) -> None:
        for worker, shard, seconds in self.schedule.overdue(self.pool.now()):
            self._end(worker, f"hung for {seconds:.0f} s at shard {shard} and was ended")

    def _end_stuck(self) -> None:
        """End workers that hang while they load; those without a place wait for CPUs or GPUs and are left alone.

        Those that began together are ended together, which is no row of failures while others work.
        """
        now, limit = self.pool.now(), self.schedule.config.warm_up_timeout_s
        for worker, (since, node) in list(self.loading.items()):
            if now - since > limit:
                what = f"had its place for {now - since:.0f} s and was still loading (run.warm_up_timeout_s)"
                self.pool.kill(worker)
                self._worker_lost(WorkerLost(worker, f"{what}; it was ended", node=node), not self.schedule.workers)

    def _end(self, worker: str, reason: str, blameless: bool = False) -> None:
        self.pool.kill(worker)
        self._worker_lost(WorkerLost(worker, reason, blameless=blameless))

    def _say_waiting(self) -> None:
        now = self.pool.now()
        if self.schedule.workers:
            self.idle_since = self.said_at = now
        elif now - self.said_at >= SAY_WAITING_S:
            self.said_at = now
            self.ledger.waiting(now - self.idle_since, len(self.loading))
