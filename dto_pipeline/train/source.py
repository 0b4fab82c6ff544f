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
from dto_pipeline.train.data_config import AugmentConfig, DataConfig, without_augmentation
from dto_pipeline.train.dataset import TrainingData, TrainingImages

_BLIND = 256  # images in a row from the start that could not be used, after which no more are tried


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
        return _HeldOut(self._index(data, without_augmentation(self.config.augment), True), data, rank, world)

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


@dataclass
class _Seen:
    """Whether an epoch shows anything to learn from."""

    whole: bool  # from its first batch on
    images: int = 0
    people: int = 0
    skipped: int = 0
    reason: str = ""

    def add(self, batch: TrainBatch) -> None:
        """Count a batch. Raises: LabelsError: many images were tried, and none could be used."""
        self.images += sum(image_id != "" for image_id in batch.image_ids)
        self.people += len(batch.targets.image)
        self.skipped += len(batch.skipped)
        self.reason = self.reason or next(iter(batch.skipped), "")
        if self.skipped >= _BLIND:
            self._judge_images()

    def judge_epoch(self) -> None:
        """Raises: LabelsError: a whole epoch had no image that could be used, or nobody in any."""
        if self.whole and self.skipped:
            self._judge_images()
        if self.whole and self.images and not self.people:
            raise LabelsError(
                f"a whole epoch of {self.images} images showed nobody; look at data.labels and data.select, or loosen "
                "augment and data.min_joints"
            )

    def _judge_images(self) -> None:
        if not self.images:
            raise LabelsError(
                f"none of {self.skipped} images could be used, the first: {self.reason}; is data.images where the "
                "photographs of data.labels are?"
            )


def batches_from(stream: Stream, position: Position) -> Iterator[tuple[TrainBatch, Position]]:
    """Endless batches from a position on, each with the position after it.

    Raises:
        LabelsError: an epoch has no batch, no image that can be used, or shows nobody.
    """
    while True:
        before, seen = position, _Seen(position.batch == 0)
        for batch in stream.epoch(position.epoch, position.batch):
            seen.add(batch)
            position = Position(position.step + 1, position.epoch, position.batch + 1)
            yield batch, position
        seen.judge_epoch()
        if position == before and position.batch == 0:
            raise LabelsError("an epoch has no images; are all data.weights 0?")
        position = Position(position.step, position.epoch + 1, 0)
