"""Acceptance of images: one rule for placing people and for verifying labels.

`paper` has the published rule, a bound on the mean height deviation. `joint` also uses its posterior: an image with
uncertain distances, or with an adult no taller than a child, is not accepted. Metres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Acceptance:
    """Bounds of an accepted image; None = no such bound."""

    max_deviation: float  # mean height deviation [sigma], `refine.accept_below`
    max_error: float | None = None  # expected error over the mean distance, `joint.accept_error_below`
    grown_above: float | None = None  # [m], `joint.grown_above`

    def judge(
        self,
        is_optimized: np.ndarray,
        deviation: np.ndarray,
        expected_error: np.ndarray,
        owner: np.ndarray,
        z: np.ndarray,
        z_sigma: np.ndarray,
        height: np.ndarray,
        is_child: np.ndarray,
    ) -> np.ndarray:
        """(N,) bool for N images with n people, from each image's own numbers alone.

        Args:
            is_optimized (N,) bool, deviation (N,) float32 [sigma], expected_error (N,) float32 [m], NaN = unknown.
            owner: (n,) the image of each person; z, z_sigma, height: (n,) float32 [m], the latter two NaN = unknown.
            is_child: (n,) bool, a baby, kid or teen by age.
        """
        accepted = is_optimized & (deviation < np.float32(self.max_deviation))
        if self.max_error is not None:
            placed = np.isfinite(z_sigma)
            total = np.bincount(owner[placed], z[placed].astype(np.float64), len(accepted))
            mean = total / np.maximum(np.bincount(owner[placed], minlength=len(accepted)), 1)
            accepted &= expected_error.astype(np.float64) < self.max_error * mean
        if self.grown_above is not None:
            short = ~is_child & (height < np.float32(self.grown_above))
            accepted &= np.bincount(owner[short], minlength=len(accepted)) == 0
        return accepted


def read_acceptance(config: Mapping[str, Mapping[str, Any]]) -> Acceptance:
    """The rule of a config in plain values; the published one where its version had no other."""
    published = Acceptance(float(config["refine"]["accept_below"]))
    joint = config["joint"] if config["solver"]["mode"] == "joint" else {}
    if "accept_error_below" not in joint:
        return published
    return Acceptance(published.max_deviation, float(joint["accept_error_below"]), float(joint["grown_above"]))
