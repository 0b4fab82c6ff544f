"""What is known about people besides their labels: the sidecar first, then the label file itself, then masks in tars.

Joins the three and remembers for each image where masks and attributes came from. Masks in tars belong to no label
row: `sources.fourd_humans` says whose each is. Sizes in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from posixpath import splitext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.images import ImageCorrupt, ImageMissing, ImageStore
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.fourd_humans import (
    MASKS_EXTENSION,
    MAX_MEMBER_BYTES,
    PEOPLE_EXTENSION,
    SampleError,
    choose_masks,
    parse_masks,
    parse_people,
)
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.data.sources.sidecar import SidecarRows
from dto_pipeline.data.tar_walk import sample_key
from dto_pipeline.data.tars import IMAGE_EXTENSIONS, split_address

_ORIGINS = ("sidecar", "labels", "detection")  # bit 0, 1, 2 of an origin code


@dataclass(frozen=True)
class SeenPeople:
    """n people of m images."""

    rows: SidecarRows  # n
    mask_origin: pa.StringArray  # m, null = none
    attribute_origin: pa.StringArray  # m, null = unknown
    unreadable: dict[int, str]  # image -> why the masks in its tar could not be read


def join_seen(
    labels: LabelRows,
    sidecar: SidecarRows,
    counts: np.ndarray,
    files: Sequence[str],
    store: ImageStore | None,
    pool: Executor,
) -> SeenPeople:
    """Everything known about the people of some images.

    Args:
        labels: n label rows, image by image.
        sidecar: what the sidecar says about them.
        counts: (m,) int >= 1, people of each image.
        files: m image files; addresses in tars where masks are looked for.
        store: where the images and the masks beside them are read from; None = such masks are not looked for.
        pool: threads that read masks.
    """
    seen, told = sidecar, labels.seen
    starts = np.cumsum(counts) - counts
    masked, known = _has_mask(seen).astype(int), _has_attributes(seen).astype(int)
    if told is not None:
        masked |= (_has_mask(told) & (masked == 0)) << 1
        known |= _adds_attributes(told, seen) << 1
        seen = merge_seen(seen, told)
    unreadable: dict[int, str] = {}
    if store is not None:
        found, unreadable = _read_detections(labels, starts, files, store, pool)
        masked |= (_has_mask(found) & (masked == 0)) << 2
        seen = merge_seen(seen, found)
    return SeenPeople(seen, _words(masked, starts), _words(known, starts), unreadable)


def merge_seen(first: SidecarRows, second: SidecarRows) -> SidecarRows:
    """What `first` says of each person, and `second` where that is unknown."""
    own = _has_mask(first)

    def fill(name: str) -> np.ndarray:
        values = getattr(first, name)
        return np.where(np.isnan(values), getattr(second, name), values)

    masks = {
        name: np.where(own, getattr(first, name), getattr(second, name))
        for name in ("mask_height", "mask_width", "mask_damaged", "mask_empty")
    }
    rle = pc.if_else(pa.array(own), first.mask_rle, second.mask_rle)
    notes = {key: first.notes.get(key, 0) + second.notes.get(key, 0) for key in {**first.notes, **second.notes}}
    return SidecarRows(
        **{name: fill(name) for name in ("age_years", "male_prob", "det_score")},
        mask_rle=single_array(rle),
        **masks,
        notes=notes,
    )


def _has_mask(seen: SidecarRows) -> np.ndarray:
    return seen.mask_rle.is_valid().to_numpy(zero_copy_only=False)


def _has_attributes(seen: SidecarRows) -> np.ndarray:
    return np.isfinite(seen.age_years) | np.isfinite(seen.male_prob)


def _adds_attributes(told: SidecarRows, seen: SidecarRows) -> np.ndarray:
    """(n,) bool: `told` knows something that `seen` does not."""
    names = ("age_years", "male_prob")
    adds = [np.isfinite(getattr(told, name)) & ~np.isfinite(getattr(seen, name)) for name in names]
    return adds[0] | adds[1]


def _words(code: np.ndarray, starts: np.ndarray) -> pa.StringArray:
    """One word per image from the origins of its people."""
    union = np.bitwise_or.reduceat(code, starts) if starts.size else code
    words = [
        "+".join(word for bit, word in enumerate(_ORIGINS) if number >> bit & 1) or None
        for number in range(1 << len(_ORIGINS))
    ]
    return pa.array(words, pa.string()).take(pa.array(union, pa.int64()))


@dataclass(frozen=True)
class _Mask:
    """One encoded mask; encoded by the thread that read it, so that masks of a whole shard fit into memory."""

    rle: bytes
    height: int
    width: int
    is_empty: bool


_NO_MASK = _Mask(b"", 0, 0, False)


def _read_detections(
    labels: LabelRows, starts: np.ndarray, files: Sequence[str], store: ImageStore, pool: Executor
) -> tuple[SidecarRows, dict[int, str]]:
    """Masks of all people as `SidecarRows` that know nothing else, and why those of some images cannot be read."""
    stops = [*starts[1:].tolist(), len(labels.pose)]

    def read(image: int) -> tuple[list[_Mask], str]:
        own = slice(int(starts[image]), stops[image])
        keypoints = None if labels.keypoints is None else labels.keypoints[own]
        try:
            return _masks_of_people(store, files[image], keypoints, labels.bbox_xyxy[own])
        except (ImageCorrupt, SampleError, PickleRefused) as error:
            return [_NO_MASK] * (own.stop - own.start), str(error)

    found = list(pool.map(read, range(len(files))))
    masks = [mask for people, _ in found for mask in people]
    return _only_masks(masks), {image: reason for image, (_, reason) in enumerate(found) if reason}


def _masks_of_people(
    store: ImageStore, image_file: str, keypoints: np.ndarray | None, boxes: np.ndarray
) -> tuple[list[_Mask], str]:
    """The mask of each person of one image, and what is wrong with some ("" = nothing).

    Args:
        image_file: address of the image.
        keypoints: (n, J, 3) of its label rows, None = they have none; boxes: (n, 4) [px].
    """
    sample = _sample_of(image_file)
    data = _read_beside(store, f"{sample}.{MASKS_EXTENSION}")
    if data is None:  # this image has no masks: everybody may own the whole picture
        return [_NO_MASK] * len(boxes), ""
    masks = parse_masks(data, f"{sample}.{MASKS_EXTENSION}")
    data = _read_beside(store, f"{sample}.{PEOPLE_EXTENSION}")
    people = None if data is None else parse_people(data, f"{sample}.{PEOPLE_EXTENSION}")
    chosen, fault = choose_masks(masks, keypoints, boxes, people)
    return [_encode(masks[mask]) if mask >= 0 else _NO_MASK for mask in chosen.tolist()], fault


def _sample_of(image_file: str) -> str:
    """Name of an image's sample, in its tar or folder: up to its first dot, where an image's ending follows."""
    tar, member = split_address(image_file) or ("", image_file)
    key, extension = sample_key(member)
    if extension.lower() not in IMAGE_EXTENSIONS:  # found under its whole name: the sample is not that of its first dot
        key = splitext(member)[0]
    return f"{tar}!{key}" if tar else key


def _read_beside(store: ImageStore, name: str) -> bytes | None:
    """A file beside an image, None where there is none. Raises: ImageCorrupt."""
    try:
        return store.read_bytes(name, MAX_MEMBER_BYTES)
    except ImageMissing:
        return None


def _encode(mask: np.ndarray) -> _Mask:
    return _Mask(encode_rle(mask), mask.shape[0], mask.shape[1], not mask.any())


def _only_masks(masks: Sequence[_Mask]) -> SidecarRows:
    unknown = np.full(len(masks), np.nan, dtype=np.float32)
    return SidecarRows(
        age_years=unknown,
        male_prob=unknown,
        det_score=unknown,
        mask_rle=pa.array([mask.rle or None for mask in masks], pa.binary()),
        mask_height=np.array([mask.height for mask in masks], dtype=np.int32),
        mask_width=np.array([mask.width for mask in masks], dtype=np.int32),
        mask_damaged=np.zeros(len(masks), dtype=bool),
        mask_empty=np.array([mask.is_empty for mask in masks], dtype=bool),
    )
