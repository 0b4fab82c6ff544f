"""Any network's predicted people as one plain file, npz or Parquet, one row per person.

| column (* required)     | shape in npz            | meaning                                                         |
|-------------------------|-------------------------|-----------------------------------------------------------------|
| image *                 | (N,) text               | image of the row, relative to the images folder                 |
| pose *                  | (N, 72) or (N, 24, 3)   | axis-angle [rad], root first, camera frame                      |
| betas *                 | (N, 10) or (N, 11)      | shape; the 11th (kid axis) is 0 if absent                       |
| transl *                | (N, 3)                  | added after skinning [m], in front of the camera told here      |
| intrinsics              | (N, 3, 3)               | camera transl was predicted for [px]                            |
| focal                   | (N,) or (N, 2)          | instead: focal length [px], principal point in the image centre |
| det_score               | (N,)                    | score of the detector, larger is surer                          |
| bbox_xyxy               | (N, 4)                  | left, top, right, bottom [px]                                   |
| keypoints               | (N, J, 3)               | u, v [px] and confidence 0 .. 1; J says the order, see below    |
| age_years, male_prob    | (N,), (N,)              | as in the sidecar                                               |
| mask_rle                | (N,) bytes              | instance mask, COCO compressed run lengths; empty = none        |
| mask_height, mask_width | (N,), (N,)              | size of the mask [px] = size of the image                       |

In Parquet the same columns hold strings, numbers, binary, and lists of numbers; a list is one row's array flattened
(keypoints: J * 3 numbers). Values may be null or NaN: unknown. Keypoints come in the order of smplx (J = 45), COCO
(17) or OpenPose BODY_25 (25, also the first 25 of the 44 of 4D-Humans). Other columns are refused, so that a misspelt
one is not lost. Rows of an image need not be adjacent. Numbers are mapped from disk, never all in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.columns import build_table, single_array
from dto_pipeline.data.files import check_maps, temporary_folder
from dto_pipeline.data.npz import MappedNpz, NpzError
from dto_pipeline.data.parquet import READ_ERRORS, check_room, open_parquet
from dto_pipeline.data.sources.rows import LabelFileError, LabelRows, decode_names
from dto_pipeline.data.sources.sidecar import SIDECAR_SCHEMA, SidecarRows, judge_seen
from dto_pipeline.reading import open_regular

NUM_KEYPOINTS = 45  # smplx's joints, the order of `LabelRows.keypoints` here
_BODY_25 = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34)
_COCO = (24, 26, 25, 28, 27, 16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8)
KEYPOINT_ORDERS = {17: _COCO, 25: _BODY_25, 44: _BODY_25, NUM_KEYPOINTS: tuple(range(NUM_KEYPOINTS))}  # J -> smplx

_REQUIRED = ("image", "pose", "betas", "transl")
_SHAPES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "pose": ((72,), (24, 3)),
    "betas": ((NUM_BETAS - 1,), (NUM_BETAS,)),
    "transl": ((3,),),
    "intrinsics": ((3, 3), (9,)),
    "focal": ((), (1,), (2,)),
    "det_score": ((), (1,)),
    "bbox_xyxy": ((4,),),
    "keypoints": tuple(shape for joints in KEYPOINT_ORDERS for shape in ((joints, 3), (joints * 3,))),
    "age_years": ((), (1,)),
    "male_prob": ((), (1,)),
    "mask_height": ((), (1,)),
    "mask_width": ((), (1,)),
}
COLUMNS = (*_REQUIRED[:1], *_SHAPES, "mask_rle")
_BATCH_ROWS = 4096
_MAX_SIDE = 1 << 24  # of a mask [px]: float32 counts so far


class _Store(Protocol):
    """Columns of a file, mapped."""

    numbers: dict[str, np.ndarray]  # name -> (N, ...) numbers

    def names(self, start: int, stop: int) -> np.ndarray: ...

    def masks(self, index: np.ndarray) -> pa.BinaryArray: ...

    def close(self) -> None: ...


class PredictionFile:
    """An open prediction file, a `LabelSource`; see the module for the format. Made by `open_predictions`."""

    def __init__(self, path: Path, store: _Store, num_rows: int) -> None:
        self.files = [path]
        self.num_rows = num_rows
        self._store = store

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str."""
        return self._store.names(start, stop)

    def rows(self, index: np.ndarray) -> LabelRows:
        """The rows named by `index` (n,) int, in this order; intrinsics are NaN where the file tells no camera."""
        betas = np.zeros((index.size, NUM_BETAS), dtype=np.float32)
        given = self._store.numbers["betas"].shape[1]
        betas[:, :given] = self._pick("betas", index, (given,), np.float32)
        return LabelRows(
            pose=self._pick("pose", index, (72,), np.float32),
            betas=betas,
            transl=self._pick("transl", index, (3,), np.float32),
            bbox_xyxy=self._pick("bbox_xyxy", index, (4,), np.float32),
            intrinsics=self._cameras(index),
            seen=self._seen(index),
            keypoints=self._keypoints(index),
        )

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pick(self, name: str, index: np.ndarray, tail: tuple[int, ...], kind: type[np.floating]) -> np.ndarray:
        """Rows of one column in memory, NaN where the file lacks it; what overflows becomes infinite."""
        column = self._store.numbers.get(name)
        if column is None:
            return np.full((index.size, *tail), np.nan, dtype=kind)
        with np.errstate(over="ignore"):
            values = np.asarray(column[index]).astype(kind)
        return values.reshape(index.size, *tail)

    def _cameras(self, index: np.ndarray) -> np.ndarray:
        if "intrinsics" in self._store.numbers:
            return self._pick("intrinsics", index, (3, 3), np.float64)
        cameras = np.full((index.size, 3, 3), np.nan)
        focal = self._store.numbers.get("focal")
        if focal is not None:
            cameras[:] = np.array([[0, 0, np.nan], [0, 0, np.nan], [0, 0, 1]])
            tail = (focal[:1].size,)
            cameras[:, [0, 1], [0, 1]] = self._pick("focal", index, tail, np.float64)
        return cameras

    def _keypoints(self, index: np.ndarray) -> np.ndarray | None:
        """(n, 45, 3) float32 u, v [px] and confidence, 0 where a keypoint is not told; None if the file has none."""
        column = self._store.numbers.get("keypoints")
        if column is None:
            return None
        joints = column[:1].size // 3
        order = np.array(KEYPOINT_ORDERS[joints])
        points = np.zeros((index.size, NUM_KEYPOINTS, 3), dtype=np.float32)
        points[:, order] = self._pick("keypoints", index, (joints, 3), np.float32)[:, : order.size]
        points[~np.isfinite(points).all(axis=2)] = 0
        return points

    def _seen(self, index: np.ndarray) -> SidecarRows:
        """Score, age, gender and mask, judged as a sidecar's."""
        columns = {
            name: self._pick(name, index, (), np.float32)
            for name in ("age_years", "male_prob", "det_score", "mask_height", "mask_width")
        }
        for name in ("mask_height", "mask_width"):
            sound = (columns[name] >= 0) & (columns[name] < _MAX_SIDE)
            columns[name] = np.where(sound, columns[name], 0).astype(np.int32)
        masks = self._store.masks(index)
        return judge_seen(build_table(SIDECAR_SCHEMA, {**columns, "label_row": index, "mask_rle": masks}))


