"""Simulate a run: the cost of worker deaths, start-up and shard size with hundreds of workers. No images, no Ray.

    python jobs/simulate.py --images 10000000 --workers 512 --mtbf 2h --image-s 0.3

Lets the real driver loop work through a run with pretended workers whose time is virtual and who die at random, once
per shard size. Expect, in seconds, a table of throughput, lost work and the loop's own CPU time (real; what Ray costs
is not in it), and which shard size to take. The run section of the config (--set run.max_attempts=5) counts as in a
real run. Seconds, virtual unless it says CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dto_pipeline.commands.options import add_config_options, positive, read_config
from dto_pipeline.config import RunConfig
from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.run.loop import (
    Event,
    FailedAttempt,
    RunAborted,
    Schedule,
    ShardDone,
    WorkerCounts,
    WorkerLost,
    WorkerPlaced,
    WorkerPool,
    WorkerReady,
    drive,
)
from dto_pipeline.run.report import format_duration
from dto_pipeline.terminal import align

NEAR_BEST = 0.02  # efficiency that a recommended shard size may cost against the best one
GOOD_LUCK = 0.01  # with a recommended size, chance gives up fewer sound shards on average
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = "50,200,1000,5000"


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
    preempted: float = 0.0  # share of deaths known to be caused by the node: they count against no shard
    hanging: float = 0.0  # share of workers that hang while they start
    poison: int = 0  # shards that kill every worker that gets them, half way through
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            **dict.fromkeys(("images", "workers", "shard_images"), (1, math.inf, "at least 1")),
            **dict.fromkeys(("mtbf_s", "image_s"), (math.nextafter(0, 1), math.inf, "more than 0")),
            **dict.fromkeys(("spread", "preempted", "hanging"), (0, 1, "0 to 1")),
            **dict.fromkeys(("queue_s", "start_s"), (0, math.inf, "0 or more")),
        }
        for name, (least, most, words) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise ScenarioError(f"{name} is {getattr(self, name)}; expected {words}")
        if not 0 <= self.poison <= self.shards:
            raise ScenarioError(f"poison is {self.poison}; expected 0 to {self.shards} (all shards)")

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


def _metered(method: Callable[..., Any]) -> Callable[..., Any]:
    """Add the CPU time of a method to the pool's own, to separate it from the driver's."""

    @functools.wraps(method)
    def timed(pool: VirtualPool, *args: Any) -> Any:
        began = time.thread_time_ns()
        answer = method(pool, *args)
        pool.own_ns += time.thread_time_ns() - began
        return answer

    return timed


@dataclass
class _Worker:
    """A pretended worker: what it was given; the first is being worked on since `since`."""

    shards: deque[tuple[int, int]] = field(default_factory=deque)  # (shard, attempt)
    since: float = 0.0


@dataclass(kw_only=True)
class Tally:
    """What is counted while a run goes on."""

    done: int = 0  # shards
    repeated: int = 0  # shards reported done again after they were done; anything but 0 is a fault of the driver
    images_done: int = 0
    useful_s: float = 0.0  # worker time that ended in a finished shard
    lost_s: float = 0.0  # worker time thrown away with a dying or ended worker
    deaths: int = 0
    preemptions: int = 0  # of these
    retries: int = 0  # attempts that counted against a shard
    events: int = 0  # that the driver received


class VirtualPool(WorkerPool):
    """A pool whose clock jumps from event to event; also the `Ledger` of its run, which only counts."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._random = random.Random(scenario.seed)
        sizes = [scenario.shard_images] * scenario.shards
        sizes[-1] = scenario.images - scenario.shard_images * (scenario.shards - 1)
        spread = scenario.spread
        self._images = sizes
        self._seconds = [size * scenario.image_s * (1 + spread * self._random.uniform(-1, 1)) for size in sizes]
        self.poison = frozenset(self._random.sample(range(scenario.shards), scenario.poison))
        self._time = 0.0
        self._workers: dict[str, _Worker] = {}
        self._coming: list[tuple[float, int, Event]] = []  # heap of (when, tie-breaker, what)
        self._count = self._started = 0
        self._done: set[int] = set()
        self.tally = Tally()
        self.own_ns = 0  # CPU time spent in here

    @_metered
    def start_worker(self) -> str:
        self._started += 1
        name = f"worker-{self._started}"
        self._workers[name] = _Worker()
        self._later(self._scenario.queue_s, WorkerPlaced(name))
        if not (self._scenario.hanging and self._random.random() < self._scenario.hanging):
            self._later(self._scenario.queue_s + self._scenario.start_s, WorkerReady(name))
        if math.isfinite(self._scenario.mtbf_s):
            blameless = self._random.random() < self._scenario.preempted
            death = WorkerLost(name, "the node was taken" if blameless else "it died", blameless=blameless)
            self._later(self._random.expovariate(1 / self._scenario.mtbf_s), death)
        return name

    @_metered
    def assign(self, worker: str, shard: int, attempt: int, following: int | None = None) -> None:
        self._workers[worker].shards.append((shard, attempt))
        if len(self._workers[worker].shards) == 1:
            self._begin(worker)

    @_metered
    def wait(self, timeout_s: float) -> list[Event]:
        """The next event within `timeout_s`, with all of the same instant."""
        until = self._time + timeout_s
        events: list[Event] = []
        while self._coming and self._coming[0][0] <= (self._time if events else until):
            when, _, event = heapq.heappop(self._coming)
            if event.worker in self._workers:
                self._time = when
                self._account(event)
                events.append(event)
        if not events:
            self._time = until
        self.tally.events += len(events)
        return events

    @_metered
    def kill(self, worker: str) -> None:
        self._lose(worker)

    def now(self) -> float:
        return self._time

    def close(self) -> None:
        self._coming.clear()

    def shard_done(self, receipt: Receipt) -> None:
        if receipt.shard in self._done:
            self.tally.repeated += 1
            return
        self._done.add(receipt.shard)
        self.tally.done += 1
        self.tally.images_done += receipt.images

    def attempt_failed(self, attempt: FailedAttempt, worker: str, error: str, detail: str) -> None:
        self.tally.retries += 1

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        """Counted when it happens."""

    def tick(self, workers: WorkerCounts) -> None:
        """Nothing to show."""

    def _account(self, event: Event) -> None:
        if isinstance(event, WorkerLost):
            self.tally.deaths += 1
            self.tally.preemptions += event.blameless
            self._lose(event.worker)
        elif isinstance(event, ShardDone):
            worker = self._workers[event.worker]
            self.tally.useful_s += self._time - worker.since
            worker.shards.popleft()
            if worker.shards:
                self._begin(event.worker)

    def _lose(self, name: str) -> None:
        worker = self._workers.pop(name)
        if worker.shards:
            self.tally.lost_s += self._time - worker.since

    def _begin(self, name: str) -> None:
        worker = self._workers[name]
        (shard, attempt), worker.since = worker.shards[0], self._time
        images, seconds = self._images[shard], self._seconds[shard]
        if shard in self.poison:
            self._later(seconds / 2, WorkerLost(name, f"shard {shard} killed it"))
            return
        facts: dict[str, Any] = {"shard": shard, "rows": images, "images": images, "attempt": attempt, "worker": name}
        facts |= dict.fromkeys(("label_sha256", "shard_key", "config_hash", "manifest_fingerprint"), "")
        facts |= dict.fromkeys(("persons", "label_bytes", "finished_at"), 0) | {"image_status": {}, "person_status": {}}
        receipt = Receipt(wall_s=seconds, adopted=False, **facts)
        self._later(seconds, ShardDone(name, shard, receipt))

    def _later(self, seconds: float, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._coming, (self._time + seconds, self._count, event))


