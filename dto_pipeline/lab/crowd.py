"""Plans of synthetic crowds: camera, ground positions, ages, heights and poses.

The level frame is the camera frame without pitch: x right, y down, z forward along the ground, camera at the origin,
ground at y = eye_height. Poses are in a person's own frame: y up, facing +z, left at +x. Metres, radians, years.

True heights are uniform within `HEIGHT_RANGE` and grow with age. Neither centres nor widths of these ranges are those
of the pipeline's priors, so that the priors help without being the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from dto_pipeline.axes import ADULT_FEMALE, ADULT_MALE, BABY, KID, TEEN

HEIGHT_RANGE = {
    BABY: (0.68, 0.97),
    KID: (0.98, 1.30),
    TEEN: (1.32, 1.68),
    ADULT_FEMALE: (1.52, 1.76),
    ADULT_MALE: (1.64, 1.92),
}  # true heights per class, lowest and highest [m]
AGE_RANGE = {BABY: (0.7, 2.7), KID: (3.3, 7.6), TEEN: (8.5, 14.5), ADULT_FEMALE: (17, 75), ADULT_MALE: (17, 75)}
SIZES = ((640, 480), (640, 480), (480, 640), (640, 480), (854, 480), (640, 480))  # width, height [px], in turn
_SPACING = 0.62  # least distance between two people on the ground [m]
_MOST_COVERED = 0.6  # share of a person's box that nearer people may cover
_ATTEMPTS = 120  # positions tried for one person before it is left out


@dataclass(frozen=True)
class View:
    """A pinhole camera above level ground, looking along +z and down by `pitch`."""

    width: int  # [px]
    height: int  # [px]
    focal: float  # [px]
    eye_height: float  # above the ground [m]
    pitch: float  # downwards [rad]

    def scaled(self, factor: float) -> View:
        """The same view in a picture `factor` times as large, rounded to whole pixels."""
        size = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        return replace(self, width=size[0], height=size[1], focal=self.focal * factor)

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) float64 K, principal point in the image centre [px]."""
        return np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1.0]])

    @property
    def level_to_camera(self) -> np.ndarray:
        """(3, 3) rotation: camera = R @ level."""
        sine, cosine = np.sin(self.pitch), np.cos(self.pitch)
        return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])

    def project(self, level_points: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of level-frame points (..., 3) [m] that lie in front of the camera."""
        x, y, z = np.moveaxis(level_points @ self.level_to_camera.T, -1, 0)
        return np.stack([self.focal * x / z + self.width / 2, self.focal * y / z + self.height / 2], axis=-1)


@dataclass(frozen=True)
class Layout:
    """How a place is filled with people."""

    name: str
    people: tuple[int, int]  # least and most
    near: float  # nearest distance [m]
    far: float  # farthest distance [m]
    young: float  # share of babies, kids and teens
    focal: tuple[float, float]  # range, in units of the longer image side


LAYOUTS = (
    Layout("family", (3, 6), 3.2, 5.6, 0.55, (0.85, 1.05)),
    Layout("street", (5, 9), 4.4, 13.0, 0.25, (1.25, 1.5)),
    Layout("row", (4, 7), 4.2, 5.2, 0.3, (0.85, 1.05)),
    Layout("playground", (4, 8), 3.4, 7.5, 0.7, (0.95, 1.15)),
    Layout("plaza", (7, 10), 4.0, 11.0, 0.3, (1.0, 1.2)),
    Layout("pair", (2, 4), 2.9, 4.6, 0.5, (0.8, 1.0)),
    Layout("queue", (4, 7), 3.4, 8.5, 0.2, (1.0, 1.2)),
)


@dataclass(frozen=True)
class Crowd:
    """P people of one image as planned; arrays share the first axis."""

    view: View
    place: np.ndarray  # (P, 2) x and z on the ground, level frame [m]
    facing: np.ndarray  # (P,) turn about the vertical, 0 faces the camera's plane [rad]
    pose: np.ndarray  # (P, 24, 3) axis-angle in the person's own frame [rad]
    height: np.ndarray  # (P,) true height in the rest pose [m]
    height_class: np.ndarray  # (P,) int64, BABY .. ADULT_MALE
    age: np.ndarray  # (P,) [years]

    @property
    def num_people(self) -> int:
        return len(self.height)


def plan_crowd(seed: int, number: int) -> Crowd:
    """The crowd of image `number` of data set `seed`; equal arguments give equal crowds.

    Layouts and image sizes alternate. 2 to 10 people, none of them hidden completely by planned boxes of the others.
    """
    rng = np.random.default_rng([seed, number, 1])
    layout = LAYOUTS[number % len(LAYOUTS)]
    view = _sample_view(layout, SIZES[number % len(SIZES)], rng)
    wanted = int(rng.integers(layout.people[0], layout.people[1] + 1))
    classes, age, height = _sample_people(wanted, layout.young, rng)
    place, kept = _sample_places(layout, view, height, rng)
    classes, age, height = classes[kept], age[kept], height[kept]
    kinds = tuple(
        str(rng.choice(_BABY_KINDS if c == BABY else _CHILD_KINDS if c <= TEEN else _ADULT_KINDS)) for c in classes
    )
    pose = np.stack([sample_pose(kind, rng) for kind in kinds])
    facing = rng.normal(0.0, 0.75, len(kinds))
    facing += np.where(rng.random(len(kinds)) < 0.2, np.pi, 0.0)  # some turn their back
    return Crowd(view, place, facing, pose, height, classes, age)


def _sample_view(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> View:
    width, height = size
    focal = float(rng.uniform(*layout.focal)) * max(640, min(width, 700))
    eye_height = float(rng.uniform(1.35, 1.95))
    # the ground at the nearest people should be near the lower border of the image
    pitch = np.arctan2(eye_height, layout.near * 1.05) - np.arctan2(height / 2, focal)
    return View(width, height, focal, eye_height, float(np.clip(pitch, 0.02, 0.3)))


def _sample_people(count: int, young: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count,) height classes, ages [years], heights [m].

    At least one adult, and a child wherever the layout has many; children grow with age, adults do not.
    """
    shares = [young * 0.3, young * 0.4, young * 0.3, (1 - young) / 2, (1 - young) / 2]
    classes = rng.choice([BABY, KID, TEEN, ADULT_FEMALE, ADULT_MALE], count, p=shares)
    classes[0] = rng.choice([ADULT_FEMALE, ADULT_MALE])
    if young >= 0.5:
        classes[1] = rng.choice([BABY, KID])
    age_low, age_high = np.array([AGE_RANGE[c] for c in classes.tolist()]).T
    low, high = np.array([HEIGHT_RANGE[c] for c in classes.tolist()]).T
    grown, own = rng.random(count), rng.random(count)
    share = np.where(classes <= TEEN, 0.75 * grown + 0.25 * own, own)
    return classes, age_low + grown * (age_high - age_low), low + share * (high - low)


def _sample_places(
    layout: Layout, view: View, height: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ground positions (n, 2) [m] of the people for whom there is room, and their indices (n,); never less than two."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # person -> place and box, see `_has_room`
    for person, tall in enumerate(height.tolist()):
        for attempt in range(_ATTEMPTS):
            z = layout.near + (layout.far - layout.near) * rng.random() ** 1.25  # a little denser near the camera
            side = 0.86 * z * view.width / 2 / view.focal
            place = np.array([rng.uniform(-side, side), z])
            corners = [place[0] - 0.15 * tall, view.eye_height - tall, z], [place[0] + 0.15 * tall, view.eye_height, z]
            box = np.array([*view.project(np.array(corners)).ravel(), z])
            last_chance = len(found) < 2 and attempt == _ATTEMPTS - 1
            if last_chance or _has_room(view, place, box, list(found.values())):
                found[person] = place, box
                break
    return np.stack([place for place, _ in found.values()]), np.array(list(found))


def _has_room(view: View, place: np.ndarray, box: np.ndarray, others: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """True if a person is in the picture, touches nobody, and nobody is covered too much.

    Boxes: left, top, right, bottom [px] of standing people and their z [m]; `others`: place and box of each.
    """
    left, top, right, bottom, _ = box
    inside = left > -4 and right < view.width + 4 and top > 6 and bottom < view.height * 1.01
    if not inside or any(np.hypot(*(place - other)) < _SPACING for other, _ in others):
        return False
    left, top, right, bottom, z = np.stack([*(taken for _, taken in others), box]).T
    wide = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    high = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    shared = wide.clip(0) * high.clip(0) * (z[None, :] < z[:, None])
    covered = shared.sum(axis=1) / ((right - left) * (bottom - top))  # what two people cover is counted twice
    return bool((covered <= _MOST_COVERED).all())


# joint numbers of SMPL's tree used below
_LEFT = {"hip": 1, "knee": 4, "ankle": 7, "shoulder": 16, "elbow": 18}
_RIGHT = {"hip": 2, "knee": 5, "ankle": 8, "shoulder": 17, "elbow": 19}
_CENTRE = {"root": 0, "spine1": 3, "spine2": 6, "spine3": 9, "neck": 12, "head": 15}

_Angles = dict[str, tuple[float, float, float]]  # joint -> rotations about x, y, z [deg], applied z first

_HANGING: _Angles = {"shoulder": (0, 0, -74), "elbow": (0, -14, 0)}
_ON_HIP: _Angles = {"shoulder": (14, 0, -42), "elbow": (0, -25, -82)}
_WAVING: _Angles = {"shoulder": (0, -10, 28), "elbow": (0, -10, 62)}
_PHONE: _Angles = {"shoulder": (-22, 0, -68), "elbow": (0, -112, 0)}
_POINTING: _Angles = {"shoulder": (0, -68, -16), "elbow": (0, -10, 0)}
_STANDING_LEG: _Angles = {"hip": (0, 0, 4), "knee": (3, 0, 0)}
_ON_KNEES: _Angles = {"shoulder": (-52, 0, -66), "elbow": (0, -22, 0)}

# kind -> angles of centre joints, of left limbs, and of right limbs as if they were left ones (they are mirrored)
_KINDS: dict[str, tuple[_Angles, _Angles, _Angles]] = {
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
_ADULT_KINDS = ("stand", "relaxed", "wave", "phone", "point", "walk", "walk", "walk", "crouch", "kneel", "sit")
_CHILD_KINDS = ("stand", "relaxed", "wave", "cheer", "walk", "run", "crouch", "sit")
_BABY_KINDS = ("stand", "sit_baby", "sit_baby", "crawl", "cheer")
_JITTER = 4.0  # every joint of the tables varies by this much [deg]


def sample_pose(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(24, 3) axis-angle [rad] of one pose of a kind, randomly mirrored and varied, in the person's own frame."""
    centre, left, right = _KINDS[kind]
    if rng.random() < 0.5:
        left, right = right, left
        centre = {joint: (x, -y, -z) for joint, (x, y, z) in centre.items()}
    angles = np.zeros((24, 3))
    for joint, value in centre.items():
        angles[_CENTRE[joint]] = value
    for joint, value in left.items():
        angles[_LEFT[joint]] = value
    for joint, (x, y, z) in right.items():
        angles[_RIGHT[joint]] = (x, -y, -z)
    bent = [*_LEFT.values(), *_RIGHT.values(), *_CENTRE.values()]
    angles[bent] += rng.normal(0.0, _JITTER, (len(bent), 3))
    angles[_CENTRE["root"]] *= (1, 0, 1)  # `Crowd.facing` says which way a person faces
    knees = [_LEFT["knee"], _RIGHT["knee"]]
    angles[knees] = np.maximum(angles[knees], (0, -3, -3)).clip(max=(140, 3, 3))
    return Rotation.from_euler("XYZ", angles, degrees=True).as_rotvec()
