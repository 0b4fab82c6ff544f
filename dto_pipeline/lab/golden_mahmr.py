"""Recorded numbers of the published Metric-Aware HMR: network, training step, losses, labels, evaluation, weights.

Runs on any folder of that format (``state_dict.csv`` with ``golden/``, or the latter alone); what the files say decides
sizes, cases and weights. A missing file is a failure of its own, and so is a recorded group that no rule here knows.
Names, augmentation and evaluation are compared here, losses and network in `golden_mahmr_network`. Labels agree to 2e-5
of the largest value of an array; masks, boxes' people and cells of the scale map are equal; evaluation agrees to 1e-9
and its totals to their last digit.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from dto_pipeline.evaluate.matching import match_bodies
from dto_pipeline.evaluate.mesh_evaluation import agora_errors, threedpw_errors
from dto_pipeline.lab.golden import Case, read_arrays, run_case
from dto_pipeline.lab.golden_mahmr_network import Recording, check_loss_case, check_network
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.train.augment import Draw, inside_image, project_points, vary
from dto_pipeline.train.checkpoint import IGNORED
from dto_pipeline.train.config import EncoderConfig, ModelConfig
from dto_pipeline.train.model import MeshNetwork
from dto_pipeline.train.targets import mark_cells, mesh_edges, person_boxes

Arrays = Mapping[str, np.ndarray]
WEIGHTS, NAMES = "tiny_checkpoint.safetensors", "state_dict.csv"
CASES = ("network_cases", "loss_cases", "augment_cases", "eval_cases")
_SIDE = 1288  # S, as published [px]
_STAGES = {
    "stage1": ModelConfig(betas=10, camera=False, denoising=10),
    "stage2": ModelConfig(betas=10),
    "stage3": ModelConfig(betas=11),
}
LABEL_TOLERANCE = 2e-5  # of the largest value of an array
EVAL_TOLERANCE = 1e-9  # of a recorded number
_LEAST_JOINTS = 4  # of 45 inside
_VERTEX_STEP = 2  # every second vertex stands for the body in the AGORA cases


def check_mahmr_cases(folder: Path) -> list[Case]:
    """Every recorded case of a folder (or of `folder`/mahmr), none where it holds no file of this family."""
    folder = folder / "mahmr" if (folder / "mahmr").is_dir() else folder
    inner = folder / "golden" if (folder / "golden").is_dir() and (folder / NAMES).exists() else folder
    needed = [WEIGHTS, *(f"{name}.{kind}" for name in CASES for kind in ("json", "npz"))]
    missing = [name for name in needed if not (inner / name).is_file()]
    names = next((place / NAMES for place in (folder, inner.parent) if (place / NAMES).is_file()), None)
    if len(missing) == len(needed) and not (folder / NAMES).is_file():
        return []
    results = []
    for name in missing:
        text = f"{inner / name} is missing; the family cannot be proven without it"
        results.append(Case("mahmr", f"files/{name}", failures=[text]))
    if names is not None:
        results += [run_case(Case("mahmr", f"names/{stage}"), partial(_check_names, names, stage)) for stage in _STAGES]
    body = load_body(inner / "body" if (inner / "body").is_dir() else "demo")
    for name in CASES:
        if not {f"{name}.json", f"{name}.npz", *([WEIGHTS] if name == "network_cases" else [])} & set(missing):
            results += _run(name, inner, body)
    return results


def _run(name: str, folder: Path, body: BodyModel) -> list[Case]:
    """The cases of a pair of files; files that cannot be understood are one failure."""
    try:
        said, arrays = json.loads((folder / f"{name}.json").read_text()), read_arrays(folder / f"{name}.npz")
        if name == "network_cases":
            regressor = np.load(str(files("dto_pipeline.assets") / "J_regressor_extra.npy"), allow_pickle=False)
            weights = load_file(folder / WEIGHTS)
            return check_network(Recording(said, arrays, weights, body, torch.from_numpy(regressor).float()))
        if name == "loss_cases":
            return _each(said["cases"], arrays, "loss", check_loss_case)
        if name == "augment_cases":
            return _each(said, arrays, "augment", partial(_check_augment, body))
        return _check_eval(said, arrays)
    except Exception as error:  # the other files' results must stand
        return [Case("mahmr", name, failures=[f"cannot be run: {type(error).__name__}: {error}"])]


def _each(
    cases: Mapping[str, Any], arrays: Arrays, kind: str, check: Callable[[Mapping[str, Any], Arrays, Case], None]
) -> list[Case]:
    results = []
    for name, said in cases.items():
        own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        case = Case("mahmr", f"{kind}/{name}", str(said.get("stage", "")))
        results.append(run_case(case, partial(check, said, own)))
    for name in sorted({key.partition("/")[0] for key in arrays} - set(cases)):
        results.append(Case("mahmr", f"{kind}/{name}", failures=["has arrays, but no entry in the JSON"]))
    return results


def _check_names(path: Path, stage: str, case: Case) -> None:
    """Names and shapes of a full-size network against the list, but for what is no weight of it."""
    with torch.device("meta"):
        network = MeshNetwork(EncoderConfig(), _STAGES[stage], _SIDE)
    found = {name: "x".join(map(str, value.shape)) for name, value in network.state_dict().items()}
    recorded = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            shape = row.get(f"shape_{stage}") or row["shape_stage3"]
            if shape != "absent" and not IGNORED.match(row["name"]):
                recorded[row["name"]] = shape
    for name in {**recorded, **found}:
        case.equal(f"shape of {name}", found.get(name), recorded.get(name))


def _check_augment(body: BodyModel, said: Mapping[str, Any], arrays: Arrays, case: Case) -> None:
    """One image: who stays, and every label of those."""
    height, width = said["image_hw"]
    side = int(said["input_size"])
    betas = np.pad(arrays["in_betas"], ((0, 0), (0, 11 - arrays["in_betas"].shape[1])))
    transl, camera, rotation, shift = (
        arrays[f"in_{key}"] for key in ("transl", "cam_intrinsics", "cam_rot", "cam_trans")
    )
    crop = float(said["beta_draw"]) if said["crop"] else None
    draw = Draw(float(said["rot"]), bool(said["flip"]), float(said["scale"]), crop)
    people, size = (arrays["in_poses"], betas, transl, camera), (width, height)
    varied = vary(*people, size, side, draw, body, half_pixel=True, rotation=rotation, shift=shift)
    inside = inside_image(varied.image_joints, varied.frame)
    kept = np.flatnonzero(inside.sum(1) >= _LEAST_JOINTS)
    case.equal("people who stay", kept.tolist(), arrays["kept"].tolist())
    if case.failures:
        return
    camera = varied.intrinsics[kept] if len(varied.intrinsics) > 1 else varied.intrinsics
    known = np.ones((len(kept), inside.shape[1]), bool)
    boxes = person_boxes(varied.image_joints[kept], known, varied.frame.size, side)
    focal = np.broadcast_to(camera[:, 0, 0], len(kept))
    depth = varied.joints[kept, 0, 2]
    shapes = (np.ascontiguousarray(part, np.float32) for part in (varied.pose[kept], betas[kept], varied.transl[kept]))
    vertices = body.vertices(*map(torch.from_numpy, shapes)).numpy()
    cells = mark_cells(
        project_points(vertices, camera, behind=True), depth / focal, np.hypot(*boxes[:, 2:].T).clip(0, 1),
        varied.frame.size, mesh_edges(body), clamp=True,
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
    case.arrays(found, recorded, LABEL_TOLERANCE, exact=("j2ds_mask", "img_size"))
    if cells.shape == recorded["scale_map"].shape and (cells[:, 0] != recorded["scale_map"][:, 0]).any():
        case.failures.append("other cells of the scale map show people than recorded")


def _check_eval(recorded: Mapping[str, Any], arrays: Arrays) -> list[Case]:
    """Every image, and the totals over all of them."""
    results, errors_of, counts = [], list[dict[str, np.ndarray]](), np.zeros(3, int)
    for number, image in enumerate(recorded["images"]):
        own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{number}/")}
        pairs = match_bodies(own["pred_j2d"], own["gt_j2d"], published=True)
        false = len(own["pred_j2d"]) - len(pairs)
        counts += [len(own["gt_j2d"]), len(own["gt_j2d"]) - len(pairs), false]
        case = Case("mahmr", f"eval/{number}")
        case.equal("matched", pairs.tolist(), [list(pair) for pair in image["matched"]])
        case.equal("false_positives", false, image["false_positives"])
        found, worst = _errors(own, pairs), 0.0
        errors_of.append(found)
        for row, wanted in enumerate([] if case.failures else image["errors"]):
            share = {key: abs(values[row] - wanted[key]) / max(abs(wanted[key]), 1.0) for key, values in found.items()}
            worst = float(np.max([worst, *share.values()]))  # not a number where one of them is none
        case.near("errors", worst, EVAL_TOLERANCE)
        results.append(case)
    totals = Case("mahmr", "eval/totals")
    _check_totals(totals, counts.tolist(), errors_of, recorded["expected"])
    return [*results, totals]


def _errors(own: Arrays, pairs: np.ndarray) -> dict[str, np.ndarray]:
    first, second = pairs.T
    joints = own["pred_h36m"][first], own["gt_h36m"][second]
    vertices = own["pred_verts"][first], own["gt_verts"][second]
    bodies = own["pred_smpl24"][first], own["gt_smpl24"][second]
    return threedpw_errors(*joints, *vertices) | agora_errors(*bodies, *(mesh[:, ::_VERTEX_STEP] for mesh in vertices))


def _check_totals(
    case: Case, counts: list[int], errors: list[dict[str, np.ndarray]], expected: Mapping[str, Any]
) -> None:
    means = {key: float(np.concatenate([one[key] for one in errors]).mean()) for key in errors[0]}
    true, missed, false = counts
    matched = true - missed
    f1 = round(matched / max(1, matched + (false + missed) / 2), 2)
    found: dict[str, Any] = {
        **{key.upper(): round(value, 1) for key, value in means.items()},
        "precision": round(matched / max(1, matched + false), 2),
        "recall": round(matched / max(1, true), 2),
        "f1": f1,
    }
    found |= {"NMJE": round(means["agora_mpjpe"] / f1, 1), "NMVE": round(means["agora_mve"] / f1, 1)} if f1 else {}
    found["counts"] = {"count": true, "miss": missed, "fp": false}
    for key, wanted in expected.items():
        case.equal(key, found.get(key), wanted)


def _rotations(pose: np.ndarray) -> np.ndarray:
    return axis_angle_to_matrix(torch.from_numpy(np.asarray(pose, np.float64).reshape(-1, 24, 3))).numpy()
