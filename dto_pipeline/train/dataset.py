"""Label files and photographs as batches of training: read, seen by a drawn variation, joined, in a reproducible order.

Knows label pieces, image stores and augmentation; knows no network and no run. A process that reads holds the index
(4 bytes an image), the order of the epoch (8), and the labels of one shuffling window (`shuffle_images`, about 3 kB an
image of 5 people). An image that cannot be used costs itself only: it is left out of its batch and named in
`TrainBatch.skipped`. Metres, pixels, radians.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.label_pieces import IMAGE_FILE, LabelSet, Part, index_pieces
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.status import UnusableImage
from dto_pipeline.train.augment import Draw, draw_paint, draw_variation, resize
from dto_pipeline.train.batch import ReadItems, Sample, Skipped, TrainBatch, blank_sample, collate_samples
from dto_pipeline.train.checkpoint import Position
from dto_pipeline.train.config import AugmentConfig, DataConfig, TrainConfig, without_augmentation
from dto_pipeline.train.people import ImageLabels, Rules, build_labels, see_people, square_pixels

_PROCESS_LOST, _TOO_LONG = "DataLoader worker", "timed out"  # stand in what PyTorch says of reading processes
_PREFETCH = 2  # batches that each of them reads ahead
_BLIND = 256  # images in a row from the start that could not be used, after which no more are tried
_TRIES = 10  # variations of an image that are drawn until somebody is seen of everybody
_ORDER, _DRAWS = 0, 1  # streams of chance: never the same numbers for both


class ReadingProcessLost(DtoError, RuntimeError):
    """A process that reads images was killed, or gives nothing any more."""


class Turn(NamedTuple):
    """One image of an epoch."""

    epoch: int
    position: int  # in the epoch's order: decides the augmentation
    image: int  # of the index, pieces end to end


def epoch_order(counts: np.ndarray, weights: np.ndarray, seed: int, epoch: int, window: int) -> np.ndarray:
    """The images of an epoch in order, drawn from (seed, epoch) alone.

    Pieces are shuffled, consecutive ones joined to windows, and the images of a window shuffled: neighbours come from
    all label sets while a reader holds the labels of one window only. With a weight of 1 every image is there once;
    with w, floor(w) times, and once more with probability w - floor(w).

    Args:
        counts, weights: (k,) images of each piece, and times an epoch each of them is seen.
        seed, epoch: decide everything.
        window: images that are shuffled among each other.

    Returns:
        (n,) int64 image numbers, pieces end to end.
    """
    random = np.random.default_rng([_ORDER, seed, epoch])
    starts = np.cumsum(counts) - counts
    windows, gathered, images = [np.zeros(0, np.int64)], list[np.ndarray](), 0
    order = random.permutation(len(counts))
    for piece in order:
        whole, rest = divmod(float(weights[piece]), 1.0)
        visits = int(whole) + (random.random(counts[piece]) < rest)
        gathered.append(np.repeat(starts[piece] + np.arange(counts[piece]), visits))
        images += counts[piece]
        if images >= window or piece == order[-1]:
            windows.append(random.permutation(np.concatenate(gathered)))
            gathered, images = [], 0
    return np.concatenate(windows)


class EpochBatches(Sampler[list[Turn]]):
    """One rank's batches of an epoch, from any step on: step s takes the s-th `batch * world` images of the order.

    Every rank has the same number of steps. In the last one the images that are left are dealt out, so that a rank may
    get fewer than `batch`, or none.
    """

    def __init__(
        self, counts: np.ndarray, weights: np.ndarray, seed: int, window: int, batch: int, rank: int = 0, world: int = 1
    ) -> None:
        """See `epoch_order`; `rank` of `world` processes."""
        self._order_by, self._share = (counts, weights, seed), (rank, world, batch * world)
        self._window = window
        self.start(0)

    def start(self, epoch: int, step: int = 0) -> None:
        """What the next iteration gives: the batches of `epoch` from `step` on."""
        self._epoch, self._step = epoch, step
        self._order = epoch_order(*self._order_by, epoch, self._window)

    def __len__(self) -> int:
        """Steps of the whole epoch."""
        return math.ceil(len(self._order) / self._share[2])

    def __iter__(self) -> Iterator[list[Turn]]:
        rank, world, together = self._share
        for step in range(self._step, len(self)):
            positions = range(step * together, min((step + 1) * together, len(self._order)))[rank::world]
            yield [Turn(self._epoch, position, int(self._order[position])) for position in positions]


class TrainingImages(Dataset[Sample | Skipped]):
    """Images by their number in the index, seen as a `Turn` says; safe to use in forked or spawned processes."""

    def __init__(
        self,
        sets: Sequence[LabelSet],
        body: BodyModel,
        config: DataConfig,
        augment: AugmentConfig | None = None,
        held_out: bool = False,
    ) -> None:
        """Index the labels.

        Args:
            sets: opened subsets, in the order of `config.labels`.
            body: the model the labels belong to, on the CPU.
            config: options.
            augment: how images are varied; None = they are seen as they are.
            held_out: the images kept for evaluation instead of the others.

        Raises:
            LabelsError: a label file cannot be read, or no image is left.
        """
        self.sets, self.config = tuple(sets), config
        self._rules = Rules.of(body, config, augment or without_augmentation(AugmentConfig()))
        self.pieces = index_pieces(sets, Part(config.select, config.holdout, held_out, config.limits))
        if not self.pieces:
            names = ", ".join(one.name for one in sets) or "no labels"
            said = f"{config.select!r} with people; choose another data.select"
            if config.max_error:
                said = f"{config.select!r} with people and an expected error of at most {config.max_error:g} m (labels"
                said += " of solver.mode paper tell none); raise data.max_error, or set it to 0"
            if held_out:
                said = f"held out (data.holdout is {config.holdout}); raise data.holdout, or set it to 0"
            raise LabelsError(f"{names}: no image is {said}, or name more labels")
        self.counts = np.array([piece.rows.size for piece in self.pieces], np.int64)
        weights = np.array(config.weights or [1.0] * len(sets))
        self.weights = weights[[piece.label_set for piece in self.pieces]]
        self._starts = np.cumsum([0, *self.counts])
        self._most_held = config.shuffle_images + int(self.counts.max())
        self._stores, self._labels = dict[int, ImageStore](), OrderedDict[int, LabelColumns]()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, turn: Turn) -> Sample | Skipped:
        """One image of an epoch.

        Raises:
            LabelsError, ManifestError: label files or manifests changed or were damaged since they were opened.
        """
        number = int(np.searchsorted(self._starts, turn.image, side="right")) - 1
        piece, columns = self.pieces[number], self._read(number)
        row = turn.image - int(self._starts[number])
        image_id = str(columns.images["image_id"][row])
        if piece.label_set not in self._stores:
            self._stores[piece.label_set] = self.sets[piece.label_set].open_images()
        try:
            file = self._stores[piece.label_set].read(
                columns.images[IMAGE_FILE][row], least_side=self.config.input_size
            )
            _check_size(columns, row, *file.size)
            trust, complete = self.config.trust, self.config.complete
            labels = build_labels(columns, row, *file.size, limits=self.config.limits)
            labels = replace(
                labels,
                trusted=not trust or trust[piece.label_set] == "3d",
                complete=labels.complete and (not complete or complete[piece.label_set]),
            )
            return self._vary(turn, image_id, file.rgb, *square_pixels(file.size, labels))
        except UnusableImage as error:
            return Skipped(image_id, str(error))

    def __getitems__(self, turns: list[Turn]) -> list[Sample | Skipped]:
        """A batch; where no image of it can be used, a black one stands in: every rank always has a step to do."""
        items = [self[turn] for turn in turns]
        return items if any(isinstance(item, Sample) for item in items) else [*items, blank_sample(self._rules)]

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: open stores and labels that were read stay behind."""
        return {**self.__dict__, "_stores": {}, "_labels": OrderedDict()}

    @property
    def images_held(self) -> int:
        """Images whose labels are in memory now."""
        return sum(columns.num_images for columns in self._labels.values())

    def _read(self, number: int) -> LabelColumns:
        """The labels of a piece; those read last are kept."""
        if number not in self._labels:
            piece = self.pieces[number]
            while self._labels and self.images_held + piece.rows.size > self._most_held:
                self._labels.popitem(last=False)
            self._labels[number] = self.sets[piece.label_set].read(piece)
        self._labels.move_to_end(number)
        return self._labels[number]

    def _vary(self, turn: Turn, image_id: str, rgb: np.ndarray, size: tuple[int, int], labels: ImageLabels) -> Sample:
        """Vary the image until somebody is seen of everybody, then take it as it is, or (as published) leave it out."""
        random = np.random.default_rng([_DRAWS, self.config.seed, turn.epoch, turn.position])
        config = self._rules.augment
        if not labels.has_body.any() and not config.vary_flat:
            config = without_augmentation(config)
        varies = config != without_augmentation(config)
        for _ in range(_TRIES if varies else 1):
            draw = draw_variation(random, config)
            seen, varied = see_people(labels, size, draw, self._rules)
            if seen.good:
                break
        else:
            seen, varied = see_people(labels, size, Draw(), self._rules)
            if varies and not config.keep_unvaried:
                raise UnusableImage(f"nobody is left of it after {_TRIES} variations")
        how = draw_paint(random, varied.frame, seen.corners, config)
        return Sample(image_id, resize(rgb, varied.frame.resized), how, seen)


