"""Disparity as a picture: near is bright, far is dark. Arrays in, a picture out; the unit of disparity is unknown.

Also the grey sheet that stands in where there is no photograph or no map, with the reason written on it.
"""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from dto_pipeline.view.palette import INK, PAPER
from dto_pipeline.view.tags import load_font

_CUT = (1.0, 99.0)  # percentiles shown as the darkest and the brightest colour
_SHEET = (206, 210, 217)
_LETTERS = 52  # of a line on a grey sheet

# viridis (public domain), dark to bright: also readable without colour vision, and in grey
_COLOURS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (109, 205, 89),
        (180, 222, 44),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def draw_depth_map(disparity: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Colour a disparity map, with a legend.

    Args:
        disparity: (H, W), larger is nearer.
        size: width, height of the picture [px].

    Returns:
        RGB picture.
    """
    values = np.asarray(disparity, dtype=np.float64)
    low, high = np.percentile(values[np.isfinite(values)], _CUT) if np.isfinite(values).any() else (0.0, 1.0)
    level = np.nan_to_num((values - low) / max(high - low, 1e-12)).clip(0, 1)
    small = Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    picture = Image.fromarray(_colour(np.asarray(small)))
    _draw_legend(picture)
    return picture


def grey_sheet(size: tuple[int, int], text: str) -> np.ndarray:
    """(H, W, 3) uint8 in place of a photograph; `size` is (width, height) [px], `text` the reason."""
    sheet = Image.new("RGB", size, _SHEET)
    font = load_font(max(11, round(size[0] / 36)))
    lines = "\n".join(textwrap.wrap(text, _LETTERS))
    middle = (size[0] / 2, size[1] * 0.12)
    ImageDraw.Draw(sheet).multiline_text(middle, lines, font=font, fill=INK, anchor="mm", align="center")
    return np.asarray(sheet)


def _colour(level: np.ndarray) -> np.ndarray:
    """(h, w) 0 .. 1 -> (h, w, 3) uint8."""
    position = level * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    return np.stack([np.interp(position, stops, channel) for channel in _COLOURS.T], axis=-1).round().astype(np.uint8)


def _draw_legend(picture: Image.Image) -> None:
    """A bar from far to near in the lower left corner."""
    width, height = 120, 12
    bar = np.tile(np.linspace(0, 1, width), (height, 1))
    left, top = 52, picture.height - 26
    draw, font = ImageDraw.Draw(picture), load_font(12)
    draw.rounded_rectangle([8, top - 7, left + width + 48, top + height + 7], radius=6, fill=PAPER)
    picture.paste(Image.fromarray(_colour(bar)), (left, top))
    draw.text((left - 8, top + height / 2), "far", font=font, fill=INK, anchor="rm")
    draw.text((left + width + 8, top + height / 2), "near", font=font, fill=INK, anchor="lm")
