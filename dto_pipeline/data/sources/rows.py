"""What every source of labels delivers: rows of people in this project's own names, one per label row.

Knows what makes a label row usable, and what is known of people besides their labels; knows no file format. Camera
frame and units as in `dto_pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, POSE
from dto_pipeline.data.rle import measure_rles
from dto_pipeline.errors import DtoError

BEHIND_CAMERA = "transl has z <= 0: the person is not in front of the camera"
MASK_DAMAGED = "instance mask is damaged: its run lengths do not fill mask_height x mask_width"
LABEL_VALUES = ("after", "before")
ROW_PROBLEMS = (
    *(None, "pose is not finite", "betas are not finite", "transl is not finite", BEHIND_CAMERA),
    *map(str, (POSE, BETAS, DISTANCE, ASIDE)),
)
SEEN_RANGES = {"age_years": (0.0, 130.0), "male_prob": (0.0, 1.0), "det_score": (-np.inf, np.inf)}  # others = unknown
_MAX_SIDE = 1 << 24  # of a mask [px]: float32 counts so far


class LabelFileError(DtoError, ValueError):
    """A label file that cannot be used at all; names file, key, what was found and what was expected."""


@dataclass(frozen=True)
class SeenRows:
    """What is known about n people besides their labels; NaN, null and 0 mean unknown."""

    age_years: np.ndarray  # (n,) float32 [years]
    male_prob: np.ndarray  # (n,) float32
    det_score: np.ndarray  # (n,) float32
    mask_rle: pa.BinaryArray  # n, null = none
    mask_height: np.ndarray  # (n,) int32 [px], 0 = none
    mask_width: np.ndarray  # (n,) int32 [px], 0 = none
    mask_damaged: np.ndarray  # (n,) bool
    mask_empty: np.ndarray  # (n,) bool: sound, but no pixel
    notes: dict[str, int] = field(default_factory=dict)  # kind of value taken as unknown -> how many

    @property
    def has_mask(self) -> np.ndarray:
        """(n,) bool."""
        return self.mask_rle.is_valid().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class LabelRows:
    """n people, one per label row, not yet judged."""

    pose: np.ndarray  # (n, 72) float32 axis-angle [rad], root first
    betas: np.ndarray  # (n, 11) float32, kid axis last (0 where the source has ten)
    transl: np.ndarray  # (n, 3) float32 [m]
    bbox_xyxy: np.ndarray  # (n, 4) float32 [px], NaN = unknown
    intrinsics: np.ndarray  # (n, 3, 3) float64 [px], as told by each row; cx and cy both NaN = the image's centre
    seen: SeenRows | None = field(default=None, kw_only=True)  # what the file itself tells of these; None = nothing
    keypoints: np.ndarray | None = field(default=None, kw_only=True)  # (n, J, 3) u, v [px], confidence (0 = none)


@dataclass(frozen=True)
class SourceOptions:
    """What a source is asked for besides its file; each looks at what concerns it."""

    values: str = "after"  # label files of this project: values after or before optimisation, see LABEL_VALUES
    predictions: Path | None = None  # RelativeHuman: predicted people, its own files hold no bodies
    keypoints: bool = False  # fill `LabelRows.keypoints` where the file has them


@dataclass(frozen=True)
class Finding:
    """Something a source noticed that no label row stands for."""

    image: str
    reason: str


@dataclass(frozen=True)
class LabelSource:
    """An open label file; its numbers are mapped, so that a file of any size fits in memory and nothing is closed."""

    files: list[Path]  # read by this source; their sha256 go into the manifest
    num_rows: int
    image_names: Callable[[int, int], np.ndarray]  # (stop - start,) str of these rows, relative to the images folder
    rows: Callable[[np.ndarray], LabelRows]  # those named by (n,) int, in this order
    findings: Sequence[Finding] = ()


def pick(column: np.ndarray | None, index: np.ndarray, tail: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """(n, *tail) rows of a mapped column in memory, NaN where there is none; what overflows becomes infinite."""
    if column is None:
        return np.full((index.size, *tail), np.nan, dtype)
    with np.errstate(over="ignore"):
        return np.asarray(column[index]).astype(dtype).reshape(index.size, *tail)


def pick_betas(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n, 11) float32 of a mapped column of ten or eleven; the kid axis is 0 where it is absent."""
    betas = np.zeros((index.size, NUM_BETAS), np.float32)
    betas[:, : column.shape[1]] = pick(column, index, column.shape[1:])
    return betas


def check_shape(path: Path, key: str, array: np.ndarray, rows: int | None, tails: Sequence[tuple[int, ...]]) -> None:
    """Refuse what is not numbers (rows, *tail) with one of the tails.

    Raises:
        LabelFileError: names file, key, what was found and expected.
    """
    shapes = [(rows, *tail) for tail in tails]
    if array.shape not in shapes or array.dtype.kind not in "fiu":
        wanted = " or ".join(map(str, shapes))
        raise LabelFileError(f"{path}, key {key!r}: {array.dtype} {array.shape}; expected numbers {wanted}")


def decode_names(names: np.ndarray) -> np.ndarray:
    """(n,) str from text or bytes; what is not UTF-8 becomes lone surrogates, which no path check lets through."""
    names = np.asarray(names)
    return names if names.dtype.kind == "U" else np.char.decode(names, "utf-8", "surrogateescape")


def find_row_problems(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """(n,) int index into `ROW_PROBLEMS` of the first reason why a row cannot be used; 0 = usable."""
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
    """Numbers out of range become unknown, damaged and empty masks are marked.

    Args:
        columns: (n,) float32 of each of `SEEN_RANGES`, mask_height and mask_width; NaN = unknown.
        masks: n counts strings, null = none.
    """
    notes, told = {}, {}
    for name, (low, high) in SEEN_RANGES.items():
        values = columns[name]
        bad = (values < low) | (values > high)
        if bad.any():
            notes[f"{name} outside {low:g} .. {high:g}, taken as unknown"] = int(bad.sum())
        told[name] = np.where(bad, np.float32(np.nan), values)
    sides = []
    for name in ("mask_height", "mask_width"):
        sound = masks.is_valid().to_numpy(zero_copy_only=False) & (columns[name] >= 0) & (columns[name] < _MAX_SIDE)
        sides.append(np.where(sound, columns[name], 0).astype(np.int32))
    _, offsets, data = masks.buffers()
    cuts = np.frombuffer(offsets, np.int32)[masks.offset : masks.offset + len(masks) + 1].astype(np.int64)
    letters = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    foreground, total = measure_rles(letters, cuts)  # -1 where null or damaged
    fills = (sides[0] > 0) & (sides[1] > 0) & (total == sides[0].astype(np.int64) * sides[1])
    given = masks.is_valid().to_numpy(zero_copy_only=False)
    return SeenRows(
        **told,
        mask_rle=masks,
        mask_height=sides[0],
        mask_width=sides[1],
        mask_damaged=given & ~fills,
        mask_empty=given & fills & (foreground == 0),
        notes=notes,
    )
