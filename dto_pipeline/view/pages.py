"""Compose the page of a scene: photographs with meshes, the scene from above, the fit, one line per person.

There is a column for each state of the people (as labelled, as placed; in the demo by each solver, with the truth) and
one for the depth map. A grey picture with the reason replaces a missing photograph. Only `save_png` writes files.
Metres.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dto_pipeline.axes import HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.data.files import replaced
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import People
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PLACED, ImageStatus, UnusableImage
from dto_pipeline.terminal import align
from dto_pipeline.view.drawing import (
    INK,
    MUTED,
    RULE,
    draw_birds_eye,
    draw_depth_map,
    draw_fit,
    draw_meshes,
    fitted_people,
    missing_photo,
    person_colours,
    show_picture,
)

_DPI = 100
_COLUMN, _TALLEST = 580, 700  # width of a column, greatest height of a photograph [px]
_PLAN = 500  # height of the view from above [px]
_EDGE, _HEAD, _CAPTION, _LINE = 44, 76, 60, 24  # margin, heights of title, caption and line of the table [px]
_MOST_LINES = 1000  # of the table: a figure may be 65,535 px high
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(/[A-Za-z0-9_][A-Za-z0-9_.]*)*\.jpg")  # "-" stands for "/" only
_LONGEST = 150  # letters: file systems take 255 bytes, endings included
_DIGITS = 12  # of a sha256: among a million keys two are equal with a chance of 1 in 500


@dataclass(frozen=True)
class DrawnPeople:
    """P bodies to draw; arrays share the first axis. A person that is not finite or has z <= 0 is left out."""

    pose: np.ndarray  # (P, 72) axis-angle [rad]
    betas: np.ndarray  # (P, 10) or (P, 11)
    transl: np.ndarray  # (P, 3) [m]
    z_sigma: np.ndarray | None = None  # (P,) standard deviation of z [m]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pose, betas (P, 11), transl, and who can be drawn (P,) bool; numbers of the others are zeros."""
        values = [np.asarray(value, dtype=np.float32) for value in (self.pose, self.betas, self.transl)]
        present = np.all([np.isfinite(value).all(axis=1) for value in values], axis=0) & (values[2][:, 2] > 0)
        pose, betas, transl = (np.where(present[:, None], value, 0).astype(np.float32) for value in values)
        betas = np.pad(betas, ((0, 0), (0, NUM_BETAS - betas.shape[1])))
        return torch.from_numpy(pose), torch.from_numpy(betas), torch.from_numpy(transl), torch.from_numpy(present)


Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # column names, one line of cells per person


def draw_scene(placed: Mapping[str, PlacedScene], body: BodyModel, truth: DrawnPeople | None = None) -> Image.Image:
    """Draw a scene as labelled and as placed.

    Args:
        placed: name of the column ("after", or a solver) -> scene; photograph, depth map and fitted lines come from the
            first one.
        body: model of all bodies.
        truth: the same people where they really are; None = unknown.

    Returns:
        RGB page.
    """
    first = next(iter(placed.values()))
    photo, reason = first.scene.image, ""
    if photo is None:
        photo = missing_photo((first.scene.width, first.scene.height), first.scene.intrinsics)
        why = first.message or (first.status.advice if first.status.is_failure else "it was not read")
        reason = f"no photograph: {why}"
    table, camera = person_table(placed, body, truth), first.scene.intrinsics
    fit = first if first.scene.disparity is not None or fitted_people(first).size else None
    title = first.scene.image_path or first.scene.image_id
    if len(placed) == 1:
        title = f"{title}: {_plain(first.status)}" + (
            f", deviation {first.deviation:.2f} sigma" if first.is_optimized else ""
        )
    return compose_page(title, photo, reason, scene_states(placed), camera, body, table, truth, fit)


def scene_states(placed: Mapping[str, PlacedScene]) -> list[tuple[str, DrawnPeople]]:
    """Captions and people of the columns; only one column if nobody was placed."""
    first = next(iter(placed.values()))
    states = [("labels as given", DrawnPeople(first.scene.pose, first.scene.betas, first.scene.transl))]
    for name, item in placed.items():
        after = DrawnPeople(item.scene.pose, item.betas, item.transl, item.z_sigma_m)
        if any(status in PLACED for status in item.person_status):
            states.append((f"{name}, {'accepted' if item.is_accepted else 'not accepted'}", after))
        elif item.status is ImageStatus.PREDICTED:
            states = [("as predicted", after)]
    return states


