"""Rasteriser: meshes of all people of a batch -> nearest person, face and z per pixel, in plain torch.

One packed 64-bit key per pixel (z bits above, person and face below) with an atomic minimum: exactly "every person's own
z-buffer inside its mask, nearest person wins, ties to the lower index", without a z-buffer per person and whatever
the order. Same code on CPU and GPU. z is exact on the triangle's plane (1/z is affine in the image); pixel centres
lie at integer + 0.5. Triangles that reach behind the camera are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.maths.camera import project

NEAREST_Z = 1e-3  # triangles with a vertex nearer than this are not drawn [m]
_PAIRS_AT_ONCE = 1 << 22  # (triangle, pixel) candidates tested at once: bounds memory to about 0.5 GB
_EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Raster:
    """Nearest surface per pixel of B maps."""

    person: torch.Tensor  # (B, h, w) int64 index along P, -1 = nobody
    face: torch.Tensor  # (B, h, w) int64 index along F, -1 = nobody
    z: torch.Tensor  # (B, h, w) float32 [m], 0 = nobody


@dataclass(frozen=True)
class _Triangles:
    """T triangles that may cover a pixel centre, positions relative to the first pixel of their box."""

    key: torch.Tensor  # (T,) int64: person * F + face
    mesh: torch.Tensor  # (T,) int64: b * P + p
    row0: torch.Tensor  # (T,) int64 first row of the box
    col0: torch.Tensor  # (T,) int64 first column of the box
    cols: torch.Tensor  # (T,) int64 columns of the box
    count: torch.Tensor  # (T,) int64 pixels of the box
    planes: torch.Tensor  # (T, 4, 3) float32: three barycentric coordinates and 1/z as a + b * column + c * row


@torch.no_grad()
def rasterize(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    intrinsics: torch.Tensor,
    map_size: torch.Tensor,
    present: torch.Tensor,
    masks: torch.Tensor | None = None,
) -> Raster:
    """Draw all people of B scenes into maps.

    Args:
        vertices: (B, P, V, 3) camera frame [m]; faces: (F, 3) int64.
        intrinsics: (B, 3, 3) camera of the map [px]; map_size: (B, 2) int64 (h, w) of each map.
        present: (B, P) bool, who is drawn; masks: (B, P, h, w) bool, where each person may be drawn (None: anywhere).

    Returns:
        `Raster` padded to the largest map (or to the size of `masks`).
    """
    batch, people = present.shape
    if masks is not None:
        height, width = int(masks.shape[-2]), int(masks.shape[-1])
    else:
        height, width = (int(side) for side in map_size.amax(dim=0))
    keys = torch.full((batch * height * width,), _EMPTY, dtype=torch.int64, device=vertices.device)
    triangles = _set_up(vertices, faces, intrinsics, map_size, present)
    flat_masks = None if masks is None else masks.reshape(-1)
    for chunk in _chunks(triangles.count):
        _draw(keys, triangles, chunk, people, height, width, flat_masks)
    covered = keys != _EMPTY
    low = torch.where(covered, keys & 0xFFFFFFFF, 0)
    z = torch.where(covered, keys >> 32, 0).to(torch.int32).view(torch.float32)
    shape = (batch, height, width)
    return Raster(
        person=torch.where(covered, low // len(faces), -1).view(shape),
        face=torch.where(covered, low % len(faces), -1).view(shape),
        z=z.view(shape),
    )


@torch.no_grad()
def count_visible_vertices(
    vertices: torch.Tensor,
    intrinsics: torch.Tensor,
    image_size: torch.Tensor,
    map_size: torch.Tensor,
    raster: Raster,
    tolerance: float,
) -> torch.Tensor:
    """How many vertices of each person project onto a covered pixel and lie no more than `tolerance` behind it.

    The pixel may be anybody's (as published). A vertex (u, v) of the image falls on the map's pixel
    (round(u (w - 1) / (W - 1)), round(v (h - 1) / (H - 1))).

    Args:
        vertices: (B, P, V, 3) camera frame [m]; intrinsics: (B, 3, 3) of the full image [px].
        image_size, map_size: (B, 2) int64; tolerance [m].

    Returns:
        (B, P) int64.
    """
    batch = vertices.shape[0]
    uv = project(vertices, intrinsics.to(vertices.dtype)[:, None, None])
    ratio = (map_size - 1).to(uv.dtype) / (image_size - 1).clamp(min=1).to(uv.dtype)
    position = torch.round(uv * ratio.flip(-1)[:, None, None])
    limit = map_size.flip(-1)[:, None, None]
    inside = ((position >= 0) & (position < limit)).all(-1) & (vertices[..., 2] > NEAREST_Z)
    column, row = torch.where(inside.unsqueeze(-1), position, 0).to(torch.int64).unbind(-1)
    stride = raster.z.shape[-1]
    z = raster.z.flatten(1).gather(1, (row * stride + column).reshape(batch, -1)).view_as(row)
    return (inside & (z > 0) & (vertices[..., 2] <= z + tolerance)).sum(-1)


def _set_up(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    intrinsics: torch.Tensor,
    map_size: torch.Tensor,
    present: torch.Tensor,
) -> _Triangles:
    """Keep the triangles whose box holds a pixel centre, and prepare their planes."""
    people, num_faces = present.shape[1], len(faces)
    uv = project(vertices, intrinsics.to(vertices.dtype)[:, None, None])
    uvz = torch.cat([uv, vertices[..., 2:]], dim=-1)
    corners = uvz[:, :, faces.T]  # (B, P, 3 corners, F, 3)
    drawn = present[:, :, None] & (corners[..., 2] > NEAREST_Z).all(2)
    first = torch.ceil(corners[..., :2].amin(2) - 0.5).clamp(min=0)
    limit = (map_size.flip(-1) - 1).to(uv.dtype)[:, None, None]
    extent = torch.minimum(torch.floor(corners[..., :2].amax(2) - 0.5), limit) - first + 1
    drawn &= (extent > 0).all(-1)

    scene, person, face = drawn.nonzero(as_tuple=True)
    box, extent = first[scene, person, face], extent[scene, person, face].to(torch.int64)
    planes, area = _planes(corners[scene, person, :, face], box)
    column, row = box.to(torch.int64).unbind(-1)
    return _Triangles(
        key=person * num_faces + face,
        mesh=scene * people + person,
        row0=row,
        col0=column,
        cols=extent[:, 0],
        count=torch.where(area.abs() > 0, extent[:, 0] * extent[:, 1], 0),
        planes=planes,
    )


def _planes(corners: torch.Tensor, box: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Barycentric coordinates and 1/z as affine functions of (column, row) counted from the box's first pixel.

    Args: corners (T, 3, 3) as u, v, z; box (T, 2) column and row. Returns: (T, 4, 3) planes, (T,) doubled area.
    """
    relative = corners[..., :2] - (box[:, None] + 0.5)
    x, y = relative.unbind(-1)
    x1, y1 = x.roll(-1, 1), y.roll(-1, 1)  # the corner after
    x2, y2 = x.roll(-2, 1), y.roll(-2, 1)
    area = x[:, 0] * (y1[:, 0] - y2[:, 0]) + x1[:, 0] * (y2[:, 0] - y[:, 0]) + x2[:, 0] * (y[:, 0] - y1[:, 0])
    coefficients = torch.stack([x1 * y2 - x2 * y1, y1 - y2, x2 - x1], dim=-1)
    barycentric = coefficients / torch.where(area == 0, 1, area)[:, None, None]
    inverse_z = (barycentric / corners[..., 2:]).sum(1, keepdim=True)
    return torch.cat([barycentric, inverse_z], dim=1), area


