"""Points and attributes at the pixels of a raster."""

from __future__ import annotations

import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import find_surface, rasterize, vertex_normals

CAMERA = torch.tensor([[40.0, 0, 24], [0, 40.0, 20], [0, 0, 1]])
SIZE = torch.tensor([[40, 48]])


def two_triangles() -> tuple[torch.Tensor, torch.Tensor]:
    """Two people of one slanted triangle each, the second one nearer: (2, 3, 3) and (1, 3)."""
    far = torch.tensor([[-2.0, -1.5, 5], [2.0, -1.5, 6], [0.0, 1.8, 4]])
    near = torch.tensor([[-0.5, -0.5, 2.2], [0.6, -0.4, 2.0], [0.1, 0.7, 2.5]])
    return torch.stack([far, near]), torch.tensor([[0, 1, 2]])


def test_interpolated_positions_are_the_points_seen() -> None:
    vertices, faces = two_triangles()
    raster = rasterize(vertices[None], faces, CAMERA[None], SIZE, torch.ones(1, 2, dtype=torch.bool))
    surface = find_surface(raster, 0, vertices, faces, CAMERA)
    assert set(surface.person.tolist()) == {0, 1}
    torch.testing.assert_close(surface.interpolate(vertices), surface.point, atol=2e-4, rtol=0)


def test_a_point_projects_back_onto_the_centre_of_its_pixel() -> None:
    vertices, faces = two_triangles()
    raster = rasterize(vertices[None], faces, CAMERA[None], SIZE, torch.ones(1, 2, dtype=torch.bool))
    surface = find_surface(raster, 0, vertices, faces, CAMERA)
    u = surface.point[:, 0] / surface.point[:, 2] * 40 + 24
    v = surface.point[:, 1] / surface.point[:, 2] * 40 + 20
    torch.testing.assert_close(u, surface.pixel % 48 + 0.5)
    torch.testing.assert_close(v, surface.pixel // 48 + 0.5)


def test_normals_of_a_body_are_unit_and_point_outwards(body: BodyModel) -> None:
    vertices = body.vertices(torch.zeros(1, 72), torch.zeros(1, 11), torch.zeros(1, 3))
    normals = vertex_normals(vertices, body.faces)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(1, body.num_vertices))
    grown = vertices + 0.01 * normals
    assert (grown.amax(1) > vertices.amax(1)).all()
    assert (grown.amin(1) < vertices.amin(1)).all()
