"""`dto run --dry-run`: what a launch would do and how long it takes. Reads what a launch reads, writes nothing.

Hours are those of workers at work, without start-up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import as_location
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, RunScan
from dto_pipeline.run.identity import describe_run_difference, find_places, identify_run, settle_config
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.plan import EVERYTHING, Retry, Selection, find_refusals, survey_run
from dto_pipeline.run.report import format_duration


@dataclass(frozen=True)
class Forecast:
    """Plan of a launch, with its time."""

    run_dir: str
    shards: int  # of the manifest; those below are parts of it
    done: int
    pending: int  # neither done nor given up
    failed: int  # given up, and not to be tried again
    selected: int  # pending shards this launch would do
    repairs: int  # finished shards in which failed images would be done again
    images: int  # to be done in selected shards and repairs
    persons: int  # in selected shards
    workers: int  # 0 = in this process
    worker_hours: float | None  # without start-up; None = not known
    gpu_hours: float | None
    time_origin: str
    driver: str  # the process that drives the run now; "" = none
    refusals: list[str]  # why a launch would be refused now

    @property
    def exit_code(self) -> int:
        """0: it could start; 2: it would be refused."""
        return 2 if self.refusals else 0

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}

    def as_table(self) -> str:
        hours = self.time_origin
        if self.worker_hours is not None:
            wall = format_duration(self.worker_hours * 3600 / max(1, self.workers))
            of_gpus = "" if self.gpu_hours is None else f", {self.gpu_hours:.2f} GPU-hours"
            hours = f"{self.worker_hours:.2f} worker-hours{of_gpus}, {wall} with all workers ({self.time_origin})"
        lines = [
            f"plan     {self.run_dir}: nothing has been written",
            f"shards   {self.done} done, {self.pending} pending, {self.failed} given up, of {self.shards}",
            f"work     {self.selected} shards selected, failed images of {self.repairs} finished shards",
            f"images   {self.images}",
            f"persons  {self.persons} (in selected shards)",
            f"workers  {self.workers or 'none: in this process, without Ray'}",
            f"time     {hours}",
            f"driver   {self.driver} works on it; counted is what it has done so far" if self.driver else "",
            *(f"refused  {reason}" for reason in self.refusals),
        ]
        return "\n".join(filter(None, lines))


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
    """Plan `run_pipeline` with the same arguments. Writes nothing and takes no lease.

    Raises:
        ManifestError, SelectionError: there is nothing to plan.
        ConfigError, BodyModelError: no body model is named, or it does not exist.
    """
    directory, manifest = RunDirectory(as_location(run_dir)), Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    refusals = find_refusals(directory, manifest, config, address, places)
    retry = Retry.of(retry_failed, retry_statuses)
    identity = identify_run(config, manifest, manifest.path)
    holder = read_holder(directory.root)
    driver = "" if holder is None or holder.state == "gone" else f"{holder.describe()} ({holder.state})"
    if holder is not None and holder.state == "alive":
        refusals.append(f"locked: {holder.describe()} drives this run; wait for it")
    scan = RunScan(directory.root)
    if directory.is_run():
        try:
            recorded = files.read_identity(directory)
            differences = describe_run_difference(recorded, identity)
            if not differences or files.holds_labels(directory):  # else a launch replaces run.json
                scan = files.scan_run(directory, recorded, footers=True)
                refusals += [f"mismatch: {line}" for line in differences]
        except RunDirectoryError as error:
            refusals.append(str(error))
    plan = survey_run(directory, identity, manifest, scan, selection, retry)
    images, workers, gpus = sum(plan.work.values()), config.run.workers, config.run.gpus_per_worker
    computed = [receipt for receipt in plan.done.values() if not receipt.adopted and receipt.images]
    hours, time_origin = None, "unknown: no receipts yet; do a few shards first (--limit)"
    if seconds := sum(receipt.wall_s for receipt in computed):
        hours = images * seconds / sum(receipt.images for receipt in computed) / 3600
        time_origin = f"from this run's {len(computed)} receipts"
    return Forecast(
        run_dir=str(directory.root),
        shards=identity.shards,
        done=len(plan.done),
        pending=len(plan.fresh) + len(plan.unselected),
        failed=len(plan.failed),
        selected=len(plan.fresh),
        repairs=len(plan.repairs),
        images=images,
        persons=sum(manifest.shard_sizes[shard].people for shard in plan.fresh),
        workers=min(workers, max(1, len(plan.work))),
        worker_hours=hours,
        gpu_hours=hours * gpus if hours is not None and gpus >= 0 else None,  # -1: one where there are GPUs
        time_origin=time_origin,
        driver=driver,
        refusals=refusals,
    )
