"""Label files and photographs as batches of training: read, seen by a drawn camera, padded, in a reproducible order.

Knows label pieces, image stores and augmentation; knows no network and no run. A process that reads holds the index
(4 bytes an image), the order of the epoch (8), and the labels of one shuffling window (`shuffle_images`, about 3 kB an
image of 5 people). An image that cannot be used costs itself only: it is left out of its batch and named in
`TrainBatch.skipped`. Metres, pixels, radians.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import UNUSED, PersonStatus, UnusableImage
from dto_pipeline.train.augment import (
    ImageLabels,
    camera_problem,
    draw_view,
    jitter_colours,
    project_joints,
    see_labels,
    view_affine,
    warp_image,
)
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.data_config import NO_AUGMENTATION, AugmentConfig, DataConfig
from dto_pipeline.train.order import Draw, EpochBatches, draw_random, measure_pieces

NUM_JOINTS = 24
_PROCESS_LOST = "DataLoader worker"  # begins or stands in what PyTorch says when a reading process is gone
_GUESSED_FOCAL = 1.0  # of the longer side: the camera of a picture whose label has none; never learnt from


class ReadingProcessLost(DtoError, RuntimeError):
    """A process that reads images was killed."""


@dataclass(frozen=True)
class Sample:
    """One image ready to be batched; P people."""

    image_id: str
    image: np.ndarray  # (S, S, 3) float32 RGB in [0, 1]
    labels: ImageLabels


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    image_id: str
    reason: str


class TrainingImages(Dataset[Sample | Skipped]):
    """Images by their number in the index, seen as a `Draw` says; safe to use in forked or spawned processes."""

    def __init__(
        self,
        sets: Sequence[LabelSet],
        body: BodyModel,
        config: DataConfig,
        augment: AugmentConfig = NO_AUGMENTATION,
        held_out: bool = False,
    ) -> None:
        """Index the labels.

        Args:
            sets: opened subsets, in the order of `config.labels`.
            body: the model the labels belong to, on the CPU.
            config: knobs.
            augment: how images are varied.
            held_out: the images kept for evaluation instead of the others.

        Raises:
            LabelsError: a label file cannot be read, or no image is left.
        """
        self.sets, self._body, self._config = tuple(sets), body, config
        self._augment = augment
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

    def __getitem__(self, draw: Draw) -> Sample | Skipped:
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
            labels = build_labels(columns, row, rgb.shape[1], rgb.shape[0], self._body)
        except UnusableImage as error:
            return Skipped(image_id, str(error))
        return self._see(draw, image_id, rgb, labels)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: open stores and labels that were read stay behind."""
        return {**self.__dict__, "_stores": {}, "_cache": PieceCache(self.sets, self._cache.most)}

    def _store(self, label_set: int) -> ImageStore:
        if label_set not in self._stores:
            self._stores[label_set] = self.sets[label_set].open_images()
        return self._stores[label_set]

    def _see(self, draw: Draw, image_id: str, rgb: np.ndarray, labels: ImageLabels) -> Sample:
        random, size = draw_random(self._config.seed, draw), self._config.input_size
        view = draw_view(random, labels, rgb.shape[1], rgb.shape[0], size, self._augment)
        image = warp_image(rgb, view_affine(labels.intrinsics, view), size).astype(np.float32) / 255
        seen = keep_visible(see_labels(labels, view), size, self._config.min_joints, self._config.max_people)
        return Sample(image_id, jitter_colours(random, image, self._augment), seen)


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
        self._loader: DataLoader[Sample | Skipped] = DataLoader(
            images,
            batch_sampler=self.batches,
            num_workers=config.workers,
            collate_fn=partial(collate_samples, size=config.input_size),
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
            yield from self._loader
        except DtoError as error:  # a reading process sends its whole trace along; the sentence stands last
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except RuntimeError as error:
            if _PROCESS_LOST not in str(error):
                raise
            raise ReadingProcessLost(
                f"a process that reads images was killed ({str(error).splitlines()[0]}); where memory ran out, lower "
                "data.workers, data.prefetch or data.shuffle_images; then start again"
            ) from error


def build_labels(columns: LabelColumns, row: int, width: int, height: int, body: BodyModel) -> ImageLabels:
    """The people of one image; those of whom neither body nor place is known are left out.

    Args:
        columns: of a piece, see `data.label_pieces.LabelSet.read`.
        row: the image.
        width, height: of the photograph [px].
        body: gives the joints.

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
    finite = np.isfinite(np.concatenate([pose, betas, transl], axis=1)).all(axis=1)
    has_body = finite & (transl[:, 2] > 0) & ~np.isin(status, UNUSED) & has_camera
    packed, people = columns.images["z_covariance"][row], len(pose)
    if packed is not None and len(packed) != people * (people + 1) // 2:
        raise UnusableImage(f"its z_covariance has {len(packed)} numbers, which is no half matrix of {people} people")
    unknown = np.full((people, people), np.nan, np.float32)
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
        joints=_pose_joints(pose, betas, transl, body),
        boxes=boxes.astype(np.float32),
        keypoints=keypoints,
        z_covariance=unknown if packed is None else unpack_covariance(packed, people),
        depth_layer=layers,
    )
    in_picture = np.isfinite(boxes).all(axis=1) | np.isfinite(labels.keypoints).any(axis=(1, 2))
    return labels.take(has_body | (in_picture & (status != str(PersonStatus.DUPLICATE))))


def keep_visible(labels: ImageLabels, size: int, min_joints: int, max_people: int) -> ImageLabels:
    """The people whom the S x S input shows, in their order.

    A body is shown by `min_joints` joints inside, anybody else by a keypoint or the centre of the box. Of more than
    `max_people` the nearest stay; people of unknown distance count as farthest.
    """

    def inside(points: np.ndarray) -> np.ndarray:
        return np.all((points >= 0) & (points < size), axis=-1)

    bodies = inside(project_joints(labels)).sum(axis=1) >= min_joints
    others = inside(labels.boxes[:, :2] / 2 + labels.boxes[:, 2:] / 2) | inside(labels.keypoints).any(axis=1)
    shown = np.flatnonzero(np.where(labels.has_body, bodies, others))
    distance = np.where(labels.has_body, labels.joints[:, 0, 2], np.inf)[shown]
    nearest = np.sort(np.argsort(distance, kind="stable")[:max_people])
    return labels.take(shown[nearest])


def collate_samples(items: Sequence[Sample | Skipped], size: int) -> TrainBatch:
    """Samples padded to the largest crowd; what was skipped is named.

    Where nothing is left, the batch is one black image, in which truly nobody is: every rank always has a step to do.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    skipped = tuple(f"{item.image_id}: {item.reason}" for item in items if isinstance(item, Skipped))
    samples = samples or [_nothing(size)]
    most = max(sample.labels.num_people for sample in samples)

    def padded(name: str, missing: float) -> torch.Tensor:
        arrays = [getattr(sample.labels, name) for sample in samples]
        full = np.full((len(arrays), most, *arrays[0].shape[1:]), missing, arrays[0].dtype)
        for row, values in enumerate(arrays):
            full[row, : len(values)] = values
        return torch.from_numpy(full)

    people = torch.tensor([sample.labels.num_people for sample in samples])
    return TrainBatch(
        image=torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).contiguous(),
        intrinsics=torch.from_numpy(np.stack([sample.labels.intrinsics for sample in samples])).float(),
        has_camera=torch.tensor([sample.labels.has_camera for sample in samples]),
        present=torch.arange(most) < people[:, None],
        has_body=padded("has_body", False),
        pose=padded("pose", 0),
        betas=padded("betas", 0),
        transl=padded("transl", 0),
        boxes=padded("boxes", np.nan),
        keypoints=padded("keypoints", np.nan),
        z_covariance=_pad_squares([sample.labels.z_covariance for sample in samples], most),
        depth_layer=padded("depth_layer", -1),
        image_ids=tuple(sample.image_id for sample in samples),
        skipped=skipped,
    )


