"""Writing people in the layout of CameraHMR's label files (`camerahmr` reads them): plain arrays, no pickles.

Knows that layout's names and units and nothing else. Equal input gives identical bytes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.sources.rows import LabelRows

_BOX_UNIT = 200.0  # `scale` is the box's size over this [px]


def write_camerahmr(path: Path, image_names: np.ndarray, rows: LabelRows, keypoints: np.ndarray | None = None) -> None:
    """Write a ``*-release.npz``, replacing an older one.

    Args:
        path: of the file; its folder is made if missing.
        image_names: (n,) str, relative to the images folder, repeated for each person of an image.
        rows: n people; an 11th shape coefficient is left out, this layout has ten.
        keypoints: (n, J, 3) u, v [px] and confidence, or None.

    Raises:
        ValueError: arrays of different lengths.
    """
    columns = _columns(np.asarray(image_names, dtype=np.str_), rows, keypoints)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: columns have lengths {lengths}; expected one row per person in each")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    write_bytes_atomic(path, buffer.getvalue())


def _columns(image_names: np.ndarray, rows: LabelRows, keypoints: np.ndarray | None) -> dict[str, np.ndarray]:
    left, top, right, bottom = rows.bbox_xyxy.T
    columns = {
        "imgname": image_names,
        "center": np.stack([(left + right) / 2, (top + bottom) / 2], axis=-1).astype(np.float32),
        "scale": (np.maximum(right - left, bottom - top) / _BOX_UNIT).astype(np.float32),
        "pose_cam": rows.pose.astype(np.float32),
        "shape": rows.betas[:, :10].astype(np.float32),
        "trans_cam": rows.transl.astype(np.float32),
        "cam_int": rows.intrinsics.astype(np.float64),
    }
    if keypoints is not None:
        columns["gtkps"] = keypoints.astype(np.float32)
    return columns
