"""Recorded augmentation, targets and evaluation of the published MA-HMR, against `train` and `evaluate`.

Knows the files `augment_cases` and `eval_cases`. Labels agree to 2e-5 of the largest value of an array, masks, boxes'
people and cells of the scale map are equal, evaluation agrees to 1e-9 and its totals to their last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dto_pipeline.evaluate.protocols import ProtocolCounts, agora_errors, match_protocol, threedpw_errors
from dto_pipeline.lab.golden_case import CaseResult
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.augment import Bodies, Draw, inside_image, project_points, vary
from dto_pipeline.train.targets import mark_cells, mesh_edges, person_boxes

FAMILY = "mahmr"
LABEL_TOLERANCE = 2e-5  # of the largest value of an array
EVAL_TOLERANCE = 1e-9  # of a recorded number
_LEAST_JOINTS = 4  # of 45 inside
_VERTEX_STEP = 2  # every second vertex stands for the body in the AGORA cases


def check_augment_case(
    name: str, case: Mapping[str, Any], arrays: Mapping[str, np.ndarray], body: BodyModel
) -> CaseResult:
    """One image: who stays, and every label of those."""
    height, width = case["image_hw"]
    side = int(case["input_size"])
    betas = np.pad(arrays["in_betas"], ((0, 0), (0, 11 - arrays["in_betas"].shape[1])))
    names = ("in_transl", "in_cam_intrinsics", "in_cam_rot", "in_cam_trans")
    bodies = Bodies(arrays["in_poses"], betas, *(arrays[key] for key in names))
    crop = float(case["beta_draw"]) if case["crop"] else None
    draw = Draw(float(case["rot"]), bool(case["flip"]), float(case["scale"]), crop)
    varied = vary(bodies, width, height, side, draw, body, half_pixel=True)
    inside = inside_image(varied.image_joints, varied.frame)
    kept = np.flatnonzero(inside.sum(1) >= _LEAST_JOINTS)
    if kept.tolist() != arrays["kept"].tolist():
        failure = f"people {kept.tolist()} stay, recorded {arrays['kept'].tolist()}"
        return CaseResult(FAMILY, f"augment/{name}", "", (failure,), {})
    camera = varied.intrinsics[kept] if len(varied.intrinsics) > 1 else varied.intrinsics
    boxes = person_boxes(
        varied.image_joints[kept], np.ones((len(kept), inside.shape[1]), bool), varied.frame.size, side
    )
    focal = np.broadcast_to(camera[:, 0, 0], len(kept))
    depth = varied.joints[kept, 0, 2]
    vertices = body.vertices(*(_float(part) for part in (varied.pose[kept], betas[kept], varied.transl[kept]))).numpy()
    cells = mark_cells(
        project_points(vertices, camera, behind=True), depth / focal, np.hypot(*boxes[:, 2:].T).clip(0, 1),
        varied.frame.size, mesh_edges(body.faces.numpy()), clamp=True,
    )  # fmt: skip
    found = {
        "poses": _rotations(varied.pose[kept]),
        "betas": betas[kept][:, : arrays["out_betas"].shape[1]],
        "transl": varied.transl[kept],
        "cam_intrinsics": camera,
        "j3ds": varied.joints[kept],
        "j2ds": varied.image_joints[kept],
        "j2ds_mask": np.repeat(inside[kept][..., None], 2, axis=-1),
        "depths": np.stack([depth, depth / focal], axis=1),
        "focals": focal[:, None],
        "boxes": boxes,
        "scale_map": cells,
        "img_size": np.array(varied.frame.size[::-1]),
    }
    recorded = {key: arrays[f"out_{key}"] for key in found} | {"poses": _rotations(arrays["out_poses"])}
    failures, errors = compare_arrays(found, recorded, LABEL_TOLERANCE, exact=("j2ds_mask", "img_size"))
    if cells.shape == recorded["scale_map"].shape and (cells[:, 0] != recorded["scale_map"][:, 0]).any():
        failures.append("other cells of the scale map show people than recorded")
    return CaseResult(FAMILY, f"augment/{name}", "", tuple(failures), errors, dict.fromkeys(errors, LABEL_TOLERANCE))


def check_eval_cases(recorded: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[CaseResult]:
    """Every image, and the totals over all of them."""
    results, errors_of, counts = [], list[dict[str, np.ndarray]](), np.zeros(3, int)
    for number, image in enumerate(recorded["images"]):
        own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{number}/")}
        pairs, false = match_protocol(own["pred_j2d"], own["gt_j2d"])
        counts += [len(own["gt_j2d"]), len(own["gt_j2d"]) - len(pairs), false]
        failures = []
        if [list(pair) for pair in pairs] != [list(pair) for pair in image["matched"]]:
            failures.append(f"matched {pairs}, recorded {image['matched']}")
        if false != image["false_positives"]:
            failures.append(f"{false} false positives, recorded {image['false_positives']}")
        found = _errors(own, pairs)
        errors_of.append(found)
        worst = 0.0
        for row, wanted in enumerate([] if failures else image["errors"]):
            for key, values in found.items():
                error = abs(values[row] - wanted[key]) / max(abs(wanted[key]), 1.0)
                worst = max(worst, error)
                if not error <= EVAL_TOLERANCE:
                    failures.append(
                        f"{key} of true person {wanted['gt']} is {values[row]:.12g}, recorded {wanted[key]:.12g}"
                    )
        limits = {"errors": EVAL_TOLERANCE}
        results.append(CaseResult(FAMILY, f"eval/{number}", "", tuple(failures), {"errors": worst}, limits))
    return [*results, _check_totals(ProtocolCounts(*counts.tolist()), errors_of, recorded["expected"])]


def compare_arrays(
    found: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray], tolerance: float, exact: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, float]]:
    """Sentences on arrays that differ by more than a share of their largest value, and the worst shares.

    Poses come as rotation matrices, whose largest value is that of the axis-angles they are of: half a turn.
    """
    failures, errors = [], {}
    for name, wanted in recorded.items():
        values = found[name]
        if values.shape != wanted.shape:
            failures.append(f"{name} has shape {values.shape}, recorded {wanted.shape}")
            continue
        if name in exact:
            wrong = int((values != wanted).sum())
            failures += [f"{name} differs in {wrong} places"] if wrong else []
            continue
        largest = math.pi if name.endswith("poses") else max(float(np.abs(wanted).max(initial=0)), 1e-9)
        errors[name] = float(np.abs(values.astype(np.float64) - wanted).max(initial=0)) / largest
        if not errors[name] <= tolerance:
            failures.append(f"{name} is off by {errors[name]:.3g} of its largest value")
    return failures, errors


def _errors(own: Mapping[str, np.ndarray], pairs: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    joints = own["pred_h36m"][first], own["gt_h36m"][second]
    vertices = own["pred_verts"][first], own["gt_verts"][second]
    bodies = own["pred_smpl24"][first], own["gt_smpl24"][second]
    return threedpw_errors(*joints, *vertices) | agora_errors(*bodies, *(mesh[:, ::_VERTEX_STEP] for mesh in vertices))


def _check_totals(
    counts: ProtocolCounts, errors: list[dict[str, np.ndarray]], expected: Mapping[str, Any]
) -> CaseResult:
    means = {key: float(np.concatenate([one[key] for one in errors]).mean()) for key in errors[0]}
    f1 = round(counts.f1, 2)
    found: dict[str, Any] = {
        **{key.upper(): round(value, 1) for key, value in means.items()},
        **{"precision": round(counts.precision, 2), "recall": round(counts.recall, 2), "f1": f1},
    }
    found |= {"NMJE": round(means["agora_mpjpe"] / f1, 1), "NMVE": round(means["agora_mve"] / f1, 1)} if f1 else {}
    found["counts"] = {"count": counts.true, "miss": counts.missed, "fp": counts.false_positives}
    failures = [
        f"{key} is {found.get(key)}, recorded {wanted}" for key, wanted in expected.items() if found.get(key) != wanted
    ]
    return CaseResult(FAMILY, "eval/totals", "", tuple(failures), {})


def _rotations(pose: np.ndarray) -> np.ndarray:
    return axis_angle_to_matrix(torch.from_numpy(np.asarray(pose, np.float64).reshape(-1, 24, 3))).numpy()


def _float(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