def _check_size(columns: LabelColumns, row: int, rgb: np.ndarray) -> None:
    """Refuse a photograph of another size than the one that was labelled; a label of size 0 never saw it."""
    width, height = int(columns.images["width"][row]), int(columns.images["height"][row])
    if width and (width, height) != (rgb.shape[1], rgb.shape[0]):
        raise UnusableImage(f"the image has {rgb.shape[1]} x {rgb.shape[0]} pixels, its labels {width} x {height}")


def _pose_joints(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray, body: BodyModel) -> np.ndarray:
    rotations = axis_angle_to_matrix(torch.from_numpy(pose.reshape(-1, NUM_JOINTS, 3).astype(np.float32)))
    with torch.no_grad():
        joints = body.posed_joints(rotations, torch.from_numpy(betas.astype(np.float32))).numpy()
    return (joints + transl[:, None]).astype(np.float32)


def _pad_squares(squares: Sequence[np.ndarray], most: int) -> torch.Tensor:
    full = np.full((len(squares), most, most), np.nan, np.float32)
    for row, square in enumerate(squares):
        full[row, : len(square), : len(square)] = square
    return torch.from_numpy(full)


def _nothing(size: int) -> Sample:
    labels = ImageLabels(
        intrinsics=np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float64),
        has_camera=False,
        has_body=np.zeros(0, bool),
        pose=np.zeros((0, 72), np.float32),
        betas=np.zeros((0, 11), np.float32),
        transl=np.zeros((0, 3), np.float32),
        joints=np.zeros((0, NUM_JOINTS, 3), np.float32),
        boxes=np.zeros((0, 4), np.float32),
        keypoints=np.zeros((0, NUM_JOINTS, 2), np.float32),
        z_covariance=np.zeros((0, 0), np.float32),
        depth_layer=np.zeros(0, np.int64),
    )
    return Sample("", np.zeros((size, size, 3), np.float32), labels)
