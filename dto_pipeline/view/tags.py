"""Small labels that do not overlap: where they go, and how they look.

Knows boxes and Pillow, no people. Pixels of the figure, u right, v down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dto_pipeline.view.palette import INK, Rgb, text_on

_GAP = 2.0  # least distance between two labels [px]
_DIRECTIONS = 16  # tried around the anchor at every distance
_RINGS = 40  # distances tried
_LEADER_FROM = 14.0  # a label farther than this from its anchor gets a line to it [px]
_PADDING = (5, 2)  # inside a label, left and top [px]


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface, so that figures look the same on every machine."""
    return ImageFont.load_default(size=size)


def place_boxes(anchors: np.ndarray, sizes: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """Find room for labels near their anchors.

    Args:
        anchors: (n, 2) where each label would like its centre [px].
        sizes: (n, 2) width and height [px].
        bounds: width and height of the figure [px].

    Returns:
        (n, 2) left and top [px]. Boxes lie inside the bounds and do not overlap as long as there is room within a few
        hundred pixels; where there is none, a box stays at its anchor.
    """
    offsets = _offsets(float(sizes.max(initial=1.0)))
    placed = np.empty((0, 4))
    corners = np.zeros_like(sizes, dtype=np.float64)
    for index, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        room = np.maximum(np.array(bounds) - size, 0)
        candidates = np.clip(anchor + offsets - size / 2, 0, room)
        boxes = np.concatenate([candidates, candidates + size], axis=1)
        free = ~_overlap(boxes, placed).any(axis=1)
        distance = np.hypot(*(candidates + size / 2 - anchor).T)
        best = int(np.argmin(np.where(free, distance, np.inf))) if free.any() else 0
        corners[index] = candidates[best]
        placed = np.concatenate([placed, boxes[best : best + 1]])
    return corners


def draw_tags(
    figure: Image.Image, anchors: np.ndarray, texts: Sequence[str], colours: np.ndarray, font_size: int = 13
) -> None:
    """Draw one rounded label per anchor on `figure`, moved apart where needed, with a line back to the anchor.

    Args:
        figure: RGB, drawn on.
        anchors: (n, 2) wanted centres [px]; texts: n; colours: (n, 3) uint8.
        font_size: [px].
    """
    font, draw = load_font(font_size), ImageDraw.Draw(figure)
    spans = [draw.textbbox((0, 0), text, font=font) for text in texts]
    widths = [max(right - left, 0.6 * font_size) + 2 * _PADDING[0] for left, _, right, _ in spans]
    sizes = np.array([(width, font_size + 2 * _PADDING[1] + 1) for width in widths]).reshape(-1, 2)
    corners = place_boxes(np.asarray(anchors, dtype=np.float64), sizes, figure.size)
    centres = corners + sizes / 2
    for anchor, centre, colour in zip(anchors, centres, colours, strict=True):
        if np.hypot(*(centre - anchor)) > _LEADER_FROM:
            draw.line([tuple(anchor), tuple(centre)], fill=_rgb(colour), width=1)
    for corner, size, centre, text, colour in zip(corners, sizes, centres, texts, colours, strict=True):
        draw.rounded_rectangle([*corner, *(corner + size - 1)], radius=size[1] / 2.6, fill=_rgb(colour), outline=INK)
        draw.text(tuple(centre), text, font=font, fill=text_on(_rgb(colour)), anchor="mm")


def _offsets(step: float) -> np.ndarray:
    """(m, 2) displacements to try, the anchor itself first, then ring by ring."""
    angle = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    radius = 0.45 * step * np.arange(1, _RINGS + 1)
    rings = radius[:, None, None] * circle
    return np.concatenate([np.zeros((1, 2)), rings.reshape(-1, 2)])


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(m, k) bool: boxes (m, 4) and others (k, 4) come closer than the gap."""
    apart_low = boxes[:, None, 2:] + _GAP <= others[None, :, :2]
    apart_high = others[None, :, 2:] + _GAP <= boxes[:, None, :2]
    return np.logical_not((apart_low | apart_high).any(axis=-1))


def _rgb(colour: np.ndarray) -> Rgb:
    red, green, blue = (int(channel) for channel in colour)
    return red, green, blue
