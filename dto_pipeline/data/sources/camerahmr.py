"""CameraHMR's label files ``{insta1,insta2,aic,coco,mpii}-release.npz``: plain arrays, one row per person.

| key (first found wins)   | shape                 | becomes                                       |
|--------------------------|-----------------------|-----------------------------------------------|
| imgname                  | (N,) text             | image of the row, relative path               |
| pose_cam, pose           | (N, 72) or (N, 24, 3) | pose, axis-angle [rad], root first            |
| shape                    | (N, 10) or (N, 11)    | betas; the 11th (kid axis) is 0 if absent     |
| trans_cam, cam_t, trans  | (N, 3)                | transl [m]                                    |
| cam_int                  | (N, 3, 3)             | intrinsics [px]                               |
| center, scale (optional) | (N, 2), (N,) or (N, 2) | bbox_xyxy [px]: centre -+ scale * 200 / 2    |
| gtkps (optional)         | (N, >= 44, 3)         | keypoints: u, v [px], confidence; if asked    |

Other keys are not read. Numbers may be of any float or integer type. Rows of an image need not be adjacent.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.npz import MappedNpz, NpzError
from dto_pipeline.data.sources.rows import (
    LabelFileError,
    LabelRows,
    LabelSource,
    SourceOptions,
    check_shape,
    decode_names,
    pick,
    pick_betas,
)

_BOX_UNIT = 200.0  # scale is the box's size over this [px]


def open_camerahmr(path: Path, options: SourceOptions = SourceOptions()) -> LabelSource:  # noqa: B008 - frozen
    """Open a ``*-release.npz``.

    Raises:
        LabelFileError: no such file, not an npz, or a key is missing, of a wrong shape or type, or an object array.
    """
    try:
        return _open(MappedNpz(path), options.keypoints)
    except FileNotFoundError as error:
        raise LabelFileError(f"label file {path} does not exist; check --data-root and the dataset YAML") from error
    except NpzError as error:
        raise LabelFileError(str(error)) from error


def _open(npz: MappedNpz, with_keypoints: bool) -> LabelSource:
    path, names = npz.path, npz.array("imgname")
    if names.ndim != 1 or names.dtype.kind not in "US" or names.size == 0:
        found = f"{names.dtype} {names.shape}"
        raise LabelFileError(f"{path}, key 'imgname': {found}; expected text (N,) with at least one row")

    def numbers(keys: tuple[str, ...], *tails: tuple[int, ...]) -> np.ndarray:
        """The array under the first of `keys` that exists, checked to be numbers of shape (N, *tail)."""
        key = next((key for key in keys if key in npz.keys), None)
        if key is None:
            raise LabelFileError(f"{path} has none of the keys {list(keys)}; it holds {npz.keys}")
        array = npz.array(key)
        check_shape(path, key, array, names.size, tails)
        return array

    pose = numbers(("pose_cam", "pose"), (72,), (24, 3))
    betas = numbers(("shape",), (NUM_BETAS - 1,), (NUM_BETAS,))
    transl = numbers(("trans_cam", "cam_t", "trans"), (3,))
    intrinsics = numbers(("cam_int",), (3, 3))
    centre = scale = keypoints = None
    if {"center", "scale"} <= set(npz.keys):
        centre, scale = numbers(("center",), (2,)), numbers(("scale",), (), (1,), (2,))
    if with_keypoints and "gtkps" in npz.keys:
        keypoints = npz.array("gtkps")
        check_shape(path, "gtkps", keypoints, names.size, [(*keypoints.shape[1:2], 3)])

    def boxes(index: np.ndarray) -> np.ndarray:
        if centre is None or scale is None:
            return np.full((index.size, 4), np.nan, np.float32)
        middle = pick(centre, index, (2,), np.float64)
        sides = pick(scale, index, (scale[:1].size,), np.float64)
        half = sides.max(axis=1, keepdims=True) * (_BOX_UNIT / 2)  # the square that holds both sides
        return np.concatenate((middle - half, middle + half), axis=1).astype(np.float32)

    def rows(index: np.ndarray) -> LabelRows:
        return LabelRows(
            pose=pick(pose, index, (72,)),
            betas=pick_betas(betas, index),
            transl=pick(transl, index, (3,)),
            bbox_xyxy=boxes(index),
            intrinsics=pick(intrinsics, index, (3, 3), np.float64),
            keypoints=None if keypoints is None else pick(keypoints, index, keypoints.shape[1:]),
        )

    return LabelSource([path], names.size, lambda start, stop: decode_names(names[start:stop]), rows)


def write_camerahmr(path: Path, image_names: np.ndarray, rows: LabelRows, keypoints: np.ndarray | None = None) -> None:
    """Write a ``*-release.npz``, replacing an older one; equal input gives identical bytes.

    Args:
        image_names: (n,) str, relative to the images folder, repeated for each person of an image.
        rows: n people; an 11th shape coefficient is left out, this layout has ten.
        keypoints: (n, J, 3) u, v [px] and confidence, or None.

    Raises:
        ValueError: arrays of different lengths.
    """
    left, top, right, bottom = rows.bbox_xyxy.T
    columns = {
        "imgname": np.asarray(image_names, dtype=np.str_),
        "center": np.stack([(left + right) / 2, (top + bottom) / 2], axis=-1).astype(np.float32),
        "scale": (np.maximum(right - left, bottom - top) / _BOX_UNIT).astype(np.float32),
        "pose_cam": rows.pose.astype(np.float32),
        "shape": rows.betas[:, :10].astype(np.float32),
        "trans_cam": rows.transl.astype(np.float32),
        "cam_int": rows.intrinsics.astype(np.float64),
    }
    if keypoints is not None:
        columns["gtkps"] = keypoints.astype(np.float32)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: columns have lengths {lengths}; expected one row per person in each")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    write_bytes_atomic(path, buffer.getvalue())
