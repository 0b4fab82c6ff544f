"""The training loop: what lies in a training's folder, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dto_pipeline.config import STAND_IN_BODY
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.torch_files import TorchFileError
from dto_pipeline.models.body import BodyModelError, load_body
from dto_pipeline.models.networks import locate_body
from dto_pipeline.train import loop
from dto_pipeline.train.checkpoint import (
    CheckpointError,
    Position,
    TrainError,
    list_checkpoints,
    read_checkpoint,
    restore_network,
    save_checkpoint,
)
from dto_pipeline.train.config import AugmentConfig, DataConfig
from dto_pipeline.train.dataset import TrainBatch, batches_from, blank_sample, collate_samples
from dto_pipeline.train.learner import learning_rate
from dto_pipeline.train.loop import (
    HELD_OUT,
    TRAINING,
    add_row,
    drop_rows,
    hold_folder,
    read_rows,
    show_progress,
    start_learner,
    train_network,
)
from dto_pipeline.train.targets import ImageLabels, Rules
from tests.small_disks import files_no_larger_than, small_disk
from tests.train.small_crowds import SMALL as SMALLEST
from tests.train.small_crowds import BatchSource, BatchStream, label_batch, standing_batch, tiny_config, true_labels

CPU = torch.device("cpu")
SMALL = SMALLEST | {"loop__log_every": 2, "loop__checkpoint_every": 2}


@pytest.fixture(scope="module")
def data() -> TrainBatch:
    """Four images of noise with one or two standing people each."""
    return standing_batch([[(-0.4, 3.0), (0.4, 3.3)], [(0.0, 4.0)], [(0.3, 2.5)], [(-0.3, 5.0), (0.5, 5.5)]])


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


def test_a_training_leaves_checkpoints_and_metrics(data: TrainBatch, tmp_path: Path) -> None:
    measures = train_network(tiny_config(loop__steps=4, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002.pt", "step-00000004.pt"]
    assert [row["step"] for row in read_rows(tmp_path / TRAINING)] == [2, 4]
    assert [row["step"] for row in read_rows(tmp_path / HELD_OUT)] == [4]
    assert measures["persons"] == 6


class UnwatchedSource(BatchSource):
    """Nothing is held out."""

    def held_out(self, rank: int, world: int) -> list[TrainBatch]:
        return []


def test_a_training_without_held_out_images_ends_without_an_evaluation(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=2, **SMALL)
    assert train_network(config, UnwatchedSource(data, 2), tmp_path, progress=False) == {}
    assert len(list_checkpoints(tmp_path)) == 1
    assert not (tmp_path / HELD_OUT).exists()


def test_an_interrupted_training_ends_with_the_same_weights_and_a_row_for_every_step(
    data: TrainBatch, tmp_path: Path
) -> None:
    config = tiny_config(loop__steps=6, **SMALL | {"loop__log_every": 1})
    train_network(config, BatchSource(data, 2), tmp_path / "whole", progress=False)
    with pytest.raises(Interrupted):  # one step after the checkpoint of step 2, in the middle of an epoch
        train_network(config, StoppingSource(data, 2, batches=3), tmp_path / "cut", progress=False)
    assert [row["step"] for row in read_rows(tmp_path / "cut" / TRAINING)] == [1, 2, 3]
    train_network(config, BatchSource(data, 2), tmp_path / "cut", progress=False)
    whole, cut = (read_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert whole.position == cut.position == Position(step=6, epoch=2, batch=2)
    for name, weight in whole.weights.items():
        assert torch.equal(weight, cut.weights[name]), name
    rows = [read_rows(tmp_path / name / TRAINING) for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]


@dataclasses.dataclass(frozen=True)
class FailingHeldOut(BatchSource):
    """Its held-out images cannot be read this time."""

    def held_out(self, rank: int, world: int) -> Iterable[TrainBatch]:  # type: ignore[override]
        def walk() -> Iterator[TrainBatch]:
            raise Interrupted
            yield

        return walk()


def test_an_evaluation_that_was_interrupted_is_made_up_for(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=4, **SMALL | {"loop__evaluate_every": 2})
    train_network(config, BatchSource(data, 2), tmp_path / "whole", progress=False)
    for _ in range(2):  # at step 2, and once more instead of the steps after it
        with pytest.raises(Interrupted):
            train_network(config, FailingHeldOut(data, 2), tmp_path / "cut", progress=False)
        assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["step-00000002.pt"]
    measures = train_network(config, BatchSource(data, 2), tmp_path / "cut", progress=False)
    assert (tmp_path / "cut" / HELD_OUT).read_text() == (tmp_path / "whole" / HELD_OUT).read_text()
    assert measures["step"] == 4


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
        transl = again(data.images, data.targets.intrinsics[:, :2, 2]).transl
    assert torch.equal(transl, learner.predict(data).transl)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pt")
    for start in (b"PK\x03\x04half", b"encoder:\n  width: 3\n", b"a note\n", b""):
        (tmp_path / "half.pt").write_bytes(start)
        with pytest.raises(TorchFileError, match=r"half\.pt"):
            read_checkpoint(tmp_path / "half.pt")
    others = {"neither a checkpoint nor": [], "another program": {"weights": {}}}
    others[r"other\.pt is 'dto-checkpoint/1', not dto-checkpoint/2; use the version that wrote it, or a new f"] = {
        "format": "dto-checkpoint/1"
    }
    for sentence, content in others.items():
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=sentence):
            read_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_that_lacks_something_is_refused_with_file_and_key(data: TrainBatch, tmp_path: Path) -> None:
    train_network(tiny_config(loop__steps=1, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    whole = torch.load(list_checkpoints(tmp_path)[-1], weights_only=True)
    path = tmp_path / "less.pt"
    spoilt = [("position", "x"), ("versions", None), ("body_sha256", 1), ("position", {"step": 1})]
    spoilt += [("position", whole["position"] | {"step": -1})]
    contents = [(key, whole | {key: value}) for key, value in spoilt]
    keys = ("config", "init", "weights", "optimizer", "position", "versions", "body_sha256")
    contents += [(key, {name: value for name, value in whole.items() if name != key}) for key in keys]
    for key, content in contents:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=rf"less\.pt: {key} is missing or not of the type"):
            read_checkpoint(path)
    torch.save(whole | {"config": {"loop": {"speed": 1}}}, path)
    with pytest.raises(CheckpointError, match=r"less\.pt: its config cannot be used: .*speed"):
        read_checkpoint(path)
    more, other = {"more": torch.ones(1)}, {"conf_head.weight": torch.ones(2, 48)}
    changed = {"missing": {}, r"unexpected \(1\): more": whole["weights"] | more, "shape": whole["weights"] | other}
    for words, weights in changed.items():
        torch.save(whole | {"weights": weights}, path)
        with pytest.raises(CheckpointError, match=rf"less\.pt does not fit its own config: .*{words}"):
            restore_network(read_checkpoint(path))


def test_a_checkpoint_that_describes_a_giant_is_refused_before_anything_is_built(
    data: TrainBatch, tmp_path: Path
) -> None:
    train_network(tiny_config(loop__steps=1, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    whole = torch.load(list_checkpoints(tmp_path)[-1], weights_only=True)
    path = tmp_path / "giant.pt"
    for part, key, value in (
        ("model", "layers", 10_000_000),
        ("model", "layers", 20),
        ("model", "queries", 1 << 40),
        ("model", "width", 1 << 30),
        ("encoder", "layers", 10_000_000),
        ("encoder", "layers", 60),
        ("encoder", "width", True),
    ):
        content = copy.deepcopy(whole)
        content["config"][part][key] = value
        torch.save(content, path)
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=r"giant\.pt"):
            restore_network(read_checkpoint(path))
        assert time.monotonic() - start < 10


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def change_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change_a_weight, lambda path: path.write_bytes(b"")])
def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken_and_it_is_written_again(
    data: TrainBatch, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(loop__steps=4, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    whole, newest = read_checkpoint(tmp_path).weights, list_checkpoints(tmp_path)[-1]
    damage(newest)
    with pytest.raises(TorchFileError, match=r"step-00000004\.pt is no file of tensors or is damaged"):
        read_checkpoint(newest)
    assert read_checkpoint(tmp_path).position.step == 2  # to predict: nothing is moved
    assert newest.exists()
    caplog.clear()
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    (said,) = caplog.messages
    assert "step-00000004.pt is no file of tensors or is damaged" in said
    assert said.endswith("step-00000002.pt instead")
    for name, weight in read_checkpoint(newest).weights.items():
        assert torch.equal(weight, whole[name]), name
    assert [row["step"] for row in read_rows(tmp_path / TRAINING)] == [2, 4]


def test_a_training_does_not_begin_anew_where_no_checkpoint_can_be_read(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=4, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    for path in list_checkpoints(tmp_path):
        cut(path)
    for _ in range(2):  # the second start says the same
        with pytest.raises(
            CheckpointError, match=r"no checkpoint can be read: .*00000004.*00000002.*train anew name a new folder"
        ):
            train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    assert len(list_checkpoints(tmp_path)) == 2


def test_a_full_disk_costs_the_new_checkpoint_only(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=4, **SMALL)
    with pytest.raises(Interrupted):
        train_network(config, StoppingSource(data, 2, batches=3), tmp_path, progress=False)
    before = list_checkpoints(tmp_path)[-1].read_bytes()
    sentence = r"step-00000004\.pt could not be written: File too large; make room.* go on from step-00000002\.pt"
    with files_no_larger_than(200_000), pytest.raises(CheckpointError, match=sentence):
        train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002.pt"]
    assert list_checkpoints(tmp_path)[0].read_bytes() == before
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    assert read_checkpoint(tmp_path).position.step == 4


def test_a_disk_too_small_for_the_first_checkpoint_is_said(data: TrainBatch, tmp_path: Path) -> None:
    config, folder = tiny_config(loop__steps=1, **SMALL), tmp_path / "disk" / "training"
    with small_disk(folder.parent, "400k") as remount:
        sentence = "No space left on device; make room, or make it writable, and start again to begin again"
        with pytest.raises(CheckpointError, match=sentence):
            train_network(config, BatchSource(data, 2), folder, progress=False)
        assert not list((folder / "checkpoints").iterdir())
        remount("size=10m")
        train_network(config, BatchSource(data, 2), folder, progress=False)
        checkpoint = read_checkpoint(folder)
        remount("ro")
        with pytest.raises(CheckpointError, match=r"Read-only file system.* go on from step-00000001\.pt"):
            save_checkpoint(folder, dataclasses.replace(checkpoint, position=Position(2, 0, 2)))


def test_a_step_without_people_has_the_same_losses_as_others_in_stage_one(tmp_path: Path) -> None:
    data = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], []])
    for every, positive in ((1, [False, True]), (2, [True])):  # of each step, and of their mean
        config = tiny_config(**{**SMALL, "loop__steps": 2, "loop__log_every": every, "model__denoising": 2})
        train_network(config, BatchSource(data, 1), tmp_path / str(every), progress=False)
        rows = read_rows(tmp_path / str(every) / TRAINING)
        assert sorted(row["poses_dn"] > 0 for row in rows) == positive


def test_a_second_training_in_the_same_folder_is_told_who_is_at_work(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=1, **SMALL)
    with hold_folder(tmp_path), pytest.raises(TrainError, match=rf"in use by pid {os.getpid()} on "):
        train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)


def test_what_a_killed_writer_left_of_a_checkpoint_is_removed(data: TrainBatch, tmp_path: Path) -> None:
    train_network(tiny_config(loop__steps=1, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    left = tmp_path / "checkpoints" / f".step-00000002.pt.tmp-{'0' * 32}"
    left.write_bytes(b"half")
    train_network(tiny_config(loop__steps=2, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    assert not left.exists()


def test_another_body_model_under_the_same_path_is_refused(data: TrainBatch, tmp_path: Path) -> None:
    config = tiny_config(loop__steps=1, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    save_checkpoint(tmp_path, dataclasses.replace(read_checkpoint(tmp_path), body_sha256="f" * 64))
    with pytest.raises(BodyModelError, match=r"trained with ffffffffffffffff; name the right one"):
        train_network(config, BatchSource(data, 2), tmp_path, progress=False)


def test_a_body_model_that_was_moved_is_the_same_one(data: TrainBatch, tmp_path: Path) -> None:
    train_network(tiny_config(loop__steps=1, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    moved = shutil.copy(locate_body(STAND_IN_BODY), tmp_path / "moved.npz")
    config = tiny_config(loop__steps=2, body__model_path=moved, **SMALL)
    train_network(config, BatchSource(data, 2), tmp_path, progress=False)
    assert read_checkpoint(tmp_path).position.step == 2


def test_half_a_row_of_a_killed_process_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / TRAINING
    for step in (1, 2, 3):
        add_row(path, step, {"loss": step / 2})
    with path.open("a") as stream:
        stream.write("4,2.0")  # its line has no end: it may have been 2.01
    assert len(read_rows(path)) == 3
    drop_rows(path, 2)
    assert read_rows(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


def test_a_file_of_an_older_version_keeps_its_columns(tmp_path: Path) -> None:
    (tmp_path / TRAINING).write_text("step,loss,old,rate\n1,0.5,7,0.1\n")
    add_row(tmp_path / TRAINING, 2, {"new": 3.0, "rate": 0.2, "loss": 0.4})
    assert read_rows(tmp_path / TRAINING)[1] == pytest.approx(
        {"step": 2, "loss": 0.4, "old": math.nan, "rate": 0.2}, nan_ok=True
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(data: TrainBatch, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"loop\.gpu is true, and torch .* sees no GPU here"):
        train_network(tiny_config(loop__gpu=True, **SMALL), BatchSource(data, 2), tmp_path, progress=False)


def test_the_bar_follows_what_any_process_wrote_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_row(tmp_path / TRAINING, 3, {"loss": 0.5})
    with show_progress(tmp_path / TRAINING, 8):
        add_row(tmp_path / TRAINING, 6, {"loss": 0.25})
    told = capsys.readouterr().err
    assert all(part in told for part in ("3/8", "loss 0.250", "6/8"))


def test_steps_may_be_raised_and_not_lowered(data: TrainBatch, tmp_path: Path) -> None:
    train_network(tiny_config(loop__steps=2, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    train_network(tiny_config(loop__steps=4, **SMALL), BatchSource(data, 2), tmp_path, progress=False)
    assert read_checkpoint(tmp_path).position.step == 4
    with pytest.raises(TrainError, match=r"loop\.steps is 3, this training began with 4; it may be raised"):
        train_network(tiny_config(loop__steps=3, **SMALL), BatchSource(data, 2), tmp_path, progress=False)


def test_an_epoch_that_shows_nobody_ends_the_training(data: TrainBatch) -> None:
    empty = label_batch([image.permute(1, 2, 0).numpy() for image in data.images], [no_labels()] * 4, load_body("demo"))
    with pytest.raises(LabelsError, match="a whole epoch of 4 images had no people"):
        list(itertools.islice(batches_from(BatchStream(empty, 2, 0, 1), Position()), 5))


def test_images_none_of_which_can_be_read_end_the_training(data: TrainBatch) -> None:
    rules = Rules(load_body("demo"), DataConfig(input_size=112), AugmentConfig())
    gone = [f"x/{number}.jpg: does not exist" for number in range(2)]
    blind = collate_samples([*gone, blank_sample(rules)])

    class Blind(BatchStream):
        def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
            yield from [blind] * 3

    with pytest.raises(LabelsError, match=r"none of 6 images could be used, the first: x/0.jpg: .*data\.images"):
        list(batches_from(Blind(data, 2, 0, 1), Position()))


def test_a_training_that_ends_within_its_first_epoch_needs_an_image_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Rules(load_body("demo"), DataConfig(input_size=112), AugmentConfig())
    blind = collate_samples(["x/0.jpg: does not exist", blank_sample(rules)])
    config = tiny_config(**SMALL | {"loop__steps": 2, "loop__checkpoint_every": 1})

    class LongEpochs(BatchSource):
        def training(self, rank: int, world: int) -> BatchStream:
            stream = super().training(rank, world)
            stream.epoch = lambda *_: itertools.repeat(blind, 9)  # type: ignore[method-assign]
            return stream

    with pytest.raises(TrainError, match=r"none of the images of 2 steps could be used, the last: x/0.jpg: .*data\.im"):
        train_network(config, LongEpochs(blind, 1), tmp_path, progress=False)
    assert list((tmp_path / "checkpoints").glob("*")) == []

    monkeypatch.setattr(loop, "mean_over_processes", lambda read: read + 0.5)  # another process could read an image
    train_network(config, LongEpochs(blind, 1), tmp_path, progress=False)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2


def no_labels() -> ImageLabels:
    return true_labels(np.array([[130.0, 0, 56], [0, 130, 56], [0, 0, 1]]), *(np.zeros((0, n)) for n in (72, 11, 3)))


def test_a_step_without_finite_gradient_changes_nothing_and_many_stop_the_training(data: TrainBatch) -> None:
    learner, _ = start_learner(tiny_config(**SMALL), Path("nowhere"), CPU)
    before = {name: weight.clone() for name, weight in learner.network.state_dict().items()}
    poses = torch.full_like(data.targets.poses, float("nan"))
    broken = dataclasses.replace(data, targets=dataclasses.replace(data.targets, poses=poses))
    assert learner.step(broken, 0)["skipped_step"] == 1
    assert all(torch.equal(weight, before[name]) for name, weight in learner.network.state_dict().items())
    for number in range(1, 9):
        learner.step(broken, number)
    with pytest.raises(TrainError, match=r"loop\.rate"):
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
    assert torch.equal(batch.images[0], data.images[2])
