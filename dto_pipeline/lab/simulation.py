"""A run in virtual time: the real driver loop over workers that only pretend to work.

Says what deaths, start-up and shard size cost a run on hundreds of workers, and what the driver's own loop costs (real
CPU time). Knows the protocols of `pool` and `drive`; knows no files, no Ray and no images: Ray's share of the driver's
cost, networks and disks are not in it. Seconds, virtual unless it says CPU.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.lab.virtual_pool import Scenario, VirtualPool
from dto_pipeline.run.loop import Charge, RunAborted, Schedule, drive
from dto_pipeline.run.report import format_duration

NEAR_BEST = 0.02  # efficiency that a recommended shard size may cost against the best one
GOOD_LUCK = 0.01  # sound shards given up by chance, on average, that a recommended size may bring


@dataclass(frozen=True)
class Simulated:
    """What became of one scenario."""

    scenario: Scenario
    done: int  # shards
    repeated: int  # shards reported done again after they were done; anything but 0 is a fault of the driver
    images_done: int
    given_up: tuple[int, ...]  # shards
    unlucky: int  # of these, shards that nothing was wrong with
    expected_unlucky: float  # how many of those chance brings on average
    aborted: str  # why the run stopped early; "" = it did not
    wall_s: float
    useful_s: float  # worker time that ended in a finished shard
    lost_s: float  # worker time thrown away with a dying or ended worker
    deaths: int
    preemptions: int  # of these
    retries: int  # tries that shards were charged
    events: int  # what the driver was told
    driver_cpu_s: float  # real CPU time of the driver's loop, pool and ledger not counted [s]

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

    @property
    def driver_us_per_event(self) -> float:
        """Real CPU microseconds."""
        return 1e6 * self.driver_cpu_s / max(1, self.events)

    @property
    def driver_share(self) -> float:
        """Part of one core that the loop would keep busy while the run lasts; near 1 it holds the workers up."""
        return self.driver_cpu_s / self.wall_s

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready; a worker that never dies has `mtbf_s` null."""
        derived = ("images_per_s", "efficiency", "lost_share", "driver_ms_per_shard", "driver_us_per_event")
        tree = dataclasses.asdict(self) | {name: getattr(self, name) for name in (*derived, "driver_share")}
        tree["scenario"] |= {"shards": self.scenario.shards, "shard_s": self.scenario.shard_s}
        if math.isinf(self.scenario.mtbf_s):
            tree["scenario"]["mtbf_s"] = None
        return tree


