"""One launch of a run: open it, see what is left, have it done, say what became of it.

Knows the order of things (lock, plan, workers, summary) and nothing of tensors; PyTorch and Ray are imported only when
there is work, so that a finished run answers at once. Times in seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

from dto_pipeline.config import BY_DEVICE, PipelineConfig, RunConfig
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import absolute, as_location
from dto_pipeline.models.networks import DEMO_MODEL
from dto_pipeline.run import folder as files
from dto_pipeline.run.budget import FailureBudget
from dto_pipeline.run.deaths import Suspects
from dto_pipeline.run.folder import RunDirectory, RunScan
from dto_pipeline.run.identity import RunIdentity, find_places, identify_run, settle_config
from dto_pipeline.run.lease import DriverLock, RunLockLost
from dto_pipeline.run.loop import Schedule, TooManyFailed, drive, likely_next
from dto_pipeline.run.plan import EVERYTHING, Retry, RunPlan, Selection, find_refusals, plan_run
from dto_pipeline.run.pool import InProcessPool, Runner, WorkerPool
from dto_pipeline.run.progress import FileLedger
from dto_pipeline.run.report import RunSummary, Tally, find_example, summarize

if TYPE_CHECKING:
    from dto_pipeline.run.ray_metrics import RayMetrics

_LOG = logging.getLogger(__name__)


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
    """Do what is left of a run; start it where it does not exist.

    Args:
        manifest_path: file of `build_manifest`.
        run_dir: the run's folder, made if missing.
        config: `config.run.workers` 0 works in this process, else that many Ray actors.
        address: Ray's address, see `RayPool`; not looked at with 0 workers.
        retry_failed: take up shards that were given up, and failed images of finished shards (these images only).
        retry_statuses: narrow `retry_failed` to images of these statuses (``failed``: shards that were given up).
        selection: what this launch is limited to; the rest stays pending.
        progress: show a progress line.
        images_root, depth_root: folders in place of those named by the manifest and the config.
        runner: does the shards; None = a `ShardRunner`.
        recheck: read the label files of finished shards and do those again that are not what their receipts say.

    Raises:
        RunLocked: another driver is at work on this run.
        RunMismatch: the run was started with another config, manifest or version.
        RunAborted: the workers cannot start, or too many shards (`TooManyGivenUp`) or images (`TooManyFailed`) fail.
        RunDirectoryError: a folder of images or depth maps that does not exist here, no depth maps are named, or
            `run_dir` holds files of something else.
        ConfigError, BodyModelError: no body model is named, or it is not there.
        SelectionError: a selection or a status that means nothing here.
    """
    started = time.monotonic()
    retry = Retry.of(retry_failed, retry_statuses)
    directory = RunDirectory(as_location(run_dir))
    manifest = Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    if refusals := find_refusals(directory, manifest, config, address, places):
        raise files.RunDirectoryError(refusals[0])
    selection.find_shards(manifest.num_shards, manifest.subset)  # a mistake is said before anything is made
    directory.create_folders()
    with directory.lock(config.run) as lock:
        identity = identify_run(config, manifest, absolute(manifest.path))
        plan = plan_run(directory, identity, manifest, config.run, selection, retry, recheck, lock)
        _warn_of_demo_network(config, manifest)
        tally, scan = Tally(), None
        if plan.work:
            if runner is None:
                from dto_pipeline.run.worker import ShardRunner  # loads PyTorch: only when there is work

                fresh = [shard for shard in plan.work if shard not in plan.repairs]
                following = likely_next(fresh, config.run.workers)
                runner = ShardRunner(
                    config, manifest_path, run_dir, places.images, places.depth, plan.retry.images, following
                )
            try:
                tally = _do_work(directory, plan, config.run, runner, address, progress, lock)
            except Exception:
                with suppress(OSError, RunLockLost):  # what stopped the launch matters more
                    _tidy_up(directory, identity, lock)
                raise
            scan = _tidy_up(directory, identity, lock)
        seconds = time.monotonic() - started
        summary = summarize(directory, plan, scan, tally, seconds, config.run.max_failed_images)
        return replace(summary, sizes=describe_sizes(config))


def _warn_of_demo_network(config: PipelineConfig, manifest: Manifest) -> None:
    synthetic = str(manifest.dataset.get("licence", "")).startswith(SYNTHETIC)
    if config.depth.source == "model" and config.depth.model == DEMO_MODEL and not synthetic:
        _LOG.warning(
            "depth.model=demo was trained on synthetic crowds only: on other pictures its maps, and the labels, mean "
            "nothing; take a published network (docs/seeing.md) for %s",
            manifest.subset,
        )


def _tidy_up(directory: RunDirectory, identity: RunIdentity, lock: DriverLock) -> RunScan:
    """Remove what workers that died under this driver left: half-written files, and label files that do not count.

    Workers have ended by now. Raises: RunLockLost, where it is another driver's business.
    """
    lock.check(ask=True)
    files.sweep_temporary(directory)
    scan = files.scan_run(directory, identity)
    for name in scan.labels.surplus:
        directory.store.remove(name)
    return scan


def _do_work(
    directory: RunDirectory,
    plan: RunPlan,
    config: RunConfig,
    runner: Runner,
    address: str,
    progress: bool,
    lock: DriverLock,
) -> Tally:
    suspects = Suspects(directory, plan.earlier, config)
    attempts = {shard: failure.attempts for shard, failure in plan.earlier.items()}
    schedule = Schedule(plan.work, config, attempts, suspects.allows_another, plan.repairs)
    pool: WorkerPool
    metrics: RayMetrics | None = None
    with ExitStack() as stack:
        if config.workers == 0:
            pool = InProcessPool(runner)
        else:
            from dto_pipeline.run.ray_metrics import open_metrics  # load Ray: only when there is work for it
            from dto_pipeline.run.ray_pool import RayPool

            pool, metrics = RayPool(runner, config, address), open_metrics(plan.identity.subset)
        stack.enter_context(closing(pool))
        ledger = stack.enter_context(FileLedger(directory, plan, suspects, progress, metrics, lock.check))
        if progress:
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the progress line, not through it
        budget = FailureBudget(config.max_failed_images, plan.work, plan.repairs, config.workers)
        try:
            drive(schedule, pool, ledger, budget)
        except TooManyFailed as error:
            raise TooManyFailed("\n".join([str(error), *find_example(directory, budget)])) from None
    return ledger.tally


def describe_sizes(config: PipelineConfig) -> str:
    """What the options of `config.BY_DEVICE` are for a run, in words."""
    parts = []
    for name, what in (("batch_images", "images a batch"), ("decode_threads", "decoding threads")):
        told, (on_cpu, on_gpu) = getattr(config.run, name), BY_DEVICE[f"run.{name}"]
        parts.append(f"{told} {what}" if told else f"{on_cpu} {what} ({on_gpu} on a GPU)")
    if config.depth.source == "model":  # on a CPU a network sees one image at a time
        parts.append(f"on a GPU {config.depth.batch or BY_DEVICE['depth.batch'][1]} images a network batch")
    return ", ".join(parts)
