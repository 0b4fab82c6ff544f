"""Reports about a run: its state (`dto status`), one launch (the end of `dto run`) and a planned launch (`--dry-run`).

The state is read from run.json, receipts and failure records: from any machine that sees the folder, while the driver
works or after it died. Speed counts the time of work, not the pauses between launches. Seconds, images, persons.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import LabelsError, read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.data.storage import as_location
from dto_pipeline.run.folder import (
    RunDirectory,
    RunDirectoryError,
    RunScan,
    find_strays,
    holds_labels,
    read_identity,
    scan_run,
)
from dto_pipeline.run.identity import describe_run_difference, find_places, identify_run, settle_config
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.plan import EVERYTHING, Retry, RunPlan, Selection, find_refusals, survey_run
from dto_pipeline.run.sanity import FailureBudget, Sanity, judge_run
from dto_pipeline.status import ImageStatus, PersonStatus, ShardStatus

RECENT_S = 3600.0  # speed is that of the last hour of work
_EXAMPLE = ("image_id", "status", "message")
STRAY_ADVICE = "it is no label file of this run, and readers of the folder read it too; move it elsewhere"
EXIT_DONE, EXIT_MISSING, EXIT_SELECTED = 0, 1, 3


@dataclass(frozen=True)
class RunStatus:
    """State of a run at one moment."""

    run_dir: str
    subset: str
    driver: str  # the process that drives the run, or "none"
    driver_note: str  # what its state means and what to do; "" = nothing
    last_receipt_s: float | None  # seconds since the last shard was finished; None = none is
    shards: dict[str, int]  # ShardStatus word -> shards
    images_total: int
    images_done: int
    persons_total: int
    persons_done: int
    image_status: dict[str, int]  # ImageStatus word -> images of shards that are done
    person_status: dict[str, int]
    images_per_s: float  # 0 = not known yet
    eta_s: float | None  # seconds until the pending shards are done at that speed; None = not known
    failed: list[dict[str, Any]]  # shards given up: `shard`, `attempts`, `error`
    stage_seconds: dict[str, float]  # of all shards that are done, threads added up
    void: dict[int, str]  # shard -> why its receipt is not valid
    unreadable_failures: dict[int, str]  # shard -> why its failure record cannot be read; it counts as pending
    sanity: Sanity

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def as_table(self) -> str:
        last = self.last_receipt_s
        age = "" if last is None else f"; the last shard was finished {format_duration(last)} ago"
        eta = f"{format_duration(self.eta_s)}{' once a driver works on it' if self.driver == 'none' else ''}"
        damaged = self.unreadable_failures.items()
        lines = [
            f"run      {self.run_dir} ({self.subset})",
            f"driver   {self.driver}" + (f": {self.driver_note}" if self.driver_note else ""),
            f"shards   {', '.join(f'{count} {word}' for word, count in self.shards.items())}",
            f"images   {self.images_done} of {self.images_total}",
            *count_lines(ImageStatus, self.image_status),
            f"persons  {self.persons_done} of {self.persons_total}",
            *count_lines(PersonStatus, self.person_status),
            f"speed    {self.images_per_s:.1f} images/s{age}",
            "" if self.eta_s == 0 else f"ETA      {eta}",
            *(f"failed   shard {f['shard']} after {f['attempts']} attempts: {f['error']}" for f in self.failed),
            *(f"void     shard {shard}: {reason}; `dto run` does it again" for shard, reason in self.void.items()),
            *(f"damaged  failure record of shard {shard}, its attempts start from 0: {why}" for shard, why in damaged),
            *self.sanity.lines(),
        ]
        return "\n".join(filter(None, lines))


def read_status(run_dir: str | Path) -> RunStatus:
    """Read a run's folder. Raises: RunDirectoryError if it is no run."""
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    scan = scan_run(directory, identity)
    receipts = list(scan.done.values())
    given_up = scan.given_up.values()
    images_done = sum(receipt.images for receipt in receipts)
    pending = identity.shards - len(receipts) - len(given_up)
    speed = images_per_second(receipts)
    images_left = (identity.images - images_done) * (pending / max(1, pending + len(given_up)))
    driver, holder = "none", read_holder(directory.root)
    if holder is not None:
        driver = f"pid {holder.pid} on {holder.host} ({holder.state}, last heartbeat {holder.beat_at} by its clock)"
    return RunStatus(
        run_dir=str(run_dir),
        subset=identity.subset,
        driver=driver,
        driver_note=describe_driver(holder.state if holder else None, pending, len(given_up)),
        # by this machine's clock; clocks may differ, so never less than 0
        last_receipt_s=max(0.0, time.time() - max(r.finished_at for r in receipts)) if receipts else None,
        shards={
            str(ShardStatus.DONE): len(receipts),
            str(ShardStatus.FAILED): len(given_up),
            str(ShardStatus.PENDING): pending,
        },
        images_total=identity.images,
        images_done=images_done,
        persons_total=identity.persons,
        persons_done=sum(receipt.persons for receipt in receipts),
        image_status=add_counts(receipt.image_status for receipt in receipts),
        person_status=add_counts(receipt.person_status for receipt in receipts),
        images_per_s=speed,
        eta_s=0.0 if pending == 0 else (images_left / speed if speed > 0 else None),
        failed=[{name: getattr(failure, name) for name in ("shard", "attempts", "error")} for failure in given_up],
        stage_seconds=_sum_stages(receipts),
        void=scan.void,
        unreadable_failures=scan.unreadable,
        sanity=judge_run(identity, receipts),
    )


