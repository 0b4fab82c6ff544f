"""How a page of a scene looks: meshes over the photograph, the view from above, one line per person.

Arrays in, a picture out; only `save_png` touches disk. `pages` knows what is drawn. Metres, camera frame.
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
from dto_pipeline.view.drawing import INK, MUTED, PAPER, RULE, load_font, person_colours, text_on
from dto_pipeline.view.overlay import draw_overlays
from dto_pipeline.view.plots import draw_birds_eye

_PHOTO = (760, 570)  # the photograph fits into this [px]
PLAN_WIDTH = 500  # of the view from above [px]
_EDGE = 24  # around everything [px]
_COLUMN = 470  # width of a column of a page with columns [px]
_CAPTION = 30  # height of a row's caption [px]
_LINE = 24  # height of a line of the table [px]
_HEAD = 44  # height of the title [px]


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
) -> list[PanelRow]:
    """The pictures of a scene, a row for each state of its people.

    Args:
        image: (H, W, 3) uint8 RGB photograph.
        states: captions and the same P people; truth: where they really are, if known.
        intrinsics: (3, 3) [px].
        body: model of all bodies.
    """
    tensors = [_as_tensors(people) for _, people in states]
    vertices = torch.stack([body.vertices(pose, betas, transl) for pose, betas, transl, _ in tensors])
    present = torch.stack([shown for *_, shown in tensors])
    height, width = image.shape[:2]
    longest = round(max(height, width) * min(_PHOTO[0] / width, _PHOTO[1] / height))
    cameras = torch.from_numpy(np.asarray(intrinsics, dtype=np.float64)).expand(len(states), 3, 3)
    pictures = draw_overlays([image] * len(states), vertices, present, body.faces, cameras, longest)
    places = [ground_places(people, body) for _, people in states]
    true_places = None if truth is None else ground_places(truth, body)
    shown = np.concatenate([*places, *([] if true_places is None else [true_places])])
    size = (PLAN_WIDTH, pictures[0].height)
    note = "from above; hollow circles: the truth" if truth is not None else "from above"
    rows = []
    for (caption, people), place, picture in zip(states, places, pictures, strict=True):
        above = draw_birds_eye(place, intrinsics, width, size, shown, true_places, people.z_sigma)
        rows.append(PanelRow(picture, above, caption, note))
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


def _as_tensors(people: People) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pose, betas, transl and who can be drawn; others are replaced by zeros."""
    values = [np.asarray(value, dtype=np.float32) for value in (people.pose, people.betas, people.transl)]
    present = np.all([np.isfinite(value).all(axis=1) for value in values], axis=0) & (values[2][:, 2] > 0)
    pose, betas, transl = (np.where(present[:, None], value, 0).astype(np.float32) for value in values)
    betas = np.pad(betas, ((0, 0), (0, NUM_BETAS - betas.shape[1])))
    return torch.from_numpy(pose), torch.from_numpy(betas), torch.from_numpy(transl), torch.from_numpy(present)


def compose_page(rows: Sequence[PanelRow], title: str, table: Table) -> Image.Image:
    """Put rows of pictures and the table on one page; returns RGB."""
    left, right = rows[0].left, rows[0].right
    width = max(left.width + _EDGE + right.width, 900) + 2 * _EDGE
    page, draw = _start_page(width, len(rows) * (_CAPTION + left.height + 14), title, table)
    top = _HEAD
    for row in rows:
        draw.text((_EDGE, top + 8), row.caption, font=load_font(15), fill=INK)
        draw.text((width - _EDGE - 14, top + 9), row.note, font=load_font(13), fill=MUTED, anchor="ra")
        page.paste(row.left, (_EDGE, top + _CAPTION))
        page.paste(row.right, (width - _EDGE - row.right.width, top + _CAPTION))
        top += _CAPTION + row.left.height + 14
    return page


def compose_columns(rows: Sequence[PanelRow], title: str, table: Table) -> Image.Image:
    """The same with a column for each row: its left picture above its right one; returns RGB."""
    pictures = [
        [part.resize((_COLUMN, round(part.height * _COLUMN / part.width)), Image.Resampling.LANCZOS) for part in pair]
        for pair in ((row.left, row.right) for row in rows)
    ]
    upper, lower = (max(pair[place].height for pair in pictures) for place in (0, 1))
    width = len(rows) * (_COLUMN + _EDGE) + _EDGE
    page, draw = _start_page(width, 2 * _CAPTION + upper + lower + 14, title, table)
    for number, (row, (first, second)) in enumerate(zip(rows, pictures, strict=True)):
        left, top = _EDGE + number * (_COLUMN + _EDGE), _HEAD
        draw.text((left, top + 8), row.caption, font=load_font(15), fill=INK)
        page.paste(first, (left, top + _CAPTION))
        draw.text((left, top + _CAPTION + upper + 9), row.note, font=load_font(13), fill=MUTED)
        page.paste(second, (left, top + 2 * _CAPTION + upper))
    return page


def _start_page(width: int, pictures: int, title: str, table: Table) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A page with title, room for `pictures` [px] from `_HEAD` on, and below it a line per person with its colour."""
    page = Image.new("RGB", (width, _HEAD + pictures + (len(table.lines) + 1) * _LINE + 2 * _EDGE + 8), PAPER)
    draw, font, top = ImageDraw.Draw(page), load_font(14), _HEAD + pictures + 10
    draw.text((_EDGE, 14), title, font=load_font(20), fill=INK)
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
            u, colour = _EDGE + 16, tuple(colours[index - 1])
            draw.rounded_rectangle([u - 14, y - 9, u + 14, y + 9], radius=7, fill=colour)
            draw.text((u, y), str(index), font=load_font(12), fill=text_on(colour), anchor="mm")
    return page, draw
