"""Crowds of another body model, Anny, and labels fitted to their projected joints.

Anny (PyPI `anny`, code Apache-2.0, data CC0) is a body model of all ages, with another mesh, skeleton and proportions
than SMPL; its heights follow the WHO's growth charts. Labels are the stand-in body of an adult's height, fitted to
projected joints, because single-person networks err in this way. So shapes, heights and label errors do not come from
the program under test. Metres, camera frame unless said otherwise; Anny's own frame is z up, facing -y, left at +x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dto_pipeline.axes import KID_AXIS, NUM_BETAS
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.crowd import Crowd
from dto_pipeline.lab.own_bodies import (
    FEMALE,
    Bodies,
    Labels,
    estimate_attributes,
    rest_height,
    root_rotation,
    solve_height,
    stand_on_ground,
)
from dto_pipeline.lab.picture import Template
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel

LABEL_HEIGHT = 1.70  # of every fitted body [m] ...
_LABEL_SPREAD = 0.03  # ... and the standard deviation of its logarithm
_TO_OWN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # Anny's frame -> a person's own (y up, facing +z)
_BONES = {
    **{1: "upperleg01.L", 2: "upperleg01.R", 4: "lowerleg01.L", 5: "lowerleg01.R", 7: "foot.L", 8: "foot.R"},
    **{3: "spine05", 6: "spine03", 9: "spine01", 12: "neck01", 15: "head"},
    **{16: "upperarm01.L", 17: "upperarm01.R", 18: "lowerarm01.L", 19: "lowerarm01.R"},
}  # joint of SMPL's tree -> Anny's bone that bends there
_ENDS = {
    **{20: "wrist.L", 21: "wrist.R", 25: "eye.R", 26: "eye.L"},
    **{29: "toe1-2.L", 30: "toe5-2.L", 32: "toe1-2.R", 33: "toe5-2.R"},
}  # the same for those of smplx's 45 joints that do not bend
_NOSE, _NECK, _SHOULDER = 24, 12, 16  # of smplx's 45 joints
_SEEN = (1, 2, 4, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21)  # joints whose projections a label is fitted to
_TRAITS = ("height", "weight", "muscle", "proportions")
_KEYPOINT_NOISE = 0.004  # of a projected joint, relative to the person's height in the image
_POSE_GUESS = 0.15  # error of a network's first guess of every joint [rad]
_POSE_WEIGHT = 2e-3  # of squared changes of the guess against squared errors relative to the height in the image
_FIT_STEPS, _FIT_RATE = 120, 0.03


class AnnyMissing(DtoError, ImportError):
    """The optional package is not installed."""


@dataclass(frozen=True)
class AnnyModel:
    """The loaded model with its heights by age."""

    model: Any
    shapes: Any

    def bone(self, name: str) -> int:
        return int(self.model.bone_labels.index(name))


@lru_cache(maxsize=1)
def load_anny() -> AnnyModel:
    """Load Anny with its default shapes (about half a minute).

    Raises:
        AnnyMissing: it is not installed.
    """
    try:
        import anny
        from anny.shape_distribution import SimpleShapeDistribution
    except ImportError as error:
        raise AnnyMissing("bodies=anny needs the package anny: pip install 'dto-pipeline[anny]'") from error
    model = anny.Anny(local_changes="none", skinning_method="lbs").to(torch.float32)
    return AnnyModel(model, SimpleShapeDistribution(model))


@torch.no_grad()
def build_foreign(crowd: Crowd, body: BodyModel, rng: np.random.Generator, sex: np.ndarray) -> tuple[Bodies, Labels]:
    """True bodies of Anny in a planned crowd, and their labels.

    Heights follow age and `sex` ((P,), `own_bodies.MALE` or `FEMALE`) by the WHO's charts, not the plan. The true
    `transl` is what a label needs for its pelvis to stand where the true one does; true pose and betas are NaN.
    """
    anny = load_anny()
    shape = _sample_shapes(anny, crowd.age, sex, rng)
    rest = anny.model(phenotype_kwargs=shape)
    height = (rest["rest_vertices"][..., 2].amax(1) - rest["rest_vertices"][..., 2].amin(1)).double().numpy()
    posed = anny.model(pose_parameters=_pose(anny, crowd.pose, rest["rest_bone_heads"].numpy()), phenotype_kwargs=shape)
    vertices, joints = posed["vertices"].numpy(), _find_joints(anny, posed["bone_poses"][:, :, :3, 3].numpy())
    to_camera = root_rotation(crowd).as_matrix() @ _TO_OWN
    pelvis = joints[:, :1]
    vertices, joints = ((points - pelvis) @ to_camera.transpose(0, 2, 1) for points in (vertices, joints))
    level = crowd.view.level_to_camera
    known = joints[:, :24][:, np.isfinite(joints[0, :24, 0])]
    shift = (stand_on_ground(crowd, vertices @ level, known @ level) @ level.T)[:, None]
    vertices, joints = vertices + shift, joints + shift
    labels, pelvis_offset = _fit_labels(crowd, joints, height, body, rng)
    unknown = np.full((crowd.num_people, 72), np.nan, np.float32)
    truth = Bodies(
        pose=unknown,
        betas=unknown[:, :NUM_BETAS],
        transl=(joints[:, 0] - pelvis_offset).astype(np.float32),
        height=height,
        vertices=vertices.astype(np.float32),
        joints=joints.astype(np.float32),
    )
    return truth, labels


@lru_cache(maxsize=1)
@torch.no_grad()
def measure_anny() -> Template:
    """An adult of Anny, arms out, in the frame of SMPL's template; its nose is the foremost vertex of the head."""
    anny = load_anny()
    heads = anny.model()["rest_bone_heads"].numpy()
    posed = anny.model(pose_parameters=_pose(anny, np.zeros((1, 24, 3)), heads))
    joints = _find_joints(anny, posed["bone_poses"][:, :, :3, 3].numpy())[0] @ _TO_OWN.T
    vertices = posed["vertices"][0].numpy() @ _TO_OWN.T
    head = (vertices[:, 1] > joints[_NECK, 1]) & (np.abs(vertices[:, 0]) < 0.5 * joints[_SHOULDER, 0])
    origin = np.array([0.0, joints[0, 1], vertices[head, 2].mean()])
    joints[_NOSE] = vertices[head][vertices[head, 2].argmax()]
    vertices, joints = ((points - origin).astype(np.float32) for points in (vertices, joints))
    return Template(vertices, torch.as_tensor(anny.model.faces, dtype=torch.int64), joints)


