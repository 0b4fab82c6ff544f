"""The scene from above: where everybody stands, in metres, with the camera's field of view.

Arrays in, a picture out; knows no bodies and no files. The plan shows the camera's x (to the right) and z (upwards in
the figure) in metres; heights above the ground are not shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dto_pipeline.view.palette import GROUND, INK, MUTED, PAPER, RULE, person_colours
from dto_pipeline.view.tags import draw_tags, load_font

_FINER = 3  # shapes are drawn at this many times the resolution
_BODY_RADIUS = 0.24  # of a person seen from above [m]
_CAP = 4.0  # half the width of a whisker's cap [px]
_LEAST_RADIUS = 6.0  # a disc is never smaller [px]
_MARGIN = (44, 16, 14, 34)  # left, top, right, bottom: room for the labels of the grid [px]
_MOST_LINES = 9  # labelled grid lines per axis
_STEPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # between labelled grid lines [m]


@dataclass(frozen=True)
class Plan:
    """How metres become pixels of one figure."""

    size: tuple[int, int]  # width, height of the figure [px]
    scale: float  # [px per metre]
    left: float  # x at the left border of the drawn area [m]
    top: float  # z at its upper border [m]

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) x, z [m] -> (..., 2) u, v [px]."""
        x, z = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        return np.stack([_MARGIN[0] + (x - self.left) * self.scale, _MARGIN[1] + (self.top - z) * self.scale], axis=-1)


def plan_view(points: np.ndarray, size: tuple[int, int]) -> Plan:
    """Choose a scale that shows the camera and all points.

    Args:
        points: (n, 2) x, z [m]; may be empty, NaN is left out.
        size: width, height of the figure [px].
    """
    shown = points[np.isfinite(points).all(axis=1)]
    shown = np.concatenate([shown, [[-1.2, 0.0], [1.2, 2.0]]])
    low, high = shown.min(axis=0) - 0.6, shown.max(axis=0) + 0.7
    low[1] = -0.25  # a little room for the camera itself
    room = np.array([size[0] - _MARGIN[0] - _MARGIN[2], size[1] - _MARGIN[1] - _MARGIN[3]])
    scale = float((room / (high - low)).min())
    centre = (low[0] + high[0]) / 2
    return Plan(size, scale, float(centre - room[0] / scale / 2), float(low[1] + room[1] / scale))


def draw_birds_eye(
    places: np.ndarray,
    intrinsics: np.ndarray,
    image_width: int,
    plan: Plan,
    truth: np.ndarray | None = None,
    z_sigma: np.ndarray | None = None,
) -> Image.Image:
    """Draw people from above, numbered from 1.

    Args:
        places: (P, 2) x, z of each person [m]; NaN = not drawn.
        intrinsics: (3, 3) of the photograph [px]; image_width: of the photograph [px].
        plan: from `plan_view`; figures that are compared share one.
        truth: (P, 2) true places [m], hollow circles; None = not known.
        z_sigma: (P,) standard deviation of z [m], bars along the line of sight; None or NaN = not known.

    Returns:
        RGB figure of the plan's size.
    """
    figure = Image.new("RGB", (plan.size[0] * _FINER, plan.size[1] * _FINER), PAPER)
    draw = ImageDraw.Draw(figure)
    step = _grid_step(plan)
    _draw_field(draw, plan, intrinsics, image_width)
    _draw_grid(draw, plan, step)
    colours = person_colours(len(places))
    shown = np.isfinite(places).all(axis=1)
    if truth is not None:
        _draw_truth(draw, plan, places, truth, colours)
    if z_sigma is not None:
        _draw_sigma(draw, plan, places, z_sigma, colours)
    _draw_people(draw, plan, places[shown], colours[shown])
    if z_sigma is not None:
        _draw_whiskers(draw, plan, places, z_sigma)
    figure = figure.resize(plan.size, Image.Resampling.LANCZOS)
    _label_grid(figure, plan, step)
    kept = [str(person + 1) for person in np.flatnonzero(shown)]
    radius = max(_BODY_RADIUS * plan.scale, _LEAST_RADIUS)
    anchors = plan.to_pixels(places[shown]) - (0, radius + 9)
    draw_tags(figure, anchors, kept, colours[shown], font_size=12)
    return figure


def _grid_step(plan: Plan) -> float:
    longest = max(plan.size) / plan.scale
    return next((step for step in _STEPS if longest / step <= _MOST_LINES), _STEPS[-1])


