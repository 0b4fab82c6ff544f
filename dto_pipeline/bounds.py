"""Bounds of plausible numbers in a person's label, its camera and its place after the fit, and of accepted images.

Finite numbers beyond them come from broken files, not from photographs. Readers of labels refuse such people
(`invalid_label`), the optimiser checks before and after its fit, and `dto verify` checks labels of any origin. The
bounds are wide on purpose: all labels of the recorded reference images, with shapes up to 22 and heights up to 2.94 m,
are within them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bound:
    """The least and the greatest plausible number."""

    name: str
    low: float
    high: float
    unit: str
    origin: str

    def holds(self, values: Any) -> Any:
        """Elementwise, for arrays and tensors; False for NaN."""
        return (values >= self.low) & (values <= self.high)

    def __str__(self) -> str:
        return f"{self.name} beyond {self.low:g} .. {self.high:g} {self.unit}"


POSE = Bound("pose", -4 * math.pi, 4 * math.pi, "rad", "two full turns; networks and fits stay within one")
BETAS = Bound("betas", -30, 30, "sigma", "30 of the first make a body 3.4 m tall; people are within 5, bad fits at 22")
DISTANCE = Bound("transl z", 0.05, 500, "m", "at 500 m a telephoto lens of 5000 px shows a person 17 px tall")
ASIDE = Bound("transl x or y", -500, 500, "m", "within 45 degrees of the farthest distance")
LABEL_HEIGHT = Bound("rest-pose height", 0.3, 3.5, "m", "a newborn measures 0.5 m; bad fits reach 2.94 m")
HEIGHT = Bound("height", 0.3, 2.4, "m", "of placed people: the tallest are 2.3 m")
FOCAL = Bound("focal length", 0.1, 100, "times the longer image side", "views of 157 and 0.6 degrees")
CENTRE = Bound("principal point", -10, 11, "times the image side", "a crop of a tenth, far from the lens's axis")
CAMERA_BEYOND = f"{FOCAL}, or {CENTRE}"


def implausible_cameras(intrinsics: np.ndarray, width: np.ndarray | int, height: np.ndarray | int) -> np.ndarray:
    """(...) bool: cameras (..., 3, 3) that cannot belong to images of `width`, `height` (...) [px]; False where one of
    these is unknown (0)."""
    sides = np.stack([width, height], axis=-1).astype(np.float64)
    known = np.all(sides > 0, axis=-1)
    sides = np.where(known[..., None], sides, 1)
    focal = intrinsics[..., [0, 1], [0, 1]] / sides.max(axis=-1, keepdims=True)
    centre = intrinsics[..., :2, 2] / sides
    plausible = np.concatenate([FOCAL.holds(focal), CENTRE.holds(centre)], axis=-1)
    return known & ~np.all(plausible, axis=-1)


def name_beyond(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> str:
    """The bound that an unusable label (72,), (11,), (3,) is beyond; if it is none of these, that of the height."""
    numbers = ((POSE, pose), (BETAS, betas), (DISTANCE, transl[2:]), (ASIDE, transl[:2]))
    return next((str(bound) for bound, values in numbers if not bound.holds(values).all()), str(LABEL_HEIGHT))


@dataclass(frozen=True)
class Acceptance:
    """The rule for accepted images, applied when people are placed and when labels are verified; None = no such bound.

    `solver.mode` paper has the published rule, a bound on the mean height deviation. joint also uses its posterior: an
    image with uncertain distances, or with an adult as short as a child, is not accepted.
    """

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
        """(N,) bool: which of N images with n people are accepted; each is judged by its own numbers alone.

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
    """The rule of a config as a plain dict; the published one for configs of versions that had no other."""
    published = Acceptance(float(config["refine"]["accept_below"]))
    joint = config["joint"] if config["solver"]["mode"] == "joint" else {}
    if "accept_error_below" not in joint:
        return published
    return Acceptance(published.max_deviation, float(joint["accept_error_below"]), float(joint["grown_above"]))
