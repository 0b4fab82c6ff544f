"""A body model at a glance: its template, a tall, a small and a kid body side by side against a scale in metres.

A body model in, a picture out; opens no file. Bodies stand on one line, arms lowered, seen from so far away that
heights can be read off the scale.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from dto_pipeline.axes import KID_AXIS, NUM_BETAS
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.view.drawing import INK, MUTED, PAPER, RULE, load_font
from dto_pipeline.view.overlay import draw_overlays

TALL, SMALL, KID = 1.90, 1.50, 1.10  # heights of the bodies shown beside the template [m]
_PIXELS_PER_METRE = 270
_SPACING = 1.0  # between the middles of two bodies [m]
_SCALE_TOP = 2.0  # highest line of the scale [m]
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 40, 90  # around the scale [px]
_CAMERA_Z = 100.0  # of the bodies: perspective changes no height by more than a few millimetres [m]
_ARMS = 1.15  # arms lowered by this much from the T-pose [rad]
_LEFT_SHOULDER_Z, _RIGHT_SHOULDER_Z = 16 * 3 + 2, 17 * 3 + 2  # entries of the pose
_LARGEST = 10.0  # coefficients beyond this many standard deviations make no body
_STEPS = 12  # of the secant search for a height; three or four are enough


def draw_body_sheet(body: BodyModel) -> Image.Image:
    """Render the template and bodies of chosen heights.

    The tall and the small body come from the first shape coefficient, the kid from the kid axis; a model without one is
    drawn without the kid, and the picture says so.

    Args:
        body: any model of SMPL's format.

    Returns:
        RGB picture.
    """
    wanted = {"tall": (TALL, 0), "small": (SMALL, 0)} | ({"kid": (KID, KID_AXIS)} if body.has_kid_axis else {})
    betas = torch.stack(
        [torch.zeros(NUM_BETAS, dtype=torch.float64), *(reach_height(body, *w) for w in wanted.values())]
    )
    count, device = len(betas), body.faces.device
    changed = ["all coefficients 0"]
    changed += [f"coefficient {i} = {float(betas[k, i]):+.2f}" for k, (_, i) in enumerate(wanted.values(), start=1)]
    page, ground = _draw_scale(count)
    camera = torch.eye(3, dtype=torch.float64)
    camera[0, 0] = camera[1, 1] = _PIXELS_PER_METRE * _CAMERA_Z
    camera[0, 2], camera[1, 2] = _LEFT, ground

    pose = torch.zeros(count, 72, device=device)
    pose[:, 0] = math.pi  # SMPL's y points up, the camera's down
    pose[:, _LEFT_SHOULDER_Z], pose[:, _RIGHT_SHOULDER_Z] = -_ARMS, _ARMS
    vertices = body.vertices(pose, betas.float().to(device), torch.zeros(count, 3, device=device)).cpu()
    side = (torch.arange(count) + 0.5) * _SPACING
    feet = vertices[..., 1].amax(dim=-1)
    vertices += torch.stack([side, -feet, torch.full((count,), _CAMERA_Z)], dim=-1)[:, None]

    present, tags = torch.ones(1, count, dtype=torch.bool), ["template", *wanted]
    photo, longest = np.asarray(page), max(page.size)
    (page,) = draw_overlays([photo], vertices[None], present, body.faces.cpu(), camera[None], longest, 1.0, tags)
    draw, heights = ImageDraw.Draw(page), body.rest_height(betas.to(device)).tolist()
    for u, height, change in zip((_LEFT + side * _PIXELS_PER_METRE).tolist(), heights, changed, strict=True):
        draw.text((u, ground + 26), f"{height:.2f} m", font=load_font(18), fill=INK, anchor="mm")
        draw.text((u, ground + 50), change, font=load_font(14), fill=MUTED, anchor="mm")
    if not body.has_kid_axis:
        note = "no kid axis in this model; add one with dto body import --kid-template"
        draw.text((page.width - _RIGHT, page.height - 12), note, font=load_font(13), fill=MUTED, anchor="rm")
    return page


def reach_height(body: BodyModel, height: float, index: int) -> torch.Tensor:
    """Betas (11,) float64 of a body of this rest-pose height [m], made by one coefficient.

    Raises:
        BodyModelError: no plausible value of the coefficient makes this height.
    """
    direction = torch.nn.functional.one_hot(torch.tensor(index), NUM_BETAS).double()

    def excess(value: float) -> float:
        return float(body.rest_height((value * direction).to(body.faces.device))) - height

    before, now = 0.0, 1.0
    for _ in range(_STEPS):
        slope = (excess(now) - excess(before)) / (now - before) if now != before else math.inf
        if abs(excess(now)) < 1e-6 or slope == 0:
            break
        before, now = now, now - excess(now) / slope
    if not (abs(now) <= _LARGEST and abs(excess(now)) < 1e-3):
        raise BodyModelError(f"coefficient {index} of this body model reaches no height of {height} m; is it SMPL?")
    return now * direction


def _draw_scale(count: int) -> tuple[Image.Image, int]:
    """Empty page with a line every quarter of a metre, named every half; and the row of the ground [px]."""
    width = _LEFT + _RIGHT + round(count * _SPACING * _PIXELS_PER_METRE)
    ground = _TOP + round(_SCALE_TOP * _PIXELS_PER_METRE)
    page = Image.new("RGB", (width, ground + _BOTTOM), PAPER)
    draw = ImageDraw.Draw(page)
    for quarter in range(round(_SCALE_TOP * 4) + 1):
        v = ground - quarter / 4 * _PIXELS_PER_METRE
        named = quarter % 2 == 0
        draw.line([(_LEFT if named else _LEFT + 12, v), (width - _RIGHT, v)], fill=RULE, width=2 if named else 1)
        if named:
            draw.text((_LEFT - 10, v), f"{quarter / 4:.1f} m", font=load_font(15), fill=MUTED, anchor="rm")
    return page, ground
