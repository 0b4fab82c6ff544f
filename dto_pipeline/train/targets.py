"""The people of an image: as labels (`ImageLabels`, from any source), and as training targets of the varied image.

Metres before the camera, radians, pixels, shares of the input size S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.label_files import NO_LIMITS, LabelColumns, Limits
from dto_pipeline.data.labels import unpack_covariance
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import Tensors
from dto_pipeline.status import UNUSED, PersonStatus, UnusableImage
from dto_pipeline.train import augment
from dto_pipeline.train.blocks import z_order
from dto_pipeline.train.config import CELL, AugmentConfig, DataConfig

SMPL_JOINTS, TREE_JOINTS, ANNOTATED_JOINTS = 45, 24, 26  # of smplx, of SMPL's tree, of the tree with head top and neck
RH_JOINTS = 14  # that RelativeHuman annotates, with head top and neck
BOX_GROWTH = 1.2  # of a box about its centre, to hold skin and clothes around the joints
_HIPS, _BODY = [1, 2], ("pose", "betas", "transl")
_FIRST_JOINTS = 22  # a variation is rejected if a person shows none of these
_LEAST_SIDE = 1e-6  # of a box, share of S
_LEAST_SEEN = 2  # joints that make a box
_SQUARE = 1e-3  # fx / fy may differ by this before an image is stretched to square pixels
_ABSURD = 1e4  # of angles [rad], shape coefficients and places [m]: such labels are not used


@dataclass(frozen=True)
class Targets(Tensors):
    """The N people of B images, image after image. Missing labels are marked by False, 0 or -1, never invented."""

    image: torch.Tensor  # (N,) int64 ascending, the image of each person
    has_body: torch.Tensor  # (N,) bool, pose, shape and place are labels; False for people known in the picture only
    boxes: torch.Tensor  # (N, 4) cx, cy, w, h
    poses: torch.Tensor  # (N, 72) axis-angle
    betas: torch.Tensor  # (N, 11)
    j3ds: torch.Tensor  # (N, 45, 3) [m]
    j2ds: torch.Tensor  # (N, J, 2) [px]; J = 45, or 47 with head top and neck
    j2ds_mask: torch.Tensor  # (N, J, 2) bool, where they count
    num_joints: torch.Tensor  # (N,) how many joints such labels have, seen or not: 45, or RelativeHuman's 14
    transl: torch.Tensor  # (N, 3) SMPL's transl [m]
    pelvis_z: torch.Tensor  # (N,) [m]
    focals: torch.Tensor  # (N,) [px], 0 = unknown
    depth_layer: torch.Tensor  # (N,) int64 ordinal layer of depth, 0 nearest, -1 = unknown
    z_covariance: torch.Tensor  # (N, P) of z with the k-th person of the image [m2], NaN = unknown; or empty
    scale_map: torch.Tensor  # (T, 2) of the 28 px cells: 1 where a person is, and its size
    cell_image: torch.Tensor  # (T,) int64
    complete: torch.Tensor  # (B,) bool, everybody in the image is labelled
    mapped: torch.Tensor  # (B,) bool, the cells of everybody labelled are known
    heights: torch.Tensor  # (B,) [px] without padding
    image_focals: torch.Tensor  # (B,) [px], 0 = unknown
    intrinsics: torch.Tensor  # (B, 3, 3) camera of the varied image; guessed where unknown


@dataclass(frozen=True)
class ImageLabels:
    """The P people of one image. Arrays are not changed in place."""

    intrinsics: np.ndarray  # (3, 3) float64 [px]
    has_camera: bool
    has_body: np.ndarray  # (P,) bool; pose, betas and transl mean nothing where it is False
    pose: np.ndarray  # (P, 72) float32 axis-angle, root first
    betas: np.ndarray  # (P, 11) float32
    transl: np.ndarray  # (P, 3) float32 [m]
    boxes: np.ndarray  # (P, 4) float32 left, top, right, bottom [px], NaN = unknown
    keypoints: np.ndarray  # (P, 26, 2) float32 of people without a body [px], NaN = unknown
    z_covariance: np.ndarray  # (P, P) float32 [m2], NaN = unknown
    depth_layer: np.ndarray  # (P,) int64, -1 = unknown
    trusted: bool = True  # poses, shapes and distances are labels; False: only places in the picture are
    complete: bool = True  # all people in the image are labelled


def unknown_people(count: int, intrinsics: np.ndarray) -> ImageLabels:
    """People whose labels are all unknown, seen by a camera (3, 3) that is a guess."""
    nothing = {"pose": (72,), "betas": (NUM_BETAS,), "transl": (3,)}
    unknown = {"boxes": (4,), "keypoints": (ANNOTATED_JOINTS, 2), "z_covariance": (count,)}
    arrays: dict[str, Any] = {name: np.zeros((count, *shape), np.float32) for name, shape in nothing.items()}
    arrays |= {name: np.full((count, *shape), np.nan, np.float32) for name, shape in unknown.items()}
    return ImageLabels(intrinsics, False, np.zeros(count, bool), **arrays, depth_layer=np.full(count, -1, np.int64))


def guess_camera(width: int, height: int) -> np.ndarray:
    """(3, 3) camera of a photograph whose own is unknown: the longer side is the focal length. Never trained on."""
    return np.array([[max(width, height), 0, width / 2], [0, max(width, height), height / 2], [0, 0, 1]])


def build_labels(columns: LabelColumns, row: int, width: int, height: int, limits: Limits = NO_LIMITS) -> ImageLabels:
    """The people of image `row` of a piece, a photograph of `width` x `height` px. Of bodies beyond the limits only the
    place in the picture is used; people without body and place are left out. Raises: UnusableImage: the camera cannot
    belong to the photograph, or the covariance has another number of people."""
    part = slice(int(columns.starts[row]), int(columns.starts[row + 1]))
    own = {name: values[part] for name, values in columns.people.items()}
    body = np.concatenate([own[name] for name in _BODY], axis=1)
    intrinsics, people = columns.intrinsics[row], len(body)
    has_camera = not np.isnan(intrinsics).any()
    if has_camera and (problem := augment.camera_problem(intrinsics, width, height)):
        raise UnusableImage(problem)
    has_body = has_camera & (np.abs(body) < _ABSURD).all(axis=1)  # NaN is not
    has_body &= (own["transl"][:, 2] > 0) & ~np.isin(own["status"], UNUSED)
    packed, sigma = columns.images["z_covariance"][row], own.get("z_sigma_m")
    if packed is not None and len(packed) != people * (people + 1) // 2:
        raise UnusableImage(f"its z_covariance has {len(packed)} numbers; expected the triangle of {people} people")
    if sigma is not None:
        has_body &= limits.people(sigma)
    alone = np.full(people, np.nan) if sigma is None else np.square(sigma.astype(np.float64))
    covariance = np.diag(alone) if packed is None else unpack_covariance(packed, people)

    known = has_body | np.isfinite(own["bbox_xyxy"]).all(axis=1)
    if "keypoints" in own:
        known |= np.isfinite(own["keypoints"]).any(axis=(1, 2))
    duplicate = own["status"] == str(PersonStatus.DUPLICATE)
    kept = np.flatnonzero(known & (has_body | ~duplicate))
    bodies: dict[str, Any] = {name: np.where(has_body[:, None], own[name], 0)[kept] for name in _BODY}
    bodies = {name: values.astype(np.float32) for name, values in bodies.items()}
    return replace(
        unknown_people(len(kept), intrinsics if has_camera else guess_camera(width, height)),
        has_camera=has_camera,
        has_body=has_body[kept],
        **bodies | {name: own[name][kept] for name in ("keypoints", "depth_layer") if name in own},
        boxes=own["bbox_xyxy"][kept].astype(np.float32),
        z_covariance=covariance[kept][:, kept].astype(np.float32),
        complete=bool((known | duplicate).all()),
    )


def square_pixels(size: tuple[int, int], labels: ImageLabels) -> tuple[tuple[int, int], ImageLabels]:
    """Size of a photograph and its labels, stretched sideways where fx and fy differ, because the network has one focal
    length. The pixels follow when the photograph is resized."""
    fx, fy = labels.intrinsics[0, 0], labels.intrinsics[1, 1]
    if abs(fx / fy - 1) <= _SQUARE:
        return size, labels
    width = max(1, round(size[0] * fy / fx))
    grow = np.array([width / size[0], 1.0])
    return (width, size[1]), replace(
        labels,
        intrinsics=np.diag([fy / fx, 1, 1]) @ labels.intrinsics,
        boxes=(labels.boxes * np.tile(grow, 2)).astype(np.float32),
        keypoints=(labels.keypoints * grow).astype(np.float32),
    )


class Rules(NamedTuple):
    """Settings that turn labels into targets."""

    body: BodyModel  # of the labels, on the CPU
    data: DataConfig
    augment: AugmentConfig


class Seen(NamedTuple):
    """Targets of a varied image."""

    targets: dict[str, np.ndarray]  # by name of `Targets`, of this image: (P, ...), (T, 2), (1, ...)
    frame: augment.Frame
    good: bool  # there are people, and each of them is visible


def see_people(labels: ImageLabels, size: tuple[int, int], draw: augment.Draw, rules: Rules) -> Seen:
    """Labels -> targets of a varied image; `size`: width and height of the photograph [px]."""
    config, side, shaped = rules.augment, rules.data.input_size, labels.has_body
    people = (labels.pose, labels.betas, labels.transl, labels.intrinsics[None])
    varied = augment.vary(*people, size, side, draw, rules.body, config.as_published)
    points, inside, boxes = _find_in_image(labels, draw, varied, rules)
    # a body must show enough joints; a person without a body must show one, or have a box wider than a pixel
    enough = np.where(shaped, inside.sum(1) >= rules.data.min_joints, inside.any(1) | (boxes[:, 2:] > 1 / side).all(1))
    enough &= np.isfinite(boxes).all(1) & (boxes[:, 2:] > _LEAST_SIDE).all(1)
    kept, pelvis_z = np.flatnonzero(enough), varied.joints[:, 0, 2]
    nearest = np.argsort(np.where(shaped, pelvis_z, np.inf)[kept], kind="stable")[: rules.data.max_people]
    kept = np.sort(kept[nearest])
    shaped, inside = shaped[kept], inside[kept]
    smpl = shaped[:, None] & (np.arange(inside.shape[1]) < SMPL_JOINTS)
    counted = inside | (smpl & config.as_published)
    focal = float(varied.intrinsics[0, 0, 0]) if labels.has_camera else 0.0
    parts = (varied.pose, labels.betas, varied.transl, boxes)
    poses, betas, transl, boxes = (np.ascontiguousarray(part[kept], dtype=np.float32) for part in parts)

    # the scale map of those who have a body
    vertices = rules.body.vertices(*(torch.from_numpy(part[shaped]) for part in (poses, betas, transl))).numpy()
    places = augment.project_points(vertices.astype(np.float64), varied.intrinsics, behind=config.as_published)
    distance, scale = pelvis_z[kept][shaped] / varied.intrinsics[0, 0, 0], np.hypot(*boxes[shaped, 2:].T).clip(0, 1)
    cells = mark_cells(places, distance, scale, varied.frame.size, mesh_edges(rules.body), config.as_published)
    targets = {
        "has_body": shaped & labels.trusted,
        "boxes": boxes,
        "poses": poses,
        "betas": betas,
        "j3ds": varied.joints[kept].astype(np.float32),
        "j2ds": np.where(counted[..., None], points[kept], 0).astype(np.float32),
        "j2ds_mask": np.repeat(counted[..., None], 2, axis=-1),
        "num_joints": np.where(shaped, SMPL_JOINTS, RH_JOINTS).astype(np.float32),
        "transl": transl,
        "pelvis_z": pelvis_z[kept].astype(np.float32),
        "focals": np.full(len(kept), focal, np.float32),
        "depth_layer": labels.depth_layer[kept],
        "z_covariance": labels.z_covariance[kept][:, kept],
        "scale_map": cells,
        "complete": np.array([labels.complete]),
        "mapped": np.array([config.as_published or bool(shaped.all())]),
        "heights": np.array([varied.frame.size[1]], np.float32),
        "image_focals": np.array([focal], np.float32),
        "intrinsics": varied.intrinsics.astype(np.float32),
    }
    good = bool(len(kept)) and bool((~shaped | inside[:, :_FIRST_JOINTS].any(1)).all())
    return Seen(targets, varied.frame, good)


def _find_in_image(
    labels: ImageLabels, draw: augment.Draw, varied: augment.Varied, rules: Rules
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the varied image: joints (P, J, 2) [px], projected for bodies and annotated for others; (P, J) whether
    they are known and inside; boxes (P, 4) around them, for others joined with the labelled box."""
    side, shaped, frame = rules.data.input_size, labels.has_body, varied.frame
    names = [*(augment.MIRROR_JOINTS if draw.flip else range(TREE_JOINTS)), *range(TREE_JOINTS, ANNOTATED_JOINTS)]
    annotated = augment.move_points(labels.keypoints[:, names], frame)
    if rules.augment.as_published:
        annotated[:, _HIPS] = np.nan
    extra = ANNOTATED_JOINTS - TREE_JOINTS if rules.data.regressor else 0
    points = np.full((len(annotated), SMPL_JOINTS + extra, 2), np.nan)
    points[~shaped, :TREE_JOINTS] = annotated[~shaped, :TREE_JOINTS]
    points[~shaped, SMPL_JOINTS:] = annotated[~shaped, TREE_JOINTS : TREE_JOINTS + extra]
    points[shaped, :SMPL_JOINTS] = varied.image_joints[shaped]
    known = np.isfinite(points).all(-1)
    if not rules.augment.as_published:
        known[:, :SMPL_JOINTS] &= ~shaped[:, None] | (varied.joints[..., 2] > 0)
    points = np.nan_to_num(points)
    inside = augment.inside_image(points, frame) & known

    own = person_boxes(points, np.where(shaped[:, None], known, inside), frame.size, side)
    corners = labels.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64)
    given = augment.move_points(corners, frame) / side
    low, high = given.min(1), given.max(1)
    enough = (inside.sum(1) >= _LEAST_SEEN)[:, None] & np.isfinite(own).all(1)[:, None]
    low = np.where(enough, np.fmin(low, own[:, :2] - own[:, 2:] / 2), low)
    high = np.where(enough, np.fmax(high, own[:, :2] + own[:, 2:] / 2), high)
    joined = cut_boxes((low + high) / 2, high - low, frame.size, side)
    return points, inside, np.where(shaped[:, None], own, joined)


