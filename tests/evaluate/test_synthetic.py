"""Errors against a known truth, on crowds small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.evaluate.placements import (
    MEASURES,
    Placement,
    as_table,
    depth_relation,
    placement_errors,
)

# image 0 holds three people, image 5 two; true z 2, 3, 5 and 4, 4.1
IMAGE = np.array([0, 0, 5, 0, 5])
TRUTH = Placement(z=np.array([2.0, 3.0, 4.0, 5.0, 4.1]), height=np.array([1.7, 1.0, 1.6, 1.8, 1.5]))
FOUND = Placement(z=np.array([2.5, 2.4, 4.0, 5.0, 4.5]), height=np.array([1.8, 1.0, 1.6, 1.5, 1.5]))


def test_errors_of_five_people_are_those_computed_by_hand() -> None:
    errors = placement_errors(FOUND, TRUTH, IMAGE)
    assert (errors["persons"], errors["pairs"]) == (5, 4)
    assert errors["depth_error"] == pytest.approx((0.5 + 0.6 + 0 + 0 + 0.4) / 5)
    assert errors["relative_depth_error"] == pytest.approx((0.25 + 0.2 + 0 + 0 + 0.4 / 4.1) / 5)
    # pairs: (2, 3) now 0.1 apart instead of -1, (2, 5) 0.5 off, (3, 5) 0.6 off, (4, 4.1) now -0.5 instead of -0.1
    assert errors["pair_depth_error"] == pytest.approx((1.1 + 0.5 + 0.6 + 0.4) / 4)
    assert errors["ordinal"] == pytest.approx(2 / 4)  # the first pair became "same", the last one "nearer"
    assert errors["height_error"] == pytest.approx(0.4 / 5)


def test_only_selected_people_form_pairs() -> None:
    errors = placement_errors(FOUND, TRUTH, IMAGE, selected=np.array([True, False, True, True, False]))
    assert (errors["persons"], errors["pairs"]) == (3, 1)
    assert errors["pair_depth_error"] == pytest.approx(0.5)


def test_people_of_different_images_are_never_compared() -> None:
    errors = placement_errors(FOUND, TRUTH, np.arange(5))
    assert errors["pairs"] == 0
    assert np.isnan(errors["ordinal"])


def test_a_fifth_of_a_metre_is_no_longer_the_same_depth() -> None:
    assert depth_relation(np.array([0.19, 0.2, -0.19, -0.25])).tolist() == [0, 1, 0, -1]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_people_does_not_matter(order: list[int]) -> None:
    shuffled = placement_errors(
        Placement(FOUND.z[order], FOUND.height[order]), Placement(TRUTH.z[order], TRUTH.height[order]), IMAGE[order]
    )
    assert shuffled == pytest.approx(placement_errors(FOUND, TRUTH, IMAGE))


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one length"):
        placement_errors(FOUND, TRUTH, IMAGE[:4])


def test_the_table_shows_every_measure_before_and_after() -> None:
    everyone = np.ones(5, dtype=bool)
    sides, groups = {"before": FOUND, "after": TRUTH}, {"all": everyone, "none": ~everyone}
    table = as_table(
        {
            group: {name: placement_errors(side, TRUTH, IMAGE, kept) for name, side in sides.items()}
            for group, kept in groups.items()
        }
    )
    assert all(title in table for title in MEASURES.values())
    assert "all (5)" in table
    assert "0.300 -> 0.000" in table
    assert "50.0 % -> 100.0 %" in table
