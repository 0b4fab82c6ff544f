"""The training loop: what lies in a training's folder, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.checkpoint import CheckpointError, Position, list_checkpoints, read_checkpoint, restore_network
from dto_pipeline.train.learner import TrainingDiverged, learning_rate
from dto_pipeline.train.loop import TrainError, start_learner, train_network
from dto_pipeline.train.records import HELD_OUT, TRAINING, Records, read_rows
from dto_pipeline.train.source import batches_from
from tests.train.small_crowds import BatchSource, BatchStream, tiny_config

CPU = torch.device("cpu")
SMALL = {
    "encoder__width": 32,
    "encoder__layers": 1,
    "model__width": 32,
    "model__layers": 1,
    "model__queries": 6,
    "loop__log_every": 2,
    "loop__checkpoint_every": 2,
    "loop__evaluate_every": 0,
    "loop__pictures": 1,
}


@pytest.fixture(scope="module")
def data() -> TrainBatch:
    """Four images of noise with one or two standing people each."""
    from tests.train.known_predictions import standing_batch

    batch = standing_batch([[(-0.4, 3.0), (0.4, 3.3)], [(0.0, 4.0)], [(0.3, 2.5)], [(-0.3, 5.0), (0.5, 5.5)]])
    generator = torch.Generator().manual_seed(3)
    return dataclasses.replace(batch, image=torch.rand(4, 3, 96, 96, generator=generator))


class Interrupted(Exception):
    """What the stream below raises."""


@dataclasses.dataclass(frozen=True)
class StoppingSource(BatchSource):
    """Stops after so many batches, as a killed process does."""

    batches: int = 0

    def training(self, rank: int, world: int) -> BatchStream:
        source = self

        class Stopping(BatchStream):
            given = 0

            def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
                for batch in super().epoch(epoch, start_step):
                    if self.given == source.batches:
                        raise Interrupted
                    self.given += 1
                    yield batch

        return Stopping(self.data, self.images, rank, world)


def test_a_training_leaves_checkpoint_metrics_events_and_pictures(data: TrainBatch, tmp_path: Path) -> None:
    measures = train_network(tiny_config(loop__steps=4, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002.pt", "step-00000004.pt"]
    assert [row["step"] for row in read_rows(tmp_path / TRAINING)] == [2, 4]
    assert [row["step"] for row in read_rows(tmp_path / HELD_OUT)] == [4]
    assert measures["persons"] == 6
    assert (tmp_path / "pictures" / "step-00000004" / "00.png").exists()
    assert list((tmp_path / "tensorboard").glob("events.*"))


class UnwatchedSource(BatchSource):
    """Nothing is held out."""

    def held_out(self) -> list[TrainBatch]:
        return []


def test_a_training_without_held_out_images_ends_without_an_evaluation(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=2, **SMALL)
    assert train_network(config, UnwatchedSource(data, 2), tmp_path, progress=False) == {}
    assert len(list_checkpoints(tmp_path)) == 1
    assert not (tmp_path / HELD_OUT).exists()


def test_an_interrupted_training_ends_with_the_same_weights(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=6, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path / "whole", progress=False)
    with pytest.raises(Interrupted):  # one step after the checkpoint of step 2, in the middle of an epoch
        train_network(config, StoppingSource(data, 2, batches=3), tmp_path / "cut", progress=False)
    train_network(config, BatchSource(data, 2), tmp_path / "cut", progress=False)
    whole, cut = (read_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert whole.position == cut.position == Position(step=6, epoch=2, batch=2)
    for name, weight in whole.weights.items():
        assert torch.equal(weight, cut.weights[name]), name
    rows = [read_rows(tmp_path / name / TRAINING) for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_a_finished_training_does_nothing_more(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=2, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    before = list_checkpoints(tmp_path)[-1].stat().st_mtime_ns
    train_network(config, StoppingSource(data, 2, batches=0), tmp_path, progress=False)
    assert list_checkpoints(tmp_path)[-1].stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_difference(data: TrainBatch, tmp_path: Path) -> None:
    train_network(tiny_config(loop__steps=1, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    with pytest.raises(TrainError, match=r"loss\.pose: 5\.0 -> 1\.0"):
        train_network(tiny_config(loop__steps=1, loss__pose=1.0, **SMALL), BatchSource(data, 2), tmp_path, False)
    faster = tiny_config(loop__steps=1, loop__torch_threads=2, data__workers=0, **SMALL)
    train_network(faster, BatchSource(data, 2), tmp_path, progress=False)  # how it runs may change


def test_a_checkpoint_gives_the_trained_network_without_any_other_file(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=2, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    learner, _ = start_learner(config, tmp_path, CPU)
    again = restore_network(read_checkpoint(list_checkpoints(tmp_path)[-1]))
    with torch.no_grad():
        transl = again(data.image, data.intrinsics).transl
    assert torch.equal(transl, learner.predict(data).transl)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    from dto_pipeline.data.torch_files import TorchFileError

    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pt")
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04half")
    with pytest.raises(TorchFileError, match=r"half\.pt"):
        read_checkpoint(tmp_path / "half.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="another program"):
        read_checkpoint(tmp_path / "other.pt")


def test_half_a_row_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for step in (1, 2, 3):
        records.add(TRAINING, step, {"loss": step / 2})
    records.close()
    with (tmp_path / TRAINING).open("a") as stream:
        stream.write("4")
    Records(tmp_path, done=2).close()
    assert read_rows(tmp_path / TRAINING) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


def test_a_step_without_finite_gradient_changes_nothing_and_many_stop_the_training(data: TrainBatch) -> None:
    learner, _ = start_learner(tiny_config(**SMALL), Path("nowhere"), CPU)
    before = {name: weight.clone() for name, weight in learner.network.state_dict().items()}
    broken = dataclasses.replace(data, image=torch.full_like(data.image, float("nan")))
    assert learner.step(broken, 0)["skipped_step"] == 1
    assert all(torch.equal(weight, before[name]) for name, weight in learner.network.state_dict().items())
    for number in range(1, 9):
        learner.step(broken, number)
    with pytest.raises(TrainingDiverged, match=r"loop\.rate"):
        learner.step(broken, 9)


def test_bfloat16_learns_too(data: TrainBatch) -> None:
    learner, _ = start_learner(tiny_config(loop__precision="bfloat16", loop__steps=20, **SMALL), Path("nowhere"), CPU)
    losses = [learner.step(data, step)["loss"] for step in range(12)]
    assert losses[-1] < losses[0]
    assert learner.predict(data).transl.dtype == torch.float32


def test_the_rate_rises_and_falls() -> None:
    loop = tiny_config(loop__warm_up=10, loop__steps=110, loop__rate=1.0, loop__last_rate=0.1).loop
    rates = [learning_rate(step, loop) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_batches_go_on_through_epochs_from_any_position(data: TrainBatch) -> None:
    stream = BatchStream(data, 2, 0, 1)
    walk = batches_from(stream, Position())
    ends = [next(walk)[1] for _ in range(3)]
    assert ends == [Position(1, 0, 1), Position(2, 0, 2), Position(3, 1, 1)]
    batch, _ = next(batches_from(stream, ends[0]))
    assert torch.equal(batch.image, data.image[2:])
