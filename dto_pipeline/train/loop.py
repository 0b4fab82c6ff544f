"""The training loop, and its two ways to run: in this process, or as workers of Ray Train. The only door to Ray here.

Every process runs `run_rank`: step, and at intervals metrics, a checkpoint, an evaluation (each process its share).
Checkpoints lie in the training's own folder; whoever starts, at first, after a crash or as a replacement for a lost
worker, goes on from the newest that can be read. A training's folder:

    train.json                       config, versions, what it began with (init); other options than those of how it
                                     runs refuse to resume
    train.lock                       held by the process that trains here
    checkpoints/step-00001000.pt     the newest two, see `checkpoint`
    metrics.csv, evaluation.csv      one row per interval; tensorboard/ the same as events
    pictures/step-00001000/*.png     held-out images, labels against predictions
    ray/                             Ray Train's own notes
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dto_pipeline.config import describe_difference
from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import load_body
from dto_pipeline.reading import IrregularFile, parse_json, read_regular
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.checkpoint import (
    Checkpoint,
    Position,
    begin_network,
    checkpoint_file,
    library_versions,
    list_damaged,
    read_checkpoint,
    restore_network,
    save_checkpoint,
    take_up,
)
from dto_pipeline.train.claim import hold_folder
from dto_pipeline.train.config import TrainConfig, train_config_from_dict
from dto_pipeline.train.evaluation import measure_batches, summarise
from dto_pipeline.train.learner import Learner, gather_at_first, is_first, told_by_first
from dto_pipeline.train.pictures import draw_held_out
from dto_pipeline.train.records import HELD_OUT, TRAINING, Records, read_rows
from dto_pipeline.train.source import Source, batches_from

FREE_KNOBS = {
    "loop": (
        "steps",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "pictures",
        "gpu",
        "torch_threads",
        "max_failures",
    ),
    "data": ("workers", "prefetch", "patience"),
}  # may change between starts of one training (steps: be raised); another number of loop.workers would change the batch
_LOG = logging.getLogger(__name__)
_LOOK_EVERY = 2.0  # at what workers wrote down [s]
MakeBar = Callable[[int, int], tqdm]  # of all steps and those done
Report = Callable[[dict[str, Any]], None]


class TrainError(DtoError, RuntimeError):
    """A training that cannot start or go on."""


@dataclass(frozen=True)
class Place:
    """Which of the processes that share every step this one is."""

    rank: int
    world: int
    device: torch.device


def train_network(config: TrainConfig, source: Source, folder: Path, progress: bool = True) -> dict[str, float]:
    """Train, or do what is left of a training.

    Args:
        config: all knobs; `loop.workers` decides where it runs. Ray, if asked for, must be connected already.
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
        if config.loop.workers == 0:
            device = torch.device("cuda" if config.loop.gpu else "cpu")
            run_rank(config, source, folder, Place(0, 1, device), lambda _: None, _bar if progress else None)
        else:
            _run_on_ray(config, source, folder, progress)
    rows = read_rows(folder / HELD_OUT)
    return rows[-1] if rows else {}


def run_rank(
    config: TrainConfig, source: Source, folder: Path, place: Place, report: Report, bar: MakeBar | None
) -> None:
    """What each process does from the newest checkpoint to the last step.

    Args:
        report: called by every process at every checkpoint; a barrier under Ray.
        bar: makes a progress bar of (all steps, steps done); None = no bar. Rank 0 only.
    """
    learner, position = start_learner(config, folder, place.device)
    held_out = source.held_out(place.rank, place.world)  # before the first step: what is wrong with it is said now
    lead = _Lead(learner, folder, position, bar) if place.rank == 0 else None
    try:
        if told_by_first(int(lead is not None and lead.lacks_evaluation(position.step)), place.device):
            evaluate_held_out(learner, held_out, lead.records if lead else None, position.step)
        stream = batches_from(source.training(place.rank, place.world), position)
        for batch, after in itertools.islice(stream, config.loop.steps - position.step):
            for line in batch.skipped:
                _LOG.warning("left out %s", line)
            values, position = learner.step(batch, position.step), after
            if lead is not None:
                lead.after_step(position, values)
            if is_due(position.step, config.loop.evaluate_every, config.loop.steps):
                evaluate_held_out(learner, held_out, lead.records if lead else None, position.step)
            if is_due(position.step, config.loop.checkpoint_every, config.loop.steps):
                report({"step": position.step, "loss": values["loss"]})
    finally:
        if lead is not None:
            lead.close()


