"""People of files as bodies: joints, meshes and their places in the image. Metres, pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.maths.person_matching import view_bodies
from dto_pipeline.models.body import BodyModel

TREE = 24  # joints of SMPL's tree, the first of smplx's 45
_AT_ONCE = 128  # meshes in memory: 20 MB


def _tensors(people: People) -> Iterator[torch.Tensor]:
    """Pose, betas, transl."""
    return (torch.from_numpy(np.ascontiguousarray(x)) for x in (people.pose, people.betas, people.transl))


def joints_of(people: People, body: BodyModel) -> np.ndarray:
    """(n, 45, 3) float32 joints [m]."""
    return body.joints(*_tensors(people)).numpy()


def vertices_of(people: People, body: BodyModel) -> np.ndarray:
    """(n, V, 3) float32 meshes [m]; of many people, see `in_chunks`."""
    return body.vertices(*_tensors(people)).numpy()


def project_joints(people: People, body: BodyModel, intrinsics: np.ndarray) -> np.ndarray:
    """(n, 45, 2) joints in the image [px], NaN where one is not in front of the camera (n, 3, 3)."""
    return view_bodies(body.joints(*_tensors(people)), torch.from_numpy(intrinsics)).joints.numpy()


def rest_heights(people: People, body: BodyModel) -> np.ndarray:
    """(n,) float64 heights in the rest pose [m], as the file says it or as the body has it."""
    if people.height is not None:
        return people.height
    return body.rest_height(torch.from_numpy(people.betas.astype(np.float64))).numpy()


def in_chunks(count: int) -> list[np.ndarray]:
    """Positions 0 .. count - 1 in parts whose meshes fit into memory; one part, empty, of nobody."""
    return np.array_split(np.arange(count), max(1, -(-count // _AT_ONCE)))
