"""The training loop, and its two ways to run: in this process, or as workers of Ray Train. The only door to Ray here.

Every process runs `run_rank`: step, and at intervals metrics, a checkpoint, an evaluation (each process its share).
Checkpoints lie in the training's own folder; whoever starts, at first, after a crash or as a replacement for a lost
worker, goes on from the newest that can be read. A training's folder:

    train.json                       config, versions, what it began with (init); other options than those of how it
                                     runs refuse to resume
    train.lock                       held by the process that trains here
    checkpoints/step-00001000.pt     the newest two, see `checkpoint`
    metrics.csv, evaluation.csv      one row per interval; tensorboard/ the same as events
    ray/                             Ray Train's own notes
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dto_pipeline.config_tree import describe_difference
from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import load_body
from dto_pipeline.reading import IrregularFile, parse_json, read_regular
from dto_pipeline.train.checkpoint import (
    Checkpoint,
    Position,
    begin_network,
    checkpoint_file,
    library_versions,
    list_checkpoints,
    read_checkpoint,
    restore_network,
    save_checkpoint,
)
from dto_pipeline.train.config import TrainConfig, train_config_from_dict
from dto_pipeline.train.dataset import Source, TrainBatch, batches_from
from dto_pipeline.train.evaluation import evaluate
from dto_pipeline.train.learner import Learner, broadcast_from_rank_0, count_processes, mean_over_processes, own_rank
from dto_pipeline.train.records import HELD_OUT, TRAINING, Records, hold_folder, read_rows

FREE_OPTIONS = {
    "loop": {"steps", "log_every", "evaluate_every", "checkpoint_every", "gpu", "torch_threads", "max_failures"},
    "data": {"workers", "patience"},
}  # may change between starts of one training (steps: be raised); another number of loop.workers would change the batch
_LOG = logging.getLogger(__name__)
_LOOK_EVERY = 2.0  # at what workers wrote down [s]
Report = Callable[[dict[str, Any]], None]


class TrainError(DtoError, RuntimeError):
    """A training that cannot start or go on."""


def train_network(config: TrainConfig, source: Source, folder: Path, progress: bool = True) -> dict[str, float]:
    """Train, or do what is left of a training.

    Args:
        config: all options; `loop.workers` decides where it runs. Ray, if asked for, must be connected already.
        source: of the batches.
        folder: of the training, made if missing; shared by all machines.
        progress: show a bar.

    Returns:
        The last row of the evaluation; empty without held-out images.

    Raises:
        TrainError: the folder holds another training, or workers failed too often.
        FolderBusy: another process trains in it now.
    """
    with hold_folder(folder):
        _claim_folder(folder, config)
        with _followed(folder, config.loop.steps, progress):
            if config.loop.workers:
                _run_on_ray(config, source, folder)
            else:
                device = torch.device("cuda" if config.loop.gpu else "cpu")
                run_rank(config, source, folder, device, lambda _: None)
    rows = read_rows(folder / HELD_OUT)
    return rows[-1] if rows else {}


def run_rank(config: TrainConfig, source: Source, folder: Path, device: torch.device, report: Report) -> None:
    """What each process does from the newest checkpoint to the last step.

    Args:
        report: called by every process at every checkpoint; a barrier under Ray.
    """
    loop, (learner, position) = config.loop, start_learner(config, folder, device)
    rank, world = own_rank(), count_processes()
    held_out = source.held_out(rank, world)  # before the first step: what is wrong with it is said now
    records = Records(folder, position.step) if rank == 0 else None
    window: list[dict[str, float]] = []

    def evaluate_now(step: int) -> None:
        """All processes at once, each its share: else the others would wait longer than a process group lets them."""
        share = lambda sums: mean_over_processes(sums) * count_processes()  # noqa: E731
        measures = evaluate(learner.predict, map(_told, held_out), learner.body, share)
        if records is not None and measures["images"]:
            records.add(HELD_OUT, step, measures)
        elif records is not None and measures["skipped_images"]:
            _LOG.warning("none of the %d held-out images could be read: no evaluation", measures["skipped_images"])

    try:
        # a training may have been interrupted between a checkpoint and the evaluation that was due
        done = {row["step"] for row in read_rows(folder / HELD_OUT)}
        lacks = position.step > 0 and is_due(position.step, loop.evaluate_every, loop.steps)
        if broadcast_from_rank_0(lacks and position.step not in done):
            evaluate_now(position.step)
        stream = batches_from(source.training(rank, world), position)
        for batch, after in itertools.islice(stream, loop.steps - position.step):
            window.append(learner.step(_told(batch), position.step))
            position = after
            if is_due(position.step, loop.log_every, loop.steps):
                if records is not None:
                    records.add(TRAINING, position.step, _summarise(window))
                window.clear()
            saves = is_due(position.step, loop.checkpoint_every, loop.steps)
            if saves and records is not None:  # before an evaluation: whatever befalls it, this is kept
                save_checkpoint(folder, _freeze(learner, position))
            if is_due(position.step, loop.evaluate_every, loop.steps):
                evaluate_now(position.step)
            if saves:
                report({"step": position.step})
    finally:
        if records is not None:
            records.close()


def _told(batch: TrainBatch) -> TrainBatch:
    for line in batch.skipped:
        _LOG.warning("left out %s", line)
    return batch


def start_learner(config: TrainConfig, folder: Path, device: torch.device) -> tuple[Learner, Position]:
    """Network and optimiser from the newest checkpoint that can be read, or new ones from `loop.seed`.

    Rank 0 chooses the checkpoint, and all go on from it.

    Raises:
        CheckpointError: there are checkpoints, but none can be used.
        TrainError: the body model is another one than the checkpoint's.
    """
    if device.type == "cpu":
        torch.set_num_threads(config.loop.torch_threads)
    torch.manual_seed(config.loop.seed)
    body = load_body(config.body.model_path, config.body.kid_axis)
    is_first = own_rank() == 0
    checkpoint = read_checkpoint(folder) if is_first and list_checkpoints(folder) else None
    step = broadcast_from_rank_0(checkpoint.position.step if checkpoint else None)
    if step is None:
        network, init = begin_network(config)
        if init and is_first:
            _note(folder, init=init)
        return Learner(config, network, body, device, init), Position()
    checkpoint = checkpoint or read_checkpoint(checkpoint_file(folder, step))
    if body.sha256 != checkpoint.body_sha256:
        found = f"sha256 {body.sha256[:16]}, this training began with {checkpoint.body_sha256[:16]}"
        raise TrainError(f"the body model (body.model_path) has {found}; put the right one back")
    learner = Learner(config, restore_network(checkpoint), body, device, checkpoint.init)
    learner.optimizer.load_state_dict(checkpoint.optimizer)
    _LOG.info("resumed at step %d", step)
    return learner, checkpoint.position


def is_due(step: int, every: int, last: int) -> bool:
    """True at multiples of `every` (0 = never) and at the last step."""
    return step == last or (every > 0 and step % every == 0)


def _summarise(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means by key, but counts of what was skipped are summed and rates are the last."""
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    sums = {key: sum(row[key] for row in rows) for key in ("skipped_step", "skipped_images")}
    return means | sums | {"rate": rows[-1]["rate"]}


