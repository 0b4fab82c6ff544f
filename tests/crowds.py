"""Small exact crowds for tests: standing bodies at known places, with masks and disparity rendered from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.collate import map_size
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import rasterize
from dto_pipeline.scene import Scene

UPRIGHT = (np.pi, 0.0, 0.0)  # root orientation that stands SMPL's y-up body in the y-down camera frame


@dataclass(frozen=True)
class Stander:
    """One person of a test crowd: true place and height, and how the label falsifies them."""

    x: float  # [m]
    z: float  # [m]
    height: float = 1.7  # [m], reached with the first shape coefficient
    factor: float = 1.0  # label size and distance over the true ones
    age: float = 30.0  # [year]
    male_prob: float = 0.9


def beta_for_height(body: BodyModel, height: Sequence[float]) -> np.ndarray:
    """(P, 11) betas whose first coefficient gives the heights [m] (secant steps: the height is nearly linear)."""
    want = torch.tensor(height, dtype=torch.float64)
    betas = torch.zeros(len(want), NUM_BETAS, dtype=torch.float64)
    for _ in range(20):
        gain = body.rest_height(betas + torch.eye(NUM_BETAS, dtype=torch.float64)[0]) - body.rest_height(betas)
        betas[:, 0] += (want - body.rest_height(betas)) / gain
    return betas.numpy().astype(np.float32)


def make_scene(
    body: BodyModel,
    people: Sequence[Stander],
    size: tuple[int, int] = (240, 320),
    alpha: float = 500.0,
    beta: float = 0.0,
    focal: float = 300.0,
    name: str = "crowd",
    principal_point: tuple[float, float] | None = None,
) -> Scene:
    """A scene whose relative depth is exactly (z - beta) / alpha of the true bodies, background 30 m behind.

    size: (H, W) [px]; focal [px]; principal_point: (cx, cy) [px], the image centre if not given.
    """
    height, width = size
    centre = principal_point or (width / 2, height / 2)
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    count = len(people)
    pose = np.zeros((count, 72), np.float32)
    pose[:, :3] = UPRIGHT
    truth = np.array([[p.x, 0.0, p.z] for p in people], np.float32)
    true_betas = beta_for_height(body, [p.height for p in people])
    vertices = body.vertices(torch.from_numpy(pose), torch.from_numpy(true_betas), torch.from_numpy(truth))
    raster = rasterize(
        vertices[None],
        body.faces,
        torch.from_numpy(intrinsics)[None],
        torch.tensor([[height, width]]),
        torch.ones(1, count, dtype=torch.bool),
    )
    z = raster.z[0].numpy()
    disparity = alpha / (np.where(z > 0, z, 30.0) - beta)
    h, w = map_size(height, width, 512)
    person = raster.person[0].numpy()[np.arange(h) * height // h][:, np.arange(w) * width // w]
    return Scene(
        image_id=f"test/{name}.jpg",
        subset="test",
        image_path=f"{name}.jpg",
        width=width,
        height=height,
        intrinsics=intrinsics,
        pose=pose,
        betas=beta_for_height(body, [p.height * p.factor for p in people]),
        transl=truth * np.array([[p.factor] for p in people], np.float32),
        age_years=np.array([p.age for p in people], np.float32),
        male_prob=np.array([p.male_prob for p in people], np.float32),
        source_row=np.arange(count),
        bbox_xyxy=np.full((count, 4), np.nan, np.float32),
        det_score=np.full(count, np.nan, np.float32),
        person_problem=[None] * count,
        masks=person[None] == np.arange(count)[:, None, None],
        disparity=disparity.astype(np.float32),
    )


def reorder(scene: Scene, order: Sequence[int]) -> Scene:
    """The same scene with its people in another order."""
    index = np.array(order)
    fields = ("pose", "betas", "transl", "age_years", "male_prob", "source_row", "bbox_xyxy", "det_score", "masks")
    changed = {name: getattr(scene, name)[index] for name in fields}
    return replace(scene, person_problem=[scene.person_problem[i] for i in order], **changed)
