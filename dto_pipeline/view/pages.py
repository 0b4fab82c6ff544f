"""Pages of scenes: meshes over the photograph, the view from above, one line per person.

Placed scenes before and after, or by solver beside the truth, and people of any file. A photograph that is not there is
a grey sheet that says why. Only `save_png` touches disk. Metres, camera frame.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dto_pipeline.axes import HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.data.files import commit_over, staged
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import People as FilePeople
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PLACED, ImageStatus, UnusableImage
from dto_pipeline.view.drawing import (
    INK,
    MUTED,
    PAPER,
    RULE,
    draw_depth_map,
    draw_overlays,
    grey_sheet,
    load_font,
    missing_photo,
    person_colours,
    text_on,
)
from dto_pipeline.view.plots import draw_birds_eye, draw_fit, fitted_people

FROM_ABOVE = "from above"
_COLUMNS = ("class", "age", "height before", "after", "prior", "z before", "after", "status")
_PHOTO = (760, 570)  # the photograph fits into this [px]
_PLAN_WIDTH = 500  # of the view from above [px]
_EDGE = 24  # around everything [px]
_COLUMN = 470  # width of a column of a page with columns [px]
_CAPTION = 30  # height of a picture's words [px]
_LINE = 24  # height of a line of the table [px]
_HEAD = 44  # height of the title [px]
_NARROWEST = 900  # of a page [px]
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(/[A-Za-z0-9_][A-Za-z0-9_.]*)*\.jpg")  # "-" stands for "/" only
_LONGEST = 150  # letters: file systems take 255 bytes, endings included
_DIGITS = 12  # of a sha256: among a million keys two are equal with a chance of 1 in 500


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


def scene_panel(placed: PlacedScene, body: BodyModel) -> Image.Image:
    """Draw a placed scene before and after.

    Args:
        placed: with its scene; without a decoded image a grey one takes its place and says why; without
            `Scene.disparity` the depth map is left out.
        body: model of all bodies.

    Returns:
        RGB page.
    """
    return compose_page(scene_rows(placed, body), scene_title(placed), person_table(placed))


def scene_rows(placed: PlacedScene, body: BodyModel) -> list[PanelRow]:
    """The pictures of `scene_panel`, row by row, for pages that lay them out themselves."""
    before, after = _states(placed)
    states = [("Before: labels as given", before), ("After: placed together", after)]
    if not any(status in PLACED for status in placed.person_status):
        is_predicted = placed.status is ImageStatus.PREDICTED
        states = [("As predicted" if is_predicted else "Labels as given: nobody was moved", after)]
    rows = draw_rows(_photograph(placed), states, placed.scene.intrinsics, body)
    return rows + _evidence_row(placed, rows[0].left.size)


def scene_title(placed: PlacedScene) -> str:
    """Image, status and what came of it, in one line."""
    words = f"{placed.scene.image_path or placed.scene.image_id}: {str(placed.status).replace('_', ' ')}"
    if not placed.is_optimized:
        return words
    verdict = "accepted" if placed.is_accepted else "not accepted"
    return f"{words}, deviation {placed.deviation:.2f} sigma, {verdict}"


def solver_panel(placed: Mapping[str, PlacedScene], body: BodyModel, truth: People) -> Image.Image:
    """One scene as given and as several solvers place it, side by side, with the truth.

    Args:
        placed: by solver; photograph, depth map and fitted lines are the first one's.
        body: model of all bodies; truth: the same people as they really are.

    Returns:
        RGB page.
    """
    solver, first = next(iter(placed.items()))
    states = [("labels as given", _states(first)[0])]
    for name, item in placed.items():
        states.append((f"{name}, {'accepted' if item.is_accepted else 'not accepted'}", _states(item)[1]))
    rows = draw_rows(_photograph(first), states, first.scene.intrinsics, body, truth)
    rows += [replace(row, note=f"{row.note}, by {solver}") for row in _evidence_row(first, rows[0].left.size)]
    title = first.scene.image_path or first.scene.image_id
    return compose_page(rows, title, solver_table(placed, body, truth), in_columns=True)


def file_panel(people: FilePeople, image: int, body: BodyModel, images: ImageStore | None) -> Image.Image:
    """One image of a file of people, as it stands there; without `images` a grey sheet stands for the photograph.

    Raises:
        LabelsError: the camera is not known, so nothing can be drawn.
    """
    name, some = str(people.images[image]), people.take(people.owner == image)
    photo, reason = None, "name their folder with --images"
    if images is not None:
        try:
            photo = images.read(name).rgb
        except UnusableImage as error:
            reason = str(error)
    camera = np.array(some.intrinsics[0] if some.num_people else np.full((3, 3), np.nan), np.float64)
    photo = missing_photo(people.size[image][::-1], camera, f"no photograph: {reason}") if photo is None else photo
    centre = np.array([photo.shape[1] / 2, photo.shape[0] / 2])
    camera[:2, 2] = np.where(np.isfinite(camera[:2, 2]), camera[:2, 2], centre)
    if not np.isfinite(camera).all():
        raise LabelsError(f"{name}: the camera is not known, so its people cannot be drawn")
    heights = body.rest_height(torch.from_numpy(some.betas.astype(np.float64))).tolist()
    table = Table(("z", "height"), [list(map(_metres, pair)) for pair in zip(some.transl[:, 2], heights, strict=True)])
    state = f"{some.num_people} people of the file", People(some.pose, some.betas, some.transl)
    return compose_page(draw_rows(photo, [state], camera, body), name, table)


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
    pictures = draw_overlays(image, vertices, present, body.faces, cameras, longest)
    places = [ground_places(people, body) for _, people in states]
    true_places = None if truth is None else ground_places(truth, body)
    shown = np.concatenate([*places, *([] if true_places is None else [true_places])])
    size = (_PLAN_WIDTH, pictures[0].height)
    note = f"{FROM_ABOVE}; hollow circles: the truth" if truth is not None else FROM_ABOVE
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


def _as_tensors(people: People) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pose, betas, transl and who can be drawn; others are replaced by zeros."""
    values = [np.asarray(value, dtype=np.float32) for value in (people.pose, people.betas, people.transl)]
    present = np.all([np.isfinite(value).all(axis=1) for value in values], axis=0) & (values[2][:, 2] > 0)
    pose, betas, transl = (np.where(present[:, None], value, 0).astype(np.float32) for value in values)
    betas = np.pad(betas, ((0, 0), (0, NUM_BETAS - betas.shape[1])))
    return torch.from_numpy(pose), torch.from_numpy(betas), torch.from_numpy(transl), torch.from_numpy(present)


