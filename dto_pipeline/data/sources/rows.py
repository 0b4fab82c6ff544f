"""What every source of labels gives: people as columns with this project's names, one row per label row.

Also: which label rows can be used, and how arrays of npz files and columns of Parquet files are checked and read.
Camera frame and units as in `dto_pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, POSE
from dto_pipeline.data.columns import single_array
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.parquet import READ_ERRORS, open_parquet
from dto_pipeline.data.rle import measure_rles
from dto_pipeline.errors import DtoError

MAX_NAME = 1 << 14  # bytes of the name of an image in an npz: 4096 characters, as long as any path
BEHIND_CAMERA = "transl has z <= 0: the person is not in front of the camera"
MASK_DAMAGED = "instance mask is damaged: its run lengths do not fill mask_height x mask_width"
LABEL_VALUES = ("after", "before")
ROW_PROBLEMS = (
    *(None, "pose is not finite", "betas are not finite", "transl is not finite", BEHIND_CAMERA),
    *map(str, (POSE, BETAS, DISTANCE, ASIDE)),
)
SEEN_RANGES = {"age_years": (0.0, 130.0), "male_prob": (0.0, 1.0), "det_score": (-np.inf, np.inf)}  # others = unknown
_SEEN = (*SEEN_RANGES, "mask_height", "mask_width")
_MAX_SIDE = 1 << 24  # of a mask [px]: float32 counts so far
Shapes = Mapping[str, tuple[tuple[int, ...], ...]]  # column of numbers -> shapes a row may have
_STANDING = 1.7  # [m] of a body; crowds' are 0.8 to 2 times as long as their boxes, one of a face alone up to 8
_PRECISE = ("label_row", "intrinsics", "focal")  # columns kept in float64


class LabelFileError(DtoError, ValueError):
    """A label file that cannot be used at all; names file, key, what was found and what was expected."""


@dataclass(frozen=True)
class SeenRows:
    """What is known about n people besides their labels; NaN = unknown."""

    age_years: np.ndarray  # (n,) float32 [years]
    male_prob: np.ndarray  # (n,) float32
    det_score: np.ndarray  # (n,) float32
    mask_rle: pa.BinaryArray  # n, null = none
    mask_height: np.ndarray  # (n,) int32 [px], 0 = none
    mask_width: np.ndarray  # (n,) int32 [px], 0 = none
    mask_damaged: np.ndarray  # (n,) bool
    notes: dict[str, int] = field(default_factory=dict)  # what is odd or taken as unknown -> how many values

    @property
    def has_mask(self) -> np.ndarray:
        return self.mask_rle.is_valid().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class LabelRows:
    """The people of n label rows; whether they can be used is not judged yet."""

    pose: np.ndarray  # (n, 72) float32 axis-angle [rad], root first
    betas: np.ndarray  # (n, 11) float32, kid axis last (0 where the source has ten)
    transl: np.ndarray  # (n, 3) float32 [m]
    bbox_xyxy: np.ndarray  # (n, 4) float32 [px], NaN = unknown
    intrinsics: np.ndarray  # (n, 3, 3) float64 [px] of each row; cx and cy both NaN = the image's centre
    seen: SeenRows
    keypoints: np.ndarray | None  # (n, J, 3) float32 u, v [px], confidence, in the file's order; None = it has none


@dataclass(frozen=True)
class SourceOptions:
    """What sources need besides the label file; each source uses its own options only."""

    values: str = "after"  # label files of this project: values after or before optimisation, see LABEL_VALUES
    predictions: Path | None = None  # RelativeHuman: predicted people, its own files hold no bodies
    keypoints: bool = False  # fill `LabelRows.keypoints` where the file has them


@dataclass(frozen=True)
class Finding:
    """Something about an image, or a person, that a source found while reading."""

    image: str
    reason: str


@dataclass(frozen=True)
class LabelSource:
    """An open label file of N rows, in memory."""

    files: list[Path]  # read by this source; their sha256 go into the manifest
    image_names: np.ndarray  # (N,) str or object: the image of each row, relative to the images folder
    columns: Mapping[str, np.ndarray]  # (N, ...) of any float or integer type, see `rows`; NaN = unknown
    masks: Any = None  # pa.LargeBinaryArray of N run lengths, null = none; None = nobody has one
    findings: Sequence[Finding] = ()
    empty_images: Sequence[str] = ()  # names of images that are listed without people

    @property
    def num_rows(self) -> int:
        return len(self.image_names)

    def is_resized(self, index: np.ndarray, size: np.ndarray) -> np.ndarray:
        """(n,) bool: label rows (n,) not made on images of `size` (n, 2) w, h [px]; False where it is unknown."""
        made = np.stack([pick(self.columns.get(name), index, ()) for name in ("width", "height")], axis=1)
        return ((made > 0) & (size > 0) & (made != size)).any(axis=1)

    def rows(self, index: np.ndarray) -> LabelRows:
        """The people of some label rows (n,) int, in this order.

        Columns are pose, betas, transl and, where the file has them, bbox_xyxy, keypoints, those of `SeenRows`, and
        intrinsics or focal (with the principal point in the image's centre). A kid axis that is absent becomes 0, what
        else is absent NaN, and what single precision cannot hold infinite.
        """
        columns, betas = self.columns, np.zeros((index.size, NUM_BETAS), np.float32)
        betas[:, : columns["betas"].shape[1]] = pick(columns["betas"], index, columns["betas"].shape[1:])
        intrinsics = pick(columns.get("intrinsics"), index, (3, 3), np.float64)
        if "focal" in columns and "intrinsics" not in columns:
            intrinsics[:] = [[0, 0, np.nan], [0, 0, np.nan], [0, 0, 1]]
            intrinsics[:, [0, 1], [0, 1]] = pick(columns["focal"], index, (columns["focal"][:1].size,), np.float64)
        points = columns.get("keypoints")
        seen = {name: pick(columns[name], index, ()) for name in _SEEN if name in columns}
        return LabelRows(
            pose=pick(columns["pose"], index, (72,)),
            betas=betas,
            transl=pick(columns["transl"], index, (3,)),
            bbox_xyxy=pick(columns.get("bbox_xyxy"), index, (4,)),
            intrinsics=intrinsics,
            seen=judge_seen(seen, take_masks(self.masks, index)),
            keypoints=None if points is None else pick(points, index, points.shape[1:]),
        )


def pick(column: np.ndarray | None, index: np.ndarray, tail: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """(n, *tail) rows of a column, NaN where there is none; what overflows becomes infinite."""
    if column is None:
        return np.full((index.size, *tail), np.nan, dtype)
    with np.errstate(over="ignore"):
        return np.asarray(column[index]).astype(dtype).reshape(index.size, *tail)


def take_masks(masks: pa.LargeBinaryArray | None, index: np.ndarray) -> pa.BinaryArray:
    """Run lengths of some rows (n,) int, null = none; row -1 has none. Raises: LabelFileError: 2 GiB of them."""
    if masks is None:
        return pa.nulls(index.size, pa.binary())
    found = masks.take(pa.array(index, mask=index < 0))
    if (total := pc.sum(pc.binary_length(found)).as_py() or 0) > np.iinfo(np.int32).max:
        raise LabelFileError(f"{index.size} masks hold {total} bytes; expected run lengths, far below 2 GiB")
    return found.cast(pa.binary())


def check_shape(npz: NpzFile, key: str, rows: int, tails: Sequence[tuple[int, ...]]) -> None:
    """Check by its header that an array holds numbers (rows, *tail) with one of the tails; a few kB may unpack to GB.

    Raises: LabelFileError: it does not. PickleRefused: no such array.
    """
    shape, dtype = npz.header(key)
    shapes = [(rows, *tail) for tail in tails]
    if shape not in shapes or dtype.kind not in "fiu":
        wanted = " or ".join(map(str, shapes))
        raise LabelFileError(f"{npz.path}, key {key!r}: {dtype} {shape}; expected numbers {wanted}")


def check_text(npz: NpzFile, key: str, kinds: str, most: int, rows: int = 0) -> int:
    """How many rows an array of text has. Raises: LabelFileError: none, not `rows` (unless that is 0), or rows of more
    than `most` bytes. PickleRefused: no such array."""
    shape, dtype = npz.header(key)
    if len(shape) != 1 or dtype.kind not in kinds or shape[0] < 1 or (rows and shape[0] != rows):
        expected = f"text ({rows or 'N'},), at least one row"
        raise LabelFileError(f"{npz.path}, key {key!r}: {dtype} {shape}; expected {expected}")
    if dtype.itemsize > most:
        raise LabelFileError(f"{npz.path}, key {key!r}: rows of {dtype.itemsize} bytes; expected at most {most}")
    return shape[0]


def decode_names(names: np.ndarray) -> np.ndarray:
    """(n,) str from text or bytes; what is not UTF-8 becomes lone surrogates, which every path check refuses."""
    names = np.asarray(names)
    return names if names.dtype.kind == "U" else np.char.decode(names, "utf-8", "surrogateescape")


def find_row_problems(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """(n,) int index into `ROW_PROBLEMS`: the first reason why a row cannot be used, 0 = usable."""
    checks = (
        ~np.isfinite(pose).all(axis=1),
        ~np.isfinite(betas).all(axis=1),
        ~np.isfinite(transl).all(axis=1),
        ~(transl[:, 2] > 0),
        ~POSE.holds(pose).all(axis=1),
        ~BETAS.holds(betas).all(axis=1),
        ~DISTANCE.holds(transl[:, 2]),
        ~ASIDE.holds(transl[:, :2]).all(axis=1),
    )
    return np.select(checks, range(1, len(ROW_PROBLEMS)), default=0)


def judge_seen(columns: Mapping[str, np.ndarray], masks: pa.BinaryArray) -> SeenRows:
    """Make numbers out of range unknown, mark damaged masks, and count what is odd.

    Args:
        columns: (n,) float32 of those of `SEEN_RANGES`, mask_height and mask_width that are known; NaN = unknown.
        masks: n run lengths, null = none.
    """
    known, notes = {name: columns.get(name, np.full(len(masks), np.nan, np.float32)) for name in _SEEN}, {}
    for name, (low, high) in SEEN_RANGES.items():
        bad = (known[name] < low) | (known[name] > high)
        if bad.any():
            if strange := int((bad & (known[name] != -1)).sum()):  # -1: how many write that they do not know
                notes[f"{name} outside {low:g} .. {high:g}, taken as unknown"] = strange
            known[name] = np.where(bad, np.float32(np.nan), known[name])
    given, sides = masks.is_valid().to_numpy(zero_copy_only=False), []
    for name in ("mask_height", "mask_width"):
        sound = given & (known[name] >= 0) & (known[name] < _MAX_SIDE)
        sides.append(np.where(sound, known[name], 0).astype(np.int32))
    _, offsets, data = masks.buffers()
    cuts = np.frombuffer(offsets, np.int32)[masks.offset : masks.offset + len(masks) + 1].astype(np.int64)
    letters = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    person, total = measure_rles(letters, cuts)  # -1 where null or damaged
    fills = (sides[0] > 0) & (sides[1] > 0) & (total == sides[0].astype(np.int64) * sides[1])
    if large := int((fills & (2 * person > total)).sum()):
        notes["mask_rle that covers more than half of its image (1 is the person, 0 all else)"] = large
    return SeenRows(
        **{name: known[name] for name in SEEN_RANGES},
        mask_rle=masks,
        mask_height=sides[0],
        mask_width=sides[1],
        mask_damaged=given & ~fills,
        notes=notes,
    )


def judge_boxes(boxes: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Boxes (n, 4), NaN where one ends before it begins; how many of these say more than four equal numbers."""
    with np.errstate(invalid="ignore"):
        bad = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1, keepdims=True)
    strange = int((bad & (boxes != boxes[:, :1])).any(axis=1).sum())
    notes = {"bbox_xyxy that ends before it begins, taken as unknown": strange} if strange else {}
    return np.where(bad, np.float32(np.nan), boxes), notes


