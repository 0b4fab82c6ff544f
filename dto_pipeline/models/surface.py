"""What is seen at the pixels of a raster: points, normals and any vertex attribute, interpolated on the triangles.

For pictures only (shading, textures); labels never depend on it. Pure functions on tensors of one scene; metres,
camera frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.models.rasterizer import Raster


@dataclass(frozen=True)
class Surface:
    """The n covered pixels of one scene's raster, row-major."""

    pixel: torch.Tensor  # (n,) int64: row * w + column
    person: torch.Tensor  # (n,) int64
    corner: torch.Tensor  # (n, 3) int64: person * V + vertex, of the triangle's corners
    weight: torch.Tensor  # (n, 3) float32 barycentric coordinates on the triangle in space
    point: torch.Tensor  # (n, 3) float32 [m]

    def interpolate(self, values: torch.Tensor) -> torch.Tensor:
        """Vertex attributes at the pixels. Args: values (P, V, C). Returns: (n, C)."""
        flat = values.reshape(-1, values.shape[-1])
        return (flat[self.corner] * self.weight[..., None]).sum(1)


@torch.no_grad()
def find_surface(
    raster: Raster, scene: int, vertices: torch.Tensor, faces: torch.Tensor, intrinsics: torch.Tensor
) -> Surface:
    """Where on whose triangle each covered pixel of one scene of a raster lies.

    Args:
        raster: of B scenes; scene: which of them.
        vertices: (P, V, 3) that scene's people, as rasterised [m]; faces: (F, 3) int64.
        intrinsics: (3, 3) camera of the map [px].
    """
    width = raster.person.shape[-1]
    pixel = (raster.person[scene].flatten() >= 0).nonzero().squeeze(1)
    person, face, z = (value[scene].flatten()[pixel] for value in (raster.person, raster.face, raster.z))
    u = (pixel % width).to(z.dtype) + 0.5
    v = torch.div(pixel, width, rounding_mode="floor").to(z.dtype) + 0.5
    k = intrinsics.to(z.dtype)
    point = torch.stack([(u - k[0, 2]) * z / k[0, 0], (v - k[1, 2]) * z / k[1, 1], z], dim=-1)
    corner = person[:, None] * vertices.shape[-2] + faces[face]
    weight = _barycentric(point, vertices.reshape(-1, 3)[corner])
    return Surface(pixel, person, corner, weight, point)


@torch.no_grad()
def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Unit normals per vertex, outward for SMPL's triangles, weighted by the area of the faces around.

    Args:
        vertices: (P, V, 3) [m]; faces: (F, 3) int64.

    Returns:
        (P, V, 3).
    """
    a, b, c = (vertices[:, faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(1, faces[:, i], normal)
    return torch.nn.functional.normalize(total, dim=-1)


def _barycentric(point: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
    """(n, 3) coordinates of points (n, 3) in triangles (n, 3, 3), clipped to the triangle."""
    a, b, c = triangle.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    squared = (normal * normal).sum(-1).clamp(min=1e-20)
    second = (torch.linalg.cross(point - a, c - a) * normal).sum(-1) / squared
    third = (torch.linalg.cross(b - a, point - a) * normal).sum(-1) / squared
    weight = torch.stack([1 - second - third, second, third], dim=-1).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True)