def _freeze(learner: Learner, position: Position) -> Checkpoint:
    return Checkpoint(
        config=learner.config,
        init=learner.init,
        weights=learner.network.state_dict(),
        optimizer=learner.optimizer.state_dict(),
        position=position,
        versions=library_versions(),
        body_sha256=learner.body.sha256,
    )


def _claim_folder(folder: Path, config: TrainConfig) -> None:
    """Write train.json, or refuse a folder whose training has other options."""
    path, wanted = folder / "train.json", _fixed_options(config)
    if not path.exists():
        write_json_atomic(path, {"config": config.to_dict(), "versions": library_versions()})
        return
    try:
        before = train_config_from_dict(parse_json(read_regular(path))["config"])
    except (ValueError, KeyError, TypeError, AttributeError, IrregularFile) as error:
        raise TrainError(f"{path} cannot be used ({error}); choose another folder, or put the file back") from error
    differing = describe_difference(_fixed_options(before), wanted)
    if differing:
        raise TrainError(f"{folder} holds another training ({'; '.join(differing)}); choose another folder")
    if config.loop.steps < before.loop.steps:
        found = f"loop.steps is {config.loop.steps}, this training was to take {before.loop.steps}"
        raise TrainError(f"{folder}: {found}; more may be asked for, fewer not: choose another folder")
    _note(folder, config=config.to_dict())


def _note(folder: Path, **facts: Any) -> None:
    """Write facts into train.json, which may not be there where a learner is started by hand."""
    path = folder / "train.json"
    if folder.is_dir():
        write_json_atomic(path, (parse_json(read_regular(path)) if path.exists() else {}) | facts)


def _fixed_options(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The options that must not change between starts; 0 and 1 workers share every step alike."""
    tree = config.to_dict()
    tree["loop"]["workers"] = max(1, config.loop.workers)
    return {
        name: {key: value for key, value in section.items() if key not in FREE_OPTIONS.get(name, ())}
        for name, section in tree.items()
    }


def _run_on_ray(config: TrainConfig, source: Source, folder: Path) -> None:
    """`run_rank` in `loop.workers` workers of Ray Train, started again when one is lost."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.base_trainer import TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    if list_checkpoints(folder):  # what is said of damaged ones is seen here; what workers say stays in Ray's logs
        read_checkpoint(folder)
    loop, threads = config.loop, str(config.loop.torch_threads)
    trainer = TorchTrainer(
        partial(_run_as_ray_worker, config, source, folder.resolve()),
        torch_config=TorchConfig(backend="nccl" if loop.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=loop.workers, use_gpu=loop.gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class of the older API
            name="ray",
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=loop.max_failures),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise TrainError(
            f"training failed more than {loop.max_failures} times (loop.max_failures): {said}; what the newest "
            "checkpoint holds is kept, start again to go on"
        ) from error


def _run_as_ray_worker(config: TrainConfig, source: Source, folder: Path) -> None:
    import ray.train
    import ray.train.torch

    run_rank(config, source, folder, ray.train.torch.get_device(), ray.train.report)


@contextmanager
def _followed(folder: Path, steps: int, progress: bool) -> Iterator[None]:
    """A progress bar of what is written down, here or by workers; it may go back where one was lost."""
    done = threading.Event()

    def follow() -> None:
        with tqdm(total=steps, unit="step", mininterval=1.0) as bar:
            finished = False
            while not finished:
                finished = done.wait(_LOOK_EVERY)
                if rows := read_rows(folder / TRAINING):
                    bar.n = int(rows[-1]["step"])
                    bar.set_description(f"loss {rows[-1]['loss']:.3f}")

    thread = threading.Thread(target=follow, daemon=True)
    if progress:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if progress:
            thread.join()
