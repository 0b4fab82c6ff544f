"""Rasteriser: meshes of all people of a batch -> nearest person, face and z per pixel, in plain torch.

One packed 64-bit key per pixel (z bits above, person and face below) with an atomic minimum: exactly "every person's
own z-buffer inside its mask, nearest person wins, ties to the lower index", without a z-buffer per person and whatever
the order. Same code on CPU and GPU. z is exact on the triangle's plane (1/z is affine in the image); pixel centres
lie at integer + 0.5. Triangles that reach behind the camera are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from dto_pipeline.maths.camera import project

NEAREST_Z = 1e-3  # triangles with a vertex nearer than this are not drawn [m]
_PAIRS_AT_ONCE = 1 << 22  # (triangle, pixel) candidates tested at once: bounds memory to about 0.5 GB
_PAIRS_AT_ONCE_CPU = 1 << 16  # on CPU, what stays in the cache
_EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Raster:
    """Nearest surface per pixel of B maps."""

    person: torch.Tensor  # (B, h, w) int64 index along P, -1 = nobody
    face: torch.Tensor  # (B, h, w) int64 index along F, -1 = nobody
    z: torch.Tensor  # (B, h, w) float32 [m], 0 = nobody


@dataclass(frozen=True)
class _Triangles:
    """T triangles whose box holds a pixel centre."""

    key: torch.Tensor  # (T,) int64: person << face_bits | face
    pixel: torch.Tensor  # (T,) int64: first pixel of the box in the flat maps of all scenes
    mask_pixel: torch.Tensor  # (T,) int64: the same in the flat masks of all people
    cols: torch.Tensor  # (T,) float32 columns of the box
    count: torch.Tensor  # (T,) int64 pixels of the box
    planes: torch.Tensor  # (3, 4, T): a, b, c of three barycentric coordinates and 1/z = a + b * column + c * row


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
    batch = len(present)
    if masks is not None:
        height, width = int(masks.shape[-2]), int(masks.shape[-1])
    else:
        height, width = (int(side) for side in map_size.amax(dim=0))
    keys = torch.full((batch * height * width,), _EMPTY, dtype=torch.int64, device=vertices.device)
    flat_masks = None if masks is None else masks.reshape(-1)
    triangles = _set_up(vertices, faces, intrinsics, map_size, present, (height, width))
    at_once = _PAIRS_AT_ONCE_CPU if vertices.device.type == "cpu" else _PAIRS_AT_ONCE
    for chunk in _chunks(triangles.count, at_once):
        _draw(keys, triangles, chunk, width, flat_masks)
    covered = keys != _EMPTY
    low, bits = keys & 0xFFFFFFFF, face_bits(len(faces))
    z = torch.where(covered, keys >> 32, 0).to(torch.int32).view(torch.float32)
    shape = (batch, height, width)
    return Raster(
        person=torch.where(covered, low >> bits, -1).view(shape),
        face=torch.where(covered, low & ((1 << bits) - 1), -1).view(shape),
        z=z.view(shape),
    )


def face_bits(num_faces: int) -> int:
    """Bits a face number takes in a packed key; the person's number lies above them."""
    return max(1, (num_faces - 1).bit_length())


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
    shape: tuple[int, int],
) -> _Triangles:
    """Keep the triangles whose box holds a pixel centre, and prepare their planes. `shape`: (h, w) of the maps."""
    (people, num_faces), (height, width) = (present.shape[1], len(faces)), shape
    scene, person = present.nonzero(as_tuple=True)
    mesh_vertices = vertices[scene, person]  # (M, V, 3) of those who are drawn
    uv = project(mesh_vertices, intrinsics.to(vertices.dtype)[scene, None])
    limit = (map_size - 1).to(uv.dtype)[scene]
    corners = [[axis[:, faces[:, i]] for i in range(3)] for axis in (*uv.unbind(-1), mesh_vertices[..., 2])]
    first_column, columns = _pixel_range(corners[0], limit[:, 1:])
    first_row, rows = _pixel_range(corners[1], limit[:, :1])
    drawn = (columns > 0) & (rows > 0) & (torch.minimum(torch.minimum(*corners[2][:2]), corners[2][2]) > NEAREST_Z)

    kept = drawn.reshape(-1).nonzero().squeeze(-1)
    mesh = torch.div(kept, num_faces, rounding_mode="floor")
    column, row = first_column.reshape(-1)[kept], first_row.reshape(-1)[kept]
    x, y, z = (torch.stack([corner.reshape(-1)[kept] for corner in axis]) for axis in corners)
    planes, area = _planes(x - (column + 0.5), y - (row + 0.5), z)
    cols = columns.reshape(-1)[kept].to(torch.float32)
    count = (cols * rows.reshape(-1)[kept]).to(torch.int64)
    offset = row.to(torch.int64) * width + column.to(torch.int64)
    return _Triangles(
        key=(person[mesh] << face_bits(num_faces)) | (kept - mesh * num_faces),
        pixel=scene[mesh] * (height * width) + offset,
        mask_pixel=(scene * people + person)[mesh] * (height * width) + offset,
        cols=cols,
        count=torch.where(area == 0, 0, count),
        planes=planes,
    )


