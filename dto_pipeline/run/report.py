"""What a run's files say (`dto status`), and what became of one launch (the end of `dto run`).

Reads run.json, receipts and failures: works from any machine that sees the folder, while the driver runs or after it
died. Speed counts the time somebody was working, not the nights between two launches. Seconds, images, persons.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto_pipeline.config import BY_DEVICE, PipelineConfig
from dto_pipeline.data.labels import LabelsError, read_labels
from dto_pipeline.data.receipts import Receipt, add_counts
from dto_pipeline.data.storage import as_location
from dto_pipeline.run.folder import RunDirectory, RunScan, find_strays, read_identity, scan_run
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.sanity import FailureBudget, Sanity, judge_run
from dto_pipeline.status import ImageStatus, PersonStatus, ShardStatus

if TYPE_CHECKING:  # `dto status` plans nothing
    from dto_pipeline.run.plan import RunPlan

RECENT_S = 3600.0  # speed is that of the last hour of work
_EXAMPLE = ("image_id", "status", "message")
STRAY_ADVICE = "it is no label file of this run, and whoever reads the folder reads it too; move it elsewhere"
EXIT_DONE, EXIT_MISSING, EXIT_SELECTED = 0, 1, 3


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
    failed: list[dict[str, Any]]  # shards given up: `shard`, `attempts`, `error`
    stage_seconds: dict[str, float]  # of all shards that are done, threads added up
    void: dict[int, str]  # shards whose receipt does not hold, and why
    unreadable_failures: dict[int, str]  # shards whose failure record is damaged, and how; they count as pending
    sanity: Sanity

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def _shards(self) -> str:
        return ", ".join(f"{count} {word}" for word, count in self.shards.items())

    @property
    def _eta(self) -> str:
        """ "" where nothing is pending."""
        if self.eta_s == 0:
            return ""
        return f"{format_duration(self.eta_s)}{' once somebody works on it' if self.driver == 'none' else ''}"

    def as_table(self) -> str:
        last = self.last_receipt_s
        age = "" if last is None else f"; the last shard was finished {format_duration(last)} ago"
        lines = [
            f"run      {self.run_dir} ({self.subset})",
            f"driver   {self.driver}" + (f": {self.driver_note}" if self.driver_note else ""),
            f"shards   {self._shards}",
            f"images   {self.images_done} of {self.images_total}",
            *count_lines(ImageStatus, self.image_status),
            f"persons  {self.persons_done} of {self.persons_total}",
            *count_lines(PersonStatus, self.person_status),
            f"speed    {self.images_per_s:.1f} images/s{age}",
            self._eta and f"ETA      {self._eta}",
            *(f"failed   shard {f['shard']} after {f['attempts']} attempts: {f['error']}" for f in self.failed),
            *(f"void     shard {shard}: {reason}; `dto run` does it again" for shard, reason in self.void.items()),
            *unreadable_lines(self.unreadable_failures),
            *self.sanity.lines(),
        ]
        return "\n".join(filter(None, lines))

    def as_line(self) -> str:
        """The same for a log, short."""
        parts = [
            f"shards: {self._shards}",
            f"images: {self.images_done} of {self.images_total}",
            f"{self.images_per_s:.1f} images/s" + (self._eta and f", ETA {self._eta}"),
            self.driver_note,
            *(f"WRONG: {text}" for text in self.sanity.contradictions),
        ]
        return "; ".join(filter(None, parts))


def read_status(run_dir: str | Path) -> RunStatus:
    """Read a run's folder. Raises: RunDirectoryError where it is no run."""
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    scan = scan_run(directory, identity)
    receipts = list(scan.done.values())
    given_up = [failure for failure in scan.failures.values() if failure.given_up]
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
        unreadable_failures={shard: why for shard, why in scan.unreadable.items() if shard in scan.failures},
        sanity=judge_run(identity, receipts),
    )


def describe_driver(state: str | None, pending: int, given_up: int) -> str:
    """What to make of a driver in this state (None = there is none) while so many shards are left."""
    if not pending:
        return "shards were given up: `dto run --retry-failed` takes them up again" if given_up else ""
    notes = {
        None: "nobody works on it: `dto run` does what is left",
        "on another host": "if its heartbeat stands still, start `dto run` again: it waits for the lease to end and "
        "goes on",
        "gone": "the driver died: start `dto run` again, nothing is lost",
    }
    return notes.get(state, "")


