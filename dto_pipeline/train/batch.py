"""Images with their people, one by one as they are read and joined to what a training step sees. Knows no file.

Shapes and units of labels: `people.Targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dto_pipeline.train.augment import Draw, Paint, paint
from dto_pipeline.train.config import GROUP
from dto_pipeline.train.people import Rules, SeenPeople, Targets, no_labels, see_people


@dataclass(frozen=True)
class Sample:
    """One image ready to be batched."""

    image_id: str  # "" = a black image in the place of a batch of which nothing could be read
    image: np.ndarray  # (h, w, 3) uint8 RGB, resized
    paint: Paint  # what is left to be done to it
    seen: SeenPeople


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    image_id: str
    reason: str


@dataclass(frozen=True)
class TrainBatch:
    """What one training step sees: B images, each of its own size, and their people.

    Attributes:
        images: B of (3, h, w) uint8 RGB, the longer side S; not varied before `to` puts them on their device.
        paints: what is left to be done to them; () = nothing.
        intrinsics: (B, 3, 3) float32 camera of the varied image [px]; the principal point is where it is.
        targets: the people of all of them.
        image_ids: B keys; "" = a black image in the place of a batch of which nothing could be read.
        skipped: "key: reason" of each image of this batch that could not be used and is not in it.
    """

    images: tuple[torch.Tensor, ...]
    paints: tuple[Paint, ...]
    intrinsics: torch.Tensor
    targets: Targets
    image_ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def centres(self) -> torch.Tensor:
        """(B, 2) principal points [px]."""
        return self.intrinsics[:, :2, 2]

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on another device, its images varied there."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        if self.paints:
            images = [paint(image, how) for image, how in zip(images, self.paints, strict=True)]
        targets = {name: value.to(device, non_blocking=True) for name, value in vars(self.targets).items()}
        camera = self.intrinsics.to(device, non_blocking=True)
        return replace(self, images=tuple(images), paints=(), intrinsics=camera, targets=Targets(**targets))

    def pin_memory(self) -> TrainBatch:
        """In memory from which a GPU copies by itself."""
        targets = {name: value.pin_memory() for name, value in vars(self.targets).items()}
        images = tuple(image.pin_memory() for image in self.images)
        return replace(self, images=images, intrinsics=self.intrinsics.pin_memory(), targets=Targets(**targets))


@dataclass(frozen=True)
class ReadItems:
    """What a reading process sends: arrays go through a pipe, where tensors would need room in /dev/shm."""

    items: list[Sample | Skipped]

    def pin_memory(self) -> TrainBatch:
        """Called by PyTorch in a thread of its own where batches go to a GPU."""
        return collate_samples(self.items).pin_memory()


def blank_sample(rules: Rules) -> Sample:
    """A black image in which truly nobody is."""
    width, height = size = (rules.data.input_size, GROUP)
    seen, varied = see_people(no_labels(size), size, Draw(), rules)
    return Sample("", np.zeros((height, width, 3), np.uint8), Paint(varied.frame), seen)


def collate_samples(items: Sequence[Sample | Skipped]) -> TrainBatch:
    """Images and people one after the other; what was skipped is named. At least one item is a sample."""
    samples = [item for item in items if isinstance(item, Sample)]
    seen = [sample.seen for sample in samples]
    most, numbers = max(one.num_people for one in seen), np.arange(len(seen))

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
        heights=torch.tensor([float(sample.paint.frame.size[1]) for sample in samples]),
        image_focals=torch.tensor([one.image_focal for one in seen]),
    )
    return TrainBatch(
        images=tuple(torch.from_numpy(sample.image).permute(2, 0, 1) for sample in samples),
        paints=tuple(sample.paint for sample in samples),
        intrinsics=torch.from_numpy(np.stack([one.intrinsics for one in seen])).float(),
        targets=targets,
        image_ids=tuple(sample.image_id for sample in samples),
        skipped=tuple(f"{item.image_id}: {item.reason}" for item in items if isinstance(item, Skipped)),
    )
