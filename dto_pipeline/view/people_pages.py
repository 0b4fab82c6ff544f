"""Pages of people of any file, without a run: photograph with their meshes, the view from above, one line per person.

For `dto view FILE` and the worst scenes of `dto diff`; a photograph that cannot be read is a grey sheet that says so.
Metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import People as FilePeople
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import UnusableImage
from dto_pipeline.view.depth_map import grey_sheet
from dto_pipeline.view.panel import People, Table, compose_page, draw_rows

_SHEET = (640, 480)  # of a photograph whose size nobody knows [px]
_LARGEST = 8192  # side of a grey sheet [px]


@dataclass(frozen=True)
class PeopleScene:
    """One image and its P people in one or two states; NaN where a state lacks a person."""

    title: str
    states: Sequence[tuple[str, People]]  # caption and bodies; one or two
    intrinsics: np.ndarray  # (3, 3) [px]; a principal point that is NaN is the picture's centre
    size: np.ndarray  # (2,) H, W [px], NaN = unknown
    image_names: Sequence[str] = ()  # tried in this order


def draw_people(scene: PeopleScene, body: BodyModel, images: ImageStore | None) -> Image.Image:
    """The page of a scene.

    Raises:
        LabelsError: the camera is not known, so nothing can be drawn.
    """
    photo = _photograph(scene, images)
    camera = np.array(scene.intrinsics, np.float64)
    centre = np.array([photo.shape[1] / 2, photo.shape[0] / 2])
    camera[:2, 2] = np.where(np.isfinite(camera[:2, 2]), camera[:2, 2], centre)
    if not np.isfinite(camera).all():
        raise LabelsError(f"{scene.title}: the camera is not known, so its people cannot be drawn")
    return compose_page(draw_rows(photo, scene.states, camera, body), scene.title, _table(scene, body))


def file_scene(people: FilePeople, image: int) -> PeopleScene:
    """One image of a file, as it stands there."""
    own = np.flatnonzero(people.owner == image)
    bodies = People(*(np.asarray(getattr(people, name)[own]) for name in ("pose", "betas", "transl")))
    camera = people.intrinsics[own[0]] if own.size else np.full((3, 3), np.nan)
    name = str(people.images[image])
    return PeopleScene(name, [(f"{own.size} people of the file", bodies)], camera, people.size[image], [name])


def choose_images(people: FilePeople, keys: Sequence[str], random: int, seed: int) -> list[int]:
    """Images by key (or its end), and some by lot among those with people.

    Raises:
        LabelsError: a key that no image has, or that several end with.
    """
    chosen = [_find(people, key) for key in keys]
    crowded = np.flatnonzero(np.bincount(people.owner, minlength=people.num_images))
    draw = np.random.default_rng(seed).permutation(np.setdiff1d(crowded, chosen))[:random]
    return list(dict.fromkeys([*chosen, *draw.tolist()]))


def _find(people: FilePeople, key: str) -> int:
    names = people.images.tolist()
    found = [i for i, name in enumerate(names) if name == key]
    found = found or [i for i, name in enumerate(names) if str(name).endswith("/" + key)]
    if len(found) != 1:
        what = "no image" if not found else f"{len(found)} images"
        raise LabelsError(f"{people.source} holds {what} called {key!r}; keys look like {names[0]!r}")
    return found[0]


def _photograph(scene: PeopleScene, images: ImageStore | None) -> np.ndarray:
    """(H, W, 3) uint8; a grey sheet where there is none."""
    reason = "no photograph: name their folder with --images"
    for name in scene.image_names if images is not None else ():
        assert images is not None
        try:
            return images.read(name).rgb
        except UnusableImage as error:
            reason = f"no photograph: {error}"
    size = scene.size[::-1] if np.isfinite(scene.size).all() else 2 * np.asarray(scene.intrinsics)[:2, 2]
    known = bool(np.isfinite(size).all() and (size >= 32).all() and (size <= _LARGEST).all())
    width, height = (int(size[0]), int(size[1])) if known else _SHEET
    return grey_sheet((width, height), reason)


def _table(scene: PeopleScene, body: BodyModel) -> Table:
    heights = [_heights(people, body) for _, people in scene.states]
    head = [f"{what}{side}" for side in ("", " after")[: len(scene.states)] for what in ("z", "height")]
    lines = [
        [f"{value:.2f} m" if np.isfinite(value) else "-" for value in cells]
        for cells in zip(
            *[
                column
                for (_, people), height in zip(scene.states, heights, strict=True)
                for column in (people.transl[:, 2], height)
            ],
            strict=True,
        )
    ]
    return Table(head, lines)


def _heights(people: People, body: BodyModel) -> np.ndarray:
    return body.rest_height(torch.from_numpy(np.asarray(people.betas, np.float64))).numpy()
