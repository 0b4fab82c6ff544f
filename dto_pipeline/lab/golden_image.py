"""Recorded whole images (`image/`): labels, masks and depth in, statuses and translations out.

Steady cases are strict: every status, group and flag equal, z within a few times max(z_wobble, 1e-4). The others stand
or fall with a pixel of the rasteriser and are only reported.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import FAR, NUM_BETAS
from dto_pipeline.collate import collate_scenes, map_size
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, config_from_dict
from dto_pipeline.lab.golden_case import CaseResult, check_case
from dto_pipeline.models.body import load_body
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import OUTCOMES, OptimizedScenes, Scene
from dto_pipeline.status import PersonStatus

WOBBLE_FACTOR = 3.0  # z may differ by this many times max(z_wobble, LEAST_WOBBLE), relative
LEAST_WOBBLE = 1e-4
DEVIATION_TOLERANCE = 0.02  # of the image's height deviation [sigma], on top of what z allows
_REMOVED, _UNCHANGED, _MOVED_NEAR, _MOVED_FAR = range(4)


def check_image_cases(folder: Path, device: torch.device | str = "cpu") -> list[CaseResult]:
    """Run every case listed in `folder`/image/index.json with the body in `folder`/body; empty where there is none."""
    index = folder / "image" / "index.json"
    if not index.is_file():
        return []
    body_folder = folder / "body"
    chosen = body_folder if body_folder.is_dir() else STAND_IN_BODY
    bodies = {kid: load_body(chosen, kid_axis=kid, device=device) for kid in (False, True)}
    results = []
    for entry in json.loads(index.read_text()):
        optimizer = SceneOptimizer(bodies[bool(entry["kid_shape"])], _config(entry))
        check = partial(_check, index.parent / f"{entry['case']}.npz", entry, optimizer)
        results.append(check_case("image", entry["case"], _kind(entry), check, entry.get("error")))
    return results


def load_image_case(path: Path, config: PipelineConfig) -> tuple[Scene, dict[str, np.ndarray]]:
    """One case as a scene, and its raw arrays."""
    with np.load(path, allow_pickle=False) as archive:
        case = {key: archive[key] for key in archive.files}
    height, width = (int(side) for side in case["image_size"])
    people = len(case["pose"])
    betas = np.zeros((people, NUM_BETAS), np.float32)
    betas[:, : case["betas"].shape[1]] = case["betas"]
    scene = Scene(
        image_id=f"golden/{path.stem}",
        subset="golden",
        image_path=path.stem,
        width=width,
        height=height,
        intrinsics=case["K"][0].astype(np.float64),
        pose=case["pose"],
        betas=betas,
        transl=case["trans"],
        age_years=case["age"],
        male_prob=case["male_prob"],
        source_row=np.arange(people),
        bbox_xyxy=case["bbox"],
        det_score=np.full(people, np.nan, np.float32),
        person_problem=[None] * people,
        masks=_map_masks(case["masks_packed"], height, width, config.evidence.render_max_side),
        disparity=case["disparity"].astype(np.float32),
    )
    return scene, case


def _config(entry: dict[str, Any]) -> PipelineConfig:
    return config_from_dict(
        {
            "prior": {"age_prior": entry["age_prior"], "gender_prior": entry["gender_prior"]},
            "solver": {"internal_constraint": entry["internal_constraint"]},
            "depth": {"unit": "published"},
        }
    )


def _kind(entry: dict[str, Any]) -> str:
    return f"{entry['scene']}/{entry['label_kind']}"


def _map_masks(packed: np.ndarray, height: int, width: int, max_side: int) -> np.ndarray:
    """(P, h, w) bool: packed full-size masks sampled at person-map size."""
    full = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width).astype(bool)
    h, w = map_size(height, width, max_side)
    return full[:, np.arange(h) * height // h][:, :, np.arange(w) * width // w]


def _check(path: Path, entry: dict[str, Any], optimizer: SceneOptimizer) -> CaseResult:
    scene, case = load_image_case(path, optimizer.config)
    optimized = _on_cpu(optimizer(collate_scenes([scene], optimizer.body.faces.device)))
    failures = _decision_failures(case, entry, optimized)
    wobble = WOBBLE_FACTOR * max(float(entry["z_wobble"]), LEAST_WOBBLE)
    errors = _number_errors(case, optimized)
    limits = {"z": wobble, "deviation": DEVIATION_TOLERANCE + 10 * wobble}
    failures += [f"{what} off by {errors[what]:.1e}" for what, limit in limits.items() if not errors[what] <= limit]
    return CaseResult("image", entry["case"], _kind(entry), tuple(failures), errors, limits, bool(entry["steady"]))


def _on_cpu(optimized: OptimizedScenes) -> OptimizedScenes:
    return OptimizedScenes(**{name: part.to("cpu") for name, part in vars(optimized).items()})


def _decision_failures(case: dict[str, np.ndarray], entry: dict[str, Any], optimized: OptimizedScenes) -> list[str]:
    fits, group = optimized.people.fits, optimized.evidence.group[0]
    pairs = (
        ("status", _status(optimized), case["status"].tolist()),
        ("group", group.tolist(), case["group"].tolist()),
        ("is_optimized", bool(fits.is_optimized[0]), bool(case["is_optimized"])),
        ("used_ground_points", bool(fits.used_ground[0]), bool(entry["used_ground_points"])),
    )
    return [f"{what}: {found} instead of {want}" for what, found, want in pairs if found != want]


def _status(optimized: OptimizedScenes) -> list[int]:
    """Our outcomes in the cases' words: 0 removed, 1 unchanged, 2 moved near, 3 moved far."""
    words = []
    for code, group in zip(
        optimized.people.fits.outcome[0].tolist(), optimized.evidence.group[0].tolist(), strict=True
    ):
        if OUTCOMES[code] is PersonStatus.TOO_SMALL:
            words.append(_REMOVED)
        elif OUTCOMES[code] is PersonStatus.MOVED:
            words.append(_MOVED_FAR if group == FAR else _MOVED_NEAR)
        else:
            words.append(_UNCHANGED)
    return words


def _number_errors(case: dict[str, np.ndarray], optimized: OptimizedScenes) -> dict[str, float]:
    """Relative error of z, absolute errors of translation [m], betas and the image's deviation [sigma]."""
    order = case["out_person"]
    transl = optimized.people.transl[0].numpy()[order]
    betas = optimized.people.betas[0].numpy()[order][:, : case["out_betas"].shape[1]]
    deviation = float(optimized.people.fits.deviation[0])
    return {
        "z": float(np.max(np.abs(transl[:, 2] / case["out_trans"][:, 2] - 1), initial=0.0)),
        "transl": float(np.max(np.abs(transl - case["out_trans"]), initial=0.0)),
        "betas": float(np.max(np.abs(betas - case["out_betas"]), initial=0.0)),
        "deviation": abs(deviation - float(case["height_deviation"])),
    }
