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

Other keys are ignored. Numbers may be of any float or integer type. Rows of an image need not be adjacent.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.sources.rows import (
    MAX_NAME,
    LabelFileError,
    LabelSource,
    SourceOptions,
    check_shape,
    check_text,
    decode_names,
)

BOX_UNIT = 200.0  # scale is the box's size over this [px]
_KEYS: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {  # column -> its keys, shapes of a row
    "pose": (("pose_cam", "pose"), ((72,), (24, 3))),
    "betas": (("shape",), ((NUM_BETAS - 1,), (NUM_BETAS,))),
    "transl": (("trans_cam", "cam_t", "trans"), ((3,),)),
    "intrinsics": (("cam_int",), ((3, 3),)),
    "center": (("center",), ((2,),)),
    "scale": (("scale",), ((), (1,), (2,))),
}


def open_camerahmr(path: Path, options: SourceOptions = SourceOptions()) -> LabelSource:  # noqa: B008 - frozen
    """Open a ``*-release.npz``.

    Raises:
        LabelFileError: a key is missing, or of a wrong shape or type. FileNotFoundError: no such file.
        PickleRefused: not a whole npz, or an object array.
    """
    npz = NpzFile(path)
    people, found = check_text(npz, "imgname", "US", MAX_NAME), dict[str, str]()
    for name, (keys, shapes) in _KEYS.items():
        key = next((key for key in keys if key in npz.keys), None)
        if key is not None:
            found[name] = key
            check_shape(npz, key, people, shapes)
        elif name not in ("center", "scale"):
            raise LabelFileError(f"{path} has none of the keys {list(keys)}; it holds {npz.keys}")
    columns = {name: npz.array(key) for name, key in found.items()}
    if options.keypoints and "gtkps" in npz.keys:
        check_shape(npz, "gtkps", people, [(*npz.header("gtkps")[0][1:2], 3)])
        columns["keypoints"] = npz.array("gtkps")
    if {"center", "scale"} <= columns.keys():
        middle, sides = (columns[name].astype(np.float64).reshape(people, -1) for name in ("center", "scale"))
        columns["bbox_xyxy"] = square_boxes(middle, sides)
    return LabelSource([path], decode_names(npz.array("imgname")), columns)


def square_boxes(centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n, 4) boxes [px] around `centre` (n, 2) [px]; the largest of `scale` (n, k) counts, so that all sides fit in."""
    half = scale.max(axis=1, keepdims=True) * (BOX_UNIT / 2)
    return np.concatenate((centre - half, centre + half), axis=1)


def write_release_file(path: Path, image_names: np.ndarray, people: Mapping[str, np.ndarray]) -> None:
    """Write a ``*-release.npz`` of n people, replacing an older one; equal input gives identical bytes.

    `image_names` (n,) are relative to the images folder; `people` has the columns of `LabelSource.rows` that the file
    can hold. An 11th shape coefficient is left out.
    """
    left, top, right, bottom = people["bbox_xyxy"].T
    columns = {
        "imgname": np.asarray(image_names, dtype=np.str_),
        "center": np.stack([(left + right) / 2, (top + bottom) / 2], axis=-1).astype(np.float32),
        "scale": (np.maximum(right - left, bottom - top) / BOX_UNIT).astype(np.float32),
        "pose_cam": people["pose"].astype(np.float32),
        "shape": people["betas"][:, :10].astype(np.float32),
        "trans_cam": people["transl"].astype(np.float32),
        "cam_int": people["intrinsics"].astype(np.float64),
    }
    if "keypoints" in people:
        columns["gtkps"] = people["keypoints"].astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    write_bytes_atomic(path, buffer.getvalue())