def person_boxes(points: np.ndarray, seen: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Joints (P, J, 2) [px], which of them count (P, J), size w, h [px], S -> boxes (P, 4) around them, 1.2 times as
    large, cut to the image: cx, cy, w, h as shares of S; NaN without joints."""
    low = np.where(seen[..., None], points, np.inf).min(1, initial=np.inf) / side
    high = np.where(seen[..., None], points, -np.inf).max(1, initial=-np.inf) / side
    known = seen.any(1, keepdims=True)
    low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
    return cut_boxes((low + high) / 2, (high - low) * BOX_GROWTH, size, side)


def cut_boxes(centre: np.ndarray, extent: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Centre and extent (P, 2) as shares of S -> (P, 4) cx, cy, w, h with corners in [1e-6, (w - 1) / S]."""
    most = (np.array(size) - 1) / side
    first, last = (np.clip(centre + sign * extent / 2, 1e-6, most) for sign in (-1, 1))
    return np.concatenate([(first + last) / 2, last - first], axis=1)


def mark_cells(
    points: np.ndarray, distance: np.ndarray, scale: np.ndarray, size: tuple[int, int], edges: np.ndarray, clamp: bool
) -> np.ndarray:
    """The scale map of an image, (n, 2) float32 in Z-order of its 28 px cells: 1 where a person is, and its scale.

    `points`, `distance`, `scale`: (P, V, 2) vertices [px], NaN behind the camera, (P,) depth by focal, (P,) size;
    `size`, `edges`: w, h of the image without padding, (E, 2) vertices whose middle counts as well; `clamp`: vertices
    outside mark the cells at the border, as published.
    """
    columns, rows = (-(-side // CELL) for side in size)
    grid = np.zeros((rows + rows % 2, columns + columns % 2, 2), np.float32)
    for person in np.argsort(-distance, kind="stable"):
        own = np.ascontiguousarray(points[person].T)
        cell = np.floor(own / CELL)
        first, second = edges[(cell[:, edges[:, 0]] != cell[:, edges[:, 1]]).any(0)].T  # others add no cell
        x, y = np.concatenate([cell, np.floor((own[:, first] + own[:, second]) / 2 / CELL)], axis=1)
        if clamp:
            x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
        inside = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)  # NaN is not
        grid[y[inside].astype(np.int64), x[inside].astype(np.int64)] = 1, scale[person]
    y, x = z_order(*grid.shape[:2])
    return grid[y.numpy(), x.numpy()]


@lru_cache(maxsize=4)
def mesh_edges(body: BodyModel) -> np.ndarray:
    """(E, 2) edges of the body's triangles, each once."""
    faces = body.faces.cpu().numpy()
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return np.unique(pairs, axis=0)
