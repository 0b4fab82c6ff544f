"""Label files and photographs as batches of training: read, varied at random and joined, in a reproducible order.

A reading process holds the index (4 bytes an image), the order of the epoch (8 bytes an image), and the labels of one
shuffling window (about 3 kB an image of 5 people). Metres, pixels, radians.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.training_labels import IMAGE_FILE, LabelSet, Part, index_pieces
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.status import UnusableImage
from dto_pipeline.train import targets as labelled
from dto_pipeline.train.augment import Draw, Frame, draw_paint, draw_variation, paint, resize
from dto_pipeline.train.checkpoint import Position, TrainError
from dto_pipeline.train.config import GROUP, AugmentConfig, DataConfig, TrainConfig, without_augmentation

_PROCESS_LOST, _TOO_LONG = "DataLoader worker", "timed out"  # in PyTorch's messages about reading processes
_OTHER_FILE = "%s is not the file that was labelled (sha256), and is learnt all the same: if it shows another picture, "
_OTHER_FILE += "data.images is the wrong folder; further ones of %s are not named"
_LOG = logging.getLogger(__name__)
_PREFETCH = 2  # batches that each of them reads ahead
_BLIND = 256  # unusable images at the start of an epoch after which the training ends
_TRIES = 10  # variations of an image that are drawn until every person is visible
_ORDER, _DRAWS = 0, 1  # random streams
Turn = tuple[int, int, int]  # epoch, position in its order (seeds the augmentation), image of the index


class Sample(NamedTuple):
    """One image ready to be batched."""

    image_id: str
    image: np.ndarray  # (h, w, 3) uint8 RGB, resized
    seen: labelled.Seen  # its people and its variation


Item = Sample | str  # "key: reason" of an image that could not be used


@dataclass(frozen=True)
class TrainBatch:
    """Input of one training step: B images, each of its own size, and their people."""

    images: tuple[torch.Tensor, ...]  # B of (3, h, w) uint8 RGB, longer side S; varied by `to`, on the device
    frames: tuple[Frame, ...]  # their variations; () = the images are varied already
    targets: labelled.Targets
    image_ids: tuple[str, ...]  # B keys; "" = a black image that stands for a batch without a usable one
    skipped: tuple[str, ...] = ()  # "key: reason" of each image that could not be used and is not in it

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on another device, its images varied there."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        if self.frames:
            images = [paint(image, frame) for image, frame in zip(images, self.frames, strict=True)]
        return replace(self, images=tuple(images), frames=(), targets=self.targets.to(device, non_blocking=True))


@dataclass(frozen=True)
class ReadItems:
    """Items from a reading process: arrays are sent through a pipe; tensors would need space in /dev/shm."""

    items: list[Item]

    def pin_memory(self) -> TrainBatch:
        """The batch in pinned memory; called by PyTorch in a thread of its own."""
        batch = collate_samples(self.items)
        images = tuple(image.pin_memory() for image in batch.images)
        return replace(batch, images=images, targets=batch.targets.each(torch.Tensor.pin_memory))


def blank_sample(rules: labelled.Rules) -> Sample:
    """A black image without people."""
    width, height = size = (rules.data.input_size, GROUP)
    seen = labelled.see_people(labelled.unknown_people(0, labelled.guess_camera(*size)), size, Draw(), rules)
    return Sample("", np.zeros((height, width, 3), np.uint8), seen)


def collate_samples(items: Sequence[Item]) -> TrainBatch:
    """Samples joined to one batch, with the reasons of skipped images. At least one item is a sample."""
    samples = [item for item in items if isinstance(item, Sample)]
    parts = [sample.seen.targets for sample in samples]
    counts, cells = ([len(one[name]) for one in parts] for name in ("boxes", "scale_map"))
    joined = {name: [one[name] for one in parts] for name in parts[0]}
    joined["z_covariance"] = [
        np.pad(v, ((0, 0), (0, max(counts) - len(v))), constant_values=np.nan) for v in joined["z_covariance"]
    ]
    numbers = np.arange(len(parts))
    joined |= {"image": [np.repeat(numbers, counts)], "cell_image": [np.repeat(numbers, cells)]}
    return TrainBatch(
        images=tuple(torch.from_numpy(sample.image).permute(2, 0, 1) for sample in samples),
        frames=tuple(sample.seen.frame for sample in samples),
        targets=labelled.Targets(**{name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in joined.items()}),
        image_ids=tuple(sample.image_id for sample in samples),
        skipped=tuple(item for item in items if isinstance(item, str)),
    )


def epoch_order(counts: np.ndarray, weights: np.ndarray, seed: int, epoch: int, window: int) -> np.ndarray:
    """(n,) int64 image numbers of an epoch in order, drawn from (seed, epoch) alone.

    Pieces of `counts` (k,) images are shuffled, consecutive ones are joined to windows of at least `window` images, and
    the images of each window are shuffled. An image of a piece with weight w comes floor(w) times, and once more with
    probability w - floor(w).
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


