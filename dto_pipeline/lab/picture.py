"""Rendering of synthetic pictures: people with clothes, sun and shadows in front of a backdrop.

Body parts are found from the joints of the unposed template, so that any model in SMPL's format can be drawn. People
are drawn at twice the resolution and averaged down; the backdrop is filtered analytically. Colours are linear RGB in
0 .. 1 until the picture is sRGB. Metres, camera frame; on the template y is up, left at +x, front at +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from dto_pipeline.axes import BABY, NUM_BETAS
from dto_pipeline.lab.crowd import Crowd, View
from dto_pipeline.lab.scenery import THEMES, Backdrop, Colour, Theme, build_backdrop, haze_over, sun_direction
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import Raster, find_surface, rasterize, vertex_normals

_FINER = 2  # people are drawn at this many times the resolution
_SUN = 1.15  # strength of direct light
_SKY = 0.62  # strength of light from above
_GROUND = 0.26  # strength of light from below
_SHADOW = 0.5  # how much of the light on the ground a cast shadow takes
_CONTACT = 0.45  # how much of it the body right above takes
_SKIN: tuple[Colour, ...] = (
    (0.70, 0.46, 0.34),
    (0.62, 0.38, 0.26),
    (0.46, 0.26, 0.16),
    (0.30, 0.16, 0.10),
    (0.17, 0.09, 0.06),
)
_HAIR: tuple[Colour, ...] = (
    (0.02, 0.015, 0.012),
    (0.07, 0.035, 0.02),
    (0.16, 0.08, 0.03),
    (0.38, 0.25, 0.09),
    (0.25, 0.07, 0.03),
    (0.42, 0.42, 0.42),
)
_SHIRTS: tuple[Colour, ...] = (
    (0.62, 0.08, 0.07),
    (0.05, 0.20, 0.50),
    (0.75, 0.72, 0.66),
    (0.80, 0.52, 0.06),
    (0.06, 0.34, 0.22),
    (0.40, 0.10, 0.38),
    (0.08, 0.40, 0.48),
    (0.76, 0.34, 0.30),
    (0.10, 0.11, 0.14),
    (0.42, 0.55, 0.16),
)
_TROUSERS: tuple[Colour, ...] = (
    (0.03, 0.06, 0.16),
    (0.02, 0.02, 0.025),
    (0.10, 0.16, 0.30),
    (0.36, 0.28, 0.18),
    (0.16, 0.17, 0.18),
    (0.13, 0.10, 0.06),
)
_SHOES: tuple[Colour, ...] = ((0.02, 0.02, 0.02), (0.6, 0.6, 0.58), (0.16, 0.07, 0.03), (0.45, 0.06, 0.06))
_EYE: Colour = (0.012, 0.012, 0.016)
_LIPS: Colour = (0.40, 0.12, 0.10)
_STRIPE = 0.05  # height of one stripe of a striped shirt [m of the template]


@dataclass(frozen=True)
class Template:
    """The unposed body, arms out to the sides, and its landmarks [m]."""

    vertices: np.ndarray  # (V, 3)
    faces: torch.Tensor  # (F, 3) int64
    joints: np.ndarray  # (45, 3), smplx's order; of other models where they have them, else NaN


@dataclass(frozen=True)
class Outfit:
    """Colours and cut of one person's clothes."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trim: Colour  # of stripes; the shirt's own colour where it has none
    trousers: Colour
    shoes: Colour
    sleeve: float  # how far sleeves reach from shoulder (0) to wrist (1)
    leg: float  # how far trousers reach from hip (0) to ankle (1)
    hair_length: float  # 0 short .. 1 down to the shoulders


def measure_template(body: BodyModel) -> Template:
    """The unposed, unshaped body of a model."""
    inputs = (torch.zeros(1, 72), torch.zeros(1, NUM_BETAS), torch.zeros(1, 3))
    vertices, joints = body.vertices(*inputs)[0].numpy(), body.joints(*inputs)[0].numpy()
    return Template(vertices, body.faces, joints)


def sample_outfit(height_class: int, rng: np.random.Generator) -> Outfit:
    """Clothes for one person; babies wear one colour from neck to ankle."""

    def pick(colours: tuple[Colour, ...]) -> Colour:
        return colours[int(rng.integers(len(colours)))]

    skin = pick(_SKIN)
    dark = sum(skin) < 0.6
    hair = _HAIR[int(rng.integers(0, 2))] if dark else pick(_HAIR)
    shirt = pick(_SHIRTS)
    baby = height_class == BABY
    trousers = shirt if baby else pick(_TROUSERS)
    trim = pick(_SHIRTS) if rng.random() < 0.3 else shirt
    sleeve = 0.95 if baby else float(rng.choice([0.12, 0.34, 0.34, 0.95]))
    leg = 0.97 if baby else float(rng.choice([0.4, 0.97, 0.97]))
    length = 0.0 if baby else float(rng.choice([0.0, 0.0, 0.6, 1.0]))
    return Outfit(skin, hair, shirt, trim, trousers, pick(_SHOES), sleeve, leg, length)


