"""What a start of a run would do and cost, without doing it: `dto run --dry-run`.

Reads manifest, run.json, receipts and failures; writes nothing, takes no lock. Hours are those of workers at work,
start-up left out; bytes are those of label files. Every estimate says where it comes from, or that nothing is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.run import directory as files
from dto_pipeline.run.directory import RunDirectory, RunDirectoryError, RunIdentity, RunScan
from dto_pipeline.run.lock import read_holder
from dto_pipeline.run.plan import RunPlan, survey_run
from dto_pipeline.run.receipt import Receipt
from dto_pipeline.run.report import format_duration
from dto_pipeline.run.selection import Retry, Selection

BYTES_PER_PERSON = 1000  # of a label file [B]: 960 to 1010 in 96-image shards of the demo's crowds, 6 people an image


@dataclass(frozen=True)
class Cost:
    """How long and how large; None = nothing is known."""

    worker_hours: float | None
    time_origin: str
    label_bytes: int
    bytes_origin: str


@dataclass(frozen=True)
class Forecast:
    """What one start would do."""

    run_dir: str
    shards: int  # of the manifest; those below are parts of it
    done: int
    pending: int  # neither done nor given up
    failed: int  # given up and not taken up again
    selected: int  # pending shards this start would do
    repairs: int  # finished shards in which failed images would be done again
    images: int  # to be done in selected shards and repairs
    persons: int  # in selected shards
    workers: int  # 0 = in this process
    cpus_per_worker: float
    gpus_per_worker: float
    cost: Cost
    refusals: list[str]  # why a start would be refused now

    @property
    def gpu_hours(self) -> float | None:
        """None = not known."""
        return None if self.cost.worker_hours is None else self.cost.worker_hours * self.gpus_per_worker

    @property
    def exit_code(self) -> int:
        """0: it could start; 2: it would be refused."""
        return 2 if self.refusals else 0

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        return {**dataclasses.asdict(self), "gpu_hours": self.gpu_hours, "exit_code": self.exit_code}

    def as_table(self) -> str:
        """Text for a terminal."""
        return "\n".join(_table_lines(self))


def forecast_run(
    directory: RunDirectory,
    manifest: Manifest,
    config: PipelineConfig,
    selection: Selection,
    retry: Retry,
    images_per_s: float | None = None,
) -> Forecast:
    """What a start with these arguments would do; `images_per_s` is the speed of one worker, where it is known.

    Raises:
        SelectionError: a selection that means nothing for this manifest.
    """
    wanted = files.identify_run(config, manifest, manifest.path)
    scan, refusals = _look(directory, wanted)
    plan = survey_run(directory, wanted, manifest, scan, selection, retry)
    fresh = [shard for shard in plan.work if shard not in plan.repairs]
    images = sum(plan.work.values())
    persons = sum(manifest.shard_sizes[shard].people for shard in fresh)
    return Forecast(
        run_dir=str(directory.root),
        shards=wanted.shards,
        done=len(plan.done),
        pending=len(fresh) + len(plan.unselected),
        failed=len(plan.failed),
        selected=len(fresh),
        repairs=len(plan.repairs),
        images=images,
        persons=persons,
        workers=_useful_workers(config.run, plan),
        cpus_per_worker=config.run.cpus_per_worker,
        gpus_per_worker=config.run.gpus_per_worker,
        cost=_estimate(plan.done.values(), images, persons, images_per_s),
        refusals=refusals,
    )


def _look(directory: RunDirectory, wanted: RunIdentity) -> tuple[RunScan, list[str]]:
    """What the folder holds, and what stands against a start."""
    refusals = []
    holder = read_holder(directory.lock_file)
    if holder is not None and holder.state != "gone":
        refusals.append(f"locked: process {holder.pid} on {holder.host} drives this run ({holder.state})")
    try:
        recorded = files.read_identity(directory)
    except RunDirectoryError as error:
        if directory.is_run():
            refusals.append(str(error))
        return RunScan({}, {}), refusals
    refusals += [f"mismatch: {line}" for line in files.describe_run_difference(recorded, wanted)]
    return files.scan_run(directory, recorded), refusals


def _useful_workers(config: RunConfig, plan: RunPlan) -> int:
    return min(config.workers, len(plan.work))


def _estimate(receipts: Iterable[Receipt], images: int, persons: int, images_per_s: float | None) -> Cost:
    computed = [receipt for receipt in receipts if not receipt.adopted and receipt.images and receipt.wall_s > 0]
    hours: float | None = None
    time_origin = "unknown: no receipts yet; do a few shards first (--limit), or give --images-per-s of one worker"
    if computed:
        seconds = sum(receipt.wall_s for receipt in computed) / sum(receipt.images for receipt in computed)
        hours, time_origin = images * seconds / 3600, f"from this run's {len(computed)} receipts"
    elif images_per_s is not None:
        hours, time_origin = images / images_per_s / 3600, f"from {images_per_s:g} images/s of one worker, as given"
    people = sum(receipt.persons for receipt in computed)
    if people:
        size = sum(receipt.label_bytes for receipt in computed) / people
        bytes_origin = f"{size:.0f} bytes a person, from this run's receipts"
    else:
        size, bytes_origin = float(BYTES_PER_PERSON), f"{BYTES_PER_PERSON} bytes a person, as measured on the demo"
    return Cost(hours, time_origin, round(persons * size), bytes_origin)


def _table_lines(forecast: Forecast) -> list[str]:
    cost, workers = forecast.cost, forecast.workers
    asks = f"{forecast.cpus_per_worker:g} CPUs and {forecast.gpus_per_worker:g} GPUs each"
    total = f"{workers * forecast.cpus_per_worker:g} CPUs and {workers * forecast.gpus_per_worker:g} GPUs together"
    lines = [
        f"plan     {forecast.run_dir}: nothing has been written",
        f"shards   {forecast.done} done, {forecast.pending} pending, {forecast.failed} given up, of {forecast.shards}",
        f"work     {forecast.selected} shards selected, failed images of {forecast.repairs} finished shards",
        f"images   {forecast.images}",
        f"persons  {forecast.persons} (in selected shards)",
        f"workers  {workers}, asking for {asks}; {total}" if workers else "workers  none: in this process, without Ray",
    ]
    if cost.worker_hours is None:
        lines.append(f"time     {cost.time_origin}")
    else:
        wall = format_duration(cost.worker_hours * 3600 / max(1, workers))
        hours = f"{cost.worker_hours:.2f} worker-hours, {forecast.gpu_hours:.2f} GPU-hours"
        lines.append(f"time     {hours}, {wall} if all workers are there ({cost.time_origin})")
    lines.append(f"disk     {cost.label_bytes / 1e6:.1f} MB more ({cost.bytes_origin})")
    lines += [f"refused  {reason}" for reason in forecast.refusals]
    return lines
