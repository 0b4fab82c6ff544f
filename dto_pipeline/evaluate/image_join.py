"""Which image of one file is which image of another: by name, with as many folders as both sides agree on.

Data sets write the same image as ``insta-train/a/b/c.jpg``, ``a/b/c.jpg`` or ``c.jpg``. Compared are whole names first,
then their last 3, 2 and 1 parts; the longest form under which most images meet is used. Names only; opens no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dto_pipeline.errors import DtoError

_PARTS = (None, 3, 2, 1)  # of a name that are compared, whole names first


class ImageJoinError(DtoError, ValueError):
    """Two files that have no image in common; the message shows names of both."""


@dataclass(frozen=True)
class ImageJoin:
    """N true images and where they are among the found ones."""

    found: np.ndarray  # (N,) int64 position among the found images, -1 = it has none
    strangers: tuple[str, ...]  # found images that are no true image
    parts: int | None  # of the names that were compared; None = all

    @property
    def note(self) -> str:
        """How images were recognised, for the reader of the numbers."""
        return "" if self.parts is None else f"images were recognised by the last {self.parts} part(s) of their names"


def join_images(found: Sequence[str], truth: Sequence[str]) -> ImageJoin:
    """Find every true image among the found ones.

    Args:
        found, truth: names, each side's own once each.

    Raises:
        ImageJoinError: no image in common.
    """
    best: tuple[int, int | None, dict[str, int], list[str]] = (0, None, {}, [])
    for parts in _PARTS:
        places = _unique_keys([_key(name, parts) for name in found])
        keys = [_key(name, parts) for name in truth]
        times = Counter(keys)
        common = sum(key in places and times[key] == 1 for key in keys)
        if common > best[0]:
            best = (common, parts, {key: place for key, place in places.items() if times[key] == 1}, keys)
    if best[0] == 0:
        raise ImageJoinError(
            f"no image in common: one side has {list(found[:2])} ..., the other {list(truth[:2])} ...; "
            "compare files of the same images"
        )
    _, parts, places, keys = best
    where = np.array([places.get(key, -1) for key in keys], dtype=np.int64)
    known = set(where.tolist())
    return ImageJoin(where, tuple(name for place, name in enumerate(found) if place not in known), parts)


def _key(name: str, parts: int | None) -> str:
    pieces = [piece for piece in str(name).replace("\\", "/").split("/") if piece not in ("", ".")]
    return "/".join(pieces if parts is None else pieces[-parts:])


def _unique_keys(keys: Sequence[str]) -> dict[str, int]:
    """Key -> position, of keys that occur once."""
    times = Counter(keys)
    return {key: place for place, key in enumerate(keys) if times[key] == 1}
