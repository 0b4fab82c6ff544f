"""One start of a run: open it, see what is left, have it done, say what became of it.

Knows the order of things (lock, run.json, sweep, plan, workers, summary) and nothing of tensors; PyTorch and Ray are
imported only when there is work, so that a finished run answers at once. Times in seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.run import directory as files
from dto_pipeline.run.directory import RunDirectory, RunIdentity, RunScan
from dto_pipeline.run.drive import RunAborted, drive
from dto_pipeline.run.pool import InProcessPool, Runner, WorkerPool
from dto_pipeline.run.receipt import Failure, Receipt
from dto_pipeline.run.schedule import Charge, Policy, Schedule
from dto_pipeline.run.summary import RunSummary, summarize

_LOG = logging.getLogger(__name__)
_LOG_FILE_S = 30.0  # least time between progress lines that go to a file instead of a terminal


@dataclass(frozen=True)
class RunPlan:
    """What one start of a run will do."""

    identity: RunIdentity
    done: dict[int, Receipt]
    pending: list[int]
    attempts: dict[int, int]  # tries the pending shards have used up in earlier starts
    failed: dict[int, str]  # shards given up earlier that are not taken up again -> error


def run_pipeline(
    manifest_path: str | Path,
    run_dir: str | Path,
    config: PipelineConfig,
    address: str = "local",
    retry_failed: bool = False,
    retry_images: bool = False,
    progress: bool = True,
    images_root: str | Path | None = None,
    depth_root: str | Path | None = None,
    runner: Runner | None = None,
) -> RunSummary:
    """Do what is left of a run; start it where it does not exist.

    Args:
        manifest_path: file of `build_manifest`.
        run_dir: the run's folder, made if missing.
        config: `config.run.workers` 0 works in this process, else that many Ray actors.
        address: Ray's address, see `RayPool`; not looked at with 0 workers.
        retry_failed: take up shards that were given up.
        retry_images: do shards again that hold images which could not be processed.
        progress: show a progress line.
        images_root, depth_root: folders in place of those named by the manifest and the config.
        runner: does the shards; None = a `ShardRunner`.

    Raises:
        RunLocked: another driver is at work on this run.
        RunMismatch: the run was started with another config, manifest or version.
        RunAborted: the workers cannot start or too many shards fail.
        RunDirectoryError: a folder of images or depth maps that does not exist here.
    """
    started = time.monotonic()
    directory = RunDirectory(Path(run_dir))
    manifest = Manifest.open(manifest_path)
    directory.create_folders()
    here = address == "local" or config.run.workers == 0
    if here:
        _check_places(
            {"images folder": images_root, "depth folder": depth_root or config.depth.root},
            {"body.model_path": config.body.model_path},
        )
    with directory.lock():
        identity = files.identify_run(config, manifest, manifest.path)
        plan = plan_run(directory, identity, retry_failed, retry_images)
        if plan.pending:
            if runner is None:
                from dto_pipeline.run.shard_runner import ShardRunner  # loads PyTorch: only when there is work

                runner = ShardRunner(config, manifest_path, run_dir, images_root, depth_root)
            _do_pending(directory, plan, config.run, runner, address, progress)
            files.sweep_temporary(directory)  # workers that died under this driver left theirs; all have ended by now
        scan = files.scan_run(directory, identity) if plan.pending else RunScan(plan.done, {})
        return summarize(directory, identity, scan, set(plan.done), plan.failed, time.monotonic() - started)


def _check_places(folders: Mapping[str, str | Path | None], existing: Mapping[str, str]) -> None:
    """Refuse places that were named by hand and are not there: every image, or every worker, would fail for it."""
    for what, folder in folders.items():
        if folder and "://" not in str(folder) and not Path(folder).is_dir():
            raise files.RunDirectoryError(f"{what} {folder}: there is no such folder; check the path")
    for what, path in existing.items():
        if path and not Path(path).exists():
            raise files.RunDirectoryError(f"{what} {path}: there is no such file or folder; see dto body import")


def plan_run(
    directory: RunDirectory, identity: RunIdentity, retry_failed: bool = False, retry_images: bool = False
) -> RunPlan:
    """Open the run, take away what does not hold, and list what is left. Call it under the lock."""
    files.open_run(directory, identity)
    swept = files.sweep_temporary(directory)
    scan = files.scan_run(directory, identity)
    files.settle_records(directory, scan)
    for shard, reason in scan.void.items():
        _LOG.warning("shard %d is done again: %s", shard, reason)
    if swept:
        _LOG.info("%d temporary files of an earlier start were removed", swept)
    failures = _forget_failures(directory, scan) if retry_failed else scan.failures
    done = scan.done
    if retry_images:
        done = {shard: receipt for shard, receipt in done.items() if not receipt.failed_images}
        for shard in scan.done.keys() - done.keys():
            files.forget_shard(directory, shard)
    failed = {shard: failure.error for shard, failure in failures.items() if failure.given_up}
    pending = [shard for shard in range(identity.shards) if shard not in done and shard not in failed]
    attempts = {shard: failure.attempts for shard, failure in failures.items() if not failure.given_up}
    return RunPlan(identity, done, pending, attempts, failed)


def _forget_failures(directory: RunDirectory, scan: RunScan) -> Mapping[int, Failure]:
    for shard in scan.failures:
        files.clear_failure(directory, shard)
    return {}


def _do_pending(
    directory: RunDirectory, plan: RunPlan, config: RunConfig, runner: Runner, address: str, progress: bool
) -> None:
    policy = Policy(
        workers=max(1, config.workers),
        max_attempts=config.max_attempts,
        shards_in_flight=config.shards_in_flight if config.workers else 1,
        shard_timeout_s=config.shard_timeout_s,
        max_failed_shards=config.max_failed_shards,
    )
    schedule = Schedule(plan.pending, policy, plan.attempts)
    with ExitStack() as stack:
        pool = stack.enter_context(closing(_build_pool(runner, config, address)))
        ledger = stack.enter_context(_FileLedger(directory, plan, progress))
        if progress:
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the progress line, not through it
        drive(schedule, pool, ledger)


def _build_pool(runner: Runner, config: RunConfig, address: str) -> WorkerPool:
    if config.workers == 0:
        return InProcessPool(runner)
    from dto_pipeline.run.ray_pool import RayPool  # loads Ray: only when there is work for it

    return RayPool(runner, config, address)


class _FileLedger:
    """The driver's memory: failures on disk, a progress line, one log line a shard."""

    def __init__(self, directory: RunDirectory, plan: RunPlan, progress: bool) -> None:
        self._directory = directory
        self._tried = set(plan.attempts)  # shards with a failure file
        self._given_up = len(plan.failed)
        self._failed_images = sum(receipt.failed_images for receipt in plan.done.values())
        initial = sum(receipt.images for receipt in plan.done.values())
        self._line = tqdm(
            total=plan.identity.images,
            initial=initial,
            unit=" images",
            disable=not progress,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else _LOG_FILE_S,
        )

    def __enter__(self) -> _FileLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()

    def shard_done(self, receipt: Receipt) -> None:
        if receipt.shard in self._tried:
            files.clear_failure(self._directory, receipt.shard)
        self._failed_images += receipt.failed_images
        self._line.update(receipt.images)
        self._show()
        how = "adopted" if receipt.adopted else f"done in {receipt.wall_s:.1f} s"
        statuses = ", ".join(f"{count} {word}" for word, count in receipt.image_status.items())
        _LOG.info("shard %d %s by %s: %d images (%s)", receipt.shard, how, receipt.worker, receipt.images, statuses)

    def shard_charged(self, charge: Charge, worker: str, error: str, detail: str) -> None:
        failure = Failure(charge.shard, charge.attempts, charge.given_up, error, worker, time.time(), detail)
        self._record(failure)
        self._tried.add(charge.shard)
        self._given_up += charge.given_up
        self._show()
        verdict = "given up" if charge.given_up else "tried again later"
        _LOG.warning("shard %d failed (try %d, %s): %s", charge.shard, charge.attempts, verdict, error)

    def _record(self, failure: Failure) -> None:
        try:
            files.record_failure(self._directory, failure)
        except OSError as error:
            advice = "make the folder writable, or room on the disk, and start again"
            raise RunAborted(f"{self._directory.root} cannot be written ({error}); {advice}") from error

    def worker_lost(self, worker: str, error: str) -> None:
        _LOG.warning("%s is lost: %s", worker, error)

    def waiting(self, seconds: float) -> None:
        self._line.set_postfix_str(f"waiting for workers since {seconds:.0f} s")
        _LOG.warning("no worker is ready since %.0f s: are the CPUs and GPUs they ask for free?", seconds)

    def tick(self) -> None:
        self._line.refresh()

    def _show(self) -> None:
        self._line.set_postfix_str(f"failed: {self._given_up} shards, {self._failed_images} images", refresh=False)
