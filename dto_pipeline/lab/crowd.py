"""Who stands where: camera, ground positions, ages, heights and poses of synthetic crowds.

Knows random numbers, ground geometry and human sizes; knows nothing of meshes, pixels or files. The level frame is the
camera frame without pitch: x right, y down, z forward along the ground, camera at the origin, ground at y = eye_height.
Metres, radians, years.

True heights are uniform within `HEIGHT_RANGE` and grow with age. These ranges are the demo's own: neither their
centres nor their widths are those of the pipeline's priors, so that the priors help without being the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dto_pipeline.axes import ADULT_FEMALE, ADULT_MALE, BABY, KID, TEEN
from dto_pipeline.lab.poses import ADULT_KINDS, BABY_KINDS, CHILD_KINDS, sample_pose

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
_TRIES = 120  # positions tried for one person before it is left out


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
    """A way to fill a place with people."""

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

    layout: str
    view: View
    place: np.ndarray  # (P, 2) x and z on the ground, level frame [m]
    facing: np.ndarray  # (P,) turn about the vertical, 0 looks at the camera's plane [rad]
    pose: np.ndarray  # (P, 24, 3) axis-angle in the person's own frame [rad]
    kind: tuple[str, ...]  # P names of poses
    height: np.ndarray  # (P,) true height in the rest pose [m]
    height_class: np.ndarray  # (P,) int64, BABY .. ADULT_MALE
    age: np.ndarray  # (P,) [years]

    @property
    def num_people(self) -> int:
        return len(self.height)


def plan_crowd(seed: int, number: int) -> Crowd:
    """The crowd of image `number`; equal arguments give equal crowds.

    Args:
        seed: of the whole data set.
        number: of the image; layouts and image sizes follow in turn.

    Returns:
        A crowd of 2 to 10 people, none of them hidden completely by planned boxes of the others.
    """
    rng = np.random.default_rng([seed, number, 1])
    layout = LAYOUTS[number % len(LAYOUTS)]
    view = _sample_view(layout, SIZES[number % len(SIZES)], rng)
    wanted = int(rng.integers(layout.people[0], layout.people[1] + 1))
    classes = _sample_classes(wanted, layout.young, rng)
    age, height = _sample_sizes(classes, rng)
    place, kept = _sample_places(layout, view, height, rng)
    classes, age, height = classes[kept], age[kept], height[kept]
    kinds = tuple(str(rng.choice(_kinds_of(c))) for c in classes)
    pose = np.stack([sample_pose(kind, rng) for kind in kinds])
    facing = rng.normal(0.0, 0.75, len(kinds))
    facing += np.where(rng.random(len(kinds)) < 0.2, np.pi, 0.0)  # some turn their back
    return Crowd(layout.name, view, place, facing, pose, kinds, height, classes, age)


def _sample_view(layout: Layout, size: tuple[int, int], rng: np.random.Generator) -> View:
    width, height = size
    focal = float(rng.uniform(*layout.focal)) * max(640, min(width, 700))
    eye_height = float(rng.uniform(1.35, 1.95))
    # the ground at the nearest people should enter the image near its lower border
    pitch = np.arctan2(eye_height, layout.near * 1.05) - np.arctan2(height / 2, focal)
    return View(width, height, focal, eye_height, float(np.clip(pitch, 0.02, 0.3)))


def _sample_classes(count: int, young: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) height classes; at least one adult, and a child wherever the layout has many."""
    shares = [young * 0.3, young * 0.4, young * 0.3, (1 - young) / 2, (1 - young) / 2]
    classes = rng.choice([BABY, KID, TEEN, ADULT_FEMALE, ADULT_MALE], count, p=shares)
    classes[0] = rng.choice([ADULT_FEMALE, ADULT_MALE])
    if young >= 0.5:
        classes[1] = rng.choice([BABY, KID])
    return classes


def _sample_sizes(classes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Age [years] and height [m] per person; children grow with age, adults do not."""
    age_low, age_high = np.array([AGE_RANGE[c] for c in classes.tolist()]).T
    low, high = np.array([HEIGHT_RANGE[c] for c in classes.tolist()]).T
    grown = rng.random(len(classes))
    own = rng.random(len(classes))
    share = np.where(classes <= TEEN, 0.75 * grown + 0.25 * own, own)
    return age_low + grown * (age_high - age_low), low + share * (high - low)


def _sample_places(
    layout: Layout, view: View, height: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ground positions of those who find room: (n, 2) [m] and their indices (n,); the first two always do."""
    boxes: list[np.ndarray] = []
    places: list[np.ndarray] = []
    kept: list[int] = []
    for person, tall in enumerate(height):
        for attempt in range(_TRIES):
            place = _propose(layout, view, rng)
            box = _planned_box(view, place, float(tall))
            patient = len(kept) >= 2 or attempt < _TRIES - 1
            if not patient or _has_room(view, place, box, places, boxes):
                places.append(place)
                boxes.append(box)
                kept.append(person)
                break
    return np.stack(places), np.array(kept)


def _propose(layout: Layout, view: View, rng: np.random.Generator) -> np.ndarray:
    share = rng.random()
    z = layout.near + (layout.far - layout.near) * share**1.25  # a little denser near the camera
    side = 0.86 * z * view.width / 2 / view.focal
    return np.array([rng.uniform(-side, side), z])


def _planned_box(view: View, place: np.ndarray, tall: float) -> np.ndarray:
    """Upright box of a standing person in the image: left, top, right, bottom [px], and its z [m]."""
    half = 0.15 * tall
    x, z = place
    corners = np.array([[x - half, view.eye_height - tall, z], [x + half, view.eye_height, z]])
    (left, top), (right, bottom) = view.project(corners)
    return np.array([left, top, right, bottom, z])


def _has_room(
    view: View, place: np.ndarray, box: np.ndarray, places: list[np.ndarray], boxes: list[np.ndarray]
) -> bool:
    """True where a person is in the picture, touches nobody, and nobody is then covered too much."""
    left, top, right, bottom, _ = box
    inside = left > -4 and right < view.width + 4 and top > 6 and bottom < view.height * 1.01
    if not inside or any(np.hypot(*(place - other)) < _SPACING for other in places):
        return False
    everyone = np.stack([*boxes, box])
    return bool((_covered_share(everyone) <= _MOST_COVERED).all())


def _covered_share(boxes: np.ndarray) -> np.ndarray:
    """(n,) share of each box covered by all nearer ones together, at most (overlaps counted twice)."""
    left, top, right, bottom, z = boxes.T
    wide = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    high = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    shared = wide.clip(0) * high.clip(0) * (z[None, :] < z[:, None])
    return shared.sum(axis=1) / ((right - left) * (bottom - top))


def _kinds_of(height_class: int) -> tuple[str, ...]:
    if height_class == BABY:
        return BABY_KINDS
    return CHILD_KINDS if height_class <= TEEN else ADULT_KINDS
