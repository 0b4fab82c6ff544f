"""What a launch of a run would do and cost, without doing it: `dto run --dry-run`.

Reads what a launch reads (manifest, run.json, receipts, ends of label files, failures, notes of drivers that died) and
decides as it does; writes nothing, takes no lock. Where somebody drives the run it says so, and counts what is there
now. Hours are those of workers at work, start-up left out; bytes are those of label files.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import CountedLabels, Receipt
from dto_pipeline.data.storage import as_location
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import find_own_deaths
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, RunScan
from dto_pipeline.run.identity import RunIdentity, describe_run_difference, find_places, identify_run, settle_config
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.plan import EVERYTHING, Retry, Selection, find_refusals, scan_closely, survey_run
from dto_pipeline.run.report import format_duration

BYTES_PER_PERSON = 450  # the numbers of a person in schema dto-labels/1 as they are: zstd hardly shrinks real poses
BYTES_PER_FILE = 36_000  # schema, footer and page index of a label file: measured on a shard of three images


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
    worker_hours: float | None  # None = nothing is known
    time_origin: str
    label_bytes: int
    bytes_origin: str
    driver: str  # who drives the run now, and what that means to a launch; "" = nobody
    refusals: list[str]  # why a launch would be refused now

    @property
    def gpu_hours(self) -> float | None:
        """None = not known."""
        known = self.worker_hours is not None and self.gpus_per_worker >= 0
        return (self.worker_hours or 0) * self.gpus_per_worker if known else None

    @property
    def exit_code(self) -> int:
        """0: it could start; 2: it would be refused."""
        return 2 if self.refusals else 0

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "gpu_hours": self.gpu_hours, "exit_code": self.exit_code}

    def as_table(self) -> str:
        lines = [
            f"plan     {self.run_dir}: nothing has been written",
            f"shards   {self.done} done, {self.pending} pending, {self.failed} given up, of {self.shards}",
            f"work     {self.selected} shards selected, failed images of {self.repairs} finished shards",
            f"images   {self.images}",
            f"persons  {self.persons} (in selected shards)",
            f"workers  {self._describe_workers()}",
            f"time     {self._describe_time()}",
            f"disk     {self.label_bytes / 1e6:.1f} MB more ({self.bytes_origin})",
            f"driver   {self.driver}" if self.driver else "",
            *(f"refused  {reason}" for reason in self.refusals),
        ]
        return "\n".join(filter(None, lines))

    def _describe_workers(self) -> str:
        workers, cpus, gpus = self.workers, self.cpus_per_worker, self.gpus_per_worker
        if not workers:
            return "none: in this process, without Ray"
        if gpus < 0:
            asks, total = "and, where there are GPUs, one each", "together"
        else:
            asks, total = f"and {gpus:g} GPUs each", f"and {workers * gpus:g} GPUs together"
        return f"{workers}, asking for {cpus:g} CPUs {asks}; {workers * cpus:g} CPUs {total}"

    def _describe_time(self) -> str:
        if self.worker_hours is None:
            return self.time_origin
        wall = format_duration(self.worker_hours * 3600 / max(1, self.workers))
        gpu_hours = "" if self.gpu_hours is None else f", {self.gpu_hours:.2f} GPU-hours"
        return f"{self.worker_hours:.2f} worker-hours{gpu_hours}, {wall} if all workers are there ({self.time_origin})"


def plan_pipeline(
    manifest_path: str | Path,
    run_dir: str | Path,
    config: PipelineConfig,
    retry_failed: bool = False,
    retry_statuses: Collection[str] = (),
    selection: Selection = EVERYTHING,
    address: str = "local",
    images_root: str | Path | None = None,
    depth_root: str | Path | None = None,
) -> Forecast:
    """What `run_pipeline` with the same arguments would do. Writes nothing, not even the run's folder.

    Raises:
        ManifestError, SelectionError: there is nothing to plan.
        ConfigError, BodyModelError: no body model is named, or it is not there.
    """
    directory = RunDirectory(as_location(run_dir))
    manifest = Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    refusals = find_refusals(directory, manifest, config, address, places)
    retry = Retry.of(retry_failed, retry_statuses)
    wanted = identify_run(config, manifest, manifest.path)
    driver, locked = _describe_driver(directory)
    scan, mismatches = _scan(directory, wanted)
    if not driver:  # else what its workers are at is no death
        scan = scan.with_failures(find_own_deaths(directory, config.run, time.time()))
    plan = survey_run(directory, wanted, manifest, scan, selection, retry)
    fresh = [shard for shard in plan.work if shard not in plan.repairs]
    images, persons = sum(plan.work.values()), sum(manifest.shard_sizes[shard].people for shard in fresh)
    run = config.run
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
        workers=min(run.workers, len(plan.work)),
        cpus_per_worker=run.cpus_per_worker,
        gpus_per_worker=run.gpus_per_worker,
        **_estimate(list(plan.done.values()), images, persons, len(fresh)),
        driver=driver,
        refusals=[*refusals, *locked, *mismatches],
    )


def _describe_driver(directory: RunDirectory) -> tuple[str, list[str]]:
    """Who drives the run and what a launch would make of it; and the refusal, where it is refused at once.

    Only a driver of this machine refuses at once, and on a local folder only. Any other is watched for as long as its
    lease lasts, which a dry run does not do.
    """
    holder = read_holder(directory.root)
    if holder is None or holder.state == "gone":
        return "", []
    who = holder.describe()
    if holder.state == "alive" and isinstance(directory.root, Path):
        return f"{who} is at work; counted is what it has done so far", [f"locked: {who} drives this run; wait for it"]
    wait = (
        f"a start waits up to {holder.lease_s:g} s: refused if its heartbeat moves (last {holder.beat_at} by its clock)"
    )
    return f"{who} holds the run; {wait}, it goes on if that stands still; counted is what is done so far", []


def _scan(directory: RunDirectory, wanted: RunIdentity) -> tuple[RunScan, list[str]]:
    """What the folder holds, and what stands against a launch."""
    nothing = RunScan(CountedLabels(directory.root))
    try:
        recorded = files.read_identity(directory)
    except RunDirectoryError as error:
        return nothing, [str(error)] if directory.is_run() else []
    differences = describe_run_difference(recorded, wanted)
    if differences and not files.holds_labels(directory):
        return nothing, []  # a launch begins anew
    return scan_closely(directory, recorded)[0], [f"mismatch: {line}" for line in differences]


def _estimate(done: list[Receipt], images: int, persons: int, shards: int) -> dict[str, Any]:
    """What so much more work costs, from the receipts of work that was done; each figure with where it comes from."""
    computed = [receipt for receipt in done if not receipt.adopted and receipt.images and receipt.wall_s > 0]
    people = sum(receipt.persons for receipt in computed)
    hours, time_origin = None, "unknown: no receipts yet; do a few shards first (--limit)"
    if computed:
        seconds = sum(receipt.wall_s for receipt in computed) / sum(receipt.images for receipt in computed)
        hours, time_origin = images * seconds / 3600, f"from this run's {len(computed)} receipts"
    size: float = persons * BYTES_PER_PERSON + shards * BYTES_PER_FILE
    bytes_origin = f"{BYTES_PER_PERSON} bytes a person and {BYTES_PER_FILE} a file, as the schema has them"
    if people:
        each = sum(receipt.label_bytes for receipt in computed) / people
        size, bytes_origin = persons * each, f"{each:.0f} bytes a person, files included, from this run's receipts"
    told = {"worker_hours": hours, "time_origin": time_origin}
    return {**told, "label_bytes": round(size), "bytes_origin": bytes_origin}