def images_per_second(receipts: Sequence[Receipt]) -> float:
    """Images a second over the last hour of work, all workers together; 0 where nothing was computed."""
    computed = [receipt for receipt in receipts if not receipt.adopted]
    latest = max((receipt.finished_at for receipt in computed), default=0.0)
    recent = [receipt for receipt in computed if receipt.finished_at > latest - RECENT_S]
    busy, reached = 0.0, float("-inf")  # length of the union of the times somebody was at work
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
    """One line per status word: how often, and what it advises."""
    advice = {str(word): word.advice for word in words}
    unknown = "written by another version"
    return [f"  {word:<16} {count:>9}  {advice.get(word, unknown)}" for word, count in counts.items()]


def unreadable_lines(records: Mapping[int, str]) -> list[str]:
    """One line per failure record that cannot be read."""
    return [f"damaged  failure record of shard {shard}, attempts count anew: {why}" for shard, why in records.items()]


@dataclass(kw_only=True)
class Tally:
    """What happened in this launch and cannot be read from receipts afterwards."""

    failed_attempts: int = 0  # whatever became of the shard
    workers_lost: int = 0
    out_of_memory: int = 0  # of them, those whose machine lacked memory
    repaired: int = 0  # finished shards whose failed images were done again, with another result
    mended: int = 0  # images that had failed in them and do not now
    failed_repairs: dict[int, str] = field(default_factory=dict)  # given up -> last error; the shard stands as it was


@dataclass(kw_only=True)
class RunSummary(Tally):
    """What became of a run. `now` and `before` are told apart by this launch."""

    run_dir: str
    shards: int  # of the manifest
    done_before: int  # shards that were done when we came
    done_now: int
    failed_shards: dict[int, str]  # given up -> last error
    unselected: int  # pending shards that this launch was not asked to do
    retried: int  # failed images of finished shards that this launch was asked to do again
    images: int  # of shards that are done; likewise below
    persons: int
    image_status: dict[str, int]
    person_status: dict[str, int]
    failed_images: int  # images whose labels are as given because they could not be processed
    retries: int  # attempts beyond the first, of shards done now
    unreadable_failures: dict[int, str]  # failure records found damaged: their attempts are not counted
    wall_s: float  # of this launch
    images_per_s: float  # of this launch, workers' start-up included
    stage_seconds: dict[str, float]  # of shards done now, threads added up
    over_budget: str  # why the failures are too many: counts per cause and the next step; "" = they are not
    sanity: Sanity
    strays: list[str]  # files in labels/ that are no shard's, see `folder.find_strays`
    sizes: str  # what batches and threads this launch took, or left to the device

    @property
    def nothing_to_do(self) -> bool:
        """True when this launch found no work: what it was asked for was done, or given up, before."""
        idle = self.done_now == 0 and not self.failed_attempts and not self.retried
        return idle and self.done_before + len(self.failed_shards) + self.unselected == self.shards

    @property
    def exit_code(self) -> int:
        """0 every shard of the run is done; 3 what was selected is done, the rest is pending as asked; 1 else.

        1 also where a repair was given up, too many images or people failed, the labels contradict what any sound run
        shows, or labels/ holds files of somebody else.
        """
        if self.failed_repairs or self.failed_shards or self.over_budget or self.sanity.contradictions or self.strays:
            return EXIT_MISSING
        if self.done_before + self.done_now == self.shards:
            return EXIT_DONE
        return EXIT_SELECTED if self.done_before + self.done_now + self.unselected == self.shards else EXIT_MISSING

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "nothing_to_do": self.nothing_to_do, "exit_code": self.exit_code}

    def as_table(self) -> str:
        memory = f"memory   ran out on a machine and ended {self.out_of_memory} of these workers"
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stage_seconds.items())
        losses = f"losses   {self.workers_lost} workers lost, {self.failed_attempts} attempts failed"
        lines = [
            f"run      {self.run_dir}",
            "nothing to do: every shard that was asked for was done or given up before" if self.nothing_to_do else "",
            f"shards   {self.done_now} done now, {self.done_before} before, {len(self.failed_shards)} failed, "
            f"of {self.shards}; {self.retries} attempts repeated",
            f"left     {self.unselected} shards were not selected and stay pending" if self.unselected else "",
            f"retried  {self.retried} failed images, {self.mended} mended" if self.retried else "",
            f"images   {self.images}, {self.failed_images} of them failed",
            *count_lines(ImageStatus, self.image_status),
            f"persons  {self.persons}",
            *count_lines(PersonStatus, self.person_status),
            f"time     {format_duration(self.wall_s)}, {self.images_per_s:.1f} images/s" if self.done_now else "",
            f"sizes    {self.sizes}" if self.done_now else "",
            losses if self.failed_attempts or self.workers_lost else "",
            f"{memory}; use fewer workers, or keep others off the machine" if self.out_of_memory else "",
            *unreadable_lines(self.unreadable_failures),
            f"stages   {stages} (all workers and threads)" if stages else "",
            *(f"failed   shard {shard}: {error}" for shard, error in self.failed_shards.items()),
            *(f"failed   repair of shard {shard}: {error}" for shard, error in self.failed_repairs.items()),
            *self.sanity.lines(),
            f"FAILED   {self.over_budget}" if self.over_budget else "",
            *(f"WRONG    labels/ holds {name}: {STRAY_ADVICE}" for name in self.strays),
        ]
        return "\n".join(filter(None, lines))


