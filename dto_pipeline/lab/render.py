"""The photograph: people with clothes, sun and shadows in front of a backdrop.

Knows meshes, light and the rasteriser; knows nothing of files. People are drawn at twice the resolution and averaged
down; the backdrop is filtered analytically. Metres, camera frame; the picture is sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from dto_pipeline.lab.clothes import Outfit, Template, colour_points, sample_outfit
from dto_pipeline.lab.crowd import Crowd, View
from dto_pipeline.lab.scenery import THEMES, Backdrop, Theme, build_backdrop, haze_over, sun_direction
from dto_pipeline.models.rasterizer import Raster, rasterize
from dto_pipeline.models.surface import find_surface, vertex_normals

_FINER = 2  # people are drawn at this many times the resolution
_SUN = 1.15  # strength of direct light
_SKY = 0.62  # strength of light from above
_GROUND = 0.26  # strength of light from below
_SHADOW = 0.5  # how much of the light on the ground a cast shadow takes
_CONTACT = 0.45  # the same for the dimness under a body


@dataclass(frozen=True)
class Picture:
    """One rendered image and what is true at each of its pixels."""

    rgb: np.ndarray  # (H, W, 3) uint8 sRGB
    person: np.ndarray  # (H, W) int64 index of the person seen, -1 = nobody
    z: np.ndarray  # (H, W) float32 distance along the camera axis, everywhere [m]


def render_picture(crowd: Crowd, vertices: np.ndarray, template: Template, rng: np.random.Generator) -> Picture:
    """Draw the true bodies of a crowd.

    Args:
        crowd: the plan (camera, classes).
        vertices: (P, V, 3) true bodies in the camera frame [m].
        template: of the model of all bodies, for triangles and clothes.
        rng: theme, clothes, clouds.
    """
    view, meshes = crowd.view, torch.from_numpy(vertices)
    theme = THEMES[int(rng.integers(len(THEMES)))]
    sun = sun_direction(theme, rng)
    outfits = [sample_outfit(int(c), rng) for c in crowd.height_class]
    backdrop = build_backdrop(view, theme, rng)
    truth = _raster(meshes, template.faces, view, 1)
    colour = backdrop.colour * _ground_light(meshes, template.faces, view, backdrop, sun)[..., None]
    people, cover = _draw_people(meshes, view, (theme, sun), template, outfits)
    colour = colour * (1 - cover[..., None]) + people
    person = truth.person[0].numpy()
    z = np.where(person >= 0, truth.z[0].numpy(), backdrop.z)
    return Picture(_to_srgb(colour), person, z.astype(np.float32))


def _raster(meshes: torch.Tensor, faces: torch.Tensor, view: View, finer: float) -> Raster:
    """Rasterise meshes (P, V, 3) of one scene at `finer` times the image's resolution."""
    intrinsics = torch.from_numpy(view.intrinsics).clone()
    intrinsics[:2] *= finer
    size = torch.tensor([[int(view.height * finer), int(view.width * finer)]])
    present = torch.ones(1, len(meshes), dtype=torch.bool)
    return rasterize(meshes[None], faces, intrinsics[None], size, present)


def _draw_people(
    meshes: torch.Tensor,
    view: View,
    light: tuple[Theme, np.ndarray],
    template: Template,
    outfits: list[Outfit],
) -> tuple[np.ndarray, np.ndarray]:
    """Colour times coverage (H, W, 3) and coverage (H, W) of all people."""
    raster = _raster(meshes, template.faces, view, _FINER)
    intrinsics = torch.from_numpy(view.intrinsics).clone()
    intrinsics[:2] *= _FINER
    surface = find_surface(raster, 0, meshes, template.faces, intrinsics)
    rest = torch.from_numpy(template.vertices).expand_as(meshes)
    attributes = surface.interpolate(torch.cat([vertex_normals(meshes, template.faces), rest], dim=-1)).numpy()
    owner = surface.person.numpy()
    albedo = np.zeros((len(owner), 3), dtype=np.float32)
    for person, outfit in enumerate(outfits):
        mine = owner == person
        albedo[mine] = colour_points(template, outfit, attributes[mine, 3:])
    theme, sun = light
    normal = attributes[:, :3] @ view.level_to_camera.astype(np.float32)
    shaded = haze_over(albedo * _light_on(normal, theme, sun), surface.point[:, 2].numpy(), theme)
    return _average(np.column_stack([shaded, np.ones(len(shaded))]), surface.pixel.numpy(), view)


def _average(values: np.ndarray, pixel: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Fine pixels averaged into the picture's: values (n, 4) of colour and coverage at `pixel` (n,), 0 elsewhere."""
    row, column = np.divmod(pixel, view.width * _FINER)
    target = row // _FINER * view.width + column // _FINER
    sums = [np.bincount(target, weights=value, minlength=view.height * view.width) for value in values.T]
    mean = np.stack(sums, axis=-1).reshape(view.height, view.width, 4) / _FINER**2
    return mean[..., :3].astype(np.float32), mean[..., 3].astype(np.float32)


def _light_on(normal: np.ndarray, theme: Theme, sun: np.ndarray) -> np.ndarray:
    """(n, 3) light falling on surfaces with level-frame normals (n, 3): sun, sky from above, ground from below."""
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-6)
    direct = np.clip((normal @ sun.astype(np.float32) + 0.12) / 1.12, 0, 1)[:, None]  # wrapped: cloth is soft
    above = (0.5 - 0.5 * normal[:, 1])[:, None]
    sky = 0.5 + 0.5 * np.array(theme.haze, dtype=np.float32)
    earth = 0.35 + np.array(theme.earth[0], dtype=np.float32)
    return _SUN * np.array(theme.sun_colour, dtype=np.float32) * direct + _SKY * sky * above + _GROUND * earth


def _ground_light(
    meshes: torch.Tensor, faces: torch.Tensor, view: View, backdrop: Backdrop, sun: np.ndarray
) -> np.ndarray:
    """(H, W) share of the light that reaches the ground past the bodies; 1 off the ground."""
    cast = _flattened_cover(meshes, faces, view, sun, 1.0)
    under = _flattened_cover(meshes, faces, view, np.array([0.0, -1.0, 0.0]), 0.5)
    under = np.repeat(np.repeat(gaussian_filter(under, 2.5), 2, axis=0), 2, axis=1)
    under = np.pad(under, ((0, view.height - under.shape[0]), (0, view.width - under.shape[1])), mode="edge")
    light = (1 - _SHADOW * gaussian_filter(cast, 1.1)) * (1 - _CONTACT * gaussian_filter(under, 1.0))
    return np.where(backdrop.is_ground, light, 1.0).astype(np.float32)


def _flattened_cover(
    meshes: torch.Tensor, faces: torch.Tensor, view: View, light: np.ndarray, finer: float
) -> np.ndarray:
    """(h, w) float 1 where the shadows of the bodies lie on the ground, for light from a level-frame direction."""
    rotation = torch.from_numpy(view.level_to_camera).to(meshes.dtype)
    level = meshes @ rotation
    away = torch.from_numpy(light / -light[1]).to(meshes.dtype)
    level = level - (view.eye_height - level[..., 1:2]) * away
    return (_raster(level @ rotation.T, faces, view, finer).person[0] >= 0).numpy().astype(np.float32)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from linear light, with a soft shoulder for highlights."""
    bright = np.clip(linear, 0, None)
    bright = np.where(bright > 0.7, 0.7 + 0.3 * np.tanh((bright - 0.7) / 0.3), bright)
    encoded = np.where(bright <= 0.0031308, 12.92 * bright, 1.055 * np.maximum(bright, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)