def open_predictions(path: str | Path) -> PredictionFile:
    """Open a prediction file; the suffix does not matter.

    Raises:
        LabelFileError: no such file, neither npz nor Parquet, no row, a column missing, unknown, of a wrong shape or
            type, or an object array.
    """
    path = Path(path)
    try:
        with open_regular(path) as stream:
            magic = stream.read(4)
    except OSError as error:
        raise LabelFileError(f"prediction file {path} cannot be opened ({error.strerror}); check the path") from error
    if magic == b"PAR1":
        store: _NpzStore | _ParquetStore = _ParquetStore(path)
    elif magic[:2] == b"PK":
        store = _NpzStore(path)
    else:
        raise LabelFileError(f"prediction file {path} begins with {magic!r}; expected an npz or a Parquet file")
    return PredictionFile(path, store, store.num_rows)


class _NpzStore:
    """Columns of an npz, mapped where they lie."""

    def __init__(self, path: Path) -> None:
        try:
            self._npz = MappedNpz(path)
        except NpzError as error:
            raise LabelFileError(str(error)) from error
        try:
            _check_names(path, self._npz.keys)
            self._names = self._text("image", "US")
            self._masks = self._text("mask_rle", "S") if "mask_rle" in self._npz.keys else None
            self.num_rows = self._names.size
            self.numbers = {name: self._array(name) for name in self._npz.keys if name in _SHAPES}
            for name, array in self.numbers.items():
                _check_shape(path, name, array, self.num_rows)
            if self._masks is not None and self._masks.size != self.num_rows:
                raise LabelFileError(f"{path}, column 'mask_rle': {self._masks.size} rows; expected {self.num_rows}")
        except BaseException:
            self._npz.close()
            raise

    def names(self, start: int, stop: int) -> np.ndarray:
        return decode_names(self._names[start:stop])

    def masks(self, index: np.ndarray) -> pa.BinaryArray:
        if self._masks is None:
            return pa.nulls(index.size, pa.binary())
        texts = np.asarray(self._masks[index])  # run lengths never hold the zero bytes that numpy strips
        return pa.array(texts.tolist(), pa.binary(), mask=texts == b"")

    def close(self) -> None:
        self._npz.close()

    def _array(self, name: str) -> np.ndarray:
        try:
            return self._npz.array(name)
        except NpzError as error:
            raise LabelFileError(str(error)) from error

    def _text(self, name: str, kinds: str) -> np.ndarray:
        array = self._array(name)
        if array.ndim != 1 or array.dtype.kind not in kinds or array.size == 0:
            found = f"{array.dtype} {array.shape}"
            raise LabelFileError(f"{self._npz.path}, column {name!r}: {found}; expected text (N,), at least one row")
        return array


