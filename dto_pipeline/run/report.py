"""What a run's files say: done, failed, pending, how fast, how long still.

Reads run.json, receipts and failures, nothing else: works from any machine that sees the folder, while the driver runs
or after it died. Speed counts the time somebody was working, not the nights between two starts. Seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.data.storage import as_location
from dto_pipeline.run.folder import RunDirectory, read_identity, scan_run
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.sanity import Sanity, judge_run
from dto_pipeline.status import ImageStatus, PersonStatus, ShardStatus

RECENT_S = 3600.0  # speed is that of the last hour of work


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up, or is being tried again."""

    shard: int
    attempts: int
    error: str


@dataclass(frozen=True)
class RunStatus:
    """State of a run at one moment."""

    run_dir: str
    subset: str
    driver: str  # who drives the run, or "none"
    driver_note: str  # what its silence means and what to do; "" = nothing to say
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
    failed: list[FailedShard]
    stage_seconds: dict[str, float]  # of all shards that are done, threads added up
    void: dict[int, str]  # shards whose receipt does not hold, and why
    unreadable_failures: dict[int, str]  # shards whose failure record is damaged, and how; they count as pending
    sanity: Sanity

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        return dataclasses.asdict(self)

    def as_table(self) -> str:
        """Text for a terminal."""
        return "\n".join(_table_lines(self))

    def as_line(self) -> str:
        """The same for a log, short."""
        shards = ", ".join(f"{count} {word}" for word, count in self.shards.items())
        speed = f"{self.images_per_s:.1f} images/s, ETA {format_duration(self.eta_s)}"
        note = f"; {self.driver_note}" if self.driver_note else ""
        return f"shards: {shards}; images: {self.images_done} of {self.images_total}; {speed}{note}" + "".join(
            f"; WRONG: {text}" for text in self.sanity.contradictions
        )


def read_status(run_dir: str | Path) -> RunStatus:
    """Read a run's folder.

    Raises:
        RunDirectoryError: the folder is not a run.
    """
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    scan = scan_run(directory, identity)
    receipts = list(scan.done.values())
    given_up = [failure for failure in scan.failures.values() if failure.given_up]
    images_done = sum(receipt.images for receipt in receipts)
    pending = identity.shards - len(receipts) - len(given_up)
    speed = images_per_second(receipts)
    images_left = (identity.images - images_done) * (pending / max(1, pending + len(given_up)))
    holder = read_holder(directory.lock_file)
    return RunStatus(
        run_dir=str(run_dir),
        subset=identity.subset,
        driver="none" if holder is None else holder.describe_state(),
        driver_note=describe_driver(holder.state if holder else None, pending, len(given_up)),
        last_receipt_s=_age(receipts),
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
        failed=[FailedShard(f.shard, f.attempts, f.error) for f in given_up],
        stage_seconds=sum_stages(receipts),
        void=scan.void,
        unreadable_failures={shard: why for shard, why in scan.unreadable.items() if shard in scan.failures},
        sanity=judge_run(identity, receipts),
    )


def describe_driver(state: str | None, pending: int, given_up: int) -> str:
    """What to make of a driver in this state (None = there is none) while so many shards are left."""
    if not pending:
        return "shards were given up: `dto run --retry-failed` takes them up again" if given_up else ""
    if state is None:
        return "nobody works on it: `dto run` does what is left"
    if state == "on another host":
        return "if its heartbeat stands still, start `dto run` again: it waits for the lease to end and goes on"
    return "the driver died: start `dto run` again, nothing is lost" if state == "gone" else ""


def _age(receipts: Sequence[Receipt]) -> float | None:
    """Seconds since the last receipt, by this machine's clock; clocks may differ, so never less than 0."""
    return max(0.0, time.time() - max(r.finished_at for r in receipts)) if receipts else None


def images_per_second(receipts: Sequence[Receipt]) -> float:
    """Images a second over the last hour of work, all workers together; 0 where nothing was computed."""
    computed = [receipt for receipt in receipts if not receipt.adopted]
    if not computed:
        return 0.0
    latest = max(receipt.finished_at for receipt in computed)
    recent = [receipt for receipt in computed if receipt.finished_at > latest - RECENT_S]
    busy = _covered((r.finished_at - r.wall_s, r.finished_at) for r in recent)
    return sum(receipt.images for receipt in recent) / busy if busy > 0 else 0.0


def sum_stages(receipts: Iterable[Receipt]) -> dict[str, float]:
    """Seconds per stage over several shards, the longest first."""
    total: dict[str, float] = {}
    for receipt in receipts:
        for stage, seconds in receipt.stage_seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def format_duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``2 min 05 s`` or ``7 s``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def count_lines(words: type[ImageStatus] | type[PersonStatus], counts: Mapping[str, int]) -> list[str]:
    """One line per status word: how often, and what it advises."""
    advice = {str(word): word.advice for word in words}
    unknown = "written by another version"
    return [f"  {word:<16} {count:>9}  {advice.get(word, unknown)}" for word, count in counts.items()]


def unreadable_lines(records: Mapping[int, str]) -> list[str]:
    """One line per failure record that cannot be read."""
    return [f"damaged  failure record of shard {shard}, its tries count anew: {why}" for shard, why in records.items()]


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _table_lines(status: RunStatus) -> list[str]:
    shards = ", ".join(f"{count} {word}" for word, count in status.shards.items())
    lines = [
        f"run      {status.run_dir} ({status.subset})",
        f"driver   {status.driver}" + (f": {status.driver_note}" if status.driver_note else ""),
        f"shards   {shards}",
        f"images   {status.images_done} of {status.images_total}",
        *count_lines(ImageStatus, status.image_status),
        f"persons  {status.persons_done} of {status.persons_total}",
        *count_lines(PersonStatus, status.person_status),
        f"speed    {status.images_per_s:.1f} images/s" + _last_receipt(status),
        f"ETA      {format_duration(status.eta_s)}" + ("" if status.driver != "none" else " once somebody works on it"),
    ]
    lines += [f"failed   shard {f.shard} after {f.attempts} tries: {f.error}" for f in status.failed]
    lines += [f"void     shard {shard}: {reason}; `dto run` does it again" for shard, reason in status.void.items()]
    return lines + unreadable_lines(status.unreadable_failures) + status.sanity.lines()


def _last_receipt(status: RunStatus) -> str:
    if status.last_receipt_s is None:
        return ""
    return f"; the last shard was finished {format_duration(status.last_receipt_s)} ago"
