"""What the losses compare a network with: the N people of B images, one after the other. Knows no network.

Metres before the camera of the resized image, its pixels, shares of the input size S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.train.architecture import CELL
from dto_pipeline.train.tokens import z_order

BOX_GROWTH = 1.2  # of a box about its centre, to hold skin and clothes around the joints


@dataclass(frozen=True)
class Targets:
    """People and images; a missing label is a mask that is False, 0 or -1, never a made-up number.

    Attributes:
        image: (N,) int64 ascending, which image a person is of.
        has_body: (N,) bool, pose, shape and place are labels; False for people known in the picture only.
        boxes: (N, 4) cx, cy, w, h.
        poses: (N, 72) axis-angle, betas: (N, 11), j3ds: (N, J, 3) [m].
        j2ds: (N, J, 2) [px] and j2ds_mask: (N, J, 2) bool, where they count.
        transl: (N, 3) SMPL's transl, pelvis_z: (N,) [m]; focals: (N,) [px], 0 = unknown.
        depth_layer: (N,) int64 ordinal layer of depth, 0 nearest, -1 = unknown.
        z_covariance: (N, P) posterior covariance of z with the k-th person of the image [m2], NaN = unknown; or empty.
        scale_map: (T, 2) of the 28 px cells: 1 where somebody is, and how large; cell_image: (T,).
        complete: (B,) bool, everybody in the image is labelled; mapped: (B,) bool, and everybody's cells are known.
        heights: (B,) [px] without padding; image_focals: (B,) [px], 0 = unknown.
    """

    image: torch.Tensor
    has_body: torch.Tensor
    boxes: torch.Tensor
    poses: torch.Tensor
    betas: torch.Tensor
    j3ds: torch.Tensor
    j2ds: torch.Tensor
    j2ds_mask: torch.Tensor
    transl: torch.Tensor
    pelvis_z: torch.Tensor
    focals: torch.Tensor
    depth_layer: torch.Tensor
    z_covariance: torch.Tensor
    scale_map: torch.Tensor
    cell_image: torch.Tensor
    complete: torch.Tensor
    mapped: torch.Tensor
    heights: torch.Tensor
    image_focals: torch.Tensor

    def to(self, device: torch.device | str) -> Targets:
        """The same on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return Targets(**moved)

    @property
    def counts(self) -> list[int]:
        """People of each image."""
        return torch.bincount(self.image, minlength=len(self.heights)).tolist()

    @property
    def within(self) -> torch.Tensor:
        """(N,) a person's number in its image."""
        counts = torch.bincount(self.image, minlength=len(self.heights))
        return torch.arange(len(self.image), device=self.image.device) - (counts.cumsum(0) - counts)[self.image]


def person_boxes(points: np.ndarray, seen: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Boxes around all joints, 1.2 times as large about their centre, corners cut to the image.

    Args:
        points: (P, J, 2) [px]; seen: (P, J) bool, joints that count; size: w, h [px]; side: S.

    Returns:
        (P, 4) cx, cy, w, h as shares of S; NaN where no joint counts.
    """
    if not len(points):
        return np.zeros((0, 4))
    low = np.where(seen[..., None], points, np.inf).min(1) / side
    high = np.where(seen[..., None], points, -np.inf).max(1) / side
    known = seen.any(1, keepdims=True)
    low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
    return cut_boxes((low + high) / 2, (high - low) * BOX_GROWTH, size, side)


def cut_boxes(centre: np.ndarray, extent: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Centre and extent (P, 2) as shares of S -> (P, 4) cx, cy, w, h with corners in [1e-6, (w - 1) / S]."""
    most = (np.array(size) - 1) / side
    first, last = (np.clip(centre + sign * extent / 2, 1e-6, most) for sign in (-1, 1))
    return np.concatenate([(first + last) / 2, last - first], axis=1)


def mark_cells(
    points: np.ndarray, distance: np.ndarray, scale: np.ndarray, size: tuple[int, int], edges: np.ndarray, clamp: bool
) -> np.ndarray:
    """The scale map of an image: which 28 px cells show somebody, and how large the nearest is.

    Args:
        points: (P, V, 2) vertices [px], NaN behind the camera.
        distance: (P,) what nearer means: depth by focal length.
        scale: (P,) size of each person, 0 .. 1.
        size: w, h of the image without padding.
        edges: (E, 2) vertices whose middle counts as well.
        clamp: vertices outside mark the cells at the border, as published.

    Returns:
        (n, 2) float32 in Z-order over the padded image: 1 or 0, and the scale.
    """
    columns, rows = (-(-side // CELL) for side in size)
    grid = np.zeros((rows + rows % 2, columns + columns % 2, 2), np.float32)
    for person in np.argsort(-distance, kind="stable"):
        places = np.concatenate([points[person], points[person][edges].mean(1)])
        cells = np.floor(places[np.isfinite(places).all(1)].clip(-1e9, 1e9) / CELL).astype(np.int64)
        if clamp:
            cells = cells.clip(0, [columns - 1, rows - 1])
        else:
            cells = cells[np.all((cells >= 0) & (cells < np.array([columns, rows])), axis=1)]
        grid[cells[:, 1], cells[:, 0]] = 1, scale[person]
    y, x = z_order(*grid.shape[:2])
    return grid[y.numpy(), x.numpy()]


def mesh_edges(faces: np.ndarray) -> np.ndarray:
    """(F, 3) triangles -> (E, 2) edges, each once."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return np.unique(pairs, axis=0)


def project_vertices(vertices: np.ndarray, intrinsics: np.ndarray, behind: bool = False) -> np.ndarray:
    """(P, V, 3) [m] by cameras (1 or P, 3, 3) -> (P, V, 2) [px]; NaN behind the camera, unless `behind` is wanted."""
    seen = vertices @ intrinsics.transpose(0, 2, 1)
    z = seen[..., 2:]
    places = seen[..., :2] / np.where(z == 0, 1e-9, z)
    return places if behind else np.where(z > 0, places, np.nan)
