"""4D-Humans training tars (WebDataset layout): images, and where present the people and masks beside them.

| member of a sample KEY     | becomes                                                                |
|----------------------------|------------------------------------------------------------------------|
| KEY.jpg, .jpeg, .png       | an image by its address ``<tar>!<member>``; its bytes stay as they are |
| KEY.data.pyd               | people: keypoints, boxes; a pickle, read without running it            |
| KEY.detection.npz          | instance masks (K, H, W)                                               |

The tars hold no translation and no camera: they are sources of images (see `data.tar_images`) and masks, not of labels.
Foreign names (keypoints_2d, center ...) end here. Positions in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from dto_pipeline.data.safe_pickle import Limits, safe_load_npz, safe_loads
from dto_pipeline.data.tar_index import TarIndex, TarMember

PEOPLE_EXTENSION = "data.pyd"
MASKS_EXTENSION = "detection.npz"
NUM_KEYPOINTS = 44
_BOX_UNIT = 200.0  # scale is the box's size over this [px]
_LIMITS = Limits(max_stream_bytes=2**26, max_opcodes=2_000_000, max_items=2_000_000, max_array_bytes=2**30)
_MIN_INSIDE = 0.5  # share of a person's keypoints its mask must cover


class SampleError(ValueError):
    """A member that is not what its name promises; the message names its address and what was found."""


@dataclass(frozen=True)
class SamplePeople:
    """n people of one sample, in its order. NaN = absent in the file, or unusable there."""

    keypoints: np.ndarray  # (n, 44, 3) float32 x, y [px], confidence
    bbox_xyxy: np.ndarray  # (n, 4) float32 [px]


def read_people(index: TarIndex, member: TarMember) -> SamplePeople:
    """The people of a ``.data.pyd`` member.

    Raises:
        MemberUnreadable: the bytes cannot be read.
        UnsafePickle, BrokenPickle: see `data.safe_pickle`; the message names the member.
        SampleError: a pickle of something else than a list of people.
    """
    return parse_people(index.read_member(member, _LIMITS.max_stream_bytes), member.address)


def parse_people(data: bytes, where: str) -> SamplePeople:
    """See `read_people`; `where` names the bytes in messages."""
    people = safe_loads(data, limits=_LIMITS, where=where)
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise SampleError(f"{where} holds {type(people).__name__}; expected a list with one dict per person")

    def column(key: str, shape: tuple[int, ...]) -> np.ndarray:
        rows = np.full((len(people), *shape), np.nan, dtype=np.float32)
        for row, person in enumerate(people):
            rows[row] = _numbers(person, key, shape)
        return rows

    with np.errstate(over="ignore", invalid="ignore"):  # what single precision cannot hold becomes infinite, then NaN
        centre, half = column("center", (2,)), column("scale", ())[:, None] * (_BOX_UNIT / 2)
        return SamplePeople(
            keypoints=column("keypoints_2d", (NUM_KEYPOINTS, 3)),
            bbox_xyxy=np.concatenate([centre - half, centre + half], axis=1),
        )


def read_masks(index: TarIndex, member: TarMember) -> np.ndarray:
    """(K, H, W) bool instance masks of a ``.detection.npz`` member.

    Raises:
        MemberUnreadable: the bytes cannot be read.
        UnsafePickle, BrokenPickle: not a sound npz; the message names the member.
        SampleError: no `masks`, or of another shape or type.
    """
    return parse_masks(index.read_member(member, _LIMITS.max_stream_bytes), member.address)


def parse_masks(data: bytes, where: str) -> np.ndarray:
    """See `read_masks`; `where` names the bytes in messages."""
    masks = safe_load_npz(io.BytesIO(data), keys=("masks",), limits=_LIMITS, where=where).get("masks")
    if masks is None or masks.ndim != 3 or masks.dtype.kind not in "bu" or masks.max(initial=0) > 1:
        found = "no array 'masks'" if masks is None else f"'masks' of {masks.dtype} {masks.shape}"
        raise SampleError(f"{where} has {found}; expected booleans (K, H, W)")
    return masks.astype(bool)


def match_masks(masks: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Which mask is whose: the assignment that covers most keypoints, where a mask covers at least half of a person's.

    Args:
        masks: (K, H, W) bool.
        keypoints: (n, J, 3) x, y [px], confidence; points of confidence 0 are unknown, known ones off the image count
            as uncovered.

    Returns:
        (n,) int64 mask of each person, -1 = none.
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


def _numbers(person: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Any:
    """A person's numbers of this shape; NaN where they are absent, no numbers, or of another shape."""
    try:
        value = np.asarray(person.get(key, np.nan), dtype=np.float32)
    except (TypeError, ValueError):
        return np.nan
    same = value.shape == shape or (shape == () and value.shape == (1,))
    return value.reshape(shape) if same else np.nan
