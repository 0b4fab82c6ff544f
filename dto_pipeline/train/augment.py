"""One image and its labels seen by another camera: rotated about its axis, mirrored, zoomed, cropped to S x S.

All of it is one map of the camera frame, X' = R M X (M mirrors x, R turns about z), followed by a camera K' with square
pixels. The picture follows by the affine map K' R M K^-1, which is exact whatever K is: an off-centre principal point,
fx != fy. Nothing changes a distance along the camera axis. Pure functions of numpy arrays and a random generator; knows
no file. Metres, radians, pixels with the origin at the corner of the first one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dto_pipeline.maths.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from dto_pipeline.train.data_config import AugmentConfig

MIRROR_JOINTS = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
"""SMPL's 24 joints with left and right exchanged."""
_MIRROR_AXIS = np.array([1, -1, -1], np.float32)  # M R M turns about M-mirrored axes, the other way round
_FOCAL_RANGE = (
    0.02,
    200.0,
)  # focal lengths a picture can have, in its longer side: fields of view of 175 .. 0.3 degrees
_LARGEST_SHEAR = 10.0  # fx / fy or its inverse
_FARTHEST_CENTRE = 20.0  # of the principal point from the picture's corner, in its longer side
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class ImageLabels:
    """The P people of one image as `TrainBatch` has them, without padding. Arrays are not changed in place."""

    intrinsics: np.ndarray  # (3, 3) float64 [px]
    has_camera: bool
    has_body: np.ndarray  # (P,) bool; pose, betas and transl mean nothing where it is False
    pose: np.ndarray  # (P, 72) float32 axis-angle, root first
    betas: np.ndarray  # (P, 11) float32
    transl: np.ndarray  # (P, 3) float32 [m]
    joints: np.ndarray  # (P, 24, 3) float32 [m] SMPL's joints of this pose, shape and transl
    boxes: np.ndarray  # (P, 4) float32 left, top, right, bottom [px], NaN = unknown
    keypoints: np.ndarray  # (P, 24, 2) float32 [px], NaN = unknown
    z_covariance: np.ndarray  # (P, P) float32 [m2], NaN = unknown
    depth_layer: np.ndarray  # (P,) int64, -1 = unknown

    @property
    def num_people(self) -> int:
        return len(self.has_body)

    def take(self, people: np.ndarray) -> ImageLabels:
        """The people named by an index or a mask, in that order."""
        names = ("has_body", "pose", "betas", "transl", "joints", "boxes", "keypoints", "depth_layer")
        taken = {name: getattr(self, name)[people] for name in names}
        return dataclasses.replace(self, **taken, z_covariance=self.z_covariance[people][:, people])


