"""Recorded fits of one group of people (`solver/cases.json`) and statistics of persons (`person/`).

Fits: every decision equal, numbers to 1e-9 relative. Statistics: counts, removals and groups equal, means to 1e-6.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import ADULT, ADULT_FEMALE, GROUND, MEAN
from dto_pipeline.config import EvidenceConfig, PriorConfig, SolverConfig
from dto_pipeline.lab.golden_case import CaseResult, check_case, differences, judge, read_arrays
from dto_pipeline.maths.depth_evidence import measure_depth_evidence
from dto_pipeline.maths.heights import build_height_prior
from dto_pipeline.maths.paper_solver import solve_map
from dto_pipeline.scene import DepthEvidence, MapProblem, MapSolution, PersonMaps, SceneBatch
from dto_pipeline.status import FitStatus

FIT_TOLERANCE = 1e-9  # relative, suggested by the cases' README
MEAN_TOLERANCE = 1e-6  # relative
STD_TOLERANCE = 1e-5  # relative; the recorded spread is good to 1e-6
SLOPE_TOLERANCE = 1e-5  # relative; recorded to 2e-6
CORR_TOLERANCE = 1e-5  # absolute; recorded to 4e-7
_RESIDUE_KINDS = ("edge:equal_depths",)  # there the reference divides by a rounding residue: only flags mean anything
_COUNTS = ("n_raw", "n_iqr", "n_fit", "n_down")


def check_solver_cases(folder: Path) -> list[CaseResult]:
    """Run every case of `folder`/solver/cases.json; an empty list where there is none."""
    path = folder / "solver" / "cases.json"
    if not path.is_file():
        return []
    return [
        check_case("solver", f"{case.get('case', index)}", str(case["kind"]), partial(_check_fit, case, index))
        for index, case in enumerate(json.loads(path.read_text()))
    ]


def _check_fit(case: dict[str, Any], index: int) -> CaseResult:
    kind, name, given = str(case["kind"]), f"{case.get('case', index)}", case["input"]
    # a class that is missing is an adult of unknown gender, and without the gender prior every adult is
    height_class = torch.tensor([[ADULT if value is None else int(value) for value in given["height_class"]]])
    if not case["gender_prior"]:
        height_class = torch.where(height_class >= ADULT_FEMALE, ADULT, height_class)
    options = SolverConfig(internal_constraint=case["internal_constraint"], max_rounds=given.get("max_iter", 10))
    solution = solve_map(_problem(case, height_class), options)
    if case["output"] is None:  # the reference raises: a finite fit, or a status that says why not, is right
        finite = bool(torch.isfinite(solution.alpha).all() and torch.isfinite(solution.beta).all())
        named = int(solution.status[0]) in (FitStatus.DEGENERATE, FitStatus.EMPTY)
        return CaseResult("solver", name, kind, () if finite or named else ("neither a finite fit nor a status",))
    expected, last = case["output"], case.get("last_round") or {}
    order = solution.rejected_order[0]
    rejected = [given["person"][i] for i in torch.argsort(order).tolist() if order[i] >= 0]
    plane, rounds = bool(solution.plane[0]), int(solution.rounds[0])
    failures = differences(
        {
            "optimized": (int(solution.num_optimized[0]), expected["optimized"]),
            "rejected": (rejected, expected["rejected"]),
            "height_class": (height_class[0].tolist(), expected["height_class"]),
            "plane": (plane, last.get("plane", plane)),
            "rounds": (rounds, last.get("rounds", rounds)),
        }
    )
    # in a plane alpha is its bound, and nothing was divided by a residue
    residue = kind.startswith(_RESIDUE_KINDS) and not last.get("plane")
    errors = {} if residue else _fit_errors(expected, last, solution)
    result = judge("solver", name, kind, failures, errors, dict.fromkeys(errors, FIT_TOLERANCE))
    return dataclasses.replace(result, strict=not (residue and failures))


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


def _fit_errors(expected: dict[str, Any], last: dict[str, Any], solution: MapSolution) -> dict[str, float]:
    """Relative errors with a floor of 1e-6 on the size; 0 where both are not a number."""
    pairs = {
        "alpha": (solution.alpha, expected["alpha"]),
        "beta": (solution.beta, expected["beta"]),
        "deviation": (solution.deviation, expected["height_deviation"]),
    }
    if last:
        pairs["alpha_min"] = (solution.alpha_min, last["alpha_min"])
    errors = {}
    for name, (values, recorded) in pairs.items():
        found, want = float(values[0]), float(recorded)
        if math.isnan(want) or math.isnan(found):
            errors[name] = 0.0 if math.isnan(want) and math.isnan(found) else math.inf
        else:
            errors[name] = 0.0 if found == want else abs(found - want) / max(abs(want), 1e-6)
    return errors


def check_person_cases(folder: Path) -> list[CaseResult]:
    """Run every case listed in `folder`/person/index.json; an empty list where there is none."""
    index = folder / "person" / "index.json"
    if not index.is_file():
        return []
    return [
        check_case("person", e["case"], e["kind"], partial(_check_person, index.parent, e), e.get("error"))
        for e in json.loads(index.read_text())
    ]


def _check_person(folder: Path, entry: dict[str, Any]) -> CaseResult:
    case = read_arrays(folder / f"{entry['case']}.npz")
    maps = PersonMaps(
        person=torch.from_numpy(case["id_map"].astype(np.int64))[None] - 1,
        z=torch.from_numpy(case["z_map"].astype(np.float32))[None],
        visible_vertices=torch.from_numpy(case["visible_count"].astype(np.int64))[None],
    )
    evidence = measure_depth_evidence(maps, _batch(case), EvidenceConfig())
    decisions = {"removed": (evidence.cut[0], case["removed"]), "group": (evidence.group[0], case["group"])}
    decisions |= {count: (evidence.pixels[0, :, i], case[count]) for i, count in enumerate(_COUNTS)}
    failures = differences({what: (found.tolist(), want.tolist()) for what, (found, want) in decisions.items()})
    errors, limits = _evidence_errors(case, evidence, flat=entry["kind"] == "flat_rows")
    return judge("person", entry["case"], entry["kind"], failures, errors, limits)


def _batch(case: dict[str, np.ndarray]) -> SceneBatch:
    """The parts of a batch that evidence reads: disparity, sizes, focal length and translations."""
    people = len(case["trans"])
    size = torch.from_numpy(case["image_size"].astype(np.int64))[None]
    intrinsics = torch.eye(3, dtype=torch.float64)[None].clone()
    intrinsics[0, 0, 0], intrinsics[0, 1, 1] = (float(value) for value in case["focal"])
    intrinsics[0, :2, 2] = size[0].flip(0) / 2
    return SceneBatch(
        pose=torch.zeros(1, people, 72),
        betas=torch.zeros(1, people, 11),
        transl=torch.from_numpy(case["trans"].astype(np.float32))[None],
        intrinsics=intrinsics,
        age_years=torch.full((1, people), torch.nan),
        male_prob=torch.full((1, people), torch.nan),
        present=torch.ones(1, people, dtype=torch.bool),
        masks=torch.ones(1, people, 1, 1, dtype=torch.bool),
        disparity=torch.from_numpy(case["disparity"].astype(np.float32))[None],
        metric=torch.zeros(1, dtype=torch.bool),
        image_size=size,
        map_size=size,
    )


def _evidence_errors(
    case: dict[str, np.ndarray], evidence: DepthEvidence, flat: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Worst relative error and tolerance by quantity (absolute for corr)."""
    numbers = {
        "depth_mean": (evidence.depth[0, :, MEAN], MEAN_TOLERANCE),
        "z_mean": (evidence.z[0, :, MEAN], MEAN_TOLERANCE),
        "depth_std": (evidence.depth_std[0], STD_TOLERANCE),
        "depth_down": (evidence.depth[0, :, GROUND], MEAN_TOLERANCE),
        "z_down": (evidence.z[0, :, GROUND], MEAN_TOLERANCE),
        "y_down": (evidence.ground_row[0], MEAN_TOLERANCE),
        "lower": (evidence.bounds[0, :, 0], MEAN_TOLERANCE),
        "upper": (evidence.bounds[0, :, 1], MEAN_TOLERANCE),
        "corr": (evidence.corr[0], CORR_TOLERANCE),
    }
    errors = {name: _worst(found.numpy(), case[name], relative=name != "corr") for name, (found, _) in numbers.items()}
    limits = {name: limit for name, (_, limit) in numbers.items()}
    means_something = np.abs(np.nan_to_num(case["corr"])) > CORR_TOLERANCE  # else slope is a rounding residue
    if not flat or means_something.any():
        slope = np.where(means_something | np.isnan(case["slope"]), evidence.slope[0].numpy(), case["slope"])
        errors["slope"], limits["slope"] = _worst(slope, case["slope"], relative=True), SLOPE_TOLERANCE
    return errors, limits


def _worst(found: np.ndarray, expected: np.ndarray, relative: bool) -> float:
    """Largest error over the people; infinite where one side is a number and the other is not."""
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    size = np.maximum(np.abs(expected), 1e-12) if relative else 1.0
    return float(np.nanmax(np.abs(found - expected) / size, initial=0.0))
