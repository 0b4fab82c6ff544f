"""One synthetic scene, complete: planned, posed, photographed, observed and falsely labelled.

Joins the demo's rooms in memory; knows no files. Each step draws from its own random stream of (seed, image number,
step), so that changing one step leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dto_pipeline.lab.clothes import Template
from dto_pipeline.lab.crowd import Crowd, View, plan_crowd
from dto_pipeline.lab.observe import Disparity, observe_disparity, observe_keypoints, observe_masks
from dto_pipeline.lab.people import Bodies, Labels, build_bodies, falsify_labels
from dto_pipeline.lab.render import Picture, render_picture
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
    disparity: Disparity
    masks: np.ndarray  # (P, H, W) bool, visible parts, disjoint
    keypoints: np.ndarray  # (P, 44, 3) float32 u, v [px], confidence

    @property
    def boxes(self) -> np.ndarray:
        """(P, 4) float32 left, top, right, bottom of the whole true body inside the picture [px]."""
        return body_boxes(self.crowd.view, self.truth)


def body_boxes(view: View, truth: Bodies) -> np.ndarray:
    """(P, 4) float32 left, top, right, bottom of whole bodies, cut at the picture's borders [px]."""
    points = truth.vertices
    centre = np.array([view.width / 2, view.height / 2])
    uv = points[..., :2] / points[..., 2:].clip(0.05) * view.focal + centre
    uv = uv.clip(0, (view.width, view.height))
    return np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=-1).astype(np.float32)


def build_picture(seed: int, number: int, body: BodyModel, template: Template) -> Picture:
    """The picture of scene `number` alone, the same as `build_scene` gives."""
    crowd = plan_crowd(seed, number)
    truth = build_bodies(crowd, body, np.random.default_rng([seed, number, _BODIES]))
    return render_picture(crowd, truth.vertices, template, np.random.default_rng([seed, number, _PICTURE]))


def build_scene(seed: int, number: int, body: BodyModel, template: Template, scale: float = 1.0) -> DemoScene:
    """Make scene `number` of the data set `seed`; equal arguments give equal scenes.

    Args:
        seed: of the data set; number: of the image.
        body: model of all bodies; template: `clothes.measure_template` of the same.
        scale: of the picture; smaller ones are drawn faster.
    """
    crowd = plan_crowd(seed, number)
    crowd = replace(crowd, view=crowd.view.scaled(scale))

    def stream(step: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, step])

    truth = build_bodies(crowd, body, stream(_BODIES))
    labels = falsify_labels(crowd, truth, body, stream(_LABELS))
    picture = render_picture(crowd, truth.vertices, template, stream(_PICTURE))
    return DemoScene(
        number=number,
        crowd=crowd,
        truth=truth,
        labels=labels,
        picture=picture,
        disparity=observe_disparity(picture.z, picture.person, stream(_DISPARITY)),
        masks=observe_masks(picture.person, crowd.num_people, stream(_MASKS)),
        keypoints=observe_keypoints(crowd.view, truth, picture.z, stream(_KEYPOINTS)),
    )
