"""The before/after page of a placed scene: from what the pipeline knows to the arrays and words of `panel`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PLACED
from dto_pipeline.view.depth_map import grey_sheet
from dto_pipeline.view.panel import Evidence, PanelRow, People, Table, compose_page, draw_rows
from dto_pipeline.view.plots import Fit

_COLUMNS = ("class", "age", "height before", "after", "prior", "z before", "after", "status")
_TRUE_COLUMNS = ("true height", "true z")


def scene_panel(placed: PlacedScene, body: BodyModel, truth: People | None = None) -> Image.Image:
    """Draw a placed scene before and after.

    Args:
        placed: with its scene; without a decoded image a grey one takes its place and says why; without
            `Scene.disparity` the depth map is left out.
        body: model of all bodies.
        truth: the same people as they really are, if known.

    Returns:
        RGB page.
    """
    table = person_table(placed, body, truth)
    return compose_page(scene_rows(placed, body, truth), scene_title(placed), table)


def scene_rows(placed: PlacedScene, body: BodyModel, truth: People | None = None) -> list[PanelRow]:
    """The pictures of `scene_panel`, row by row, for pages that lay them out themselves."""
    scene = placed.scene
    image = scene.image if scene.image is not None else grey_sheet(_sheet_size(scene), f"no photograph: {_why(placed)}")
    before = People(scene.pose, scene.betas, scene.transl)
    after = People(scene.pose, placed.betas, placed.transl, placed.z_sigma_m)
    fit = _fit(placed)
    evidence = None if scene.disparity is None and fit is None else Evidence(scene.disparity, fit, _why_no_map(scene))
    moved = any(status in PLACED for status in placed.person_status)
    return draw_rows(image, before, after, scene.intrinsics, body, truth, evidence, moved)


def person_table(placed: PlacedScene, body: BodyModel, truth: People | None = None) -> Table:
    """One line per person: class, age, heights [m], prior [m], z [m], status; true height and z where known."""
    lines = [_cells(placed, person) for person in range(placed.scene.num_people)]
    if truth is None:
        return Table(_COLUMNS, lines)
    height = _true_heights(truth, body)
    true_cells = [[_metres(h), _metres(z)] for h, z in zip(height, truth.transl[:, 2], strict=True)]
    lines = [[*line[:-1], *extra, line[-1]] for line, extra in zip(lines, true_cells, strict=True)]
    return Table((*_COLUMNS[:-1], *_TRUE_COLUMNS, _COLUMNS[-1]), lines)


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


def _fit(placed: PlacedScene) -> Fit | None:
    """What the fit was made of; None where nobody was measured."""
    z = placed.scene.transl[:, 2], placed.transl[:, 2]
    fit = Fit(
        placed.depth_mean, *z, placed.depth_group, placed.alpha, placed.beta, placed.used_ground, placed.disparity_line
    )
    return fit if fit.shown.any() else None


def _sheet_size(scene: Scene) -> tuple[int, int]:
    """Size of a photograph that is not there; one that was never read is taken to be centred on its camera."""
    if scene.width > 0 and scene.height > 0:
        return scene.width, scene.height
    centre = scene.intrinsics[:2, 2]
    usable = np.isfinite(centre).all() and (centre >= 16).all() and (centre <= 8192).all()
    return (round(2 * float(centre[0])), round(2 * float(centre[1]))) if usable else (640, 480)


def _why_no_map(scene: Scene) -> str:
    """A network's map is told by its network; what a file held cannot be read any more."""
    origin = scene.origin.get("depth", "file")
    return "no depth map" if origin.endswith("file") else f"depth came from a network ({origin}); its map is not kept"


def _why(placed: PlacedScene) -> str:
    return placed.message or (placed.status.advice if placed.status.is_failure else "it was not looked for")


def _true_heights(truth: People, body: BodyModel) -> np.ndarray:
    return body.rest_height(torch.from_numpy(np.asarray(truth.betas, dtype=np.float64))).numpy()


def _metres(value: float, sigma: float = float("nan")) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f} \u00b1 {sigma:.2f} m" if np.isfinite(sigma) else f"{value:.2f} m"


def scene_title(placed: PlacedScene) -> str:
    """Image, status and what came of it, in one line."""
    words = f"{placed.scene.image_path or placed.scene.image_id}: {str(placed.status).replace('_', ' ')}"
    if not placed.is_optimized:
        return words
    verdict = "accepted" if placed.is_accepted else "not accepted"
    return f"{words}, deviation {placed.deviation:.2f} sigma, {verdict}"
