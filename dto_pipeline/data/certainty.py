"""How certain labels must be to be taken: the one rule of exports, training, the API and the report.

Knows columns only. What nobody knows (solver.mode paper writes no errors) is within no limit. Metres.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from dto_pipeline.data.labels import LabelsError

EXPECTED_ERROR, Z_SIGMA = "expected_error_m", "z_sigma_m"  # columns: of images, of people


@dataclass(frozen=True)
class Limits:
    """What images and people are taken; None = whatever is expected of them."""

    max_error: float | None = None  # expected error of an image's z [m]
    max_z_sigma: float | None = None  # standard deviation of a person's z [m]

    def __post_init__(self) -> None:
        for name in ("max_error", "max_z_sigma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise LabelsError(f"{name} is {value} m; expected more than 0, or nothing for no limit")

    @property
    def any(self) -> bool:
        """Something is limited."""
        return self != NO_LIMITS

    def images(self, expected_error: np.ndarray) -> np.ndarray:
        """(N,) bool: within the limit. Args: expected_error (N,) [m], NaN = unknown."""
        return _within(expected_error, self.max_error)

    def people(self, z_sigma: np.ndarray) -> np.ndarray:
        """(n,) bool: within the limit. Args: z_sigma (n,) [m], NaN = unknown."""
        return _within(z_sigma, self.max_z_sigma)

    def count(self, expected_error: np.ndarray, z_sigma: np.ndarray, left_out: Counter[str]) -> None:
        """Add to `left_out`, by reason, the images and the people (of any image) that are not within the limits."""
        for what, values, most, name in (
            ("images", expected_error, self.max_error, "expected error"),
            ("persons", z_sigma, self.max_z_sigma, "sigma of z"),
        ):
            if most is not None:
                left_out[f"{what} whose {name} is above {most:g} m"] += int((values > most).sum())
                left_out[f"{what} whose {name} is unknown"] += int(np.isnan(values).sum())


def _within(values: np.ndarray, most: float | None) -> np.ndarray:
    return np.ones(len(values), bool) if most is None else np.asarray(values) <= most


NO_LIMITS = Limits()
