"""Read the people and masks that accompany the images of 4D-Humans' training tars (WebDataset layout).

| member of a sample KEY     | becomes                                                                |
|----------------------------|------------------------------------------------------------------------|
| KEY.jpg, .jpeg, .png       | an image by its address ``<tar>!<member>``; its bytes stay as they are |
| KEY.data.pyd               | people: keypoints, boxes, their masks' numbers; a pickle, never run    |
| KEY.detection.npz          | instance masks (K, H, W)                                               |

The tars hold no translations and no cameras: images (see `data.tars`) and masks are taken from them, no labels. Each
person names a mask (``extra_info['detection_npz_idx']``), and a label row takes the mask of the person it shows: the
one with equal keypoints, else with the nearest box. Only for people who name none the mask that covers their joints is
taken, because the joints of a hidden person lie on the person in front. Positions in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from dto_pipeline.array_files import read_npz
from dto_pipeline.data.inert_pickle import Limits
from dto_pipeline.data.safe_pickle import safe_loads
from dto_pipeline.data.sources.camerahmr import square_boxes
from dto_pipeline.maths.person_matching import box_iou

PEOPLE_EXTENSION = "data.pyd"
MASKS_EXTENSION = "detection.npz"
_NUM_KEYPOINTS = 44
MAX_MEMBER_BYTES = 2**26  # of people or masks; nothing longer is read to its end
_LIMITS = Limits(max_bytes=2**28, max_items=2_000_000, max_array_bytes=2**30)
_MIN_INSIDE = 0.5  # share of a person's keypoints its mask must cover
_MASK_NUMBER = "detection_npz_idx"  # of a person's extra_info
_EQUAL_PX = 0.5  # keypoints of a label and of a person that are the same ones, but for rounding
_MIN_EQUAL = 4  # so many must be known on both sides and agree
_SAME_BOX = 0.5  # overlap (intersection over union) from which the nearest box is one's own
_EQUAL_OVERLAP = 0.05  # two rows whose boxes differ by less in overlap are as near


class SampleError(ValueError):
    """A member that does not hold what its name says; the message names its address and what was found."""


@dataclass(frozen=True)
class SamplePeople:
    """n people of one sample, in its order; NaN = missing in the file, or unusable."""

    keypoints: np.ndarray  # (n, 44, 3) float32 x, y [px], confidence
    bbox_xyxy: np.ndarray  # (n, 4) float32 [px], a square; its side is the longer one where scale has two
    mask: np.ndarray  # (n,) int64 which of the sample's masks is the person's, -1 = unknown


def parse_people(data: bytes | None, where: str) -> SamplePeople:
    """The people of a ``.data.pyd`` member, None = there is none; `where` names the bytes in messages.

    Raises:
        UnsafePickle, BrokenPickle: see `data.safe_pickle`. SampleError: something else than a list of people.
    """
    people: Any = []
    if data is not None:
        people = safe_loads(data, limits=_LIMITS, where=where, object_arrays=True)  # fitting_loss is one around a dict
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise SampleError(f"{where} holds {type(people).__name__}; expected a list with one dict per person")

    def column(key: str, shape: tuple[int, ...]) -> np.ndarray:
        """(n, *shape); NaN where a value is missing, is no number, or has another shape (one scale stands for two)."""
        rows = np.full((len(people), *shape), np.nan, dtype=np.float32)
        for row, person in enumerate(people):
            try:
                value = np.asarray(person.get(key, np.nan), dtype=np.float32)
            except (TypeError, ValueError):
                continue
            if value.shape == shape or (shape == (2,) and key == "scale" and value.shape in ((), (1,))):
                rows[row] = value
        return rows

    def mask_number(person: Mapping[str, Any]) -> int:
        info = _unwrapped(person.get("extra_info"))
        number = _unwrapped(info.get(_MASK_NUMBER)) if isinstance(info, dict) else None
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1 << 31:
            return -1
        return int(number) if number == int(number) else -1

    with np.errstate(over="ignore", invalid="ignore"):  # what single precision cannot hold becomes infinite, then NaN
        return SamplePeople(
            keypoints=column("keypoints_2d", (_NUM_KEYPOINTS, 3)),
            bbox_xyxy=square_boxes(column("center", (2,)), column("scale", (2,))),
            mask=np.array([mask_number(person) for person in people], dtype=np.int64),
        )


def parse_masks(data: bytes, where: str) -> np.ndarray:
    """(K, H, W) bool instance masks of a ``.detection.npz`` member; `where` names the bytes in messages.

    Raises:
        SampleError: not a sound npz, no `masks`, or of another shape or type.
    """

    def check(_: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 3 or dtype.kind not in "bu" or math.prod(shape) * dtype.itemsize > _LIMITS.max_array_bytes:
            raise ValueError(f"holds 'masks' of {dtype} {shape}; expected booleans (K, H, W)")

    try:
        found, names = read_npz(io.BytesIO(data), ("masks",), check)
    except ValueError as error:
        raise SampleError(f"{where}: {error}") from error
    masks = found.get("masks")
    if masks is None or masks.view(f"u{masks.itemsize}").max(initial=0) > 1:
        held = f"the arrays {names}" if masks is None else "other values than 0 and 1"
        raise SampleError(f"{where} holds {held}; expected booleans 'masks' (K, H, W)")
    return masks.astype(bool)


def choose_masks(
    masks: np.ndarray, keypoints: np.ndarray | None, boxes: np.ndarray, people: SamplePeople
) -> tuple[np.ndarray, str]:
    """Which of the masks (K, H, W) each label row of a sample takes.

    Args:
        keypoints: (n, J, 3) x, y [px], confidence of the label rows; None = they have none.
        boxes: (n, 4) of the label rows [px], NaN = unknown.
        people: those stored with the image.

    Returns:
        (n,) int64 mask of each row, -1 = none; and what is wrong with the masks that people name, "" = nothing.
    """
    chosen = np.full(len(boxes), -1, dtype=np.int64)
    person = link_people(keypoints, boxes, people)
    linked = person >= 0
    chosen[linked] = people.mask[person[linked]]
    beyond = chosen >= len(masks)
    fault = f"a person names mask {people.mask.max()} of {len(masks)}" if beyond.any() else ""
    if keypoints is None:
        keypoints = np.full((len(boxes), _NUM_KEYPOINTS, 3), np.nan, dtype=np.float32)
        keypoints[linked] = people.keypoints[person[linked]]
    unnamed = np.flatnonzero((chosen < 0) & (linked | (people.mask < 0).all()))
    free = np.setdiff1d(np.arange(len(masks)), people.mask)
    chosen[unnamed] = np.append(free, -1)[match_masks(masks[free], keypoints[unnamed])]
    chosen[beyond] = -1
    return chosen, fault


def link_people(keypoints: np.ndarray | None, boxes: np.ndarray, people: SamplePeople) -> np.ndarray:
    """(n,) which person of a sample each label row shows, by equal keypoints, else by the nearest box; -1 = none.

    Several rows may show one person. By its box a row shows a person only if no other row's box is clearly nearer.
    """
    linked = np.full(len(boxes), -1, dtype=np.int64)
    if not len(people.mask):
        return linked
    overlap = np.nan_to_num(box_iou(boxes[:, None], people.bbox_xyxy[None]), nan=0.0)
    same = np.where(_equal_keypoints(keypoints, people.keypoints), 1 + overlap, 0)
    linked[same.max(axis=1) > 0] = same.argmax(axis=1)[same.max(axis=1) > 0]
    rest = np.flatnonzero(linked < 0)
    near = overlap[rest]
    near[:, np.unique(linked[linked >= 0])] = 0
    own = near.max(axis=1)
    fits = (own >= _SAME_BOX) & (own >= near.max(axis=0, initial=0)[near.argmax(axis=1)] - _EQUAL_OVERLAP)
    linked[rest[fits]] = near.argmax(axis=1)[fits]
    return linked


def _equal_keypoints(own: np.ndarray | None, others: np.ndarray) -> np.ndarray | bool:
    if own is None:
        return False
    shared = min(own.shape[1], others.shape[1])
    one, other = own[:, None, :shared], others[None, :, :shared]
    known = (np.nan_to_num(one[..., 2]) > 0) & (np.nan_to_num(other[..., 2]) > 0)
    with np.errstate(invalid="ignore", over="ignore"):
        near = (np.abs(one[..., :2] - other[..., :2]) <= _EQUAL_PX).all(axis=-1)
    return (near | ~known).all(axis=-1) & (known.sum(axis=-1) >= _MIN_EQUAL)


def match_masks(masks: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """(n,) which of the masks (K, H, W) is each person's, -1 = none: the assignment whose masks cover most keypoints.

    A mask must cover at least half of a person's keypoints (n, J, 3). Those of confidence 0 are unknown; those outside
    the image count as not covered.
    """
    if not len(masks) or not len(keypoints):
        return np.full(len(keypoints), -1, dtype=np.int64)
    known = (np.nan_to_num(keypoints[..., 2]) > 0) & np.isfinite(keypoints).all(axis=-1)
    column, row = np.moveaxis(np.floor(np.where(known[..., None], keypoints[..., :2], -1)).astype(np.int64), -1, 0)
    height, width = masks.shape[1:]
    on_image = known & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    covered = masks[:, np.where(on_image, row, 0), np.where(on_image, column, 0)] & on_image  # (K, n, J)
    share = covered.sum(axis=-1).T / np.maximum(known.sum(axis=-1), 1)[:, None]
    person, mask = linear_sum_assignment(share, maximize=True)
    result = np.full(len(keypoints), -1, dtype=np.int64)
    result[person] = np.where(share[person, mask] >= _MIN_INSIDE, mask, -1)
    return result


def _unwrapped(value: Any) -> Any:
    """The item of an array of one; anything else as it is."""
    return value.item() if isinstance(value, np.ndarray) and value.shape in ((), (1,)) else value