def _pixel_range(corners: list[torch.Tensor], limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First pixel whose centre lies between three coordinates, clipped to 0..limit, and how many there are."""
    low = torch.minimum(torch.minimum(corners[0], corners[1]), corners[2])
    high = torch.maximum(torch.maximum(corners[0], corners[1]), corners[2])
    first = torch.ceil(low.sub_(0.5)).clamp_(min=0)
    last = torch.minimum(torch.floor(high.sub_(0.5)), limit)
    return first, last.sub_(first).add_(1)


def _planes(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Barycentric coordinates and 1/z as affine functions of (column, row) counted from the box's first pixel.

    Args: x, y relative to that pixel's centre [px] and z [m] of the three corners, (3, T) each.
    Returns: (3, 4, T) planes, (T,) doubled area.
    """
    x1, y1 = x.roll(-1, 0), y.roll(-1, 0)  # the corner after
    x2, y2 = x.roll(-2, 0), y.roll(-2, 0)
    coefficients = torch.stack([x1 * y2 - x2 * y1, y1 - y2, x2 - x1])  # (3, 3 corners, T)
    area = _sum_of_three(x * coefficients[1])
    coefficients /= torch.where(area == 0, 1, area)
    inverse_z = _sum_of_three((coefficients / z).unbind(1))[:, None]
    return torch.cat([coefficients, inverse_z], dim=1), area


def _sum_of_three(terms: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """In this order for every triangle, which `torch.sum` does not promise."""
    return terms[0] + terms[1] + terms[2]


def _chunks(count: torch.Tensor, at_once: int) -> list[slice]:
    """Runs of triangles with about `at_once` candidates together."""
    if len(count) == 0:
        return []
    group = torch.cumsum(count, 0).sub_(1).clamp_(min=0) // at_once
    last = int(group[-1])
    borders = torch.searchsorted(group, torch.arange(last + 2, device=count.device)).tolist()
    return [slice(a, b) for a, b in pairwise(borders) if b > a]


def _draw(keys: torch.Tensor, triangles: _Triangles, chunk: slice, width: int, flat_masks: torch.Tensor | None) -> None:
    """Test every pixel of every box of `chunk` and lower the keys of those inside."""
    count = triangles.count[chunk]
    triangle = torch.repeat_interleave(count)  # counted from the chunk's start
    start = torch.cumsum(count, 0) - count
    step = (torch.arange(len(triangle), device=keys.device) - start[triangle]).to(torch.float32)
    cols = triangles.cols[chunk][triangle]
    row = torch.floor((step + 0.5) / cols)  # exact: boxes are far smaller than 2^23 pixels
    column = step.addcmul_(row, cols, value=-1)
    offset = (row * width + column).to(torch.int64)
    if flat_masks is not None:
        seen = flat_masks[triangles.mask_pixel[chunk][triangle] + offset].nonzero().squeeze(-1)
        triangle, row, column, offset = triangle[seen], row[seen], column[seen], offset[seen]
    a, b, c = triangles.planes[:, :, chunk].index_select(2, triangle)  # (4, pairs) each
    # not addcmul: whether it rounds once or twice may depend on where in the list a pair stands
    values = a.add_(b.mul_(column.to(a.dtype))).add_(c.mul_(row.to(a.dtype)))
    inside = (values[:3].amin(0) >= 0).nonzero().squeeze(-1)
    triangle = triangle[inside]
    z_bits = values[3][inside].reciprocal_().to(torch.float32).view(torch.int32).to(torch.int64)
    key = (z_bits << 32) | triangles.key[chunk][triangle]
    keys.scatter_reduce_(0, triangles.pixel[chunk][triangle] + offset[inside], key, reduce="amin")
