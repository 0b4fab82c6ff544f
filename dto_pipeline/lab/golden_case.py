"""What became of one recorded reference case; the families' checks return these, the command prints them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class CaseResult:
    """One case compared with its recorded values."""

    family: str  # folder of the case: solver, person, image, rh_metric ...
    name: str
    kind: str
    failures: tuple[str, ...]  # one sentence each; empty = passed
    errors: Mapping[str, float] = field(default_factory=dict)  # worst error by quantity, in the quantity's unit
    limits: Mapping[str, float] = field(default_factory=dict)  # its tolerance, where the quantity can fail the case
    strict: bool = True  # False: reported, but never a failure of the command

    @property
    def passed(self) -> bool:
        """True where nothing is wrong that counts."""
        return not (self.strict and self.failures)


def judge(
    family: str, name: str, kind: str, failures: Iterable[str], errors: Mapping[str, float], limits: Mapping[str, float]
) -> CaseResult:
    """A case with these failures, and one more for every error above its limit."""
    over = [f"{what} off by {errors[what]:.1e}" for what, limit in limits.items() if not errors[what] <= limit]
    return CaseResult(family, name, kind, (*failures, *over), errors, limits)


def differences(pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    """Sentences on decisions that are not as recorded: name -> (found, recorded)."""
    return [f"{what}: {found} instead of {want}" for what, (found, want) in pairs.items() if found != want]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a plain npz."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def check_case(
    family: str, name: str, kind: str, check: Callable[[], CaseResult], reference_error: str | None = None
) -> CaseResult:
    """Run one case; what it raises is its failure, never the end of the command.

    `reference_error`: the reference broke down on this case, so a defined result of ours is all that is asked.
    """
    try:
        result = check()
    except Exception as error:  # any fault of one case must leave the others' results standing
        if reference_error and isinstance(error, KeyError):
            return CaseResult(family, name, kind, ())  # nothing was recorded to compare with
        return CaseResult(family, name, kind, (f"raised {type(error).__name__}: {error}",))
    return CaseResult(family, name, kind, ()) if reference_error else result


def compare_arrays(
    found: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray], exact: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, float]]:
    """Sentences on shapes and exact arrays that differ, and of the others the largest difference over their size.

    Poses come as rotation matrices, whose largest value is that of the axis-angles they are of: half a turn.
    """
    failures, errors = [], {}
    for name, wanted in recorded.items():
        values = found[name]
        if values.shape != wanted.shape:
            failures.append(f"{name} has shape {values.shape}, recorded {wanted.shape}")
            continue
        if name in exact:
            wrong = int((values != wanted).sum())
            failures += [f"{name} differs in {wrong} places"] if wrong else []
            continue
        largest = math.pi if name.endswith("poses") else max(float(np.abs(wanted).max(initial=0)), 1e-9)
        errors[name] = float(np.abs(values.astype(np.float64) - wanted).max(initial=0)) / largest
    return failures, errors
