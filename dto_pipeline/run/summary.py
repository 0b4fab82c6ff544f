"""What became of one start of a run, counted from receipts and failures: the end of `dto run`.

Knows counts and their table; decides nothing but the exit code. Seconds, images, persons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dto_pipeline.run.directory import RunDirectory, RunIdentity, RunScan
from dto_pipeline.run.receipt import add_counts
from dto_pipeline.run.report import count_lines, format_duration, sum_stages
from dto_pipeline.status import ImageStatus, PersonStatus


@dataclass(frozen=True)
class RunSummary:
    """What became of a run. `now` and `before` are told apart by this start."""

    run_dir: str
    shards: int  # of the manifest
    done_before: int  # shards that were done when we came
    done_now: int
    failed_shards: dict[int, str]  # given up -> last error
    images: int  # of shards that are done; likewise below
    persons: int
    image_status: dict[str, int]
    person_status: dict[str, int]
    failed_images: int  # images whose labels are as given because they could not be processed
    retries: int  # tries beyond the first, of shards done now
    wall_s: float  # of this start
    images_per_s: float  # of this start, workers' start-up included
    stage_seconds: dict[str, float]  # of shards done now, threads added up

    @property
    def nothing_to_do(self) -> bool:
        """True when every shard was done, or given up, before we came."""
        return self.done_now == 0 and self.done_before + len(self.failed_shards) == self.shards

    @property
    def exit_code(self) -> int:
        """0: every shard is done (failed images are rows with a status); 1: shards are missing."""
        return 0 if self.done_before + self.done_now == self.shards else 1

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        derived = {"nothing_to_do": self.nothing_to_do, "exit_code": self.exit_code}
        return {**dataclasses.asdict(self), **derived}

    def as_table(self) -> str:
        """Text for a terminal."""
        return "\n".join(_table_lines(self))


def summarize(
    directory: RunDirectory,
    identity: RunIdentity,
    scan: RunScan,
    done_before: Collection[int],
    failed_before: Mapping[int, str],
    wall_s: float,
) -> RunSummary:
    """Count what `scan` found at the end of a start; `failed_before` are shards that were not taken up again."""
    receipts = list(scan.done.values())
    fresh = [receipt for shard, receipt in scan.done.items() if shard not in done_before]
    given_up = {shard: failure.error for shard, failure in scan.failures.items() if failure.given_up}
    return RunSummary(
        run_dir=str(directory.root),
        shards=identity.shards,
        done_before=len(done_before),
        done_now=len(fresh),
        failed_shards=dict(sorted({**failed_before, **given_up}.items())),
        images=sum(receipt.images for receipt in receipts),
        persons=sum(receipt.persons for receipt in receipts),
        image_status=add_counts(receipt.image_status for receipt in receipts),
        person_status=add_counts(receipt.person_status for receipt in receipts),
        failed_images=sum(receipt.failed_images for receipt in receipts),
        retries=sum(receipt.attempt - 1 for receipt in fresh),
        wall_s=wall_s,
        images_per_s=sum(receipt.images for receipt in fresh) / wall_s,
        stage_seconds=sum_stages(fresh),
    )


def _table_lines(summary: RunSummary) -> list[str]:
    lines = [f"run      {summary.run_dir}"]
    if summary.nothing_to_do:
        lines.append("nothing to do: every shard was done or given up before")
    lines += [
        f"shards   {summary.done_now} done now, {summary.done_before} before, {len(summary.failed_shards)} failed, "
        f"of {summary.shards}; {summary.retries} tries repeated",
        f"images   {summary.images}, {summary.failed_images} of them failed",
        *count_lines(ImageStatus, summary.image_status),
        f"persons  {summary.persons}",
        *count_lines(PersonStatus, summary.person_status),
    ]
    if summary.done_now:
        lines.append(f"time     {format_duration(summary.wall_s)}, {summary.images_per_s:.1f} images/s")
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_seconds.items())
    lines += [f"stages   {stages} (all workers and threads)"] if stages else []
    lines += [f"failed   shard {shard}: {error}" for shard, error in summary.failed_shards.items()]
    return lines