def _chunks(count: torch.Tensor) -> list[slice]:
    """Runs of triangles with at most about `_PAIRS_AT_ONCE` candidates together."""
    if len(count) == 0:
        return []
    group = torch.cumsum(count, 0).sub_(1).clamp_(min=0) // _PAIRS_AT_ONCE
    last = int(group[-1])
    if last == 0:
        return [slice(0, len(count))]
    borders = torch.searchsorted(group, torch.arange(last + 2, device=count.device)).tolist()
    return [slice(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True) if b > a]


def _draw(
    keys: torch.Tensor,
    triangles: _Triangles,
    chunk: slice,
    people: int,
    height: int,
    width: int,
    flat_masks: torch.Tensor | None,
) -> None:
    """Test every pixel of every box of `chunk` and lower the keys of those inside."""
    count = triangles.count[chunk]
    triangle = torch.repeat_interleave(count) + chunk.start
    start = torch.cumsum(count, 0) - count
    step = torch.arange(len(triangle), device=keys.device) - start[triangle - chunk.start]
    cols = triangles.cols[triangle]
    row = torch.div(step, cols, rounding_mode="floor")
    column = step - row * cols
    a, b, c = triangles.planes[triangle].unbind(-1)  # each (pairs, 4)
    values = a + b * column.to(a.dtype)[:, None] + c * row.to(a.dtype)[:, None]
    inside = (values[:, :3] >= 0).all(-1)

    triangle, column, row, inverse_z = triangle[inside], column[inside], row[inside], values[inside, 3]
    mesh = triangles.mesh[triangle]
    pixel = (row + triangles.row0[triangle]) * width + column + triangles.col0[triangle]
    if flat_masks is not None:
        seen = flat_masks[mesh * (height * width) + pixel]
        triangle, mesh, pixel, inverse_z = triangle[seen], mesh[seen], pixel[seen], inverse_z[seen]
    z_bits = inverse_z.reciprocal().to(torch.float32).view(torch.int32).to(torch.int64)
    key = (z_bits << 32) | triangles.key[triangle]
    scene = torch.div(mesh, people, rounding_mode="floor")
    keys.scatter_reduce_(0, scene * (height * width) + pixel, key, reduce="amin")
