"""Instance masks as run lengths, in COCO's compressed counts string, which pycocotools reads and writes.

A mask (H, W) is read column by column, and the counts alternate: background, foreground, background ... From the fourth
count on the difference to the count two before is stored. Every number is written in groups of 5 bits, lowest first, as
characters 48 .. 111 (bit 0x20: more groups follow; bit 0x10 of the last group: the number is negative).
"""

from __future__ import annotations

import numpy as np

MAX_PIXELS = 1 << 28  # of one mask; hostile sizes stop here
_MAX_CHARACTERS = 7  # of one number: 35 bits, far above MAX_PIXELS
_ALL = slice(None)


class RleError(ValueError):
    """A counts string that does not describe a mask of the given size."""


def encode_rle(mask: np.ndarray) -> bytes:
    """Compressed counts of a mask (H, W) bool."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    if flat.size == 0 or np.ndim(mask) != 2:
        raise RleError(f"mask has shape {np.shape(mask)}; expected (H, W) with at least one pixel")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]  # the first run is background, of no pixel where the mask begins in foreground
    values = np.diff(np.concatenate((first, changes, [flat.size])))
    values[3:] -= values[1:-2].copy()
    shifted = values[:, None] >> (5 * np.arange(_MAX_CHARACTERS))  # arithmetic: negative numbers end in -1
    group, rest = shifted & 0x1F, shifted >> 5
    more = np.where((group & 0x10) != 0, rest != -1, rest != 0)
    used = np.concatenate((np.ones((values.size, 1), dtype=bool), np.cumprod(more, axis=1)[:, :-1] != 0), axis=1)
    return bytes(((group | (more << 5)) + 48).astype(np.uint8)[used])


def decode_rle(
    counts: bytes, height: int, width: int, rows: np.ndarray | slice = _ALL, cols: np.ndarray | slice = _ALL
) -> np.ndarray:
    """(h, w) bool: some rows and columns of a mask, by index; all unless they are given.

    Raises:
        RleError: the string is damaged or its runs do not fill the size.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RleError(f"mask size {height} x {width}; expected 1 .. {MAX_PIXELS} pixels")
    runs = _read_runs(np.frombuffer(counts, dtype=np.uint8))
    if runs is None:
        raise RleError(f"run lengths {counts[:20]!r}... are not a COCO compressed counts string")
    if (total := int(runs.sum())) != height * width:
        raise RleError(f"run lengths add up to {total} pixels; expected {height} x {width} = {height * width}")
    columns = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(columns[cols][:, rows].T)


def measure_rles(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of many masks, without decoding one.

    Args:
        data: (n,) uint8, the counts strings one after the other.
        offsets: (M + 1,) int, where each begins and the last ends.

    Returns:
        foreground (M,) and total (M,) int64 [px]; both -1 where a string is damaged (an empty one included).
    """
    sizes = np.full((2, offsets.size - 1), -1, dtype=np.int64)
    for mask, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        runs = _read_runs(data[start:end]) if end > start else None
        if runs is not None:
            sizes[:, mask] = runs[1::2].sum(), runs.sum()
    return sizes[0], sizes[1]


def _read_runs(characters: np.ndarray) -> np.ndarray | None:
    """Runs (n,) int64 of a counts string.

    None: it is empty, or has other characters, a number that is too long or does not end, or a negative run.
    """
    code = characters.astype(np.int64) - 48
    if not code.size or code.min() < 0 or code.max() > 63 or code[-1] & 0x20:
        return None
    last = np.flatnonzero((code & 0x20) == 0) + 1
    first = np.concatenate(([0], last[:-1]))
    if (last - first).max() > _MAX_CHARACTERS:
        return None
    place = 5 * (np.arange(code.size) - np.repeat(first, last - first))
    runs = np.add.reduceat((code & 0x1F) << place, first)
    runs -= ((code[last - 1] & 0x10) >> 4) << (5 * (last - first))
    for chain in (slice(1, None, 2), slice(2, None, 2)):  # from the fourth on: differences to the run two before
        runs[chain] = runs[chain].cumsum()
    return None if runs.min() < 0 else runs
