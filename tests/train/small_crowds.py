"""Synthetic crowds as batches of training: the demo's pictures at a small size with the truth as labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.known_scenes import CrowdScene
from dto_pipeline.lab.own_bodies import build_bodies
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.train.augment import Draw, resize
from dto_pipeline.train.config import AugmentConfig, DataConfig, TrainConfig, load_train_config
from dto_pipeline.train.dataset import Sample, TrainBatch, collate_samples
from dto_pipeline.train.targets import ImageLabels, Rules, see_people, unknown_people

SIDE = 112
_BODIES = 2  # random stream of true bodies, see `demo.scenes`
TINY = {
    "body.model_path": "demo",
    "encoder.width": 96,
    "encoder.layers": 3,
    "encoder.heads": 4,
    "encoder.additional": 1,
    "data.input_size": SIDE,
    "model.width": 96,
    "model.layers": 2,
    "model.hidden": 192,
    "model.queries": 12,
    "loop.rate": 1.5e-3,
    "loop.warm_up": 30,
    "loop.clip": 5.0,
    "loop.last_rate": 0.02,
}  # a network of about a million weights
SMALL: dict[str, object] = {
    **{"encoder__width": 32, "encoder__layers": 2, "model__width": 32, "model__layers": 1, "model__hidden": 32},
    **{"model__queries": 6, "loop__evaluate_every": 0},
}  # options of a much smaller one, evaluated at the end


def tiny_config(**options: object) -> TrainConfig:
    """`TINY` with other options, written room__key."""
    changed = TINY | {name.replace("__", "."): value for name, value in options.items()}
    return load_train_config(None, [f"{name}={value}" for name, value in changed.items()])


def crowd_batch(body: BodyModel, numbers: Sequence[int], side: int = SIDE, seed: int = 5) -> TrainBatch:
    """Pictures `numbers` of the demo's data set `seed`, the longer side made `side`."""
    images, labels = [], []
    for number in numbers:
        crowd = plan_crowd(seed, number)
        people = build_bodies(crowd, body, np.random.default_rng([seed, number, _BODIES]))
        images.append(CrowdScene(seed, number, body).picture.rgb)
        labels.append(true_labels(crowd.view.intrinsics, people.pose, people.betas, people.transl))
    return label_batch(images, labels, body, side)


def true_labels(
    intrinsics: np.ndarray, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray, **other: object
) -> ImageLabels:
    """Bodies that are known exactly; `other` fields of `ImageLabels` as given."""
    known = {"pose": pose, "betas": betas, "transl": transl}
    fields: dict[str, Any] = {name: np.asarray(values, np.float32) for name, values in known.items()}
    fields |= {"has_camera": True, "has_body": np.ones(len(pose), bool), **other}
    return dataclasses.replace(unknown_people(len(pose), np.asarray(intrinsics, np.float64)), **fields)


def label_batch(
    images: Sequence[np.ndarray], labels: Sequence[ImageLabels], body: BodyModel, side: int = SIDE,
    rules: AugmentConfig | None = None, draw: Draw | None = None,
) -> TrainBatch:  # fmt: skip
    """(h, w, 3) uint8 images with their labels, as they are or as `draw` says."""
    how = Rules(body, DataConfig(input_size=side), rules or AugmentConfig())
    samples: list[Sample] = []
    for number, (image, one) in enumerate(zip(images, labels, strict=True)):
        size = (image.shape[1], image.shape[0])
        seen = see_people(one, size, draw or Draw(), how)
        samples.append(Sample(f"crowd/{number}", resize(image, seen.frame.resized), seen))
    return collate_samples([*samples]).to("cpu")


def standing_batch(places: Sequence[Sequence[tuple[float, float]]], side: int = SIDE, seed: int = 3) -> TrainBatch:
    """Images of noise in which people stand upright at (x, z) metres."""
    body, random = load_body("demo"), np.random.default_rng(seed)
    camera = np.array([[1.2 * side, 0, side / 2], [0, 1.2 * side, side / 2], [0, 0, 1]])
    images, labels = [], []
    for one in places:
        pose = np.zeros((len(one), 72), np.float32)
        pose[:, 0] = np.pi
        transl = np.array([[x, 0.2, z] for x, z in one]).reshape(-1, 3)
        images.append(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        labels.append(true_labels(camera, pose, np.zeros((len(one), 11)), transl))
    return label_batch(images, labels, body, side)


def take_images(batch: TrainBatch, images: slice) -> TrainBatch:
    """Some images of a batch, with their people."""
    chosen = torch.arange(len(batch.images))[images]
    number = torch.full((len(batch.images),), -1).index_put((chosen,), torch.arange(len(chosen)))
    targets = batch.targets
    people, cells = number[targets.image] >= 0, number[targets.cell_image] >= 0
    order = torch.argsort(number[targets.image][people], stable=True)
    of_images = ("complete", "mapped", "heights", "image_focals", "intrinsics")
    taken = {}
    for name, value in vars(targets).items():
        if name in of_images:
            taken[name] = value[chosen]
        elif name in ("scale_map", "cell_image"):
            taken[name] = value[cells]
        else:
            taken[name] = value[people][order]
    taken |= {"image": number[taken["image"]], "cell_image": number[taken["cell_image"]]}
    return dataclasses.replace(
        batch,
        images=tuple(batch.images[k] for k in chosen.tolist()),
        targets=type(targets)(**taken),
        image_ids=tuple(batch.image_ids[k] for k in chosen.tolist()),
    )


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
    """What a training reads: one batch in memory that is learnt from and evaluated on."""

    data: TrainBatch
    images: int  # of a batch of one rank

    def __call__(self, rank: int, world: int, held_out: bool) -> Any:
        return self.held_out(rank, world) if held_out else self.training(rank, world)

    def training(self, rank: int, world: int) -> BatchStream:
        return BatchStream(self.data, self.images, rank, world)

    def held_out(self, rank: int, world: int) -> list[TrainBatch]:
        return [take_images(self.data, slice(rank, None, world))]