def draw_file_image(people: People, image: int, body: BodyModel, images: ImageStore | None) -> Image.Image:
    """Draw one image of a file of people; without `images` the photograph is grey.

    Raises:
        LabelsError: the camera is not known, so nothing can be drawn.
    """
    name, some = str(people.images[image]), people.take(people.owner == image)
    photo, reason = None, "no photograph: name their folder with --images"
    if images is not None:
        try:
            photo, reason = images.read(name).rgb, ""
        except UnusableImage as error:
            reason = f"no photograph: {error}"
    camera = np.array(some.intrinsics[0] if some.num_people else np.full((3, 3), np.nan), np.float64)
    photo = missing_photo(people.size[image][::-1], camera) if photo is None else photo
    centre = np.array([photo.shape[1] / 2, photo.shape[0] / 2])
    camera[:2, 2] = np.where(np.isfinite(camera[:2, 2]), camera[:2, 2], centre)
    if not np.isfinite(camera).all():
        raise LabelsError(f"{name}: the camera is not known, so its people cannot be drawn")
    heights = body.rest_height(torch.from_numpy(some.betas.astype(np.float64))).tolist()
    table = ("z", "height"), [list(map(_metres, pair)) for pair in zip(some.transl[:, 2], heights, strict=True)]
    states = [(f"{some.num_people} people of the file", DrawnPeople(some.pose, some.betas, some.transl))]
    return compose_page(name, photo, reason, states, camera, body, table)


def person_table(placed: Mapping[str, PlacedScene], body: BodyModel, truth: DrawnPeople | None = None) -> Table:
    """A line per person: class, age, prior [m]; heights and z [m] as given, of each column and true; statuses."""
    first = next(iter(placed.values()))
    true = [] if truth is None else ["true"]
    columns = ["class", "age", "prior", "height given", *placed, *true, "z given", *placed, *true]
    columns += [f"status {name}" if len(placed) > 1 else "status" for name in placed]
    true_heights = None if truth is None else body.rest_height(torch.from_numpy(np.asarray(truth.betas, np.float64)))
    lines = []
    for person in range(first.scene.num_people):
        code, age = int(first.height_class[person]), float(first.scene.age_years[person])
        mean, sigma = float(first.prior_mean_m[person]), float(first.prior_sigma_m[person])
        heights, zs = [_metres(first.height_init_m[person])], [_metres(first.scene.transl[person, 2])]
        for item in placed.values():
            apart = (item.transl[person] != item.scene.transl[person]).any()  # a duplicate goes with whom it repeats
            moved = item.person_status[person] in PLACED or (apart and np.isfinite(item.transl[person]).all())
            heights.append(_metres(item.height_m[person]) if moved else "kept")
            zs.append(_metres(item.transl[person, 2], float(item.z_sigma_m[person])) if moved else "kept")
        if truth is not None and true_heights is not None:
            heights.append(_metres(float(true_heights[person])))
            zs.append(_metres(truth.transl[person, 2]))
        who = [
            _plain(HEIGHT_CLASSES[code]) if code >= 0 else "-",
            f"{age:.0f}" if np.isfinite(age) else "unknown",
            f"{mean:.2f} \u00b1 {sigma:.2f}" if np.isfinite(mean) else "-",
        ]
        lines.append([*who, *heights, *zs, *(_plain(item.person_status[person]) for item in placed.values())])
    return columns, lines


def _metres(value: float, sigma: float = float("nan")) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f} \u00b1 {sigma:.2f} m" if np.isfinite(sigma) else f"{value:.2f} m"


def _plain(word: str) -> str:
    return str(word).replace("_", " ")


