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
The foreign names above appear nowhere else in the project.

`write_camerahmr` writes this layout; equal input gives identical bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.npz import MappedNpz, NpzError
from dto_pipeline.data.sources.rows import LabelFileError, LabelRows, SourceOptions, decode_names

_BOX_UNIT = 200.0  # scale is the box's size over this [px]


class CameraHmrLabels:
    """An open label file: maps its arrays and hands out slices; see the module for the format."""

    def __init__(self, npz: MappedNpz, keypoints: bool = False) -> None:
        self._npz = npz
        self.files = [npz.path]
        self._names = _names(npz)
        self.num_rows = self._names.shape[0]
        self._pose = self._numbers(("pose_cam", "pose"), ((72,), (24, 3)))
        self._betas = self._numbers(("shape",), ((NUM_BETAS - 1,), (NUM_BETAS,)))
        self._transl = self._numbers(("trans_cam", "cam_t", "trans"), ((3,),))
        self._intrinsics = self._numbers(("cam_int",), ((3, 3),))
        boxed = "center" in npz.keys and "scale" in npz.keys
        self._centre = self._numbers(("center",), ((2,),)) if boxed else None
        self._scale = self._numbers(("scale",), ((), (1,), (2,))) if boxed else None
        self._keypoints = self._read_keypoints() if keypoints and "gtkps" in npz.keys else None

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str."""
        return decode_names(self._names[start:stop])

    def rows(self, index: np.ndarray) -> LabelRows:
        """The rows named by `index` (n,) int, in this order."""
        betas = np.zeros((index.size, NUM_BETAS), dtype=np.float32)
        given = _pick(self._betas, index, np.float32)
        betas[:, : given.shape[1]] = given
        return LabelRows(
            pose=_pick(self._pose, index, np.float32).reshape(-1, 72),
            betas=betas,
            transl=_pick(self._transl, index, np.float32),
            bbox_xyxy=self._boxes(index),
            intrinsics=_pick(self._intrinsics, index, np.float64),
            keypoints=None if self._keypoints is None else _pick(self._keypoints, index, np.float32),
        )

    def __enter__(self) -> CameraHmrLabels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._npz.close()

    def _boxes(self, index: np.ndarray) -> np.ndarray:
        if self._centre is None or self._scale is None:
            return np.full((index.size, 4), np.nan, dtype=np.float32)
        centre = _pick(self._centre, index, np.float64)
        sides = _pick(self._scale, index, np.float64).reshape(index.size, -1)
        half = sides.max(axis=1, keepdims=True) * (_BOX_UNIT / 2)  # the square that holds both sides
        return np.concatenate((centre - half, centre + half), axis=1).astype(np.float32)

    def _read_keypoints(self) -> np.ndarray:
        points = _open(self._npz, "gtkps")
        if points.ndim != 3 or len(points) != self.num_rows or points.shape[2] != 3 or points.dtype.kind not in "fiu":
            found = f"{points.dtype} {points.shape}"
            raise LabelFileError(f"{self._npz.path}, key 'gtkps': {found}; expected numbers ({self.num_rows}, J, 3)")
        return points

    def _numbers(self, keys: tuple[str, ...], tails: tuple[tuple[int, ...], ...]) -> np.ndarray:
        """The array under the first of `keys` that exists, checked to be numbers of shape (N, *tail)."""
        path, present = self._npz.path, self._npz.keys
        key = next((key for key in keys if key in present), None)
        if key is None:
            raise LabelFileError(f"{path} has none of the keys {list(keys)}; it holds {present}")
        array = _open(self._npz, key)
        shapes = [(self.num_rows, *tail) for tail in tails]
        if array.shape not in shapes or array.dtype.kind not in "fiu":
            wanted = " or ".join(str(shape) for shape in shapes)
            raise LabelFileError(f"{path}, key {key!r}: {array.dtype} {array.shape}; expected numbers {wanted}")
        return array


def open_camerahmr(path: Path, options: SourceOptions = SourceOptions()) -> CameraHmrLabels:  # noqa: B008 - frozen
    """Open a ``*-release.npz``.

    Raises:
        LabelFileError: no such file, not an npz, or a key is missing, of a wrong shape or type, or an object array.
    """
    try:
        npz = MappedNpz(path)
    except FileNotFoundError as error:
        raise LabelFileError(f"label file {path} does not exist; check --data-root and the dataset YAML") from error
    except NpzError as error:
        raise LabelFileError(str(error)) from error
    try:
        return CameraHmrLabels(npz, options.keypoints)
    except LabelFileError:
        npz.close()
        raise


def _names(npz: MappedNpz) -> np.ndarray:
    names = _open(npz, "imgname")
    if names.ndim != 1 or names.dtype.kind not in "US" or names.size == 0:
        found = f"{names.dtype} {names.shape}"
        raise LabelFileError(f"{npz.path}, key 'imgname': {found}; expected text (N,) with at least one row")
    return names


def _open(npz: MappedNpz, key: str) -> np.ndarray:
    try:
        return npz.array(key)
    except NpzError as error:
        raise LabelFileError(str(error)) from error


def _pick(array: np.ndarray, index: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """Rows of a mapped array in memory; what overflows float32 becomes infinite, which is then found as a problem."""
    with np.errstate(over="ignore"):
        return np.asarray(array[index]).astype(dtype)


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
