"""Synthetic crowds as batches of training: the demo's pictures at a small size with the truth as labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.people import build_bodies
from dto_pipeline.lab.scenes import build_picture
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.config import TrainConfig, load_train_config

_BODIES = 2  # random stream of true bodies, see `demo.scenes`
TINY = {
    "body.model_path": "demo",
    "encoder.width": 96,
    "encoder.layers": 3,
    "encoder.heads": 4,
    "encoder.patch": 16,
    "data.input_size": 96,
    "model.width": 96,
    "model.layers": 2,
    "model.queries": 12,
    "loop.rate": 1.5e-3,
    "loop.warm_up": 30,
    "loop.clip": 5.0,
    "loop.last_rate": 0.02,
}  # a network of 0.9 million weights


def tiny_config(**knobs: object) -> TrainConfig:
    """`TINY` with other knobs, written room__key."""
    changed = TINY | {name.replace("__", "."): value for name, value in knobs.items()}
    return load_train_config(None, [f"{name}={value}" for name, value in changed.items()])


def crowd_batch(body: BodyModel, numbers: Sequence[int], side: int = 96, seed: int = 5) -> TrainBatch:
    """Pictures `numbers` of the demo's data set `seed`, padded to squares and scaled down."""
    template = measure_template(body)
    images, cameras, people = [], [], []
    for number in numbers:
        crowd = plan_crowd(seed, number)
        view = crowd.view
        people.append(build_bodies(crowd, body, np.random.default_rng([seed, number, _BODIES])))
        longest = max(view.width, view.height)
        left, top = (longest - view.width) // 2, (longest - view.height) // 2
        square = np.zeros((longest, longest, 3), np.uint8)
        square[top : top + view.height, left : left + view.width] = build_picture(seed, number, body, template).rgb
        images.append(np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR)))
        camera = view.intrinsics + np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
        cameras.append(camera * [[side / longest], [side / longest], [1]])
    bodies = [(one.pose, one.betas, one.transl) for one in people]
    return label_batch(torch.from_numpy(np.stack(images)), np.stack(cameras), bodies)


def label_batch(
    images: torch.Tensor, cameras: np.ndarray, people: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> TrainBatch:
    """Images (B, S, S, 3) uint8, cameras (B, 3, 3) and the pose, betas and transl of each image's people."""
    most = max(len(pose) for pose, _, _ in people)

    def padded(part: int, width: int) -> torch.Tensor:
        full = np.zeros((len(people), most, width), np.float32)
        for row, one in enumerate(people):
            full[row, : len(one[part])] = one[part]
        return torch.from_numpy(full)

    present = torch.tensor([[index < len(pose) for index in range(most)] for pose, _, _ in people])
    nan = float("nan")
    return TrainBatch(
        image=images.permute(0, 3, 1, 2).float() / 255,
        intrinsics=torch.from_numpy(cameras).float(),
        has_camera=torch.ones(len(people), dtype=torch.bool),
        present=present,
        has_body=present.clone(),
        pose=padded(0, 72),
        betas=padded(1, 11),
        transl=padded(2, 3),
        boxes=torch.full((len(people), most, 4), nan),
        keypoints=torch.full((len(people), most, 24, 2), nan),
        z_covariance=torch.full((len(people), most, most), nan),
        depth_layer=torch.full((len(people), most), -1),
        image_ids=tuple(f"crowd/{number}" for number in range(len(people))),
    )


def take_images(batch: TrainBatch, images: slice) -> TrainBatch:
    """Some images of a batch."""
    kept = {
        field.name: getattr(batch, field.name)[images] for field in dataclasses.fields(batch) if field.name != "skipped"
    }
    return dataclasses.replace(batch, **kept)


class BatchStream:
    """Batches of one data set that lies in memory, the same in every epoch; each rank takes its share of each."""

    def __init__(self, data: TrainBatch, images: int, rank: int, world: int) -> None:
        self._data, self._images, self._rank, self._world = data, images * world, rank, world

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        for step in range(start_step, len(self._data.image_ids) // self._images):
            first = step * self._images
            yield take_images(self._data, slice(first + self._rank, first + self._images, self._world))


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """A `Source` of one batch in memory that is learnt from and evaluated on."""

    data: TrainBatch
    images: int  # of a batch of one rank

    def training(self, rank: int, world: int) -> BatchStream:
        return BatchStream(self.data, self.images, rank, world)

    def held_out(self, rank: int, world: int) -> list[TrainBatch]:
        return [take_images(self.data, slice(rank, None, world))]
