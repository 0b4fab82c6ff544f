"""One launch of a run: take the lease, plan, have the shards done by workers, record and show it, summarise.

PyTorch and Ray are imported only when there is work, so that a finished run answers at once. Seconds.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.data.storage import as_location
from dto_pipeline.errors import DeviceLost, one_line
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import count_death
from dto_pipeline.run.folder import Failure, RunDirectory, RunDirectoryError, RunScan
from dto_pipeline.run.identity import RunIdentity, find_places, identify_run, settle_config, warn_of_demo_network
from dto_pipeline.run.lease import DriverLock, RunLockLost, process_name
from dto_pipeline.run.loop import (
    Event,
    FailedAttempt,
    RunAborted,
    Runner,
    Schedule,
    ShardDone,
    ShardRaised,
    TooManyFailed,
    WorkerCounts,
    WorkerLost,
    WorkerPool,
    WorkerReady,
    drive,
)
from dto_pipeline.run.plan import EVERYTHING, Retry, RunPlan, Selection, find_refusals, plan_run
from dto_pipeline.run.report import LaunchCounts, RunSummary, find_example, summarize
from dto_pipeline.run.sanity import FailureBudget

_LOG = logging.getLogger(__name__)
_LOGGED = ("worker", "attempt", "images", "persons", "failed_images", "wall_s", "image_status", "stage_seconds")
_LINE_S, _LOG_FILE_S = 0.5, 30.0  # least time between two progress lines: on a terminal, and in a file
SAY_WAITING_S = 60.0  # how often the log says that no worker is ready


def run_pipeline(
    manifest_path: str | Path,
    run_dir: str | Path,
    config: PipelineConfig,
    address: str = "local",
    retry_failed: bool = False,
    retry_statuses: Collection[str] = (),
    selection: Selection = EVERYTHING,
    progress: bool = True,
    images_root: str | Path | None = None,
    depth_root: str | Path | None = None,
    runner: Runner | None = None,
    recheck: bool = False,
) -> RunSummary:
    """Do what is left of a run; start it if it does not exist.

    Args:
        manifest_path: file of `build_manifest`.
        run_dir: the run's folder, made if missing.
        config: `config.run.workers` 0 works in this process, else that many Ray actors.
        address: Ray's address, see `RayPool`; not used with 0 workers.
        retry_failed: try again shards that were given up, and failed images of finished shards (these images only).
        retry_statuses: limit `retry_failed` to images of these statuses (``failed``: shards that were given up).
        selection: limit this launch to a part; the rest stays pending.
        progress: show a progress line.
        images_root, depth_root: folders in place of those of manifest and config.
        runner: does the shards; None = a `ShardRunner`.
        recheck: read the label files of finished shards, and do those again that differ from their receipts.

    Raises:
        RunLocked: another driver works on this run.
        RunMismatch: the run was started with another config, manifest or version.
        RunAborted: the workers cannot start, or too many shards or images fail (`TooManyFailed`).
        RunDirectoryError: a folder of images or depth maps does not exist, the manifest has no depth maps, or `run_dir`
            holds other files.
        ConfigError, BodyModelError: no body model is named, or it does not exist.
        SelectionError: a selection or a status that the manifest or the program does not have.
    """
    started = time.monotonic()
    retry = Retry.of(retry_failed, retry_statuses)
    directory, manifest = RunDirectory(as_location(run_dir)), Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    if refusals := find_refusals(directory, manifest, config, address, places):
        raise RunDirectoryError(refusals[0])
    selection.find_shards(manifest.num_shards, manifest.subset)  # refuse a mistake before anything is made
    directory.create_folders()
    with directory.lock(config.run) as lock:
        identity = identify_run(config, manifest)
        plan = plan_run(directory, identity, manifest, selection, retry, recheck, lock)
        warn_of_demo_network(config, manifest)
        counts, scan = LaunchCounts(), None
        if plan.work:
            if runner is None:
                from dto_pipeline.run.worker import ShardRunner  # loads PyTorch: only when there is work

                where = manifest_path, run_dir, places.images, places.depth
                runner = ShardRunner(config, *where, retry.images)
            try:
                counts = _do_work(directory, plan, config.run, runner, address, progress, lock)
            except Exception:
                with suppress(OSError, RunLockLost):  # the error that stopped the launch matters more
                    _clean_up(directory, identity, lock)
                raise
            scan = _clean_up(directory, identity, lock)
        wall_s = time.monotonic() - started
        return summarize(directory, plan, scan, counts, wall_s, config.run.max_failed_images)


def _clean_up(directory: RunDirectory, identity: RunIdentity, lock: DriverLock) -> RunScan:
    """Remove what workers that died left, and label files that do not count.

    Raises: RunLockLost; RunDirectoryError: run.json, without which nothing reads the run, was removed meanwhile.
    """
    lock.check(ask=True)
    files.sweep_leftovers(directory)
    scan = files.scan_run(directory, identity)
    files.remove_surplus(directory, scan)
    files.read_identity(directory)
    return scan


def _do_work(
    directory: RunDirectory,
    plan: RunPlan,
    config: RunConfig,
    runner: Runner,
    address: str,
    progress: bool,
    lock: DriverLock,
) -> LaunchCounts:
    pool: WorkerPool
    with ExitStack() as stack:
        if config.workers == 0:
            pool = InProcessPool(runner)
        else:
            from dto_pipeline.run.ray_pool import RayPool  # loads Ray: only when there is work for it

            pool = RayPool(runner, config, address)
        stack.enter_context(closing(pool))
        ledger = stack.enter_context(closing(FileLedger(directory, plan, config, progress, lock.check)))
        if progress:
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the progress line, not through it
        attempts = {shard: failure.attempts for shard, failure in plan.earlier.items()}
        schedule = Schedule(plan.work, config, attempts, ledger.allows_another, plan.repairs)
        budget = FailureBudget(config.max_failed_images, plan.work, plan.repairs, config.workers)
        try:
            drive(schedule, pool, ledger, budget)
        except TooManyFailed as error:
            raise TooManyFailed("\n".join([str(error), *find_example(directory, budget)])) from None
        except ConnectionError:  # of Ray
            raise
        except OSError as error:  # of failure records, without which the driver cannot go on
            advice = "make the folder writable, or room on the disk, and start again"
            raise RunAborted(f"{directory.root} cannot be written ({error}); {advice}") from error
    return ledger.counts


class InProcessPool(WorkerPool):
    """One worker: this process, which nothing can end. Without Ray, and without a watchdog for hangs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._events: list[Event] = []
        self._started = 0

    def start_worker(self) -> str:
        self._started += 1
        worker = f"{process_name()}/{self._started}"
        try:
            self._runner.warm_up()
            self._events.append(WorkerReady(worker))
        except Exception as error:
            self._events.append(WorkerLost(worker, one_line(error), traceback.format_exc()))
        return worker

    def assign(self, worker: str, shard: int, attempt: int, following: int | None = None) -> None:
        """Do the shard; returns when it is done."""
        try:
            self._events.append(ShardDone(worker, shard, self._runner.run(shard, attempt, following)))
        except Exception as error:
            fatal = isinstance(error, DeviceLost)
            self._events.append(ShardRaised(worker, shard, one_line(error), traceback.format_exc(), fatal))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events


