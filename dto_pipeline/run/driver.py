"""One start of a run: open it, see what is left, have it done, say what became of it.

Knows the order of things (lock, plan, workers, summary) and nothing of tensors; PyTorch and Ray are imported only when
there is work, so that a finished run answers at once. Times in seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from dto_pipeline.config import PipelineConfig, RunConfig
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import absolute, as_location
from dto_pipeline.models.depth_licences import DEMO_MODEL
from dto_pipeline.run import directory as files
from dto_pipeline.run.batching import describe_sizes
from dto_pipeline.run.budget import FailureBudget
from dto_pipeline.run.directory import RunDirectory
from dto_pipeline.run.drive import TooManyFailed, drive
from dto_pipeline.run.forecast import Forecast, forecast_run
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.inputs import Places, find_missing, find_places, find_relative, find_unnamed, settle_config
from dto_pipeline.run.ledger import FileLedger, Metrics
from dto_pipeline.run.plan import RunPlan, plan_run
from dto_pipeline.run.pool import InProcessPool, Runner, WorkerPool
from dto_pipeline.run.schedule import Policy, Schedule
from dto_pipeline.run.selection import Retry, Selection
from dto_pipeline.run.summary import RunSummary, Tally, find_example, summarize
from dto_pipeline.run.suspects import Suspects

EVERYTHING = Selection()
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
        selection: what this start is limited to; the rest stays pending.
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
    if refusals := [*_find_missing(manifest, config, address, places), *_find_strangers(directory)]:
        raise files.RunDirectoryError(refusals[0])
    selection.find_shards(manifest.num_shards, manifest.subset)  # a mistake is said before anything is made
    directory.create_folders()
    with directory.lock(config.run):
        identity = identify_run(config, manifest, absolute(manifest.path))
        plan = plan_run(directory, identity, manifest, config.run, selection, retry, recheck)
        _warn_of_demo_network(config, manifest)
        tally = Tally()
        if plan.work:
            if runner is None:
                from dto_pipeline.run.shard_runner import ShardRunner  # loads PyTorch: only when there is work

                runner = ShardRunner(config, manifest_path, run_dir, places.images, places.depth, retry.images)
            tally = _do_work(directory, plan, config.run, runner, address, progress)
            files.sweep_temporary(directory)  # workers that died under this driver left theirs; all have ended by now
        scan = files.scan_run(directory, identity) if plan.work else None
        seconds = time.monotonic() - started
        summary = summarize(directory, plan, scan, tally, seconds, config.run.max_failed_images)
        return replace(summary, sizes=describe_sizes(config))


def plan_pipeline(
    manifest_path: str | Path,
    run_dir: str | Path,
    config: PipelineConfig,
    retry_failed: bool = False,
    retry_statuses: Collection[str] = (),
    selection: Selection = EVERYTHING,
    images_per_s: float | None = None,
    address: str = "local",
    images_root: str | Path | None = None,
    depth_root: str | Path | None = None,
) -> Forecast:
    """What `run_pipeline` with the same arguments would do. Writes nothing, not even the run's folder.

    Args:
        images_per_s: of one worker, for the time a run without receipts will take; None = not known.

    Raises:
        ManifestError, SelectionError: there is nothing to plan.
        ConfigError, BodyModelError: no body model is named, or it is not there.
    """
    retry = Retry.of(retry_failed, retry_statuses)
    directory = RunDirectory(as_location(run_dir))
    manifest = Manifest.open(manifest_path)
    config = settle_config(config, manifest)
    places = find_places(config, manifest, images_root, depth_root)
    missing = [*_find_missing(manifest, config, address, places), *_find_strangers(directory)]
    return forecast_run(directory, manifest, config, selection, retry, images_per_s, missing)


def _warn_of_demo_network(config: PipelineConfig, manifest: Manifest) -> None:
    synthetic = str(manifest.dataset.get("licence", "")).startswith(SYNTHETIC)
    if config.depth.source == "model" and config.depth.model == DEMO_MODEL and not synthetic:
        _LOG.warning(
            "depth.model=demo was trained on synthetic crowds only: on other pictures its maps, and the labels, mean "
            "nothing; take a published network (docs/seeing.md) for %s",
            manifest.subset,
        )


def _find_missing(manifest: Manifest, config: PipelineConfig, address: str, places: Places) -> list[str]:
    """What every image, or every worker, would fail for, as far as this machine can tell.

    A cluster's nodes may see folders that this machine does not: there each worker looks before its first shard.
    """
    if address == "local" or config.run.workers == 0:
        return find_missing(config, manifest, places)
    return [*find_unnamed(config, manifest), *find_relative(manifest, places)]


def _find_strangers(directory: RunDirectory) -> list[str]:
    stranger = files.find_strangers(directory)
    return [stranger] if stranger else []


def _do_work(
    directory: RunDirectory, plan: RunPlan, config: RunConfig, runner: Runner, address: str, progress: bool
) -> Tally:
    policy = Policy(
        workers=max(1, config.workers),
        max_attempts=config.max_attempts,
        shards_in_flight=config.shards_in_flight if config.workers else 1,
        shard_timeout_s=config.shard_timeout_s,
        warm_up_timeout_s=config.warm_up_timeout_s,
        max_failed_shards=config.max_failed_shards,
    )
    suspects = Suspects(directory, plan.earlier, config)
    schedule = Schedule(plan.work, policy, plan.attempts, suspects.excuse, plan.repairs)
    with ExitStack() as stack:
        pool = stack.enter_context(closing(_build_pool(runner, config, address)))
        metrics = _build_metrics(plan, config)
        ledger = stack.enter_context(FileLedger(directory, plan, schedule, suspects, progress, metrics))
        if progress:
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the progress line, not through it
        budget = FailureBudget(config.max_failed_images, plan.work, plan.repairs, policy.workers)
        try:
            drive(schedule, pool, ledger, budget)
        except TooManyFailed as error:
            raise TooManyFailed("\n".join([str(error), *find_example(directory, budget.losses)])) from None
    return ledger.tally


def _build_pool(runner: Runner, config: RunConfig, address: str) -> WorkerPool:
    if config.workers == 0:
        return InProcessPool(runner)
    from dto_pipeline.run.ray_pool import RayPool  # loads Ray: only when there is work for it

    return RayPool(runner, config, address)


def _build_metrics(plan: RunPlan, config: RunConfig) -> Metrics | None:
    """Ray carries the metrics, so a run without it has none."""
    if config.workers == 0:
        return None
    from dto_pipeline.run.ray_metrics import open_metrics

    return open_metrics(plan.identity.subset)
