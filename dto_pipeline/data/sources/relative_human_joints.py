"""What RelativeHuman says about a person, and its keypoint layouts turned into the 14 joints of its metrics.

Knows three layouts (14 joints, 19 joints in "BK" order, 19 joints in OCHuman order) and the rule that tells the last
two apart, the length of the file name. Opens no file. Positions in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AGES = ("adult", "teen", "kid", "baby")  # by code
GENDERS = ("male", "female")  # by code
UNKNOWN = -1  # code of an unknown layer, age or gender

EVALUATED_JOINTS = (
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
    *("head_top", "neck"),
)
BK_JOINTS = (
    *("head_top", "nose", "neck", "left_eye", "right_eye", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle", "left_big_toe", "right_big_toe"),
)
OCHUMAN_JOINTS = (
    *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("head_top", "neck", "right_ear", "left_ear", "nose", "right_eye", "left_eye"),
)
BK_NAME_LENGTH = 7  # characters of a file name, without .jpg, whose 19 joints are in BK order
UNLABELLED = -2.0  # position given to a joint that is invisible or absent [px]


class KeypointLayoutError(ValueError):
    """Keypoints in none of the three layouts; the message says what was found."""


@dataclass(frozen=True)
class Annotation:
    """One annotated person."""

    kp2d: np.ndarray | None  # (14, 3) or (19, 3) x, y [px], visible; None = without keypoints
    depth_id: int  # layer, 0 = nearest, -1 = unknown
    age: int  # index into AGES, -1 = unknown
    gender: int = UNKNOWN  # index into GENDERS, -1 = unknown
    bbox_xyxy: tuple[float, float, float, float] | None = None  # of the visible part [px]; None = unknown


def joint_layout(num_joints: int, file_name: str) -> tuple[str, ...]:
    """Names of the annotated joints, in order.

    Raises:
        KeypointLayoutError: neither 14 nor 19 joints.
    """
    if num_joints == len(EVALUATED_JOINTS):
        return EVALUATED_JOINTS
    if num_joints == len(BK_JOINTS):
        stem = file_name.replace("\\", "/").rpartition("/")[2].replace(".jpg", "")
        return BK_JOINTS if len(stem) == BK_NAME_LENGTH else OCHUMAN_JOINTS
    raise KeypointLayoutError(f"{file_name}: a person has {num_joints} keypoints; expected 14 or 19, or none at all")


def evaluated_joints(kp2d: np.ndarray, file_name: str) -> tuple[np.ndarray, np.ndarray]:
    """One person's annotation on the 14 evaluated joints.

    The neck of 19-joint annotations is left out: the two data sets place it elsewhere than the 14-joint layout does.

    Args:
        kp2d: (14, 3) or (19, 3) x, y [px] and visibility (visible where positive and x, y finite).
        file_name: of the image; its length decides between the layouts of 19.

    Returns:
        (14, 2) float32 positions [px], `UNLABELLED` where not visible, and (14,) bool visible.

    Raises:
        KeypointLayoutError: another number of joints, or rows that are not (x, y, visible).
    """
    points = np.asarray(kp2d, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3:
        raise KeypointLayoutError(f"{file_name}: keypoints of shape {points.shape}; expected (14, 3) or (19, 3)")
    rows = _rows_of_evaluated(joint_layout(len(points), file_name))
    taken = points[rows]
    visible = (rows >= 0) & (taken[:, 2] > 0) & np.isfinite(taken[:, :2]).all(axis=1)
    return np.where(visible[:, None], taken[:, :2], np.float32(UNLABELLED)), visible


def _rows_of_evaluated(layout: tuple[str, ...]) -> np.ndarray:
    """(14,) int64 row of each evaluated joint in `layout`, -1 where it has none that is evaluated."""
    evaluated = EVALUATED_JOINTS if layout is EVALUATED_JOINTS else EVALUATED_JOINTS[:-1]
    rows = [layout.index(name) if name in evaluated else -1 for name in EVALUATED_JOINTS]
    return np.array(rows, dtype=np.int64)
