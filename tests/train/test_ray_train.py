"""Real workers of Ray Train: they learn what one process learns, and a killed one costs no more than it had done."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dto_pipeline.data.labels import LabelsError
from dto_pipeline.train.checkpoint import TrainError, list_checkpoints, read_checkpoint
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.loop import HELD_OUT, TRAINING, read_rows, run_rank, train_network
from tests.ray_cluster import RayNodes
from tests.train.small_crowds import SMALL, BatchSource, BatchStream, standing_batch, tiny_config

pytestmark = pytest.mark.slow
BEGUN, LAST = 4, 14  # steps done before there are two workers, and in all
OPTIONS = SMALL | {"loop__log_every": 1, "loop__evaluate_every": 0}


@pytest.fixture(scope="module")
def data() -> TrainBatch:
    """Four images of noise with one or two standing people each, one without a camera."""
    batch = standing_batch([[(-0.4, 3.0), (0.4, 3.3)], [(0.0, 4.0)], [(0.3, 2.5)], [(-0.3, 5.0), (0.5, 5.5)]])
    focals = batch.targets.image_focals * torch.tensor([1, 1, 0, 1])
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, image_focals=focals))


@dataclasses.dataclass(frozen=True)
class WatchedSource(BatchSource):
    """Writes down who begins where and evaluates how many images; takes its time."""

    notes: Path = Path()

    def training(self, rank: int, world: int) -> BatchStream:
        source = self

        class Slow(BatchStream):
            def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
                source.note(f"begins-{world}-{rank}", f"{os.getpid()} {epoch} {start_step}")
                for batch in super().epoch(epoch, start_step):
                    time.sleep(0.1)
                    yield batch

        return Slow(self.data, self.images, rank, world)

    def held_out(self, rank: int, world: int) -> list[TrainBatch]:
        share = super().held_out(rank, world)
        self.note(f"evaluates-{world}-{rank}", str(sum(len(batch.image_ids) for batch in share)))
        return share

    def note(self, name: str, line: str) -> None:
        with (self.notes / name).open("a") as stream:
            stream.write(f"{line}\n")

    def noted(self, name: str) -> list[list[int]]:
        return [[int(word) for word in line.split()] for line in (self.notes / name).read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Life:
    """One training by two workers that began with a damaged checkpoint and lost a worker, and the same by one."""

    folder: Path
    alone: Path
    source: WatchedSource
    log: str


@pytest.fixture(scope="module")
def life(data: TrainBatch, tmp_path_factory: pytest.TempPathFactory, connected: RayNodes) -> Life:
    place = tmp_path_factory.mktemp("life")
    folder, alone = place / "training", place / "alone"
    torn = dataclasses.replace(data, skipped=("x/torn.jpg: torn",))
    source, whole = WatchedSource(torn, 1, place), WatchedSource(torn, 2, place)
    config = tiny_config(loop__steps=LAST, loop__checkpoint_every=2, loop__workers=2, **OPTIONS)
    one_process = dataclasses.replace(config, loop=dataclasses.replace(config.loop, workers=0))
    train_network(one_process, whole, alone, progress=False)

    def interrupt(report: dict[str, int]) -> None:
        if report["step"] == BEGUN:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rank(config, whole, folder, torch.device("cpu"), interrupt)
    newest = list_checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])

    def kill_after_another_checkpoint() -> None:
        while list_checkpoints(folder)[-1].name <= newest.name:
            time.sleep(0.05)
        os.kill(source.noted("begins-2-1")[0][0], signal.SIGKILL)

    log, said = logging.StreamHandler(io.StringIO()), logging.getLogger("dto_pipeline")
    said.addHandler(log)
    killer = threading.Thread(target=kill_after_another_checkpoint, daemon=True)
    killer.start()
    with pytest.MonkeyPatch.context() as patch:
        # a busy machine may need more than Ray Train's minute to start two workers
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
        train_network(config, source, folder, progress=False)
    killer.join(timeout=10)
    said.removeHandler(log)
    return Life(folder, alone, source, log.stream.getvalue())


def test_two_workers_learn_what_one_process_learns_from_batches_twice_as_large(life: Life) -> None:
    for name in (TRAINING, HELD_OUT):
        rows = [read_rows(folder / name) for folder in (life.alone, life.folder)]
        for alone, shared in zip(*rows, strict=True):
            skipped = 1 if shared["step"] <= BEGUN - 2 else 2  # one of each worker
            assert shared == pytest.approx(alone | {"skipped_images": skipped}, rel=2e-3, abs=1e-5, nan_ok=True)
    weights = [read_checkpoint(folder).weights for folder in (life.alone, life.folder)]
    apart = [float((weights[0][name] - weights[1][name]).abs().mean()) for name in weights[0]]
    assert max(apart) < 3e-4  # of up to 5e-3 that they move; Adam enlarges rounding of tiny gradients


def test_each_worker_evaluates_its_share_of_the_images(life: Life) -> None:
    shares = {path.name: life.source.noted(path.name)[0] for path in life.source.notes.glob("evaluates-*")}
    assert shares == {"evaluates-1-0": [4], "evaluates-2-0": [2], "evaluates-2-1": [2]}


def test_all_workers_go_on_from_the_same_checkpoint_where_the_newest_is_damaged(life: Life) -> None:
    assert f"step-{BEGUN - 2:08d}.pt instead" in life.log
    first = [begun(life.source, rank)[0] for rank in (0, 1)]
    assert first == [BEGUN - 2, BEGUN - 2]


def test_a_killed_worker_is_replaced_and_training_goes_on_from_the_checkpoint(life: Life) -> None:
    again = [begun(life.source, rank)[1:] for rank in (0, 1)]
    assert again[0] == again[1]
    assert len(again[0]) == 1  # both were started again, once
    assert again[0][0] >= BEGUN
    assert read_checkpoint(life.folder).position.step == LAST
    assert [row["step"] for row in read_rows(life.folder / TRAINING)] == list(range(1, LAST + 1))  # each is told once


def begun(source: WatchedSource, rank: int) -> list[int]:
    """The steps at which processes of a rank began."""
    steps, known = [], set()
    for pid, epoch, step in source.noted(f"begins-2-{rank}"):
        if pid not in known:
            steps.append(2 * epoch + step)
        known.add(pid)
    return steps


@dataclasses.dataclass(frozen=True)
class ReadsAndFails(BatchSource):
    """Fails with what a file beside the command says."""

    def __call__(self, rank: int, world: int, held_out: bool) -> BatchStream:
        raise LabelsError(Path("labels/said.txt").read_text())


def test_workers_read_relative_paths_and_what_ends_them_is_told_in_a_sentence(
    data: TrainBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: RayNodes
) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/said.txt").write_text("shard 7 is damaged")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    config = tiny_config(loop__workers=1, loop__max_failures=0, **OPTIONS)
    with pytest.raises(TrainError, match=r"failed more than 0 times .*: shard 7 is damaged; the newest checkpoint"):
        train_network(config, ReadsAndFails(data, 1), Path("trained"), progress=False)
