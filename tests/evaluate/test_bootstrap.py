"""Bootstrap intervals: right where theory knows the answer, equal for equal arguments."""

from __future__ import annotations

import numpy as np
import pytest

from dto_pipeline.evaluate import evaluation
from dto_pipeline.evaluate.evaluation import Measure, estimate, mean_of

MEAN = [Measure("mean", "mean", "", mean_of("total", "count"))]


def images(seed: int, count: int) -> dict[str, np.ndarray]:
    return {"total": np.random.default_rng(seed).normal(5.0, 2.0, count), "count": np.ones(count)}


def test_the_interval_of_a_mean_is_the_one_of_the_central_limit_theorem() -> None:
    sums = images(3, 400)
    found = estimate(sums, MEAN, resamples=4000)["mean"]
    half = 1.96 * sums["total"].std() / np.sqrt(400)
    assert found.value == pytest.approx(sums["total"].mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    hits = 0
    for seed in range(200):
        found = estimate(images(seed, 60), MEAN, resamples=300, seed=seed)["mean"]
        hits += found.low <= 5.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_an_image_counts_in_proportion_to_its_people() -> None:
    sums = {"total": np.array([10.0, 1.0]), "count": np.array([10.0, 1.0])}
    sums["total"][0] = 30.0
    assert estimate(sums, MEAN)["mean"].value == pytest.approx(31 / 11)


def test_equal_arguments_give_equal_intervals_and_another_seed_others() -> None:
    first, again = (estimate(images(1, 30), MEAN, seed=4)["mean"] for _ in range(2))
    assert first == again
    assert first != estimate(images(1, 30), MEAN, seed=5)["mean"]


def test_memory_is_bounded_without_changing_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate(images(1, 30), MEAN)["mean"]
    monkeypatch.setattr(evaluation, "_NUMBERS_AT_ONCE", 90)
    assert estimate(images(1, 30), MEAN)["mean"] == whole


def test_nothing_to_measure_is_nan_and_draws_without_anything_are_left_out() -> None:
    nothing = estimate({"total": np.zeros(5), "count": np.zeros(5)}, MEAN)["mean"]
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    sparse = {"total": np.array([6.0, 0, 0]), "count": np.array([2.0, 0, 0])}
    found = estimate(sparse, MEAN)["mean"]
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_without_draws_or_images_there_is_no_interval() -> None:
    found = estimate(images(1, 5), MEAN, resamples=0)["mean"]
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
    empty = estimate({"total": np.zeros(0), "count": np.zeros(0)}, MEAN)["mean"]
    assert np.isnan(empty.value)
