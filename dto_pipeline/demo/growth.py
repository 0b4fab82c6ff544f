"""How tall people really are: the CDC growth charts of 2000, from eight months to adulthood.

True heights of the synthetic benchmark come from here and not from the priors of the method, so that a prior cannot
look better than it is. Facts only: medians and coefficients of variation, read at the ages below from the data files
`lenageinf` (recumbent length, to two years) and `statage` (stature, from two years) of Kuczmarski et al., "2000 CDC
Growth Charts for the United States", Vital Health Stat 11(246), 2002. Between these ages both are interpolated; adults
keep the stature of 20 years. The charts describe children of the United States of 1963-1994 and nobody else: they are
a population, not the truth about all. Metres, years.
"""

from __future__ import annotations

import numpy as np

MALE, FEMALE = 0, 1
AGES = np.array(  # [years]; the charts tell half months: 8.5, 12.5, 18.5, then 24, 36.5, 48.5 ... 180.5, 240
    [0.708, 1.042, 1.542, 2.0, 3.042, 4.042, 5.042, 6.042, 7.042, 8.042, 9.042, 10.042]
    + [11.042, 12.042, 13.042, 14.042, 15.042, 20.0]
)
MEDIAN = np.array(
    [
        [0.7095, 0.7612, 0.8241, 0.8645, 0.9527, 1.0251, 1.0918, 1.1566, 1.2203, 1.2812, 1.3373, 1.3882]
        + [1.4373, 1.4931, 1.5641, 1.6414, 1.7014, 1.7685],
        [0.6919, 0.7440, 0.8080, 0.8498, 0.9421, 1.0103, 1.0796, 1.1501, 1.2176, 1.2783, 1.3313, 1.3821]
        + [1.4426, 1.5149, 1.5734, 1.6048, 1.6190, 1.6334],
    ]
)  # by sex and age [m]
VARIATION = np.array(
    [
        [0.0388, 0.0388, 0.0390, 0.0403, 0.0405, 0.0413, 0.0426, 0.0437, 0.0444, 0.0451, 0.0462, 0.0476]
        + [0.0489, 0.0499, 0.0503, 0.0489, 0.0459, 0.0404],
        [0.0397, 0.0394, 0.0397, 0.0408, 0.0420, 0.0433, 0.0443, 0.0450, 0.0455, 0.0460, 0.0469, 0.0487]
        + [0.0505, 0.0486, 0.0439, 0.0410, 0.0401, 0.0396],
    ]
)  # standard deviation over median
_TALLEST = 2.5  # draws are kept within this many standard deviations


def median_height(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """(...) [m] at ages (...) [years] for sexes (...), `MALE` or `FEMALE`; the youngest is eight months."""
    return _at(MEDIAN, age, sex)


def height_variation(age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    """(...) standard deviation of the height over its median."""
    return _at(VARIATION, age, sex)


def sample_heights(age: np.ndarray, sex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heights of people of these ages: normal about the median, within 2.5 standard deviations.

    Args:
        age: (n,) [years]; sex: (n,) int, `MALE` or `FEMALE`; rng: one draw per person.

    Returns:
        (n,) float64 [m].
    """
    deviation = np.clip(rng.standard_normal(len(age)), -_TALLEST, _TALLEST)
    return median_height(age, sex) * (1 + height_variation(age, sex) * deviation)


def _at(table: np.ndarray, age: np.ndarray, sex: np.ndarray) -> np.ndarray:
    both = [np.interp(age, AGES, row) for row in table]
    return np.where(np.asarray(sex) == FEMALE, both[FEMALE], both[MALE])
