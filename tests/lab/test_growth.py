"""Growth charts: what they say at their own ages, and that people drawn from them are no sample of the priors."""

from __future__ import annotations

import numpy as np
import pytest

from dto_pipeline.axes import ADULT_FEMALE, ADULT_MALE
from dto_pipeline.config import PriorConfig
from dto_pipeline.lab.people import CHART, FEMALE, MALE, height_law, sample_heights


def test_medians_at_known_ages() -> None:
    age, sex = np.array([2.0, 2.0, 5.042, 10.042, 20.0, 60.0]), np.array([MALE, FEMALE, FEMALE, MALE, MALE, FEMALE])
    median, variation = height_law(age, sex)
    assert median == pytest.approx([0.8645, 0.8498, 1.0796, 1.3882, 1.7685, 1.6334])
    assert variation[4] == pytest.approx(0.0404)


def test_children_grow_and_adults_do_not() -> None:
    ages = np.linspace(0.8, 20, 200)
    for sex in (MALE, FEMALE):
        assert (np.diff(height_law(ages, np.full(200, sex))[0]) > 0).all()
        assert np.ptp(height_law(np.linspace(20, 80, 9), np.full(9, sex))[0]) == 0
    assert (np.diff(CHART[:, 0]) > 0).all()


def test_drawn_adults_follow_the_chart_and_not_the_priors() -> None:
    rng, prior = np.random.default_rng(5), PriorConfig()
    for sex, kind in ((MALE, ADULT_MALE), (FEMALE, ADULT_FEMALE)):
        drawn = sample_heights(np.full(20_000, 30.0), np.full(20_000, sex), rng)
        median = height_law(np.array([30.0]), np.array([sex]))[0][0]
        assert drawn.mean() == pytest.approx(median, abs=0.002)
        assert drawn.std() == pytest.approx(median * 0.04, rel=0.05)
        standard_error = prior.sigma[kind] / np.sqrt(len(drawn))
        assert abs(drawn.mean() - prior.mean[kind]) > 10 * standard_error
