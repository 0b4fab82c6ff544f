"""Join what is known about people besides their labels: from the sidecar, else the label file, else the masks in tars.

For each image it is recorded where its masks, ages and genders came from. Masks in tars are not ordered by label row:
`sources.fourd_humans` decides whose each is. Sizes in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from posixpath import splitext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import pick_words, single_array
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
from dto_pipeline.data.sources.rows import SEEN_RANGES, LabelRows, SeenRows, judge_seen
from dto_pipeline.data.tars import split_address

_ORIGINS = ("sidecar", "labels", "detection")  # bit 0, 1, 2 of an origin code
_MASK = ("mask_height", "mask_width", "mask_damaged")  # what belongs to `mask_rle`

Mask = tuple[bytes | None, int, int]  # run lengths (None = no mask), height, width


@dataclass(frozen=True)
class SeenPeople:
    rows: SeenRows  # n
    mask_origin: pa.StringArray  # m words joined by "+", null = no mask
    attribute_origin: pa.StringArray  # m, the same of ages and genders
    unreadable: dict[int, str]  # image -> why the masks beside it could not be read


def join_seen(
    labels: LabelRows,
    sidecar: SeenRows,
    counts: np.ndarray,
    files: Sequence[str],
    store: ImageStore | None,
    pool: Executor,
) -> SeenPeople:
    """Everything that is known about the n people of m images, `counts` (m,) of each.

    Args:
        files: m names of image files, or addresses in tars.
        store: where masks beside the images are read from; None = they are not looked for.
        pool: threads that read masks.
    """
    starts = np.cumsum(counts) - counts
    parts, unreadable = [sidecar, labels.seen], dict[int, str]()
    if store is not None:
        detections, unreadable = _read_detections(labels, counts, files, store, pool)
        parts.append(detections)
    seen = judge_seen({}, pa.nulls(len(labels.pose), pa.binary()))
    masked = known = np.zeros(len(labels.pose), np.int64)
    for bit, part in enumerate(parts):
        masked = masked | (part.has_mask & ~seen.has_mask) << bit
        for name in ("age_years", "male_prob"):
            known = known | (np.isfinite(getattr(part, name)) & ~np.isfinite(getattr(seen, name))) << bit
        seen = _fill_gaps(seen, part)
    words = ["+".join(word for bit, word in enumerate(_ORIGINS) if code >> bit & 1) or None for code in range(8)]
    origins = [np.bitwise_or.reduceat(code, starts) if starts.size else code for code in (masked, known)]
    return SeenPeople(seen, pick_words(words, origins[0]), pick_words(words, origins[1]), unreadable)


def _fill_gaps(first: SeenRows, second: SeenRows) -> SeenRows:
    own = {name: ~np.isnan(getattr(first, name)) for name in SEEN_RANGES} | dict.fromkeys(_MASK, first.has_mask)
    return SeenRows(
        **{name: np.where(known, getattr(first, name), getattr(second, name)) for name, known in own.items()},
        mask_rle=single_array(pc.if_else(pa.array(first.has_mask), first.mask_rle, second.mask_rle)),
        notes=Counter(first.notes) + Counter(second.notes),
    )


def _read_detections(
    labels: LabelRows, counts: np.ndarray, files: Sequence[str], store: ImageStore, pool: Executor
) -> tuple[SeenRows, dict[int, str]]:
    """The masks beside the images, as rows of their people; and image -> why its masks could not be read."""
    edges = [0, *np.cumsum(counts).tolist()]

    def read(image: int) -> tuple[list[Mask], str]:
        own = slice(edges[image], edges[image + 1])
        keypoints = None if labels.keypoints is None else labels.keypoints[own]
        try:
            return _masks_of_people(store, files[image], keypoints, labels.bbox_xyxy[own])
        except (ImageCorrupt, SampleError, PickleRefused) as error:
            return [(None, 0, 0)] * int(counts[image]), str(error)

    found = list(pool.map(read, range(len(files))))
    masks = [mask for people, _ in found for mask in people]
    height, width = np.array([mask[1:] for mask in masks], np.float32).reshape(-1, 2).T
    sizes = {"mask_height": height, "mask_width": width}
    seen = judge_seen(sizes, pa.array([mask[0] for mask in masks], pa.binary()))
    return seen, {image: reason for image, (_, reason) in enumerate(found) if reason}


def _masks_of_people(
    store: ImageStore, image_file: str, keypoints: np.ndarray | None, boxes: np.ndarray
) -> tuple[list[Mask], str]:
    """The mask of each person of one image, encoded so that those of a shard fit into memory; and what is wrong."""

    def read(extension: str) -> bytes | None:
        try:
            return store.read_bytes(f"{sample}.{extension}", MAX_MEMBER_BYTES)
        except ImageMissing:
            return None

    tar, member = split_address(image_file) or ("", image_file)
    key = splitext(member)[0]
    sample = f"{tar}!{key}" if tar else key
    data = read(MASKS_EXTENSION)
    if data is None:  # this image has no masks
        return [(None, 0, 0)] * len(boxes), ""
    masks = parse_masks(data, f"{sample}.{MASKS_EXTENSION}")
    people = parse_people(read(PEOPLE_EXTENSION), f"{sample}.{PEOPLE_EXTENSION}")
    chosen, fault = choose_masks(masks, keypoints, boxes, people)
    found = [(encode_rle(masks[mask]), *masks.shape[1:]) if mask >= 0 else (None, 0, 0) for mask in chosen.tolist()]
    return found, fault
