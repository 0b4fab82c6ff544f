"""Recorded per-person statistics (`person/`): counts, removals and groups equal, means to 1e-6."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dto_pipeline.axes import GROUND, MEAN
from dto_pipeline.config import EvidenceConfig
from dto_pipeline.lab.golden_case import CaseResult, check_case
from dto_pipeline.maths.depth_evidence import measure_depth_evidence
from dto_pipeline.scene import DepthEvidence, PersonMaps, SceneBatch

MEAN_TOLERANCE = 1e-6  # relative
STD_TOLERANCE = 1e-5  # relative; the recorded spread is good to 1e-6
SLOPE_TOLERANCE = 1e-5  # relative; recorded to 2e-6
CORR_TOLERANCE = 1e-5  # absolute; recorded to 4e-7
_COUNTS = ("n_raw", "n_iqr", "n_fit", "n_down")


def check_person_cases(folder: Path) -> list[CaseResult]:
    """Run every case listed in `folder`/person/index.json; an empty list where there is none."""
    index = folder / "person" / "index.json"
    if not index.is_file():
        return []
    return [
        check_case("person", e["case"], e["kind"], partial(_check, index.parent, e["case"], e["kind"]), e.get("error"))
        for e in json.loads(index.read_text())
    ]


def _check(folder: Path, name: str, kind: str) -> CaseResult:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        case = {key: archive[key] for key in archive.files}
    maps, batch = _maps(case), _batch(case)
    evidence = measure_depth_evidence(maps, batch, EvidenceConfig())
    decisions = {
        "removed": (evidence.cut[0], case["removed"]),
        "group": (evidence.group[0], case["group"]),
        **{count: (evidence.pixels[0, :, i], case[count]) for i, count in enumerate(_COUNTS)},
    }
    failures = [
        f"{what}: {found.tolist()} instead of {want.tolist()}"
        for what, (found, want) in decisions.items()
        if found.tolist() != want.tolist()
    ]
    errors, limits = _number_errors(case, evidence, flat=kind == "flat_rows")
    failures += [f"{what} off by {error:.1e}" for what, error in errors.items() if not error <= limits[what]]
    return CaseResult("person", name, kind, tuple(failures), errors, limits)


def _maps(case: dict[str, np.ndarray]) -> PersonMaps:
    return PersonMaps(
        person=torch.from_numpy(case["id_map"].astype(np.int64))[None] - 1,
        z=torch.from_numpy(case["z_map"].astype(np.float32))[None],
        visible_vertices=torch.from_numpy(case["visible_count"].astype(np.int64))[None],
    )


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


def _number_errors(
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
