"""True bodies of a planned crowd, and the labels that a single-person network would give them.

Mesh recovery from one person's picture cannot distinguish a small child nearby from an adult farther away, so label
heights are close to an adult's (1.69 m), and distances are stretched by the same factor. Metres, camera frame.

True heights of the benchmark come from `CHART`, the CDC growth charts of 2000, and not from the priors of the method:
a prior must not seem better than it is. Medians and coefficients of variation, read at its ages from the data files
`lenageinf` (recumbent length, to two years) and `statage` (stature, from two years) of Kuczmarski et al., "2000 CDC
Growth Charts for the United States", Vital Health Stat 11(246), 2002; below two years the variation is that between the
5th and 95th percentiles. Between these ages both are interpolated; adults keep the stature of 20 years. The charts
describe children of the United States of 1963-1994: one population, not all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dto_pipeline.axes import ADULT_MALE, KID_AXIS, NUM_BETAS, TEEN
from dto_pipeline.lab.crowd import Crowd
from dto_pipeline.models.body import BodyModel

LABEL_HEIGHT = 1.69  # what a network trained on adults believes [m]
_LABEL_SPREAD = 0.045  # standard deviation of the logarithm of the label height
_FACTOR_RANGE = (0.78, 1.6)  # bounds of label height / true height
_BETA_SPREAD = 0.6  # of shape coefficients that are not used to set the height
_BETA_NOISE = 0.3  # error of these coefficients in the labels
_POSE_NOISE = 0.03  # error of every joint of a label [rad]
_ROOT_NOISE = 0.015  # error of the root of a label [rad]: an image shows well how a body leans
_SIDE_NOISE = 0.0025  # error of tx and ty of a label, relative to z
_HEIGHT_TOLERANCE = 1e-5  # of the shapes solved below [m]
_AGE_NOISE = 0.15  # of the logarithm of the estimated age
_UNKNOWN = 0.04  # share of people of unknown age and gender
MALE, FEMALE = 0, 1
CHART = np.array(
    (
        # age [years], boys: median [m], standard deviation / median; girls: the same
        (0.708, 0.7095, 0.0388, 0.6919, 0.0393),
        (1.042, 0.7612, 0.0388, 0.7440, 0.0394),
        (1.542, 0.8241, 0.0395, 0.8080, 0.0401),
        (2.000, 0.8645, 0.0403, 0.8498, 0.0408),
        (3.042, 0.9527, 0.0405, 0.9421, 0.0420),
        (4.042, 1.0251, 0.0413, 1.0103, 0.0433),
        (5.042, 1.0918, 0.0426, 1.0796, 0.0443),
        (6.042, 1.1566, 0.0437, 1.1501, 0.0450),
        (7.042, 1.2203, 0.0444, 1.2176, 0.0455),
        (8.042, 1.2812, 0.0451, 1.2783, 0.0460),
        (9.042, 1.3373, 0.0462, 1.3313, 0.0469),
        (10.042, 1.3882, 0.0476, 1.3821, 0.0487),
        (11.042, 1.4373, 0.0489, 1.4426, 0.0505),
        (12.042, 1.4931, 0.0499, 1.5149, 0.0486),
        (13.042, 1.5641, 0.0503, 1.5734, 0.0439),
        (14.042, 1.6414, 0.0489, 1.6048, 0.0410),
        (15.042, 1.7014, 0.0459, 1.6190, 0.0401),
        (20.000, 1.7685, 0.0404, 1.6334, 0.0396),
    )
)
_TALLEST = 2.5  # draws of heights are kept within this many standard deviations
_UPRIGHT = Rotation.from_rotvec([np.pi, 0.0, 0.0])  # half a turn about x: from y up to y down, facing the camera


@dataclass(frozen=True)
class Bodies:
    """P bodies in the camera frame; arrays share the first axis."""

    pose: np.ndarray  # (P, 72) float32 axis-angle, root first [rad]
    betas: np.ndarray  # (P, 11) float32
    transl: np.ndarray  # (P, 3) float32, added after skinning [m]
    height: np.ndarray  # (P,) float64, rest pose [m]
    vertices: np.ndarray  # (P, V, 3) float32 [m]
    joints: np.ndarray  # (P, 45, 3) float32, smplx's joints [m]


@dataclass(frozen=True)
class Labels:
    """Label file and sidecar of the same P people."""

    pose: np.ndarray  # (P, 72) float32
    betas: np.ndarray  # (P, 10) float32: the public files have no kid axis
    transl: np.ndarray  # (P, 3) float32 [m]
    factor: np.ndarray  # (P,) float64: label height / true height
    age: np.ndarray  # (P,) float32, estimated [years], NaN = unknown
    male_prob: np.ndarray  # (P,) float32, estimated, NaN = unknown


def build_bodies(crowd: Crowd, body: BodyModel, rng: np.random.Generator) -> Bodies:
    """True bodies with the planned heights, whose lowest points touch the ground.

    Children are shaped along the model's kid axis where it has one.
    """
    count = crowd.num_people
    betas = np.zeros((count, NUM_BETAS))
    betas[:, 1:KID_AXIS] = rng.normal(0.0, _BETA_SPREAD, (count, KID_AXIS - 1))
    along_kid = (crowd.height_class <= TEEN) & body.has_kid_axis
    betas = solve_height(body, betas, np.where(along_kid, KID_AXIS, 0), crowd.height)
    pose = crowd.pose.copy()
    pose[:, 0] = root_rotation(crowd).as_rotvec()
    pose = pose.reshape(count, 72)
    vertices, joints = _evaluate(body, pose, betas)
    rotation = crowd.view.level_to_camera
    transl = stand_on_ground(crowd, vertices @ rotation, joints @ rotation) @ rotation.T
    shift = transl[:, None].astype(np.float32)
    return Bodies(
        pose.astype(np.float32),
        betas.astype(np.float32),
        transl.astype(np.float32),
        rest_height(body, betas),
        vertices + shift,
        joints + shift,
    )


def falsify_labels(crowd: Crowd, truth: Bodies, body: BodyModel, rng: np.random.Generator) -> Labels:
    """Labels as single-person mesh recovery gives them: adult-like heights, distances stretched by the same factor."""
    count = crowd.num_people
    believed = LABEL_HEIGHT * np.exp(rng.normal(0.0, _LABEL_SPREAD, count))
    wanted = truth.height * np.clip(believed / truth.height, *_FACTOR_RANGE)
    betas = truth.betas.astype(np.float64) + rng.normal(0.0, _BETA_NOISE, (count, NUM_BETAS))
    betas[:, KID_AXIS] = 0.0
    betas = solve_height(body, betas, np.zeros(count, dtype=np.int64), wanted)
    spread = np.tile([_ROOT_NOISE] + [_POSE_NOISE] * 23, count)[:, None]
    noise = Rotation.from_rotvec(spread * rng.normal(size=(count * 24, 3)))
    pose = (Rotation.from_rotvec(truth.pose.reshape(-1, 3)) * noise).as_rotvec()
    pose = pose.reshape(count, 72).astype(np.float32)
    factor = rest_height(body, betas) / truth.height
    _, joints = _evaluate(body, pose, betas)
    # the middle of the tree's joints keeps its place in the image and goes `factor` times as far
    middle = truth.joints[:, :24].mean(axis=1)
    transl = factor[:, None] * middle - joints[:, :24].mean(axis=1)
    transl[:, :2] += rng.normal(0.0, _SIDE_NOISE, (count, 2)) * middle[:, 2:]
    age, male_prob = estimate_attributes(crowd, rng)
    return Labels(pose, betas[:, :KID_AXIS].astype(np.float32), transl.astype(np.float32), factor, age, male_prob)


def solve_height(body: BodyModel, betas: np.ndarray, index: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Shapes (P, 11) with one coefficient each, `index` (P,), changed so that heights are `height` (P,) within 1e-5 m.

    Raises:
        ValueError: a height the coefficient cannot reach.
    """
    rows = np.arange(len(betas))
    solved = betas.copy()
    for _ in range(12):
        missing = height - rest_height(body, solved)
        if np.abs(missing).max() < _HEIGHT_TOLERANCE:
            return solved
        nudged = solved.copy()
        nudged[rows, index] += 0.01
        gain = (rest_height(body, nudged) - (height - missing)) / 0.01
        solved[rows, index] += missing / gain
    worst = int(np.abs(missing).argmax())
    raise ValueError(
        f"body {worst}: no value of shape coefficient {index[worst]} gives a height of {height[worst]:.3f} m "
        f"({missing[worst]:+.3f} m short); choose a height nearer to the model's own"
    )


