"""The rasteriser against a plain float64 one, and what must not change its answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.maths.camera import project
from dto_pipeline.models import rasterizer
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import (
    count_visible_vertices,
    find_surface,
    is_closed,
    rasterize,
    vertex_normals,
)

SIZE = (24, 32)
CAMERA = torch.tensor([[[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]], dtype=torch.float64)


def random_meshes(seed: int, people: int = 3, faces: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangle soups in front of the camera: (1, P, V, 3) vertices and (F, 3) faces shared by all."""
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(1, people, 3 * faces, 3, generator=generator, dtype=torch.float64)
    vertices = vertices * torch.tensor([3.0, 2.4, 3.0]) + torch.tensor([-1.5, -1.2, 2.0])
    return vertices, torch.arange(3 * faces).view(faces, 3)


def plain_rasterizer(vertices: np.ndarray, faces: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest person and z by testing every pixel of every triangle in float64."""
    height, width = SIZE
    person, depth = np.full(SIZE, -1), np.full(SIZE, np.inf)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for index, mesh in enumerate(vertices):
        uv = mesh[:, :2] / mesh[:, 2:] * 30 + np.array([16, 12])
        for face in faces:
            corner, z = uv[face], mesh[face, 2]
            system = np.vstack([corner.T, np.ones(3)])
            weights = np.linalg.solve(system, np.stack([columns.ravel(), rows.ravel(), np.ones(height * width)]))
            value = (1 / (weights / z[:, None]).sum(0)).reshape(SIZE)
            inside = (weights >= 0).all(0).reshape(SIZE) & masks[index]
            nearer = inside & (value < depth)
            person[nearer], depth[nearer] = index, value[nearer]
    return person, np.where(np.isinf(depth), 0, depth)


def assert_same(found: rasterizer.Raster, scene: int, alone: rasterizer.Raster) -> None:
    for name in ("person", "z", "face"):
        assert torch.equal(getattr(found, name)[scene], getattr(alone, name)[0]), name


def draw(vertices: torch.Tensor, faces: torch.Tensor, masks: torch.Tensor | None = None) -> rasterizer.Raster:
    present = torch.ones(vertices.shape[:2], dtype=torch.bool)
    size = torch.tensor([SIZE] * len(vertices))
    return rasterize(vertices, faces, CAMERA.expand(len(vertices), 3, 3), size, present, masks)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100_000))
def test_ids_and_z_equal_a_plain_float64_rasterizer(seed: int) -> None:
    vertices, faces = random_meshes(seed)
    masks = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) < 0.7
    person, z = plain_rasterizer(vertices[0].numpy(), faces.numpy(), masks[0].numpy())
    found = draw(vertices, faces, masks)
    assert np.array_equal(found.person[0].numpy(), person)
    assert np.allclose(found.z[0].numpy(), z, rtol=1e-5)


def test_the_order_of_people_changes_only_their_numbers() -> None:
    vertices, faces = random_meshes(5)
    order = torch.tensor([2, 0, 1])
    plain, mixed = draw(vertices, faces), draw(vertices[:, order], faces)
    assert torch.equal(plain.z, mixed.z)
    assert torch.equal(torch.where(mixed.person >= 0, order[mixed.person], -1), plain.person)


def test_where_two_people_are_equally_near_the_lower_index_wins() -> None:
    vertices, faces = random_meshes(6, people=1)
    twins = vertices.expand(1, 2, -1, -1)
    assert set(draw(twins, faces).person.unique().tolist()) == {-1, 0}


def test_batching_and_chunking_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left, faces = random_meshes(7)
    right, _ = random_meshes(8)
    together = draw(torch.cat([left, right]), faces)
    monkeypatch.setattr(rasterizer, "_PAIRS_AT_ONCE_CPU", 50)
    for index, alone in enumerate((draw(left, faces), draw(right, faces))):
        assert_same(together, index, alone)


def test_a_person_is_drawn_only_inside_its_mask_and_only_if_present() -> None:
    vertices, faces = random_meshes(9)
    masks = torch.zeros(1, 3, *SIZE, dtype=torch.bool)
    masks[0, 1, :, :16] = True
    found = draw(vertices, faces, masks)
    assert set(found.person.unique().tolist()) == {-1, 1}
    assert (found.person[0, :, 16:] == -1).all()
    absent = rasterize(vertices, faces, CAMERA, torch.tensor([SIZE]), torch.zeros(1, 3, dtype=torch.bool))
    assert (absent.person == -1).all()


def test_triangles_reaching_behind_the_camera_are_left_out() -> None:
    vertices, faces = random_meshes(10, people=1)
    vertices[..., 2] -= 10
    assert (draw(vertices, faces).person == -1).all()


def test_half_of_a_body_in_front_is_visible(body: BodyModel) -> None:
    pose = torch.zeros(1, 1, 72)
    pose[..., 0] = np.pi
    vertices = body.vertices(pose, torch.zeros(1, 1, 11), torch.tensor([[[0.0, 0.0, 3.0]]]))
    camera = torch.tensor([[[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]]], dtype=torch.float64)
    size = torch.tensor([[240, 320]])
    raster = rasterize(vertices, body.faces, camera, size, torch.ones(1, 1, dtype=torch.bool))
    visible = int(count_visible_vertices(vertices, camera, size, size, raster, 0.01))
    assert 0.35 * 6890 < visible < 0.65 * 6890


def crowd(body: BodyModel, scenes: int, people: int, seed: int = 0) -> torch.Tensor:
    """(B, P, V, 3) bodies in gentle poses in front of `VIEW`."""
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(scenes, people, 72, generator=generator) * 0.15
    pose[..., :3] = torch.tensor([np.pi, 0, 0]) + torch.randn(scenes, people, 3, generator=generator) * 0.3
    z = torch.rand(scenes, people, 1, generator=generator) * 4 + 2
    transl = torch.cat([(torch.rand(scenes, people, 2, generator=generator) - 0.5) * z * 0.6, z], -1)
    return body.vertices(pose, torch.zeros(scenes, people, 11), transl)


VIEW = torch.tensor([[200.0, 0, 80], [0, 200.0, 60], [0, 0, 1]], dtype=torch.float64)


def view(body: BodyModel, vertices: torch.Tensor, closed: bool) -> rasterizer.Raster:
    scenes = len(vertices)
    size = torch.tensor([[120, 160]] * scenes)
    present = torch.ones(vertices.shape[:2], dtype=torch.bool)
    return rasterize(vertices, body.faces, VIEW.expand(scenes, 3, 3), size, present, None, closed)


def test_the_stand_in_body_is_closed_and_turned_outward(body: BodyModel) -> None:
    template = body.vertices(torch.zeros(72), torch.zeros(11), torch.zeros(3))
    assert body.closed
    assert not is_closed(template, body.faces.flip(1)), "turned inside out"
    assert not is_closed(template, body.faces[1:]), "a hole"


def test_faces_turned_away_from_the_camera_are_never_seen(body: BodyModel) -> None:
    vertices = crowd(body, scenes=6, people=4)
    every, turned = view(body, vertices, closed=False), view(body, vertices, closed=True)
    assert torch.equal(every.person, turned.person)
    assert torch.equal(every.z, turned.z)


def test_a_body_that_reaches_behind_the_camera_keeps_both_sides(body: BodyModel) -> None:
    """One looks into it there: what is seen is its back from within."""
    vertices = crowd(body, scenes=1, people=1)
    vertices = vertices - vertices.mean(-2, keepdim=True)  # the camera is in the belly
    every, turned = view(body, vertices, closed=False), view(body, vertices, closed=True)
    assert (every.person >= 0).any()
    assert torch.equal(every.face, turned.face)


def test_other_people_of_a_batch_change_no_bit_of_a_body(body: BodyModel) -> None:
    vertices = crowd(body, scenes=13, people=3)
    together = view(body, vertices, closed=True)
    for scene in range(len(vertices)):
        assert_same(together, scene, view(body, vertices[scene : scene + 1], closed=True))


def test_a_point_of_the_surface_is_seen_at_its_pixel_and_attributes_are_interpolated_there() -> None:
    """Two people of one slanted triangle each, the second one nearer."""
    far = torch.tensor([[-2.0, -1.5, 5], [2.0, -1.5, 6], [0.0, 1.8, 4]])
    near = torch.tensor([[-0.5, -0.5, 2.2], [0.6, -0.4, 2.0], [0.1, 0.7, 2.5]])
    vertices, faces = torch.stack([far, near]), torch.tensor([[0, 1, 2]])
    surface = find_surface(draw(vertices[None], faces), 0, vertices, faces, CAMERA[0])
    assert set(surface.person.tolist()) == {0, 1}
    torch.testing.assert_close(surface.interpolate(vertices), surface.point, atol=2e-4, rtol=0)
    centre = torch.stack([surface.pixel % SIZE[1], surface.pixel // SIZE[1]], 1) + 0.5
    torch.testing.assert_close(project(surface.point, CAMERA[0].float()), centre)


def test_normals_of_a_body_are_unit_and_point_outwards(body: BodyModel) -> None:
    vertices = body.vertices(torch.zeros(1, 72), torch.zeros(1, 11), torch.zeros(1, 3))
    normals = vertex_normals(vertices, body.faces)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(1, body.num_vertices))
    grown = vertices + 0.01 * normals
    assert (grown.amax(1) > vertices.amax(1)).all()
    assert (grown.amin(1) < vertices.amin(1)).all()