class TrainingData:
    """One rank's stream of batches. Holds reading processes; `epoch` may be called again and again."""

    def __init__(
        self, images: TrainingImages, rank: int = 0, world: int = 1, persistent: bool = True, pin: bool = False
    ) -> None:
        """`rank` of `world` training processes, each of which sees its share of every epoch.

        Args:
            persistent: reading processes stay for the next epoch.
            pin: batches come in memory from which a GPU copies by itself.
        """
        self.images, config = images, images.config
        order = (images.counts, images.weights, config.seed, config.shuffle_images)
        self.batches = EpochBatches(*order, config.batch_images, rank, world)
        # clients of object stores do not survive a fork
        self.start_method = "spawn" if any(label_set.is_remote for label_set in images.sets) else None
        several: dict[str, Any] = {"timeout": config.patience, "prefetch_factor": _PREFETCH}
        several |= {"persistent_workers": persistent, "multiprocessing_context": self.start_method}
        self._loader: DataLoader[Sample | Skipped] = DataLoader(
            images, batch_sampler=self.batches, num_workers=config.workers, collate_fn=ReadItems, pin_memory=pin,
            **(several if config.workers else {}),
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same on every rank; weights below or between whole numbers let it vary a little."""
        return len(self.batches)

    def __iter__(self) -> Iterator[TrainBatch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from a step on, exactly as they would have come without an interruption.

        Raises:
            LabelsError, ManifestError: label files or manifests changed or were damaged since they were opened.
            ReadingProcessLost: see there.
        """
        self.batches.start(epoch, start_step)
        try:
            for read in self._loader:
                yield collate_samples(read.items) if isinstance(read, ReadItems) else read
        except DtoError as error:  # a reading process sends its whole trace along; the sentence stands last
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            if _TOO_LONG in str(error):
                config = self.images.config
                raise ReadingProcessLost(
                    f"{config.workers} processes that read images gave nothing in {config.patience:g} s "
                    "(data.patience); look at the storage they read from, then raise data.patience, or set "
                    "data.workers=0"
                ) from error
            if _PROCESS_LOST not in str(error):
                raise
            raise ReadingProcessLost(
                f"a process that reads images was killed ({str(error).splitlines()[0]}); where memory ran out, lower "
                "data.workers or data.shuffle_images; then start again"
            ) from error


class Source(Protocol):
    """What the loop needs; may be pickled. Each process gets its share."""

    def training(self, rank: int, world: int) -> Stream: ...

    def held_out(self, rank: int, world: int) -> Iterable[TrainBatch]:
        """The images kept for evaluation, as they are; may be walked through again and again."""
        ...


class Stream(Protocol):
    """One process's share of the training batches."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]: ...


@dataclass(frozen=True)
class LabelSource:
    """A `Source` of opened label sets, see `data.label_pieces`."""

    sets: tuple[LabelSet, ...]
    config: TrainConfig

    def training(self, rank: int, world: int) -> Stream:
        """The images that are not held out, varied anew in every epoch. Raises: LabelsError."""
        images = self._index(self.config.data, self.config.augment, held_out=False)
        return TrainingData(images, rank, world, pin=self.config.loop.gpu)

    def held_out(self, rank: int, world: int) -> Iterable[TrainBatch]:
        """None where `data.holdout` is 0. Raises: LabelsError: labels cannot be read, or no image is kept."""
        if self.config.data.holdout == 0:
            return ()
        still = without_augmentation(self.config.augment)
        images = self._index(replace(self.config.data, weights=()), still, held_out=True)
        return TrainingData(images, rank, world, persistent=False, pin=self.config.loop.gpu)

    def _index(self, data: DataConfig, augment: AugmentConfig, held_out: bool) -> TrainingImages:
        body = load_body(self.config.body.model_path, self.config.body.kid_axis)
        return TrainingImages(self.sets, body, data, augment, held_out)


def batches_from(stream: Stream, position: Position) -> Iterator[tuple[TrainBatch, Position]]:
    """Endless batches from a position on, each with the position after it.

    Raises:
        LabelsError: an epoch has no batch, no image that can be used, or shows nobody.
    """
    while True:
        is_whole, images, people, skipped, reason = position.batch == 0, 0, 0, 0, ""
        for batch in stream.epoch(position.epoch, position.batch):
            images += sum(image_id != "" for image_id in batch.image_ids)
            people, skipped = people + len(batch.targets.image), skipped + len(batch.skipped)
            reason = reason or next(iter(batch.skipped), "")
            if not images and skipped >= _BLIND:
                break
            position = Position(position.step + 1, position.epoch, position.batch + 1)
            yield batch, position
        if not images and skipped and (is_whole or skipped >= _BLIND):
            raise LabelsError(
                f"none of {skipped} images could be used, the first: {reason}; is data.images where the photographs of "
                "data.labels are?"
            )
        if is_whole and images and not people:
            raise LabelsError(
                f"a whole epoch of {images} images showed nobody; look at data.labels and data.select, or loosen "
                "augment and data.min_joints"
            )
        if is_whole and not images and not skipped:
            raise LabelsError("an epoch has no images; are all data.weights 0?")
        position = Position(position.step, position.epoch + 1, 0)


def _check_size(columns: LabelColumns, row: int, width: int, height: int) -> None:
    """Refuse a photograph of another size than the one that was labelled; a label of size 0 never saw it."""
    labelled = int(columns.images["width"][row]), int(columns.images["height"][row])
    if labelled[0] and labelled != (width, height):
        raise UnusableImage(f"the image has {width} x {height} pixels, its labels {labelled[0]} x {labelled[1]}")
