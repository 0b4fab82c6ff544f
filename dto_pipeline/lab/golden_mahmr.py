"""Recorded numbers of the published Metric-Aware HMR: names of weights, augmented labels, evaluation.

Reads any folder of that format (`state_dict.csv` with `golden/`, or the latter alone). Losses and network are compared
in `golden_mahmr_network`. A file that is missing or cannot be read is a failure, and so is an array that no check uses.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dto_pipeline.evaluate.matching import match_bodies
from dto_pipeline.evaluate.mesh_evaluation import PROTOCOLS, agora_errors, threedpw_errors
from dto_pipeline.lab.golden import Case, read_arrays, sizes
from dto_pipeline.lab.golden_mahmr_network import (
    Check,
    check_loss_case,
    compare_arrays,
    failing,
    read_network_cases,
    take_group,
)
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.train.augment import Draw, inside_image
from dto_pipeline.train.checkpoint import IGNORED
from dto_pipeline.train.config import AugmentConfig, DataConfig, EncoderConfig, ModelConfig
from dto_pipeline.train.model import MeshNetwork
from dto_pipeline.train.targets import Rules, see_people, unknown_people

Arrays = Mapping[str, np.ndarray]
NAMES = "state_dict.csv"
_SIDE = 1288  # S, as published [px]
_STAGES = {
    "stage1": ModelConfig(betas=10, camera=False, denoising=10),
    "stage2": ModelConfig(betas=10),
    "stage3": ModelConfig(betas=11),
}
LABEL_TOLERANCE = 2e-5  # of the largest value of an array
EVAL_TOLERANCE = 1e-9  # of a recorded number
_VERTEX_STEP = 2  # the AGORA cases compare every second vertex


def check_mahmr_cases(folder: Path) -> list[Case]:
    """Every recorded case of a folder (or of `folder`/mahmr); none if it holds no file of this family."""
    folder = folder / "mahmr" if (folder / "mahmr").is_dir() else folder
    inner = folder / "golden" if (folder / "golden").is_dir() and (folder / NAMES).exists() else folder
    if not (folder / NAMES).is_file() and not any((inner / f"{name}.json").is_file() for name in _FILES):
        return []
    checks: dict[str, Check] = {}
    if names := [place / NAMES for place in (folder, inner.parent) if (place / NAMES).is_file()]:
        checks |= {f"names/{stage}": partial(_check_names, names[0], stage) for stage in _STAGES}
    body = load_body(inner / "body" if (inner / "body").is_dir() else "demo")
    for file, read in _FILES.items():
        try:
            facts, arrays = json.loads((inner / f"{file}.json").read_text()), read_arrays(inner / f"{file}.npz")
            checks |= read(facts, arrays, inner, body) or {file: failing("lists no case")}
        except Exception as error:  # does not concern the cases of other files
            checks[file] = failing(f"cannot be read: {type(error).__name__}: {error}")
    return [Case("mahmr", name).run(check) for name, check in checks.items()]


def _each(
    kind: str, check: Callable[..., None], recorded: Mapping[str, Any], arrays: Arrays, *_: object
) -> dict[str, Check]:
    """A case per entry of the JSON, and one per group of arrays without an entry."""
    cases: Mapping[str, Any] = recorded.get("cases", recorded)
    names = dict.fromkeys([*cases, *(key.partition("/")[0] for key in arrays)])
    return {
        f"{kind}/{name}": partial(check, cases[name], take_group(arrays, name))
        if name in cases
        else failing("has arrays, but no entry in the JSON")
        for name in names
    }


def _check_names(path: Path, stage: str, case: Case) -> None:
    """Names and shapes of the weights of a full-size network."""
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


def _check_augment(recorded: Mapping[str, Any], arrays: Arrays, case: Case, *, body: BodyModel) -> None:
    """One image as a training sees it: which people remain, and their labels."""
    (height, width), people = recorded["image_hw"], len(arrays["in_poses"])
    pose, betas, transl = _bring_before_camera(arrays, body)
    labels = replace(
        unknown_people(people, arrays["in_cam_intrinsics"][0].astype(np.float64)),
        has_camera=True,
        has_body=np.ones(people, bool),
        pose=pose,
        betas=betas,
        transl=transl,
        depth_layer=np.arange(people),  # says who remains
    )
    crop = float(recorded["beta_draw"]) if recorded["crop"] else None
    draw = Draw(float(recorded["rot"]), bool(recorded["flip"]), float(recorded["scale"]), crop)
    rules = Rules(body, DataConfig(input_size=int(recorded["input_size"])), AugmentConfig(as_published=True))
    targets, frame, _ = see_people(labels, (width, height), draw, rules)
    kept, focal, z = (targets[name] for name in ("depth_layer", "focals", "pelvis_z"))
    case.equal("people who remain", kept.tolist(), arrays["kept"].tolist())
    if case.failures:
        return
    found = {name: targets[name] for name in ("poses", "transl", "j3ds", "j2ds", "boxes", "scale_map")} | {
        "betas": targets["betas"][:, : arrays["out_betas"].shape[1]],
        "cam_intrinsics": np.tile(targets["intrinsics"], (len(arrays["out_cam_intrinsics"]), 1, 1)),
        "j2ds_mask": np.repeat(inside_image(targets["j2ds"], frame)[..., None], 2, axis=-1),
        "depths": np.stack([z, z / focal], axis=1),
        "focals": focal[:, None],
        "cells with people": targets["scale_map"][:, 0],
        "img_size": np.array(frame.size[::-1]),
    }
    wanted = {key: arrays[f"out_{key}"] for key in found if key != "cells with people"}
    wanted["cells with people"] = wanted["scale_map"][:, 0]
    compare_arrays(case, found, wanted, LABEL_TOLERANCE, exact=("j2ds_mask", "img_size", "cells with people"))


def _bring_before_camera(arrays: Arrays, body: BodyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose (P, 72), betas (P, 11) and transl (P, 3), float32, in the camera frame, of labels in world coordinates."""
    betas = np.pad(arrays["in_betas"], ((0, 0), (0, 11 - arrays["in_betas"].shape[1]))).astype(np.float32)
    pose, rotation = arrays["in_poses"].astype(np.float32), arrays["in_cam_rot"].astype(np.float64)
    pelvis = body.joints(torch.zeros(len(pose), 72), torch.from_numpy(betas), torch.zeros(len(pose), 3))[:, 0].numpy()
    pose[:, :3] = (Rotation.from_matrix(rotation) * Rotation.from_rotvec(pose[:, :3])).as_rotvec()
    transl = np.einsum("pij,pj->pi", rotation, pelvis + arrays["in_transl"]) + arrays["in_cam_trans"] - pelvis
    return pose, betas, transl.astype(np.float32)


