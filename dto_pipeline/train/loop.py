"""The training loop, in this process or in workers of Ray Train (Ray is used only here).

Every start, also after a crash or in a worker that replaces a lost one, goes on from the newest checkpoint that can be
read. docs/training.md lists the files of a training's folder.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dto_pipeline.config_tree import describe_difference
from dto_pipeline.data.files import take_lock, write_bytes_atomic, write_json_atomic
from dto_pipeline.models.body import load_body
from dto_pipeline.reading import read_regular
from dto_pipeline.train import checkpoint as files
from dto_pipeline.train.checkpoint import Checkpoint, Position, TrainError
from dto_pipeline.train.config import TrainConfig
from dto_pipeline.train.dataset import batches_from
from dto_pipeline.train.learner import (
    Learner,
    broadcast_from_rank_0,
    count_processes,
    evaluate,
    mean_over_processes,
    own_rank,
)

TRAINING, HELD_OUT, LOCK_FILE = "metrics.csv", "evaluation.csv", "train.lock"
FREE_OPTIONS = (
    *(f"loop.{key}" for key in ("steps", "log_every", "evaluate_every", "checkpoint_every", "gpu", "torch_threads")),
    *("loop.max_failures", "data.workers", "data.patience", "body.model_path"),  # the body's sha256 is compared
)  # may change between starts of one training (steps may be raised only); loop.workers would change the batch
_MOST_BYTES = 1 << 30  # of a metrics file: ten million rows
_LOG = logging.getLogger(__name__)
# rank, world, held out -> this rank's share of the data: a stream, or held-out batches to read repeatedly, or None
Source = Callable[[int, int, bool], Any]


def train_network(config: TrainConfig, source: Source, folder: Path, progress: bool = True) -> dict[str, float]:
    """Start or continue a training in a folder that all machines share -> the last row of the evaluation.

    With `loop.workers` it runs in Ray, which must be connected already, and `source` is pickled. Raises: TrainError:
    another process trains in the folder, it holds another training, or workers failed too often. CheckpointError: the
    folder holds checkpoints, and none can be read.
    """
    with hold_folder(folder), show_progress(folder / TRAINING, config.loop.steps) if progress else nullcontext():
        if config.loop.workers:
            _run_on_ray(config, source, folder.resolve())
        else:
            if config.loop.gpu and not torch.cuda.is_available():
                raise TrainError(f"loop.gpu is true, and torch {torch.__version__} sees no GPU here; set it to false")
            device = torch.device("cuda" if config.loop.gpu else "cpu")
            run_rank(config, source, folder, device, lambda _: None)
    rows = read_rows(folder / HELD_OUT)
    return rows[-1] if rows else {}


def run_rank(config: TrainConfig, source: Source, folder: Path, device: torch.device, report: Any) -> None:
    """Train in one of the processes, from the newest checkpoint to the last step; `report` is called in all of them at
    every checkpoint: a barrier under Ray."""
    loop, rank, world = config.loop, own_rank(), count_processes()
    learner, position = start_learner(config, folder, device)
    held_out = source(rank, world, True)  # before the first step, so that its faults are found now
    if rank == 0:
        record = {"config": config.to_dict(), "versions": files.VERSIONS, "init": learner.init}
        write_json_atomic(folder / "train.json", record)
        for name in (TRAINING, HELD_OUT):
            drop_rows(folder / name, position.step)

    def evaluate_now(step: int) -> None:
        """Evaluate, in all processes at once: if one did it alone, the others might wait longer than they are
        allowed."""
        measures = evaluate(learner.predict, held_out or (), learner.body)
        if rank == 0 and measures["images"]:
            add_row(folder / HELD_OUT, step, measures)
        elif rank == 0 and measures["skipped_images"]:
            _LOG.warning("none of the %d held-out images could be read: no evaluation", measures["skipped_images"])

    # a training may have been interrupted between a checkpoint and the evaluation that was due
    done = {0, *(row["step"] for row in read_rows(folder / HELD_OUT))}
    if broadcast_from_rank_0(is_due(position.step, loop.evaluate_every, loop.steps) and position.step not in done):
        evaluate_now(position.step)
    window, seen, began = list[dict[str, float]](), 0, position.step
    stream = batches_from(source(rank, world, False), position)
    for batch, after in itertools.islice(stream, loop.steps - position.step):
        window.append(learner.step(batch, position.step))
        position, seen = after, seen + sum(image_id != "" for image_id in batch.image_ids)
        if is_due(position.step, loop.log_every, loop.steps):
            if rank == 0:
                sums = {key: sum(row[key] for row in window) for key in window[0]}
                means = {k: v if k.startswith("skipped_") else v / len(window) for k, v in sums.items()}
                add_row(folder / TRAINING, position.step, means | {"rate": window[-1]["rate"]})
            window.clear()
        saves = is_due(position.step, loop.checkpoint_every, loop.steps)
        if saves and not began and not mean_over_processes(torch.tensor(float(seen), device=device)):
            if position.step == loop.steps:  # shorter than an epoch
                last = f", the last: {batch.skipped[-1]}" if batch.skipped else ""  # of another process
                advice = "is data.images the folder of the photographs of data.labels?"
                raise TrainError(f"none of the images of {loop.steps} steps could be used{last}; {advice}")
            saves = False  # the next start would go on from this checkpoint
        if saves and rank == 0:  # before an evaluation, which may fail
            state = (learner.network.state_dict(), learner.optimizer.state_dict(), position)
            files.save_checkpoint(folder, Checkpoint(config, learner.init, *state, files.VERSIONS, learner.body.sha256))
        if is_due(position.step, loop.evaluate_every, loop.steps):
            evaluate_now(position.step)
        if saves:
            report({"step": position.step})


def is_due(step: int, every: int, last: int) -> bool:
    """True at multiples of `every` (0 = never) and at the last step."""
    return step == last or (every > 0 and step % every == 0)


def start_learner(config: TrainConfig, folder: Path, device: torch.device) -> tuple[Learner, Position]:
    """Network and optimiser from the newest checkpoint that rank 0 can read, or new ones from `loop.seed`. Raises:
    CheckpointError: there are checkpoints, but none can be used. TrainError: other options, or another body."""
    if device.type == "cpu":
        torch.set_num_threads(config.loop.torch_threads)
    torch.manual_seed(config.loop.seed)
    newest = files.read_checkpoint(folder) if own_rank() == 0 and files.list_checkpoints(folder) else None
    step = broadcast_from_rank_0(newest.position.step if newest else None)
    if step is None:
        network, init = files.begin_network(config)
        body = load_body(config.body.model_path, config.body.kid_axis)
        return Learner(config, network, body, device, init), Position()
    newest = newest or files.read_checkpoint(files.checkpoint_file(folder, step))
    _compare(newest.config, config, folder)
    body = newest.load_body(config.body.model_path)
    learner = Learner(config, files.restore_network(newest), body, device, newest.init)
    learner.optimizer.load_state_dict(newest.optimizer)
    _LOG.info("resumed at step %d", step)
    return learner, newest.position


def _compare(before: TrainConfig, now: TrainConfig, folder: Path) -> None:
    """Raises: TrainError: the training in the folder has other options."""
    differing = describe_difference(before.to_dict(), now.to_dict())
    free = (*FREE_OPTIONS, *(["loop.workers"] if max(before.loop.workers, now.loop.workers) < 2 else []))
    if other := "; ".join(line for line in differing if line.partition(":")[0] not in free):
        raise TrainError(f"{folder} holds another training ({other}); choose another folder")
    if now.loop.steps < before.loop.steps:
        found = f"loop.steps is {now.loop.steps}, this training began with {before.loop.steps}"
        raise TrainError(f"{folder}: {found}; it may be raised, not lowered: choose another folder")


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, made if missing, against other trainings. On some file systems a lock does not reach other
    machines. Raises: TrainError: another process, which is named, holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as stream:
        try:
            locked = take_lock(stream)
        except BlockingIOError as error:
            stream.seek(0)
            other = stream.read().strip() or "another process"
            raise TrainError(f"{folder} is in use by {other}; wait for it, end it, or choose another") from error
        if not locked:
            _LOG.warning("%s: no file locks here; make sure that only one training runs in this folder", folder)
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


def drop_rows(path: Path, done: int) -> None:
    """Drop the rows of steps after `done`, so that a repeated step has one row."""
    kept = [row for row in read_rows(path) if row["step"] <= done]
    if kept:
        write_bytes_atomic(path, "".join([_line(kept[0]), *(_line(row.values()) for row in kept)]).encode())
    else:
        path.unlink(missing_ok=True)


def add_row(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Append a row; the first row sets the columns, missing values are NaN. Only one process may write."""
    row = {"step": step, **values}
    with path.open("a+") as stream:
        stream.seek(0)
        head = stream.readline()
        columns = head.strip().split(",") if head else row
        stream.write(("" if head else _line(row)) + _line(row.get(key, math.nan) for key in columns))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, without half-written or damaged ones; [] where there is no file."""
    try:
        whole = read_regular(path, _MOST_BYTES).decode(errors="replace").rpartition("\n")[0]
    except FileNotFoundError:
        return []
    rows = []
    for row in csv.DictReader(whole.splitlines()):
        with suppress(ValueError, TypeError):  # no numbers, too few or too many
            rows.append({name: float(value) for name, value in row.items()})
    return rows


def _line(values: Iterable[str | float]) -> str:
    return ",".join(value if isinstance(value, str) else f"{value:.9g}" for value in values) + "\n"


@contextmanager
def show_progress(metrics: Path, steps: int) -> Iterator[None]:
    """A progress bar that follows the metrics file, which this process or a worker writes."""
    ended, begun = threading.Event(), [0, *(int(row["step"]) for row in read_rows(metrics))][-1]

    def follow() -> None:
        with tqdm(total=steps, initial=begun, unit="step", mininterval=5.0) as bar:  # each update reads all rows
            is_last = False
            while not is_last:
                is_last = ended.wait(bar.mininterval)
                for row in read_rows(metrics)[-1:]:
                    bar.n = int(row["step"])
                    bar.set_description(f"loss {row['loss']:.3f}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run_on_ray(config: TrainConfig, source: Source, folder: Path) -> None:
    """`run_rank` in `loop.workers` workers of Ray Train, which restarts them when one is lost."""
    import ray.train.torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    if files.list_checkpoints(folder):  # errors are raised here: those of workers stay in Ray's logs
        _compare(files.read_checkpoint(folder).config, config, folder)
    loop, threads, here = config.loop, str(config.loop.torch_threads), Path.cwd()

    def work() -> None:
        with suppress(OSError):  # a machine may lack it; Ray begins elsewhere, and options name relative paths
            os.chdir(here)
        run_rank(config, source, folder, ray.train.torch.get_device(), ray.train.report)

    trainer = ray.train.torch.TorchTrainer(
        work,
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if loop.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=loop.workers, use_gpu=loop.gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees the class of the older API
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=loop.max_failures),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise TrainError(
            f"training failed more than {loop.max_failures} times (loop.max_failures): {last}; the newest checkpoint "
            "is kept, start again to go on"
        ) from error
