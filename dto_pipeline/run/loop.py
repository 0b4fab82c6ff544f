"""The driver's loop and its interface to workers: assign shards, count failures, replace dead workers, end hung ones.

`Schedule` keeps account of shards, `drive` of workers: it connects a schedule with any `WorkerPool` and reports to a
`Ledger`, so that one loop drives real workers and, in virtual time, thousands of simulated ones. It uses no files, no
Ray, and no clock but the pool's, which is monotonic. A worker has a name and one shard at a time; its death counts
against that shard. Seconds.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run.sanity import FailureBudget

DEADLINE_FACTOR = 10.0  # a first attempt may take this many times the median shard ...
DEADLINE_FLOOR_S = 120.0  # ... but never less than this [s]
_DEADLINE_SAMPLES = 5  # shards done before the median means anything
_RECENT = 64  # durations remembered
MEMORY_ATTEMPTS = 3  # deaths for lack of memory that do not count against a shard
POLL_S = 5.0  # the loop checks deadlines and waiting workers at least this often
WATCH_S = 1.0  # and at most this often: with thousands of workers the check is expensive
MAX_START_FAILURES = 3  # workers that die in a row before they were ready: no shard is the cause ...
START_FAILURE_SHARE = 0.1  # ... and at least this part of all workers: of 512 that start at once some die by chance
MAX_NODE_FAILURES = 5  # workers that die in a row on one node, not all at one shard: the node is the cause


class RunAborted(DtoError):
    """The run cannot go on; shards that are done stay done. The message has the reason and the next step."""


class TooManyFailed(RunAborted):
    """More shards or images than `run.max_failed_shards` or `run.max_failed_images`: the rest stays pending."""

    exit_code = 1  # as for a run that ended with so many


class Runner(Protocol):
    """Does shards. The driver makes it and sends it to a worker's process, where `warm_up` loads the models."""

    def warm_up(self) -> object: ...

    def run(self, shard: int, attempt: int = 1, following: int | None = None) -> Receipt:
        """Do one shard and publish it; raises if it cannot be done. `following`: probably the next, to load ahead."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a worker."""

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

    def assign(self, worker: str, shard: int, attempt: int, following: int | None = None) -> None:
        """Give a shard to an idle worker. `following`: the one that it probably gets next."""
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


