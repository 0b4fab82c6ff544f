"""The outline each labelled body would have if nobody stood in front of it, and what follows where masks are missing.

Knows the body model and the rasteriser. A pixel that two people without masks claim counts for neither: which of them
stands in front is what the method wants to find out. Pixels of the person map (see `maths.camera.map_size`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dto_pipeline.maths.camera import map_intrinsics, project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import rasterize
from dto_pipeline.scene import Scene

_NEAREST = 0.05  # a label nearer than this, or behind the camera, has no outline [m]


@torch.no_grad()
def render_silhouettes(scene: Scene, body: BodyModel, max_side: int) -> np.ndarray:
    """(P, h, w) bool: pixels each labelled body covers on its own; empty for labels that cannot be used.

    The scene's masks give h and w; `max_side` is the longest side of person maps [px].
    """
    assert scene.masks is not None
    people = usable_people(scene)
    silhouettes = np.zeros(scene.masks.shape, bool)
    if len(people) == 0:
        return silhouettes
    device = body.faces.device
    vertices = body.vertices(*_label(scene, people, device))
    camera, size = _map_camera(scene, max_side, device)
    count = len(people)
    raster = rasterize(
        vertices[:, None],
        body.faces,
        camera.expand(count, 3, 3),
        size.expand(count, 2),
        torch.ones(count, 1, dtype=torch.bool, device=device),
    )
    silhouettes[people] = (raster.person >= 0).cpu().numpy()
    return silhouettes


@torch.no_grad()
def project_joints(scene: Scene, body: BodyModel) -> np.ndarray:
    """(P, 45, 2) float64 positions of smplx's joints in the image [px]; NaN for labels that cannot be used."""
    joints = np.full((scene.num_people, 45, 2), np.nan)
    people = usable_people(scene)
    if len(people):
        points = body.joints(*_label(scene, people, body.faces.device)).double().cpu()
        joints[people] = project(points, torch.from_numpy(scene.intrinsics)).numpy()
    return joints


def claim_pixels(masks: np.ndarray, has_mask: np.ndarray, silhouettes: np.ndarray) -> np.ndarray:
    """Masks of everybody, where those without one get their outline minus what anybody else claims.

    Args:
        masks: (P, h, w) bool; has_mask: (P,) bool, whose mask is real; silhouettes: (P, h, w) bool of all people.

    Returns:
        (P, h, w) bool; real masks are as they were.
    """
    claims = np.where(has_mask[:, None, None], masks, silhouettes)
    alone = claims.sum(0) == 1
    return np.where(has_mask[:, None, None], masks, claims & alone)


def usable_people(scene: Scene) -> np.ndarray:
    """(n,) indices of people whose labels can be drawn."""
    sound = np.array([problem is None for problem in scene.person_problem], bool)
    finite = np.isfinite(scene.transl).all(1) & (scene.transl[:, 2] > _NEAREST)
    return np.flatnonzero(sound & finite)


def _label(scene: Scene, people: Sequence[int] | np.ndarray, device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(values[people]).to(device) for values in (scene.pose, scene.betas, scene.transl)]


def _map_camera(scene: Scene, max_side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 3, 3) intrinsics and (1, 2) size of the person map."""
    assert scene.masks is not None
    image_size = torch.tensor([[scene.height, scene.width]])
    size = torch.tensor([scene.masks.shape[1:]])
    camera = map_intrinsics(torch.from_numpy(scene.intrinsics)[None], image_size, size, max_side)
    return camera.to(device), size.to(device)
