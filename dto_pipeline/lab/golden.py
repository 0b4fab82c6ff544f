"""Parity with the recorded reference: run every case of a folder in its public format, and say what differs.

The folder's own README describes the families (solver, person, image, rh_metric, depth; mahmr lies in a folder of its
own, which may be given too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.lab.golden_case import Case, GoldenFolderError
from dto_pipeline.lab.golden_labels import (
    check_depth_cases,
    check_image_cases,
    check_person_cases,
    check_solver_cases,
)
from dto_pipeline.lab.golden_mahmr import check_mahmr_cases
from dto_pipeline.lab.golden_rh import check_rh_cases

FAMILIES: dict[str, Callable[[Path], list[Case]]] = {
    "solver": check_solver_cases,
    "person": check_person_cases,
    "image": check_image_cases,
    "rh_metric": check_rh_cases,
    "depth": check_depth_cases,
    "mahmr": check_mahmr_cases,
}


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


def check_golden(folder: Path) -> GoldenReport:
    """Run every family found in `folder`.

    Raises:
        GoldenFolderError: there is no case of any family.
    """
    results = {family: check(folder) for family, check in FAMILIES.items()}
    if not any(results.values()):
        expected = ", ".join(FAMILIES)
        raise GoldenFolderError(f"{folder} holds no recorded cases; expected one of the folders {expected} in it")
    return GoldenReport(results)


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