def deal_batches(
    order: np.ndarray, batch: int, epoch: int = 0, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[list[Turn]]:
    """One rank's batches of an epoch from step `start` on: step s takes the s-th `batch * world` images of the order.
    Every rank has the same number of steps; its last batch may be smaller, or empty."""
    together = batch * world
    for first in range(start * together, len(order), together):
        positions = range(first, min(first + together, len(order)))[rank::world]
        yield [(epoch, position, int(order[position])) for position in positions]


class TrainingImages(Dataset[Item]):
    """Images by number, varied by their `Turn`; safe to use in forked or spawned processes."""

    def __init__(
        self, sets: Sequence[LabelSet], body: BodyModel, config: DataConfig, augment: AugmentConfig | None = None,
        held_out: bool = False,
    ) -> None:  # fmt: skip
        """Index the labels of `sets`, in the order of `config.labels`, with their body model on the CPU.

        `augment`: None = no variation; `held_out`: the images kept for evaluation instead of the others. Raises:
        LabelsError: a label file cannot be read, or no image is left.
        """
        self.sets, self.config = tuple(sets), config
        self._rules = labelled.Rules(body, config, augment or without_augmentation(AugmentConfig()))
        self.pieces = index_pieces(sets, Part(config.select, config.holdout, held_out, config.limits))
        if not self.pieces:
            advice = f"{config.select!r} with people (data.select), within data.max_error (labels of solver.mode paper "
            advice += "have no error); loosen these"
            if held_out:
                advice = f"held out (data.holdout is {config.holdout}); raise data.holdout, or set it to 0"
            raise LabelsError(f"{', '.join(one.name for one in sets)}: no image is {advice}, or name more labels")
        self.counts = np.array([piece.rows.size for piece in self.pieces], np.int64)
        self.weights = np.array([(config.weights or [1.0] * len(sets))[piece.label_set] for piece in self.pieces])
        self._starts = np.cumsum([0, *self.counts])
        self._most_held = config.shuffle_images + int(self.counts.max())
        self._stores, self._labels = dict[int, ImageStore](), OrderedDict[int, LabelColumns]()
        self._warned = set[int]()  # sets of which a photograph is another file than labelled

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, turn: Turn) -> Item:
        """One image of an epoch. Raises: LabelsError, ManifestError: label files changed since they were opened."""
        epoch, position, image = turn
        number = int(np.searchsorted(self._starts, image, side="right")) - 1
        columns, row = self._read(number), image - int(self._starts[number])
        label_set, config = self.pieces[number].label_set, self.config
        names = ("image_id", "image_sha256", "width", "height")
        image_id, sha256, *labelled_size = (columns.images[name][row] for name in names)
        if label_set not in self._stores:
            self._stores[label_set] = self.sets[label_set].open_images()
        try:
            file = self._stores[label_set].read(columns.images[IMAGE_FILE][row], least_side=config.input_size)
            if labelled_size[0] and tuple(labelled_size) != file.size:  # a label of size 0 was made without the image
                found = f"the image has {file.size[0]} x {file.size[1]} pixels"
                raise UnusableImage(f"{found}, its labels {labelled_size[0]} x {labelled_size[1]}")
            if sha256 not in ("", file.sha256) and label_set not in self._warned:
                self._warned.add(label_set)
                _LOG.warning(_OTHER_FILE, image_id, self.sets[label_set].name)
            labels = labelled.build_labels(columns, row, *file.size, limits=config.limits)
            trusted = not config.trust or config.trust[label_set] == "3d"
            complete = labels.complete and (not config.complete or config.complete[label_set])
            size, labels = labelled.square_pixels(file.size, replace(labels, trusted=trusted, complete=complete))
            seen = self._vary(np.random.default_rng([_DRAWS, config.seed, epoch, position]), size, labels)
            return Sample(str(image_id), resize(file.rgb, seen.frame.resized), seen)
        except UnusableImage as error:
            return f"{image_id}: {error}"

    def __getitems__(self, turns: list[Turn]) -> list[Item]:
        """A batch. If none of its images can be used a black one is added, because all ranks must take the same
        steps."""
        items = [self[turn] for turn in turns]
        return items if any(isinstance(item, Sample) for item in items) else [*items, blank_sample(self._rules)]

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, without open stores and cached labels."""
        return {**self.__dict__, "_stores": {}, "_labels": OrderedDict()}

    def _read(self, number: int) -> LabelColumns:
        """The labels of a piece; those read last stay in memory."""
        if number not in self._labels:
            piece = self.pieces[number]
            while self.counts[list(self._labels)].sum() + piece.rows.size > self._most_held:
                self._labels.popitem(last=False)
            self._labels[number] = self.sets[piece.label_set].read(piece)
        self._labels.move_to_end(number)
        return self._labels[number]

    def _vary(self, random: np.random.Generator, size: tuple[int, int], labels: labelled.ImageLabels) -> labelled.Seen:
        """Vary an image until every person is visible; otherwise keep it unvaried or (as published) leave it out."""
        config = self._rules.augment
        still = without_augmentation(config)
        if config.as_published and not labels.has_body.any():
            config = still
        for _ in range(_TRIES if config != still else 1):
            seen = labelled.see_people(labels, size, draw_variation(random, config), self._rules)
            if seen.good:
                break
        else:
            if config != still and config.as_published:
                raise UnusableImage(f"no people are left in it after {_TRIES} variations")
            seen = labelled.see_people(labels, size, Draw(), self._rules)
        centre, half = seen.targets["boxes"][:, :2], seen.targets["boxes"][:, 2:] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1) * self.config.input_size
        return seen._replace(frame=draw_paint(random, seen.frame, corners, config))


class TrainingData:
    """One rank's stream of batches; each call of `epoch` starts its own reading processes."""

    def __init__(self, images: TrainingImages, rank: int = 0, world: int = 1, pin: bool = False) -> None:
        """`rank` of `world` training processes; `pin`: batches in pinned memory."""
        self.images, self._share, self._pin = images, (rank, world), pin
        # clients of object stores do not survive a fork
        self.start_method = "spawn" if any(label_set.is_remote for label_set in images.sets) else None

    def __iter__(self) -> Iterator[TrainBatch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from a step on, the same as without an interruption. Raises: LabelsError,
        ManifestError: label files changed meanwhile. TrainError: a reading process is lost."""
        images, config = self.images, self.images.config
        order = epoch_order(images.counts, images.weights, config.seed, epoch, config.shuffle_images)
        turns: Any = deal_batches(order, config.batch_images, epoch, start_step, *self._share)
        several: dict[str, Any] = {"num_workers": config.workers, "prefetch_factor": _PREFETCH}
        several |= {"timeout": config.patience, "multiprocessing_context": self.start_method}
        loader = DataLoader(
            images, batch_sampler=turns, collate_fn=ReadItems, pin_memory=self._pin,
            generator=torch.Generator(),  # or reading would take numbers from the one that draws noise
            **several if config.workers else {},
        )  # fmt: skip
        try:
            for read in loader:
                batch = collate_samples(read.items) if isinstance(read, ReadItems) else read
                for line in batch.skipped:
                    _LOG.warning("left out %s", line)
                yield batch
        except DtoError as error:  # from a reading process: its whole trace, with the message at the end
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            text = f"a process that reads images was killed ({str(error).splitlines()[0]}); if memory ran out, lower "
            text += "data.workers or data.shuffle_images; then start again"
            if _TOO_LONG in str(error):
                text = f"{config.workers} processes that read images gave nothing in {config.patience:g} s "
                text += "(data.patience); check their storage, then raise data.patience, or set data.workers=0"
            elif _PROCESS_LOST not in str(error):
                raise
            raise TrainError(text) from error


def open_stream(
    sets: tuple[LabelSet, ...], config: TrainConfig, rank: int, world: int, held_out: bool
) -> TrainingData | None:
    """A process's share of label sets: the training images, varied in every epoch, or the held-out ones as they are;
    None where `data.holdout` is 0. Raises: LabelsError: no image is left."""
    data, augment = config.data, config.augment
    if held_out:
        data, augment = replace(data, weights=()), without_augmentation(augment)
    if held_out and not data.holdout:
        return None
    body = load_body(config.body.model_path, config.body.kid_axis)
    return TrainingData(TrainingImages(sets, body, data, augment, held_out), rank, world, config.loop.gpu)


def batches_from(stream: Any, position: Position) -> Iterator[tuple[TrainBatch, Position]]:
    """Endless batches of a stream (see `TrainingData.epoch`) from a position on, each with the position after it.
    Raises: LabelsError: an epoch has no usable image, or no people."""
    while True:
        is_whole, images, people, skipped = position.batch == 0, 0, 0, list[str]()
        for batch in stream.epoch(position.epoch, position.batch):
            images += sum(image_id != "" for image_id in batch.image_ids)
            people, skipped = people + len(batch.targets.image), [*skipped, *batch.skipped][:_BLIND]
            if not images and len(skipped) >= _BLIND:
                break
            position = Position(position.step + 1, position.epoch, position.batch + 1)
            yield batch, position
        if not images and skipped and (is_whole or len(skipped) >= _BLIND):
            raise LabelsError(
                f"none of {len(skipped)} images could be used, the first: {skipped[0]}; is data.images the folder of "
                "the photographs of data.labels?"
            )
        if is_whole and not people and (images or not skipped):
            raise LabelsError(
                f"a whole epoch of {images} images had no people; check data.labels, select and weights, or loosen "
                "augment and data.min_joints"
            )
        position = Position(position.step, position.epoch + 1, 0)
