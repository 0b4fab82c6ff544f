"""Who does which shard next, and what a failure costs: the driver's decisions without its hands.

Pure bookkeeping: no files, no Ray, no clock of its own (`now` is passed in, seconds). A worker works its shards off in
order, so the first of its queue is the one it was at when it died: only that one is charged a try, and none where the
worker had not begun.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

DEADLINE_FACTOR = 10.0  # a first try may take this many times the median shard ...
DEADLINE_FLOOR_S = 120.0  # ... but never less than this [s]
_DEADLINE_SAMPLES = 5  # shards done before the median means anything
MEMORY_TRIES = 3  # deaths for want of memory that a shard is not charged for
_RECENT = 64  # durations remembered


@dataclass(frozen=True)
class Policy:
    """The knobs of `RunConfig` that scheduling needs."""

    workers: int
    max_attempts: int
    shards_in_flight: int
    shard_timeout_s: float
    warm_up_timeout_s: float
    max_failed_shards: int


@dataclass(frozen=True)
class Assignment:
    worker: str
    shard: int
    attempt: int  # 1 = first try


@dataclass(frozen=True)
class Charge:
    """A try that a shard has used up."""

    shard: int
    attempts: int  # so far
    given_up: bool  # True: it is quarantined, not queued again
    died: bool = False  # True: the try ended with its process, False: it raised
    out_of_memory: bool = False  # True: its machine lacked memory, and lacked it before at this shard


@dataclass
class _Queue:
    """What one worker holds; the first is being worked on since `since`."""

    shards: deque[int] = field(default_factory=deque)
    since: float = 0.0
    images: int = 0  # of the first that are done, by its last word
    leaving: bool = False  # its node is drained: it finishes what it holds and gets nothing more


class Schedule:
    """Pending, assigned, done and given-up shards of one run."""

    def __init__(
        self,
        shards: Iterable[int],
        policy: Policy,
        attempts: Mapping[int, int] | None = None,
        excuse: Callable[[int, int, bool], bool] | None = None,
        partial: Collection[int] = (),
    ) -> None:
        """
        Args:
            attempts: tries used up in earlier runs, per shard.
            excuse: asked once for every try that ended with its process, with the shard, the number of the try and
                whether memory lacked; True = a single image is to blame, so the shard is tried again whatever its
                tries.
            partial: shards of which only some images are done: how long they take says nothing about whole ones.
        """
        self.policy = policy
        self.pending: deque[int] = deque(shards)
        self.attempts: dict[int, int] = dict(attempts or {})
        self.given_up: set[int] = set()
        self._excuse = excuse or (lambda shard, attempt, out_of_memory: False)
        self._partial = frozenset(partial)
        self._queues: dict[str, _Queue] = {}
        self._assigned = 0  # shards in all queues
        self._leaving = 0  # workers that are not fed any more
        self._short_of_memory: Counter[int] = Counter()  # deaths for want of memory that no try was charged for
        self._doubted: set[int] = set()  # shards whose worker died once before it had begun, as far as known
        # Workers that are fed, by how many shards they hold, so that nobody looks through all of them at every event.
        self._holding: tuple[dict[str, None], ...] = tuple({} for _ in range(policy.shards_in_flight + 1))
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self._median: float | None = None  # of the durations; None = to be computed

    @property
    def finished(self) -> bool:
        """Nothing pending and nothing assigned."""
        return not self.pending and not self._assigned

    @property
    def unfinished(self) -> int:
        """Shards pending or assigned."""
        return len(self.pending) + self._assigned

    @property
    def workers(self) -> tuple[str, ...]:
        """Workers that may be fed."""
        return tuple(worker for worker, queue in self._queues.items() if not queue.leaving)

    @property
    def leaving(self) -> int:
        """Workers that are not fed any more and have not gone yet."""
        return self._leaving

    @property
    def images_under_way(self) -> int:
        """Images done of shards that are being worked on, by their workers' last word."""
        return sum(queue.images for queue in self._queues.values())

    def workers_missing(self, starting: int) -> int:
        """How many more workers to ask for, `starting` being on their way."""
        return max(0, min(self.policy.workers, self.unfinished) - self._fed_workers() - starting)

    def add_worker(self, worker: str) -> None:
        self._queues[worker] = _Queue()
        self._holding[0][worker] = None

    def knows(self, worker: str) -> bool:
        """True for workers that were added and not lost."""
        return worker in self._queues

    def stop_feeding(self, worker: str) -> None:
        """The worker's node is about to go: it finishes what it holds, somebody else does the rest."""
        queue = self._queues.get(worker)
        if queue is not None and not queue.leaving:
            queue.leaving = True
            self._leaving += 1
            self._holding[len(queue.shards)].pop(worker, None)

    def workers_released(self) -> list[str]:
        """Workers that are not fed any more and have nothing left to do."""
        if not self._leaving:
            return []
        return [worker for worker, queue in self._queues.items() if queue.leaving and not queue.shards]

    def note_progress(self, worker: str, shard: int, images: int) -> None:
        """A worker says how many images of the shard it is at are done."""
        queue = self._queues.get(worker)
        if queue is not None and queue.shards and queue.shards[0] == shard:
            queue.images = images

    def take_assignments(self, now: float) -> list[Assignment]:
        """Hand out shards: idle workers first; a second one each only while there is plenty for everybody."""
        taken: list[Assignment] = []
        for depth in range(self.policy.shards_in_flight):
            least = 0 if depth == 0 else self._fed_workers()
            while self._holding[depth] and len(self.pending) > least:
                worker = next(iter(self._holding[depth]))
                taken.append(self._assign(worker, self._queues[worker], now))
        return taken

    def shard_done(self, worker: str, shard: int, now: float, computed: bool = True) -> None:
        """`computed`: False where the result was found on disk, so that its duration says nothing."""
        if computed and shard not in self._partial:
            self._durations.append(now - self._queues[worker].since)
            self._median = None
        self._remove(worker, shard, now)

    def shard_failed(self, worker: str, shard: int, now: float) -> Charge:
        """The runner raised: one try used up; queued again at the end, or given up."""
        self._remove(worker, shard, now)
        return self._charge(shard, died=False)

    def shard_at(self, worker: str) -> int | None:
        """The shard a worker is at, None = it is idle or unknown."""
        held = self._queues.get(worker, _Queue()).shards
        return held[0] if held else None

    def worker_lost(
        self, worker: str, blameless: bool = False, begun: bool = True, out_of_memory: bool = False
    ) -> Charge | None:
        """Requeue what a dead worker held; the one it was at is charged, unless `blameless`.

        Args:
            begun: False where the worker is not known to have begun with it. That is believed once per shard: a shard
                that ends processes before they can say a word must not do so for ever.
            out_of_memory: its machine lacked memory, which others may have taken: the shard comes last and is not
                charged, `MEMORY_TRIES` times; what takes the memory away more often may be the shard itself.
        """
        queue = self._queues.pop(worker, _Queue())
        held = queue.shards
        self._holding[len(held)].pop(worker, None)
        self._assigned -= len(held)
        self._leaving -= queue.leaving
        spared = blameless or not held or not (begun or held[0] in self._doubted)
        if held and not begun and not blameless:
            self._doubted.add(held[0])
        if held and out_of_memory and not blameless and self._short_of_memory[held[0]] < MEMORY_TRIES:
            self._short_of_memory[held[0]] += 1
            self.pending.append(held.popleft())
            spared = True
        charged = None if spared else held.popleft()
        self.pending.extendleft(reversed(held))
        return None if charged is None else self._charge(charged, died=True, out_of_memory=out_of_memory)

    def overdue(self, now: float) -> list[tuple[str, int, float]]:
        """Workers to end: (worker, shard it hangs at, seconds it has been at it)."""
        shortest = self._first_try_deadline()
        late = []
        for worker, queue in self._queues.items():
            seconds = now - queue.since
            if queue.shards and seconds > shortest and seconds > self.deadline(queue.shards[0]):
                late.append((worker, queue.shards[0], seconds))
        return late

    def deadline(self, shard: int) -> float:
        """Seconds a shard may take: a multiple of the median for a first try, the configured limit afterwards."""
        return self.policy.shard_timeout_s if self.attempts.get(shard, 0) > 0 else self._first_try_deadline()

    def _first_try_deadline(self) -> float:
        limit = self.policy.shard_timeout_s
        if len(self._durations) < _DEADLINE_SAMPLES:
            return limit
        if self._median is None:
            self._median = statistics.median(self._durations)
        return min(limit, max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * self._median))

    def _fed_workers(self) -> int:
        return len(self._queues) - self._leaving

    def _assign(self, worker: str, queue: _Queue, now: float) -> Assignment:
        shard = self.pending.popleft()
        if not queue.shards:
            queue.since = now
        queue.shards.append(shard)
        self._assigned += 1
        self._regroup(worker, queue, len(queue.shards) - 1)
        return Assignment(worker, shard, self.attempts.get(shard, 0) + 1)

    def _remove(self, worker: str, shard: int, now: float) -> None:
        queue = self._queues[worker]
        queue.shards.remove(shard)
        queue.since, queue.images = now, 0
        self._assigned -= 1
        self._regroup(worker, queue, len(queue.shards) + 1)

    def _regroup(self, worker: str, queue: _Queue, before: int) -> None:
        self._holding[before].pop(worker, None)
        if not queue.leaving:
            self._holding[len(queue.shards)][worker] = None

    def _charge(self, shard: int, died: bool, out_of_memory: bool = False) -> Charge:
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        excused = died and self._excuse(shard, self.attempts[shard], out_of_memory)
        given_up = self.attempts[shard] >= self.policy.max_attempts and not excused
        if given_up:
            self.given_up.add(shard)
        else:
            self.pending.append(shard)
        return Charge(shard, self.attempts[shard], given_up, died, out_of_memory)