@dataclass(frozen=True)
class View:
    """The camera an image is seen by: R, M and K'."""

    angle: float  # of R, about z, from x to y [rad]
    flip: bool
    intrinsics: np.ndarray  # (3, 3) float64 K' [px of the S x S input]

    @property
    def turn(self) -> np.ndarray:
        """(3, 3) float64 R M."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        return turn @ np.diag([-1.0 if self.flip else 1.0, 1, 1])


def draw_view(
    random: np.random.Generator, labels: ImageLabels, width: int, height: int, size: int, config: AugmentConfig
) -> View:
    """A camera at random.

    Args:
        random: where chance comes from; the same numbers are drawn whatever the config.
        labels: of the image as it is.
        width, height: of the image [px].
        size: S.
        config: ranges; `NO_AUGMENTATION` gives the whole picture, centred.
    """
    angle = np.deg2rad(config.max_angle) * random.uniform(-1, 1)
    scale = random.uniform(config.min_scale, config.max_scale)
    flip, crop = (random.random(2) < (config.flip, config.crop)).tolist()
    fx, fy = labels.intrinsics[0, 0], labels.intrinsics[1, 1]
    shape = np.array([width * fy / fx, height])  # in square pixels of the size of the picture's rows
    zoom = scale * size / shape.max()
    view = _centred(
        View(float(angle), flip, np.diag([fy * zoom, fy * zoom, 1])), labels.intrinsics, width, height, size
    )
    spread = np.abs(shape * zoom - size) / 2 * crop
    shift = random.uniform(-1, 1, 2) * spread
    shift = _keep_somebody(random, shift, spread, labels, view, size, config.crop_margin * size)
    moved = view.intrinsics.copy()
    moved[:2, 2] += shift
    return dataclasses.replace(view, intrinsics=moved)


def camera_problem(intrinsics: np.ndarray, width: int, height: int) -> str:
    """Why no picture of this size can have this camera, "" where it can: (3, 3) finite or not [px]."""
    focal, longer = intrinsics[[0, 1], [0, 1]], max(width, height)
    low, high = (share * longer for share in _FOCAL_RANGE)
    if not np.isfinite(intrinsics).all():
        return "its camera is not finite"
    if (focal < low).any() or (focal > high).any():
        return f"its focal lengths are {focal.tolist()} px; expected {low:g} .. {high:g}"
    if focal.max() > _LARGEST_SHEAR * focal.min():
        return f"its focal lengths {focal.tolist()} differ more than {_LARGEST_SHEAR:g} times"
    if np.abs(intrinsics[:2, 2]).max() > _FARTHEST_CENTRE * longer:
        return f"its principal point {intrinsics[:2, 2].tolist()} is far outside of the picture"
    return ""


def whole_view(intrinsics: np.ndarray, width: int, height: int, size: int) -> View:
    """The whole picture, as large as fits into S x S, its centre in the centre.

    Args:
        intrinsics: (3, 3) of the picture [px].
        width, height: of the picture [px].
        size: S.
    """
    fx, fy = intrinsics[0, 0], intrinsics[1, 1]
    focal = fy * size / max(width * fy / fx, height)
    return _centred(View(0.0, False, np.diag([focal, focal, 1])), intrinsics, width, height, size)


def view_affine(intrinsics: np.ndarray, view: View) -> np.ndarray:
    """Where the view shows a point of the picture.

    Args:
        intrinsics: (3, 3) K of the picture [px].

    Returns:
        (2, 3) float64 A: (u', v') = A (u, v, 1).
    """
    return (view.intrinsics @ view.turn @ np.linalg.inv(intrinsics))[:2]


def see_labels(labels: ImageLabels, view: View) -> ImageLabels:
    """The labels as the view's camera sees them.

    Joints, pelvis and keypoints are where the picture shows them. A mirrored body has its left and right exchanged; its
    joints are exact as far as the body model is symmetric about its pelvis. A box becomes the box of the ellipse that
    filled it, so that a turn does not inflate it. z and so `z_covariance` stay.
    """
    affine = view_affine(labels.intrinsics, view)
    names = np.array(MIRROR_JOINTS if view.flip else range(len(MIRROR_JOINTS)))
    joints = labels.joints[:, names].astype(np.float64) @ view.turn.T
    pelvis_offset = labels.joints[:, 0] - labels.transl  # of the body at rest: a pose does not move it
    keypoints = labels.keypoints[:, names] @ affine[:, :2].T + affine[:, 2]
    return dataclasses.replace(
        labels,
        intrinsics=view.intrinsics,
        pose=_turn_pose(labels.pose, view),
        transl=(joints[:, 0] - pelvis_offset).astype(np.float32),
        joints=joints.astype(np.float32),
        boxes=_move_boxes(labels.boxes, affine),
        keypoints=keypoints.astype(np.float32),
    )


def project_joints(labels: ImageLabels) -> np.ndarray:
    """(P, 24, 2) float32 image positions of the bodies' joints [px], NaN behind the camera or without a body."""
    z = labels.joints[..., 2:]
    known = labels.has_body[:, None, None] & (z > 0)
    ray = labels.joints / np.where(known, z, 1)
    return np.where(known, ray @ labels.intrinsics[:2].T, np.nan).astype(np.float32)


