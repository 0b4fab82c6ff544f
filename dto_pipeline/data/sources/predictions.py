"""Read any network's predicted people: one plain file, npz or Parquet, one row per person.

| column (* required)     | shape in npz            | meaning                                                         |
|-------------------------|-------------------------|-----------------------------------------------------------------|
| image *                 | (N,) text               | image of the row, relative to the images folder                 |
| pose *                  | (N, 72) or (N, 24, 3)   | axis-angle [rad], root first, camera frame                      |
| betas *                 | (N, 10) or (N, 11)      | shape; the 11th (kid axis) is 0 if absent                       |
| transl *                | (N, 3)                  | added after skinning [m], for the camera of this row            |
| intrinsics              | (N, 3, 3)               | camera transl was predicted for [px]                            |
| focal                   | (N,) or (N, 2)          | instead: focal length [px], principal point in the image centre |
| det_score               | (N,)                    | score of the detector, larger is surer                          |
| bbox_xyxy               | (N, 4)                  | left, top, right, bottom [px]                                   |
| keypoints               | (N, J, 3)               | u, v [px] and confidence 0 .. 1; J says the order, see below    |
| age_years, male_prob    | (N,), (N,)              | as in the sidecar                                               |
| mask_rle                | (N,) bytes              | instance mask, COCO compressed run lengths; empty = none        |
| mask_height, mask_width | (N,), (N,)              | size of the mask [px] = size of the image                       |

In Parquet these columns hold strings, numbers, binary, and lists of numbers; a list is the flattened array of a row
(keypoints: J * 3 numbers). Values may be null or NaN: unknown. Keypoints are in the order of smplx (J = 45), COCO (17)
or OpenPose BODY_25 (25, also the first 25 of the 44 of 4D-Humans). Other columns are refused, because they may be
misspelt. Rows of an image need not be adjacent. Files are read into memory, 0.4 to 1 kB a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.sources.rows import (
    MAX_NAME,
    LabelFileError,
    LabelSource,
    Shapes,
    check_shape,
    check_text,
    decode_names,
    read_table,
)
from dto_pipeline.reading import read_start

NUM_KEYPOINTS = 45  # smplx's joints
_BODY_25 = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34)
_COCO = (24, 26, 25, 28, 27, 16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8)
KEYPOINT_ORDERS = {17: _COCO, 25: _BODY_25, 44: _BODY_25, NUM_KEYPOINTS: tuple(range(NUM_KEYPOINTS))}  # J -> smplx

_REQUIRED = ("image", "pose", "betas", "transl")
_ONE = ((), (1,))
_SHAPES: Shapes = {
    "pose": ((72,), (24, 3)),
    "betas": ((NUM_BETAS - 1,), (NUM_BETAS,)),
    "transl": ((3,),),
    "intrinsics": ((3, 3), (9,)),
    "focal": (*_ONE, (2,)),
    "bbox_xyxy": ((4,),),
    "keypoints": tuple(shape for joints in KEYPOINT_ORDERS for shape in ((joints, 3), (joints * 3,))),
    **dict.fromkeys(("det_score", "age_years", "male_prob", "mask_height", "mask_width"), _ONE),
}
_COLUMNS = ("image", *_SHAPES, "mask_rle")
_MAX_MASK = 1 << 22  # bytes of the run lengths of one mask; a noisy one of 25 Mpx has less than one MB


def open_predictions(path: str | Path) -> LabelSource:
    """Open a prediction file; its suffix does not matter.

    Raises:
        LabelFileError: no such file, no row, or a column that is missing, unknown, or of a wrong shape or type.
        PickleRefused: neither Parquet nor a whole npz, or an object array.
    """
    path = Path(path)
    try:
        is_parquet = read_start(path, 4) == b"PAR1"
    except OSError as error:
        raise LabelFileError(f"prediction file {path} cannot be opened ({error.strerror}); check the path") from error
    names, columns, masks = (_read_parquet if is_parquet else _read_npz)(path)
    if "keypoints" in columns:
        columns["keypoints"] = columns["keypoints"].reshape(len(names), -1, 3)
    return LabelSource([path], names, columns, masks)


_Read = tuple[np.ndarray, dict[str, np.ndarray], pa.LargeBinaryArray | None]  # names, columns, masks of the rows


def _read_npz(path: Path) -> _Read:
    npz = NpzFile(path)
    _check_names(path, npz.keys)
    rows, found = check_text(npz, "image", "US", MAX_NAME), [name for name in npz.keys if name in _SHAPES]
    for name in found:
        check_shape(npz, name, rows, _SHAPES[name])
    masks = None
    if "mask_rle" in npz.keys:
        check_text(npz, "mask_rle", "S", _MAX_MASK, rows)
        letters = npz.array("mask_rle")  # run lengths never hold the zero bytes that numpy strips
        masks = pa.array(letters, pa.large_binary(), mask=letters == b"")
    return decode_names(npz.array("image")), {name: npz.array(name) for name in found}, masks


def _read_parquet(path: Path) -> _Read:
    table = read_table(path, lambda schema: _check_names(path, schema.names), _SHAPES)
    if not table.num_rows:
        raise LabelFileError(f"{path} has no row; expected at least one person")
    if missing := [name for name in _REQUIRED[1:] if name not in table.columns]:
        raise LabelFileError(f"{path}: columns {missing} hold nothing but nulls")
    masks = pc.if_else(pc.greater(pc.binary_length(table.masks), 0), table.masks, None)
    return table.image_names, dict(table.columns), masks


def _check_names(path: Path, found: Sequence[str]) -> None:
    missing, unknown = [n for n in _REQUIRED if n not in found], sorted(set(found) - set(_COLUMNS))
    if missing or unknown:
        raise LabelFileError(f"{path}: missing columns {missing}, unknown columns {unknown}; known are {_COLUMNS}")


def order_keypoints(points: np.ndarray | None, people: int) -> np.ndarray:
    """(n, 45, 3) float32 keypoints of n `people` in the order of smplx, from (n, J, 3) in the file's order, None = it
    has none; unknown keypoints have confidence 0."""
    ordered = np.zeros((people, NUM_KEYPOINTS, 3), dtype=np.float32)
    if points is not None:
        order = np.array(KEYPOINT_ORDERS[points.shape[1]])
        ordered[:, order] = points[:, : order.size]
        ordered[~np.isfinite(ordered).all(axis=2)] = 0
    return ordered
