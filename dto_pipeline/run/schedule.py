"""Who does which shard next, and what a failure costs: the driver's decisions without its hands.

Pure bookkeeping: no files, no Ray, no clock of its own (`now` is passed in, seconds). A worker has one shard at a time,
and its death is charged to that shard.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from dto_pipeline.config import RunConfig

DEADLINE_FACTOR = 10.0  # a first attempt may take this many times the median shard ...
DEADLINE_FLOOR_S = 120.0  # ... but never less than this [s]
_DEADLINE_SAMPLES = 5  # shards done before the median means anything
_RECENT = 64  # durations remembered
MEMORY_TRIES = 3  # deaths for want of memory that a shard is not charged for


def likely_next(order: Sequence[int], workers: int) -> dict[int, int]:
    """Shard -> the one that its worker will be given next, as long as no worker comes, goes or fails.

    Every worker takes each `workers`-th shard of the order, so that each knows what to read ahead and no two read the
    same.
    """
    return dict(zip(order, order[max(1, workers) :], strict=False))


@dataclass(frozen=True)
class Assignment:
    worker: str
    shard: int
    attempt: int  # 1 = the first


@dataclass(frozen=True)
class Charge:
    """An attempt that a shard has used up."""

    shard: int
    attempts: int  # so far
    given_up: bool  # True: it is quarantined, not queued again
    died: bool = False  # True: the attempt ended with its process, False: it raised
    out_of_memory: bool = False  # True: its machine lacked memory, and lacked it before at this shard


@dataclass
class _Worker:
    """What the schedule knows of one worker."""

    shard: int | None = None  # None = idle
    following: int | None = None  # the shard it reads ahead of
    since: float = 0.0  # when it was given its shard
    images: int = 0  # of the shard that are done, by its last word
    leaving: bool = False  # its node is drained: it finishes its shard and gets nothing more


class Schedule:
    """Pending, assigned, done and given-up shards of one launch."""

    def __init__(
        self,
        shards: Iterable[int],
        config: RunConfig,
        attempts: Mapping[int, int] | None = None,
        allows_another: Callable[[int, int, bool], bool] | None = None,
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
        self._following = likely_next([shard for shard in self.pending if shard not in partial], config.workers)
        self.attempts: dict[int, int] = dict(attempts or {})
        self.given_up: set[int] = set()
        self._allows_another = allows_another or (lambda shard, attempt, out_of_memory: False)
        self._partial = frozenset(partial)
        self._workers: dict[str, _Worker] = {}
        self._idle: dict[str, None] = {}  # workers to be fed, so that nobody looks through all of them at every event
        self._busy = 0  # workers with a shard
        self._leaving = 0  # workers that are not fed any more
        self._short_of_memory: Counter[int] = Counter()  # deaths for want of memory that no attempt was charged for
        self._doubted: set[int] = set()  # shards whose worker died once before it had begun, as far as known
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self._median: float | None = None  # of the durations; None = to be computed

    @property
    def finished(self) -> bool:
        """Nothing pending and nothing assigned."""
        return not self.pending and not self._busy

    @property
    def unfinished(self) -> int:
        """Shards pending or assigned."""
        return len(self.pending) + self._busy

    @property
    def workers(self) -> tuple[str, ...]:
        """Workers that may be fed."""
        return tuple(name for name, worker in self._workers.items() if not worker.leaving)

    @property
    def leaving(self) -> int:
        """Workers that are not fed any more and have not gone yet."""
        return self._leaving

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
        return max(0, self.workers_wanted - len(self._workers) + self._leaving - starting)

    def add_worker(self, name: str) -> None:
        self._workers[name] = _Worker()
        self._idle[name] = None

    def knows(self, name: str) -> bool:
        """True for workers that were added and not lost."""
        return name in self._workers

    def stop_feeding(self, name: str) -> None:
        """The worker's node is about to go: it finishes what it has, somebody else does the rest."""
        worker = self._workers.get(name)
        if worker is not None and not worker.leaving:
            worker.leaving = True
            self._leaving += 1
            self._idle.pop(name, None)

    def workers_released(self) -> list[str]:
        """Workers that are not fed any more and have nothing left to do."""
        if not self._leaving:
            return []
        return [name for name, worker in self._workers.items() if worker.leaving and worker.shard is None]

    def note_progress(self, name: str, shard: int, images: int) -> None:
        """A worker says how many images of its shard are done."""
        worker = self._workers.get(name)
        if worker is not None and worker.shard == shard:
            worker.images = images

    def take_assignments(self, now: float) -> list[Assignment]:
        """Hand out shards to idle workers."""
        taken: list[Assignment] = []
        while self._idle and self.pending:
            name = next(iter(self._idle))
            del self._idle[name]
            shard = self._take(self._workers[name].following)
            self._workers[name] = _Worker(shard, self._following.get(shard), now)
            self._busy += 1
            taken.append(Assignment(name, shard, self.attempts.get(shard, 0) + 1))
        return taken

    def _take(self, read_ahead: int | None) -> int:
        """The pending shard that the worker has begun to read, else the first; looks at the next few only."""
        if read_ahead is not None and read_ahead in islice(self.pending, 2 * len(self._workers)):
            self.pending.remove(read_ahead)
            return read_ahead
        return self.pending.popleft()

    def shard_done(self, name: str, shard: int, now: float, computed: bool = True) -> None:
        """`computed`: False where the result was found on disk, so that its duration says nothing."""
        if computed and shard not in self._partial:
            self._durations.append(now - self._workers[name].since)
            self._median = None
        self._set_idle(name)

    def shard_failed(self, name: str, shard: int) -> Charge:
        """The runner raised: one attempt used up; queued again at the end, or given up."""
        self._set_idle(name)
        return self._charge(shard, died=False)

    def shard_at(self, name: str) -> int | None:
        """The shard a worker is at, None = it is idle or unknown."""
        return self._workers.get(name, _Worker()).shard

    def worker_lost(
        self, name: str, blameless: bool = False, begun: bool = True, out_of_memory: bool = False
    ) -> Charge | None:
        """Queue the shard of a dead worker again; it is charged, unless `blameless`.

        Args:
            begun: False where the worker is not known to have begun with it. That is believed once per shard: a shard
                that ends processes before they can say a word must not do so for ever.
            out_of_memory: its machine lacked memory, which others may have taken: the shard comes last and is not
                charged, `MEMORY_TRIES` times; what takes the memory away more often may be the shard itself.
        """
        worker = self._workers.pop(name, _Worker())
        self._idle.pop(name, None)
        self._leaving -= worker.leaving
        if (shard := worker.shard) is None:
            return None
        self._busy -= 1
        spared = blameless
        if not begun and not blameless:
            spared = shard not in self._doubted
            self._doubted.add(shard)
        if out_of_memory and not blameless and self._short_of_memory[shard] < MEMORY_TRIES:
            self._short_of_memory[shard] += 1
            self.pending.append(shard)
            return None
        if spared:
            self.pending.appendleft(shard)
            return None
        return self._charge(shard, died=True, out_of_memory=out_of_memory)

    def overdue(self, now: float) -> list[tuple[str, int, float]]:
        """Workers to end: (worker, shard it hangs at, seconds it has been at it)."""
        shortest = self._first_deadline()
        late = []
        for name, worker in self._workers.items():
            seconds = now - worker.since
            if worker.shard is not None and seconds > shortest and seconds > self.deadline(worker.shard):
                late.append((name, worker.shard, seconds))
        return late

    def deadline(self, shard: int) -> float:
        """Seconds a shard may take: a multiple of the median for a first attempt, the configured limit afterwards."""
        return self.config.shard_timeout_s if self.attempts.get(shard, 0) > 0 else self._first_deadline()

    def _first_deadline(self) -> float:
        limit = self.config.shard_timeout_s
        if len(self._durations) < _DEADLINE_SAMPLES:
            return limit
        if self._median is None:
            self._median = statistics.median(self._durations)
        return min(limit, max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * self._median))

    def _set_idle(self, name: str) -> None:
        worker = self._workers[name]
        worker.shard, worker.images = None, 0
        self._busy -= 1
        if not worker.leaving:
            self._idle[name] = None

    def _charge(self, shard: int, died: bool, out_of_memory: bool = False) -> Charge:
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        spared = died and self._allows_another(shard, self.attempts[shard], out_of_memory)
        given_up = self.attempts[shard] >= self.config.max_attempts and not spared
        if given_up:
            self.given_up.add(shard)
        else:
            self.pending.append(shard)
        return Charge(shard, self.attempts[shard], given_up, died, out_of_memory)