class _ParquetStore:
    """Columns of a Parquet file, unpacked once into a temporary folder and mapped there; image names in memory."""

    def __init__(self, path: Path) -> None:
        self._folder = temporary_folder("dto-predictions-")
        try:
            check_maps(self._folder.name)
            with open_parquet(path, LabelFileError) as file:
                _check_names(path, file.schema_arrow.names)
                self.num_rows = file.metadata.num_rows
                if self.num_rows == 0:
                    raise LabelFileError(f"{path} has no row; expected at least one person")
                try:
                    self._unpack(path, file)
                except READ_ERRORS as error:
                    check_room(error)
                    raise LabelFileError(f"{path} is damaged or of other types than documented ({error})") from error
        except BaseException:
            self._folder.cleanup()
            raise

    def names(self, start: int, stop: int) -> np.ndarray:
        return np.array(self._images.slice(start, stop - start).to_pylist(), dtype=str)

    def masks(self, index: np.ndarray) -> pa.BinaryArray:
        starts, ends = self._mask_ends[index], self._mask_ends[index + 1]
        lengths = ends - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if offsets[-1] > np.iinfo(np.int32).max:
            raise LabelFileError(f"{index.size} masks hold {offsets[-1]} bytes; expected run lengths, far below 2 GiB")
        letters = np.asarray(self._mask_bytes[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)])
        rle = pa.Array.from_buffers(
            pa.binary(), index.size, [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(letters)]
        )
        return pc.if_else(pa.array(lengths > 0), rle, None)

    def close(self) -> None:
        self._folder.cleanup()

    def _unpack(self, path: Path, file: pq.ParquetFile) -> None:
        self.numbers: dict[str, np.ndarray] = {}
        images, ends, done = [], [np.zeros(1, dtype=np.int64)], 0
        mask_file = Path(self._folder.name) / "masks"
        with mask_file.open("wb") as masks:
            for batch in file.iter_batches(_BATCH_ROWS):
                images.append(batch.column("image").cast(pa.string()))
                for name in set(batch.schema.names) & set(_SHAPES):
                    self._write(path, name, batch.column(name), done)
                letters, lengths = _mask_letters(batch)
                masks.write(letters)
                ends.append(ends[-1][-1] + np.cumsum(lengths))
                done += len(batch)
        silent = [name for name in _REQUIRED[1:] if name not in self.numbers]
        if silent:
            raise LabelFileError(f"{path}: columns {silent} hold nothing but nulls")
        self._images = single_array(pa.chunked_array(images))
        self._images.validate(full=True)  # text that is not UTF-8 would be found when somebody reads it
        if self._images.null_count:
            raise LabelFileError(f"{path}: column 'image' holds {self._images.null_count} nulls; expected none")
        self._mask_ends = np.concatenate(ends)
        has_masks = self._mask_ends[-1] > 0
        self._mask_bytes = np.memmap(mask_file, np.uint8, "r") if has_masks else np.zeros(0, dtype=np.uint8)

    def _write(self, path: Path, name: str, column: pa.Array, start: int) -> None:
        """Put one batch of a column into its mapped file; nulls become NaN."""
        if column.null_count == len(column):  # how many numbers a row holds shows in another batch, or never
            if name in self.numbers:
                self.numbers[name][start : start + len(column)] = np.nan
            return
        values = _numbers(path, name, column)
        if name not in self.numbers:
            target = Path(self._folder.name) / f"{name}.npy"
            shape = (self.num_rows, *values.shape[1:])
            kind = np.float64 if name in ("intrinsics", "focal") else np.float32
            self.numbers[name] = np.lib.format.open_memmap(target, "w+", kind, shape)
            self.numbers[name][:start] = np.nan
        if values.shape[1:] != self.numbers[name].shape[1:]:
            found, first = values.shape[1:], self.numbers[name].shape[1:]
            raise LabelFileError(f"{path}, column {name!r}: rows from {start} hold {found} numbers; before {first}")
        with np.errstate(over="ignore"):
            self.numbers[name][start : start + len(values)] = values


