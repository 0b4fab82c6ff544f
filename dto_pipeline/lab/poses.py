"""Poses of the demo's people: standing, walking, waving, sitting ... as SMPL axis-angle vectors with some variety.

Knows joint angles of people in their own frame (y up, facing +z, left at +x); knows nothing of cameras, shapes or
ground contact. Tables in degrees, results in radians.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

# joint numbers of SMPL's tree used below
LEFT = {"hip": 1, "knee": 4, "ankle": 7, "shoulder": 16, "elbow": 18}
RIGHT = {"hip": 2, "knee": 5, "ankle": 8, "shoulder": 17, "elbow": 19}
CENTRE = {"root": 0, "spine1": 3, "spine2": 6, "spine3": 9, "neck": 12, "head": 15}

Angles = dict[str, tuple[float, float, float]]  # joint -> rotations about x, y, z [deg], applied z first

_HANGING: Angles = {"shoulder": (0, 0, -74), "elbow": (0, -14, 0)}
_ON_HIP: Angles = {"shoulder": (14, 0, -42), "elbow": (0, -25, -82)}
_WAVING: Angles = {"shoulder": (0, -10, 28), "elbow": (0, -10, 62)}
_PHONE: Angles = {"shoulder": (-22, 0, -68), "elbow": (0, -112, 0)}
_POINTING: Angles = {"shoulder": (0, -68, -16), "elbow": (0, -10, 0)}
_STANDING_LEG: Angles = {"hip": (0, 0, 4), "knee": (3, 0, 0)}
_ON_KNEES: Angles = {"shoulder": (-52, 0, -66), "elbow": (0, -22, 0)}

# kind -> centre joints, left limb angles, right limb angles written as if they were left (mirrored when applied)
_KINDS: dict[str, tuple[Angles, Angles, Angles]] = {
    "stand": ({}, {**_HANGING, **_STANDING_LEG}, {**_HANGING, **_STANDING_LEG}),
    "relaxed": (
        {"spine1": (0, 0, 3), "head": (4, 12, 0)},
        {**_HANGING, "hip": (-6, 12, 8), "knee": (14, 0, 0), "ankle": (-8, 0, 0)},
        {**_ON_HIP, **_STANDING_LEG},
    ),
    "wave": ({"head": (-4, 0, 4)}, {**_HANGING, **_STANDING_LEG}, {**_WAVING, **_STANDING_LEG}),
    "cheer": ({"head": (-10, 0, 0)}, {**_WAVING, **_STANDING_LEG}, {**_WAVING, **_STANDING_LEG}),
    "phone": ({"head": (16, 0, 0)}, {**_PHONE, **_STANDING_LEG}, {**_HANGING, **_STANDING_LEG}),
    "point": ({"head": (0, 10, 0)}, {**_POINTING, **_STANDING_LEG}, {**_ON_HIP, **_STANDING_LEG}),
    "walk": (
        {"root": (3, 0, 0), "spine3": (2, 6, 0)},
        {"shoulder": (24, 0, -74), "elbow": (0, -12, 0), "hip": (-26, 0, 1), "knee": (10, 0, 0), "ankle": (4, 0, 0)},
        {"shoulder": (-24, 0, -74), "elbow": (0, -30, 0), "hip": (18, 0, 1), "knee": (28, 0, 0), "ankle": (8, 0, 0)},
    ),
    "run": (
        {"root": (12, 0, 0), "spine3": (2, 10, 0)},
        {"shoulder": (42, 0, -68), "elbow": (0, -80, 0), "hip": (-52, 0, 1), "knee": (48, 0, 0)},
        {"shoulder": (-42, 0, -68), "elbow": (0, -80, 0), "hip": (22, 0, 1), "knee": (62, 0, 0), "ankle": (20, 0, 0)},
    ),
    "crouch": (
        {"root": (22, 0, 0), "spine1": (8, 0, 0), "head": (-18, 0, 0)},
        {**_ON_KNEES, "hip": (-104, 0, 14), "knee": (122, 0, 0), "ankle": (-36, 0, 0)},
        {**_ON_KNEES, "hip": (-104, 0, 14), "knee": (122, 0, 0), "ankle": (-36, 0, 0)},
    ),
    "kneel": (
        {"head": (6, 0, 0)},
        {**_ON_KNEES, "hip": (-88, 0, 6), "knee": (92, 0, 0), "ankle": (-4, 0, 0)},
        {**_HANGING, "hip": (4, 0, 3), "knee": (92, 0, 0), "ankle": (42, 0, 0)},
    ),
    "sit": (
        {"root": (-8, 0, 0), "spine1": (8, 0, 0), "head": (-2, 0, 0)},
        {**_ON_KNEES, "hip": (-82, 0, 12), "knee": (12, 0, 0), "ankle": (4, 0, 0)},
        {**_ON_KNEES, "hip": (-104, 0, 10), "knee": (62, 0, 0), "ankle": (2, 0, 0)},
    ),
    "sit_baby": (
        {"spine1": (6, 0, 0)},
        {"shoulder": (-34, 0, -52), "elbow": (0, -34, 0), "hip": (-80, 0, 26), "knee": (22, 0, 0)},
        {"shoulder": (-34, 0, -52), "elbow": (0, -34, 0), "hip": (-80, 0, 26), "knee": (22, 0, 0)},
    ),
    "crawl": (
        {"root": (76, 0, 0), "neck": (-26, 0, 0), "head": (-26, 0, 0)},
        {"shoulder": (0, -74, -10), "elbow": (0, -12, 0), "hip": (-62, 0, 8), "knee": (82, 0, 0), "ankle": (40, 0, 0)},
        {"shoulder": (0, -86, -10), "elbow": (0, -12, 0), "hip": (-86, 0, 8), "knee": (84, 0, 0), "ankle": (40, 0, 0)},
    ),
}
ADULT_KINDS = ("stand", "relaxed", "wave", "phone", "point", "walk", "walk", "walk", "crouch", "kneel", "sit")
CHILD_KINDS = ("stand", "relaxed", "wave", "cheer", "walk", "run", "crouch", "sit")
BABY_KINDS = ("stand", "sit_baby", "sit_baby", "crawl", "cheer")
_JITTER = 4.0  # every joint of the tables varies by this much [deg]


def sample_pose(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One pose of a kind, randomly mirrored and varied.

    Args:
        kind: a key of the tables above.
        rng: source of the variety.

    Returns:
        (24, 3) axis-angle in the person's own frame (y up, facing +z), root first [rad].
    """
    centre, left, right = _KINDS[kind]
    if rng.random() < 0.5:
        left, right = right, left
        centre = {joint: (x, -y, -z) for joint, (x, y, z) in centre.items()}
    angles = np.zeros((24, 3))
    for joint, value in centre.items():
        angles[CENTRE[joint]] = value
    for joint, value in left.items():
        angles[LEFT[joint]] = value
    for joint, (x, y, z) in right.items():
        angles[RIGHT[joint]] = (x, -y, -z)
    bent = [*LEFT.values(), *RIGHT.values(), *CENTRE.values()]
    angles[bent] += rng.normal(0.0, _JITTER, (len(bent), 3))
    angles[CENTRE["root"]] *= (1, 0, 1)  # which way a person faces is not the pose's business
    knees = [LEFT["knee"], RIGHT["knee"]]
    angles[knees] = np.maximum(angles[knees], (0, -3, -3)).clip(max=(140, 3, 3))
    return Rotation.from_euler("XYZ", angles, degrees=True).as_rotvec()