def rest_height(body: BodyModel, betas: np.ndarray) -> np.ndarray:
    """Heights (P,) [m] of shapes (P, 11) in the rest pose, in float64."""
    return body.rest_height(torch.from_numpy(np.asarray(betas, dtype=np.float64))).numpy()


def _evaluate(body: BodyModel, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (P, V, 3) and joints (P, 45, 3), float32, before any translation."""
    values = (pose, betas, np.zeros((len(pose), 3)))
    inputs = [torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in values]
    return body.vertices(*inputs).numpy(), body.joints(*inputs).numpy()


def root_rotation(crowd: Crowd) -> Rotation:
    """P rotations: first the person's lean, then half a turn to stand upright, where it faces, the camera's pitch."""
    turn = Rotation.from_euler("Y", crowd.facing[:, None])
    to_camera = Rotation.from_matrix(crowd.view.level_to_camera)
    return to_camera * turn * _UPRIGHT * Rotation.from_rotvec(crowd.pose[:, 0])


def stand_on_ground(crowd: Crowd, vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(P, 3) shift in the level frame that puts the lowest vertex on the ground and the joints above `place`."""
    middle = joints[:, :24].mean(axis=1)
    lowest = vertices[:, :, 1].max(axis=1)
    x, z = (crowd.place - middle[:, [0, 2]]).T
    return np.stack([x, crowd.view.eye_height - lowest, z], axis=-1)


def estimate_attributes(crowd: Crowd, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy ages [years] and male probabilities, a few unknown (NaN); children's gender is hard to tell."""
    age = crowd.age * np.exp(rng.normal(0.0, _AGE_NOISE, crowd.num_people))
    child = crowd.height_class <= TEEN
    male = np.where(crowd.height_class == ADULT_MALE, 0.86, 0.14)
    male_prob = np.where(child, 0.5, male) + rng.normal(0.0, np.where(child, 0.2, 0.13))
    unknown = rng.random(crowd.num_people) < _UNKNOWN
    return (
        np.where(unknown, np.nan, age).astype(np.float32),
        np.where(unknown, np.nan, male_prob.clip(0.01, 0.99)).astype(np.float32),
    )


def sample_heights(age: np.ndarray, sex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) float64 heights [m] of people of these ages (n,) [years] and sexes (n,), `MALE` or `FEMALE`, by `CHART`."""
    deviation = np.clip(rng.standard_normal(len(age)), -_TALLEST, _TALLEST)
    median, variation = height_law(age, sex)
    return median * (1 + variation * deviation)


def height_law(age: np.ndarray, sex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians (...) [m], and standard deviations divided by them; from eight months on."""
    male = np.asarray(sex) == MALE
    median, variation = (
        np.where(male, *(np.interp(age, CHART[:, 0], CHART[:, column]) for column in columns))
        for columns in ((1, 3), (2, 4))
    )
    return median, variation