def compose_page(
    title: str,
    photo: np.ndarray,
    reason: str,
    states: Sequence[tuple[str, DrawnPeople]],
    intrinsics: np.ndarray,
    body: BodyModel,
    table: Table,
    truth: DrawnPeople | None = None,
    fit: PlacedScene | None = None,
) -> Image.Image:
    """Draw a column for each state and one for the fit, and the table below them.

    Args:
        photo: (H, W, 3) uint8 RGB; reason: why it is only a grey picture, "" = it is a photograph.
        states: captions and the same P people.
        intrinsics: (3, 3) [px]; body: model of all bodies.
        truth: where the people really are; fit: the scene whose depth map and fit are shown; None = neither.

    Returns:
        RGB page.
    """
    if (more := len(table[1]) - _MOST_LINES) > 0:
        title, table = f"{title} (table without the last {more} people)", (table[0], table[1][:_MOST_LINES])
    height, width = photo.shape[:2]
    tall = min(round(_COLUMN * height / width), _TALLEST)
    below = _HEAD + tall + _CAPTION
    columns = max(len(states) + (fit is not None), 2)  # the table needs the width of two
    table_top = below + _PLAN + _CAPTION
    size = np.array([columns * (_COLUMN + _EDGE) + _EDGE, table_top + _LINE * (len(table[1]) + 1) + _EDGE])
    figure = Figure(figsize=tuple(size / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.text(_EDGE / size[0], 1 - 30 / size[1], title, fontsize=14, color=INK, parse_math=False)

    def panel(column: int, top: int, high: int, caption: str) -> Axes:
        place = (_EDGE + column * (_COLUMN + _EDGE), size[1] - top - high, _COLUMN, high) / np.tile(size, 2)
        axes = figure.add_axes(tuple(place))
        axes.set_title(caption, loc="left", fontsize=11, color=INK)
        axes.grid(visible=True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
        return axes

    tensors = [people.tensors() for _, people in states]
    vertices = torch.stack([body.vertices(pose, betas, transl) for pose, betas, transl, _ in tensors])
    cameras = torch.from_numpy(np.asarray(intrinsics, dtype=np.float64)).expand(len(states), 3, 3)
    longest = max(tall, round(tall * width / height))
    pictures = draw_meshes(photo, vertices, torch.stack([t[3] for t in tensors]), body.faces, cameras, longest)
    places = [ground_places(people, body) for _, people in states]
    true_places = None if truth is None else ground_places(truth, body)
    shown = np.concatenate([*places, *([] if true_places is None else [true_places])])
    note = "from above" if truth is None else "from above; hollow circles: the truth"
    for column, ((caption, people), (picture, tops)) in enumerate(zip(states, pictures, strict=True)):
        show_picture(panel(column, _HEAD, tall, caption), picture, tops, reason)
        above = panel(column, below, _PLAN, note)
        draw_birds_eye(above, places[column], intrinsics, width, shown, true_places, people.z_sigma)
    if fit is not None:
        draw_depth_map(panel(len(states), _HEAD, tall, "depth map, bright is near"), fit)
        note = "z against depth; filled: after" + "; near line: feet" * bool(fit.used_ground)
        draw_fit(panel(len(states), below, _PLAN, note), fit)
    _draw_table(figure, size, table_top, table)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in letters that the font lacks
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def ground_places(people: DrawnPeople, body: BodyModel) -> np.ndarray:
    """(P, 2) x, z of the middle of each body's joints [m], NaN where a person cannot be drawn."""
    *values, present = people.tensors()
    middle = body.joints(*values)[:, :24].mean(dim=1).numpy()
    return np.where(present.numpy()[:, None], middle[:, [0, 2]], np.nan)


def _draw_table(figure: Figure, size: np.ndarray, top: int, table: Table) -> None:
    """Draw a line per person below `top` [px], with a patch of the person's colour before it."""
    columns, lines = table
    colours = person_colours(len(lines))
    rows = align([["", *columns], *([f"{i}", *line] for i, line in enumerate(lines, start=1))])
    for index, row in enumerate(rows):
        y = 1 - (top + index * _LINE) / size[1]
        colour = MUTED if index == 0 else INK
        figure.text((_EDGE + 20) / size[0], y, row, family="monospace", fontsize=9, color=colour, parse_math=False)
        if index:
            box = {"boxstyle": "square,pad=0.2", "facecolor": colours[index - 1], "edgecolor": "none"}
            figure.text(_EDGE / size[0], y, "  ", fontsize=9, bbox=box)


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, replacing an older one; its folder is made if missing."""
    path = Path(path)
    with replaced(path) as temporary:
        picture.save(temporary, format="PNG")


def file_name(image_id: str) -> str:
    """The file name of an image key, different for every key: ``coco/a/b.jpg`` -> ``coco-a-b``.

    Where characters are lost, or another key could get the same name, the first digits of the key's sha256 follow.
    """
    if _PLAIN_KEY.fullmatch(image_id) and len(image_id) <= _LONGEST:
        return image_id.removesuffix(".jpg").replace("/", "-")
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", re.sub(r"\.[A-Za-z0-9]{1,5}$", "", image_id)).strip(".-")
    digits = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{stem[:_LONGEST] or 'scene'}~{digits}"
