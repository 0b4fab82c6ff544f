"""Parity with the recorded reference: what of a case was compared and what differs, and the report over all families.

The folder's own README describes the families (solver, person, image, rh_metric, depth; mahmr lies in a folder of its
own, which may be given too).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.errors import DtoError


class GoldenFolderError(DtoError, ValueError):
    """A folder that holds no recorded cases, or an index that cannot be read."""


@dataclass
class Case:
    """One case of a family; without failures it agrees."""

    family: str  # folder of the case: solver, person, image, rh_metric ...
    name: str
    kind: str = ""
    failures: list[str] = field(default_factory=list)  # one sentence each
    errors: dict[str, float] = field(default_factory=dict)  # worst error by quantity, in the quantity's unit
    limits: dict[str, float] = field(default_factory=dict)  # its tolerance, where the quantity can fail the case
    strict: bool = True  # False: reported, but never a failure of the command

    @property
    def passed(self) -> bool:
        """True where nothing is wrong that counts."""
        return not (self.strict and self.failures)

    def equal(self, what: str, found: object, recorded: object) -> None:
        """Compare a decision."""
        if found != recorded:
            self.failures.append(f"{what}: {found} instead of {recorded}")

    def near(self, what: str, error: float, limit: float) -> None:
        """Note the error of a number; one that is not a number is above every limit."""
        self.errors[what], self.limits[what] = error, limit
        if not error <= limit:
            self.failures.append(f"{what} off by {error:.1e}")

    def arrays(
        self, found: Mapping[str, Any], recorded: Mapping[str, Any], limit: float, exact: tuple[str, ...] = ()
    ) -> None:
        """Compare arrays: those named in `exact` must be equal, others differ by `limit` of their largest value.

        Poses come as rotation matrices, whose largest value is that of the axis-angles they are of: half a turn.
        """
        for name, wanted in ((name, np.asarray(values)) for name, values in recorded.items()):
            if name not in found:
                self.failures.append(f"{name} is recorded, but no rule here knows it")
                continue
            values = np.asarray(found[name])
            if values.shape != wanted.shape:
                self.failures.append(f"{name} has shape {values.shape}, recorded {wanted.shape}")
            elif name in exact:
                wrong = int((values != wanted).sum())
                self.failures += [f"{name} differs in {wrong} places"] if wrong else []
            else:
                largest = math.pi if name.endswith("poses") else max(float(np.abs(wanted).max(initial=0)), 1e-9)
                self.near(name, float(np.abs(values.astype(np.float64) - wanted).max(initial=0)) / largest, limit)


def run_case(case: Case, check: Callable[[Case], None], reference_error: str | None = None) -> Case:
    """Run one case; what it raises is its failure, never the end of the command.

    `reference_error`: the reference broke down on this case, so a defined result of ours is all that is asked.
    """
    try:
        check(case)
    except Exception as error:  # any fault of one case must leave the others' results standing
        if not (reference_error and isinstance(error, KeyError)):  # else nothing was recorded to compare with
            return Case(case.family, case.name, case.kind, [f"raised {type(error).__name__}: {error}"])
    return Case(case.family, case.name, case.kind) if reference_error else case


def read_index(path: Path) -> list[dict[str, Any]]:
    """The cases an index lists; none where there is no index.

    Raises:
        GoldenFolderError: it cannot be read, or lists none.
    """
    if not path.is_file():
        return []
    try:
        cases = list(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise GoldenFolderError(f"{path} cannot be read ({error}); expected a list of cases") from error
    if not cases:
        raise GoldenFolderError(f"{path} lists no case; put the cases back, or remove it where the family has none")
    return cases


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a plain npz."""
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@dataclass(frozen=True)
class GoldenReport:
    """The results of all families that a folder holds."""

    results: dict[str, list[Case]]  # by family

    @property
    def passed(self) -> bool:
        """True where no strict case of any family fails."""
        return all(case.passed for cases in self.results.values() for case in cases)

    def to_json(self) -> dict[str, Any]:
        """Counts, failures by name and worst errors of each family."""
        families = {family: _summary(cases) for family, cases in self.results.items()}
        return {"passed": self.passed, "families": families}

    def as_table(self) -> str:
        """A line per family that is there, then a line per case that differs."""
        lines = [
            f"{'family':<10} {'cases':>5} {'passed':>6} {'failed':>6} {'loose':>5}  worst errors, and the tolerance"
        ]
        for family, cases in self.results.items():
            if not cases:
                continue
            summary = _summary(cases)
            worst = "  ".join(
                f"{name} {error:.1e}" + ("" if limit is None else f" of {limit:.0e}")
                for name, (error, limit) in summary["worst_errors"].items()
            )
            counts = f"{summary['cases']:>5} {summary['passed']:>6} {summary['failed']:>6} {summary['loose']:>5}"
            lines.append(f"{family:<10} {counts}  {worst}")
        for family, cases in self.results.items():
            for case in cases:
                word = "FAILED" if not case.passed else "differs (not strict)"
                lines += [f"{word} {family}/{case.name} ({case.kind}): {text}" for text in case.failures]
        return "\n".join(lines)


def _summary(cases: Sequence[Case]) -> dict[str, Any]:
    strict = [case for case in cases if case.strict]
    worst: dict[str, tuple[float, float | None]] = {}
    for case in strict:
        for name, error in case.errors.items():
            found = error, case.limits.get(name)
            worst[name] = max(worst.get(name, found), found, key=lambda pair: pair[0] / (pair[1] or 1.0))
    return {
        "cases": len(cases),
        "passed": sum(not case.failures for case in strict),
        "failed": sum(bool(case.failures) for case in strict),
        "loose": len(cases) - len(strict),
        "failures": {case.name: case.failures for case in cases if case.failures},
        "worst_errors": worst,  # quantity -> worst error and its tolerance, None where it cannot fail
    }
