from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dto_pipeline.data.rle import RleError, decode_rle, encode_rle, measure_rles

MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


def slow_counts(mask: np.ndarray) -> list[int]:
    """Runs pixel by pixel, column by column, background first."""
    counts, value, run = [], False, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(run)
                value, run = not value, 0
            run += 1
    return [*counts, run]


def slow_string(counts: list[int]) -> bytes:
    """COCO's compression, number by number, as its format description says."""
    letters = bytearray()
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group = rest & 0x1F
            rest >>= 5
            more = rest != -1 if group & 0x10 else rest != 0
            letters.append((group | 0x20 if more else group) + 48)
    return bytes(letters)


def joined(strings: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(strings), np.uint8), np.cumsum([0, *map(len, strings)])


@given(MASKS)
def test_strings_equal_those_of_a_slow_independent_encoder(mask):
    assert encode_rle(mask) == slow_string(slow_counts(mask))


@given(MASKS)
def test_decoding_gives_the_mask_back(mask):
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), *mask.shape), mask)


@given(MASKS, st.data())
def test_chosen_rows_and_columns_equal_indexing_the_whole_mask(mask, data):
    def pick(size):
        return np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))

    height, width = mask.shape
    rows, cols = pick(height), pick(width)
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), height, width, rows, cols), mask[rows][:, cols])


@given(st.lists(st.one_of(MASKS.map(encode_rle), st.binary(max_size=6)), max_size=8))
def test_measuring_many_strings_equals_reading_one_by_one(strings):
    foreground, total = measure_rles(*joined(strings))
    for string, area, pixels in zip(strings, foreground, total, strict=True):
        if 0 < pixels < 1 << 20:
            assert decode_rle(string, 1, int(pixels)).sum() == area
        elif pixels <= 0:
            with pytest.raises(RleError):
                decode_rle(string, 5, 5)


@settings(max_examples=300)
@given(st.binary(max_size=30), st.integers(1, 50), st.integers(1, 50))
def test_arbitrary_bytes_are_a_mask_of_the_right_size_or_an_error(data, height, width):
    try:
        mask = decode_rle(data, height, width)
    except RleError:
        return
    assert mask.shape == (height, width)


def test_long_runs_and_falling_differences_survive():
    mask = np.zeros((2000, 1500), bool)
    mask[:, 700:] = True
    mask[3, 1] = mask[1999, 1499] = True
    mask[500, 900] = False
    assert encode_rle(mask) == slow_string(slow_counts(mask))
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), *mask.shape), mask)


def test_many_masks_are_measured_across_the_borders_of_pieces():
    masks = [np.arange(12).reshape(3, 4) < k % 13 for k in range(700)]
    foreground, total = measure_rles(*joined([encode_rle(mask) for mask in masks]))
    assert foreground.tolist() == [int(mask.sum()) for mask in masks]
    assert set(total.tolist()) == {12}


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (b"", "not a COCO"),
        (b"\x00", "not a COCO"),
        (b"P", "not a COCO"),  # a number that goes on, but does not
        (b"ooooooooo0", "not a COCO"),  # a number of too many characters
        (b"2", "add up to 2"),
        (b"1O14", "not a COCO"),  # a negative run
    ],
)
def test_damaged_strings_are_refused_with_a_reason(counts, why):
    with pytest.raises(RleError, match=why):
        decode_rle(counts, 3, 2)


def test_hostile_sizes_are_refused_before_memory_is_asked_for():
    with pytest.raises(RleError, match="mask size"):
        decode_rle(b"0", 1 << 20, 1 << 20)