def person_table(placed: PlacedScene) -> Table:
    """One line per person: class, age, heights [m], prior [m], z [m], status."""
    return Table(_COLUMNS, [_cells(placed, person) for person in range(placed.scene.num_people)])


def solver_table(placed: Mapping[str, PlacedScene], body: BodyModel, truth: People) -> Table:
    """One line per person: class, age, prior [m]; heights and z [m] as given, by each solver and true; statuses."""
    true_height = body.rest_height(torch.from_numpy(np.asarray(truth.betas, dtype=np.float64))).numpy()
    head = ["class", "age", "prior"]
    for what in ("height", "z"):
        head += [f"{what} given", *placed, "true"]
    lines = []
    for person, (height, z) in enumerate(zip(true_height, truth.transl[:, 2], strict=True)):
        cells = [_cells(item, person) for item in placed.values()]
        who, age, height_before, _, prior, z_before, *_ = cells[0]
        heights, zs, statuses = ([line[place] for line in cells] for place in (3, 6, 7))
        lines.append([who, age, prior, height_before, *heights, _metres(height), z_before, *zs, _metres(z), *statuses])
    return Table([*head, *(f"status {name}" for name in placed)], lines)


def _cells(placed: PlacedScene, person: int) -> list[str]:
    """The line of a person under `_COLUMNS`."""
    code, age = int(placed.height_class[person]), float(placed.scene.age_years[person])
    mean, sigma = float(placed.prior_mean_m[person]), float(placed.prior_sigma_m[person])
    status = placed.person_status[person]
    moved = status in PLACED
    return [
        HEIGHT_CLASSES[code].replace("_", " ") if code >= 0 else "-",
        f"{age:.0f}" if np.isfinite(age) else "unknown",
        _metres(placed.height_init_m[person]),
        _metres(placed.height_m[person]) if moved else "kept",
        f"{mean:.2f} \u00b1 {sigma:.2f}" if np.isfinite(mean) else "-",
        _metres(placed.scene.transl[person, 2]),
        _metres(placed.transl[person, 2], float(placed.z_sigma_m[person])) if moved else "kept",
        str(status).replace("_", " "),
    ]


