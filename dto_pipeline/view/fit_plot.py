"""The fit of a scene as a figure: relative depth of each person against its distance, with the lines that place people.

Arrays in, a picture out. Depth is 1 / disparity, unit unknown; z in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dto_pipeline.view.palette import INK, MUTED, PAPER, RULE, person_colours
from dto_pipeline.view.tags import draw_tags, load_font

_MARGIN = (56, 16, 18, 46)  # left, top, right, bottom [px]
_DOT = 6
_FINER = 3  # drawn at this many times the resolution
_GROUPS = ("near", "far")


@dataclass(frozen=True)
class Fit:
    """What a scene's two lines are made of, P people. NaN = not measured."""

    depth: np.ndarray  # (P,) relative depth
    z_before: np.ndarray  # (P,) [m]
    z_after: np.ndarray  # (P,) [m]
    group: np.ndarray  # (P,) 0 near, 1 far, -1 not measured
    alpha: tuple[float, float]  # near, far; NaN = no fit
    beta: tuple[float, float]  # [m]
    ground: bool = False  # the near line belongs to people's lowest pixels, so they lie beside it

    disparity_line: tuple[float, float] = (float("nan"), float("nan"))  # 1 / z = first / depth + second, of everybody

    @property
    def shown(self) -> np.ndarray:
        """(P,) bool: people that have a depth."""
        return np.isfinite(self.depth) & np.isfinite(self.z_before) & (self.group >= 0)


@dataclass(frozen=True)
class _Axes:
    """How depth and metres become pixels."""

    low: np.ndarray  # (2,) depth, z at the lower left corner
    high: np.ndarray  # (2,)
    size: tuple[int, int]

    def place(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) depth, z -> (..., 2) u, v [px]."""
        left, top, right, bottom = _MARGIN
        room = np.array([self.size[0] - left - right, self.size[1] - top - bottom])
        part = (np.asarray(points, np.float64) - self.low) / (self.high - self.low)
        return np.stack([left + part[..., 0] * room[0], self.size[1] - bottom - part[..., 1] * room[1]], axis=-1)


def draw_fit(fit: Fit, size: tuple[int, int]) -> Image.Image:
    """Draw people (hollow before, filled after) and the lines z = alpha * depth + beta.

    Args:
        fit: of one scene.
        size: width, height of the figure [px].

    Returns:
        RGB figure.
    """
    figure = Image.new("RGB", (size[0] * _FINER, size[1] * _FINER), PAPER)
    if not fit.shown.any():
        figure = figure.resize(size)
        middle = (size[0] / 2, size[1] / 2)
        ImageDraw.Draw(figure).text(middle, "nobody was measured", font=load_font(14), fill=MUTED, anchor="mm")
        return figure
    axes = _choose_axes(fit, size)
    draw = ImageDraw.Draw(figure)
    ticks = [round_ticks(float(low), float(high)) for low, high in zip(axes.low, axes.high, strict=True)]
    _draw_grid(draw, axes, ticks)
    _draw_lines(draw, fit, axes)
    _draw_dots(draw, fit, axes)
    figure = figure.resize(size, Image.Resampling.LANCZOS)
    _write_axes(figure, axes, ticks)
    _write_tags(figure, fit, axes)
    return figure


def round_ticks(low: float, high: float, most: int = 6) -> np.ndarray:
    """Multiples of 1, 2 or 5 times a power of ten between two values, at most `most` + 1 of them."""
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step


def _choose_axes(fit: Fit, size: tuple[int, int]) -> _Axes:
    kept = fit.shown
    z = np.concatenate([fit.z_before[kept], fit.z_after[kept]])
    corners = np.array([[fit.depth[kept].min(), z.min()], [fit.depth[kept].max(), z.max()]])
    room = np.maximum(corners[1] - corners[0], [corners[1, 0] * 0.1 + 1e-9, 1.0]) * 0.12
    low = np.maximum(corners[0] - room, 0)
    return _Axes(low, corners[1] + room, size)


def _draw_grid(draw: ImageDraw.ImageDraw, axes: _Axes, ticks: list[np.ndarray]) -> None:
    for axis, values in enumerate(ticks):
        for value in values:
            ends = np.stack([axes.low, axes.high])
            ends[:, axis] = value
            draw.line(_fine(axes.place(ends)), fill=RULE, width=_FINER)


def _draw_lines(draw: ImageDraw.ImageDraw, fit: Fit, axes: _Axes) -> None:
    """One line per group, or the curve of everybody, over the depths of its people."""
    for group in range(len(_GROUPS)):
        depth = fit.depth[fit.shown & (fit.group == group)]
        if depth.size and np.isfinite(fit.alpha[group]):
            span = np.array([depth.min(), depth.max()])
            ends = np.stack([span, fit.alpha[group] * span + fit.beta[group]], axis=-1)
            draw.line(_fine(axes.place(ends)), fill=INK if group == 0 else MUTED, width=2 * _FINER)
    slope, offset = fit.disparity_line
    if np.isfinite(slope):
        depth = np.linspace(fit.depth[fit.shown].min(), fit.depth[fit.shown].max(), 60)
        curve = np.stack([depth, 1 / np.maximum(slope / depth + offset, 1e-6)], axis=-1)
        draw.line(_fine(axes.place(curve)), fill=INK, width=2 * _FINER)


def _draw_dots(draw: ImageDraw.ImageDraw, fit: Fit, axes: _Axes) -> None:
    colours = person_colours(len(fit.depth))
    before = axes.place(np.stack([fit.depth, fit.z_before], axis=-1))
    after = axes.place(np.stack([fit.depth, fit.z_after], axis=-1))
    for person in np.flatnonzero(fit.shown):
        colour = tuple(colours[person].tolist())
        draw.line(_fine(np.stack([before[person], after[person]])), fill=colour, width=_FINER)
        draw.circle(_fine(before[person : person + 1])[0], _DOT * _FINER, fill=PAPER, outline=colour, width=2 * _FINER)
        draw.circle(_fine(after[person : person + 1])[0], _DOT * _FINER, fill=colour)


def _write_axes(figure: Image.Image, axes: _Axes, ticks: list[np.ndarray]) -> None:
    draw, font = ImageDraw.Draw(figure), load_font(12)
    left, _, right, bottom = _MARGIN
    floor = figure.height - bottom
    for value in ticks[0]:
        draw.text(
            (axes.place(np.array([value, axes.low[1]]))[0], floor + 6),
            f"{value:.3g}",
            font=font,
            fill=MUTED,
            anchor="mt",
        )
    for value in ticks[1]:
        draw.text(
            (left - 6, axes.place(np.array([axes.low[0], value]))[1]),
            f"{value:g} m",
            font=font,
            fill=MUTED,
            anchor="rm",
        )
    middle = (left + (figure.width - left - right) / 2, figure.height - 12)
    draw.text(middle, "relative depth of the person (1 / disparity)", font=font, fill=MUTED, anchor="mm")


def _write_tags(figure: Image.Image, fit: Fit, axes: _Axes) -> None:
    kept = np.flatnonzero(fit.shown)
    anchors = axes.place(np.stack([fit.depth, fit.z_after], axis=-1))[kept] - (0, _DOT + 10)
    draw_tags(figure, anchors, [str(person + 1) for person in kept], person_colours(len(fit.depth))[kept], 11)


def _fine(points: np.ndarray) -> list[tuple[float, float]]:
    return [(float(u) * _FINER, float(v) * _FINER) for u, v in points]
