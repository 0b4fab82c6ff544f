"""Who does which shard next, and what a failure costs: the driver's decisions without its hands.

Pure bookkeeping: no files, no Ray, no clock of its own (`now` is passed in, seconds). A worker works its shards off in
order, so the first of its queue is the one it was at when it died: only that one is charged a try.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

DEADLINE_FACTOR = 10.0  # a first try may take this many times the median shard ...
DEADLINE_FLOOR_S = 120.0  # ... but never less than this [s]
_DEADLINE_SAMPLES = 5  # shards done before the median means anything
_RECENT = 64  # durations remembered


@dataclass(frozen=True)
class Policy:
    """The knobs of `RunConfig` that scheduling needs."""

    workers: int
    max_attempts: int
    shards_in_flight: int
    shard_timeout_s: float
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


@dataclass
class _Queue:
    """What one worker holds; the first is being worked on since `since`."""

    shards: deque[int] = field(default_factory=deque)
    since: float = 0.0


class Schedule:
    """Pending, assigned, done and given-up shards of one run."""

    def __init__(self, shards: Iterable[int], policy: Policy, attempts: Mapping[int, int] | None = None) -> None:
        """`attempts`: tries used up in earlier runs, per shard."""
        self.policy = policy
        self.pending: deque[int] = deque(shards)
        self.attempts: dict[int, int] = dict(attempts or {})
        self.given_up: set[int] = set()
        self._queues: dict[str, _Queue] = {}
        self._assigned = 0  # shards in all queues
        # Workers by how many shards they hold, so that nobody looks through all of them at every event.
        self._holding: tuple[dict[str, None], ...] = tuple({} for _ in range(policy.shards_in_flight + 1))
        self._durations: deque[float] = deque(maxlen=_RECENT)

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
        return tuple(self._queues)

    def workers_missing(self, starting: int) -> int:
        """How many more workers to ask for, `starting` being on their way."""
        return max(0, min(self.policy.workers, self.unfinished) - len(self._queues) - starting)

    def add_worker(self, worker: str) -> None:
        self._queues[worker] = _Queue()
        self._holding[0][worker] = None

    def take_assignments(self, now: float) -> list[Assignment]:
        """Hand out shards: idle workers first; a second one each only while there is plenty for everybody."""
        taken: list[Assignment] = []
        for depth in range(self.policy.shards_in_flight):
            least = 0 if depth == 0 else len(self._queues)
            while self._holding[depth] and len(self.pending) > least:
                worker = next(iter(self._holding[depth]))
                taken.append(self._assign(worker, self._queues[worker], now))
        return taken

    def shard_done(self, worker: str, shard: int, now: float, computed: bool = True) -> None:
        """`computed`: False where the result was found on disk, so that its duration says nothing."""
        if computed:
            self._durations.append(now - self._queues[worker].since)
        self._remove(worker, shard, now)

    def shard_failed(self, worker: str, shard: int, now: float) -> Charge:
        """The runner raised: one try used up; queued again at the end, or given up."""
        self._remove(worker, shard, now)
        return self._charge(shard)

    def worker_lost(self, worker: str, blameless: bool = False) -> Charge | None:
        """Requeue what a dead worker held; the one it was at is charged, unless `blameless`."""
        held = self._queues.pop(worker, _Queue()).shards
        self._holding[len(held)].pop(worker, None)
        self._assigned -= len(held)
        charged = None if blameless or not held else held.popleft()
        self.pending.extendleft(reversed(held))
        return None if charged is None else self._charge(charged)

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
        return min(limit, max(DEADLINE_FLOOR_S, DEADLINE_FACTOR * statistics.median(self._durations)))

    def _assign(self, worker: str, queue: _Queue, now: float) -> Assignment:
        shard = self.pending.popleft()
        if not queue.shards:
            queue.since = now
        queue.shards.append(shard)
        self._assigned += 1
        self._regroup(worker, len(queue.shards) - 1, len(queue.shards))
        return Assignment(worker, shard, self.attempts.get(shard, 0) + 1)

    def _remove(self, worker: str, shard: int, now: float) -> None:
        queue = self._queues[worker]
        queue.shards.remove(shard)
        queue.since = now
        self._assigned -= 1
        self._regroup(worker, len(queue.shards) + 1, len(queue.shards))

    def _regroup(self, worker: str, before: int, after: int) -> None:
        del self._holding[before][worker]
        self._holding[after][worker] = None

    def _charge(self, shard: int) -> Charge:
        self.attempts[shard] = self.attempts.get(shard, 0) + 1
        given_up = self.attempts[shard] >= self.policy.max_attempts
        if given_up:
            self.given_up.add(shard)
        else:
            self.pending.append(shard)
        return Charge(shard, self.attempts[shard], given_up)
