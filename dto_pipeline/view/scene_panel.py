"""The before/after page of a placed scene: from what the pipeline knows to the arrays and words of `panel`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus
from dto_pipeline.view.panel import People, Table, before_after_panel

_COLUMNS = ("class", "age", "height before", "after", "prior", "z before", "after", "status")
_TRUE_COLUMNS = ("true height", "true z")


def scene_panel(placed: PlacedScene, body: BodyModel, truth: People | None = None, title: str = "") -> Image.Image:
    """Draw a placed scene before and after.

    Args:
        placed: with its scene; without a decoded image a grey one takes its place.
        body: model of all bodies.
        truth: the same people as they really are, if known.
        title: "" = image, status and deviation.

    Returns:
        RGB page.
    """
    scene = placed.scene
    image = scene.image if scene.image is not None else np.full((scene.height, scene.width, 3), 200, dtype=np.uint8)
    before = People(scene.pose, scene.betas, scene.transl)
    after = People(scene.pose, placed.betas, placed.transl, placed.z_sigma_m)
    table = person_table(placed, body, truth)
    return before_after_panel(
        image, before, after, scene.intrinsics, body, truth=truth, title=title or _title(placed), table=table
    )


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
    moved = status is PersonStatus.MOVED
    return [
        HEIGHT_CLASSES[code].replace("_", " ") if code >= 0 else "-",
        f"{age:.0f}" if np.isfinite(age) else "unknown",
        _metres(placed.height_init_m[person]),
        _metres(placed.height_m[person]) if moved else "kept",
        f"{mean:.2f} \u00b1 {sigma:.2f}" if np.isfinite(mean) else "-",
        _metres(placed.scene.transl[person, 2]),
        _metres(placed.transl[person, 2]) if moved else "kept",
        str(status).replace("_", " "),
    ]


def _true_heights(truth: People, body: BodyModel) -> np.ndarray:
    return body.rest_height(torch.from_numpy(np.asarray(truth.betas, dtype=np.float64))).numpy()


def _metres(value: float) -> str:
    return f"{value:.2f} m" if np.isfinite(value) else "-"


def _title(placed: PlacedScene) -> str:
    words = f"{placed.scene.image_path or placed.scene.image_id}: {str(placed.status).replace('_', ' ')}"
    if not placed.is_optimized:
        return words
    verdict = "accepted" if placed.is_accepted else "not accepted"
    return f"{words}, deviation {placed.deviation:.2f} sigma, {verdict}"