def _read_eval_cases(recorded: Mapping[str, Any], arrays: Arrays, *_: object) -> dict[str, Check]:
    """A case per image, then one of the totals, which uses the errors of all images."""
    images = [take_group(arrays, f"{number}") for number in range(len(recorded["images"]))]
    pairs = enumerate(zip(images, recorded["images"], strict=True))
    checks: dict[str, Check] = {f"eval/{number}": partial(_check_evaluated, *pair) for number, pair in pairs}
    return checks | {"eval/totals": partial(_check_totals, images, recorded["expected"])}


def _check_evaluated(own: Arrays, image: Mapping[str, Any], case: Case) -> None:
    pairs, errors = _evaluate(own)
    case.equal("matched", pairs.tolist(), [list(pair) for pair in image["matched"]])
    case.equal("false_positives", len(own["pred_j2d"]) - len(pairs), image["false_positives"])
    if not case.failures:
        names = [f"{key} of pair {row}" for row in range(len(pairs)) for key in errors]
        wanted = np.array([recorded[key] for recorded in image["errors"] for key in errors])
        found = np.stack(list(errors.values()), axis=1).ravel()
        case.near("errors", found, wanted, EVAL_TOLERANCE, sizes(wanted, 1.0), names)


def _evaluate(own: Arrays) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """Matched pairs of an image, and the errors of each pair by name."""
    pairs = match_bodies(own["pred_j2d"], own["gt_j2d"], published=True)
    first, second = pairs.T
    joints = own["pred_h36m"][first], own["gt_h36m"][second]
    vertices = own["pred_verts"][first], own["gt_verts"][second]
    bodies = own["pred_smpl24"][first], own["gt_smpl24"][second]
    errors = agora_errors(*bodies, *(mesh[:, ::_VERTEX_STEP] for mesh in vertices))
    return pairs, threedpw_errors(*joints, *vertices) | errors


def _check_totals(images: Sequence[Arrays], expected: Mapping[str, Any], case: Case) -> None:
    """The measures of both protocols over all images, rounded as published."""
    evaluated = [_evaluate(own) for own in images]
    sums = {key: np.sum([errors[key].sum() for _, errors in evaluated]) for key in evaluated[0][1]}
    matched = sum(len(pairs) for pairs, _ in evaluated)
    predicted, true = (sum(len(own[f"{side}_j2d"]) for own in images) for side in ("pred", "gt"))
    sums |= {name: np.float64(count) for name, count in (("matched", matched), ("found", predicted), ("true", true))}
    found: dict[str, Any] = {"counts": {"count": true, "miss": true - matched, "fp": predicted - matched}}
    for protocol in ("3dpw", "agora"):
        for one in PROTOCOLS[protocol]:
            name = one.key.upper() if one.unit else one.key
            name = f"AGORA_{name}" if protocol == "agora" and name in ("MPJPE", "MVE") else name
            found[name] = round(float(one.of(sums)), one.digits)
    for key, wanted in expected.items():
        case.equal(key, found.get(key), wanted)


_FILES: dict[str, Callable[[Mapping[str, Any], Arrays, Path, BodyModel], dict[str, Check]]] = {
    "network_cases": read_network_cases,
    "loss_cases": partial(_each, "loss", check_loss_case),
    "augment_cases": lambda facts, arrays, _, body: _each("augment", partial(_check_augment, body=body), facts, arrays),
    "eval_cases": _read_eval_cases,
}
