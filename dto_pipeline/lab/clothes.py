"""What people wear: a colour for every point of a body, by its place on the unposed template.

Knows body parts from the template's joints, so that it works for any model in SMPL's format; knows nothing of pose,
shape or light. Colours are linear RGB in 0 .. 1; template coordinates in metres, y up, left at +x, front at +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.axes import BABY, NUM_BETAS
from dto_pipeline.models.body import BodyModel

Colour = tuple[float, float, float]

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
    top: float  # y of the highest vertex
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
    return Template(vertices, body.faces, float(vertices[:, 1].max()), joints)


def sample_outfit(height_class: int, rng: np.random.Generator) -> Outfit:
    """Clothes for one person; babies wear one colour from neck to ankle."""
    skin = _pick(_SKIN, rng)
    dark = sum(skin) < 0.6
    hair = _HAIR[int(rng.integers(0, 2))] if dark else _pick(_HAIR, rng)
    shirt = _pick(_SHIRTS, rng)
    baby = height_class == BABY
    trousers = shirt if baby else _pick(_TROUSERS, rng)
    trim = _pick(_SHIRTS, rng) if rng.random() < 0.3 else shirt
    sleeve = 0.95 if baby else float(rng.choice([0.12, 0.34, 0.34, 0.95]))
    leg = 0.97 if baby else float(rng.choice([0.4, 0.97, 0.97]))
    length = 0.0 if baby else float(rng.choice([0.0, 0.0, 0.6, 1.0]))
    return Outfit(skin, hair, shirt, trim, trousers, _pick(_SHOES, rng), sleeve, leg, length)


def colour_points(template: Template, outfit: Outfit, points: np.ndarray) -> np.ndarray:
    """Albedo of points of one person.

    Args:
        template: of the body model.
        outfit: of the person.
        points: (n, 3) places on the template [m].

    Returns:
        (n, 3) float32 linear RGB.
    """
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
    neck = template.joints[12, 1]
    rise = (points[:, 1] - neck) / (template.top - neck)
    hairline = 0.62 + 2.0 * points[:, 2] - 0.75 * outfit.hair_length * (points[:, 2] < 0.02)
    colour = np.where((rise > hairline)[:, None], outfit.hair, outfit.skin)
    front = points[:, 2] > 0
    for eye in (right_eye, left_eye):
        near = np.hypot(*(points[:, :2] - eye[:2]).T) < 0.013
        colour[front & near] = _EYE
    mouth = (points[:, :2] - nose[:2] - (0, -0.042)) / (0.027, 0.008)
    colour[front & (np.hypot(*mouth.T) < 1)] = _LIPS
    return colour


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return colours[int(rng.integers(len(colours)))]