def _check_names(path: Path, found: list[str]) -> None:
    missing, unknown = [n for n in _REQUIRED if n not in found], sorted(set(found) - set(COLUMNS))
    if missing or unknown:
        raise LabelFileError(f"{path}: missing columns {missing}, unknown columns {unknown}; known are {list(COLUMNS)}")


def _check_shape(path: Path, name: str, array: np.ndarray, num_rows: int) -> None:
    shapes = [(num_rows, *tail) for tail in _SHAPES[name]]
    if array.shape not in shapes or array.dtype.kind not in "fiu":
        wanted = " or ".join(str(shape) for shape in shapes)
        raise LabelFileError(f"{path}, column {name!r}: {array.dtype} {array.shape}; expected numbers {wanted}")


def _numbers(path: Path, name: str, column: pa.Array) -> np.ndarray:
    """(n,) or (n, k) float64 of one batch; nulls become NaN, all lists of a column are equally long."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    told = column.drop_null()
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        tail = tuple(np.unique(pc.list_value_length(told).to_numpy(zero_copy_only=False)).tolist())
        told = told.flatten()
    else:
        tail = ()
    if tail not in _SHAPES[name]:
        wanted = " or ".join(str(shape) for shape in _SHAPES[name])
        raise LabelFileError(f"{path}, column {name!r}: rows of {tail} numbers; expected {wanted} in every row")
    values = np.full((len(column), *tail), np.nan)
    values[present] = told.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False).reshape(-1, *tail)
    return values


def _mask_letters(batch: pa.RecordBatch) -> tuple[bytes, np.ndarray]:
    """Run lengths of one batch end to end, and how many bytes each row has (0 = none)."""
    if "mask_rle" not in batch.schema.names:
        return b"", np.zeros(len(batch), dtype=np.int64)
    texts = batch.column("mask_rle").cast(pa.binary()).fill_null(b"").to_pylist()
    return b"".join(texts), np.array([len(text) for text in texts], dtype=np.int64)
