"""Label files and photographs as batches of training: read, seen by a drawn variation, joined, in a reproducible order.

Knows label pieces, image stores and augmentation; knows no network and no run. A process that reads holds the index
(4 bytes an image), the order of the epoch (8), and the labels of one shuffling window (`shuffle_images`, about 3 kB an
image of 5 people). An image that cannot be used costs itself only: it is left out of its batch and named in
`TrainBatch.skipped`. Metres, pixels, radians.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.label_pieces import IMAGE_FILE, LabelSet, Part, Piece, index_pieces
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.placed import unpack_covariance
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import UNUSED, PersonStatus, UnusableImage
from dto_pipeline.train.augment import (
    Draw,
    Varied,
    camera_problem,
    draw_variation,
    jitter_colours,
    occlude,
    resize,
    vary_pixels,
)
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.data_config import AugmentConfig, DataConfig, without_augmentation
from dto_pipeline.train.labels import ImageLabels, SeenPeople, nobody, see_people
from dto_pipeline.train.order import EpochBatches, Turn, draw_random, measure_pieces
from dto_pipeline.train.targets import Targets, mesh_edges

NUM_JOINTS = 24
_PROCESS_LOST = "DataLoader worker"  # begins or stands in what PyTorch says when a reading process is gone
_TOO_LONG = "timed out"  # stands in what PyTorch says when reading processes give nothing
_GUESSED_FOCAL = 1.0  # of the longer side: the camera of a picture whose label has none; never learnt from
_SQUARE = 1e-3  # fx / fy may differ by this before an image is stretched to square pixels
_ABSURD = 1e4  # of angles [rad], shape coefficients and places [m]: nobody is there, and sums stay finite
_BLACK = (56, 56)  # width and height of an image in which nobody is [px]


class ReadingProcessLost(DtoError, RuntimeError):
    """A process that reads images was killed, or gives nothing any more."""


@dataclass(frozen=True)
class Sample:
    """One image ready to be batched."""

    image_id: str
    image: np.ndarray  # (h, w, 3) uint8 RGB, the longer side S
    seen: SeenPeople


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    image_id: str
    reason: str


Items = list[Sample | Skipped]


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
            config: knobs.
            augment: how images are varied; None = they are seen as they are.
            held_out: the images kept for evaluation instead of the others.

        Raises:
            LabelsError: a label file cannot be read, or no image is left.
        """
        self.sets, self._body, self._config = tuple(sets), body, config
        self._augment = augment or without_augmentation(AugmentConfig())
        self._edges = mesh_edges(body.faces.numpy())
        self.pieces = index_pieces(sets, Part(config.select, config.holdout, held_out))
        if not self.pieces:
            names = ", ".join(one.name for one in sets) or "no labels"
            side = f"held out (data.holdout is {config.holdout})" if held_out else f"{config.select!r} with people"
            advice = (
                "raise data.holdout, or set it to 0 for no evaluation" if held_out else "choose another data.select"
            )
            raise LabelsError(f"{names}: no image is {side}; {advice}, or name more labels")
        self.sizes = measure_pieces(self.pieces, config.weights)
        self._starts = self.sizes.starts
        self._stores: dict[int, ImageStore] = {}
        self._cache = PieceCache(self.sets, config.shuffle_images + int(self.sizes.counts.max()))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, draw: Turn) -> Sample | Skipped:
        """One image of an epoch.

        Raises:
            LabelsError, ManifestError: label files or manifests changed or were damaged since they were opened.
        """
        number = int(np.searchsorted(self._starts, draw.image, side="right")) - 1
        piece = self.pieces[number]
        columns = self._cache.read(number, piece)
        row = draw.image - int(self._starts[number])
        image_id = str(columns.images["image_id"][row])
        try:
            rgb = self._store(piece.label_set).read(columns.images[IMAGE_FILE][row]).rgb
            _check_size(columns, row, rgb)
            trust, complete = self._config.trust, self._config.complete
            labels = build_labels(columns, row, rgb.shape[1], rgb.shape[0])
            labels = replace(
                labels,
                trusted=not trust or trust[piece.label_set] == "3d",
                complete=labels.complete and (not complete or complete[piece.label_set]),
            )
            return self._see(draw, image_id, *square_pixels(rgb, labels))
        except UnusableImage as error:
            return Skipped(image_id, str(error))

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: open stores and labels that were read stay behind."""
        return {**self.__dict__, "_stores": {}, "_cache": PieceCache(self.sets, self._cache.most)}

    def _store(self, label_set: int) -> ImageStore:
        if label_set not in self._stores:
            self._stores[label_set] = self.sets[label_set].open_images()
        return self._stores[label_set]

    def _see(self, turn: Turn, image_id: str, rgb: np.ndarray, labels: ImageLabels) -> Sample:
        """Vary the image until somebody is seen of everybody, then take it as it is, or (as published) leave it out."""
        random, config = draw_random(self._config.seed, turn), self._augment
        flat = not labels.has_body.any() and not config.vary_flat
        for _ in range(1 if flat else config.tries):
            draw = Draw() if flat else draw_variation(random, config)
            seen, varied = self._look(labels, rgb, draw)
            if seen.good:
                break
        else:
            draw = Draw()
            seen, varied = self._look(labels, rgb, draw)
            if not config.keep_unvaried and config.tries > 1:
                raise UnusableImage(f"nobody is left of it after {config.tries} variations (augment.tries)")
        image = vary_pixels(rgb, varied.frame, draw.flip)
        image = occlude(random, image, seen.corners, 0.0 if flat else config.occlude)
        return Sample(image_id, jitter_colours(random, image, config), seen)

    def _look(self, labels: ImageLabels, rgb: np.ndarray, draw: Draw) -> tuple[SeenPeople, Varied]:
        config, size = self._config, (rgb.shape[1], rgb.shape[0])
        rules = (self._augment, config.min_joints, config.max_people)
        return see_people(labels, size, config.input_size, draw, self._body, self._edges, *rules)


class PieceCache:
    """The pieces read last, of at most `images` images together."""

    def __init__(self, sets: Sequence[LabelSet], images: int) -> None:
        self._sets, self.most = sets, images
        self._held: OrderedDict[int, LabelColumns] = OrderedDict()

    @property
    def images(self) -> int:
        """Images whose labels are held now."""
        return sum(columns.num_images for columns in self._held.values())

    def read(self, number: int, piece: Piece) -> LabelColumns:
        """The labels of a piece; `number` names it."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        while self._held and self.images + piece.rows.size > self.most:
            self._held.popitem(last=False)
        self._held[number] = self._sets[piece.label_set].read(piece)
        return self._held[number]