def start_learner(config: TrainConfig, folder: Path, device: torch.device) -> tuple[Learner, Position]:
    """Network and optimiser from the newest checkpoint that can be read, or new ones from `loop.seed`.

    Raises:
        CheckpointError: there are checkpoints, but none can be used.
        TrainError: the body model is another one than the checkpoint's.
    """
    if device.type == "cpu":
        torch.set_num_threads(config.loop.torch_threads)
    torch.manual_seed(config.loop.seed)
    body = load_body(config.body.model_path, config.body.kid_axis)
    checkpoint = _agree_on_checkpoint(folder, device)
    if checkpoint is None:
        network, init = begin_network(config)
        if init and is_first():
            _note_init(folder, init)
        return Learner(config, network, body, device, init), Position()
    if body.sha256 != checkpoint.body_sha256:
        found = f"sha256 {body.sha256[:16]}, this training began with {checkpoint.body_sha256[:16]}"
        raise TrainError(f"the body model (body.model_path) has {found}; put the right one back")
    learner = Learner(config, restore_network(checkpoint), body, device, checkpoint.init)
    learner.optimizer.load_state_dict(checkpoint.optimizer)
    _LOG.info("resumed at step %d", checkpoint.position.step)
    return learner, checkpoint.position


def _agree_on_checkpoint(folder: Path, device: torch.device) -> Checkpoint | None:
    """What all processes go on from: the first one chooses and tells the others the step."""
    first = is_first()
    chosen = take_up(folder) if first else None
    step = told_by_first(-1 if chosen is None else chosen.position.step, device)
    if first or step < 0:
        return chosen
    return read_checkpoint(checkpoint_file(folder, step))


def evaluate_held_out(learner: Learner, held_out: Iterable[TrainBatch], records: Records | None, step: int) -> None:
    """One row of measures and the first pictures; nothing where no image is held out.

    All processes do it at once, each its share: else the others would wait longer than a process group lets them.

    Args:
        held_out: this process's share.
        records: where the row goes; None = another process writes it.
    """
    config = learner.config
    kept: list[TrainBatch] = []

    def remembered(batch: TrainBatch) -> TrainBatch:
        for line in batch.skipped:
            _LOG.warning("left out %s", line)
        if records is not None and len(kept) < config.loop.pictures and batch.image_ids[0]:
            kept.append(batch)
        return batch

    parts = measure_batches(learner.predict, map(remembered, held_out), learner.body, config.match)
    measures = summarise(gather_at_first(parts))
    if records is None:
        return
    if measures["images"]:
        records.add(HELD_OUT, step, measures)
    elif measures["skipped_images"]:
        _LOG.warning("none of the %d held-out images could be read: no evaluation", measures["skipped_images"])
    body = load_body(config.body.model_path, config.body.kid_axis)
    places = [(batch, index) for batch in kept for index in range(len(batch.image_ids))][: config.loop.pictures]
    for number, (batch, index) in enumerate(places):
        picture = draw_held_out(batch, learner.predict(batch), index, body)
        records.draw(f"{number:02d}", step, picture)


class _Lead:
    """What only the first process does: progress, metrics, checkpoints."""

    def __init__(self, learner: Learner, folder: Path, position: Position, bar: MakeBar | None) -> None:
        self._learner, self._folder = learner, folder
        self.records = Records(folder, position.step)
        self._bar = bar(learner.config.loop.steps, position.step) if bar else None
        self._window: list[dict[str, float]] = []

    def lacks_evaluation(self, step: int) -> bool:
        """True where a training was interrupted between a checkpoint and the evaluation that was due."""
        loop = self._learner.config.loop
        there = {row["step"] for row in read_rows(self._folder / HELD_OUT)}
        return step > 0 and is_due(step, loop.evaluate_every, loop.steps) and step not in there

    def after_step(self, position: Position, values: dict[str, float]) -> None:
        self._window.append(values)
        loop, step = self._learner.config.loop, position.step
        if is_due(step, loop.log_every, loop.steps):
            self.records.add(TRAINING, step, _means(self._window))
            self._window = []
        if is_due(step, loop.checkpoint_every, loop.steps):  # before an evaluation: whatever befalls it, this is kept
            save_checkpoint(self._folder, _freeze(self._learner, position))
        if self._bar is not None:
            self._bar.set_description(f"loss {values['loss']:.3f}")
            self._bar.update(1)

    def close(self) -> None:
        self.records.close()
        if self._bar is not None:
            self._bar.close()


