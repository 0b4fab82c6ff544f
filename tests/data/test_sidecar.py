from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.sources.sidecar import Sidecar, write_sidecar

BLOCK = np.arange(12).reshape(3, 4) > 7


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_join_by_label_row_whatever_their_order(tmp_path):
    order = np.random.default_rng(0).permutation(10_000)  # several batches
    write_sidecar(tmp_path / "s.parquet", order, age_years=order / 100, det_score=order / 10_000)
    asked = np.array([9_999, 3, 3, 5_000, 0])
    rows = Sidecar(tmp_path / "s.parquet", 10_000).rows(asked)
    np.testing.assert_allclose(rows.age_years, asked / 100, rtol=1e-6)
    np.testing.assert_allclose(rows.det_score, asked / 10_000, rtol=1e-6)
    assert np.isnan(rows.male_prob).all()
    assert rows.mask_rle.null_count == 5


def test_absent_rows_columns_and_the_absent_sidecar_are_unknown(tmp_path):
    write_sidecar(tmp_path / "s.parquet", np.array([1]), male_prob=np.array([0.25]))
    rows = Sidecar(tmp_path / "s.parquet", 3).rows(np.arange(3))
    np.testing.assert_array_equal(rows.male_prob, [np.nan, 0.25, np.nan])
    nothing = Sidecar(None, 3).rows(np.array([2, 0]))
    assert np.isnan(nothing.age_years).all()
    assert nothing.mask_rle.null_count == 2
    assert not nothing.mask_damaged.any()
    assert nothing.mask_height.tolist() == [0, 0]


def test_numbers_out_of_range_become_unknown_and_are_counted(tmp_path):
    age, male = np.array([-1, 30, 200, np.inf, np.nan]), np.array([0, 1, 1.1, -0.1, np.nan])
    write_sidecar(tmp_path / "s.parquet", np.arange(5), age_years=age, male_prob=male)
    rows = Sidecar(tmp_path / "s.parquet", 5).rows(np.arange(5))
    np.testing.assert_array_equal(rows.age_years, [np.nan, 30, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(rows.male_prob, [0, 1, np.nan, np.nan, np.nan])
    assert sorted(rows.notes.values()) == [2, 2]  # -1 is a way to write that an age is not known


def test_damaged_masks_are_found(tmp_path):
    full = encode_rle(BLOCK)
    masks = [full, encode_rle(np.zeros((3, 4), bool)), b"\x00damaged", full, full, None, b""]
    write_sidecar(
        tmp_path / "s.parquet",
        np.arange(7),
        mask_rle=masks,
        mask_height=np.array([3, 3, 3, 4, 0, 3, 3]),
        mask_width=np.full(7, 4),
    )
    rows = Sidecar(tmp_path / "s.parquet", 7).rows(np.arange(7))
    assert rows.mask_damaged.tolist() == [False, False, True, True, True, False, True]
    assert rows.mask_rle.to_pylist() == masks
    assert rows.mask_width.tolist() == [4, 4, 4, 4, 4, 0, 4]


def test_masks_of_all_but_the_person_are_counted(tmp_path):
    small = np.zeros((3, 4), bool)
    small[1, :2] = True
    for mask, notes in ((small, []), (~small, [2])):
        masks = [encode_rle(mask)] * 2
        write_sidecar(tmp_path / "s.parquet", np.arange(2), mask_rle=masks, mask_height=[3] * 2, mask_width=[4] * 2)
        rows = Sidecar(tmp_path / "s.parquet", 2).rows(np.arange(2))
        assert list(rows.notes.values()) == notes
        assert not rows.mask_damaged.any()


def test_a_mask_of_impossible_size_is_damaged(tmp_path):
    masks = {"mask_rle": [encode_rle(BLOCK)], "mask_height": [1 << 40], "mask_width": [4]}
    path = write(tmp_path / "s.parquet", label_row=[0], **masks)
    assert Sidecar(path, 1).rows(np.arange(1)).mask_damaged.tolist() == [True]


def test_wider_types_are_converted(tmp_path):
    path = write(
        tmp_path / "s.parquet",
        label_row=pa.array([0, 1], pa.int32()),
        age_years=pa.array([1.5, None], pa.float64()),
        mask_rle=pa.array([encode_rle(BLOCK), None], pa.large_binary()),
        mask_height=pa.array([3, None], pa.int64()),
        mask_width=pa.array([4, None], pa.int64()),
    )
    rows = Sidecar(path, 2).rows(np.arange(2))
    np.testing.assert_array_equal(rows.age_years, [1.5, np.nan])
    assert rows.mask_damaged.tolist() == [False, False]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"label_row": [0, 3]}, r"1 label rows such as 3 .*; expected each of 0 \.\. 2 at most once"),
        ({"label_row": [-1]}, "such as -1"),
        ({"label_row": [1, 1]}, "2 label rows such as 1"),
        ({"label_row": [0, None]}, "1 label rows such as nan"),
        ({"label_row": [0.0, 1.5]}, r"1 label rows such as 1\.5"),
        ({"label_row": ["0", "1"]}, "label_row is string; expected int64"),
        ({"label_row": [0], "age": [3.0]}, "age.*expected label_row and any of"),
        ({"age_years": [3.0]}, "expected label_row"),
        ({"label_row": [0], "age_years": ["old"]}, "column 'age_years', is damaged or of other types than documented"),
        ({"label_row": [0], "age_years": [[1.0, 2.0]]}, "rows of .2,. numbers"),
        ({"label_row": [0], "mask_rle": [[1, 2]]}, "column 'mask_rle', is damaged or of other types than documented"),
    ],
)
def test_a_sidecar_that_cannot_be_joined_is_refused_with_the_reason(tmp_path, columns, why):
    path = write(tmp_path / "s.parquet", **columns)
    with pytest.raises(LabelFileError, match=why) as caught:
        Sidecar(path, 3)
    assert str(path) in str(caught.value)


def test_whole_label_rows_may_be_floats_as_pandas_writes_them(tmp_path):
    path = write(tmp_path / "s.parquet", label_row=[2.0, 0.0], age_years=[7.0, 5.0])
    np.testing.assert_array_equal(Sidecar(path, 3).rows(np.arange(3)).age_years, [5, np.nan, 7])


def test_a_truncated_sidecar_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    write_sidecar(path, np.arange(3))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LabelFileError, match="truncated"):
        Sidecar(path, 3)


def test_a_column_with_another_number_of_rows_than_the_file_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    write_sidecar(path, np.arange(3), mask_rle=[encode_rle(BLOCK)] * 3, mask_height=[3] * 3, mask_width=[4] * 3)
    data, refused = path.read_bytes(), 0
    for found in re.finditer(b"\x16\x06", data):  # a number 3 of the footer, perhaps of a column's values
        path.write_bytes(data[: found.start()] + b"\x16\x00" + data[found.end() :])
        try:
            Sidecar(path, 3).rows(np.arange(3))
        except LabelFileError as error:
            refused += "rows; the file says 3" in str(error)
    assert refused