def describe_driver(state: str | None, pending: int, given_up: int) -> str:
    """The meaning of a driver's state (None = there is none), and the next step, while shards are left."""
    if not pending:
        return "shards were given up: `dto run --retry-failed` tries them again" if given_up else ""
    notes = {
        None: "no driver works on it: `dto run` does what is left",
        "on another host": "if its heartbeat does not change, start `dto run` again: it waits until the lease ends",
        "gone": "the driver died: start `dto run` again, nothing is lost",
    }
    return notes.get(state, "")


def images_per_second(receipts: Sequence[Receipt]) -> float:
    """Images a second over the last hour of work, all workers together; 0 if nothing was computed."""
    computed = [receipt for receipt in receipts if not receipt.adopted]
    latest = max((receipt.finished_at for receipt in computed), default=0.0)
    recent = [receipt for receipt in computed if receipt.finished_at > latest - RECENT_S]
    busy, reached = 0.0, float("-inf")  # length of the union of the times of work
    for start, end in sorted((r.finished_at - r.wall_s, r.finished_at) for r in recent):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return sum(receipt.images for receipt in recent) / busy if busy > 0 else 0.0


def _sum_stages(receipts: Iterable[Receipt]) -> dict[str, float]:
    """Seconds per stage over several shards, the longest first."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.stage_seconds)
    return dict(total.most_common())


def format_duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``2 min 05 s`` or ``7 s``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def count_lines(words: type[ImageStatus] | type[PersonStatus], counts: Mapping[str, int]) -> list[str]:
    """One line per status: its count and its advice."""
    advice = {str(word): word.advice for word in words}
    unknown = "written by another version"
    return [f"  {word:<16} {count:>9}  {advice.get(word, unknown)}" for word, count in counts.items()]


@dataclass(kw_only=True)
class LaunchCounts:
    """Events of a launch that receipts do not hold."""

    failed_attempts: int = 0
    workers_lost: int = 0
    out_of_memory: int = 0  # of them, those whose machine lacked memory
    mended: int = 0  # images that had failed in finished shards and do not now
    failed_repairs: dict[int, str] = field(default_factory=dict)  # given up -> last error; the shard stays as it was


@dataclass(kw_only=True)
class RunSummary(LaunchCounts):
    """Result of a launch. `now` means by this launch, `before` by earlier ones."""

    run_dir: str
    shards: int  # of the manifest
    done_before: int
    done_now: int
    failed_shards: dict[int, str]  # given up -> last error
    unselected: int  # pending shards that this launch was not asked to do
    retried: int  # failed images of finished shards that this launch was asked to do again
    images: int  # of shards that are done; likewise below
    persons: int
    image_status: dict[str, int]
    person_status: dict[str, int]
    failed_images: int  # images with their labels as given because they could not be processed
    wall_s: float  # of this launch
    images_per_s: float  # of this launch, workers' start-up included
    stage_seconds: dict[str, float]  # of shards done now, threads added up
    over_budget: str  # why the failures are too many: counts per cause and the next step; "" = they are not
    sanity: Sanity
    strays: list[str]  # files in labels/ that belong to no shard, see `folder.find_strays`

    @property
    def nothing_to_do(self) -> bool:
        """True if everything this launch was asked for was done, or given up, before."""
        idle = self.done_now == 0 and not self.failed_attempts and not self.retried
        return idle and self.done_before + len(self.failed_shards) + self.unselected == self.shards

    @property
    def exit_code(self) -> int:
        """0 every shard of the run is done; 3 the selected ones are done, the rest is pending as asked; 1 else.

        1 also if a repair was given up, too many images or people failed, the labels contradict what sound runs show,
        or labels/ holds other files.
        """
        if self.failed_repairs or self.failed_shards or self.over_budget or self.sanity.contradictions or self.strays:
            return EXIT_MISSING
        if self.done_before + self.done_now == self.shards:
            return EXIT_DONE
        return EXIT_SELECTED if self.done_before + self.done_now + self.unselected == self.shards else EXIT_MISSING

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "nothing_to_do": self.nothing_to_do, "exit_code": self.exit_code}

    def as_table(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stage_seconds.items())
        lost = f"; {self.out_of_memory} of these workers for lack of memory: use fewer, or free memory on the machine"
        losses = f"losses   {self.failed_attempts} attempts failed in this launch, {self.workers_lost} workers died"
        lines = [
            f"run      {self.run_dir}",
            "nothing to do: every shard that was asked for was done or given up before" if self.nothing_to_do else "",
            f"shards   {self.done_now} done now, {self.done_before} before, {len(self.failed_shards)} failed, "
            f"of {self.shards}",
            f"left     {self.unselected} shards were not selected and stay pending" if self.unselected else "",
            f"retried  {self.retried} failed images, {self.mended} mended" if self.retried else "",
            f"images   {self.images}, {self.failed_images} of them failed",
            *count_lines(ImageStatus, self.image_status),
            f"persons  {self.persons}",
            *count_lines(PersonStatus, self.person_status),
            f"time     {format_duration(self.wall_s)}, {self.images_per_s:.1f} images/s" if self.done_now else "",
            losses + (lost if self.out_of_memory else "") if self.failed_attempts or self.workers_lost else "",
            f"stages   {stages} (all workers and threads)" if stages else "",
            *(f"failed   shard {shard}: {error}" for shard, error in self.failed_shards.items()),
            *(f"failed   repair of shard {shard}: {error}" for shard, error in self.failed_repairs.items()),
            *self.sanity.lines(),
            f"FAILED   {self.over_budget}" if self.over_budget else "",
            *(f"WRONG    labels/ holds {name}: {STRAY_ADVICE}" for name in self.strays),
        ]
        return "\n".join(filter(None, lines))


def summarize(
    directory: RunDirectory, plan: RunPlan, scan: RunScan | None, counts: LaunchCounts, wall_s: float, share: float
) -> RunSummary:
    """Summarise a launch that took `wall_s`.

    `scan`: of the folder at the end; None = as planned, there was nothing to do. `share`: `run.max_failed_images`.
    """
    done = plan.done if scan is None else scan.done
    given_up = {} if scan is None else {shard: failure.error for shard, failure in scan.given_up.items()}
    receipts = list(done.values())
    budget = FailureBudget(share, {})
    for receipt in receipts:
        budget.shard_done(receipt)
    complaint = budget.verdict()
    fresh = [receipt for shard, receipt in done.items() if shard not in plan.done]
    return RunSummary(
        **vars(counts),
        run_dir=str(directory.root),
        shards=plan.identity.shards,
        done_before=len(plan.done),
        done_now=len(fresh),
        failed_shards=dict(sorted({**plan.failed, **given_up}.items())),
        unselected=len(plan.unselected),
        retried=sum(plan.work[shard] for shard in plan.repairs),
        images=sum(receipt.images for receipt in receipts),
        persons=sum(receipt.persons for receipt in receipts),
        image_status=add_counts(receipt.image_status for receipt in receipts),
        person_status=add_counts(receipt.person_status for receipt in receipts),
        failed_images=sum(receipt.failed_images for receipt in receipts),
        wall_s=wall_s,
        images_per_s=sum(receipt.images for receipt in fresh) / wall_s,
        stage_seconds=_sum_stages(fresh),
        over_budget=complaint and "\n".join([complaint, *find_example(directory, budget)]),
        sanity=judge_run(plan.identity, receipts),
        strays=find_strays(directory, plan.identity),
    )


def find_example(directory: RunDirectory, budget: FailureBudget) -> list[str]:
    """One line with the first row of the most frequent cause and its message; [] if no label file has one."""
    commonest = next((cause for cause, _ in budget.causes), "")
    receipt = budget.examples.get(commonest)
    if receipt is None:
        return []
    try:
        path = directory.label_file(receipt.shard, receipt.generation)
        rows = read_labels(path, columns=_EXAMPLE, people=_EXAMPLE[1:]).to_pylist()
    except LabelsError:
        return []
    items = [(row["image_id"], row) for row in rows]
    items += [(row["image_id"], person) for row in rows for person in row["persons"]]
    lost = (f"for example {image}: {row['message'] or commonest}" for image, row in items if row["status"] == commonest)
    return list(islice(lost, 1))


@dataclass(frozen=True)
class Forecast:
    """Plan of a launch, with its time: hours of workers at work, without start-up."""

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
    worker_hours: float | None  # None = not known
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
    identity = identify_run(config, manifest)
    holder = read_holder(directory.root)
    driver = "" if holder is None or holder.state == "gone" else f"{holder.describe()} ({holder.state})"
    if holder is not None and holder.state == "alive":
        refusals.append(f"locked: {holder.describe()} drives this run; wait for it")
    scan = RunScan(directory.root)
    if directory.is_run():
        try:
            recorded = read_identity(directory)
            differences = describe_run_difference(recorded, identity)
            if not differences or holds_labels(directory):  # else a launch replaces run.json
                scan = scan_run(directory, recorded, footers=True)
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
