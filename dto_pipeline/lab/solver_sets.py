"""Synthetic crowds made to part good solvers from bad ones: kinds of difficulty, all with known truth.

Knows the demo's crowds, bodies and labels and spoils what the pipeline is told in one named way per set; draws no
picture (solvers never look at one) and knows no solver and no files. Images are about 480 x 360. Metres, pixels.
`CROWD_SETS` compare solvers; the difficulties of the public benchmark are in `difficulty`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, maximum_filter

from dto_pipeline.axes import ADULT_FEMALE, ADULT_MALE, KID_AXIS, NUM_BETAS
from dto_pipeline.config import PriorConfig
from dto_pipeline.lab.crowd import LAYOUTS, Crowd, View, plan_crowd
from dto_pipeline.lab.foreign_bodies import build_foreign
from dto_pipeline.lab.growth import FEMALE, MALE, sample_heights
from dto_pipeline.lab.observe import DISPARITY_SCALE, observe_masks
from dto_pipeline.lab.people import Bodies, Labels, build_bodies, falsify_labels, rest_height, solve_height
from dto_pipeline.lab.solver_comparison import KnownScene
from dto_pipeline.maths.camera import map_size
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_kinds import METRES_PER_DEPTH, METRIC_DEPTH
from dto_pipeline.models.rasterizer import rasterize
from dto_pipeline.scene import Scene

IMAGE_SCALE = 0.75  # of the demo's image sizes: 480 x 360 instead of 640 x 480
_FARTHEST = 40.0  # of the backdrop [m]
_OFFSET_AT = 6.0  # distance whose disparity a set's offset is measured in [m]
_BLUR = 1.0  # of the depth map [px]
_GROWN = 1.7  # height that no network draws too far or too near [m]
_SMOOTH_PARTS = 10  # of the shorter side of a map: how far a smooth error reaches
_LARGEST_ERROR = 0.3  # of one person's disparity
HEIGHTS = ("demo", "independent", "priors")
BODIES = ("stand-in", "anny")
_WRONG_SIZE = (0.75, 1.35)  # range of the factor on size and distance of a label that is grossly wrong
_WRONG_POSE = 0.25  # of every joint of such a label [rad]
_BODIES, _LABELS, _DEPTH, _MASKS, _SPOIL, _SHARED, _HEIGHTS, _WRONG = range(21, 29)  # random streams of an image
_METRES = 30  # another, after those of `synth`


@dataclass(frozen=True)
class CrowdSet:
    """One kind of difficulty. The defaults are an ordinary crowd and a good depth network."""

    name: str
    meaning: str
    layouts: tuple[str, ...] = tuple(layout.name for layout in LAYOUTS)  # of `demo.crowd`
    most_people: int = 10
    person_error: float = 0.02  # relative error of one person's disparity, scale of a Student t of 3 degrees
    row_tilt: float = 0.04  # relative error from the upper to the lower border
    pixel_noise: float = 0.004  # relative, per pixel
    offset: float = 0.0  # largest b of disparity = a / z + b, in units of the disparity at 6 m; drawn per image
    squeeze: float = 1.0  # people move sideways towards the middle by this factor and hide each other
    taller: float = 0.0  # heights of an image are all off the demo's by one share, normal with this sigma
    wrong_ages: float = 0.0  # share of people whose age is anybody's
    leak: int = 0  # masks grow by up to this over neighbours and ground [px]
    focal_error: float = 0.0  # K of the labels is wrong by a share, normal with this sigma
    wrong_labels: float = 0.0  # share of people whose label is grossly wrong in size, distance and pose
    heights: str = "demo"  # see `HEIGHTS`: the demo's own ranges, growth charts (`growth`), or the method's priors
    blur: float = _BLUR  # of the depth map [px]
    smooth_error: float = 0.0  # relative error that varies slowly over the map, standard deviation
    power: float = 1.0  # disparity goes with 1 / z to this power, as networks that compress the far side do
    size_error: float = 0.0  # disparity of a person times (height / 1.7 m) to this power: a child looks far
    unit: float = 1.0  # the network's own unit, times the published one's
    metric_error: float = 0.0  # > 0: the map is in metres, off by one share per image, normal with this sigma
    upside_down: bool = False  # the map holds metres, under the name of disparity
    bodies: str = "stand-in"  # see `BODIES`: ours, or people of Anny with fitted labels (`foreign_bodies`)
    unknown_ages: bool = False  # nobody's age is known
    told: tuple[str, ...] = ()  # config that tells the joint solver so, for a second row


CROWD_SETS = (
    CrowdSet("plain", "the demo's crowds, a depth map without offset"),
    CrowdSet("offset", "depth maps with an unknown offset, up to 15 % of the disparity at 6 m", offset=0.15),
    CrowdSet(
        "low noise",
        "a depth map nearly exact per person",
        person_error=0.005,
        row_tilt=0.01,
        told=("joint.depth_sigma=0.005", "joint.edge_sigma=0.05", "joint.noise_levels=[0.5, 0.7, 1.0, 1.4]"),
    ),
    CrowdSet(
        "high noise",
        "2.5 times the errors per person",
        person_error=0.05,
        row_tilt=0.08,
        pixel_noise=0.01,
        told=("joint.depth_sigma=0.05",),
    ),
    CrowdSet("occlusion", "crowds squeezed sideways", layouts=("street", "plaza", "queue", "row"), squeeze=0.4),
    CrowdSet("children", "mostly children", layouts=("family", "playground")),
    CrowdSet(
        "other heights",
        "whole images taller or shorter than the priors expect, by 6 % (one sigma)",
        taller=0.06,
        told=("joint.population_sigma=0.06",),
    ),
    CrowdSet("wrong ages", "every fourth age is somebody else's", wrong_ages=0.25),
    CrowdSet("leaking masks", "masks that swallow up to 7 px of what is next to them", leak=7),
    CrowdSet(
        "wrong K",
        "focal length of the labels wrong by 10 % (one sigma)",
        focal_error=0.1,
        told=("joint.focal_sigma=0.1",),
    ),
    CrowdSet("pairs", "exactly two people", most_people=2),
    CrowdSet("foreign", "people of Anny, labels fitted to what is seen (extra anny)", bodies="anny"),
    CrowdSet("foreign, weak depth", "the same, depth of a weak network", bodies="anny", blur=14.0, smooth_error=0.12),
    CrowdSet("foreign, no ages", "people of Anny, nobody's age known", bodies="anny", unknown_ages=True),
)


@dataclass(frozen=True)
class SetScene:
    """Scene `number` of a set with all it was made from."""

    known: KnownScene
    crowd: Crowd
    truth: Bodies
    labels: Labels
    masks: np.ndarray  # (P, H, W) bool, as the pipeline is told
    z: np.ndarray  # (H, W) true z of people, ground and backdrop [m]


def build_known_scene(kind: CrowdSet, seed: int, number: int, body: BodyModel) -> KnownScene:
    """What a solver is told of scene `number`, and what is true; see `build_set_scene`."""
    return build_set_scene(kind, seed, number, body).known


def build_set_scene(kind: CrowdSet, seed: int, number: int, body: BodyModel) -> SetScene:
    """Scene `number` of the set; equal arguments give equal scenes, and sets share crowds where they can."""

    def stream(step: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, step])

    crowd = plan_set_crowd(kind, seed, number)
    if kind.bodies == "anny":
        truth, labels, faces = build_foreign(crowd, body, stream(_BODIES), _sexes(crowd, stream(_HEIGHTS)))
    else:
        truth = build_bodies(crowd, body, stream(_BODIES))
        labels, faces = falsify_labels(crowd, truth, body, stream(_LABELS)), body.faces
    if kind.wrong_labels:
        labels = _spoil_labels(labels, kind.wrong_labels, body, stream(_WRONG))
    z, person = _look(crowd.view, truth, faces)
    masks = _leak(observe_masks(person, crowd.num_people, stream(_MASKS)), kind.leak, stream(_SPOIL))
    disparity, line = _observe_disparity(kind, z, person, truth.height, stream(_DEPTH))
    scene = _build_scene(f"{kind.name}/{number:05d}", crowd, labels, masks, disparity)
    if kind.metric_error:
        wrong = np.exp(kind.metric_error * stream(_METRES).standard_normal())
        factor = METRES_PER_DEPTH / line[0] * wrong
        scene.disparity, line = disparity * np.float32(factor), (line[0] * factor, line[1] * factor)
        scene.origin["depth"] = METRIC_DEPTH
    scene.age_years[:] = np.nan if kind.unknown_ages else _wrong_ages(scene.age_years, kind.wrong_ages, stream(_SPOIL))
    if kind.focal_error:
        _spoil_focal(scene, float(np.exp(_spread(kind.focal_error, seed, number))))
    known = KnownScene(scene, truth.transl[:, 2].astype(np.float64), truth.height, line)
    return SetScene(known, crowd, truth, labels, masks, z)


def plan_set_crowd(kind: CrowdSet, seed: int, number: int) -> Crowd:
    """The demo's crowd at the set's image size and with its heights; layouts follow in turn, of those it allows."""
    allowed = [place for place, layout in enumerate(LAYOUTS) if layout.name in kind.layouts]
    crowd = plan_crowd(seed, number // len(allowed) * len(LAYOUTS) + allowed[number % len(allowed)])
    view = crowd.view
    size = (round(view.width * IMAGE_SCALE), round(view.height * IMAGE_SCALE))
    crowd = _keep(crowd, min(crowd.num_people, kind.most_people))
    height = crowd.height
    if kind.heights != "demo":
        height = _sample_heights(kind.heights, crowd, np.random.default_rng([seed, number, _HEIGHTS]))
    return replace(
        crowd,
        view=replace(view, width=size[0], height=size[1], focal=view.focal * IMAGE_SCALE),
        place=crowd.place * [kind.squeeze, 1.0],
        height=height * np.exp(_spread(kind.taller, seed, number)),
    )


def _sample_heights(heights: str, crowd: Crowd, rng: np.random.Generator) -> np.ndarray:
    """(P,) heights [m] of people of the planned ages and genders; a child's gender is drawn."""
    if heights == "priors":
        prior = PriorConfig()
        mean, sigma = (np.array(values)[crowd.height_class] for values in (prior.mean, prior.sigma))
        return mean + sigma * np.clip(rng.standard_normal(crowd.num_people), -2.0, 2.0)
    return sample_heights(crowd.age, _sexes(crowd, rng), rng)