def _grid_lines(plan: Plan, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of x and of z [m] at which grid lines lie inside the drawn area."""
    right = plan.left + (plan.size[0] - _MARGIN[0] - _MARGIN[2]) / plan.scale
    bottom = plan.top - (plan.size[1] - _MARGIN[1] - _MARGIN[3]) / plan.scale
    x = np.arange(np.ceil(plan.left / step), np.floor(right / step) + 1) * step
    z = np.arange(max(np.ceil(bottom / step), 0), np.floor(plan.top / step) + 1) * step
    return x, z


def _fine(points: np.ndarray) -> list[tuple[float, float]]:
    return [(float(u) * _FINER, float(v) * _FINER) for u, v in points]


def _draw_field(draw: ImageDraw.ImageDraw, plan: Plan, intrinsics: np.ndarray, image_width: int) -> None:
    """What the camera cannot see, in grey, and the camera itself."""
    left, top, right, bottom = _area(plan)
    draw.rectangle([value * _FINER for value in (left, top, right, bottom)], fill=GROUND)
    far = 2 * (plan.top + 1)
    edges = (np.array([0.0, image_width]) - intrinsics[0, 2]) / intrinsics[0, 0]
    wedge = plan.to_pixels(np.array([[0.0, 0.0], [edges[0] * far, far], [edges[1] * far, far]]))
    draw.polygon(_fine(wedge), fill=PAPER, outline=MUTED, width=_FINER)
    for box in ((0, 0, plan.size[0], top), (0, 0, left, plan.size[1]), (right, 0, *plan.size), (0, bottom, *plan.size)):
        draw.rectangle([value * _FINER for value in box], fill=PAPER)
    u, v = plan.to_pixels(np.zeros(2))
    draw.polygon(_fine(np.array([[u - 7, v + 9], [u + 7, v + 9], [u, v - 1]])), fill=MUTED)


def _draw_grid(draw: ImageDraw.ImageDraw, plan: Plan, step: float) -> None:
    left, top, right, bottom = _area(plan)
    x, z = _grid_lines(plan, step)
    for u in plan.to_pixels(np.stack([x, 0 * x], axis=-1))[:, 0]:
        draw.line(_fine(np.array([[u, top], [u, bottom]])), fill=RULE, width=_FINER)
    for v in plan.to_pixels(np.stack([0 * z, z], axis=-1))[:, 1]:
        draw.line(_fine(np.array([[left, v], [right, v]])), fill=RULE, width=_FINER)


def _label_grid(figure: Image.Image, plan: Plan, step: float) -> None:
    left, _, _, bottom = _area(plan)
    draw, font = ImageDraw.Draw(figure), load_font(12)
    x, z = _grid_lines(plan, step)
    for value, (u, _) in zip(x, plan.to_pixels(np.stack([x, 0 * x], axis=-1)), strict=True):
        draw.text((u, bottom + 6), f"{value + 0.0:g}", font=font, fill=MUTED, anchor="mt")
    for value, (_, v) in zip(z, plan.to_pixels(np.stack([0 * z, z], axis=-1)), strict=True):
        draw.text((left - 6, v), f"{abs(value):g} m", font=font, fill=MUTED, anchor="rm")


def _draw_truth(
    draw: ImageDraw.ImageDraw, plan: Plan, places: np.ndarray, truth: np.ndarray, colours: np.ndarray
) -> None:
    """Hollow circles at the true places, each tied to where the person was put."""
    radius = max(_BODY_RADIUS * plan.scale, _LEAST_RADIUS) * _FINER
    for place, true, colour in zip(plan.to_pixels(places), plan.to_pixels(truth), colours.tolist(), strict=True):
        if np.isfinite(place).all():
            draw.line(_fine(np.stack([place, true])), fill=tuple(colour), width=_FINER)
        draw.circle(_fine(true[None])[0], radius, outline=tuple(colour), width=2 * _FINER)


def _draw_sigma(
    draw: ImageDraw.ImageDraw, plan: Plan, places: np.ndarray, z_sigma: np.ndarray, colours: np.ndarray
) -> None:
    """Bars of one standard deviation to both sides, along the line of sight."""
    ends, known = _sigma_ends(plan, places, z_sigma)
    for end, colour in zip(ends, colours[known].tolist(), strict=True):
        draw.line(_fine(end), fill=tuple(colour), width=6 * _FINER)


def _draw_whiskers(draw: ImageDraw.ImageDraw, plan: Plan, places: np.ndarray, z_sigma: np.ndarray) -> None:
    """The same as thin lines with caps over the discs, so that a small uncertainty is seen too."""
    for end in _sigma_ends(plan, places, z_sigma)[0]:
        along = (end[1] - end[0]) / max(float(np.hypot(*(end[1] - end[0]))), 1e-9)
        cap = np.array([-along[1], along[0]]) * _CAP
        for line in (end, end[:1] + np.stack([-cap, cap]), end[1:] + np.stack([-cap, cap])):
            draw.line(_fine(line), fill=INK, width=_FINER + 1)


def _sigma_ends(plan: Plan, places: np.ndarray, z_sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k, 2, 2) both ends [px] of the k bars that are known, and (P,) bool whose they are."""
    known = np.isfinite(places).all(axis=1) & np.isfinite(z_sigma)
    reach = (z_sigma / places[:, 1].clip(1e-3))[:, None] * places
    return plan.to_pixels(np.stack([places - reach, places + reach], axis=1))[known], known


def _draw_people(draw: ImageDraw.ImageDraw, plan: Plan, places: np.ndarray, colours: np.ndarray) -> None:
    radius = max(_BODY_RADIUS * plan.scale, _LEAST_RADIUS) * _FINER
    for centre, colour in zip(_fine(plan.to_pixels(places)), colours.tolist(), strict=True):
        draw.circle(centre, radius, fill=tuple(colour), outline=PAPER, width=_FINER)


def _area(plan: Plan) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the drawn area [px]."""
    return _MARGIN[0], _MARGIN[1], plan.size[0] - _MARGIN[2], plan.size[1] - _MARGIN[3]
