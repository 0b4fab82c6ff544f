"""Augmentation: an image and its people resized to S, rotated, mirrored, zoomed and cut at the bottom (MA-HMR).

Metres, radians, pixels of the resized image. As published, the origin of cameras is the corner of the first pixel, and
that of warps its centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras
from dto_pipeline.maths.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.config import AugmentConfig

MIRROR_JOINTS = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)  # of SMPL
_CHEST = 9  # joint; a picture is never cut above the lowest chest in it
_CROP_SHAPE = (2.0, 5.0)  # of the Beta distribution of the share that stays below the chest
_LARGEST_AREA, _ASPECTS, _OCCLUSION_TRIES = 0.3, (0.5, 2.0), 6  # of a rectangle of noise over a box
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Draw:
    """A random variation of an image; the default changes nothing."""

    angle: float = 0.0  # about the camera's axis, counter-clockwise on the screen [degree]
    flip: bool = False
    scale: float = 1.0  # of the focal length
    crop: float | None = None  # share of what lies below the lowest chest that stays; None = no crop


@dataclass(frozen=True)
class Frame:
    """Geometry of a varied image, and the noise and colours that are applied to it."""

    resized: tuple[int, int]  # width and height after the first resize
    flip: bool  # mirrored after it
    warp: np.ndarray | None  # (2, 3) float64 from the resized (and mirrored) image to itself; None = no warp
    rows: int  # from the top that stay after a crop
    size: tuple[int, int]  # width and height in the end
    place: np.ndarray  # (2, 3) float64 from places in the photograph to those of the varied image, see `move_points`
    patches: tuple[tuple[int, int, int, int, int], ...] = ()  # x, y, width, height and seed of noise over it
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of brightness, contrast, saturation


@dataclass(frozen=True)
class Varied:
    """The people in the camera frame of the varied image."""

    pose: np.ndarray  # (P, 72)
    transl: np.ndarray  # (P, 3)
    intrinsics: np.ndarray  # (1 or P, 3, 3)
    joints: np.ndarray  # (P, 45, 3) [m]
    image_joints: np.ndarray  # (P, 45, 2) [px]
    frame: Frame


def draw_variation(random: np.random.Generator, config: AugmentConfig) -> Draw:
    """A random variation; it takes the same number of random numbers whatever the config."""
    angle, scale = random.uniform(-1, 1), random.uniform(config.min_scale, config.max_scale)
    flip, crop = (random.random(2) < (config.flip, config.crop)).tolist()
    stays = float(random.beta(*_CROP_SHAPE))
    return Draw(float(angle) * config.max_angle, flip, float(scale), stays if crop else None)


def draw_paint(random: np.random.Generator, frame: Frame, boxes: np.ndarray, config: AugmentConfig) -> Frame:
    """The frame with rectangles of noise over parts of people, whose boxes are corners (P, 4) [px of it], and
    colours."""
    width, height = frame.size
    patches = []
    for left, top, right, bottom in boxes:
        for _ in range(_OCCLUSION_TRIES if random.random() < config.occlude else 0):
            area = random.uniform(0, _LARGEST_AREA) * (right - left) * (bottom - top)
            aspect = random.uniform(*_ASPECTS)
            h, w = int(np.sqrt(area * aspect)), int(np.sqrt(area / aspect))
            x = int(random.uniform(left, max(left, right - w)))
            y = int(random.uniform(top, max(top, bottom - h)))
            if x >= 0 and y >= 0 and x + w < width and y + h < height:
                patches.append((x, y, w, h, int(random.integers(1 << 31))))
                break
    brightness, contrast, saturation = (1 + random.uniform(-config.colour, config.colour) for _ in range(3))
    return replace(frame, patches=tuple(patches), colours=(brightness, contrast, saturation))


def paint(image: torch.Tensor, frame: Frame) -> torch.Tensor:
    """The varied image, on the device of the resized one: (3, h, w) uint8 -> (3, h', w') uint8, black outside the
    photograph. Mirror, warp, crop and second resize are one bilinear sampling."""
    (width, height), varied = frame.size, image
    if frame.warp is not None or frame.rows != image.shape[1] or frame.size != frame.resized:
        place = _reading(frame)[None].to(image.device, non_blocking=True)
        grid = functional.affine_grid(place, [1, 3, height, width], align_corners=False)
        varied = functional.grid_sample(image[None].float(), grid, mode="bilinear", align_corners=False)[0].round()
    elif frame.flip:
        varied = image.flip(-1)
    varied = varied.to(torch.uint8)
    for x, y, w, h, seed in frame.patches:
        chance = torch.Generator(image.device).manual_seed(seed)
        noise = torch.randint(0, 256, (3, h, w), generator=chance, dtype=torch.uint8, device=image.device)
        varied = varied.clone() if varied is image else varied
        varied[:, y : y + h, x : x + w] = noise
    if frame.colours == (1, 1, 1):
        return varied
    brightness, contrast, saturation = frame.colours
    pixels = varied.float()
    grey = sum(weight * plane for weight, plane in zip(_LUMA, pixels, strict=True))
    towards = saturation * pixels + (1 - saturation) * grey
    jittered = brightness * (contrast * towards + (1 - contrast) * grey.mean())
    return jittered.round().clamp(0, 255).to(torch.uint8)


def _reading(frame: Frame) -> torch.Tensor:
    """(2, 3) float32 from places in the varied image to those in the resized one, both -1 .. 1 from edge to edge."""
    (w, h), (width, height) = frame.resized, frame.size
    steps = np.diag([2 / w, 2 / h, 1.0]) @ [[1, 0, 0.5 - w / 2], [0, 1, 0.5 - h / 2], [0, 0, 1]]
    mirror = np.array([[-1, 0, w - 1], [0, 1, 0], [0, 0, 1.0]]) if frame.flip else np.eye(3)
    pixels = np.array([[width / 2, 0, width / 2 - 0.5], [0, height / 2, height / 2 - 0.5], [0, 0, 1]])
    return torch.from_numpy((steps @ mirror @ _source(frame) @ pixels)[:2]).float()


def _source(frame: Frame) -> np.ndarray:
    """(3, 3) from pixels of the varied image to those of the resized (and mirrored) one."""
    x, y = frame.resized[0] / frame.size[0], frame.rows / frame.size[1]
    back = np.eye(3) if frame.warp is None else np.linalg.inv(np.vstack([frame.warp, [0, 0, 1]]))
    return back @ [[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]


def fit_size(width: int, height: int, side: int) -> tuple[tuple[int, int], float]:
    """Width and height of an image whose longer side is made S, and the rate r by which lengths grow."""
    rate = side / max(width, height)
    wide, high = (max(1, int(rate * length)) for length in (width, height))
    return ((side, high) if width >= height else (wide, side)), rate


def vary(
    pose: np.ndarray, betas: np.ndarray, transl: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], side: int,
    draw: Draw, body: BodyModel, half_pixel: bool = False,
) -> Varied:  # fmt: skip
    """The people of an image of `size` w, h after its longer side was made S and it was varied.

    `pose`, `betas`, `transl`: (P, 72) axis-angle, root first, (P, 11), (P, 3); `intrinsics`: (1 or P, 3, 3);
    `half_pixel`: a crop scales joints without the half pixel that the camera gets, as published.
    """
    (w, h), rate = fit_size(*size, side)
    z, angle, middle = draw.scale, np.deg2rad(draw.angle), np.array([w, h]) / 2
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])  # R

    # M = [[A, B, (1 - A) x0 - B y0], [-B, A, B x0 + (1 - A) y0]], A = z cos a', B = z sin a', a' = -a if mirrored
    a, b, x0, y0 = z * np.cos(angle), z * np.sin(angle) * (-1 if draw.flip else 1), w // 2, h // 2
    warp = np.array([[a, b, (1 - a) * x0 - b * y0], [-b, a, b * x0 + (1 - a) * y0]])
    # places, c above all: c -> r z c + (1 - z) (w, h) / 2, turned about the middle, mirrored;  f *= r z
    place = np.c_[rate * z * turn[:2, :2], middle - z * turn[:2, :2] @ middle]
    if draw.flip:
        place[0] = [0, 0, w] - place[0]
    frame = Frame((w, h), draw.flip, warp if draw.angle or z != 1 else None, h, (w, h), place)
    camera = intrinsics.astype(np.float64).copy()
    camera[:, [0, 1], [0, 1]] *= rate * z
    camera[:, :2, 2] = move_points(intrinsics[:, :2, 2], frame)

    # root = R root;  T' = R (p + T) - p, p the pelvis of the shape at rest
    pose = pose.astype(np.float64).reshape(-1, 24, 3).copy()
    if draw.angle:
        root = torch.from_numpy(turn @ axis_angle_to_matrix(torch.from_numpy(pose[:, 0])).numpy())
        pose[:, 0] = matrix_to_axis_angle(root).numpy()
    if draw.flip:  # partners exchanged, y and z of every axis-angle negated, T'_x too
        pose = pose[:, list(MIRROR_JOINTS)] * [1, -1, -1]
    angles = pose.reshape(-1, 72)
    posing, shape = (torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (angles, betas))
    posed = body.joints(posing, shape, torch.zeros(len(pose), 3)).numpy()
    pelvis = posed[:, 0].astype(np.float64)  # no pose moves it
    transl = np.einsum("...ij,...j->...i", turn, pelvis + transl) - pelvis
    transl[:, 0] *= -1 if draw.flip else 1
    joints = posed + transl[:, None]
    places = project_points(joints, camera, behind=True)

    # keep rows < floor(stays (h - y0) + y0), y0 the lowest chest or half the height; then make the longer side S
    first = max(h // 2, float(places[:, _CHEST, 1].max(initial=0)))
    if draw.crop is not None and first < h:
        rows = int(draw.crop * (h - first) + first)
        size, grown = fit_size(w, rows, side)
        place = grown * place + [[0, 0, (grown - 1) / 2]]
        frame = replace(frame, rows=rows, size=size, place=place)
        camera[:, [0, 1], [0, 1]] *= grown
        camera[:, :2, 2] = move_points(intrinsics[:, :2, 2], frame)
        places = places * grown if half_pixel else places * grown + (grown - 1) / 2
    return Varied(angles, transl, camera, joints, places, frame)


def project_points(points: np.ndarray, intrinsics: np.ndarray, behind: bool = False) -> np.ndarray:
    """(P, V, 3) [m] by cameras (1 or P, 3, 3) -> (P, V, 2) [px]; NaN behind the camera, unless `behind`."""
    seen = points @ intrinsics.transpose(0, 2, 1)
    z = seen[..., 2:]
    places = seen[..., :2] / np.where(z == 0, 1e-9, z)
    return places if behind else np.where(z > 0, places, np.nan)


def move_points(points: np.ndarray, frame: Frame) -> np.ndarray:
    """(..., 2) places in a photograph -> in its varied image, as principal points move [px]."""
    return points @ frame.place[:, :2].T + frame.place[:, 2]


def inside_image(points: np.ndarray, frame: Frame) -> np.ndarray:
    """(...) bool: whether the pixels that hold (..., 2) points show the photograph."""
    finite = np.isfinite(points).all(-1)
    place = np.where(finite[..., None], points, -1.0).clip(-1e6, 1e6)
    width, height = frame.size
    inside = (place >= 0).all(-1) & (place[..., 0] < width) & (place[..., 1] < height)
    if frame.warp is not None:
        (w, h), matrix = frame.resized, _source(frame)[:2]
        source = np.trunc(place) @ matrix[:, :2].T + matrix[:, 2]
        inside &= (source > -1).all(-1) & (source[..., 0] < w) & (source[..., 1] < h)
    return inside


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear without antialiasing, as in the published training: (H, W, 3) uint8 -> (h, w, 3), `size` = w, h."""
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb
    planes = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
    made = functional.interpolate(planes, (size[1], size[0]), mode="bilinear", align_corners=False)
    return made[0].permute(1, 2, 0).numpy()


def camera_problem(intrinsics: np.ndarray, width: int, height: int) -> str:
    """Why a picture of this size cannot have this camera (3, 3) [px]; "" where it can."""
    if not implausible_cameras(intrinsics, width, height):
        return ""
    return f"its camera {intrinsics[:2].tolist()} cannot be that of {width} x {height} pixels: {CAMERA_BEYOND}"