@dataclass(frozen=True)
class ShardSizes:
    """The same run with several shard sizes, and which to take."""

    results: tuple[Simulated, ...]

    @property
    def recommended(self) -> Simulated | None:
        """The largest size (fewest files) that costs next to no throughput and gives no sound shard up by bad luck."""
        whole = [r for r in self.results if not r.aborted and not r.unlucky and r.expected_unlucky <= GOOD_LUCK]
        best = max((r.efficiency for r in whole), default=0.0)
        near = [r for r in whole if r.efficiency >= best - NEAR_BEST]
        return max(near, key=lambda r: r.scenario.shard_images, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        best = self.recommended
        return {
            "results": [result.to_json() for result in self.results],
            "recommended_shard_images": None if best is None else best.scenario.shard_images,
        }

    def as_table(self) -> str:
        """Text for a terminal."""
        return "\n".join([*_header(self.results[0].scenario), "", *_rows(self.results), "", *self._advice()])

    def _advice(self) -> list[str]:
        lines = []
        for r in self.results:
            size = f"{r.scenario.shard_images} images a shard:"
            if r.aborted:
                lines.append(f"{size} the run stopped: {r.aborted}")
            if r.expected_unlucky > GOOD_LUCK:
                enough = f"smaller shards or run.max_attempts={attempts_against_chance(r.scenario)} mend that"
                lines.append(f"{size} chance gives up {r.expected_unlucky:.2g} sound shards on average; {enough}")
        best = self.recommended
        if best is None:
            return [*lines, "recommended: none of these sizes; try smaller shards"]
        reason = f"the largest within {NEAR_BEST:.0%} of the best efficiency that leaves nothing to luck"
        size = f"{best.scenario.shard_images} images a shard, {format_duration(best.scenario.shard_s)} of work"
        return [*lines, f"recommended: {size} ({reason})"]


def simulate_sizes(scenario: Scenario, shard_images: Sequence[int], config: RunConfig | None = None) -> ShardSizes:
    """`simulate` with each of these shard sizes."""
    sizes = [dataclasses.replace(scenario, shard_images=size) for size in shard_images]
    return ShardSizes(tuple(simulate(one, config) for one in sizes))


def simulate(scenario: Scenario, config: RunConfig | None = None) -> Simulated:
    """Drive a run of `scenario` to its end in virtual time; the same scenario gives the same result, CPU time aside.

    Args:
        config: attempts and time limits as a real run has them; its `workers` is not looked at.
    """
    config = dataclasses.replace(config or RunConfig(), workers=scenario.workers)
    pool, ledger, aborted = VirtualPool(scenario), CountingLedger(), ""
    schedule = Schedule(range(scenario.shards), config)
    began = time.thread_time_ns()
    try:
        drive(schedule, pool, ledger)
    except RunAborted as error:
        aborted = str(error)
    spent = time.thread_time_ns() - began - pool.own_ns
    given_up = tuple(sorted(schedule.given_up))
    return Simulated(
        scenario=scenario,
        done=len(ledger.done),
        repeated=ledger.repeated,
        images_done=ledger.images,
        given_up=given_up,
        unlucky=len(set(given_up) - pool.poison),
        expected_unlucky=expected_unlucky(scenario, config.max_attempts),
        aborted=aborted,
        wall_s=pool.now(),
        useful_s=pool.useful_s,
        lost_s=pool.lost_s,
        deaths=pool.deaths,
        preemptions=pool.preemptions,
        retries=ledger.charges,
        events=pool.events,
        driver_cpu_s=spent / 1e9,
    )


def expected_unlucky(scenario: Scenario, max_attempts: int) -> float:
    """Shards that chance alone gives up, on average: every try must meet a death that is charged."""
    charged_deaths = scenario.shard_s * (1 - scenario.preempted) / scenario.mtbf_s
    return scenario.shards * (1 - math.exp(-charged_deaths)) ** max_attempts


def attempts_against_chance(scenario: Scenario) -> int:
    """Least `run.max_attempts` with which chance gives no sound shard up (fewer than GOOD_LUCK on average)."""
    attempts = 1
    while expected_unlucky(scenario, attempts) > GOOD_LUCK:
        attempts += 1
    return attempts


class CountingLedger:
    """A `Ledger` that remembers numbers only."""

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.images = self.repeated = self.charges = 0

    def shard_done(self, receipt: Receipt) -> None:
        if receipt.shard in self.done:
            self.repeated += 1
        else:
            self.done.add(receipt.shard)
            self.images += receipt.images

    def shard_charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        self.charges += 1

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        """The pool counts deaths itself."""

    def waiting(self, seconds: float, loading: int) -> None:
        """Nobody reads it here."""

    def tick(self, loading: int) -> None:
        """Nothing to show."""


def _header(scenario: Scenario) -> list[str]:
    life = f"each dies once in {format_duration(scenario.mtbf_s)}" if math.isfinite(scenario.mtbf_s) else "none dies"
    lines = [
        f"{scenario.images} images at {scenario.image_s:g} s, {scenario.workers} workers; {life}, ready after "
        f"{scenario.start_s:g} s; at best {format_duration(scenario.ideal_s)}"
    ]
    if scenario.queue_s or scenario.hanging:
        lines.append(f"workers wait {scenario.queue_s:g} s for their place; {scenario.hanging:.0%} of them never load")
    if scenario.preempted or scenario.poison:
        lines.append(f"{scenario.preempted:.0%} of deaths are the node's doing; {scenario.poison} poison shards")
    return lines


def _rows(results: Sequence[Simulated]) -> list[str]:
    """The table, right-aligned."""
    first = ("images", "work", "", "wall", "images", "", "work", "", "tries", "given", "driver CPU", "us an", "of a")
    second = (
        "a shard",
        "a shard",
        "shards",
        "time",
        "per s",
        "efficiency",
        "lost",
        "deaths",
        "lost",
        "up",
        "ms a shard",
    )
    lines = [first, (*second, "event", "core"), *(_cells(result) for result in results)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]


def _cells(result: Simulated) -> tuple[str, ...]:
    return (
        str(result.scenario.shard_images),
        format_duration(result.scenario.shard_s),
        str(result.scenario.shards),
        format_duration(result.wall_s),
        f"{result.images_per_s:.0f}",
        f"{result.efficiency:.1%}",
        f"{result.lost_share:.2%}",
        str(result.deaths),
        str(result.retries),
        str(len(result.given_up)),
        f"{result.driver_ms_per_shard:.3f}",
        f"{result.driver_us_per_event:.0f}",
        f"{result.driver_share:.2%}",
    )
