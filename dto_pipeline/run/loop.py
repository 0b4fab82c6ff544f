"""The driver's loop: who does which shard next, what a failure costs, which workers are replaced or ended.

`Schedule` is bookkeeping without files, Ray or a clock of its own (`now` is passed in). `drive` joins it to any
`WorkerPool` and tells a `Ledger` what to remember, so that the same loop drives real workers and, in virtual time,
thousands of fake ones. A worker has one shard at a time, and its death is charged to that shard. Seconds.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run.budget import Charge, FailureBudget
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

DEADLINE_FACTOR = 10.0  # a first attempt may take this many times the median shard ...
DEADLINE_FLOOR_S = 120.0  # ... but never less than this [s]
_DEADLINE_SAMPLES = 5  # shards done before the median means anything
_RECENT = 64  # durations remembered
MEMORY_ATTEMPTS = 3  # deaths for want of memory that a shard is not charged for
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


class Assignment(NamedTuple):
    worker: str
    shard: int
    attempt: int  # 1 = the first


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

    def tick(self, loading: int) -> None:
        """Time has passed; called every few seconds at least."""


def likely_next(order: Sequence[int], workers: int) -> dict[int, int]:
    """Shard -> the one that its worker will be given next, as long as no worker comes, goes or fails.

    Every worker takes each `workers`-th shard of the order, so that each knows what to read ahead and no two read the
    same.
    """
    return dict(zip(order, order[max(1, workers) :], strict=False))


@dataclass
class _Worker:
    shard: int | None = None  # None = idle
    following: int | None = None  # the shard it reads ahead of
    since: float = 0.0  # when it was given its shard
    images: int = 0  # of the shard that are done, by its last word
    leaving: bool = False  # its node is drained: it finishes its shard and gets nothing more


class Schedule:
    """Pending, assigned and given-up shards of one launch, and the workers that are ready."""

    def __init__(
        self,
        shards: Iterable[int],
        config: RunConfig,
        attempts: Mapping[int, int] | None = None,
        allows_another: Callable[[int, int, bool], bool] = lambda shard, attempt, out_of_memory: False,
        partial: Collection[int] = (),
    ) -> None:
        """
        Args:
            attempts: used up in earlier launches, per shard.
            allows_another: (shard, attempt, out of memory) -> whether a shard whose process died may be tried again
                although it has used up its attempts, see `run.deaths`.
            partial: shards of which only some images are done: how long they take says nothing about whole ones.
        """
        self.config = config
        self.pending: deque[int] = deque(shards)
        self.attempts: dict[int, int] = dict(attempts or {})
        self.given_up: set[int] = set()
        self._partial = frozenset(partial)
        self._following = likely_next([shard for shard in self.pending if shard not in partial], config.workers)
        self._allows_another = allows_another
        self._workers: dict[str, _Worker] = {}
        self._idle: dict[str, None] = {}  # workers to be fed, so that nobody looks through all of them at every event
        self._short_of_memory: Counter[int] = Counter()  # deaths for want of memory that no attempt was charged for
        self._doubted: set[int] = set()  # shards whose worker died once before it had begun, as far as known
        self._durations: deque[float] = deque(maxlen=_RECENT)

    @property
    def unfinished(self) -> int:
        """Shards pending or assigned."""
        return len(self.pending) + sum(worker.shard is not None for worker in self._workers.values())

    @property
    def finished(self) -> bool:
        return not self.pending and not self.unfinished

    @property
    def workers(self) -> tuple[str, ...]:
        """Workers that may be fed."""
        return tuple(name for name, worker in self._workers.items() if not worker.leaving)

    @property
    def leaving(self) -> int:
        """Workers that are not fed any more and have not gone yet."""
        return len(self._workers) - len(self.workers)

    @property
    def images_under_way(self) -> int:
        """Images done of shards that are being worked on, by their workers' last word."""
        return sum(worker.images for worker in self._workers.values())

    @property
    def workers_wanted(self) -> int:
        """Workers there is work for; without Ray (`run.workers` 0) this process is the one."""
        return min(max(1, self.config.workers), self.unfinished)

    def workers_missing(self, starting: int) -> int:
        """How many more workers to ask for, `starting` being on their way."""
        return max(0, self.workers_wanted - len(self.workers) - starting)

    def knows(self, name: str) -> bool:
        """True for workers that were added and not lost."""
        return name in self._workers

    def shard_at(self, name: str) -> int | None:
        """The shard a worker is at, None = it is idle or unknown."""
        return self._workers[name].shard if name in self._workers else None

    def add_worker(self, name: str) -> None:
        self._workers[name] = _Worker()
        self._idle[name] = None

    def stop_feeding(self, name: str) -> None:
        """The worker's node is about to go: it finishes what it has, somebody else does the rest."""
        self._workers[name].leaving = True
        self._idle.pop(name, None)

    def workers_released(self) -> list[str]:
        """Workers that are not fed any more and have nothing left to do."""
        return [name for name, worker in self._workers.items() if worker.leaving and worker.shard is None]

    def note_progress(self, name: str, shard: int, images: int) -> None:
        if self.shard_at(name) == shard:
            self._workers[name].images = images

    def take_assignments(self, now: float) -> list[Assignment]:
        """Hand out shards to idle workers: to each the one it has begun to read, if it is among the next few."""
        taken: list[Assignment] = []
        while self._idle and self.pending:
            name = next(iter(self._idle))
            del self._idle[name]
            shard = self._workers[name].following
            if shard is None or shard not in islice(self.pending, 2 * len(self._workers)):
                shard = self.pending[0]
            self.pending.remove(shard)
            self._workers[name] = _Worker(shard, self._following.get(shard), now)
            taken.append(Assignment(name, shard, self.attempts.get(shard, 0) + 1))
        return taken

    def shard_done(self, name: str, shard: int, now: float, computed: bool = True) -> None:
        """`computed`: False where the result was found on disk, so that its duration says nothing."""
        if computed and shard not in self._partial:
            self._durations.append(now - self._workers[name].since)
        self._set_idle(name)

    def shard_failed(self, name: str, shard: int) -> Charge:
        """The runner raised: one attempt used up; queued again at the end, or given up."""
        self._set_idle(name)
        return self._charge(shard, died=False)

    def worker_lost(
        self, name: str, blameless: bool = False, begun: bool = True, out_of_memory: bool = False
    ) -> Charge | None:
        """Queue the shard of a dead worker again; it is charged, unless `blameless`.

        Args:
            begun: False where the worker is not known to have begun with it. That is believed once per shard: a shard
                that ends processes before they can say a word must not do so for ever.
            out_of_memory: its machine lacked memory, which others may have taken: the shard comes last and is not
                charged, `MEMORY_ATTEMPTS` times; what takes the memory away more often may be the shard itself.
        """
        shard = self._workers.pop(name, _Worker()).shard
        self._idle.pop(name, None)
        if shard is None:
            return None
        spared = blameless
        if not begun and not blameless:
            spared = shard not in self._doubted
            self._doubted.add(shard)
        if out_of_memory and not blameless and self._short_of_memory[shard] < MEMORY_ATTEMPTS:
            self._short_of_memory[shard] += 1
            self.pending.append(shard)
            return None
        if spared:
            self.pending.appendleft(shard)
            return None
        return self._charge(shard, died=True, out_of_memory=out_of_memory)

    def overdue(self, now: float) -> list[tuple[str, int, float]]:
        """Workers to end: (worker, shard it hangs at, seconds it has been at it)."""
        busy = [(name, w.shard, now - w.since) for name, w in self._workers.items() if w.shard is not None]
        shortest = self.deadline(None)
        return [late for late in busy if late[2] > shortest and late[2] > self.deadline(late[1])]

    def deadline(self, shard: int | None) -> float:
        """Seconds a shard may take: a multiple of the median for a first attempt, the configured limit afterwards."""
        limit = self.config.shard_timeout_s
        if self.attempts.get(-1 if shard is None else shard, 0) > 0 or len(self._durations) < _DEADLINE_SAMPLES:
            return limit
        return min(limit, max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * statistics.median(self._durations)))

    def _set_idle(self, name: str) -> None:
        worker = self._workers[name]
        worker.shard, worker.images = None, 0
        if not worker.leaving:
            self._idle[name] = None

    def _charge(self, shard: int, died: bool, out_of_memory: bool = False) -> Charge:
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        another = died and self._allows_another(shard, self.attempts[shard], out_of_memory)
        given_up = self.attempts[shard] >= self.config.max_attempts and not another
        if given_up:
            self.given_up.add(shard)
        else:
            self.pending.append(shard)
        return Charge(shard, self.attempts[shard], given_up)


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