class TrainingData:
    """One rank's stream of batches. Holds reading processes; `epoch` may be called again and again."""

    def __init__(self, images: TrainingImages, config: DataConfig, rank: int = 0, world: int = 1) -> None:
        """`rank` of `world` training processes, each of which sees its share of every epoch."""
        self.batches = EpochBatches(images.sizes, config.seed, config.shuffle_images, config.batch_images, rank, world)
        # clients of object stores do not survive a fork
        self.start_method = "spawn" if any(label_set.is_remote for label_set in images.sets) else None
        self._patience, self._workers = config.patience, config.workers
        self._loader: DataLoader[Sample | Skipped] = DataLoader(
            images,
            batch_sampler=self.batches,
            num_workers=config.workers,
            collate_fn=list,  # numpy arrays come through a pipe: tensors would need room in /dev/shm
            timeout=config.patience if config.workers else 0,
            prefetch_factor=config.prefetch if config.workers else None,
            persistent_workers=config.workers > 0,
            multiprocessing_context=self.start_method if config.workers else None,
        )

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same on every rank; weights below or between whole numbers let it vary a little."""
        return len(self.batches)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        """The batches of an epoch from a step on, exactly as they would have come without an interruption.

        Raises:
            LabelsError, ManifestError: label files or manifests changed or were damaged since they were opened.
            ReadingProcessLost: see there.
        """
        self.batches.start(epoch, start_step)
        try:
            yield from map(collate_samples, self._loader)
        except DtoError as error:  # a reading process sends its whole trace along; the sentence stands last
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            if _TOO_LONG in str(error):
                raise ReadingProcessLost(
                    f"{self._workers} processes that read images gave nothing in {self._patience:g} s (data.patience); "
                    "look at the storage they read from, then raise data.patience, or set data.workers=0"
                ) from error
            if _PROCESS_LOST not in str(error):
                raise
            raise ReadingProcessLost(
                f"a process that reads images was killed ({str(error).splitlines()[0]}); where memory ran out, lower "
                "data.workers, data.prefetch or data.shuffle_images; then start again"
            ) from error


def build_labels(columns: LabelColumns, row: int, width: int, height: int) -> ImageLabels:
    """The people of one image; those of whom neither body nor place is known are left out.

    Args:
        columns: of a piece, see `data.label_pieces.LabelSet.read`.
        row: the image.
        width, height: of the photograph [px].

    Raises:
        UnusableImage: its camera cannot be that of the photograph, or its covariance is not of its people.
    """
    part = slice(int(columns.starts[row]), int(columns.starts[row + 1]))
    pose, betas, transl, boxes, status = (
        columns.people[name][part] for name in ("pose", "betas", "transl", "bbox_xyxy", "status")
    )
    intrinsics = columns.intrinsics[row]
    has_camera = not np.isnan(intrinsics).any()
    if has_camera and (problem := camera_problem(intrinsics, width, height)):
        raise UnusableImage(problem)
    if not has_camera:
        focal = _GUESSED_FOCAL * max(width, height)
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    finite = (np.abs(np.concatenate([pose, betas, transl], axis=1)) < _ABSURD).all(axis=1)  # NaN is not
    has_body = finite & (transl[:, 2] > 0) & ~np.isin(status, UNUSED) & has_camera
    packed, people = columns.images["z_covariance"][row], len(pose)
    if packed is not None and len(packed) != people * (people + 1) // 2:
        raise UnusableImage(f"its z_covariance has {len(packed)} numbers, which is no half matrix of {people} people")
    alone = np.full(people, np.nan)  # people whose covariance nobody tells
    if "z_sigma_m" in columns.people:
        alone = np.square(columns.people["z_sigma_m"][part].astype(np.float64))
    keypoints, layers = np.full((people, NUM_JOINTS, 2), np.nan, np.float32), np.full(people, -1, np.int64)
    if "keypoints" in columns.people:
        keypoints, layers = columns.people["keypoints"][part], columns.people["depth_layer"][part]
    pose, betas, transl = (np.where(has_body[:, None], values, 0) for values in (pose, betas, transl))
    labels = ImageLabels(
        intrinsics=intrinsics,
        has_camera=has_camera,
        has_body=has_body,
        pose=pose.astype(np.float32),
        betas=betas.astype(np.float32),
        transl=transl.astype(np.float32),
        boxes=boxes.astype(np.float32),
        keypoints=keypoints,
        z_covariance=np.diag(alone).astype(np.float32) if packed is None else unpack_covariance(packed, people),
        depth_layer=layers,
    )
    in_picture = np.isfinite(boxes).all(axis=1) | np.isfinite(labels.keypoints).any(axis=(1, 2))
    duplicate = status == str(PersonStatus.DUPLICATE)
    known = has_body | (in_picture & ~duplicate)
    return replace(labels.take(known), complete=bool((known | duplicate).all()))


def square_pixels(rgb: np.ndarray, labels: ImageLabels) -> tuple[np.ndarray, ImageLabels]:
    """Image and labels stretched sideways where fx and fy differ: the network knows one focal length."""
    fx, fy = labels.intrinsics[0, 0], labels.intrinsics[1, 1]
    if abs(fx / fy - 1) <= _SQUARE:
        return rgb, labels
    width = max(1, round(rgb.shape[1] * fy / fx))
    grow = np.array([width / rgb.shape[1], 1.0])
    stretched = replace(
        labels,
        intrinsics=np.diag([fy / fx, 1, 1]) @ labels.intrinsics,
        boxes=(labels.boxes * np.tile(grow, 2)).astype(np.float32),
        keypoints=(labels.keypoints * grow).astype(np.float32),
    )
    return resize(rgb, (width, rgb.shape[0])), stretched


def collate_samples(items: Items) -> TrainBatch:
    """Images and people one after the other; what was skipped is named.

    Where nothing is left, the batch is one black image, in which truly nobody is: every rank always has a step to do.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    skipped = tuple(f"{item.image_id}: {item.reason}" for item in items if isinstance(item, Skipped))
    samples = samples or [Sample("", np.zeros((*_BLACK[::-1], 3), np.uint8), nobody(_BLACK))]
    seen = [sample.seen for sample in samples]
    most = max(one.num_people for one in seen)
    numbers = np.arange(len(seen))

    def joined(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays))

    covariance = [
        np.pad(one.z_covariance, ((0, 0), (0, most - one.num_people)), constant_values=np.nan) for one in seen
    ]
    targets = Targets(
        image=torch.from_numpy(np.repeat(numbers, [one.num_people for one in seen])),
        **{name: joined([one.people[name] for one in seen]) for name in seen[0].people},
        z_covariance=joined(covariance),
        scale_map=joined([one.scale_map for one in seen]),
        cell_image=torch.from_numpy(np.repeat(numbers, [len(one.scale_map) for one in seen])),
        complete=torch.tensor([one.complete for one in seen]),
        mapped=torch.tensor([one.mapped for one in seen]),
        heights=torch.tensor([float(sample.image.shape[0]) for sample in samples]),
        image_focals=torch.tensor([one.image_focal for one in seen]),
    )
    return TrainBatch(
        images=tuple(torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))) for sample in samples),
        intrinsics=torch.from_numpy(np.stack([one.intrinsics for one in seen])).float(),
        targets=targets,
        image_ids=tuple(sample.image_id for sample in samples),
        skipped=skipped,
    )


def _check_size(columns: LabelColumns, row: int, rgb: np.ndarray) -> None:
    """Refuse a photograph of another size than the one that was labelled; a label of size 0 never saw it."""
    width, height = int(columns.images["width"][row]), int(columns.images["height"][row])
    if width and (width, height) != (rgb.shape[1], rgb.shape[0]):
        raise UnusableImage(f"the image has {rgb.shape[1]} x {rgb.shape[0]} pixels, its labels {width} x {height}")
