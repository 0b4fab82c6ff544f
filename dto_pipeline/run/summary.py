"""What became of one start of a run, counted from receipts and failures: the end of `dto run`.

Knows counts and their table; decides nothing but the exit code. Seconds, images, persons.

Exit codes: 0 every shard of the run is done (failed images are rows with a status); 1 shards were given up, or a repair
that was asked for (where they are too many, the start ends early: by an error of that code, without a summary), or more
images or people failed than `run.max_failed_images` allows, or the labels contradict what any sound run shows; 3 what
was selected is done, the rest of the run is pending as asked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dto_pipeline.data.label_files import person_leaf, read_label_files
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.run.budget import Losses, count_losses, over_budget
from dto_pipeline.run.directory import RunDirectory, RunScan
from dto_pipeline.run.plan import RunPlan
from dto_pipeline.run.receipt import Receipt, add_counts
from dto_pipeline.run.report import count_lines, format_duration, sum_stages, unreadable_lines
from dto_pipeline.run.sanity import Sanity, judge_run
from dto_pipeline.status import ImageStatus, PersonStatus

_EXAMPLE = ("image_id", "status", "message", person_leaf("status"), person_leaf("message"))
SLOWEST = 5  # shards a summary names
EXIT_DONE, EXIT_MISSING, EXIT_SELECTED = 0, 1, 3


@dataclass
class Tally:
    """What happened in this start and cannot be read from receipts afterwards."""

    charges: int = 0  # tries that failed
    workers_lost: int = 0
    out_of_memory: int = 0  # of them, those whose machine lacked memory
    repaired: set[int] = field(default_factory=set)  # finished shards whose failed images were done again
    mended: int = 0  # images that failed before and do not now
    repairs_failed: dict[int, str] = field(default_factory=dict)  # repairs that were given up -> error


@dataclass(frozen=True)
class SlowShard:
    """One of the shards that took longest."""

    shard: int
    wall_s: float
    images: int
    worker: str


@dataclass(frozen=True)
class RunSummary:
    """What became of a run. `now` and `before` are told apart by this start."""

    run_dir: str
    shards: int  # of the manifest
    done_before: int  # shards that were done when we came
    done_now: int
    failed_shards: dict[int, str]  # given up -> last error
    unselected: int  # pending shards that this start was not asked to do
    retried: int  # failed images of finished shards that this start was asked to do again
    repaired: int  # finished shards whose failed images were done again, with another result
    mended: int  # images that had failed in them and do not now
    failed_repairs: dict[int, str]  # repairs that were given up -> last error; the shard stands as it was
    images: int  # of shards that are done; likewise below
    persons: int
    image_status: dict[str, int]
    person_status: dict[str, int]
    failed_images: int  # images whose labels are as given because they could not be processed
    retries: int  # tries beyond the first, of shards done now
    failed_tries: int  # of this start, whatever became of the shard
    workers_lost: int  # in this start
    out_of_memory: int  # of them, those whose machine lacked memory
    unreadable_failures: dict[int, str]  # failure records that this start found damaged: their tries are not counted
    slowest: list[SlowShard]  # of shards done now, the slowest first
    wall_s: float  # of this start
    images_per_s: float  # of this start, workers' start-up included
    stage_seconds: dict[str, float]  # of shards done now, threads added up
    over_budget: str  # why the failures are too many: counts per cause and the next step; "" = they are not
    sanity: Sanity
    sizes: str = ""  # what batches and threads this start took, or left to the device

    @property
    def nothing_to_do(self) -> bool:
        """True when this start found no work: what it was asked for was done, or given up, before."""
        idle = self.done_now == 0 and not self.failed_tries and not self.retried
        return idle and self.done_before + len(self.failed_shards) + self.unselected == self.shards

    @property
    def exit_code(self) -> int:
        """See the module."""
        if self.failed_repairs or self.failed_shards or self.over_budget or self.sanity.contradictions:
            return EXIT_MISSING
        if self.done_before + self.done_now == self.shards:
            return EXIT_DONE
        return EXIT_SELECTED if self.done_before + self.done_now + self.unselected == self.shards else EXIT_MISSING

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        derived = {"nothing_to_do": self.nothing_to_do, "exit_code": self.exit_code}
        return {**dataclasses.asdict(self), **derived}

    def as_table(self) -> str:
        """Text for a terminal."""
        return "\n".join(_table_lines(self))


def summarize(
    directory: RunDirectory,
    plan: RunPlan,
    scan: RunScan | None,
    tally: Tally,
    wall_s: float,
    max_failed_images: float,
) -> RunSummary:
    """Count what became of a start.

    Args:
        scan: what the folder holds at the end; None = as planned, there was nothing to do.
        tally: what happened and receipts do not tell.
        wall_s: seconds the start took.
        max_failed_images: see `RunConfig`.
    """
    done = plan.done if scan is None else scan.done
    failures = {} if scan is None else scan.failures
    receipts = list(done.values())
    fresh = [receipt for shard, receipt in done.items() if shard not in plan.done]
    given_up = {shard: failure.error for shard, failure in failures.items() if failure.given_up}
    return RunSummary(
        run_dir=str(directory.root),
        shards=plan.identity.shards,
        done_before=len(plan.done),
        done_now=len(fresh),
        failed_shards=dict(sorted({**plan.failed, **given_up}.items())),
        unselected=len(plan.unselected),
        retried=sum(plan.work[shard] for shard in plan.repairs),
        repaired=len(tally.repaired),
        mended=tally.mended,
        failed_repairs=dict(sorted(tally.repairs_failed.items())),
        images=sum(receipt.images for receipt in receipts),
        persons=sum(receipt.persons for receipt in receipts),
        image_status=add_counts(receipt.image_status for receipt in receipts),
        person_status=add_counts(receipt.person_status for receipt in receipts),
        failed_images=sum(receipt.failed_images for receipt in receipts),
        retries=sum(receipt.attempt - 1 for receipt in fresh),
        failed_tries=tally.charges,
        workers_lost=tally.workers_lost,
        out_of_memory=tally.out_of_memory,
        unreadable_failures=plan.unreadable,
        slowest=_find_slowest(fresh),
        wall_s=wall_s,
        images_per_s=sum(receipt.images for receipt in fresh) / wall_s,
        stage_seconds=sum_stages(fresh),
        over_budget=_judge_losses(directory, receipts, max_failed_images),
        sanity=judge_run(plan.identity, receipts),
    )


def _judge_losses(directory: RunDirectory, receipts: list[Receipt], share: float) -> str:
    losses = count_losses(receipts)
    complaint = over_budget(losses, share)
    return complaint and "\n".join([complaint, *find_example(directory, losses)])


def find_example(directory: RunDirectory, losses: Losses) -> list[str]:
    """One line with the first row that was lost for the commonest cause and what it says; [] where none tells."""
    shard = losses.shards.get(losses.commonest)
    if shard is None:
        return []
    try:
        table = read_label_files([directory.label_file(shard)], _EXAMPLE)
    except LabelsError:
        return []
    images = table.select(["image_id", "status", "message"]).to_pylist()  # plain values: pandas is not loaded for it
    people = zip(images, table["persons"].to_pylist(), strict=True)
    rows = [(row["image_id"], row) for row in images]
    rows += [(row["image_id"], person) for row, persons in people for person in persons]
    lost = ((image, row) for image, row in rows if row["status"] == losses.commonest)
    return [f"for example {image}: {row['message'] or losses.commonest}" for image, row in islice(lost, 1)]


def _find_slowest(receipts: list[Receipt]) -> list[SlowShard]:
    computed = [receipt for receipt in receipts if not receipt.adopted]
    computed.sort(key=lambda receipt: (-receipt.wall_s, receipt.shard))
    return [SlowShard(r.shard, r.wall_s, r.images, r.worker) for r in computed[:SLOWEST]]


def _table_lines(summary: RunSummary) -> list[str]:
    lines = [f"run      {summary.run_dir}"]
    if summary.nothing_to_do:
        lines.append("nothing to do: every shard that was asked for was done or given up before")
    lines += [
        f"shards   {summary.done_now} done now, {summary.done_before} before, {len(summary.failed_shards)} failed, "
        f"of {summary.shards}; {summary.retries} tries repeated",
        *([f"left     {summary.unselected} shards were not selected and stay pending"] if summary.unselected else []),
        *([f"retried  {summary.retried} failed images, {summary.mended} mended"] if summary.retried else []),
        f"images   {summary.images}, {summary.failed_images} of them failed",
        *count_lines(ImageStatus, summary.image_status),
        f"persons  {summary.persons}",
        *count_lines(PersonStatus, summary.person_status),
    ]
    if summary.done_now:
        lines.append(f"time     {format_duration(summary.wall_s)}, {summary.images_per_s:.1f} images/s")
        lines.append(f"sizes    {summary.sizes}")
    if summary.failed_tries or summary.workers_lost:
        lines.append(f"losses   {summary.workers_lost} workers lost, {summary.failed_tries} tries failed")
    if summary.out_of_memory:
        advice = "use fewer workers, or keep others off the machine"
        lines.append(f"memory   ran out on a machine and ended {summary.out_of_memory} of these workers; {advice}")
    lines += unreadable_lines(summary.unreadable_failures)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_seconds.items())
    lines += [f"stages   {stages} (all workers and threads)"] if stages else []
    slow = ", ".join(f"{s.shard} {s.wall_s:.1f} s ({s.images} images, {s.worker})" for s in summary.slowest)
    lines += [f"slowest  shard {slow}"] if slow else []
    lines += [f"failed   shard {shard}: {error}" for shard, error in summary.failed_shards.items()]
    lines += [f"failed   repair of shard {shard}: {error}" for shard, error in summary.failed_repairs.items()]
    lines += summary.sanity.lines()
    return lines + ([f"FAILED   {summary.over_budget}"] if summary.over_budget else [])