class _Loop:
    """State of one `drive`: who is on the way, since when nobody is ready, what died in a row and where."""

    def __init__(self, schedule: Schedule, pool: WorkerPool, ledger: Ledger, budget: FailureBudget) -> None:
        self.schedule, self.pool, self.ledger, self.budget = schedule, pool, ledger, budget
        self.starting: set[str] = set()
        self.loading: dict[str, tuple[float, str]] = {}  # of those, workers that warm up: since when, on which node
        self.draining: set[str] = set()  # of those, workers whose node is about to go: it is told once only
        self.failed_starts: list[str] = []  # the node of each in a row, "" = unknown
        self.node_of: dict[str, str] = {}
        self.died_on: dict[str, list[int | None]] = {}  # node -> shards (None = a start) since one was finished there
        self.avoided: set[str] = set()
        self.idle_since = self.said_at = self.watched_at = pool.now()

    def run(self) -> None:
        while not self.schedule.finished:
            for _ in range(self.schedule.workers_missing(len(self.starting))):
                self.starting.add(self.pool.start_worker())
            for assignment in self.schedule.take_assignments(self.pool.now()):
                self.pool.assign(*assignment)
            for event in self.pool.wait(POLL_S):
                if event.worker in self.starting or self.schedule.knows(event.worker):  # else it was ended just now
                    self._handle(event)
            if self.pool.now() - self.watched_at >= WATCH_S:
                self.watched_at = self.pool.now()
                self._watch()
            self.ledger.tick(len(self.loading))

    def _handle(self, event: Event) -> None:
        worker = event.worker
        match event:
            case WorkerPlaced() if worker in self.starting:
                self.loading[worker] = self.pool.now(), event.node
            case WorkerReady():
                self.failed_starts.clear()
                self.node_of[worker] = event.node
                self.schedule.add_worker(worker)
                if worker in self.draining:
                    self.schedule.stop_feeding(worker)
                self._started(worker)
            case WorkerDraining() if worker in self.starting:
                self.draining.add(worker)
            case WorkerDraining():
                self.schedule.stop_feeding(worker)
            case ShardProgress():
                self.schedule.note_progress(worker, event.shard, event.images)
            case ShardDone():
                self.schedule.shard_done(worker, event.shard, self.pool.now(), not event.receipt.adopted)
                self.died_on.pop(self.node_of.get(worker, ""), None)
                self.ledger.shard_done(event.receipt)
                self.budget.shard_done(event.receipt)
                self._judge()
            case ShardRaised():
                self._charged(self.schedule.shard_failed(worker, event.shard), worker, event.error, event.detail)
                if event.fatal:
                    self._end(worker, event.error, blameless=True)  # the shard it was at has been charged above
            case WorkerLost():
                self._worker_lost(event)

    def _started(self, worker: str) -> None:
        """Its start is over, well or not."""
        self.starting.discard(worker)
        self.loading.pop(worker, None)
        self.draining.discard(worker)

    def _worker_lost(self, event: WorkerLost, in_a_row: bool = True) -> None:
        """`in_a_row`: whether a failed start counts towards those after which the run is stopped."""
        self.ledger.worker_lost(event.worker, event.error, event.out_of_memory)
        node = self.node_of.pop(event.worker, "") or event.node
        if not event.blameless:
            self._judge_node(node, self.schedule.shard_at(event.worker), event.error)
        if event.worker in self.starting:
            self._started(event.worker)
            if in_a_row and not event.blameless and not (node and node in self.avoided):
                self._start_failed(node, event.error)
        elif charge := self.schedule.worker_lost(event.worker, event.blameless, event.begun, event.out_of_memory):
            self._charged(charge, event.worker, event.error, event.detail)

    def _judge_node(self, node: str, shard: int | None, error: str) -> None:
        """Count a death; a node on which one follows the other is left out, if there is another to go to."""
        if not node or node in self.avoided:
            return
        died = self.died_on.setdefault(node, [])
        died.append(shard)
        various = None in died or len(set(died)) > 1
        others = {other for other in self.node_of.values() if other} - self.avoided - {node}
        if len(died) < MAX_NODE_FAILURES or not various or not others:
            return
        self.avoided.add(node)
        self.pool.avoid_node(node)
        self.failed_starts = [other for other in self.failed_starts if other != node]
        what = f"{MAX_NODE_FAILURES} workers in a row died there; the last said: {error}"
        self.ledger.worker_lost(f"node {node}", f"no more workers are started on it: {what}")

    def _start_failed(self, node: str, error: str) -> None:
        self.failed_starts.append(node)
        failed = len(self.failed_starts)
        elsewhere = any(other and other != node for other in self.node_of.values())
        alone = node and elsewhere and set(self.failed_starts) == {node}  # that node's fault, which is judged above
        if failed >= max(MAX_START_FAILURES, START_FAILURE_SHARE * self.schedule.config.workers) and not alone:
            raise RunAborted(f"{failed} workers in a row could not start; the last said: {error}")

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
        """End who has nothing left to do, hangs at a shard, or hangs while it loads; say that nobody has come yet.

        Workers without a place wait for CPUs or GPUs and are left alone. Those that began together and hang are ended
        together, which is no row of failures while others work.
        """
        for worker in self.schedule.workers_released():
            self._end(worker, "its node is being drained; it had nothing left to do", blameless=True)
        for worker, shard, seconds in self.schedule.overdue(self.pool.now()):
            self._end(worker, f"hung for {seconds:.0f} s at shard {shard} and was ended")
        now = self.pool.now()
        for worker, (since, node) in list(self.loading.items()):
            if now - since > self.schedule.config.warm_up_timeout_s:
                what = f"had its place for {now - since:.0f} s and was still loading (run.warm_up_timeout_s)"
                self.pool.kill(worker)
                self._worker_lost(WorkerLost(worker, f"{what}; it was ended", node=node), not self.schedule.workers)
        if self.schedule.workers:
            self.idle_since = self.said_at = now
        elif now - self.said_at >= SAY_WAITING_S:
            self.said_at = now
            self.ledger.waiting(now - self.idle_since, len(self.loading))

    def _end(self, worker: str, reason: str, blameless: bool = False) -> None:
        self.pool.kill(worker)
        self._worker_lost(WorkerLost(worker, reason, blameless=blameless))
