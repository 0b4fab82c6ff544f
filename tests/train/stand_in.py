"""A network that says the same two people of every input, and one below the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dto_pipeline.config import BodyConfig
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.predict import Trained

SIDE = 112  # S of the stand-in
FOCAL = 120.0  # what it thinks the input was taken with [px]


@dataclass
class StandIn:
    """Two people 3 and 5 m away, least sure first; remembers the sizes of the images it saw."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width
    transl: tuple[tuple[float, float, float], ...] = ((0.4, 0.2, 5.0), (-0.3, 0.1, 3.0), (0.0, 0.0, 4.0))
    confidence: tuple[float, ...] = (0.6, 0.9, 0.1)
    spoil: Callable[[Predictions], None] = lambda _: None  # changes an answer in place

    def __call__(self, images: Sequence[torch.Tensor]) -> Predictions:
        assert all(max(image.shape[1:]) == SIDE and image.dtype == torch.uint8 for image in images)
        self.sizes += [(image.shape[1], image.shape[2]) for image in images]
        count = len(images)
        camera = torch.diag_embed(torch.tensor([FOCAL, FOCAL, 1.0])).repeat(count, 1, 1)
        camera[:, :2, 2] = torch.tensor([[image.shape[2] / 2, image.shape[1] / 2] for image in images])
        pose = torch.zeros(3, 72)
        pose[:, 0] = 3.1
        pose[1, 5] = 0.4
        boxes = torch.tensor([[20.0, 50, 20, 60], [50, 110, 20, 180], [2.5, 2.5, 5, 5]]) / SIDE
        transl = torch.tensor(self.transl)
        answer = Predictions(
            confs=torch.tensor(self.confidence).repeat(1, count, 1),
            boxes=boxes.repeat(1, count, 1, 1),
            poses=pose.repeat(1, count, 1, 1),
            betas=torch.linspace(-1, 1, 11).repeat(1, count, 3, 1),
            transl=transl.repeat(1, count, 1, 1),
            depths=torch.stack([transl[:, 2], transl[:, 2] / FOCAL], dim=-1).repeat(1, count, 1, 1),
            intrinsics=camera,
            scale_map=torch.zeros(0, 2),
            cells=None,
            input_size=SIDE,
        )
        self.spoil(answer)
        return answer


def stand_in(body: BodyModel, network: StandIn | None = None) -> Trained:
    return Trained(network or StandIn(), body, BodyConfig("demo"), SIDE, "0" * 64, torch.device("cpu"))
