"""A scene before and after on one page: meshes over the photograph, the view from above, one line per person.

Arrays in, a picture out; only `save_png` touches disk. Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import commit_over, staged
from dto_pipeline.models.body import BodyModel
from dto_pipeline.view.depth_map import draw_depth_map, grey_sheet
from dto_pipeline.view.overlay import draw_overlays
from dto_pipeline.view.palette import INK, MUTED, PAPER, RULE, Rgb, person_colours, text_on
from dto_pipeline.view.plots import Fit, draw_birds_eye, draw_fit
from dto_pipeline.view.tags import load_font

_PHOTO = (760, 570)  # the photograph fits into this [px]
_PLAN_WIDTH = 500  # of the view from above [px]
_EDGE = 24  # around everything [px]
_COLUMN = 470  # width of a column of a page with columns [px]
_CAPTION = 30  # height of a row's caption [px]
_LINE = 24  # height of a line of the table [px]
_TABLE_FONT = 14


@dataclass(frozen=True)
class People:
    """P bodies to draw; arrays share the first axis. A person that is not finite or has z <= 0 is left out."""

    pose: np.ndarray  # (P, 72) axis-angle [rad]
    betas: np.ndarray  # (P, 10) or (P, 11)
    transl: np.ndarray  # (P, 3) [m]
    z_sigma: np.ndarray | None = None  # (P,) standard deviation of z [m]


@dataclass(frozen=True)
class Table:
    """One line of text cells per person, in the order of the people."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Evidence:
    """What a scene was placed by."""

    disparity: np.ndarray | None  # (H, W) depth map, larger is nearer; None = there is none to show
    fit: Fit | None  # None = nobody was measured
    why: str = ""  # there is none to show


@dataclass(frozen=True)
class PanelRow:
    """Two pictures side by side, with words over each."""

    left: Image.Image
    right: Image.Image
    caption: str
    note: str


def draw_rows(
    image: np.ndarray,
    states: Sequence[tuple[str, People]],
    intrinsics: np.ndarray,
    body: BodyModel,
    truth: People | None = None,
    evidence: Evidence | None = None,
) -> list[PanelRow]:
    """The pictures of a scene: a row for each state of its people and, where there is evidence, the depth map.

    Args:
        image: (H, W, 3) uint8 RGB photograph.
        states: captions and the same P people; truth: where they really are, if known.
        intrinsics: (3, 3) [px].
        body: model of all bodies.
        evidence: what the placing was made of, for the last row.
    """
    pictures = _draw_photos(image, [people for _, people in states], intrinsics, body)
    places = [ground_places(people, body) for _, people in states]
    true_places = None if truth is None else ground_places(truth, body)
    shown = np.concatenate([*places, *([] if true_places is None else [true_places])])
    size = (_PLAN_WIDTH, pictures[0].height)
    note = "from above; hollow circles: the truth" if truth is not None else "from above"
    rows = []
    for (caption, people), place, picture in zip(states, places, pictures, strict=True):
        above = draw_birds_eye(place, intrinsics, image.shape[1], size, shown, true_places, people.z_sigma)
        rows.append(PanelRow(picture, above, caption, note))
    if evidence is not None:
        rows.append(_evidence_row(evidence, pictures[0].size))
    return rows


def ground_places(people: People, body: BodyModel) -> np.ndarray:
    """(P, 2) x, z of the middle of each body's joints [m], NaN where a person cannot be drawn."""
    pose, betas, transl, present = _as_tensors(people)
    middle = body.joints(pose, betas, transl)[:, :24].mean(dim=1).numpy()
    return np.where(present.numpy()[:, None], middle[:, [0, 2]], np.nan)


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, replacing an older one; its folder is made if missing."""
    path = Path(path)
    with staged(path) as temporary:
        picture.save(temporary, format="PNG")
        commit_over(temporary, path)


def _draw_photos(
    image: np.ndarray, states: Sequence[People], intrinsics: np.ndarray, body: BodyModel
) -> list[Image.Image]:
    """The photograph once per state, with that state's meshes."""
    tensors = [_as_tensors(people) for people in states]
    vertices = torch.stack([body.vertices(pose, betas, transl) for pose, betas, transl, _ in tensors])
    present = torch.stack([shown for *_, shown in tensors])
    height, width = image.shape[:2]
    longest = round(max(height, width) * min(_PHOTO[0] / width, _PHOTO[1] / height))
    cameras = torch.from_numpy(np.asarray(intrinsics, dtype=np.float64)).expand(len(states), 3, 3)
    return draw_overlays([image] * len(states), vertices, present, body.faces, cameras, longest)


