"""What a launch of a run would do and cost, without doing it: `dto run --dry-run`.

Reads what a launch reads (manifest, run.json, receipts, ends of label files, failures, notes of drivers that died) and
decides as it does; writes nothing, takes no lock. Where somebody drives the run it says so, and counts what is there
now. Hours are those of workers at work, start-up left out; bytes are those of label files. Every estimate says where it
comes from, or that nothing is known.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import CountedLabels, Receipt
from dto_pipeline.data.storage import as_location
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import find_own_deaths
from dto_pipeline.run.finished import find_damage, noted_damage
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, RunScan
from dto_pipeline.run.identity import RunIdentity, describe_run_difference, find_places, identify_run, settle_config
from dto_pipeline.run.lease import LeaseRecord, read_holder
from dto_pipeline.run.plan import find_refusals, survey_run
from dto_pipeline.run.report import format_duration, unreadable_lines
from dto_pipeline.run.selection import EVERYTHING, Retry, Selection

BYTES_PER_PERSON = 450  # the numbers of a person in schema dto-labels/1 as they are: zstd hardly shrinks real poses
BYTES_PER_FILE = 36_000  # schema, footer and page index of a label file: measured on a shard of three images


@dataclass(frozen=True)
class Cost:
    """How long and how large; None = nothing is known."""

    worker_hours: float | None
    time_origin: str
    label_bytes: int
    bytes_origin: str


@dataclass(frozen=True)
class Forecast:
    """What one launch would do."""

    run_dir: str
    shards: int  # of the manifest; those below are parts of it
    done: int
    pending: int  # neither done nor given up
    failed: int  # given up and not taken up again
    selected: int  # pending shards this launch would do
    repairs: int  # finished shards in which failed images would be done again
    images: int  # to be done in selected shards and repairs
    persons: int  # in selected shards
    workers: int  # 0 = in this process
    cpus_per_worker: float
    gpus_per_worker: float  # -1 = what the cluster has decides
    cost: Cost
    driver: str  # who drives the run now, and what that means to a launch; "" = nobody
    refusals: list[str]  # why a launch would be refused now
    unreadable_failures: dict[int, str]  # shards whose failure record is damaged, and how; they count as pending

    @property
    def gpu_hours(self) -> float | None:
        """None = not known."""
        if self.cost.worker_hours is None or self.gpus_per_worker < 0:
            return None
        return self.cost.worker_hours * self.gpus_per_worker

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


def plan_pipeline(
    manifest_path: str | Path,
    run_dir: str | Path,
    config: PipelineConfig,
    retry_failed: bool = False,
    retry_statuses: Collection[str] = (),
    selection: Selection = EVERYTHING,
    images_per_s: float | None = None,
    address: str = "local",
    images_root: str | Path | None = None,
    depth_root: str | Path | None = None,
) -> Forecast:
    """What `run_pipeline` with the same arguments would do. Writes nothing, not even the run's folder.

    Args:
        images_per_s: of one worker, for the time a run without receipts will take; None = not known.

    Raises:
        ManifestError, SelectionError: there is nothing to plan.
        ConfigError, BodyModelError: no body model is named, or it is not there.
    """
    directory = RunDirectory(as_location(run_dir))
    manifest = Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    missing = find_refusals(directory, manifest, config, address, places)
    retry = Retry.of(retry_failed, retry_statuses)
    return _forecast(directory, manifest, config, selection, retry, images_per_s, missing)


def _forecast(
    directory: RunDirectory,
    manifest: Manifest,
    config: PipelineConfig,
    selection: Selection,
    retry: Retry,
    images_per_s: float | None,
    missing: Sequence[str],
) -> Forecast:
    wanted = identify_run(config, manifest, manifest.path)
    holder = read_holder(directory.lock_file)
    if holder is not None and holder.state == "gone":
        holder = None
    driver, locked = _describe_driver(directory, holder)
    scan, refusals = _look(directory, wanted)
    if holder is None:  # else what its workers are at is no death
        scan = scan.with_failures(find_own_deaths(directory, config.run, time.time()))
    plan = survey_run(directory, wanted, manifest, scan, selection, retry)
    fresh = [shard for shard in plan.work if shard not in plan.repairs]
    images = sum(plan.work.values())
    persons = sum(manifest.shard_sizes[shard].people for shard in fresh)
    size, bytes_origin = _size_of_labels(plan.done.values())
    hours, time_origin = _hours_per_image(plan.done.values(), images_per_s)
    cost = Cost(
        worker_hours=None if hours is None else images * hours,
        time_origin=time_origin,
        label_bytes=round(persons * size.person + len(fresh) * size.file),
        bytes_origin=bytes_origin,
    )
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
        workers=min(config.run.workers, len(plan.work)),
        cpus_per_worker=config.run.cpus_per_worker,
        gpus_per_worker=config.run.gpus_per_worker,
        cost=cost,
        driver=driver,
        refusals=[*missing, *locked, *refusals],
        unreadable_failures=plan.unreadable,
    )


def _describe_driver(directory: RunDirectory, holder: LeaseRecord | None) -> tuple[str, list[str]]:
    """Who drives the run and what a launch would make of it; and the refusal, where it is refused at once.

    Only a driver of this machine refuses at once, and on a local folder only: by its flock. Any other is watched for as
    long as its lease lasts, which a dry run does not do.
    """
    if holder is None:
        return "", []
    who = holder.describe()
    if holder.state == "alive" and isinstance(directory.root, Path):
        return f"{who} is at work; counted is what it has done so far", [f"locked: {who} drives this run; wait for it"]
    wait = (
        f"a start waits up to {holder.lease_s:g} s: refused if its heartbeat moves (last {holder.beat_at} by its clock)"
    )
    return f"{who} holds the run; {wait}, it goes on if that stands still; counted is what is done so far", []


def _look(directory: RunDirectory, wanted: RunIdentity) -> tuple[RunScan, list[str]]:
    """What the folder holds, and what stands against a launch."""
    refusals = []
    try:
        recorded = files.read_identity(directory)
    except RunDirectoryError as error:
        if directory.is_run():
            refusals.append(str(error))
        return RunScan(CountedLabels(directory.root)), refusals
    if differences := describe_run_difference(recorded, wanted):
        if not files.holds_labels(directory):
            return RunScan(CountedLabels(directory.root)), refusals  # a launch begins anew
        refusals += [f"mismatch: {line}" for line in differences]
    scan = files.scan_run(directory, recorded, footers=True)
    return scan.without(
        find_damage(directory, {s: scan.done[s] for s in noted_damage(directory) if s in scan.done})
    ), refusals


class _Size(NamedTuple):
    """Bytes of a label file: so many each person, so many each file."""

    person: float
    file: float


def _computed(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Those that tell what work costs."""
    return [receipt for receipt in receipts if not receipt.adopted and receipt.images and receipt.wall_s > 0]