class FileLedger:
    """The `Ledger` of a real run: failure records, counts, a log line per shard, a progress line."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: RunPlan,
        config: RunConfig,
        progress: bool = True,
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_lock`: raises if another driver has taken the run over."""
        self.counts = LaunchCounts()
        self._check_lock = check_lock
        self._directory, self._plan, self._config = directory, plan, config
        self._failures = dict(plan.earlier)  # shard -> its failure record
        self._given_up = len(plan.failed)
        self._failed_images = sum(receipt.failed_images for receipt in plan.done.values())
        self._images = 0  # done in this launch
        self._workers = WorkerCounts()
        self._drawn_at = float("-inf")
        self._draw_every = _LINE_S if sys.stderr.isatty() else _LOG_FILE_S
        self._line = tqdm(total=sum(plan.work.values()), unit=" images", disable=not progress, dynamic_ncols=True)

    def close(self) -> None:
        """End the progress line."""
        self._draw()
        self._line.close()

    def shard_done(self, receipt: Receipt) -> None:
        shard, before = receipt.shard, self._plan.done.get(receipt.shard)
        outcome = "repaired" if before else "adopted" if receipt.adopted else "done"
        if before:
            self.counts.mended += before.failed_images - receipt.failed_images
            self._failed_images -= before.failed_images
        if self._failures.pop(shard, None) is not None:
            self._directory.store.remove(files.failure_name(shard))
        self._failed_images += receipt.failed_images
        self._images += self._plan.work.get(shard, receipt.images)
        speed = receipt.images / receipt.wall_s if receipt.wall_s > 0 else 0.0
        statuses = ", ".join(f"{count} {word}" for word, count in receipt.image_status.items())
        facts = {"shard": shard, **{name: getattr(receipt, name) for name in _LOGGED}}
        _LOG.info(
            "shard %d %s in %.1f s by %s, attempt %d: %d images (%s), %d persons, %.1f images/s",
            *(shard, outcome, receipt.wall_s, receipt.worker, receipt.attempt, receipt.images, statuses),
            *(receipt.persons, speed),
            extra={"facts": {**facts, "outcome": outcome, "images_per_s": round(speed, 3)}},
        )

    def allows_another(self, shard: int, attempt: int, out_of_memory: bool = False) -> bool:
        """Count an attempt that ended with its process; whether one more makes progress, see `count_death`."""
        failure = self._failure(shard)
        self._failures[shard], another = count_death(self._directory, failure, attempt, out_of_memory, self._config)
        return another

    def _failure(self, shard: int) -> Failure:
        return self._failures.get(shard) or Failure(shard, 0, False, "", "", 0.0)

    def attempt_failed(self, attempt: FailedAttempt, worker: str, error: str, detail: str) -> None:
        shard, attempts, given_up = attempt
        failure = replace(self._failure(shard), attempts=attempts, given_up=given_up)
        failure = replace(failure, error=error, worker=worker, failed_at=time.time(), detail=detail)
        files.record_failure(self._directory, failure)
        self._failures[shard] = failure
        self._given_up += given_up
        self.counts.failed_attempts += 1
        if given_up and shard in self._plan.repairs:
            self.counts.failed_repairs[shard] = error
        verdict = "given up" if given_up else "tried again later"
        facts = {"shard": shard, "attempt": attempts, "given_up": given_up, "worker": worker}
        message = "shard %d failed (attempt %d, %s): %s"
        _LOG.warning(message, shard, attempts, verdict, error, extra={"facts": facts})

    def worker_lost(self, worker: str, error: str, out_of_memory: bool = False) -> None:
        self.counts.workers_lost += 1
        self.counts.out_of_memory += out_of_memory
        _LOG.warning("%s is lost: %s", worker, error, extra={"facts": {"worker": worker}})

    def tick(self, workers: WorkerCounts) -> None:
        if workers.idle_s // SAY_WAITING_S > self._workers.idle_s // SAY_WAITING_S:
            what = f"{workers.loading} are loading" if workers.loading else "are the CPUs and GPUs they need free?"
            _LOG.warning("no worker has been ready for %.0f s: %s", workers.idle_s, what)
        self._workers = workers
        self._check_lock()
        if time.monotonic() - self._drawn_at >= self._draw_every:
            self._draw()

    def _draw(self) -> None:
        """The progress line: images, workers and why others are missing, failures."""
        self._drawn_at, now = time.monotonic(), self._workers
        notes = [f"{now.loading} loading"] if now.loading else []
        notes += [f"{now.leaving} leaving with their nodes"] if now.leaving else []
        if not now.working and now.wanted:
            notes = [*(notes or ["waiting for CPUs and GPUs"]), *([f"{now.idle_s:.0f} s"] if now.idle_s >= 1 else [])]
        of = f" of {now.wanted}" if now.working < now.wanted else ""
        workers = f"workers: {now.working}{of}" + (f" ({', '.join(notes)})" if notes else "")
        self._line.n = min(self._line.total, self._images + now.images)
        self._line.set_postfix_str(f"{workers}, failed: {self._given_up} shards, {self._failed_images} images")