def summarize(
    directory: RunDirectory, plan: RunPlan, scan: RunScan | None, tally: Tally, wall_s: float, config: PipelineConfig
) -> RunSummary:
    """Count what became of a launch that took `wall_s`.

    `scan`: what the folder holds at the end; None = as planned, there was nothing to do.
    """
    done = plan.done if scan is None else scan.done
    failures = {} if scan is None else scan.failures
    receipts = list(done.values())
    budget = FailureBudget(config.run.max_failed_images, {})
    for receipt in receipts:
        budget.shard_done(receipt)
    complaint = budget.verdict()
    fresh = [receipt for shard, receipt in done.items() if shard not in plan.done]
    given_up = {shard: failure.error for shard, failure in failures.items() if failure.given_up}
    return RunSummary(
        **vars(tally),
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
        retries=sum(receipt.attempt - 1 for receipt in fresh),
        unreadable_failures=plan.scan.unreadable,
        wall_s=wall_s,
        images_per_s=sum(receipt.images for receipt in fresh) / wall_s,
        stage_seconds=_sum_stages(fresh),
        over_budget=complaint and "\n".join([complaint, *find_example(directory, budget)]),
        sanity=judge_run(plan.identity, receipts),
        strays=find_strays(directory, plan.identity),
        sizes=describe_sizes(config),
    )


def describe_sizes(config: PipelineConfig) -> str:
    """What the options of `config.BY_DEVICE` are for a run, in words."""
    parts = []
    for name, what in (("batch_images", "images a batch"), ("decode_threads", "decoding threads")):
        told, (on_cpu, on_gpu) = getattr(config.run, name), BY_DEVICE[f"run.{name}"]
        parts.append(f"{told} {what}" if told else f"{on_cpu} {what} ({on_gpu} on a GPU)")
    if config.depth.source == "model":  # on a CPU a network sees one image at a time
        parts.append(f"on a GPU {config.depth.batch or BY_DEVICE['depth.batch'][1]} images a network batch")
    return ", ".join(parts)


def find_example(directory: RunDirectory, budget: FailureBudget) -> list[str]:
    """One line with the first row that was lost for the commonest cause and what it says; [] where none tells."""
    commonest = next((cause for cause, _ in budget.causes), "")
    receipt = budget.examples.get(commonest)
    if receipt is None:
        return []
    try:
        path = directory.label_file(receipt.shard, receipt.generation)
        rows = read_labels(path, columns=_EXAMPLE, people=_EXAMPLE[1:]).to_pylist()
    except LabelsError:
        return []
    told = [(row["image_id"], row) for row in rows]
    told += [(row["image_id"], person) for row in rows for person in row["persons"]]
    lost = (f"for example {image}: {row['message'] or commonest}" for image, row in told if row["status"] == commonest)
    return list(islice(lost, 1))
