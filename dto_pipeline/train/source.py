"""Where a training's batches come from: the label files its config names, as streams that every process can open.

Travels to workers; holds names, not open files. Knows nothing of learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from dto_pipeline.data.label_pieces import LabelSet
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.models.body import load_body
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.checkpoint import Position
from dto_pipeline.train.config import TrainConfig
from dto_pipeline.train.data_config import NO_AUGMENTATION, AugmentConfig, DataConfig
from dto_pipeline.train.dataset import TrainingData, TrainingImages


class Stream(Protocol):
    """One process's share of the training batches."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]: ...


class Source(Protocol):
    """What the loop needs; may be pickled."""

    def training(self, rank: int, world: int) -> Stream: ...

    def held_out(self, rank: int, world: int) -> Iterable[TrainBatch]:
        """One process's share of the images kept for evaluation; may be walked through again and again."""
        ...


@dataclass(frozen=True)
class LabelSource:
    """Batches of opened label sets, see `data.label_pieces`."""

    sets: tuple[LabelSet, ...]
    config: TrainConfig

    def training(self, rank: int, world: int) -> Stream:
        """The images that are not held out, varied anew in every epoch.

        Raises:
            LabelsError: labels cannot be read, or no image is left.
        """
        data = self.config.data
        return TrainingData(self._index(data, self.config.augment, False), data, rank, world)

    def held_out(self, rank: int, world: int) -> Iterable[TrainBatch]:
        """The images kept for evaluation, as they are; none where `data.holdout` is 0.

        Raises:
            LabelsError: labels cannot be read, or no image is kept.
        """
        if self.config.data.holdout == 0:
            return ()
        data = replace(self.config.data, weights=())
        return _HeldOut(self._index(data, NO_AUGMENTATION, True), data, rank, world)

    def _index(self, data: DataConfig, augment: AugmentConfig, held_out: bool) -> TrainingImages:
        body = load_body(self.config.body.model_path, self.config.body.kid_axis)
        return TrainingImages(self.sets, body, data, augment, held_out)


@dataclass(frozen=True)
class _HeldOut:
    """Every walk has reading processes of its own, which end with it; the index is made once."""

    images: TrainingImages
    data: DataConfig
    rank: int
    world: int

    def __iter__(self) -> Iterator[TrainBatch]:
        return TrainingData(self.images, self.data, self.rank, self.world).epoch(0)


def batches_from(stream: Stream, position: Position) -> Iterator[tuple[TrainBatch, Position]]:
    """Endless batches from a position on, each with the position after it.

    Raises:
        LabelsError: an epoch has no batch, or nobody in any of them.
    """
    while True:
        before, anybody = position, False
        for batch in stream.epoch(position.epoch, position.batch):
            position = Position(position.step + 1, position.epoch, position.batch + 1)
            anybody = anybody or bool(batch.present.any())
            yield batch, position
        if position == before and position.batch == 0:
            raise LabelsError("an epoch has no images; are all data.weights 0?")
        if not anybody and before.batch == 0:
            raise LabelsError(
                f"no person was seen in the {position.batch} batches of epoch {position.epoch}, so nothing is learnt; "
                "see what was skipped, and check data.labels, data.images and data.min_joints"
            )
        position = Position(position.step, position.epoch + 1, 0)
