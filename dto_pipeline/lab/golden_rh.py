"""Recorded cases of RelativeHuman's metrics, and whether ours are equal in mode `reference`.

Knows the case files (JSON, and plain npz where predictions are bodies) and the tolerances; the metric itself is in
`relative_human`. Indices and counts must be equal, fractions agree to 1e-6, projected joints to 0.02 px.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.sources.relative_human import EVALUATED_JOINTS, Annotation
from dto_pipeline.evaluate.relative_human import (
    GROUPS,
    EvaluatedImage,
    ImageTally,
    MetricStatus,
    RelativeHumanResult,
    evaluate_relative_human,
)
from dto_pipeline.evaluate.rh_evaluation import project_bodies
from dto_pipeline.lab.golden_case import CaseResult
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


@dataclass(frozen=True)
class RhCase:
    """One recorded data set. `problem` is empty unless the files could not be understood."""

    name: str
    kind: str = ""
    images: tuple[EvaluatedImage, ...] = ()  # without keypoints where `bodies` is given
    recorded: tuple[dict[str, Any], ...] = ()  # by image: `matches` and `missed` where recorded
    expected: dict[str, Any] | None = None
    error: str | None = None  # what the reference raised instead
    bodies: dict[str, np.ndarray] | None = None
    problem: str = ""


def load_rh_cases(folder: str | Path) -> list[RhCase]:
    """Every case of a folder, in order of name; one that cannot be read comes with its `problem`.

    Args:
        folder: the family's folder, or the one above it.

    Raises:
        FileNotFoundError: no case there.
    """
    family = _family_folder(Path(folder))
    names = {file.stem for file in family.glob("case_*.json")} | _indexed_names(family / "index.json")
    if not names:
        raise FileNotFoundError(f"no case_*.json in {family}; expected the {FAMILY} folder of recorded cases")
    return [_load_case(family, name) for name in sorted(names)]


def check_rh_cases(folder: str | Path, body: BodyModel) -> list[CaseResult]:
    """Evaluate every case in mode `reference` and compare. `body` poses the predictions that come as bodies."""
    regressor = _extra_regressor(_family_folder(Path(folder)))
    return [_check_case(case, body, regressor) for case in load_rh_cases(folder)]


def _family_folder(folder: Path) -> Path:
    return folder / FAMILY if (folder / FAMILY).is_dir() else folder


def _extra_regressor(family: Path) -> np.ndarray:
    """J_regressor_extra beside the cases, else the stand-in body's."""
    own = family.parent / "body" / "J_regressor_extra.npy"
    return np.load(own if own.is_file() else str(files("dto_pipeline.assets") / own.name), allow_pickle=False)


def _indexed_names(index: Path) -> set[str]:
    """Cases an index promises; their files may be missing, which is then that case's failure."""
    if not index.is_file():
        return set()
    try:
        return {str(entry["case"]) for entry in json.loads(index.read_text())}
    except _UNREADABLE as error:
        raise ValueError(f"{index} cannot be read ({error}); expected a list of cases, or no such file") from error


def _load_case(family: Path, name: str) -> RhCase:
    """Parse one case; whatever is wrong with its files becomes the case's problem."""
    try:
        raw = json.loads((family / f"{name}.json").read_text())
        file = family / f"{name}_bodies.npz"
        return RhCase(
            name=name,
            kind=str(raw.get("kind", "")),
            images=tuple(_parse_image(image) for image in raw["images"]),
            recorded=tuple({k: image.get(k) for k in ("matches", "missed")} for image in raw["images"]),
            expected=raw.get("expected"),
            error=raw.get("error"),
            bodies=_read_arrays(file) if file.is_file() else None,
        )
    except _UNREADABLE as error:
        return RhCase(name, problem=f"cannot be read: {type(error).__name__}: {error}")


def _parse_image(raw: dict[str, Any]) -> EvaluatedImage:
    annotations = tuple(
        Annotation(_array(person["kp2d"]) if person["kp2d"] is not None else None, person["depth_id"], person["age"])
        for person in raw["gt"]
    )
    keypoints = _array(raw.get("pred_kp2d") or []).reshape(-1, len(EVALUATED_JOINTS), 2)
    return EvaluatedImage(raw["name"], annotations, keypoints, _array(raw.get("pred_depth") or []), raw["predicted"])


