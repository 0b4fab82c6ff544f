"""How tall people really are: the CDC growth charts of 2000, from eight months to adulthood.

True heights of the synthetic benchmark come from here and not from the priors of the method, so that a prior cannot
look better than it is. Facts only: medians and coefficients of variation, read at the ages below from the data files
`lenageinf` (recumbent length, to two years) and `statage` (stature, from two years) of Kuczmarski et al., "2000 CDC
Growth Charts for the United States", Vital Health Stat 11(246), 2002; below two years the variation is that between the
5th and 95th percentiles. Between these ages both are interpolated; adults keep the stature of 20 years. The charts
describe children of the United States of 1963-1994 and nobody else: they are a population, not the truth about all.
Metres, years.
"""

from __future__ import annotations

import numpy as np

MALE, FEMALE = 0, 1
CHART = np.array(
    (
        # age [years], boys: median [m], standard deviation / median; girls: the same
        (0.708, 0.7095, 0.0388, 0.6919, 0.0393),
        (1.042, 0.7612, 0.0388, 0.7440, 0.0394),
        (1.542, 0.8241, 0.0395, 0.8080, 0.0401),
        (2.000, 0.8645, 0.0403, 0.8498, 0.0408),
        (3.042, 0.9527, 0.0405, 0.9421, 0.0420),
        (4.042, 1.0251, 0.0413, 1.0103, 0.0433),
        (5.042, 1.0918, 0.0426, 1.0796, 0.0443),
        (6.042, 1.1566, 0.0437, 1.1501, 0.0450),
        (7.042, 1.2203, 0.0444, 1.2176, 0.0455),
        (8.042, 1.2812, 0.0451, 1.2783, 0.0460),
        (9.042, 1.3373, 0.0462, 1.3313, 0.0469),
        (10.042, 1.3882, 0.0476, 1.3821, 0.0487),
        (11.042, 1.4373, 0.0489, 1.4426, 0.0505),
        (12.042, 1.4931, 0.0499, 1.5149, 0.0486),
        (13.042, 1.5641, 0.0503, 1.5734, 0.0439),
        (14.042, 1.6414, 0.0489, 1.6048, 0.0410),
        (15.042, 1.7014, 0.0459, 1.6190, 0.0401),
        (20.000, 1.7685, 0.0404, 1.6334, 0.0396),
    )
)
_TALLEST = 2.5  # draws are kept within this many standard deviations


def median_height(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """(...) [m] at ages (...) [years] for sexes (...), `MALE` or `FEMALE`; the youngest is eight months."""
    return _at(1, age, sex)


def height_variation(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """(...) standard deviation of the height over its median."""
    return _at(2, age, sex)


def sample_heights(age: np.ndarray, sex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heights of people of these ages: normal about the median, within 2.5 standard deviations.

    Args:
        age: (n,) [years]; sex: (n,) int, `MALE` or `FEMALE`; rng: one draw per person.

    Returns:
        (n,) float64 [m].
    """
    deviation = np.clip(rng.standard_normal(len(age)), -_TALLEST, _TALLEST)
    return median_height(age, sex) * (1 + height_variation(age, sex) * deviation)


def _at(column: int, age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """A boys' column of the chart, or for girls the one two to its right, at these ages."""
    boys, girls = (np.interp(age, CHART[:, 0], CHART[:, place]) for place in (column, column + 2))
    return np.where(np.asarray(sex) == FEMALE, girls, boys)