class Schedule:
    """Shards of one launch that are pending, under way or given up, and the attempts of each."""

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
            partial: shards of which only some images are done: their durations do not count.
        """
        self.config = config
        self.pending: deque[int] = deque(shards)
        self.under_way: set[int] = set()
        self.given_up: set[int] = set()
        self.attempts: dict[int, int] = dict(attempts or {})
        self._partial = frozenset(partial)
        self._allows_another = allows_another
        self._memory_deaths: Counter[int] = Counter()  # deaths for lack of memory that did not count
        self._spared: set[int] = set()  # shards whose worker died once before it had begun, as far as known
        self._durations: deque[float] = deque(maxlen=_RECENT)

    @property
    def unfinished(self) -> int:
        """Shards pending or under way."""
        return len(self.pending) + len(self.under_way)

    def take(self, expected: int | None = None) -> int:
        """The next shard of a worker: the one that it has loaded ahead, if it is still pending."""
        shard = expected if expected is not None and expected in self.pending else self.pending[0]
        self.pending.remove(shard)
        self.under_way.add(shard)
        return shard

    def expect(self, workers: int) -> int | None:
        """The shard that a worker which begins one now probably gets next: other workers take those before it.

        So each worker knows what to load ahead, and no two load the same. None if there is none, or a `partial` one.
        """
        shard = next(islice(self.pending, workers - 1, None), None)
        return None if shard in self._partial else shard

    def done(self, shard: int, seconds: float, computed: bool = True) -> None:
        """`computed`: False if the labels were found on disk, so that the duration does not count."""
        self.under_way.discard(shard)
        if computed and shard not in self._partial:
            self._durations.append(seconds)

    def failed(self, shard: int, another: bool = False) -> FailedAttempt:
        """Use up an attempt; queue the shard again, or give it up after `max_attempts` unless `another` is allowed."""
        self.under_way.discard(shard)
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        given_up = self.attempts[shard] >= self.config.max_attempts and not another
        if given_up:
            self.given_up.add(shard)
        else:
            self.pending.append(shard)
        return FailedAttempt(shard, self.attempts[shard], given_up)

    def died(
        self, shard: int, blameless: bool = False, begun: bool = True, out_of_memory: bool = False
    ) -> FailedAttempt | None:
        """Its worker died: it is queued again, and an attempt is used up unless the death was `blameless`.

        `begun` False: it is not known that the worker began the shard; the first such death costs no attempt.
        `out_of_memory`: its machine lacked memory, perhaps because of others: the shard comes last and no attempt is
        used up, `MEMORY_ATTEMPTS` times; after that the shard itself may be the cause.
        """
        self.under_way.discard(shard)
        if out_of_memory and not blameless and self._memory_deaths[shard] < MEMORY_ATTEMPTS:
            self._memory_deaths[shard] += 1
            self.pending.append(shard)
            return None
        if not begun and not blameless:
            blameless = shard not in self._spared
            self._spared.add(shard)
        if blameless:
            self.pending.appendleft(shard)
            return None
        return self.failed(shard, self._allows_another(shard, self.attempts.get(shard, 0) + 1, out_of_memory))

    def deadline(self, shard: int) -> float:
        """Seconds a shard may take: a multiple of the median for a first attempt, the configured limit afterwards."""
        limit = self.config.shard_timeout_s
        if self.attempts.get(shard, 0) > 0 or len(self._durations) < _DEADLINE_SAMPLES:
            return limit
        return min(limit, max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * statistics.median(self._durations)))


def drive(schedule: Schedule, pool: WorkerPool, ledger: Ledger, budget: FailureBudget | None = None) -> None:
    """Work until every shard of `schedule` is done or given up.

    `budget`: how many failures are allowed; None = any number. Raises: RunAborted if workers cannot start,
    TooManyFailed.
    """
    _Loop(schedule, pool, ledger, budget or FailureBudget(1.0, {})).run()


@dataclass
class _Worker:
    placed_at: float | None = None  # since when it loads; None = it waits for CPUs and GPUs
    ready: bool = False
    leaving: bool = False  # its node is about to be taken away: it finishes its shard and gets no other
    node: str = ""
    shard: int | None = None  # None = idle
    expected: int | None = None  # the shard it probably gets next, and loads ahead
    since: float = 0.0  # when it got its shard
    images: int = 0  # of the shard that are done


class _Loop:
    """State of one `drive`."""

    def __init__(self, schedule: Schedule, pool: WorkerPool, ledger: Ledger, budget: FailureBudget) -> None:
        self.schedule, self.pool, self.ledger, self.budget = schedule, pool, ledger, budget
        self.workers: dict[str, _Worker] = {}
        self.failed_starts: list[str] = []  # the node of each in a row, "" = unknown
        self.died_on: dict[str, list[int | None]] = {}  # node -> shards (None = a start) since one was finished there
        self.avoided: set[str] = set()
        self.idle_since = self.watched_at = pool.now()

    def run(self) -> None:
        schedule, pool = self.schedule, self.pool
        while schedule.unfinished:
            counts = self._count()
            for _ in range(counts.wanted - sum(not worker.leaving for worker in self.workers.values())):
                self.workers[pool.start_worker()] = _Worker()
            for name, worker in self.workers.items():
                if worker.ready and not worker.leaving and worker.shard is None and schedule.pending:
                    worker.shard = schedule.take(worker.expected)
                    worker.expected, worker.since, worker.images = schedule.expect(counts.wanted), pool.now(), 0
                    pool.assign(name, worker.shard, schedule.attempts.get(worker.shard, 0) + 1, worker.expected)
            for event in pool.wait(POLL_S):
                if event.worker in self.workers:  # else it was ended a moment ago
                    self._handle(event, self.workers[event.worker])
            if pool.now() - self.watched_at >= WATCH_S:
                self.watched_at = pool.now()
                self._end_hanging()
            self.ledger.tick(self._count())

    def _count(self) -> WorkerCounts:
        workers = self.workers.values()
        working = sum(worker.ready and not worker.leaving for worker in workers)
        if working:
            self.idle_since = self.pool.now()
        return WorkerCounts(
            working=working,
            leaving=sum(worker.ready and worker.leaving for worker in workers),
            loading=sum(worker.placed_at is not None and not worker.ready for worker in workers),
            wanted=min(max(1, self.schedule.config.workers), self.schedule.unfinished),  # with 0: this process
            images=sum(worker.images for worker in workers if worker.shard is not None),
            idle_s=self.pool.now() - self.idle_since,
        )

    def _handle(self, event: Event, worker: _Worker) -> None:
        match event:
            case WorkerPlaced() if not worker.ready:
                worker.placed_at, worker.node = self.pool.now(), event.node
            case WorkerReady():
                self.failed_starts.clear()
                worker.ready, worker.node = True, event.node
            case WorkerDraining():
                worker.leaving = True
            case ShardProgress() if event.shard == worker.shard:
                worker.images = event.images
            case ShardDone():
                worker.shard = None
                self.schedule.done(event.shard, self.pool.now() - worker.since, not event.receipt.adopted)
                self.died_on.pop(worker.node, None)
                self.ledger.shard_done(event.receipt)
                self.budget.shard_done(event.receipt)
                self._check_budget()
            case ShardRaised():
                worker.shard = None
                self._attempt_failed(self.schedule.failed(event.shard), event.worker, event.error, event.detail)
                if event.fatal:
                    self._end(event.worker, event.error, blameless=True)  # the attempt at its shard was counted above
            case WorkerLost():
                self._worker_lost(event)

    def _worker_lost(self, event: WorkerLost, in_a_row: bool = True) -> None:
        """`in_a_row`: whether a failed start counts towards those that stop the run."""
        self.ledger.worker_lost(event.worker, event.error, event.out_of_memory)
        worker = self.workers.pop(event.worker)
        node = event.node or worker.node
        if not event.blameless and node not in self.avoided:
            if node:
                self._judge_node(node, worker.shard, event.error)
            if not worker.ready and in_a_row and node not in self.avoided:
                self._start_failed(node, event.error)
        if worker.shard is not None:
            attempt = self.schedule.died(worker.shard, event.blameless, event.begun, event.out_of_memory)
            if attempt is not None:
                self._attempt_failed(attempt, event.worker, event.error, event.detail)

    def _judge_node(self, node: str, shard: int | None, error: str) -> None:
        """Count a death; avoid a node on which workers die in a row, not all at one shard, if there is another."""
        died = self.died_on.setdefault(node, [])
        died.append(shard)
        various = None in died or len(set(died)) > 1
        if len(died) >= MAX_NODE_FAILURES and various and self._other_nodes(node) - self.avoided:
            self.avoided.add(node)
            self.pool.avoid_node(node)
            self.failed_starts = [other for other in self.failed_starts if other != node]
            what = f"{MAX_NODE_FAILURES} workers in a row died there; the last error: {error}"
            self.ledger.worker_lost(f"node {node}", f"no more workers are started on it: {what}")

    def _other_nodes(self, node: str) -> set[str]:
        return {worker.node for worker in self.workers.values() if worker.ready and worker.node} - {node}

    def _start_failed(self, node: str, error: str) -> None:
        """Stop if starts fail in a row, unless all on one node while others work: then only the node is judged."""
        self.failed_starts.append(node)
        failed = len(self.failed_starts)
        alone = node and set(self.failed_starts) == {node} and self._other_nodes(node)
        if failed >= max(MAX_START_FAILURES, START_FAILURE_SHARE * self.schedule.config.workers) and not alone:
            raise RunAborted(f"{failed} workers in a row could not start; the last error: {error}")

    def _attempt_failed(self, attempt: FailedAttempt, worker: str, error: str, detail: str) -> None:
        self.ledger.attempt_failed(attempt, worker, error, detail)
        given_up, limit = len(self.schedule.given_up), self.schedule.config.max_failed_shards
        if given_up > limit:
            advice = "read failures/, then start again with --retry-failed, or raise run.max_failed_shards"
            raise TooManyFailed(
                f"{given_up} shards were given up, more than {limit}; the last error: {error}; {advice}"
            )
        self.budget.attempt_failed(attempt.shard, attempt.given_up, error)
        self._check_budget()

    def _check_budget(self) -> None:
        """Stop if too much failed; not at the end, where a summary follows."""
        if self.schedule.unfinished and (complaint := self.budget.complaint()):
            raise TooManyFailed(complaint)

    def _end_hanging(self) -> None:
        """End workers that hang at a shard or while they load, and idle ones on draining nodes.

        Waiting for CPUs or GPUs has no limit. While others work, workers that hang together do not count as a row.
        """
        now, schedule, limit = self.pool.now(), self.schedule, self.schedule.config.warm_up_timeout_s
        for name, worker in list(self.workers.items()):
            seconds = now - worker.since
            if worker.ready and worker.leaving and worker.shard is None:
                self._end(name, "its node is being drained; it had nothing left to do", blameless=True)
            elif worker.shard is not None and seconds > schedule.deadline(worker.shard):
                self._end(name, f"hung for {seconds:.0f} s at shard {worker.shard} and was ended")
            elif worker.placed_at is not None and not worker.ready and now - worker.placed_at > limit:
                what = f"had its CPUs for {now - worker.placed_at:.0f} s and was still loading (run.warm_up_timeout_s)"
                self._end(name, f"{what}; it was ended", in_a_row=not self._count().working)

    def _end(self, worker: str, reason: str, blameless: bool = False, in_a_row: bool = True) -> None:
        self.pool.kill(worker)
        self._worker_lost(WorkerLost(worker, reason, blameless=blameless), in_a_row)