def _sample_shapes(
    anny: AnnyModel, age: np.ndarray, sex: np.ndarray, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Anny's shape parameters, (P,) float32 each, drawn from its calibration for people of these ages [years]."""
    shapes = anny.shapes
    grown = shapes.morphological_age_mapping.morphological_to_anny_age(torch.as_tensor(age, dtype=torch.float32))
    found = {"age": grown, "gender": torch.as_tensor(sex == FEMALE, dtype=torch.float32)}
    for trait in _TRAITS:
        drawn = []
        for name in ("boys", "girls"):
            law = getattr(shapes, f"{name}_conditional_{trait}_distribution")
            alpha, beta = (value.numpy() for value in law.get_distribution_params(grown))
            drawn.append(rng.beta(alpha, beta))
        found[trait] = torch.as_tensor(np.where(sex == FEMALE, drawn[1], drawn[0]), dtype=torch.float32)
    return found


def _pose(anny: AnnyModel, pose: np.ndarray, heads: np.ndarray) -> torch.Tensor:
    """(P, bones, 4, 4) rotations of Anny's bones for SMPL poses (P, 24, 3); its arms rest in an A-pose.

    heads: (P, bones, 3) of the bones at rest.
    """
    people = len(pose)
    turns = np.tile(np.eye(4), (people, anny.model.bone_count, 1, 1))
    own = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(people, 24, 3, 3)
    own = _TO_OWN.T @ own @ _TO_OWN
    for joint, bone in _BONES.items():
        turns[:, anny.bone(bone), :3, :3] = own[:, joint]
    for side, along, (shoulder, elbow) in (("L", 1.0, (16, 18)), ("R", -1.0, (17, 19))):
        upper, lower, wrist = (heads[:, anny.bone(f"{name}.{side}")] for name in ("upperarm01", "lowerarm01", "wrist"))
        straight = np.array([along, 0.0, 0.0])
        lift, stretch = (_turn_onto(arm, straight) for arm in (lower - upper, wrist - lower))
        turns[:, anny.bone(f"upperarm01.{side}"), :3, :3] = own[:, shoulder] @ lift
        turns[:, anny.bone(f"lowerarm01.{side}"), :3, :3] = lift.transpose(0, 2, 1) @ own[:, elbow] @ stretch
    return torch.as_tensor(turns, dtype=torch.float32)


def _turn_onto(directions: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(P, 3, 3) smallest rotations that turn directions (P, 3) to a unit vector (3,); not from its opposite."""
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    axis = np.cross(unit, target)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.arctan2(sine, unit @ target[:, None])
    return Rotation.from_rotvec(axis / sine.clip(1e-9) * angle).as_matrix()


def _find_joints(anny: AnnyModel, heads: np.ndarray) -> np.ndarray:
    """(P, 45, 3) joints in smplx's order where Anny has them; the pelvis between the hips, others NaN."""
    joints = np.full((len(heads), 45, 3), np.nan)
    for joint, bone in {**_BONES, **_ENDS}.items():
        joints[:, joint] = heads[:, anny.bone(bone)]
    joints[:, 0] = joints[:, [1, 2]].mean(1)
    return joints


def _fit_labels(
    crowd: Crowd, joints: np.ndarray, height: np.ndarray, body: BodyModel, rng: np.random.Generator
) -> tuple[Labels, np.ndarray]:
    """Fit the stand-in body to projections of joints (P, 45, 3). Returns labels, and (P, 3) pelves at true size [m]."""
    people, focal = crowd.num_people, crowd.view.focal
    wanted = LABEL_HEIGHT * np.exp(rng.normal(0.0, _LABEL_SPREAD, people))
    betas = solve_height(body, np.zeros((people, NUM_BETAS)), np.zeros(people, np.int64), wanted)
    guess = crowd.pose + rng.normal(0.0, _POSE_GUESS, crowd.pose.shape)
    guess[:, 0] = (root_rotation(crowd) * Rotation.from_rotvec(rng.normal(0.0, _POSE_GUESS, (people, 3)))).as_rotvec()
    target = joints[:, _SEEN, :2] / joints[:, _SEEN, 2:] * focal
    size = np.ptp(target[..., 1], axis=1)[:, None, None]
    target = target + rng.normal(0.0, _KEYPOINT_NOISE, target.shape) * size
    factor = rest_height(body, betas) / height
    shape, first, seen, scale = (torch.as_tensor(value, dtype=torch.float32) for value in (betas, guess, target, size))
    pelvis = body.joints(torch.zeros(people, 72), shape, torch.zeros(people, 3))[:, 0].numpy()
    place = torch.as_tensor(joints[:, 0] * factor[:, None] - pelvis, dtype=torch.float32)
    pose, ray, far = first.clone(), place[:, :2] / place[:, 2:], place[:, 2:].log()
    optimizer = torch.optim.Adam([one.requires_grad_() for one in (pose, ray, far)], lr=_FIT_RATE)

    def error() -> torch.Tensor:
        """Squared distances of projected joints from the target, and of poses from the first guess."""
        z = far.exp()
        found = body.posed_joints(axis_angle_to_matrix(pose), shape) + torch.cat([ray * z, z], -1)[:, None]
        found = found[:, list(_SEEN)]
        gap = (found[..., :2] / found[..., 2:] * focal - seen) / scale
        return (gap.square().sum((1, 2)) + _POSE_WEIGHT * (pose - first).square().sum((1, 2))).sum()

    with torch.enable_grad():
        for step in range(_FIT_STEPS):
            optimizer.param_groups[0]["lr"] = _FIT_RATE * (1 - step / _FIT_STEPS)
            optimizer.zero_grad()
            error().backward()
            optimizer.step()
    z = far.exp()
    transl = torch.cat([ray * z, z], -1).detach().numpy()
    age, male_prob = estimate_attributes(crowd, rng)
    fitted = pose.detach().reshape(people, 72).numpy()
    labels = Labels(fitted, betas[:, :KID_AXIS].astype(np.float32), transl, factor, age, male_prob)
    return labels, pelvis / factor[:, None]
