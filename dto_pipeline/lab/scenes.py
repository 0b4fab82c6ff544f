"""One scene of the demo, complete: planned, posed, photographed, observed and falsely labelled.

In memory; knows no files. Each step draws from its own random stream of (seed, image number, step), so that changing
one step leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dto_pipeline.lab.crowd import Crowd, plan_crowd
from dto_pipeline.lab.observe import (
    DISPARITY_OFFSET,
    DISPARITY_SCALE,
    observe_disparity,
    observe_keypoints,
    observe_masks,
)
from dto_pipeline.lab.people import Bodies, Labels, build_bodies, falsify_labels
from dto_pipeline.lab.picture import Picture, measure_template, render_picture
from dto_pipeline.models.body import BodyModel

_BODIES, _LABELS, _PICTURE, _DISPARITY, _MASKS, _KEYPOINTS = range(2, 8)  # random streams; 1 is `plan_crowd`'s


@dataclass(frozen=True)
class DemoScene:
    """One image with its P people, what is true of them and what the pipeline is told."""

    number: int
    crowd: Crowd
    truth: Bodies
    labels: Labels
    picture: Picture
    disparity: np.ndarray  # (H, W) float16, larger is nearer
    line: tuple[float, float]  # a, b of the disparity a / z + b before all errors
    masks: np.ndarray  # (P, H, W) bool, visible parts, disjoint
    keypoints: np.ndarray  # (P, 44, 3) float32 u, v [px], confidence


def _build_picture(seed: int, number: int, body: BodyModel, scale: float) -> tuple[Crowd, Bodies, Picture]:
    crowd = plan_crowd(seed, number)
    crowd = replace(crowd, view=crowd.view.scaled(scale))
    truth = build_bodies(crowd, body, np.random.default_rng([seed, number, _BODIES]))
    rng = np.random.default_rng([seed, number, _PICTURE])
    return crowd, truth, render_picture(crowd, truth.vertices, measure_template(body), rng)


def build_picture(seed: int, number: int, body: BodyModel) -> Picture:
    """The picture of scene `number` alone, the same as `build_scene` gives."""
    return _build_picture(seed, number, body, 1.0)[-1]


def build_scene(seed: int, number: int, body: BodyModel, scale: float = 1.0) -> DemoScene:
    """Make scene `number` of the data set `seed`, people of model `body`; equal arguments give equal scenes.

    Args:
        scale: of the picture; smaller ones are drawn faster.
    """

    def stream(step: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, step])

    crowd, truth, picture = _build_picture(seed, number, body, scale)
    of_map = stream(_DISPARITY)
    line = float(of_map.uniform(*DISPARITY_SCALE)), float(of_map.uniform(*DISPARITY_OFFSET))
    return DemoScene(
        number=number,
        crowd=crowd,
        truth=truth,
        labels=falsify_labels(crowd, truth, body, stream(_LABELS)),
        picture=picture,
        disparity=observe_disparity(picture.z, picture.person, line, of_map).astype(np.float16),
        line=line,
        masks=observe_masks(picture.person, crowd.num_people, stream(_MASKS)),
        keypoints=observe_keypoints(crowd.view, truth, picture.z, stream(_KEYPOINTS)),
    )
