"""Rasteriser: meshes of all people of a batch -> nearest person, face and z per pixel, in plain torch.

Every person is drawn inside its own mask, and the nearest one wins; of equals the one with the lower index. The order
of drawing does not matter: a pixel is one 64-bit key (z in the high bits, person and face in the low ones), of which
the minimum is kept. The same code runs on CPU and GPU. z is exact on the plane of the triangle (1/z is affine in the
image); pixel centres lie at integer + 0.5. Triangles that reach behind the camera are left out, and of a closed mesh
those turned away from it, which are half of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.maths.camera import project
from dto_pipeline.maths.ordered import works_at_once

NEAREST_Z = 1e-3  # triangles with a vertex nearer than this are not drawn [m]
_PAIRS_AT_ONCE = 1 << 22  # (triangle, pixel) candidates tested at once: bounds memory to about 0.5 GB
_PAIRS_AT_ONCE_CPU = 1 << 17  # on CPU, what stays in the cache
_TRIANGLES_A_STEP = 128  # between two places where a chunk may end
_SCENES_AT_ONCE_CPU, _MESHES_AT_ONCE_CPU = 4, 8  # so that they stay in the cache
_EMPTY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Raster:
    """Nearest surface per pixel of B maps."""

    person: torch.Tensor  # (B, h, w) int64 index along P, -1 = nobody
    z: torch.Tensor  # (B, h, w) float32 [m], 0 = nobody
    packed: torch.Tensor  # (B, h, w) int32: person << face_bits | face, -1 = nobody
    face_bits: int

    @property
    def face(self) -> torch.Tensor:
        """(B, h, w) int64 index along F, -1 = nobody."""
        face = (self.packed & ((1 << self.face_bits) - 1)).to(torch.int64)
        return torch.where(self.packed < 0, -1, face)


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
    closed: bool = False,
) -> Raster:
    """Draw all people of B scenes into maps.

    Args:
        vertices: (B, P, V, 3) camera frame [m]; faces: (F, 3) int64.
        intrinsics: (B, 3, 3) camera of the map [px]; map_size: (B, 2) int64 (h, w) of each map.
        present: (B, P) bool, who is drawn; masks: (B, P, h, w) bool, where (None: anywhere).
        closed: see `is_closed`.

    Returns: `Raster` padded to the largest map (or to the size of `masks`).
    """
    height, width = masks.shape[-2:] if masks is not None else map(int, map_size.amax(dim=0))
    packed = torch.empty(len(present), height, width, dtype=torch.int32, device=vertices.device)
    z = torch.empty_like(packed, dtype=torch.float32)
    bits = face_bits(len(faces))
    if vertices.shape[1] << bits > 1 << 31:
        raise ValueError(f"{vertices.shape[1]} people of {len(faces)} faces do not fit into a key of 31 bits")
    at_once = works_at_once(vertices.device)
    scenes = max(1, len(present)) if at_once else _SCENES_AT_ONCE_CPU
    for first in range(0, len(present), scenes):
        some = slice(first, first + scenes)
        keys = torch.full((packed[some].numel(),), _EMPTY, dtype=torch.int64, device=vertices.device)
        flat_masks = None if masks is None else masks[some].reshape(-1)
        meshes = present[some].nonzero()  # (M, 2) scene, person
        for group in (meshes,) if at_once else meshes.split(_MESHES_AT_ONCE_CPU):
            cameras = intrinsics[some], map_size[some]
            triangles = _set_up(vertices[some], faces, *cameras, group, (height, width), closed)
            for chunk, pairs in _chunks(triangles.count, _PAIRS_AT_ONCE if at_once else _PAIRS_AT_ONCE_CPU):
                _draw(keys, triangles, chunk, pairs, width, flat_masks)
        low, high = keys.view(torch.int32).view(*packed[some].shape, 2).unbind(-1)  # an empty key has the low half -1
        packed[some] = low
        z[some] = high.view(torch.float32).masked_fill(low < 0, 0)
    return Raster((packed >> bits).to(torch.int64), z, packed, bits)


def is_closed(vertices: torch.Tensor, faces: torch.Tensor) -> bool:
    """Whether a mesh is a closed surface with all triangles turned outward. Args: vertices (V, 3), faces (F, 3) int64.

    Closed: two triangles run along every edge, in opposite directions. Outward: its volume is positive.
    """
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = (edges[:, 0] * len(vertices) + edges[:, 1]).sort().values
    backward = (edges[:, 1] * len(vertices) + edges[:, 0]).sort().values
    if not torch.equal(forward, backward) or len(forward.unique()) < len(forward):
        return False
    a, b, c = (vertices[faces[:, i]].to(torch.float64) for i in range(3))
    return bool((a * torch.linalg.cross(b, c)).sum() > 0)


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
    """(B, P) int64 vertices that project onto a covered pixel and lie no more than `tolerance` [m] behind it.

    The pixel may be anybody's (as published). A vertex (u, v) of the image falls on the map's pixel
    (round(u (w - 1) / (W - 1)), round(v (h - 1) / (H - 1))).

    Args:
        vertices: (B, P, V, 3) camera frame [m]; intrinsics: (B, 3, 3) of the full image [px].
        image_size, map_size: (B, 2) int64.
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
    meshes: torch.Tensor,
    shape: tuple[int, int],
    closed: bool,
) -> _Triangles:
    """The triangles to draw, of meshes (M, 2) int64 (scene and person), in maps of `shape` (h, w)."""
    (people, num_faces), (height, width) = (vertices.shape[1], len(faces)), shape
    scene, person = meshes.unbind(1)
    mesh_vertices = vertices[scene, person]  # (M, V, 3)
    uv = project(mesh_vertices, intrinsics.to(vertices.dtype)[scene, None])
    seen = torch.stack([*uv.unbind(-1), mesh_vertices[..., 2]])  # (3, M, V): column, row, z
    corner = faces.T.reshape(-1).expand(3, len(meshes), -1)  # gather: a fifth of index_select's time on CPU
    corners = seen.gather(2, corner).view(3, len(meshes), 3, num_faces)
    limit = (map_size - 1).to(uv.dtype)[scene]
    first_column, columns = _pixel_range(corners[0], limit[:, 1:])
    first_row, rows = _pixel_range(corners[1], limit[:, :1])
    drawn = (columns > 0) & (rows > 0) & (corners[2].amin(1) > NEAREST_Z)
    if closed:  # a body that reaches behind the camera is open there: both sides of it can be seen
        opened = mesh_vertices[..., 2].amin(1, keepdim=True) <= NEAREST_Z
        (x0, x1, x2), (y0, y1, y2) = (side.unbind(1) for side in corners[:2])
        doubled_area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        drawn &= opened | (doubled_area < 0)  # the outer side is seen

    kept = drawn.reshape(-1).nonzero().squeeze(-1)
    mesh = torch.div(kept, num_faces, rounding_mode="floor")
    face = kept - mesh * num_faces
    column, row, cols, tall = (
        side.reshape(-1).index_select(0, kept) for side in (first_column, first_row, columns, rows)
    )
    corner = (mesh * (3 * num_faces) + face) + torch.arange(3, device=mesh.device)[:, None] * num_faces  # (3, T)
    x, y, z = corners.view(3, -1).index_select(1, corner.view(-1)).view(3, 3, -1)
    planes, area = _planes(x - (column + 0.5), y - (row + 0.5), z)
    offset = row.to(torch.int64) * width + column.to(torch.int64)
    return _Triangles(
        key=(person[mesh] << face_bits(num_faces)) | face,
        pixel=scene[mesh] * (height * width) + offset,
        mask_pixel=(scene * people + person)[mesh] * (height * width) + offset,
        cols=cols.to(torch.float32),
        count=torch.where(area == 0, 0, (cols * tall).to(torch.int64)),
        planes=planes,
    )