def warp_image(rgb: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """The picture as a view shows it: bilinear, averaged first where it shrinks, black outside.

    Args:
        rgb: (H, W, 3) uint8.
        affine: (2, 3) from picture to view, see `view_affine`.
        size: S.

    Returns:
        (S, S, 3) uint8.
    """
    picture = Image.fromarray(rgb)
    lengths = np.linalg.norm(affine[:, :2], axis=0)  # of a step along u and along v, in the view [px]
    smaller = [max(1, round(side * min(1.0, length))) for side, length in zip(picture.size, lengths, strict=True)]
    shrink = np.divide(smaller, picture.size)
    if (shrink < 1).any():
        picture = picture.resize((smaller[0], smaller[1]), Image.Resampling.BILINEAR)
    back = np.linalg.inv(np.vstack([affine @ np.diag([*(1 / shrink), 1]), [0, 0, 1]]))
    seen = picture.transform((size, size), Image.Transform.AFFINE, back[:2].ravel().tolist(), Image.Resampling.BILINEAR)
    return np.asarray(seen)


def jitter_colours(random: np.random.Generator, image: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Brightness, contrast and saturation at random: (S, S, 3) in [0, 1] float32 -> the same."""
    brightness, contrast, saturation = (
        np.float32(1 + random.uniform(-spread, spread))
        for spread in (config.brightness, config.contrast, config.saturation)
    )
    if brightness == contrast == saturation == 1:
        return image
    pixels = image.reshape(-1, 3)
    grey = np.float32((pixels @ _LUMA).mean())
    mix = (
        saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA[:, None]
    )  # RGB row @ mix: towards its grey
    varied = pixels @ (brightness * contrast * mix)
    varied += brightness * (1 - contrast) * grey
    return np.clip(varied, 0, 1, out=varied).reshape(image.shape)


def _centred(view: View, intrinsics: np.ndarray, width: int, height: int, size: int) -> View:
    """The view with its principal point such that the picture's centre lies in the centre of the input."""
    centre = view.intrinsics @ view.turn @ np.linalg.inv(intrinsics) @ [width / 2, height / 2, 1]
    moved = view.intrinsics.copy()
    moved[:2, 2] += size / 2 - centre[:2]
    return dataclasses.replace(view, intrinsics=moved)


def _keep_somebody(
    random: np.random.Generator,
    shift: np.ndarray,
    spread: np.ndarray,
    labels: ImageLabels,
    view: View,
    size: int,
    margin: float,
) -> np.ndarray:
    """A window that was moved at random, moved on until it holds the pelvis or the box of somebody."""
    boxes = labels.boxes[:, :2] / 2 + labels.boxes[:, 2:] / 2
    places = np.where(labels.has_body[:, None], project_joints(labels)[:, 0], boxes)
    somebody = random.random()  # drawn always, so that the next draws do not depend on the labels
    places = places[np.isfinite(places).all(axis=1)]
    if not len(places) or not spread.any():
        return shift
    affine = view_affine(labels.intrinsics, view)
    place = affine[:, :2] @ places[int(somebody * len(places))] + affine[:, 2]
    return np.clip(np.clip(shift, margin - place, size - margin - place), -spread, spread)


def _turn_pose(pose: np.ndarray, view: View) -> np.ndarray:
    """(P, 72) axis-angle, mirrored joint by joint, the root turned with the camera."""
    turned = pose.reshape(-1, len(MIRROR_JOINTS), 3)
    if view.flip:
        turned = turned[:, list(MIRROR_JOINTS)] * _MIRROR_AXIS
    if view.angle:
        turned = turned.copy()
        about_z = View(view.angle, False, view.intrinsics).turn
        root = axis_angle_to_matrix(torch.from_numpy(turned[:, 0].astype(np.float64)))
        turned[:, 0] = matrix_to_axis_angle(torch.from_numpy(about_z) @ root).numpy()
    return turned.reshape(pose.shape)


def _move_boxes(boxes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(P, 4): bounds of the ellipses inscribed in the boxes, under an affine map; exact without a turn."""
    centre = (boxes[:, :2] / 2 + boxes[:, 2:] / 2) @ affine[:, :2].T + affine[:, 2]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    reach = np.sqrt(half**2 @ (affine[:, :2] ** 2).T)
    return np.concatenate([centre - reach, centre + reach], axis=1).astype(np.float32)
