"""Two pictures of a solver comparison: errors per set and method as bars, and how often intervals hold the truth.

Knows the results of `solver_comparison.compare_outcomes` and Pillow; knows no solver. Fixed colours and sizes, so that
equal results give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dto_pipeline.lab.solver_comparison import METHODS

_COLOURS = {
    "labels": "#b9b9b9",
    "height prior": "#e0a458",
    "paper": "#4f7cac",
    "paper, else prior": "#9bb8d3",
    "joint": "#2a9d5c",
    "true line": "#8d6cab",
}
_WHATS = {"z": "#2a9d5c", "pairs": "#4f7cac", "height": "#e0a458"}
_INK, _RULE, _PAPER = "#222222", "#dddddd", "#ffffff"
_LEFT, _TOP, _GAP = 70, 34, 46  # margins of a panel [px]


def draw_errors(results: Mapping[str, Any]) -> Image.Image:
    """Bars of absolute z, pairwise depth and height error [m] per set, one colour per method."""
    measures = {
        "depth_error": "absolute z error [m]",
        "pair_depth_error": "pairwise depth error [m]",
        "height_error": "height error [m]",
    }
    width, high = max(420, _LEFT + 96 * len(results) + 20), 210
    image = Image.new("RGB", (width, (high + _TOP + _GAP) * len(measures) + 10), _PAPER)
    draw = ImageDraw.Draw(image)
    for row, (key, title) in enumerate(measures.items()):
        top = row * (high + _TOP + _GAP) + _TOP
        most = max(numbers["methods"][m][key] for numbers in results.values() for m in METHODS)
        _axis(draw, (_LEFT, top, width - 10, top + high), title, most)
        for place, (name, numbers) in enumerate(results.items()):
            left = _LEFT + 8 + 96 * place
            for column, method in enumerate(METHODS):
                tall = high * numbers["methods"][method][key] / most
                box = (left + 14 * column, top + high - tall, left + 14 * column + 12, top + high)
                draw.rectangle(box, fill=_COLOURS[method])
            draw.text((left + 38, top + high + 6), name, _INK, font=_font(12), anchor="mt")
    _legend(draw, _COLOURS, (_LEFT + 200, 10))
    return image


def draw_coverage(results: Mapping[str, Any]) -> Image.Image:
    """Share of truths inside an interval against what the interval says, a dot per set; the diagonal is honest."""
    side = 380
    image = Image.new("RGB", (_LEFT + side + 30, _TOP + side + _GAP), _PAPER)
    draw = ImageDraw.Draw(image)
    box = (_LEFT, _TOP, _LEFT + side, _TOP + side)
    _axis(draw, box, "truths inside the interval", 1.0)
    draw.line((box[0], box[3], box[2], box[1]), fill="#999999")
    for slot, (what, colour) in enumerate(_WHATS.items()):
        for numbers in results.values():
            for level, share in numbers["coverage"][what].items():
                x, y = box[0] + side * float(level) + 9 * (slot - 1), box[3] - side * share
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)
    for level in (0.5, 0.8, 0.95):
        draw.text((box[0] + side * level, box[3] + 6), f"{100 * level:.0f} %", _INK, font=_font(12), anchor="mt")
    _legend(draw, _WHATS, (_LEFT + 190, 10))
    return image


def _axis(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], title: str, most: float) -> None:
    left, top, right, bottom = box
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - (bottom - top) * share
        draw.line((left, y, right, y), fill=_RULE)
        draw.text((left - 6, y), f"{most * share:.2f}", _INK, font=_font(12), anchor="rm")
    draw.text((left, top - 22), title, _INK, font=_font(14))


def _legend(draw: ImageDraw.ImageDraw, colours: Mapping[str, str], at: tuple[int, int]) -> None:
    x, y = at
    for name, colour in colours.items():
        draw.rectangle((x, y, x + 11, y + 11), fill=colour)
        draw.text((x + 16, y + 6), name, _INK, font=_font(12), anchor="lm")
        x += 34 + int(draw.textlength(name, font=_font(12)))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