def count_misplaced(labels: LabelRows, cameras: np.ndarray, usable: np.ndarray) -> tuple[int, int]:
    """How many people were compared with their boxes, and how many of these stand elsewhere or are of another size.

    A translation lies at the hip, which is up to two boxes below the box of somebody whose head alone is seen.

    Args:
        cameras: (n, 3, 3) intrinsics of each person's image; usable: (n,) bool, the others are not compared.
    """
    with np.errstate(all="ignore"):
        place = labels.transl.astype(np.float64)
        point = place[:, :2] / place[:, 2:] * cameras[:, [0, 1], [0, 1]] + cameras[:, :2, 2]
        low, high = labels.bbox_xyxy[:, :2], labels.bbox_xyxy[:, 2:]
        side = (high - low).max(axis=1)
        above, below = (low - point) / side[:, None], (point - high) / side[:, None]
        size = _STANDING * cameras[:, 1, 1] / place[:, 2] / side
    compared = usable & np.isfinite(size) & np.isfinite(point).all(axis=1)
    fits = (above <= 0.5).all(axis=1) & (below <= (0.5, 2.0)).all(axis=1) & (size > 0.4) & (size < 8)
    return int(compared.sum()), int((compared & ~fits).sum())


def read_table(path: Path, check: Callable[[pa.Schema], object], shapes: Shapes) -> LabelSource:
    """Read ``image``, ``mask_rle`` and the columns of `shapes` of a Parquet file; those of nulls only are left out.

    `check` is called with the schema first, and raises where columns are missing or unknown.

    Raises: LabelFileError: the file is missing or damaged, or a column has another type.
    """
    numbers, images = dict[str, np.ndarray](), np.zeros(0, object)
    with open_parquet(path, LabelFileError) as file:
        if index := [name for name in file.schema_arrow.names if name.startswith("__index_level_")]:
            raise LabelFileError(
                f"{path}: column {index[0]!r} is a pandas index; write it with to_parquet(index=False)"
            )
        check(file.schema_arrow)
        rows = file.metadata.num_rows
        masks = pa.nulls(rows, pa.large_binary())
        for name in file.schema_arrow.names:
            try:
                table = file.read([name])
                if (table.num_columns, table.num_rows) != (1, rows):
                    raise LabelFileError(f"{path}, column {name!r}: {table.num_rows} rows; the file says {rows}")
                column = table.column(0)
                if name in shapes and column.null_count < rows:
                    numbers[name] = _read_numbers(path, name, single_array(column), shapes[name])
                elif name == "mask_rle":
                    masks = single_array(column.cast(pa.large_binary()))
                elif name == "image":
                    if column.null_count:
                        raise LabelFileError(f"{path}: column 'image' holds {column.null_count} nulls; expected none")
                    texts = column.cast(pa.string())
                    texts.validate(full=True)  # they are UTF-8
                    images = texts.to_numpy()
            except READ_ERRORS as error:
                raise LabelFileError(
                    f"{path}, column {name!r}, is damaged or of other types than documented ({error})"
                ) from error
    return LabelSource([path], images, numbers, masks)


def _read_numbers(path: Path, name: str, column: pa.Array, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(N, *tail) with one of the shapes as tail, NaN = null, of a column that is not all null."""
    kind, tail, known = column.type, tuple[int, ...](), column.drop_null()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        tail = tuple(np.unique(pc.list_value_length(known).to_numpy(zero_copy_only=False)).tolist())
        known = known.flatten()
    if tail not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise LabelFileError(f"{path}, column {name!r}: rows of {tail} numbers; expected {wanted} in every row")
    number = pa.float64() if name in _PRECISE else pa.float32()
    given = known.cast(number, safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    values = np.full((len(column), *tail), np.nan, given.dtype)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = given.reshape(-1, *tail)
    return values
