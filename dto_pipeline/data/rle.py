"""Instance masks as run lengths, in the compressed counts string of COCO (the one pycocotools reads and writes).

Knows runs and pixels, no files and no persons. A mask (H, W) is read column by column (row index fastest); counts
alternate background, foreground, background ...; the third count before last is subtracted from the fourth on, and
every number is written in 5-bit groups, lowest first, as characters 48 .. 111 (bit 0x20: more follow; bit 0x10 of the
last: negative).
"""

from __future__ import annotations

import numpy as np

MAX_PIXELS = 1 << 28  # of one mask; hostile sizes stop here
_PIECE = 256  # masks measured at once: their numbers stay in the cache
_MAX_CHARACTERS = 7  # of one number: 35 bits, far above MAX_PIXELS


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


def decode_rle(counts: bytes, height: int, width: int) -> np.ndarray:
    """The full mask, (height, width) bool. Raises: RleError: the string is damaged or its runs do not fill the size."""
    runs = _read_runs(counts, height, width)
    values = np.arange(runs.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def sample_rle(counts: bytes, height: int, width: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Some rows and columns of a mask, straight from its runs: ``decode_rle(...)[rows][:, cols]``.

    Args:
        counts: compressed counts of a (height, width) mask.
        rows: (h,) int, strictly increasing, in 0 .. height - 1; cols: (w,) int, likewise in 0 .. width - 1.

    Returns:
        (h, w) bool.

    Raises:
        RleError: the string is damaged or its runs do not fill the size.
    """
    for name, picks, size in (("rows", rows, height), ("cols", cols, width)):
        if not (picks.size and picks[0] >= 0 and picks[-1] < size) or np.any(picks[1:] <= picks[:-1]):
            raise ValueError(f"{name} must be strictly increasing in 0 .. {size - 1}")
    ends = np.cumsum(_read_runs(counts, height, width))[:-1]
    # how many samples, in column-major order, lie before the end of each run
    column, row = np.divmod(ends, height)
    full_columns = np.searchsorted(cols, column)
    in_this_column = np.append(cols, -1)[full_columns] == column
    border = full_columns * rows.size + in_this_column * np.searchsorted(rows, row)
    mask = np.zeros((rows.size, cols.size), dtype=bool)
    if border.size == 0:
        return mask
    left = border[0] // rows.size  # only columns from the first change on are worth a pass
    right = min(border[-1] // rows.size + 1, cols.size) if border.size % 2 == 0 else cols.size
    toggles = np.zeros((right - left) * rows.size + 1, dtype=np.uint8)
    np.bitwise_xor.at(toggles, np.minimum(border - left * rows.size, toggles.size - 1), 1)
    mask[:, left:right] = np.bitwise_xor.accumulate(toggles[:-1]).reshape(right - left, rows.size).T
    return mask


def measure_rles(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of many masks at once, without decoding one.

    Args:
        data: (n,) uint8, the counts strings one after the other.
        offsets: (M + 1,) int, where each begins and the last ends.

    Returns:
        foreground (M,) and total (M,) int64 [px]; both -1 where a string is damaged (an empty one included).
    """
    pieces = [_measure_piece(data, offsets[start : start + _PIECE + 1]) for start in range(0, offsets.size - 1, _PIECE)]
    if not pieces:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    foreground, total = zip(*pieces, strict=True)
    return np.concatenate(foreground), np.concatenate(total)


def _measure_piece(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    masks = offsets.size - 1
    foreground, total = np.full(masks, -1, dtype=np.int64), np.full(masks, -1, dtype=np.int64)
    sound = _sound_strings(data, offsets)
    if not sound.any():
        return foreground, total
    kept = np.repeat(sound, np.diff(offsets))
    lengths = np.diff(offsets)[sound]
    numbers, last = _read_numbers(data[offsets[0] : offsets[-1]][kept])
    ends = np.searchsorted(last, np.cumsum(lengths), side="right")  # numbers up to the end of each string
    runs = _undo_differences(numbers, ends)
    starts = np.concatenate(([0], ends[:-1]))
    odd = (np.arange(runs.size) - np.repeat(starts, ends - starts)) % 2 == 1
    fits = np.minimum.reduceat(runs, starts) >= 0
    foreground[sound] = np.where(fits, np.add.reduceat(runs * odd, starts), -1)
    total[sound] = np.where(fits, np.add.reduceat(runs, starts), -1)
    return foreground, total


def _read_runs(counts: bytes, height: int, width: int) -> np.ndarray:
    """Runs (n,) int64 of one mask, checked against its size."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RleError(f"mask size {height} x {width}; expected 1 .. {MAX_PIXELS} pixels")
    data = np.frombuffer(counts, dtype=np.uint8)
    if not _sound_strings(data, np.array([0, data.size]))[0]:
        raise RleError(f"run lengths {counts[:20]!r}... are not a COCO compressed counts string")
    numbers, _ = _read_numbers(data)
    runs = _undo_differences(numbers, np.array([numbers.size]))
    total = int(runs.sum())
    if runs.min() < 0 or total != height * width:
        raise RleError(f"run lengths add up to {total} pixels; expected {height} x {width} = {height * width}")
    return runs


def _sound_strings(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(M,) bool: not empty, only characters 48 .. 111, no number of too many characters, the last one finished."""
    lengths = np.diff(offsets)
    if offsets[-1] == offsets[0]:
        return lengths > 0
    code = data[offsets[0] : offsets[-1]].astype(np.int16) - 48
    more = (code & 0x20) != 0
    ends = offsets[1:] - offsets[0]
    open_run = np.arange(code.size) - np.maximum.accumulate(np.where(more, -1, np.arange(code.size)))
    bad = (code < 0) | (code > 63) | (open_run >= _MAX_CHARACTERS)
    before = np.concatenate(([0], np.cumsum(bad)))
    clean = before[ends] == before[ends - lengths]
    unfinished = more[np.maximum(ends - 1, 0)]
    return (lengths > 0) & clean & ~unfinished


def _read_numbers(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed numbers (n,) int64 of sound strings, and the position (n,) after the last character of each."""
    code = data.astype(np.int64) - 48
    last = np.flatnonzero((code & 0x20) == 0) + 1
    first = np.concatenate(([0], last[:-1]))
    place = 5 * (np.arange(code.size) - np.repeat(first, last - first))
    numbers = np.add.reduceat((code & 0x1F) << place, first)
    negative = (code[last - 1] & 0x10) != 0
    return numbers - (negative.astype(np.int64) << (5 * (last - first))), last


def _undo_differences(numbers: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Runs from numbers: from the fourth on, a number is the difference to the run two before, string by string."""
    starts = np.concatenate(([0], ends[:-1]))
    place = np.arange(numbers.size) - np.repeat(starts, ends - starts)
    runs = numbers.copy()
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        member = np.flatnonzero(chain)
        summed = np.cumsum(numbers[member])
        before = np.searchsorted(member, starts)  # members in earlier strings
        earlier = np.concatenate(([0], summed))[before]
        in_chain = np.diff(np.append(before, member.size))
        runs[member] = summed - np.repeat(earlier, in_chain)
    return runs
