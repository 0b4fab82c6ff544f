"""The pages of a placed scene, before and after or by solver: from what is known to the arrays and words of `panel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PLACED
from dto_pipeline.view.depth_map import grey_sheet
from dto_pipeline.view.panel import Evidence, PanelRow, People, Table, compose_columns, compose_page, draw_rows
from dto_pipeline.view.plots import Fit

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
    return draw_rows(_photograph(placed), states, placed.scene.intrinsics, body, evidence=_evidence(placed))


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
    rows = draw_rows(_photograph(first), states, first.scene.intrinsics, body, truth, _evidence(first))
    if len(rows) > len(states):
        rows[-1] = replace(rows[-1], note=f"{rows[-1].note}, by {solver}")
    return compose_columns(rows, first.scene.image_path or first.scene.image_id, _solver_table(placed, body, truth))


def person_table(placed: PlacedScene) -> Table:
    """One line per person: class, age, heights [m], prior [m], z [m], status."""
    return Table(_COLUMNS, [_cells(placed, person) for person in range(placed.scene.num_people)])


def _solver_table(placed: Mapping[str, PlacedScene], body: BodyModel, truth: People) -> Table:
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


def _photograph(placed: PlacedScene) -> np.ndarray:
    """(H, W, 3) uint8; a grey sheet that says why there is none."""
    if placed.scene.image is not None:
        return placed.scene.image
    return grey_sheet(_sheet_size(placed.scene), f"no photograph: {_why(placed)}")


def _before(placed: PlacedScene) -> People:
    return People(placed.scene.pose, placed.scene.betas, placed.scene.transl)


def _after(placed: PlacedScene) -> People:
    return People(placed.scene.pose, placed.betas, placed.transl, placed.z_sigma_m)


def _evidence(placed: PlacedScene) -> Evidence | None:
    fit = _fit(placed)
    if placed.scene.disparity is None and fit is None:
        return None
    return Evidence(placed.scene.disparity, fit, _why_no_map(placed.scene))


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
