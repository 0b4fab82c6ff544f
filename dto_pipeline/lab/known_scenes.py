"""Synthetic images with known truth.

Their depth maps, masks and keypoints are the truth with errors of the kinds that networks make. Metres, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, maximum_filter

from dto_pipeline.axes import ADULT_FEMALE, ADULT_MALE, KID_AXIS, NUM_BETAS
from dto_pipeline.config import PriorConfig
from dto_pipeline.lab.crowd import LAYOUTS, Crowd, View, plan_crowd
from dto_pipeline.lab.difficulty import Difficulty
from dto_pipeline.lab.foreign_bodies import build_foreign, measure_anny
from dto_pipeline.lab.own_bodies import (
    FEMALE,
    MALE,
    Bodies,
    Labels,
    build_bodies,
    falsify_labels,
    rest_height,
    sample_heights,
    solve_height,
)
from dto_pipeline.lab.picture import Picture, Template, draw_meshes, measure_template, render_picture
from dto_pipeline.lab.scenery import noise_tile, sample_noise
from dto_pipeline.maths.camera import map_size
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth import METRES_PER_DEPTH, METRIC_DEPTH
from dto_pipeline.scene import Scene

DISPARITY_SCALE = (380.0, 620.0)  # a of disparity = a / z + b; with b = 0 it is the alpha a fit should find [m]
_MASK_WOBBLE = 0.9  # how far mask borders stray [px]
_OPENPOSE_JOINTS = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35))  # of smplx's 45, BODY_25 order
NUM_KEYPOINTS = 44  # the 25 of BODY_25 and the 19 of `SMPL_to_J19`
_J19_IN_TREE = (8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20, 12)  # smplx's joints for the first of `SMPL_to_J19`
_J19_PELVIS = 14
_HIDDEN_BEHIND = 0.12  # a joint this far behind what the picture shows is hidden [m]
_KEYPOINT_NOISE = 0.004  # of a keypoint, relative to the person's height in the image
DEMO_DEPTH = Difficulty("demo", "depth maps of the demo", blur=1.2)
_DEMO_OFFSET, _DEMO_LARGEST_ERROR = (-1.0, 1.0), 0.15  # range of b of disparity = a / z + b; of one person's disparity
IMAGE_SCALE = 0.75  # of the demo's image sizes: 480 x 360 instead of 640 x 480
_FARTHEST = 40.0  # distance of the backdrop [m]
_OFFSET_AT = 6.0  # an offset is given as a share of the disparity at this distance [m]
_GROWN = 1.7  # height of people whose depth has no error of size [m]
_SMOOTH_PARTS = 10  # a smooth error extends over the shorter side of the map divided by this
_WRONG_SIZE = (0.75, 1.35)  # range of the factor on size and distance of a label that is grossly wrong
_WRONG_POSE = 0.25  # error of every joint of such a label [rad]


@dataclass(frozen=True)
class KnownScene:
    """The input of a solver, and the truth of the same P people."""

    scene: Scene
    z: np.ndarray  # (P,) float64 true z of the translation [m]
    height: np.ndarray  # (P,) float64 true height in the rest pose [m]
    line: tuple[float, float]  # a, b of the disparity a / z + b that the depth map was made from
    body: BodyModel  # of the labels


@dataclass(frozen=True, eq=False)
class CrowdScene:
    """An image of the demo with P people and its truth. Its depth map shows the painted scenery; masks are disjoint.

    Every part is made at its first use, from a random stream of its own. So equal arguments give equal parts, whatever
    the order in which they are used.
    """

    seed: int
    number: int  # of the image in its data set
    body: BodyModel  # of the labels
    scale: float = field(default=1.0, kw_only=True)  # of the picture; smaller ones are drawn faster

    # part -> number of its random stream; `plan_crowd` has 1
    steps: ClassVar = {"bodies": 2, "labels": 3, "picture": 4, "depth": 5, "masks": 6, "keypoints": 7}

    def stream(self, part: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, self.steps[part]])

    @cached_property
    def crowd(self) -> Crowd:
        crowd = plan_crowd(self.seed, self.number)
        return replace(crowd, view=crowd.view.scaled(self.scale))

    @cached_property
    def truth(self) -> Bodies:
        return build_bodies(self.crowd, self.body, self.stream("bodies"))

    @cached_property
    def labels(self) -> Labels:
        return falsify_labels(self.crowd, self.truth, self.body, self.stream("labels"))

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) K of the labels [px]."""
        return self.crowd.view.intrinsics

    @cached_property
    def template(self) -> Template:
        """The unposed body of the truth."""
        return measure_template(self.body)

    @cached_property
    def picture(self) -> Picture:
        return render_picture(self.crowd, self.truth.vertices, self.template, self.stream("picture"))

    @cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """True z (H, W) [m], and the index of the person at each pixel (H, W), -1 = no person."""
        return self.picture.z, self.picture.person

    @cached_property
    def masks(self) -> np.ndarray:
        """(P, H, W) bool, the people's instance masks."""
        return observe_masks(self.seen[1], self.crowd.num_people, self.stream("masks"))

    @cached_property
    def depth(self) -> tuple[np.ndarray, tuple[float, float]]:
        """(H, W) disparity, and a, b of the line a / z + b that it was made from."""
        of_map = self.stream("depth")
        line = float(of_map.uniform(*DISPARITY_SCALE)), float(of_map.uniform(*_DEMO_OFFSET))
        disparity = observe_disparity(DEMO_DEPTH, *self.seen, self.truth.height, line, of_map, _DEMO_LARGEST_ERROR)
        return disparity.astype(np.float16), line

    @cached_property
    def keypoints(self) -> np.ndarray:
        """(P, 44, 3) float32 u, v [px], confidence."""
        return observe_keypoints(self.crowd.view, self.truth, self.seen[0], self.stream("keypoints"))