def _metres(value: float, sigma: float = float("nan")) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f} \u00b1 {sigma:.2f} m" if np.isfinite(sigma) else f"{value:.2f} m"


def _photograph(placed: PlacedScene) -> np.ndarray:
    """(H, W, 3) uint8; a grey sheet that says why there is none."""
    scene = placed.scene
    if scene.image is not None:
        return scene.image
    why = placed.message or (placed.status.advice if placed.status.is_failure else "it was not looked for")
    return missing_photo(np.array([scene.width, scene.height]), scene.intrinsics, f"no photograph: {why}")


def _states(placed: PlacedScene) -> tuple[People, People]:
    """The people before and after."""
    scene = placed.scene
    after = People(scene.pose, placed.betas, placed.transl, placed.z_sigma_m)
    return People(scene.pose, scene.betas, scene.transl), after


def _evidence_row(placed: PlacedScene, size: tuple[int, int]) -> list[PanelRow]:
    """The depth map and the lines fitted to it, at the size of the photographs; nothing where there is neither."""
    disparity, fitted = placed.scene.disparity, fitted_people(placed).size > 0
    if disparity is None and not fitted:
        return []
    if disparity is None:  # a network's map is told by its network; what a file held cannot be read any more
        origin = placed.scene.origin.get("depth", "file")
        from_file = origin.endswith("file")
        why = "no depth map" if from_file else f"depth came from a network ({origin}); its map is not kept"
        depth = Image.fromarray(grey_sheet(size, why))
    else:
        depth = draw_depth_map(disparity, size)
    note = ("z against depth; filled: after" + "; near line: feet" * placed.used_ground) if fitted else ""
    plot = draw_fit(placed, (_PLAN_WIDTH, size[1]))
    return [PanelRow(depth, plot, "No depth map" if disparity is None else "Depth map", note)]


def compose_page(rows: Sequence[PanelRow], title: str, table: Table, in_columns: bool = False) -> Image.Image:
    """Put rows of pictures and the table on one page; returns RGB.

    in_columns: a column for each row instead, all of one width, its left picture above its right one.
    """
    grid = [[(row.left, row.caption), (row.right, row.note)] for row in rows]
    if in_columns:
        small = [[(_scaled(picture), words) for picture, words in row] for row in grid]
        grid = [list(pair) for pair in zip(*small, strict=True)]
    widths = [max(picture.width for picture, _ in column) for column in zip(*grid, strict=True)]
    heights = [max(picture.height for picture, _ in row) + _CAPTION + 14 for row in grid]
    width = max(sum(widths) + (len(widths) - 1) * _EDGE, _NARROWEST) + 2 * _EDGE
    bottom = _HEAD + sum(heights)
    page = Image.new("RGB", (width, bottom + (len(table.lines) + 1) * _LINE + 2 * _EDGE + 8), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_EDGE, 14), title, font=load_font(20), fill=INK)
    top = _HEAD
    for row, height in zip(grid, heights, strict=True):
        left = _EDGE
        for (picture, words), wide in zip(row, widths, strict=True):
            draw.text((left, top + 8), words, font=load_font(15), fill=INK)
            page.paste(picture, (left, top + _CAPTION))
            left += wide + _EDGE
        top += height
    _draw_table(draw, width, bottom + 10, table)
    return page


def _scaled(picture: Image.Image) -> Image.Image:
    return picture.resize((_COLUMN, round(picture.height * _COLUMN / picture.width)), Image.Resampling.LANCZOS)


def _draw_table(draw: ImageDraw.ImageDraw, width: int, top: int, table: Table) -> None:
    """A line per person with its colour, over the width of the page [px]."""
    font = load_font(14)
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


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, replacing an older one; its folder is made if missing."""
    path = Path(path)
    with staged(path) as temporary:
        picture.save(temporary, format="PNG")
        commit_over(temporary, path)


def file_name(image_id: str) -> str:
    """An image key as a file name, another one for every key: ``coco/a/b.jpg`` -> ``coco-a-b``.

    Where letters are lost on the way, or might be another key's, the first digits of the key's sha256 follow.
    """
    if _PLAIN_KEY.fullmatch(image_id) and len(image_id) <= _LONGEST:
        return image_id.removesuffix(".jpg").replace("/", "-")
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"\.[A-Za-z0-9]{1,5}$", "", image_id)).strip(".-")
    digits = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{stem[:_LONGEST] or 'scene'}~{digits}"