def is_due(step: int, every: int, last: int) -> bool:
    """True at multiples of `every` (0 = never) and at the last step."""
    return step == last or (every > 0 and step % every == 0)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means by key, but counts of what was skipped are summed and rates are the last."""
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    sums = {key: sum(row[key] for row in rows) for key in ("skipped_step", "skipped_images")}
    return means | sums | {"rate": rows[-1]["rate"]}


def _freeze(learner: Learner, position: Position) -> Checkpoint:
    return Checkpoint(
        config=learner.config,
        architecture=learner.network.size.to_dict(),
        init=learner.init,
        weights=learner.network.state_dict(),
        optimizer=learner.optimizer.state_dict(),
        position=position,
        versions=library_versions(),
        body_sha256=learner.body.sha256,
    )


def _claim_folder(folder: Path, config: TrainConfig) -> None:
    """Write train.json, or refuse a folder whose training has other knobs."""
    path, wanted = folder / "train.json", _fixed_knobs(config)
    if not path.exists():
        write_json_atomic(path, {"config": config.to_dict(), "versions": library_versions()})
        return
    try:
        noted = parse_json(read_regular(path))
        before = train_config_from_dict(noted["config"])
        there = _fixed_knobs(before)
    except (ValueError, KeyError, TypeError, AttributeError, IrregularFile) as error:
        raise TrainError(f"{path} cannot be used ({error}); choose another folder, or put the file back") from error
    differing = describe_difference(there, wanted)
    if differing:
        raise TrainError(f"{folder} holds another training ({'; '.join(differing)}); choose another folder")
    if config.loop.steps < before.loop.steps:
        found = f"loop.steps is {config.loop.steps}, this training was to take {before.loop.steps}"
        raise TrainError(f"{folder}: {found}; more may be asked for, fewer not: choose another folder")
    if config.loop.steps > before.loop.steps:
        noted["config"]["loop"]["steps"] = config.loop.steps
        write_json_atomic(path, noted)


def _note_init(folder: Path, init: dict[str, Any]) -> None:
    """What the training began with, beside its config."""
    path = folder / "train.json"
    noted = parse_json(read_regular(path)) if path.exists() else {}
    write_json_atomic(path, noted | {"init": init})


def _fixed_knobs(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The knobs that must not change between starts; 0 and 1 workers share every step alike."""
    rooms = config.to_dict()
    fixed = {
        room: {key: value for key, value in knobs.items() if key not in FREE_KNOBS.get(room, ())}
        for room, knobs in rooms.items()
    }
    fixed["loop"]["workers"] = config.loop.world
    return fixed


def _bar(steps: int, done: int) -> tqdm:
    return tqdm(total=steps, initial=done, unit="step", mininterval=1.0)


def _run_on_ray(config: TrainConfig, source: Source, folder: Path, progress: bool) -> None:
    """`run_rank` in `loop.workers` workers of Ray Train, started again when one is lost."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.base_trainer import TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    take_up(folder)  # here too: what it says of damaged checkpoints is seen, what workers say stays in Ray's logs
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
        with _followed(folder, loop.steps, progress), _damage_told(folder):
            trainer.fit()
    except TrainingFailedError as error:
        raise TrainError(
            f"training failed more than {loop.max_failures} times (loop.max_failures): {_last_line(error)}; what the "
            f"newest checkpoint holds is kept, start again to go on"
        ) from error


def _run_as_ray_worker(config: TrainConfig, source: Source, folder: Path) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    run_rank(config, source, folder, place, ray.train.report, None)


@contextmanager
def _followed(folder: Path, steps: int, progress: bool) -> Iterator[None]:
    """A progress bar of what the workers write down; it may go back where one was lost."""
    done = threading.Event()

    def follow() -> None:
        with _bar(steps, 0) as bar:
            while not done.wait(_LOOK_EVERY):
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


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """Says at the end which checkpoints replacements of lost workers could not read."""
    before = list_damaged(folder)
    try:
        yield
    finally:
        for path in list_damaged(folder):
            if path not in before:
                _LOG.warning("%s could not be read when a worker was replaced; all went on from the one before", path)


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
