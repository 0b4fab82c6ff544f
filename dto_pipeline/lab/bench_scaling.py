"""What a second worker is worth: the same run with one and with two Ray workers, its depth network faked by CPU work.

Every image costs a fixed amount of hashing (calibrated once, then counted in blocks, so that two workers on one core
would show) on top of the real shard work: reading, solving, writing, receipts. The clock runs from the moment all
workers are ready: starting Ray and loading weights is not in it. Seconds.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.simulation import CountingLedger
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.loop import drive
from dto_pipeline.run.plan import plan_run
from dto_pipeline.run.pool import Event, WorkerPool, WorkerReady
from dto_pipeline.run.schedule import Schedule
from dto_pipeline.run.selection import Retry, Selection
from dto_pipeline.run.worker import ShardRunner

GOAL = 1.9  # two workers on two cores against one
WORKERS = (1, 2)
_BLOCK = bytes(1 << 16)  # hashed over and over
_CALIBRATION_BLOCKS = 2000


class ScalingError(DtoError):
    """A run that did not finish all its shards, so that its time says nothing."""


@dataclass(frozen=True)
class Scaling:
    """Wall time of the same shards, by number of workers."""

    shards: int
    images: int
    spin_s: float  # CPU time of one image's fake depth
    seconds: dict[int, list[float]]  # workers -> one time per repeat, ready to done

    @property
    def ratio(self) -> float:
        """Median of one worker over median of two."""
        one, two = (statistics.median(self.seconds[workers]) for workers in WORKERS)
        return one / two

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        return {**vars(self), "ratio": self.ratio, "goal": GOAL}

    def as_table(self) -> str:
        """Text for a terminal."""
        lines = [f"{self.images} images in {self.shards} shards, {self.spin_s:.2f} s of CPU each in place of depth"]
        for workers, times in self.seconds.items():
            runs = ", ".join(f"{seconds:.2f}" for seconds in times)
            lines.append(f"{workers} worker{'s' if workers > 1 else ' '}  {statistics.median(times):7.2f} s  ({runs})")
        ready = "from all workers ready to all shards done, without starting Ray"
        return "\n".join([*lines, f"two workers / one = {self.ratio:.2f} (goal {GOAL}; {ready})"])


def measure_scaling(
    manifest_path: str | Path, folder: Path, config: PipelineConfig, spin_s: float, repeats: int
) -> Scaling:
    """Do the manifest's shards with one and with two Ray workers in turn, `repeats` times each.

    Args:
        folder: where the runs go, one subfolder each.
        spin_s: CPU time that an image's fake depth takes here [s].

    Raises:
        ScalingError: a run left shards undone.
    """
    manifest = Manifest.open(manifest_path)
    blocks = blocks_for(spin_s)
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for repeat in range(repeats):
        for workers in WORKERS:
            directory = RunDirectory(folder / f"run-{workers}-{repeat}")
            runner = SpinningRunner(config, manifest_path, directory.root, blocks)
            seconds[workers].append(_time_run(manifest, directory, config, runner, workers))
    return Scaling(manifest.num_shards, manifest.num_images, spin_s, seconds)


class SpinningRunner(ShardRunner):
    """`ShardRunner` that hashes a fixed number of blocks for every image before it does the shard."""

    def __init__(self, config: PipelineConfig, manifest_path: str | Path, run_dir: Path, blocks: int) -> None:
        super().__init__(config, manifest_path, run_dir)
        self._blocks = blocks  # per image

    def run(self, shard: int, attempt: int = 1) -> Receipt:
        images = self._warm().manifest.read_shard(shard).num_rows
        spin(self._blocks * images)
        return super().run(shard, attempt)


def spin(blocks: int) -> None:
    """Hash so many blocks: CPU work that fits into the cache."""
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(_BLOCK)


def blocks_for(seconds: float) -> int:
    """Blocks that take so much CPU time here, at least one; by this thread's clock: a busy machine matters little."""
    began = time.thread_time()
    spin(_CALIBRATION_BLOCKS)
    return max(1, round(seconds * _CALIBRATION_BLOCKS / (time.thread_time() - began)))


def _time_run(
    manifest: Manifest, directory: RunDirectory, config: PipelineConfig, runner: SpinningRunner, workers: int
) -> float:
    from dto_pipeline.run.ray_pool import RayPool  # loads Ray

    directory.create_folders()
    ledger = CountingLedger()
    with directory.lock():
        identity = identify_run(config, manifest, manifest.path)
        plan = plan_run(directory, identity, manifest, config.run, Selection(), Retry())
        schedule = Schedule(plan.work, replace(config.run, workers=workers))
        ray_pool = RayPool(runner, replace(config.run, workers=workers))
        with closing(StartTogether(ray_pool, workers)) as pool:
            drive(schedule, pool, ledger)
            seconds = pool.now() - pool.began
    if len(ledger.done) != manifest.num_shards:
        raise ScalingError(
            f"{len(ledger.done)} of {manifest.num_shards} shards were done in {directory.root}; see failures"
        )
    return seconds


class StartTogether:
    """A `WorkerPool` that keeps early workers back until all have come, and remembers when that was (`began`)."""

    def __init__(self, pool: WorkerPool, workers: int) -> None:
        self._pool, self._missing = pool, workers
        self._early: list[Event] = []
        self.began = pool.now()

    def start_worker(self) -> str:
        return self._pool.start_worker()

    def assign(self, worker: str, shard: int, attempt: int) -> None:
        self._pool.assign(worker, shard, attempt)

    def wait(self, timeout_s: float) -> list[Event]:
        events = self._pool.wait(timeout_s)
        if self._missing <= 0:
            return events
        ready = [event for event in events if isinstance(event, WorkerReady)]
        self._early += ready
        self._missing -= len(ready)
        others: list[Event] = [event for event in events if not isinstance(event, WorkerReady)]
        if self._missing > 0:
            return others
        self.began = self._pool.now()
        return [*others, *self._early]

    def kill(self, worker: str) -> None:
        self._pool.kill(worker)

    def avoid_node(self, node: str) -> None:
        self._pool.avoid_node(node)

    def now(self) -> float:
        return self._pool.now()

    def close(self) -> None:
        self._pool.close()