def _sexes(crowd: Crowd, rng: np.random.Generator) -> np.ndarray:
    """(P,) `MALE` or `FEMALE`, as planned for adults, drawn for children."""
    sex = rng.integers(MALE, FEMALE + 1, crowd.num_people)
    sex = np.where(crowd.height_class == ADULT_FEMALE, FEMALE, sex)
    return np.where(crowd.height_class == ADULT_MALE, MALE, sex)


def _spoil_labels(labels: Labels, share: float, body: BodyModel, rng: np.random.Generator) -> Labels:
    """Labels of a share of people far off: a body of another size at another distance, its joints all over."""
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


def _spread(sigma: float, seed: int, number: int) -> float:
    """Logarithm of a factor that all people of an image share."""
    return sigma * float(np.random.default_rng([seed, number, _SHARED]).standard_normal())


def _keep(crowd: Crowd, count: int) -> Crowd:
    names = ("place", "facing", "pose", "kind", "height", "height_class", "age")
    return replace(crowd, **{name: getattr(crowd, name)[:count] for name in names})


def _look(view: View, truth: Bodies, faces: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """True z (H, W) [m] of people, ground and backdrop, and the person seen (H, W), -1 = nobody."""
    size = torch.tensor([[view.height, view.width]])
    present = torch.ones(1, len(truth.height), dtype=torch.bool)
    camera = torch.from_numpy(view.intrinsics)[None]
    raster = rasterize(torch.from_numpy(truth.vertices)[None], faces, camera, size, present)
    person = raster.person[0].numpy()
    row, column = np.mgrid[: view.height, : view.width] + 0.5
    rays = np.stack([(column - view.width / 2) / view.focal, (row - view.height / 2) / view.focal], -1)
    down = np.concatenate([rays, np.ones_like(rays[..., :1])], -1) @ view.level_to_camera[:, 1]
    ground = np.where(down > view.eye_height / _FARTHEST, view.eye_height / down.clip(1e-6), _FARTHEST)
    return np.where(person >= 0, raster.z[0].numpy(), ground), person


def _observe_disparity(
    kind: CrowdSet, z: np.ndarray, person: np.ndarray, height: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]]:
    """(H, W) float32 a / z + b with errors per person, row and pixel; and a, b. `height`: (P,) true heights [m]."""
    scale = float(rng.uniform(*DISPARITY_SCALE))
    offset = kind.offset * float(rng.uniform(-1, 1)) * scale / _OFFSET_AT
    error = kind.person_error * rng.standard_t(3, int(person.max()) + 2)
    error = np.clip(error, -_LARGEST_ERROR, _LARGEST_ERROR)
    error[-1] = 0.0  # index -1 is the background
    tilt = rng.normal(0.0, kind.row_tilt) * (np.arange(len(z)) / len(z) - 0.5)
    noise = rng.normal(0.0, kind.pixel_noise, z.shape)
    values = (scale / z + offset) * (1 + error[person])
    values *= _laws_of_real_maps(kind, z, person, height, rng)
    values = gaussian_filter(values, kind.blur) * (1 + tilt[:, None] + noise)
    if kind.upside_down:
        return (scale / values.clip(1e-6) * kind.unit).astype(np.float32), (scale, offset)
    return (values.clip(0) * kind.unit).astype(np.float32), (scale * kind.unit, offset * kind.unit)


