"""Recorded fits of one group of people (`solver/cases.json`): every decision equal, numbers to 1e-9 relative."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.axes import ADULT, ADULT_FEMALE
from dto_pipeline.config import PriorConfig, SolverConfig
from dto_pipeline.lab.golden_case import CaseResult, check_case
from dto_pipeline.maths.heights import build_height_prior
from dto_pipeline.maths.paper_solver import solve_map
from dto_pipeline.scene import MapProblem, MapSolution
from dto_pipeline.status import FitStatus

RELATIVE_TOLERANCE = 1e-9  # suggested by the cases' README
_RESIDUE_KINDS = ("edge:equal_depths",)  # there the reference divides by a rounding residue: only flags mean anything


def check_solver_cases(folder: Path) -> list[CaseResult]:
    """Run every case of `folder`/solver/cases.json; an empty list where there is none."""
    path = folder / "solver" / "cases.json"
    if not path.is_file():
        return []
    return [
        check_case("solver", f"{case.get('case', index)}", str(case["kind"]), partial(_check, case, index))
        for index, case in enumerate(json.loads(path.read_text()))
    ]


def _check(case: dict[str, Any], index: int) -> CaseResult:
    kind = str(case["kind"])
    name = f"{case.get('case', index)}"
    height_class = _height_class(case)
    solution = solve_map(
        _problem(case, height_class),
        SolverConfig(internal_constraint=case["internal_constraint"], max_rounds=case["input"].get("max_iter", 10)),
    )
    if case["output"] is None:
        return CaseResult("solver", name, kind, _check_defined(solution), {})
    residue = kind.startswith(_RESIDUE_KINDS) and not _forced(case)
    errors = {} if residue else _number_errors(case, solution)
    failures = [
        f"{quantity} off by {error:.1e} (relative)"
        for quantity, error in errors.items()
        if not error <= RELATIVE_TOLERANCE
    ]
    failures = [*_decision_failures(case, solution, height_class), *failures]
    limits = dict.fromkeys(errors, RELATIVE_TOLERANCE)
    return CaseResult("solver", name, kind, tuple(failures), errors, limits, strict=not (residue and failures))


def _forced(case: dict[str, Any]) -> bool:
    """Whether the group was a plane, so that alpha is its bound and nothing was divided by a residue."""
    return bool((case.get("last_round") or {}).get("plane"))


def _height_class(case: dict[str, Any]) -> torch.Tensor:
    """Classes after the gender switch; a class that is missing is an adult of unknown gender."""
    classes = torch.tensor([[ADULT if value is None else int(value) for value in case["input"]["height_class"]]])
    return classes if case["gender_prior"] else torch.where(classes >= ADULT_FEMALE, ADULT, classes)


def _problem(case: dict[str, Any], height_class: torch.Tensor) -> MapProblem:
    people = height_class.shape[1]

    def row(key: str) -> torch.Tensor:
        values = [float(value) for value in case["input"][key]] or [0.0] * people  # no slopes: nobody correlates
        return torch.tensor([values], dtype=torch.float64)

    prior = build_height_prior(row("height"), height_class, PriorConfig(gender_prior=case["gender_prior"]))
    return MapProblem(
        height=prior.height,
        z=row("z"),
        depth=row("depth"),
        depth_std=row("depth_std"),
        slope=row("slope"),
        corr=row("corr"),
        prior_mean=prior.mean,
        prior_sigma=prior.sigma,
        active=torch.ones_like(height_class, dtype=torch.bool),
    )


def _check_defined(solution: MapSolution) -> tuple[str, ...]:
    """Where the reference raises, a fit with finite numbers or a status that says why not is right."""
    finite = bool(torch.isfinite(solution.alpha).all() and torch.isfinite(solution.beta).all())
    named = int(solution.status[0]) in (FitStatus.DEGENERATE, FitStatus.EMPTY)
    return () if finite or named else ("neither a finite fit nor a status",)


def _number_errors(case: dict[str, Any], solution: MapSolution) -> dict[str, float]:
    expected = case["output"]
    errors = {
        "alpha": _relative(float(solution.alpha[0]), float(expected["alpha"])),
        "beta": _relative(float(solution.beta[0]), float(expected["beta"])),
        "deviation": _relative(float(solution.deviation[0]), float(expected["height_deviation"])),
    }
    if case.get("last_round"):
        errors["alpha_min"] = _relative(float(solution.alpha_min[0]), float(case["last_round"]["alpha_min"]))
    return errors


def _relative(found: float, expected: float) -> float:
    """Relative error with a floor of 1e-6 on the size; 0 where both are not a number."""
    if math.isnan(expected) or math.isnan(found):
        return 0.0 if math.isnan(expected) and math.isnan(found) else math.inf
    return 0.0 if found == expected else abs(found - expected) / max(abs(expected), 1e-6)


def _decision_failures(case: dict[str, Any], solution: MapSolution, height_class: torch.Tensor) -> list[str]:
    expected, last = case["output"], case.get("last_round") or {}
    order = solution.rejected_order[0]
    rejected = [case["input"]["person"][i] for i in torch.argsort(order).tolist() if order[i] >= 0]
    pairs: Sequence[tuple[str, Any, Any]] = (
        ("optimized", int(solution.num_optimized[0]), expected["optimized"]),
        ("rejected", rejected, expected["rejected"]),
        ("height_class", height_class[0].tolist(), expected["height_class"]),
        ("plane", bool(solution.plane[0]), last.get("plane", bool(solution.plane[0]))),
        ("rounds", int(solution.rounds[0]), last.get("rounds", int(solution.rounds[0]))),
    )
    return [f"{what}: {found} instead of {want}" for what, found, want in pairs if found != want]
