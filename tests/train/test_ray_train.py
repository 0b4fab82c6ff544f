"""Real workers of Ray Train: they learn what one process learns, and a killed one costs no more than it had done."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dto_pipeline.train.checkpoint import list_checkpoints, read_checkpoint
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.loop import HELD_OUT, TRAINING, read_rows, train_network
from tests.train.small_crowds import SMALL, BatchSource, BatchStream, standing_batch, tiny_config

pytestmark = pytest.mark.slow
KNOBS = SMALL | {"loop__log_every": 1}


@pytest.fixture(scope="module")
def data() -> TrainBatch:
    """Four images of noise with one or two standing people each, one without a camera."""
    batch = standing_batch([[(-0.4, 3.0), (0.4, 3.3)], [(0.0, 4.0)], [(0.3, 2.5)], [(-0.3, 5.0), (0.5, 5.5)]])
    focals = batch.targets.image_focals * torch.tensor([1, 1, 0, 1])
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, image_focals=focals))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need more than Ray Train's minute to start two workers."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")


@dataclasses.dataclass(frozen=True)
class NotedSource(BatchSource):
    """Writes down who evaluates how many images."""

    notes: Path = Path()

    def held_out(self, rank: int, world: int) -> list[TrainBatch]:
        share = super().held_out(rank, world)
        (self.notes / f"evaluates-{world}-{rank}").write_text(str(sum(len(batch.image_ids) for batch in share)))
        return share


@pytest.mark.usefixtures("connected")
def test_two_workers_learn_what_one_process_learns_from_batches_twice_as_large(
    data: TrainBatch, tmp_path: Path
) -> None:
    one = tiny_config(loop__steps=6, loop__checkpoint_every=6, **KNOBS)
    two = dataclasses.replace(one, loop=dataclasses.replace(one.loop, workers=2))
    torn = dataclasses.replace(data, skipped=("x/torn.jpg: torn",))
    train_network(one, NotedSource(torn, 2, tmp_path), tmp_path / "one", progress=False)
    train_network(two, NotedSource(torn, 1, tmp_path), tmp_path / "two", progress=False)
    for name in (TRAINING, HELD_OUT):
        rows = [read_rows(tmp_path / folder / name) for folder in ("one", "two")]
        for alone, shared in zip(*rows, strict=True):
            assert alone["skipped_images"] == 1
            expected = alone | {"skipped_images": 2}  # one of each worker
            assert shared == pytest.approx(expected, rel=2e-3, abs=1e-5, nan_ok=True)
    shares = {path.name: int(path.read_text()) for path in tmp_path.glob("evaluates-*")}
    assert shares == {"evaluates-1-0": 4, "evaluates-2-0": 2, "evaluates-2-1": 2}
    weights = [read_checkpoint(tmp_path / name).weights for name in ("one", "two")]
    apart = [float((weights[0][name] - weights[1][name]).abs().mean()) for name in weights[0]]
    assert max(apart) < 1e-4


@dataclasses.dataclass(frozen=True)
class WatchedSource(BatchSource):
    """Writes down who starts where, and takes its time."""

    notes: Path = Path()

    def training(self, rank: int, world: int) -> BatchStream:
        source = self

        class Slow(BatchStream):
            def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
                for batch in super().epoch(epoch, start_step):
                    time.sleep(0.1)
                    yield batch

        with (source.notes / f"rank-{rank}").open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return Slow(self.data, self.images, rank, world)


def kill_after_first_checkpoint(folder: Path, notes: Path) -> None:
    while not list_checkpoints(folder):
        time.sleep(0.05)
    os.kill(int((notes / "rank-1").read_text().split()[0]), signal.SIGKILL)


@pytest.mark.usefixtures("connected")
def test_a_killed_worker_is_replaced_and_training_goes_on_from_the_checkpoint(data: TrainBatch, tmp_path: Path) -> None:
    folder, notes = tmp_path / "training", tmp_path / "notes"
    notes.mkdir()
    config = tiny_config(loop__steps=24, loop__checkpoint_every=4, loop__workers=2, **KNOBS)
    killer = threading.Thread(target=kill_after_first_checkpoint, args=(folder, notes), daemon=True)
    killer.start()
    train_network(config, WatchedSource(data, 1, notes), folder, progress=False)
    killer.join(timeout=10)
    assert read_checkpoint(folder).position.step == 24
    assert len((notes / "rank-0").read_text().split()) == 2  # both were started again, once
    rows = read_rows(folder / TRAINING)
    assert [row["step"] for row in rows] == list(range(1, 25))  # each step is told once
    # nothing was learnt twice: the same rows as without the kill
    whole = dataclasses.replace(config, loop=dataclasses.replace(config.loop, workers=0))
    train_network(whole, BatchSource(data, 2), tmp_path / "whole", progress=False)
    for row, alone in zip(rows, read_rows(tmp_path / "whole" / TRAINING), strict=True):
        assert row["loss"] == pytest.approx(alone["loss"], rel=2e-2)


@pytest.mark.usefixtures("connected")
def test_all_workers_go_on_from_the_same_checkpoint_where_the_newest_is_damaged(
    data: TrainBatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(loop__steps=4, loop__checkpoint_every=2, loop__workers=2, **KNOBS)
    train_network(config, BatchSource(data, 1), tmp_path, progress=False)
    newest, whole = list_checkpoints(tmp_path)[-1], read_checkpoint(tmp_path).weights
    newest.write_bytes(newest.read_bytes()[:-1000])
    train_network(config, BatchSource(data, 1), tmp_path, progress=False)
    assert "step-00000002.pt instead" in caplog.text
    assert [row["step"] for row in read_rows(tmp_path / TRAINING)] == [1, 2, 3, 4]
    for name, weight in read_checkpoint(newest).weights.items():
        torch.testing.assert_close(weight, whole[name], msg=name)