@dataclass(kw_only=True)
class Simulated(Tally):
    """What became of one scenario."""

    scenario: Scenario
    given_up: tuple[int, ...]  # shards
    unlucky: int  # of these, shards that nothing was wrong with
    expected_unlucky: float  # how many of those chance brings on average
    aborted: str  # why the run stopped early; "" = it did not
    wall_s: float
    driver_cpu_s: float  # real CPU time of the driver's loop, the pool's not counted [s]

    @property
    def images_per_s(self) -> float:
        return self.images_done / self.wall_s

    @property
    def efficiency(self) -> float:
        """Throughput against workers that start once, never die and share the work evenly."""
        return self.images_per_s * self.scenario.ideal_s / self.scenario.images

    @property
    def lost_share(self) -> float:
        """Part of all work that was thrown away."""
        return self.lost_s / (self.useful_s + self.lost_s) if self.lost_s else 0.0

    @property
    def driver_ms_per_shard(self) -> float:
        """Real CPU milliseconds."""
        return 1000 * self.driver_cpu_s / max(1, self.done)

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready; a worker that never dies has `mtbf_s` null."""
        derived = ("images_per_s", "efficiency", "lost_share", "driver_ms_per_shard")
        tree = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        tree["scenario"] |= {"shards": self.scenario.shards, "shard_s": self.scenario.shard_s}
        if math.isinf(self.scenario.mtbf_s):
            tree["scenario"]["mtbf_s"] = None
        return tree


def simulate(scenario: Scenario, config: RunConfig | None = None) -> Simulated:
    """Drive a run of `scenario` to its end in virtual time; the same scenario gives the same result, CPU time aside.

    Args:
        config: attempts and time limits as a real run has them; its `workers` is ignored.
    """
    config = dataclasses.replace(config or RunConfig(), workers=scenario.workers)
    pool, aborted = VirtualPool(scenario), ""
    schedule = Schedule(range(scenario.shards), config)
    began = time.thread_time_ns()
    try:
        drive(schedule, pool, pool)
    except RunAborted as error:
        aborted = str(error)
    spent = time.thread_time_ns() - began - pool.own_ns
    given_up = tuple(sorted(schedule.given_up))
    return Simulated(
        scenario=scenario,
        **vars(pool.tally),
        given_up=given_up,
        unlucky=len(set(given_up) - pool.poison),
        expected_unlucky=expected_unlucky(scenario, config.max_attempts),
        aborted=aborted,
        wall_s=pool.now(),
        driver_cpu_s=spent / 1e9,
    )


def expected_unlucky(scenario: Scenario, max_attempts: int) -> float:
    """Shards given up by chance, on average: in every attempt a worker dies, and it counts against the shard."""
    charged_deaths = scenario.shard_s * (1 - scenario.preempted) / scenario.mtbf_s
    return scenario.shards * (1 - math.exp(-charged_deaths)) ** max_attempts


def attempts_against_chance(scenario: Scenario) -> int:
    """Least `run.max_attempts` with which fewer than GOOD_LUCK sound shards are given up by chance, on average."""
    attempts = 1
    while expected_unlucky(scenario, attempts) > GOOD_LUCK:
        attempts += 1
    return attempts


def recommend(results: Sequence[Simulated]) -> Simulated | None:
    """The largest size (fewest files) that costs next to no throughput and gives no sound shard up by bad luck."""
    whole = [r for r in results if not r.aborted and not r.unlucky and r.expected_unlucky <= GOOD_LUCK]
    best = max((r.efficiency for r in whole), default=0.0)
    near = [r for r in whole if r.efficiency >= best - NEAR_BEST]
    return max(near, key=lambda r: r.scenario.shard_images, default=None)


def as_table(results: Sequence[Simulated]) -> str:
    """What is simulated, a line for each shard size, and which to take."""
    scenario = results[0].scenario
    life = f"each dies once in {format_duration(scenario.mtbf_s)}" if math.isfinite(scenario.mtbf_s) else "none dies"
    lines = [
        f"{scenario.images} images at {scenario.image_s:g} s, {scenario.workers} workers; {life}, ready after "
        f"{scenario.start_s:g} s; at best {format_duration(scenario.ideal_s)}"
    ]
    if scenario.queue_s or scenario.hanging:
        lines.append(f"workers wait {scenario.queue_s:g} s for their place; {scenario.hanging:.0%} of them never load")
    if scenario.preempted or scenario.poison:
        lines.append(f"{scenario.preempted:.0%} of deaths are the node's doing; {scenario.poison} poison shards")
    rows = [["images/shard", "work/shard", "shards", "wall time", "images/s", "efficiency", "work lost"]]
    rows[0] += ["deaths", "attempts lost", "given up", "driver CPU ms/shard", "of a core"]
    for r in results:
        shard = [str(r.scenario.shard_images), format_duration(r.scenario.shard_s), str(r.scenario.shards)]
        speed = [format_duration(r.wall_s), f"{r.images_per_s:.0f}", f"{r.efficiency:.1%}", f"{r.lost_share:.2%}"]
        driver = [f"{r.driver_ms_per_shard:.3f}", f"{r.driver_cpu_s / r.wall_s:.2%}"]
        rows.append([*shard, *speed, str(r.deaths), str(r.retries), str(len(r.given_up)), *driver])
    lines += ["", *align(rows), ""]
    for r in results:
        size = f"{r.scenario.shard_images} images a shard:"
        if r.aborted:
            lines.append(f"{size} the run stopped: {r.aborted}")
        if r.expected_unlucky > GOOD_LUCK:
            enough = f"smaller shards or run.max_attempts={attempts_against_chance(r.scenario)} mend that"
            lines.append(f"{size} chance gives up {r.expected_unlucky:.2g} sound shards on average; {enough}")
    if (best := recommend(results)) is None:
        return "\n".join([*lines, "recommended: none of these sizes; try smaller shards"])
    reason = f"the largest within {NEAR_BEST:.0%} of the best efficiency that leaves nothing to luck"
    size = f"{best.scenario.shard_images} images a shard, {format_duration(best.scenario.shard_s)} of work"
    return "\n".join([*lines, f"recommended: {size} ({reason})"])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    names = {name.name for name in dataclasses.fields(Scenario)} - {"shard_images", "mtbf_s"}
    plain = {name: getattr(arguments, name) for name in names}
    config = read_config(arguments).run
    results = [
        simulate(Scenario(mtbf_s=arguments.mtbf, shard_images=size, **plain), config) for size in arguments.shard_images
    ]
    print(as_table(results))
    if arguments.json:
        best = recommend(results)
        size = None if best is None else best.scenario.shard_images
        found = {"results": [result.to_json() for result in results], "recommended_shard_images": size}
        write_json_atomic(Path(arguments.json), found)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=10_000_000, metavar="N", help="images of the run (10000000)")
    parser.add_argument("--workers", type=positive, default=512, metavar="N", help="workers, one per GPU (512)")
    parser.add_argument(
        "--mtbf",
        type=duration,
        default="2h",
        metavar="TIME",
        help="mean time between the failures of one worker: 90s, 30m, 2h, 1d or never (2h)",
    )
    parser.add_argument(
        "--shard-images", type=sizes, default=_SIZES, metavar="N[,N2..]", help=f"shard sizes to compare ({_SIZES})"
    )
    for name, default, what in (
        ("image-s", 0.04, "work of one image in seconds"),
        ("queue-s", 0.0, "wait of a worker for its CPUs and GPUs in seconds"),
        ("start-s", 60.0, "start-up of a worker in seconds"),
        ("hanging", 0.0, "part of workers that hang while they start"),
        ("spread", 0.1, "shards differ by up to this part of their time"),
        ("preempted", 0.0, "part of deaths that are known pre-emptions"),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="X", help=f"{what} ({default:g})")
    parser.add_argument(
        "--poison", type=int, default=0, metavar="N", help="shards that kill every worker that gets them (0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all chance (0)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to FILE too")
    add_config_options(parser)
    return parser.parse_args(argv)


def duration(text: str) -> float:
    """Type of an option that is a time: ``90``, ``90s``, ``30m``, ``2h``, ``1d``; ``never`` = infinity. Seconds."""
    if text == "never":
        return float("inf")
    number, unit = (text[:-1], _UNITS_S[text[-1]]) if text and text[-1] in _UNITS_S else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 2h, 1d or never") from None


def sizes(text: str) -> list[int]:
    """Type of an option that lists counts: ``200`` or ``50,200,1000``."""
    try:
        return [positive(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 50,200,1000") from None


if __name__ == "__main__":
    raise SystemExit(main())
