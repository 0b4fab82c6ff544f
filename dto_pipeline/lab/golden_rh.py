"""Recorded cases of RelativeHuman's metrics, and whether ours are equal in mode `reference`.

Knows the case files (JSON, and plain npz where predictions are bodies) and the tolerances; the metric itself is in
`relative_human`. Indices and counts must be equal, fractions agree to 1e-6, projected joints to 0.02 px.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.sources.relative_human import EVALUATED_JOINTS, Annotation
from dto_pipeline.evaluate.relative_human import (
    GROUPS,
    EvaluatedImage,
    MetricStatus,
    RelativeHumanResult,
    evaluate_relative_human,
    project_bodies,
)
from dto_pipeline.lab.golden_case import CaseResult, read_arrays
from dto_pipeline.models.body import BodyModel

FAMILY = "rh_metric"
FRACTION_TOLERANCE = 1e-6
ROUNDING = 0.005  # the published tool prints precision, recall and F1 with two decimals
PIXEL_TOLERANCE = 0.02  # the body is skinned in single precision [px]
_PAIR_KEYS = {"eq": "same", "cd": "nearer", "fd": "farther"}
_COUNTS = {
    **{"matched_persons": "matched", "missed": "missed_all", "predictions": "predictions"},
    "false_positives": "extra",
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile)


def check_rh_cases(folder: str | Path, body: BodyModel) -> list[CaseResult]:
    """Evaluate every case in mode `reference` and compare, in order of name.

    Args:
        folder: the family's folder, or the one above it; body: poses the predictions that come as bodies.

    Raises:
        FileNotFoundError: no case there; ValueError: an index that cannot be read.
    """
    family = Path(folder) / FAMILY if (Path(folder) / FAMILY).is_dir() else Path(folder)
    names, index = {file.stem for file in family.glob("case_*.json")}, family / "index.json"
    if index.is_file():  # files it promises may be missing, which is then that case's failure
        try:
            names |= {str(entry["case"]) for entry in json.loads(index.read_text())}
        except _UNREADABLE as error:
            raise ValueError(f"{index} cannot be read ({error}); expected a list of cases, or no such file") from error
    if not names:
        raise FileNotFoundError(f"no case_*.json in {family}; expected the {FAMILY} folder of recorded cases")
    own = family.parent / "body" / "J_regressor_extra.npy"
    regressor = np.load(own if own.is_file() else str(files("dto_pipeline.assets") / own.name), allow_pickle=False)
    return [_check_case(family, name, body, regressor) for name in sorted(names)]


def _check_case(family: Path, name: str, body: BodyModel, regressor: np.ndarray) -> CaseResult:
    try:
        raw = json.loads((family / f"{name}.json").read_text())
        images = [_parse_image(image) for image in raw["images"]]
        file = family / f"{name}_bodies.npz"
        bodies = read_arrays(file) if file.is_file() else None
    except _UNREADABLE as error:
        return CaseResult(FAMILY, name, "", (f"cannot be read: {type(error).__name__}: {error}",))
    kind, failures, errors = str(raw.get("kind", "")), [], dict[str, float]()
    try:
        if bodies is not None:
            keypoints = project_bodies(bodies, body, regressor)
            failures += _compare_pixels(keypoints, bodies.get("pred_kp2d"), errors)
            depth = bodies["trans"][:, 2].astype(np.float32)
            mine = [bodies["image_index"] == i for i in range(len(images))]
            images = [
                dataclasses.replace(image, keypoints=keypoints[own], depth=depth[own])
                for image, own in zip(images, mine, strict=True)
            ]
        result = evaluate_relative_human(images, "reference")
        for tally, recorded in zip(result.images, raw["images"], strict=True):
            for key in ("matches", "missed"):
                found, wanted = getattr(tally, key).tolist(), recorded.get(key)
                if wanted is not None and found != wanted:
                    failures.append(f"{tally.name}: {key} {found}, recorded {wanted}")
        failures += _compare_result(result, raw, errors)
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        failures.append(f"cannot be evaluated: {type(error).__name__}: {error}")
    limits = {key: _limit(key) for key in errors}
    return CaseResult(FAMILY, name, kind, tuple(failures), errors, limits)


def _parse_image(raw: dict[str, Any]) -> EvaluatedImage:
    """Numbers are float32; "nan" and "inf" may be strings."""
    annotations = tuple(
        Annotation(
            None if person["kp2d"] is None else np.array(person["kp2d"], np.float32), person["depth_id"], person["age"]
        )
        for person in raw["gt"]
    )
    keypoints = np.array(raw.get("pred_kp2d") or [], np.float32).reshape(-1, len(EVALUATED_JOINTS), 2)
    depth = np.array(raw.get("pred_depth") or [], np.float32)
    return EvaluatedImage(raw["name"], annotations, keypoints, depth, raw["predicted"])


def _compare_pixels(keypoints: np.ndarray, recorded: np.ndarray | None, errors: dict[str, float]) -> list[str]:
    if recorded is None:
        return []
    if recorded.shape != keypoints.shape:
        return [f"projected joints have shape {keypoints.shape}, recorded {recorded.shape}"]
    errors["kp2d_px"] = float(np.abs(keypoints - recorded).max(initial=0.0))
    if errors["kp2d_px"] <= PIXEL_TOLERANCE:
        return []
    return [f"a projected joint is {errors['kp2d_px']:.3g} px off, tolerance {PIXEL_TOLERANCE} px"]


def _limit(quantity: str) -> float:
    if quantity == "kp2d_px":
        return PIXEL_TOLERANCE
    return FRACTION_TOLERANCE + (ROUNDING if quantity in ("precision", "recall", "f1") else 0.0)


def _compare_result(result: RelativeHumanResult, case: dict[str, Any], errors: dict[str, float]) -> list[str]:
    """Sentences on what differs from the recorded numbers; `errors` collects the worst differences."""
    expected, error = case.get("expected"), case.get("error")
    if error is not None:  # the reference broke down: any defined result will do, if it says why
        silent = case.get("kind") == MetricStatus.NOTHING_MISSED.value and result.status is MetricStatus.OK
        return [f"status is {result.status.value}, but the reference raised {error}"] if silent else []
    if expected is None:
        return ["neither expected numbers nor an error is recorded"]
    counts = {key: (result.count(ours), expected[key]) for key, ours in _COUNTS.items()}
    counts |= {f"pairs {key}": (result.count(ours), expected["pairs"][key]) for key, ours in _PAIR_KEYS.items()}
    failures = [f"{key} is {found}, recorded {wanted}" for key, (found, wanted) in counts.items() if found != wanted]
    for key in (*(f"pcdr_{group}" for group in GROUPS), "mpckh", "precision", "recall", "f1"):
        found = result.share(key)
        wanted = math.nan if expected[key] is None else float(expected[key])
        if found is None:
            # nothing to divide by may be recorded as anything; only a class without pairs must be null
            if key.startswith("pcdr_") and key != "pcdr_all" and math.isfinite(wanted):
                failures.append(f"{key} is undefined, recorded {expected[key]}")
        elif not math.isfinite(found - wanted):
            failures.append(f"{key} is {found}, recorded {expected[key]}")
        else:
            errors[key] = abs(found - wanted)
            if errors[key] > _limit(key):
                failures.append(f"{key} is {found:.9g}, recorded {expected[key]}")
    return failures
