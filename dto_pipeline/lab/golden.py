"""Comparison with recorded reference results: one case, its tolerances, and the report over all families.

The families (solver, person, image, rh_metric, depth, mahmr) are described by the README of their folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.errors import DtoError


class GoldenFolderError(DtoError, ValueError):
    """A folder that holds no recorded cases, or an index that cannot be read."""


@dataclass
class Case:
    """One recorded case; it agrees if it has no failures."""

    family: str  # folder of the case: solver, person, image, rh_metric ...
    name: str
    kind: str = ""
    failures: list[str] = field(default_factory=list)  # one sentence each
    errors: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Quantity -> its largest error and the tolerance (None: reported only)."""
    strict: bool = True  # False: reported, but never a failure of the command

    @property
    def passed(self) -> bool:
        """False if a strict case has failures."""
        return not (self.strict and self.failures)

    def run(self, check: Callable[[Case], None]) -> Case:
        """Run `check` on this case; an exception is a failure of this case only."""
        try:
            check(self)
        except Exception as error:
            self.failures = [f"raised {type(error).__name__}: {error}"]
        return self

    def equal(self, what: str, found: object, recorded: object) -> None:
        """Compare two values that must be equal."""
        if found != recorded:
            self.failures.append(f"{what}: {found} instead of {recorded}")

    def near(
        self,
        what: str,
        found: Any,
        recorded: Any,
        limit: float | None,
        scale: Any = 1.0,
        names: Sequence[str] = (),
    ) -> None:
        """Compare arrays of the same shape; NaN equals NaN. The largest error of each quantity is kept.

        Args:
            limit: tolerance of the largest difference over `scale` (a number, or one per entry); 0 = must be equal,
                None = the error is reported only.
            names: of the entries of a vector, for the message.
        """
        found, recorded = np.asarray(found, np.float64), np.asarray(recorded, np.float64)
        if found.shape != recorded.shape:
            self.failures.append(f"{what} has shape {found.shape}, recorded {recorded.shape}")
            return
        same = (found == recorded) | (np.isnan(found) & np.isnan(recorded))
        with np.errstate(invalid="ignore"):  # infinities of both
            gap = np.where(same, 0.0, np.nan_to_num(np.abs(found - recorded), nan=np.inf, posinf=np.inf) / scale)
        error = float(gap.max(initial=0.0))
        if limit != 0:
            self.errors[what] = max(error, self.errors.get(what, (0.0, limit))[0]), limit
        if limit is not None and not error <= limit:
            worst = int(gap.argmax())
            pair = f"{found.flat[worst]:.9g} instead of {recorded.flat[worst]:.9g}"
            where = f" ({names[worst]})" if names else ""
            self.failures.append(f"{what}{where}: {pair}, off by {error:.1e}, tolerance {limit:.0e}")


def sizes(recorded: Any, least: float) -> np.ndarray:
    """Scales of relative errors: absolute values, but never less than `least`."""
    return np.maximum(np.abs(np.nan_to_num(np.asarray(recorded, np.float64))), least)


def run_index(index: Path, check: Callable[[Path, dict[str, Any], Case], None]) -> list[Case]:
    """Every case of an index; none if there is no such file.

    `check` gets the path of a case without suffix, and its entry.
    """
    cases = [(Case(index.parent.name, entry["case"], str(entry.get("kind", ""))), entry) for entry in read_index(index)]
    return [case.run(partial(check, index.parent / case.name, entry)) for case, entry in cases]


def read_index(path: Path) -> list[dict[str, Any]]:
    """The cases that an index lists, none if there is no such file; a case without a name gets its number.

    Raises:
        GoldenFolderError: it cannot be read, or lists none.
    """
    if not path.is_file():
        return []
    try:
        cases = [{**entry, "case": str(entry.get("case", n))} for n, entry in enumerate(json.loads(path.read_text()))]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GoldenFolderError(f"{path} cannot be read ({error}); expected a list of cases") from error
    if not cases:
        raise GoldenFolderError(f"{path} lists no case; restore the cases, or remove the file")
    return cases


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a plain npz."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@dataclass(frozen=True)
class GoldenReport:
    """The results of all families of a folder."""

    results: Mapping[str, Sequence[Case]]  # by family

    @property
    def passed(self) -> bool:
        """True if no strict case of any family fails."""
        return all(case.passed for cases in self.results.values() for case in cases)

    def to_json(self) -> dict[str, Any]:
        """Counts, failures by name and worst errors of each family."""
        return {"passed": self.passed, "families": {name: _summary(cases) for name, cases in self.results.items()}}

    def as_table(self) -> str:
        """A line per family that has cases, then a line per difference."""
        lines = [f"{'family':<10} {'cases':>5} {'passed':>6} {'failed':>6} {'loose':>5}  worst errors and tolerances"]
        for family, cases in self.results.items():
            if cases:
                cases_n, passed, failed, loose, _, worst = _summary(cases).values()
                errors = (
                    f"{name} {error:.1e}" + ("" if limit is None else f" of {limit:.0e}")
                    for name, (error, limit) in worst.items()
                )
                lines.append(f"{family:<10} {cases_n:>5} {passed:>6} {failed:>6} {loose:>5}  {'  '.join(errors)}")
        for case in (case for cases in self.results.values() for case in cases):
            word = "FAILED" if not case.passed else "differs (not strict)"
            lines += [f"{word} {case.family}/{case.name} ({case.kind}): {text}" for text in case.failures]
        return "\n".join(lines)


def _summary(cases: Sequence[Case]) -> dict[str, Any]:
    strict = [case for case in cases if case.strict]
    worst: dict[str, tuple[float, float | None]] = {}
    for name, found in ((name, found) for case in strict for name, found in case.errors.items()):
        worst[name] = max(worst.get(name, found), found, key=lambda pair: pair[0] / (pair[1] or 1.0))
    return {
        "cases": len(cases),
        "passed": sum(not case.failures for case in strict),
        "failed": sum(bool(case.failures) for case in strict),
        "loose": len(cases) - len(strict),
        "failures": {case.name: case.failures for case in cases if case.failures},
        "worst_errors": worst,  # quantity -> worst error and its tolerance
    }
