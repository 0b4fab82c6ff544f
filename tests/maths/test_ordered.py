"""Sums and products in company: no neighbour, no padding, no thread and no order changes a bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.maths.ordered import (
    Segments,
    add_logarithms,
    exact_product,
    fold_logsumexp,
    fold_softmax,
    fold_sum,
    make_exact,
)
from tests.company import threads
from tests.waits import as_on_gpu

SEEDS = st.integers(0, 2**31)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-8, 8, shape, generator=generator)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2.0**scale


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 40), count=st.integers(0, 70), padding=st.integers(0, 70))
def test_a_sum_is_that_of_its_row_whatever_is_padded_and_whoever_stands_beside(
    seed: int, rows: int, count: int, padding: int
) -> None:
    values = numbers(seed, rows, count)
    padded = torch.cat([values, torch.zeros(rows, padding, dtype=torch.float64)], 1)
    alone = torch.stack([fold_sum(row) for row in values])
    for found in (fold_sum(values), fold_sum(padded), fold_sum(padded.T.contiguous(), 0)):
        assert found.numpy().tobytes() == alone.numpy().tobytes()
    np.testing.assert_allclose(alone, values.sum(1), rtol=1e-12, atol=1e-12)


def test_no_sum_is_a_negative_zero_with_or_without_padding() -> None:
    for count in (1, 2, 3):
        assert not torch.signbit(fold_sum(torch.full((count,), -0.0)))


def test_sums_leave_what_is_summed_as_it_was() -> None:
    values = numbers(0, 5, 7)
    before = values.clone()
    fold_sum(values)
    fold_sum(values, 0)
    fold_softmax(values)
    assert torch.equal(values, before)


def test_logarithms_of_sums_are_those_of_torch() -> None:
    values = numbers(1, 30, 9)
    values[3] = -torch.inf
    np.testing.assert_allclose(fold_logsumexp(values), values.logsumexp(-1), rtol=1e-13)
    np.testing.assert_allclose(fold_softmax(values[:3], 1), values[:3].softmax(1), rtol=1e-12)
    left, right = values[0], values[1]
    np.testing.assert_allclose(add_logarithms(left, right), torch.logaddexp(left, right), rtol=1e-13)


@pytest.mark.parametrize(("terms", "parts", "tolerance"), [(218, 1, 3e-6), (24, 1, 1e-6), (11, 1, 1e-6), (11, 2, 1e-6)])
def test_a_product_has_the_precision_of_its_rounded_matrix(terms: int, parts: int, tolerance: float) -> None:
    matrix, factors = torch.randn(terms, 500, dtype=torch.float64), numbers(2, 30, terms)
    found = exact_product(factors, make_exact(matrix), parts)
    size = (factors.abs() @ torch.ones_like(matrix)).clamp(min=1e-12)
    assert ((found - factors @ matrix).abs() / size).max() < tolerance


def test_two_parts_keep_what_one_rounds_away() -> None:
    matrix = make_exact(torch.randn(11, 50, dtype=torch.float64))
    whole = matrix.values * matrix.scale[:, None]
    factors = numbers(3, 20, 11)
    np.testing.assert_allclose(exact_product(factors, matrix, parts=2), factors @ whole, rtol=1e-10, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, start=st.integers(0, 60), count=st.integers(1, 60), number=st.sampled_from([1, 2, 4]))
def test_a_row_of_a_product_is_the_same_in_any_company(seed: int, start: int, count: int, number: int) -> None:
    factors, matrix = numbers(seed, 64, 218), make_exact(numbers(seed + 1, 218, 333))
    whole = exact_product(factors, matrix)
    with threads(number):
        some = exact_product(factors[start : start + count], matrix)
        shuffled = exact_product(factors.flip(0), matrix).flip(0)
    assert some.numpy().tobytes() == whole[start : start + count].numpy().tobytes()
    assert shuffled.numpy().tobytes() == whole.numpy().tobytes()


def test_a_row_that_is_not_finite_leaves_the_others_alone() -> None:
    factors, matrix = numbers(5, 6, 24), make_exact(numbers(6, 24, 40))
    broken = factors.clone()
    broken[2, 3], broken[4, 0] = torch.nan, torch.inf
    sound = [0, 1, 3, 5]
    assert torch.equal(exact_product(broken, matrix)[sound], exact_product(factors, matrix)[sound])
    assert not exact_product(broken, matrix)[[2, 4]].isfinite().any()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_sums_as_on_a_gpu_are_the_same_in_any_order(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    segment = torch.randint(0, 7, (3000,), generator=made).sort().values
    values = numbers(seed, 3000)
    order = torch.argsort(segment + torch.rand(3000, generator=made) * 0.5)  # another one within each segment
    with as_on_gpu():
        summed = Segments(segment, 9)
        found = summed.sum(values)
        assert torch.equal(found, summed.sum(values[order]))
        assert torch.equal(summed.total(values > 0), Segments(segment, 9).total(values[order] > 0))
    size = Segments(segment, 9).sum(values.abs())
    assert ((found - Segments(segment, 9).sum(values)).abs() <= 1e-15 * 3000 * size).all()


def test_sums_on_a_cpu_are_those_of_one_addition_after_the_other() -> None:
    segment = torch.randint(0, 7, (3000,), generator=torch.Generator().manual_seed(1))
    values = numbers(1, 3000)
    found = Segments(segment, 9)
    assert torch.equal(found.sum(values), torch.bincount(segment, weights=values, minlength=9))
    assert torch.equal(found.total(values > 0), torch.bincount(segment[values > 0], minlength=9))


def test_company_changes_no_sum_as_on_a_gpu() -> None:
    own, others = numbers(1, 500), 1e9 * numbers(2, 4000)
    with as_on_gpu():
        alone = Segments(torch.zeros(500, dtype=torch.int64), 1).sum(own)
        segment = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([2500, 500, 1500]))
        among = Segments(segment, 3).sum(torch.cat([others[:2500], own, others[2500:]]))
    assert torch.equal(among[1:2], alone)


def test_the_mean_of_one_number_often_is_that_number() -> None:
    """Depth that does not vary must not seem to."""
    values = torch.full((12345,), 1 / 300, dtype=torch.float64)
    with as_on_gpu():
        mean = Segments(torch.zeros(12345, dtype=torch.int64), 1).sum(values) / 12345
    assert float(mean / values[0] - 1) == pytest.approx(0, abs=1e-14)
