"""From a planned crowd to bodies: the true ones, and the labels a single-person network would give them.

Knows the body model and what monocular, one-person-at-a-time mesh recovery gets wrong: it cannot tell a small child
nearby from an adult farther away, so label heights cluster around an adult's (1.69 m) and everybody's distance is
stretched by the same factor as the height. Knows nothing of images or files. Metres, camera frame.
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
_FACTOR_RANGE = (0.78, 1.6)  # label height / true height never leaves this
_BETA_SPREAD = 0.6  # of shape coefficients that do not set the height
_BETA_NOISE = 0.3  # of the same in the labels
_POSE_NOISE = 0.03  # of every label joint [rad]
_ROOT_NOISE = 0.015  # of the label's root [rad]: the image shows well which way a body leans
_SIDE_NOISE = 0.0025  # of the label's tx and ty, relative to z
_HEIGHT_TOLERANCE = 1e-5  # of the shapes solved below [m]
_AGE_NOISE = 0.15  # of the logarithm of the estimated age
_UNKNOWN = 0.04  # share of people whose age and gender nobody could tell
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
    """What the label file says about the same P people."""

    pose: np.ndarray  # (P, 72) float32
    betas: np.ndarray  # (P, 10) float32: the public files know no kid axis
    transl: np.ndarray  # (P, 3) float32 [m]
    factor: np.ndarray  # (P,) float64: label height / true height
    age: np.ndarray  # (P,) float32, estimated [years], NaN = unknown
    male_prob: np.ndarray  # (P,) float32, estimated, NaN = unknown


def build_bodies(crowd: Crowd, body: BodyModel, rng: np.random.Generator) -> Bodies:
    """True bodies with the planned heights, feet (or whatever is lowest) on the ground.

    Args:
        crowd: P planned people.
        body: the model; children are shaped along its kid axis where it has one.
        rng: shape variety.
    """
    count = crowd.num_people
    betas = np.zeros((count, NUM_BETAS))
    betas[:, 1:KID_AXIS] = rng.normal(0.0, _BETA_SPREAD, (count, KID_AXIS - 1))
    along_kid = (crowd.height_class <= TEEN) & body.has_kid_axis
    betas = solve_height(body, betas, np.where(along_kid, KID_AXIS, 0), crowd.height)
    pose = crowd.pose.copy()
    pose[:, 0] = root_rotation(crowd).as_rotvec()
    pose = pose.reshape(count, 72)
    vertices, joints = _evaluate(body, pose, betas, np.zeros((count, 3)))
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
    """Labels as single-person mesh recovery gives them: adult-like heights, distances stretched by the same factor.

    Args:
        crowd: the plan `truth` was built from (ages and classes).
        truth: P true bodies.
        body: the same model.
        rng: all noise.
    """
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
    _, joints = _evaluate(body, pose, betas, np.zeros((count, 3)))
    # the middle of the tree's joints keeps its place in the image and goes `factor` times as far
    middle = truth.joints[:, :24].mean(axis=1)
    transl = factor[:, None] * middle - joints[:, :24].mean(axis=1)
    transl[:, :2] += rng.normal(0.0, _SIDE_NOISE, (count, 2)) * middle[:, 2:]
    age, male_prob = estimate_attributes(crowd, rng)
    return Labels(pose, betas[:, :KID_AXIS].astype(np.float32), transl.astype(np.float32), factor, age, male_prob)


def solve_height(body: BodyModel, betas: np.ndarray, index: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Change one shape coefficient per body so that its rest-pose height is as wanted (secant steps).

    Args:
        betas: (P, 11) shapes to start from.
        index: (P,) which coefficient to change.
        height: (P,) wanted [m].

    Returns:
        (P, 11) new shapes, heights within 1e-5 m.

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


def _evaluate(
    body: BodyModel, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (P, V, 3) and joints (P, 45, 3), float32."""
    inputs = [torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in (pose, betas, transl)]
    return body.vertices(*inputs).numpy(), body.joints(*inputs).numpy()


def root_rotation(crowd: Crowd) -> Rotation:
    """P rotations: the person's own lean, then half a turn upright, then where it faces, then the camera's pitch."""
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
