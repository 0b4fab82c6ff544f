"""What one training step sees: B images of one square size and their people, padded to P.

Knows shapes and devices; knows neither files nor networks. Pixels are those of the S x S network input, after every
augmentation; metres and radians in the camera frame of that input.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainBatch:
    """Images with their labels; a missing label is a mask that is False (or NaN), never a made-up number.

    Attributes:
        image: (B, 3, S, S) float32 RGB in [0, 1]; outside the photograph 0.
        intrinsics: (B, 3, 3) float32 camera of the augmented image [px]; the principal point is where it is.
        has_camera: (B,) bool, the label's focal length may be learnt.
        present: (B, P) bool, False = padding.
        has_body: (B, P) bool, pose, betas and transl are labels; False for people known in the picture only.
        pose: (B, P, 72) axis-angle, root first [rad].
        betas: (B, P, 11).
        transl: (B, P, 3) SMPL's transl, not the pelvis [m].
        boxes: (B, P, 4) left, top, right, bottom [px]; NaN = unknown, to be taken from the projected joints.
        keypoints: (B, P, 24, 2) image positions of SMPL's joints for people without a body [px]; NaN = unknown.
        z_covariance: (B, P, P) posterior covariance of people's z [m2]; NaN = unknown.
        depth_layer: (B, P) int64 ordinal depth layer, 0 nearest; -1 = unknown.
        image_ids: B keys; "" = a black image in the place of a batch of which nothing could be read.
        skipped: "key: reason" of each image of this batch that could not be read and is not in it.
    """

    image: torch.Tensor
    intrinsics: torch.Tensor
    has_camera: torch.Tensor
    present: torch.Tensor
    has_body: torch.Tensor
    pose: torch.Tensor
    betas: torch.Tensor
    transl: torch.Tensor
    boxes: torch.Tensor
    keypoints: torch.Tensor
    z_covariance: torch.Tensor
    depth_layer: torch.Tensor
    image_ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if field.name not in ("image_ids", "skipped")
        }
        return dataclasses.replace(self, **moved)