def colour_points(template: Template, outfit: Outfit, points: np.ndarray) -> np.ndarray:
    """(n, 3) float32 albedo of points (n, 3) [m] on the template, in these clothes."""
    x, y, _ = points.T
    pelvis, hip, knee, ankle, neck, shoulder, wrist = template.joints[[0, 1, 4, 7, 12, 16, 20]]
    along_arm = (np.abs(x) - shoulder[0]) / (wrist[0] - shoulder[0])
    leg_end = hip[1] + outfit.leg * (ankle[1] + 0.02 - hip[1])
    is_arm = (along_arm > 0) & (y > knee[1] * 0.2 + neck[1] * 0.8 - 0.2)
    is_head = (y > neck[1] + 0.015) & (np.abs(x) < 0.75 * shoulder[0])
    stripe = np.floor((y - pelvis[1]) / _STRIPE) % 2 == 1
    colour = np.where(stripe[:, None], outfit.trim, outfit.shirt)
    colour = np.where((~is_arm & (y < pelvis[1] + 0.02))[:, None], outfit.trousers, colour)
    bare = (is_arm & (along_arm > outfit.sleeve)) | (~is_arm & (y < leg_end)) | is_head
    colour = np.where(bare[:, None], outfit.skin, colour)
    colour = np.where((~is_arm & (y < ankle[1] + 0.015))[:, None], outfit.shoes, colour)
    colour[is_head] = _colour_head(template, outfit, points[is_head])
    return colour.astype(np.float32)


def _colour_head(template: Template, outfit: Outfit, points: np.ndarray) -> np.ndarray:
    """(n, 3) skin with hair, eyes and a mouth."""
    nose, right_eye, left_eye = template.joints[[24, 25, 26]]
    neck, top = template.joints[12, 1], float(template.vertices[:, 1].max())
    rise = (points[:, 1] - neck) / (top - neck)
    hairline = 0.62 + 2.0 * points[:, 2] - 0.75 * outfit.hair_length * (points[:, 2] < 0.02)
    colour = np.where((rise > hairline)[:, None], outfit.hair, outfit.skin)
    front = points[:, 2] > 0
    for eye in (right_eye, left_eye):
        near = np.hypot(*(points[:, :2] - eye[:2]).T) < 0.013
        colour[front & near] = _EYE
    mouth = (points[:, :2] - nose[:2] - (0, -0.042)) / (0.027, 0.008)
    colour[front & (np.hypot(*mouth.T) < 1)] = _LIPS
    return colour


@dataclass(frozen=True)
class Picture:
    """One rendered image with the truth of each pixel."""

    rgb: np.ndarray  # (H, W, 3) uint8 sRGB
    person: np.ndarray  # (H, W) int64 index of the person seen, -1 = no person
    z: np.ndarray  # (H, W) float32 distance along the camera axis, everywhere [m]


def render_picture(crowd: Crowd, vertices: np.ndarray, template: Template, rng: np.random.Generator) -> Picture:
    """Draw the bodies of a crowd, vertices (P, V, 3) [m] of the template's model; theme and clothes are random."""
    view, meshes = crowd.view, torch.from_numpy(vertices)
    theme = THEMES[int(rng.integers(len(THEMES)))]
    sun = sun_direction(theme, rng)
    outfits = [sample_outfit(int(c), rng) for c in crowd.height_class]
    backdrop = build_backdrop(view, theme, rng)
    truth = draw_meshes(meshes, template.faces, view)
    colour = backdrop.colour * _ground_light(meshes, template.faces, view, backdrop, sun)[..., None]
    people, cover = _draw_people(meshes, view, (theme, sun), template, outfits)
    person = truth.person[0].numpy()
    z = np.where(person >= 0, truth.z[0].numpy(), backdrop.z)
    return Picture(_to_srgb(colour * (1 - cover[..., None]) + people), person, z.astype(np.float32))


def draw_meshes(meshes: torch.Tensor, faces: torch.Tensor, view: View, finer: float = 1.0) -> Raster:
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
    raster = draw_meshes(meshes, template.faces, view, _FINER)
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
    """Average fine pixels into the picture's: values (n, 4) of colour and coverage at `pixel` (n,), 0 elsewhere."""
    row, column = np.divmod(pixel, view.width * _FINER)
    target = row // _FINER * view.width + column // _FINER
    sums = [np.bincount(target, weights=value, minlength=view.height * view.width) for value in values.T]
    mean = np.stack(sums, axis=-1).reshape(view.height, view.width, 4) / _FINER**2
    return mean[..., :3].astype(np.float32), mean[..., 3].astype(np.float32)


def _light_on(normal: np.ndarray, theme: Theme, sun: np.ndarray) -> np.ndarray:
    """(n, 3) light falling on surfaces with level-frame normals (n, 3): sun, sky from above, ground from below."""
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-6)
    direct = np.clip((normal @ sun.astype(np.float32) + 0.12) / 1.12, 0, 1)[:, None]  # wraps around: cloth is soft
    above = (0.5 - 0.5 * normal[:, 1])[:, None]
    sky = 0.5 + 0.5 * np.array(theme.haze, dtype=np.float32)
    earth = 0.35 + np.array(theme.earth[0], dtype=np.float32)
    return _SUN * np.array(theme.sun_colour, dtype=np.float32) * direct + _SKY * sky * above + _GROUND * earth


def _ground_light(
    meshes: torch.Tensor, faces: torch.Tensor, view: View, backdrop: Backdrop, sun: np.ndarray
) -> np.ndarray:
    """(H, W) share of the light that bodies let through to the ground; 1 outside the ground."""
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
    return (draw_meshes(level @ rotation.T, faces, view, finer).person[0] >= 0).numpy().astype(np.float32)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 from linear light; highlights are compressed smoothly."""
    bright = np.clip(linear, 0, None)
    bright = np.where(bright > 0.7, 0.7 + 0.3 * np.tanh((bright - 0.7) / 0.3), bright)
    encoded = np.where(bright <= 0.0031308, 12.92 * bright, 1.055 * np.maximum(bright, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)
