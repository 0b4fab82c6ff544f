"""Pages of scenes: placed ones before and after, or by solver beside the truth, and people of any file.

From what is known to the arrays and words of `panel`; a photograph that is not there is a grey sheet that says why.
Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import People as FilePeople
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PLACED, UnusableImage
from dto_pipeline.view.drawing import draw_depth_map, grey_sheet, missing_photo
from dto_pipeline.view.panel import PLAN_WIDTH, PanelRow, People, Table, compose_columns, compose_page, draw_rows
from dto_pipeline.view.plots import draw_fit, fitted_people

_COLUMNS = ("class", "age", "height before", "after", "prior", "z before", "after", "status")


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
    after = "After: placed together" if any(s in PLACED for s in placed.person_status) else "After: labels kept"
    states = [("Before: labels as given", _before(placed)), (after, _after(placed))]
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
    states = [("labels as given", _before(first))]
    for name, item in placed.items():
        states.append((f"{name}, {'accepted' if item.is_accepted else 'not accepted'}", _after(item)))
    rows = draw_rows(_photograph(first), states, first.scene.intrinsics, body, truth)
    rows += [replace(row, note=f"{row.note}, by {solver}") for row in _evidence_row(first, rows[0].left.size)]
    return compose_columns(rows, first.scene.image_path or first.scene.image_id, solver_table(placed, body, truth))


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


def _before(placed: PlacedScene) -> People:
    return People(placed.scene.pose, placed.scene.betas, placed.scene.transl)


def _after(placed: PlacedScene) -> People:
    return People(placed.scene.pose, placed.betas, placed.transl, placed.z_sigma_m)


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
    plot = draw_fit(placed, (PLAN_WIDTH, size[1]))
    return [PanelRow(depth, plot, "No depth map" if disparity is None else "Depth map", note)]


@dataclass(frozen=True)
class PeopleScene:
    """One image of files without a run, and its P people in one or two states; NaN where a state lacks a person."""

    title: str
    states: Sequence[tuple[str, People]]  # caption and bodies; one or two
    intrinsics: np.ndarray  # (3, 3) [px]; a principal point that is NaN is the picture's centre
    size: np.ndarray  # (2,) H, W [px], NaN = unknown
    image_names: Sequence[str] = ()  # tried in this order


def file_scene(people: FilePeople, image: int) -> PeopleScene:
    """One image of a file, as it stands there."""
    own = np.flatnonzero(people.owner == image)
    bodies = People(*(np.asarray(getattr(people, name)[own]) for name in ("pose", "betas", "transl")))
    camera = people.intrinsics[own[0]] if own.size else np.full((3, 3), np.nan)
    name = str(people.images[image])
    return PeopleScene(name, [(f"{own.size} people of the file", bodies)], camera, people.size[image], [name])


def draw_people(scene: PeopleScene, body: BodyModel, images: ImageStore | None) -> Image.Image:
    """The page of a scene: photograph with meshes, the view from above, one line per person.

    Raises:
        LabelsError: the camera is not known, so nothing can be drawn.
    """
    photo, reason = None, "no photograph: name their folder with --images"
    for name in scene.image_names if images is not None else ():
        assert images is not None
        try:
            photo = images.read(name).rgb
            break
        except UnusableImage as error:
            reason = f"no photograph: {error}"
    camera = np.array(scene.intrinsics, np.float64)
    photo = missing_photo(scene.size[::-1], camera, reason) if photo is None else photo
    centre = np.array([photo.shape[1] / 2, photo.shape[0] / 2])
    camera[:2, 2] = np.where(np.isfinite(camera[:2, 2]), camera[:2, 2], centre)
    if not np.isfinite(camera).all():
        raise LabelsError(f"{scene.title}: the camera is not known, so its people cannot be drawn")
    columns = []
    for _, people in scene.states:
        betas = torch.from_numpy(np.asarray(people.betas, np.float64))
        columns += [people.transl[:, 2], body.rest_height(betas).numpy()]
    head = [f"{what}{side}" for side in ("", " after")[: len(scene.states)] for what in ("z", "height")]
    table = Table(head, [[_metres(value) for value in line] for line in zip(*columns, strict=True)])
    return compose_page(draw_rows(photo, scene.states, camera, body), scene.title, table)