def _as_tensors(people: People) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pose, betas, transl and who can be drawn; others are replaced by zeros."""
    values = [np.asarray(value, dtype=np.float32) for value in (people.pose, people.betas, people.transl)]
    present = np.all([np.isfinite(value).all(axis=1) for value in values], axis=0) & (values[2][:, 2] > 0)
    pose, betas, transl = (np.where(present[:, None], value, 0).astype(np.float32) for value in values)
    betas = np.pad(betas, ((0, 0), (0, NUM_BETAS - betas.shape[1])))
    return torch.from_numpy(pose), torch.from_numpy(betas), torch.from_numpy(transl), torch.from_numpy(present)


def _evidence_row(evidence: Evidence, size: tuple[int, int]) -> PanelRow:
    """The depth map and the lines fitted to it, at the size of the photographs."""
    has_map, plot_size = evidence.disparity is not None, (_PLAN_WIDTH, size[1])
    sheet = Image.fromarray(grey_sheet(size, evidence.why or "no depth map"))
    depth = draw_depth_map(evidence.disparity, size) if evidence.disparity is not None else sheet
    plot = Image.new("RGB", plot_size, PAPER) if evidence.fit is None else draw_fit(evidence.fit, plot_size)
    note = "" if evidence.fit is None else "z against depth; filled: after"
    if evidence.fit is not None and evidence.fit.ground:
        note += "; near line: feet"
    return PanelRow(depth, plot, "Depth map" if has_map else "No depth map", note)


def compose_page(rows: Sequence[PanelRow], title: str, table: Table | None = None) -> Image.Image:
    """Put rows of pictures and the table on one page; returns RGB."""
    left, right = rows[0].left, rows[0].right
    width = max(left.width + _EDGE + right.width, 900) + 2 * _EDGE
    page, draw, top = _start_page(width, len(rows) * (_CAPTION + left.height + 14), title, table)
    for row in rows:
        draw.text((_EDGE, top + 8), row.caption, font=load_font(15), fill=INK)
        draw.text((width - _EDGE - 14, top + 9), row.note, font=load_font(13), fill=MUTED, anchor="ra")
        page.paste(row.left, (_EDGE, top + _CAPTION))
        page.paste(row.right, (width - _EDGE - row.right.width, top + _CAPTION))
        top += _CAPTION + row.left.height + 14
    return page


def compose_columns(rows: Sequence[PanelRow], title: str, table: Table | None = None) -> Image.Image:
    """The same with a column for each row: its left picture above its right one; returns RGB."""
    pictures = [(_at_width(row.left, _COLUMN), _at_width(row.right, _COLUMN)) for row in rows]
    upper, lower = (max(pair[place].height for pair in pictures) for place in (0, 1))
    width = len(rows) * (_COLUMN + _EDGE) + _EDGE
    page, draw, top = _start_page(width, 2 * _CAPTION + upper + lower + 14, title, table)
    for number, (row, (first, second)) in enumerate(zip(rows, pictures, strict=True)):
        left = _EDGE + number * (_COLUMN + _EDGE)
        draw.text((left, top + 8), row.caption, font=load_font(15), fill=INK)
        page.paste(first, (left, top + _CAPTION))
        draw.text((left, top + _CAPTION + upper + 9), row.note, font=load_font(13), fill=MUTED)
        page.paste(second, (left, top + 2 * _CAPTION + upper))
    return page


def _start_page(
    width: int, pictures: int, title: str, table: Table | None
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A page with title, room for `pictures` [px], and the table below; and where that room begins [px]."""
    head = 44 if title else 8
    foot = 0 if table is None else (len(table.lines) + 1) * _LINE + 2 * _EDGE
    page = Image.new("RGB", (width, head + pictures + foot + 8), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_EDGE, 14), title, font=load_font(20), fill=INK)
    if table is not None:
        _draw_table(draw, table, head + pictures + 10, width)
    return page, draw, head


def _at_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def _draw_table(draw: ImageDraw.ImageDraw, table: Table, top: int, width: int) -> None:
    """Header and one line per person with a chip in the person's colour."""
    font = load_font(_TABLE_FONT)
    cells = [list(table.columns), *(list(line) for line in table.lines)]
    widths = [max(draw.textlength(row[i], font=font) for row in cells) for i in range(len(table.columns))]
    spare = width - 2 * _EDGE - 44 - sum(widths)
    starts = np.cumsum([44, *(w + max(spare / len(widths), 8) for w in widths[:-1])]) + _EDGE
    colours = person_colours(len(table.lines)).tolist()
    for index, row in enumerate(cells):
        y = top + index * _LINE + _LINE // 2
        for start, text in zip(starts, row, strict=True):
            draw.text((start, y), text, font=font, fill=INK if index else MUTED, anchor="lm")
        draw.line([(_EDGE, y + _LINE // 2), (width - _EDGE, y + _LINE // 2)], fill=RULE)
        if index:
            _draw_chip(draw, (_EDGE + 16, y), str(index), colours[index - 1])


def _draw_chip(draw: ImageDraw.ImageDraw, centre: tuple[int, int], text: str, colour: Sequence[int]) -> None:
    u, v = centre
    rgb: Rgb = (colour[0], colour[1], colour[2])
    draw.rounded_rectangle([u - 14, v - 9, u + 14, v + 9], radius=7, fill=rgb)
    draw.text(centre, text, font=load_font(12), fill=text_on(rgb), anchor="mm")
