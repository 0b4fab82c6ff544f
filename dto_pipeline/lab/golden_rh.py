"""Recorded cases of RelativeHuman's metrics (`rh_metric`), against ours in mode `reference`.

Indices and counts must be equal, fractions agree to 1e-6, projected joints to 0.02 px.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
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
from dto_pipeline.lab.golden_case import Case, read_arrays, read_index, run_case
from dto_pipeline.lab.golden_labels import recorded_bodies
from dto_pipeline.models.body import BodyModel

FRACTION_TOLERANCE = 1e-6
ROUNDING = 0.005  # the published tool prints precision, recall and F1 with two decimals
PIXEL_TOLERANCE = 0.02  # the body is skinned in single precision [px]
_COUNTS = {
    **{"matched_persons": "matched", "missed": "missed_all", "predictions": "predictions"},
    **{"false_positives": "extra", "eq": "same", "cd": "nearer", "fd": "farther"},
}  # recorded name -> ours


def check_rh_cases(folder: Path) -> list[Case]:
    """Every case listed in `folder`/rh_metric/index.json; none where there is no such file."""
    index = folder / "rh_metric" / "index.json"
    if not (entries := read_index(index)):
        return []
    body, own = recorded_bodies(folder)[True], folder / "body" / "J_regressor_extra.npy"
    regressor = np.load(own if own.is_file() else str(files("dto_pipeline.assets") / own.name), allow_pickle=False)
    return [
        run_case(
            Case("rh_metric", str(entry["case"]), str(entry.get("kind", ""))),
            partial(_check_case, index.with_name(f"{entry['case']}.json"), body, regressor),
        )
        for entry in entries
    ]


def _check_case(path: Path, body: BodyModel, regressor: np.ndarray, case: Case) -> None:
    raw, bodies_file = json.loads(path.read_text()), path.with_name(f"{path.stem}_bodies.npz")
    images = [_parse_image(image) for image in raw["images"]]
    if bodies_file.is_file():
        bodies = read_arrays(bodies_file)
        keypoints, depth = project_bodies(bodies, body, regressor), bodies["trans"][:, 2].astype(np.float32)
        if "pred_kp2d" in bodies:
            case.near("kp2d_px", float(np.abs(keypoints - bodies["pred_kp2d"]).max(initial=0.0)), PIXEL_TOLERANCE)
        for number, image in enumerate(images):
            mine = bodies["image_index"] == number
            images[number] = dataclasses.replace(image, keypoints=keypoints[mine], depth=depth[mine])
    result = evaluate_relative_human(images, "reference")
    for tally, recorded in zip(result.images, raw["images"], strict=True):
        for key in ("matches", "missed"):
            if recorded.get(key) is not None:
                case.equal(f"{tally.name}: {key}", getattr(tally, key).tolist(), recorded[key])
    if raw.get("error") is not None:  # the reference broke down: any defined result will do, if it says why
        if raw.get("kind") == MetricStatus.NOTHING_MISSED.value and result.status is MetricStatus.OK:
            case.equal("status", result.status.value, MetricStatus.NOTHING_MISSED.value)
    elif raw.get("expected") is None:
        case.failures.append("neither expected numbers nor an error is recorded")
    else:
        _compare(case, result, raw["expected"])


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


def _compare(case: Case, result: RelativeHumanResult, expected: dict[str, Any]) -> None:
    for key, ours in _COUNTS.items():
        case.equal(key, result.count(ours), (expected | expected["pairs"])[key])
    for key in (*(f"pcdr_{group}" for group in GROUPS), "mpckh", "precision", "recall", "f1"):
        found, wanted = result.share(key), math.nan if expected[key] is None else float(expected[key])
        if found is not None:
            rounding = ROUNDING if key in ("precision", "recall", "f1") else 0.0
            case.near(key, abs(found - wanted), FRACTION_TOLERANCE + rounding)
        elif key.startswith("pcdr_") and key != "pcdr_all" and math.isfinite(wanted):
            # nothing to divide by may be recorded as anything; only a class without pairs must be null
            case.equal(key, found, wanted)
