"""Meshes drawn over photographs: see-through, shaded, one colour per person, with tags that do not overlap.

Arrays in, pictures out; opens no file. Uses the pipeline's own rasteriser. Camera frame, metres; pixels of the figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dto_pipeline.models.rasterizer import Raster, find_surface, rasterize, vertex_normals
from dto_pipeline.view.drawing import draw_tags, person_colours

_FINER = 2  # meshes are drawn at this many times the figure's resolution
_LIGHT = (-0.35, -0.62, -0.70)  # towards the light, camera frame
_AMBIENT, _DIFFUSE, _RIM = 0.42, 0.66, 0.35
_OUTLINE = 0.45  # brightness of a person's outline
_TAG_ABOVE = 11  # tags float this far above a head [px]


def draw_overlays(
    images: Sequence[np.ndarray],
    vertices: torch.Tensor,
    present: torch.Tensor,
    faces: torch.Tensor,
    intrinsics: torch.Tensor,
    longest_side: int = 900,
    opacity: float = 0.82,
    tags: Sequence[str] | None = None,
) -> list[Image.Image]:
    """Draw the people of B photographs of one size, all in one call of the rasteriser.

    Args:
        images: B times (H, W, 3) uint8 RGB, equal sizes.
        vertices: (B, P, V, 3) meshes [m]; present: (B, P) bool, who is drawn.
        faces: (F, 3) int64; intrinsics: (B, 3, 3) of the photographs [px].
        longest_side: of the figures [px]; photographs are scaled to it.
        opacity: of the meshes, 0 .. 1.
        tags: P texts, the same in every photograph; None = numbers from 1.

    Returns:
        B RGB figures.
    """
    height, width = images[0].shape[:2]
    scale = longest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    camera = intrinsics.to(torch.float64).clone()
    camera[:, 0] *= _FINER * size[0] / width
    camera[:, 1] *= _FINER * size[1] / height
    map_size = torch.tensor([[_FINER * size[1], _FINER * size[0]]]).expand(len(images), 2)
    raster = rasterize(vertices, faces, camera, map_size, present)
    texts = tags or [str(person + 1) for person in range(vertices.shape[1])]
    figures = []
    for scene, image in enumerate(images):
        photo = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        colour, cover = _shade(raster, scene, vertices[scene], faces, camera[scene])
        cover = opacity * cover[..., None]
        # colour comes multiplied by coverage, so that borders blend without fringes
        blended = np.asarray(photo) * (1 - cover) + opacity * colour
        figure = Image.fromarray(np.round(blended).clip(0, 255).astype(np.uint8))
        row, column = np.nonzero(raster.person[scene].numpy() >= 0)  # row-major: a person's first pixel is its highest
        seen, first = np.unique(raster.person[scene].numpy()[row, column], return_index=True)
        heads = np.stack([column[first], row[first]], axis=-1) / _FINER - (0, _TAG_ABOVE)
        draw_tags(figure, heads, [texts[index] for index in seen], person_colours(len(texts))[seen])
        figures.append(figure)
    return figures


def _shade(
    raster: Raster, scene: int, vertices: torch.Tensor, faces: torch.Tensor, intrinsics: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Colour times coverage (h, w, 3) 0 .. 255 and coverage (h, w) 0 .. 1 of one scene, at the figure's resolution."""
    surface = find_surface(raster, scene, vertices, faces, intrinsics)
    normal = torch.nn.functional.normalize(surface.interpolate(vertex_normals(vertices, faces)), dim=-1)
    light = torch.nn.functional.normalize(torch.tensor(_LIGHT), dim=0)
    facing = -(normal * torch.nn.functional.normalize(surface.point, dim=-1)).sum(-1)
    brightness = _AMBIENT + _DIFFUSE * (normal @ light).clamp(min=0) + _RIM * (1 - facing.clamp(0, 1)) ** 3
    colours = torch.from_numpy(person_colours(vertices.shape[0])).to(torch.float32)
    person = raster.person[scene]
    brightness = torch.where(_is_border(person).flatten()[surface.pixel], _OUTLINE, brightness)
    fine = torch.zeros(person.numel(), 4)
    fine[surface.pixel, :3] = (colours[surface.person] * brightness[:, None]).clamp(max=255)
    fine[surface.pixel, 3] = 1
    height, width = person.shape
    mean = fine.view(height // _FINER, _FINER, width // _FINER, _FINER, 4).mean(dim=(1, 3)).numpy()
    return mean[..., :3], mean[..., 3]


def _is_border(person: torch.Tensor) -> torch.Tensor:
    """(h, w) bool: pixels of a person next to somebody else or to nobody."""
    border = torch.zeros_like(person, dtype=torch.bool)
    below, right = person.diff(dim=0) != 0, person.diff(dim=1) != 0
    border[:-1] |= below
    border[1:] |= below
    border[:, :-1] |= right
    border[:, 1:] |= right
    return border
