"""What the losses compare with: labels of a batch as joints, boxes and rotations; what is unknown becomes a mask.

Pure tensors and the body model. After `build_targets` no NaN is left: a number behind a False mask is 0 and may enter
arithmetic without spoiling gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.maths.camera import project
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch

LOSS_JOINTS = 22  # of SMPL's 24; the hands' joints repeat the wrists
_NEAREST = 0.05  # joints nearer to the camera's plane than this have no image [m]
_LEAST_SIDE = 1.0  # a box narrower than this shows nobody [px]


@dataclass(frozen=True)
class Targets:
    """P people of B images.

    Attributes:
        known: (B, P) bool, somebody whose box is known and inside the image: all others are not there.
        has_body: (B, P) bool, known and with pose, betas and transl.
        has_camera: (B,) bool, the field of view may be learnt.
        rotations: (B, P, 24, 3, 3); pose: (B, P, 72) the same [rad]; betas: (B, P, 11); transl: (B, P, 3) [m].
        joints: (B, P, 22, 3) relative to the pelvis [m].
        image_joints: (B, P, 22, 2) [px]; visible: (B, P, 22) bool, known, before the camera and inside the image.
        boxes: (B, P, 4) left, top, right, bottom, cut to the image [px].
        fov: (B,) vertical field of view of the input [rad].
        z_covariance: (B, P, P) [m2]; NaN = unknown, used behind `isfinite` only.
        depth_layer: (B, P) int64, -1 = unknown.
        side: S [px].
    """

    known: torch.Tensor
    has_body: torch.Tensor
    has_camera: torch.Tensor
    rotations: torch.Tensor
    pose: torch.Tensor
    betas: torch.Tensor
    transl: torch.Tensor
    joints: torch.Tensor
    image_joints: torch.Tensor
    visible: torch.Tensor
    boxes: torch.Tensor
    fov: torch.Tensor
    z_covariance: torch.Tensor
    depth_layer: torch.Tensor
    side: int


@torch.no_grad()
def build_targets(batch: TrainBatch, body: BodyModel) -> Targets:
    """Everything the losses need of the labels of B images, on the batch's device."""
    side = batch.image.shape[-1]
    finite = torch.stack([part.isfinite().all(-1) for part in (batch.pose, batch.betas, batch.transl)]).all(0)
    has_body = batch.present & batch.has_body & finite
    pose, betas, transl = (_where(has_body, part) for part in (batch.pose, batch.betas, batch.transl))
    rotations = axis_angle_to_matrix(pose.unflatten(-1, (24, 3)))
    joints = body.posed_joints(rotations, betas)
    points = joints + transl[..., None, :]
    in_front = points[..., 2] > _NEAREST
    projected = project(points.clamp(min=-1e4), batch.intrinsics[:, None, None])
    seen = has_body[..., None] & in_front
    marked = batch.present[..., None] & batch.keypoints.isfinite().all(-1)
    image_joints = torch.where(seen[..., None], projected, _where(marked & ~has_body[..., None], batch.keypoints))
    has_image = seen | (marked & ~has_body[..., None])
    boxes, boxed = _choose_boxes(batch, image_joints, has_image, side)
    inside = ((image_joints >= 0) & (image_joints <= side)).all(-1)
    known = batch.present & boxed
    focal = batch.intrinsics[:, 1, 1]
    has_camera = batch.has_camera & focal.isfinite() & (focal > 0)
    return Targets(
        known=known,
        has_body=known & has_body,
        has_camera=has_camera,
        rotations=rotations,
        pose=pose,
        betas=betas,
        transl=transl,
        joints=(joints - joints[..., :1, :])[..., :LOSS_JOINTS, :],
        image_joints=_where(has_image, image_joints)[..., :LOSS_JOINTS, :],
        visible=(has_image & inside & known[..., None])[..., :LOSS_JOINTS],
        boxes=boxes,
        fov=2 * torch.atan(side / (2 * torch.where(has_camera, focal, focal.new_tensor(float(side))))),
        z_covariance=batch.z_covariance,
        depth_layer=torch.where(known, batch.depth_layer, -1),
        side=side,
    )


def _choose_boxes(
    batch: TrainBatch, image_joints: torch.Tensor, has_image: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (B, P, 4) cut to the image, of the labels or else around the joints, and (B, P) whether there is one."""
    far = torch.finfo(image_joints.dtype).max
    low = torch.where(has_image[..., None], image_joints, far).amin(-2)
    high = torch.where(has_image[..., None], image_joints, -far).amax(-2)
    given = batch.boxes.isfinite().all(-1)
    boxes = torch.where(given[..., None], batch.boxes, torch.cat([low, high], dim=-1)).clamp(0, side)
    large = ((boxes[..., 2:] - boxes[..., :2]) >= _LEAST_SIDE).all(-1)
    boxed = batch.present & large & (given | has_image.any(-1))
    return _where(boxed, boxes), boxed


def _where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` with 0 where the mask, which lacks trailing axes, is False."""
    mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
