"""Colours of the figures: one per person, and the few the pages are made of. sRGB, 0 .. 255."""

from __future__ import annotations

import numpy as np

Rgb = tuple[int, int, int]

INK: Rgb = (33, 37, 45)
MUTED: Rgb = (112, 120, 133)
RULE: Rgb = (218, 222, 229)
PAPER: Rgb = (255, 255, 255)
GROUND: Rgb = (241, 243, 247)

# neighbours in the list differ in hue and lightness, also for readers who cannot tell red from green
_PEOPLE = np.array(
    [
        (230, 97, 38),
        (38, 118, 204),
        (245, 184, 26),
        (128, 72, 176),
        (22, 160, 133),
        (214, 59, 106),
        (101, 186, 232),
        (132, 112, 40),
        (94, 178, 60),
        (60, 76, 150),
        (240, 140, 158),
        (94, 92, 100),
    ],
    dtype=np.uint8,
)


def person_colours(count: int) -> np.ndarray:
    """(count, 3) uint8, one colour per person; after twelve they repeat, each round a little paler."""
    index = np.arange(count)
    paler = np.minimum(index // len(_PEOPLE) * 0.3, 0.75)[:, None]
    return np.round(_PEOPLE[index % len(_PEOPLE)] * (1 - paler) + 255 * paler).astype(np.uint8)


def text_on(colour: Rgb) -> Rgb:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 165 else PAPER