def _pixel_range(corners: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First pixel whose centre lies between coordinates (M, 3, F), clipped to 0..limit, and how many there are."""
    first = torch.ceil(corners.amin(1).sub_(0.5)).clamp_(min=0)
    last = torch.minimum(torch.floor(corners.amax(1).sub_(0.5)), limit)
    return first, last.sub_(first).add_(1)


def _planes(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 4, T) barycentric coordinates and 1/z as affine functions of (column, row) from the first pixel of the box,
    and (T,) doubled area. Args: x, y from the centre of that pixel [px] and z [m] of the three corners, (3, T) each."""
    x1, y1 = x.roll(-1, 0), y.roll(-1, 0)  # the corner after
    x2, y2 = x.roll(-2, 0), y.roll(-2, 0)
    coefficients = torch.stack([x1 * y2 - x2 * y1, y1 - y2, x2 - x1])  # (3, 3 corners, T)
    first, second, third = x * coefficients[1]
    area = first + second + third  # in this order for every triangle, which `torch.sum` does not promise
    coefficients /= torch.where(area == 0, 1, area)
    first, second, third = (coefficients / z).unbind(1)
    return torch.cat([coefficients, (first + second + third)[:, None]], dim=1), area


def _chunks(count: torch.Tensor, at_once: int) -> list[tuple[slice, int]]:
    """Slices of triangles that have `at_once` candidates or slightly more, and how many they have; read back once."""
    if len(count) == 0:
        return []
    total = count.cumsum(0)
    marks = torch.cat([total[_TRIANGLES_A_STEP - 1 :: _TRIANGLES_A_STEP], total[-1:]]).tolist()
    chunks, first, before = [], 0, 0
    for step, mark in enumerate(marks, start=1):
        if mark - before >= at_once or step == len(marks):
            chunks.append((slice(first * _TRIANGLES_A_STEP, step * _TRIANGLES_A_STEP), mark - before))
            first, before = step, mark
    return [chunk for chunk in chunks if chunk[1]]


def _draw(
    keys: torch.Tensor, triangles: _Triangles, chunk: slice, pairs: int, width: int, flat_masks: torch.Tensor | None
) -> None:
    """Test every pixel of every box of `chunk`, `pairs` in all, and lower the keys of those inside."""
    count = triangles.count[chunk]
    triangle = torch.repeat_interleave(count, output_size=pairs)  # counted from the chunk's start
    start = torch.cumsum(count, 0) - count
    step = (torch.arange(pairs, device=keys.device) - start.index_select(0, triangle)).to(torch.float32)
    cols = triangles.cols[chunk].index_select(0, triangle)
    row = torch.floor((step + 0.5) / cols)  # exact: boxes are far smaller than 2^23 pixels
    column = step.addcmul_(row, cols, value=-1)
    offset = (row * width + column).to(torch.int64)
    planes = triangles.planes[:, :, chunk].flatten(0, 1)  # gather: an eighth of index_select's time on CPU
    a, b, c = planes.gather(1, triangle.expand(len(planes), -1)).view(3, 4, -1)  # (4, pairs) each
    # not addcmul: whether it rounds once or twice may depend on where in the list a pair stands
    values = a.add_(b.mul_(column.to(a.dtype))).add_(c.mul_(row.to(a.dtype)))
    inside = values[:3].amin(0) >= 0
    if flat_masks is not None:
        inside &= flat_masks.index_select(0, triangles.mask_pixel[chunk].index_select(0, triangle) + offset)
    z_bits = values[3].reciprocal_().to(torch.float32).view(torch.int32).to(torch.int64)
    key = (z_bits << 32) | triangles.key[chunk].index_select(0, triangle)
    pixel = triangles.pixel[chunk].index_select(0, triangle) + offset
    keys.scatter_reduce_(0, pixel, key.masked_fill_(~inside, _EMPTY), reduce="amin")


@dataclass(frozen=True)
class Surface:
    """What is seen at the n covered pixels of one scene's raster, row-major. For pictures: labels never use it."""

    pixel: torch.Tensor  # (n,) int64: row * w + column
    person: torch.Tensor  # (n,) int64
    corner: torch.Tensor  # (n, 3) int64: person * V + vertex, of the triangle's corners
    weight: torch.Tensor  # (n, 3) float32 barycentric coordinates on the triangle in space, clipped to it
    point: torch.Tensor  # (n, 3) float32 [m]

    def interpolate(self, values: torch.Tensor) -> torch.Tensor:
        """(n, C) vertex attributes (P, V, C) at the pixels."""
        return (values.flatten(0, 1)[self.corner] * self.weight[..., None]).sum(1)


@torch.no_grad()
def find_surface(
    raster: Raster, scene: int, vertices: torch.Tensor, faces: torch.Tensor, intrinsics: torch.Tensor
) -> Surface:
    """Where on whose triangle each covered pixel of one scene of a raster lies.

    Args:
        vertices: (P, V, 3) of that scene's people, as rasterised [m]; faces: (F, 3) int64.
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
    a, b, c = vertices.reshape(-1, 3)[corner].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    squared = (normal * normal).sum(-1).clamp(min=1e-20)
    second = (torch.linalg.cross(point - a, c - a) * normal).sum(-1) / squared
    third = (torch.linalg.cross(b - a, point - a) * normal).sum(-1) / squared
    weight = torch.stack([1 - second - third, second, third], dim=-1).clamp(min=0)
    return Surface(pixel, person, corner, weight / weight.sum(-1, keepdim=True), point)


@torch.no_grad()
def vertex_normals(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """(P, V, 3) unit normals, outward for SMPL's triangles, weighted by the area of the faces around.

    Args: vertices (P, V, 3) [m]; faces (F, 3) int64.
    """
    a, b, c = (vertices[:, faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(1, faces[:, i], normal)
    return torch.nn.functional.normalize(total, dim=-1)