def _array(numbers: list[Any]) -> np.ndarray:
    """float32; "nan" and "inf" may be strings."""
    return np.array(numbers, dtype=np.float32)


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _check_case(case: RhCase, body: BodyModel, regressor: np.ndarray) -> CaseResult:
    errors: dict[str, float] = {}
    failures = [case.problem] if case.problem else []
    if not case.problem:
        images = case.images
        try:
            if case.bodies is not None:
                keypoints = project_bodies(case.bodies, body, regressor)
                failures += _compare_pixels(keypoints, case.bodies.get("pred_kp2d"), errors)
                images = _with_bodies(images, keypoints, case.bodies)
            result = evaluate_relative_human(images, "reference")
            for tally, recorded in zip(result.images, case.recorded, strict=True):
                failures += _compare_image(tally, recorded)
            failures += _compare_result(result, case, errors)
        except (ValueError, KeyError, RuntimeError, IndexError) as error:
            failures.append(f"cannot be evaluated: {type(error).__name__}: {error}")
    return CaseResult(FAMILY, case.name, case.kind, tuple(failures), errors, {name: _limit(name) for name in errors})


def _limit(quantity: str) -> float:
    if quantity == "kp2d_px":
        return PIXEL_TOLERANCE
    return FRACTION_TOLERANCE + (ROUNDING if quantity in ("precision", "recall", "f1") else 0.0)


def _with_bodies(
    images: tuple[EvaluatedImage, ...], keypoints: np.ndarray, bodies: dict[str, np.ndarray]
) -> tuple[EvaluatedImage, ...]:
    """The images with their bodies as predictions, in row order; z is the translation's."""
    of_image = [bodies["image_index"] == i for i in range(len(images))]
    depth = bodies["trans"][:, 2].astype(np.float32)
    return tuple(
        dataclasses.replace(image, keypoints=keypoints[own], depth=depth[own])
        for image, own in zip(images, of_image, strict=True)
    )


def _compare_pixels(keypoints: np.ndarray, recorded: np.ndarray | None, errors: dict[str, float]) -> list[str]:
    if recorded is None:
        return []
    if recorded.shape != keypoints.shape:
        return [f"projected joints have shape {keypoints.shape}, recorded {recorded.shape}"]
    errors["kp2d_px"] = float(np.abs(keypoints - recorded).max(initial=0.0))
    if errors["kp2d_px"] <= PIXEL_TOLERANCE:
        return []
    return [f"a projected joint is {errors['kp2d_px']:.3g} px off, tolerance {PIXEL_TOLERANCE} px"]


def _compare_image(tally: ImageTally, recorded: dict[str, Any]) -> list[str]:
    found = {"matches": tally.matches.tolist(), "missed": tally.missed.tolist()}
    return [
        f"{tally.name}: {key} {found[key]}, recorded {wanted}"
        for key, wanted in recorded.items()
        if wanted is not None and found[key] != wanted
    ]


def _compare_result(result: RelativeHumanResult, case: RhCase, errors: dict[str, float]) -> list[str]:
    """Sentences on what differs from the recorded numbers; `errors` collects the worst differences."""
    expected = case.expected
    if case.error is not None:  # the reference broke down: any defined result will do, if it says why
        silent = case.kind == MetricStatus.NOTHING_MISSED.value and result.status is MetricStatus.OK
        return [f"status is {result.status.value}, but the reference raised {case.error}"] if silent else []
    if expected is None:
        return ["neither expected numbers nor an error is recorded"]
    failures = [
        f"{key} is {result.count(ours)}, recorded {expected[key]}"
        for key, ours in _COUNTS.items()
        if result.count(ours) != expected[key]
    ]
    failures += [
        f"pairs {key} is {result.count(ours)}, recorded {expected['pairs'][key]}"
        for key, ours in _PAIR_KEYS.items()
        if result.count(ours) != expected["pairs"][key]
    ]
    for key in (*(f"pcdr_{group}" for group in GROUPS), "mpckh", "precision", "recall", "f1"):
        failures += _compare_number(key, result.share(key), expected, _limit(key), errors)
    return failures


def _compare_number(
    key: str, ours: float | None, expected: dict[str, Any], tolerance: float, errors: dict[str, float]
) -> list[str]:
    """Undefined numbers (nothing to divide by) may be recorded as anything; only a class without pairs must be null."""
    wanted = expected[key]
    wanted_number = math.nan if wanted is None else float(wanted)
    if ours is None:
        is_class = key.startswith("pcdr_") and key != "pcdr_all"
        defined = is_class and math.isfinite(wanted_number)
        return [f"{key} is undefined, recorded {wanted}"] if defined else []
    difference = abs(ours - wanted_number)
    if not math.isfinite(difference):
        return [f"{key} is {ours}, recorded {wanted}"]
    errors[key] = difference
    return [f"{key} is {ours:.9g}, recorded {wanted}"] if difference > tolerance else []
