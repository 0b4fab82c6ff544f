"""The driver's memory while it works: failures on disk, a progress line, a log line a shard, metrics, and a tally.

Decides nothing. Seconds, images.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run import folder as files
from dto_pipeline.run.budget import Charge
from dto_pipeline.run.deaths import Suspects
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.loop import Crew, RunAborted
from dto_pipeline.run.plan import RunPlan
from dto_pipeline.run.report import Tally

if TYPE_CHECKING:  # a run without Ray does not load it
    from dto_pipeline.run.ray_metrics import RayMetrics

_LOG = logging.getLogger(__name__)
_LOGGED = (
    "shard",
    "worker",
    "attempt",
    "images",
    "persons",
    "failed_images",
    "wall_s",
    "image_status",
    "stage_seconds",
)
_LINE_S = 0.5  # least time between two drawings of the progress line on a terminal ...
_LOG_FILE_S = 30.0  # ... and where it goes to a file


class FileLedger:
    """A `Ledger` of a real run; a context manager, because it owns the progress line."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: RunPlan,
        suspects: Suspects,
        progress: bool = True,
        metrics: RayMetrics | None = None,
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_lock`: raises where another driver has taken the run over."""
        self.tally = Tally()
        self._check_lock = check_lock
        self._directory, self._plan, self._suspects = directory, plan, suspects
        self._metrics = metrics
        self._charged = set(plan.earlier)  # shards with a failure file
        self._given_up = len(plan.failed)
        self._failed_images = sum(receipt.failed_images for receipt in plan.done.values())
        self._images = 0  # done in this launch
        self._crew = Crew(0, 0, 0, 0, 0, 0, 0)
        self._waiting = 0.0  # seconds that nobody has been ready, when it was last said
        self._drawn_at = float("-inf")
        self._draw_every = _LINE_S if sys.stderr.isatty() else _LOG_FILE_S
        self._line = tqdm(total=sum(plan.work.values()), unit=" images", disable=not progress, dynamic_ncols=True)

    def __enter__(self) -> FileLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._line.close()

    def shard_done(self, receipt: Receipt) -> None:
        shard, before = receipt.shard, self._plan.done.get(receipt.shard)
        outcome = "adopted" if receipt.adopted else "done"
        failed_before = 0
        if shard in self._plan.repairs and before is not None:
            outcome, failed_before = "repaired", before.failed_images
            self.tally.mended += failed_before - receipt.failed_images
            if receipt.generation != before.generation:
                self.tally.repaired.add(shard)
        if shard in self._charged:
            self._write(lambda: files.clear_failure(self._directory, shard))
        self._failed_images += receipt.failed_images - failed_before
        self._images += self._plan.work.get(shard, receipt.images)
        if self._metrics is not None:
            self._metrics.shard_done(receipt, outcome)
        speed = receipt.images / receipt.wall_s if receipt.wall_s > 0 else 0.0
        statuses = ", ".join(f"{count} {word}" for word, count in receipt.image_status.items())
        told = {name: getattr(receipt, name) for name in _LOGGED}
        _LOG.info(
            "shard %d %s in %.1f s by %s, attempt %d: %d images (%s), %d persons, %.1f images/s",
            *(shard, outcome, receipt.wall_s, receipt.worker, receipt.attempt, receipt.images, statuses),
            *(receipt.persons, speed),
            extra={"facts": {**told, "outcome": outcome, "images_per_s": round(speed, 3)}},
        )

    def shard_charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        failure = replace(self._suspects.of(charge.shard), attempts=charge.attempts, given_up=charge.given_up)
        failure = replace(failure, error=error, worker=worker, failed_at=time.time(), detail=detail)
        self._write(lambda: files.record_failure(self._directory, failure))
        self._charged.add(charge.shard)
        self._given_up += charge.given_up
        self.tally.charges += 1
        if charge.given_up and charge.shard in self._plan.repairs:
            self.tally.repairs_failed[charge.shard] = error
        if self._metrics is not None:
            self._metrics.shard_failed(charge)
        verdict = "given up" if charge.given_up else "tried again later"
        facts = {"shard": charge.shard, "attempt": charge.attempts, "given_up": charge.given_up, "worker": worker}
        message = "shard %d failed (attempt %d, %s): %s"
        _LOG.warning(message, charge.shard, charge.attempts, verdict, error, extra={"facts": facts})

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        self.tally.workers_lost += 1
        self.tally.out_of_memory += out_of_memory
        if self._metrics is not None:
            self._metrics.worker_lost()
        _LOG.warning("%s is lost: %s", worker, error, extra={"facts": {"worker": worker}})

    def waiting(self, seconds: float, loading: int) -> None:
        self._waiting = seconds
        self._draw()
        what = f"{loading} are loading" if loading else "are the CPUs and GPUs they ask for free?"
        _LOG.warning("no worker has been ready for %.0f s: %s", seconds, what)

    def tick(self, crew: Crew) -> None:
        self._crew = crew
        self._check_lock()
        now = time.monotonic()
        if now - self._drawn_at >= self._draw_every:
            self._drawn_at = now
            self._draw()
            if self._metrics is not None:
                self._metrics.gauge(crew.working, crew.unfinished)

    def _draw(self) -> None:
        """The progress line: images, who is at work, who is waited for, what failed."""
        crew = self._crew
        if crew.working:
            self._waiting = 0.0
        ready = crew.working >= crew.wanted
        who = f"{crew.working} workers" if ready else f"{crew.working} of {crew.wanted} workers, others are not ready"
        if not crew.working and crew.leaving:
            who = f"{crew.leaving} workers finish before their nodes go"
        elif not crew.working and crew.wanted:
            whom = f"{crew.loading} workers to load" if crew.loading else "workers to be given CPUs and GPUs"
            who = f"waiting for {whom}" + (f" ({self._waiting:.0f} s so far)" if self._waiting else "")
        self._line.n = min(self._line.total, self._images + crew.images)
        self._line.set_postfix_str(f"{who}, failed: {self._given_up} shards, {self._failed_images} images")

    def _write(self, action: Callable[[], None]) -> None:
        """Do something to the run's folder; without it the driver has no memory and cannot go on."""
        try:
            action()
        except OSError as error:
            advice = "make the folder writable, or room on the disk, and start again"
            raise RunAborted(f"{self._directory.root} cannot be written ({error}); {advice}") from error