def _hours_per_image(receipts: Iterable[Receipt], images_per_s: float | None) -> tuple[float | None, str]:
    """Hours of one worker, None = not known; and where that comes from."""
    if computed := _computed(receipts):
        seconds = sum(receipt.wall_s for receipt in computed) / sum(receipt.images for receipt in computed)
        return seconds / 3600, f"from this run's {len(computed)} receipts"
    if images_per_s is not None:
        return 1 / images_per_s / 3600, f"from {images_per_s:g} images/s of one worker, as given"
    return None, "unknown: no receipts yet; do a few shards first (--limit), or give --images-per-s of one worker"


def _size_of_labels(receipts: Iterable[Receipt]) -> tuple[_Size, str]:
    """Size of label files, and where the figure comes from."""
    computed = _computed(receipts)
    if people := sum(receipt.persons for receipt in computed):
        size = sum(receipt.label_bytes for receipt in computed) / people
        return _Size(size, 0.0), f"{size:.0f} bytes a person, files included, from this run's receipts"
    told = f"{BYTES_PER_PERSON} bytes a person and {BYTES_PER_FILE} a file, as the schema has them"
    return _Size(BYTES_PER_PERSON, BYTES_PER_FILE), told


def _table_lines(forecast: Forecast) -> list[str]:
    cost, workers = forecast.cost, forecast.workers
    asks, total = f"{forecast.cpus_per_worker:g} CPUs", f"{workers * forecast.cpus_per_worker:g} CPUs"
    if forecast.gpus_per_worker < 0:
        asks, total = f"{asks} and, where there are GPUs, one each", f"{total} together"
    else:
        asks = f"{asks} and {forecast.gpus_per_worker:g} GPUs each"
        total = f"{total} and {workers * forecast.gpus_per_worker:g} GPUs together"
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
        gpu_hours = "" if forecast.gpu_hours is None else f", {forecast.gpu_hours:.2f} GPU-hours"
        hours = f"{cost.worker_hours:.2f} worker-hours{gpu_hours}"
        lines.append(f"time     {hours}, {wall} if all workers are there ({cost.time_origin})")
    lines.append(f"disk     {cost.label_bytes / 1e6:.1f} MB more ({cost.bytes_origin})")
    lines += [f"driver   {forecast.driver}"] if forecast.driver else []
    lines += [f"refused  {reason}" for reason in forecast.refusals]
    return lines + unreadable_lines(forecast.unreadable_failures)