@dataclass(frozen=True, eq=False)
class SynthScene(CrowdScene):
    """An image of a difficulty of `dto synth`; all difficulties use the same crowds."""

    kind: Difficulty

    steps: ClassVar = {
        **{"bodies": 21, "labels": 22, "depth": 23, "masks": 24, "spoil": 25, "shared": 26, "heights": 27},
        **{"wrong": 28, "picture": 28, "keypoints": 29, "metres": 30},
    }

    @cached_property
    def crowd(self) -> Crowd:
        """The demo's crowd of the next allowed layout, in a smaller picture and with other heights."""
        kind, allowed = self.kind, [place for place, layout in enumerate(LAYOUTS) if layout.name in self.kind.layouts]
        layout = allowed[self.number % len(allowed)]
        crowd = plan_crowd(self.seed, self.number // len(allowed) * len(LAYOUTS) + layout)
        names = ("place", "facing", "pose", "height", "height_class", "age")
        crowd = replace(crowd, **{name: getattr(crowd, name)[: kind.most_people] for name in names})
        if kind.heights == "priors":
            mean, sigma = (np.array(values)[crowd.height_class] for values in (PriorConfig.mean, PriorConfig.sigma))
            height = mean + sigma * np.clip(self.stream("heights").standard_normal(crowd.num_people), -2.0, 2.0)
        else:
            rng = self.stream("heights")
            height = sample_heights(crowd.age, _sexes(crowd, rng), rng)
        place = crowd.place * [kind.squeeze, 1.0]
        height = height * self._shared_factor(kind.taller)
        return replace(crowd, view=crowd.view.scaled(IMAGE_SCALE), place=place, height=height)

    def _shared_factor(self, sigma: float) -> float:
        """A factor that all people of the image share, log-normal."""
        return float(np.exp(sigma * float(self.stream("shared").standard_normal())))

    @cached_property
    def _people(self) -> tuple[Bodies, Labels]:
        if self.kind.bodies == "anny":
            sex = _sexes(self.crowd, self.stream("heights"))
            return build_foreign(self.crowd, self.body, self.stream("bodies"), sex)
        truth = super().truth
        return truth, falsify_labels(self.crowd, truth, self.body, self.stream("labels"))

    @cached_property
    def truth(self) -> Bodies:
        return self._people[0]

    @cached_property
    def labels(self) -> Labels:
        kind, labels = self.kind, self._people[1]
        if kind.wrong_labels:
            labels = _spoil_labels(labels, kind.wrong_labels, self.body, self.stream("wrong"))
        transl, age = labels.transl.copy(), np.full_like(labels.age, np.nan)
        transl[:, 2] *= self._shared_factor(kind.focal_error)  # the picture stays the same, distances are stretched
        if not kind.unknown_ages:
            rng = self.stream("spoil")
            drawn = np.exp(rng.uniform(0.0, np.log(70.0), len(age)))  # any age, uniform in its logarithm
            age[:] = np.where(rng.random(len(age)) < kind.wrong_ages, drawn, labels.age)
        return replace(labels, transl=transl, age=age)

    @cached_property
    def template(self) -> Template:
        return measure_anny() if self.kind.bodies == "anny" else super().template

    @property
    def intrinsics(self) -> np.ndarray:
        intrinsics = self.crowd.view.intrinsics
        intrinsics[:2, :2] *= self._shared_factor(self.kind.focal_error)
        return intrinsics

    @cached_property
    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        return _true_depth(self.crowd.view, self.truth, self.template.faces)

    @cached_property
    def masks(self) -> np.ndarray:
        """Those of the demo, each grown by 0 to `leak` pixels: they overlap, and cover what is not the person."""
        masks = super().masks
        reach = self.stream("spoil").integers(0, self.kind.leak + 1, len(masks)).tolist()
        return np.stack([maximum_filter(mask, 2 * far + 1) for mask, far in zip(masks, reach, strict=True)])

    @cached_property
    def depth(self) -> tuple[np.ndarray, tuple[float, float]]:
        kind, of_map = self.kind, self.stream("depth")
        scale = float(of_map.uniform(*DISPARITY_SCALE))
        line = (scale, kind.offset * float(of_map.uniform(-1, 1)) * scale / _OFFSET_AT)
        values = observe_disparity(kind, *self.seen, self.truth.height, line, of_map)
        if kind.upside_down:
            values = scale / values.clip(1e-6)
        else:
            line = (scale * kind.unit, line[1] * kind.unit)
        disparity, factor = (values * kind.unit).astype(np.float32), 1.0
        if kind.metric_error:
            factor = METRES_PER_DEPTH / line[0] * np.exp(kind.metric_error * self.stream("metres").standard_normal())
        return disparity * np.float32(factor), (line[0] * factor, line[1] * factor)

    @cached_property
    def known(self) -> KnownScene:
        """The scene as a solver gets it."""
        (disparity, line), labels, name = self.depth, self.labels, f"{self.kind.name}/{self.number:05d}"
        people = {"pose": labels.pose, "transl": labels.transl, "age_years": labels.age, "male_prob": labels.male_prob}
        scene = plain_scene(name, self.intrinsics, labels.betas, self.masks, disparity, **people)
        if self.kind.metric_error:
            scene.origin["depth"] = METRIC_DEPTH
        z = self.truth.transl[:, 2].astype(np.float64)
        return KnownScene(scene, z, self.truth.height, line, self.body)


def _sexes(crowd: Crowd, rng: np.random.Generator) -> np.ndarray:
    """(P,) `MALE` or `FEMALE`, as planned for adults, drawn for children."""
    sex = rng.integers(MALE, FEMALE + 1, crowd.num_people)
    sex = np.where(crowd.height_class == ADULT_FEMALE, FEMALE, sex)
    return np.where(crowd.height_class == ADULT_MALE, MALE, sex)


def _spoil_labels(labels: Labels, share: float, body: BodyModel, rng: np.random.Generator) -> Labels:
    """Make the labels of a share of people grossly wrong: another size and distance, all joints turned."""
    people = len(labels.factor)
    chosen = rng.random(people) < share
    factor = np.where(chosen, np.exp(rng.uniform(np.log(_WRONG_SIZE[0]), np.log(_WRONG_SIZE[1]), people)), 1.0)
    pose = labels.pose.reshape(people, -1, 3)
    pose = pose + chosen[:, None, None] * rng.normal(0.0, _WRONG_POSE, pose.shape) * (np.arange(24) > 0)[:, None]
    betas = np.pad(labels.betas.astype(np.float64), ((0, 0), (0, NUM_BETAS - KID_AXIS)))
    betas = solve_height(body, betas, np.zeros(people, np.int64), rest_height(body, betas) * factor)
    return replace(
        labels,
        pose=pose.reshape(people, 72).astype(np.float32),
        betas=betas[:, :KID_AXIS].astype(np.float32),
        transl=(labels.transl * factor[:, None]).astype(np.float32),
        factor=labels.factor * factor,
    )


def _true_depth(view: View, truth: Bodies, faces: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """True z (H, W) [m] of people, ground and backdrop, and the person seen (H, W), -1 = no person."""
    raster = draw_meshes(torch.from_numpy(truth.vertices), faces, view)
    person = raster.person[0].numpy()
    row, column = np.mgrid[: view.height, : view.width] + 0.5
    rays = np.stack([(column - view.width / 2) / view.focal, (row - view.height / 2) / view.focal], -1)
    down = np.concatenate([rays, np.ones_like(rays[..., :1])], -1) @ view.level_to_camera[:, 1]
    ground = np.where(down > view.eye_height / _FARTHEST, view.eye_height / down.clip(1e-6), _FARTHEST)
    return np.where(person >= 0, raster.z[0].numpy(), ground), person


def plain_scene(
    name: str, intrinsics: np.ndarray, betas: np.ndarray, masks: np.ndarray, disparity: np.ndarray, **people: Any
) -> Scene:
    """A scene of P people, as if read from files.

    Args:
        name: subset/image; betas: (P, 10 or 11); masks: (P, H, W) bool; disparity: (H, W).
        people: the labels' fields of a `Scene`; boxes are unknown unless given.
    """
    (height, width), count = disparity.shape, len(betas)
    h, w = map_size(height, width, 512)
    padded = np.zeros((count, NUM_BETAS), np.float32)
    padded[:, : betas.shape[1]] = betas
    unknown = {"bbox_xyxy": np.full((count, 4), np.nan, np.float32), "det_score": np.full(count, np.nan, np.float32)}
    return Scene(
        image_id=name,
        subset=name.partition("/")[0],
        image_path=f"{name}.jpg",
        width=width,
        height=height,
        intrinsics=intrinsics,
        betas=padded,
        source_row=np.arange(count),
        person_problem=[None] * count,
        masks=masks[:, np.arange(h) * height // h][:, :, np.arange(w) * width // w],  # at the size of person maps
        disparity=disparity,
        **{**unknown, **people},
    )


def observe_disparity(
    kind: Difficulty,
    z: np.ndarray,
    person: np.ndarray,
    height: np.ndarray,
    line: tuple[float, float],
    rng: np.random.Generator,
    largest_error: float = 0.3,
) -> np.ndarray:
    """A depth map as a monocular network gives it.

    Args:
        kind: sizes of its errors, in the network's published unit.
        z: (H, W) true distance along the camera axis [m]; person: (H, W) index of the person seen, -1 = no person.
        height: (P,) true heights [m]; line: a and b of disparity = a / z + b.
        largest_error: bound of the relative error of one person's disparity.

    Returns:
        (H, W) float64 disparity, larger is nearer, >= 0.
    """
    error = np.clip(kind.person_error * rng.standard_t(3, int(person.max()) + 2), -largest_error, largest_error)
    error[-1] = 0.0  # index -1 is the background
    tilt = rng.normal(0.0, kind.row_tilt) * (np.arange(len(z)) / len(z) - 0.5)
    noise = rng.normal(0.0, kind.pixel_noise, z.shape)
    # errors that real networks make, but that are not in the solver's noise model
    factor: np.ndarray | float = 1.0
    if kind.power != 1:
        factor = factor * (_OFFSET_AT / z) ** (kind.power - 1)
    if kind.size_error:
        size = np.append((height / _GROWN) ** kind.size_error, 1.0)
        factor = factor * size[person]
    if kind.smooth_error:
        field = gaussian_filter(rng.standard_normal(z.shape), min(z.shape) / _SMOOTH_PARTS, mode="wrap")
        factor = factor * np.exp(kind.smooth_error * field / field.std())
    values = (line[0] / z + line[1]) * (1 + error[person]) * factor
    return (gaussian_filter(values, kind.blur) * (1 + tilt[:, None] + noise)).clip(0)


def observe_masks(person: np.ndarray, people: int, rng: np.random.Generator) -> np.ndarray:
    """(P, H, W) bool, disjoint masks of the visible parts, with borders that are a little wrong.

    Args:
        person: (H, W) index of the person seen, -1 = nobody; people: P.
    """
    height, width = person.shape
    row, column = np.mgrid[:height, :width].astype(np.float32)
    shift_row, shift_column = (
        1.6 * _MASK_WOBBLE * sample_noise(noise_tile(rng), column / 7.3, row / 7.3) for _ in range(2)
    )
    row = np.clip(np.rint(row + shift_row), 0, height - 1).astype(np.int64)
    column = np.clip(np.rint(column + shift_column), 0, width - 1).astype(np.int64)
    return person[row, column] == np.arange(people)[:, None, None]


def observe_keypoints(view: View, truth: Bodies, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2D keypoints of the P true bodies, where the picture shows `z` (H, W) [m].

    Returns:
        (P, 44, 3) float32 u, v [px] and confidence: low where hidden, 0 outside the picture and (at 0, 0) for joints
        that the bodies' model does not have.
    """
    points = keypoints_3d(truth)
    uv = points[..., :2] / points[..., 2:] * view.focal + (view.width / 2, view.height / 2)
    size = (np.nanmax(uv[..., 1], axis=1) - np.nanmin(uv[..., 1], axis=1))[:, None, None]
    uv = uv + rng.normal(0.0, _KEYPOINT_NOISE, uv.shape) * size
    inside = ((uv >= 0) & (uv < (view.width, view.height))).all(-1)
    column, row = np.moveaxis(np.where(inside[..., None], uv, 0).astype(np.int64), -1, 0)
    hidden = points[..., 2] > z[row, column] + _HIDDEN_BEHIND
    confidence = np.where(hidden, rng.uniform(0.15, 0.45, hidden.shape), rng.uniform(0.7, 1.0, hidden.shape))
    return np.concatenate([np.nan_to_num(uv), np.where(inside, confidence, 0.0)[..., None]], axis=-1).astype(np.float32)


def keypoints_3d(truth: Bodies) -> np.ndarray:
    """(P, 44, 3) [m]: BODY_25's joints, then the 19 regressed ones (see `assets/names.json`).

    Bodies without SMPL's mesh have joints of their own in place of regressed ones, NaN where they lack the joint.
    """
    with (files("dto_pipeline.assets") / "extra.npz").open("rb") as stream:
        regressor = np.load(stream, allow_pickle=False)["SMPL_to_J19"]
    if truth.vertices.shape[1] == regressor.shape[1]:
        regressed = regressor @ truth.vertices
    else:
        regressed = np.full((len(truth.joints), len(regressor), 3), np.nan, np.float32)
        regressed[:, : len(_J19_IN_TREE)] = truth.joints[:, _J19_IN_TREE]
        regressed[:, _J19_PELVIS] = truth.joints[:, 0]
    return np.concatenate([truth.joints[:, _OPENPOSE_JOINTS], regressed], axis=1)
