"""What pages are made of: meshes over photographs, tags that do not overlap, depth maps, sheets for what is not there.

Arrays in, pictures out. sRGB 0 .. 255; pixels of the figure, u right, v down; camera frame, metres. Letters are
Pillow's own, so figures look the same everywhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dto_pipeline.models.rasterizer import Raster, find_surface, rasterize, vertex_normals

Rgb = tuple[int, int, int]

INK: Rgb = (33, 37, 45)
MUTED: Rgb = (112, 120, 133)
RULE: Rgb = (218, 222, 229)
PAPER: Rgb = (255, 255, 255)
GROUND: Rgb = (241, 243, 247)
_SHEET: Rgb = (206, 210, 217)
# of people: neighbours differ in hue and lightness, also for readers who cannot tell red from green
_PEOPLE = np.array(
    [
        *((230, 97, 38), (38, 118, 204), (245, 184, 26), (128, 72, 176), (22, 160, 133), (214, 59, 106)),
        *((101, 186, 232), (132, 112, 40), (94, 178, 60), (60, 76, 150), (240, 140, 158), (94, 92, 100)),
    ],
    dtype=np.uint8,
)
_GAP = 2.0  # least distance between two labels [px]
_DIRECTIONS, _RINGS = 16, 40  # places tried around an anchor: directions at every distance, distances
_LEADER_FROM = 14.0  # a label farther than this from its anchor gets a line to it [px]
_PADDING = (5, 2)  # inside a label, left and top [px]
_CUT = (1.0, 99.0)  # percentiles of disparity shown as the darkest and the brightest colour
_FINER = 2  # meshes are drawn at this many times the figure's resolution
_LIGHT = (-0.35, -0.62, -0.70)  # towards the light, camera frame
_AMBIENT, _DIFFUSE, _RIM = 0.42, 0.66, 0.35
_OUTLINE = 0.45  # brightness of a person's outline
_OPACITY = 0.82  # of the meshes
_TAG_ABOVE = 11  # tags float this far above a head [px]
_LETTERS = 52  # of a line on a grey sheet
_UNKNOWN = (640, 480)  # of a grey sheet whose size nothing tells [px]
_MOST_PIXELS = 1 << 27  # of a grey sheet; no larger photograph is read

load_font = ImageFont.load_default


def person_colours(count: int) -> np.ndarray:
    """(count, 3) uint8, one colour per person; after twelve they repeat, each round a little paler."""
    index = np.arange(count)
    paler = np.minimum(index // len(_PEOPLE) * 0.3, 0.75)[:, None]
    return np.round(_PEOPLE[index % len(_PEOPLE)] * (1 - paler) + 255 * paler).astype(np.uint8)


def text_on(colour: Rgb) -> Rgb:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 165 else PAPER


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
    angle = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    radius = 0.45 * float(sizes.max(initial=1.0)) * np.arange(1, _RINGS + 1)
    rings = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    offsets = np.concatenate([np.zeros((1, 2)), rings.reshape(-1, 2)])  # the anchor itself first
    placed = np.empty((0, 4))
    corners = np.zeros_like(sizes, dtype=np.float64)
    for index, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        candidates = np.clip(anchor + offsets - size / 2, 0, np.maximum(np.array(bounds) - size, 0))
        boxes = np.concatenate([candidates, candidates + size], axis=1)
        apart = (boxes[:, None, 2:] + _GAP <= placed[:, :2]) | (placed[:, 2:] + _GAP <= boxes[:, None, :2])
        free = np.all(np.any(apart, axis=-1), axis=1)
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
    rgb: list[Rgb] = [tuple(colour) for colour in colours.tolist()]
    for anchor, centre, colour in zip(anchors, centres, rgb, strict=True):
        if np.hypot(*(centre - anchor)) > _LEADER_FROM:
            draw.line([tuple(anchor), tuple(centre)], fill=colour, width=1)
    for corner, size, centre, text, colour in zip(corners, sizes, centres, texts, rgb, strict=True):
        draw.rounded_rectangle([*corner, *(corner + size - 1)], radius=size[1] / 2.6, fill=colour, outline=INK)
        draw.text(tuple(centre), text, font=font, fill=text_on(colour), anchor="mm")


def draw_overlays(
    photo: np.ndarray,
    vertices: torch.Tensor,
    present: torch.Tensor,
    faces: torch.Tensor,
    intrinsics: torch.Tensor,
    longest_side: int,
) -> list[Image.Image]:
    """Draw B states of the people of a photograph over it, see-through and shaded, in one call of the rasteriser.

    Args:
        photo: (H, W, 3) uint8 RGB.
        vertices: (B, P, V, 3) meshes [m]; present: (B, P) bool, who is drawn.
        faces: (F, 3) int64; intrinsics: (B, 3, 3) of the photograph [px].
        longest_side: of the figures [px]; the photograph is scaled to it.

    Returns:
        B RGB figures with people numbered from 1.
    """
    height, width = photo.shape[:2]
    scale = longest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    camera = intrinsics.to(torch.float64).clone()
    camera[:, 0] *= _FINER * size[0] / width
    camera[:, 1] *= _FINER * size[1] / height
    map_size = torch.tensor([[_FINER * size[1], _FINER * size[0]]]).expand(len(vertices), 2)
    raster = rasterize(vertices, faces, camera, map_size, present)
    ground = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
    figures = []
    for state, meshes in enumerate(vertices):
        colour, cover = _shade(raster, state, meshes, faces, camera[state])
        # colour comes multiplied by coverage, so that borders blend without fringes
        blended = ground * (1 - _OPACITY * cover[..., None]) + _OPACITY * colour
        figure = Image.fromarray(np.round(blended).clip(0, 255).astype(np.uint8))
        row, column = np.nonzero(raster.person[state].numpy() >= 0)  # row-major: a person's first pixel is its highest
        seen, first = np.unique(raster.person[state].numpy()[row, column], return_index=True)
        heads = np.stack([column[first], row[first]], axis=-1) / _FINER - (0, _TAG_ABOVE)
        draw_tags(figure, heads, [str(person + 1) for person in seen], person_colours(len(meshes))[seen])
        figures.append(figure)
    return figures


def _shade(
    raster: Raster, state: int, vertices: torch.Tensor, faces: torch.Tensor, intrinsics: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Colour times coverage (h, w, 3) 0 .. 255 and coverage (h, w) 0 .. 1 of one state, at the figure's resolution."""
    surface = find_surface(raster, state, vertices, faces, intrinsics)
    normal = torch.nn.functional.normalize(surface.interpolate(vertex_normals(vertices, faces)), dim=-1)
    light = torch.nn.functional.normalize(torch.tensor(_LIGHT), dim=0)
    facing = -(normal * torch.nn.functional.normalize(surface.point, dim=-1)).sum(-1)
    brightness = _AMBIENT + _DIFFUSE * (normal @ light).clamp(min=0) + _RIM * (1 - facing.clamp(0, 1)) ** 3
    colours = torch.from_numpy(person_colours(vertices.shape[0])).to(torch.float32)
    person = raster.person[state]
    brightness = torch.where(_is_border(person).flatten()[surface.pixel], _OUTLINE, brightness)
    fine = torch.zeros(person.numel(), 4)
    fine[surface.pixel, :3] = (colours[surface.person] * brightness[:, None]).clamp(max=255)
    fine[surface.pixel, 3] = 1
    height, width = person.shape
    mean = fine.view(height // _FINER, _FINER, width // _FINER, _FINER, 4).mean(dim=(1, 3)).numpy()
    return mean[..., :3], mean[..., 3]


def _is_border(person: torch.Tensor) -> torch.Tensor:
    """(h, w) bool: pixels of a person next to somebody else or to nobody."""
    border = torch.zeros_like(person, dtype=torch.bool)
    below, right = person.diff(dim=0) != 0, person.diff(dim=1) != 0
    border[:-1] |= below
    border[1:] |= below
    border[:, :-1] |= right
    border[:, 1:] |= right
    return border


def draw_depth_map(disparity: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Colour a disparity map, near is bright and far is dark, with a legend.

    Args:
        disparity: (H, W), larger is nearer.
        size: width, height of the picture [px].

    Returns:
        RGB picture.
    """
    values = np.asarray(disparity, dtype=np.float64)
    low, high = np.percentile(values[np.isfinite(values)], _CUT) if np.isfinite(values).any() else (0.0, 1.0)
    level = np.nan_to_num((values - low) / max(high - low, 1e-12)).clip(0, 1)
    colours = mpl.colormaps["viridis"]  # also readable without colour vision, and in grey
    small = Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    picture = Image.fromarray(colours(np.asarray(small), bytes=True)[..., :3])
    width, height = 120, 12
    left, top = 52, picture.height - 26
    draw, font = ImageDraw.Draw(picture), load_font(12)
    draw.rounded_rectangle([8, top - 7, left + width + 48, top + height + 7], radius=6, fill=PAPER)
    bar = colours(np.tile(np.linspace(0, 1, width), (height, 1)), bytes=True)[..., :3]
    picture.paste(Image.fromarray(bar), (left, top))
    draw.text((left - 8, top + height / 2), "far", font=font, fill=INK, anchor="rm")
    draw.text((left + width + 8, top + height / 2), "near", font=font, fill=INK, anchor="lm")
    return picture


def grey_sheet(size: tuple[int, int], text: str) -> np.ndarray:
    """(H, W, 3) uint8 in place of a picture; `size` is (width, height) [px], `text` the reason."""
    sheet = Image.new("RGB", size, _SHEET)
    lines = "\n".join(textwrap.wrap(text, _LETTERS))
    middle, font = (size[0] / 2, size[1] * 0.12), load_font(max(11, round(size[0] / 36)))
    ImageDraw.Draw(sheet).multiline_text(middle, lines, font=font, fill=INK, anchor="mm", align="center")
    return np.asarray(sheet)


def missing_photo(size: np.ndarray, intrinsics: np.ndarray, reason: str) -> np.ndarray:
    """(H, W, 3) grey sheet of a photograph's size.

    Args:
        size: (2,) width, height of the photograph; 0 or not finite = unknown, then it is centred on its camera [px].
        intrinsics: (3, 3) of that camera [px].
    """
    sides = np.asarray(size if np.isfinite(size).all() and (size > 0).all() else 2 * intrinsics[:2, 2], np.float64)
    usable = np.isfinite(sides).all() and (sides >= 16).all() and sides.prod() <= _MOST_PIXELS
    width, height = sides.round().astype(int).tolist() if usable else _UNKNOWN
    return grey_sheet((width, height), reason)