def _laws_of_real_maps(
    kind: CrowdSet, z: np.ndarray, person: np.ndarray, height: np.ndarray, rng: np.random.Generator
) -> np.ndarray | float:
    """(H, W) factors of the errors that real depth networks have and the solver's noise law has not; 1 without them."""
    factor: np.ndarray | float = 1.0
    if kind.power != 1:
        factor = factor * (_OFFSET_AT / z) ** (kind.power - 1)
    if kind.size_error:
        size = np.append((height / _GROWN) ** kind.size_error, 1.0)  # index -1 is the background
        factor = factor * size[person]
    if kind.smooth_error:
        field = gaussian_filter(rng.standard_normal(z.shape), min(z.shape) / _SMOOTH_PARTS, mode="wrap")
        factor = factor * np.exp(kind.smooth_error * field / field.std())
    return factor


def _leak(masks: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """(P, H, W) masks grown by 0 to `most` pixels each: they overlap, and hold what is not the person."""
    reach = rng.integers(0, most + 1, len(masks)).tolist()
    return np.stack([maximum_filter(mask, 2 * far + 1) for mask, far in zip(masks, reach, strict=True)])


def _wrong_ages(age: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(P,) ages, a share of them replaced by ages between 1 and 70 years, even in the logarithm."""
    anybody = np.exp(rng.uniform(0.0, np.log(70.0), len(age)))
    return np.where(rng.random(len(age)) < share, anybody, age)


def _spoil_focal(scene: Scene, factor: float) -> None:
    """Labels made with a focal length `factor` times the true one: same picture, distances stretched by it."""
    scene.intrinsics[:2, :2] *= factor
    scene.transl[:, 2] *= factor


def _build_scene(name: str, crowd: Crowd, labels: Labels, masks: np.ndarray, disparity: np.ndarray) -> Scene:
    height, width = disparity.shape
    people = crowd.num_people
    h, w = map_size(height, width, 512)
    betas = np.zeros((people, NUM_BETAS), np.float32)
    betas[:, : labels.betas.shape[1]] = labels.betas
    return Scene(
        image_id=name,
        subset=name.partition("/")[0],
        image_path=f"{name}.jpg",
        width=width,
        height=height,
        intrinsics=crowd.view.intrinsics,
        pose=labels.pose,
        betas=betas,
        transl=labels.transl.copy(),
        age_years=labels.age.copy(),
        male_prob=labels.male_prob,
        source_row=np.arange(people),
        bbox_xyxy=np.full((people, 4), np.nan, np.float32),
        det_score=np.full(people, np.nan, np.float32),
        person_problem=[None] * people,
        masks=masks[:, np.arange(h) * height // h][:, :, np.arange(w) * width // w],
        disparity=disparity,
    )
