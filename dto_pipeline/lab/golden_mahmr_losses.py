"""Recorded losses and assignments of the published MA-HMR training, against `train.losses` with preset `paper`.

Knows the files `loss_cases.json` and `loss_cases.npz`; every case, weight and term in them is taken as recorded. Terms
agree to 2e-6 of their size, assignments are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dto_pipeline.lab.golden_case import CaseResult, judge
from dto_pipeline.train.blocks import Known, image_numbers, number_within
from dto_pipeline.train.config import LossConfig, load_train_config
from dto_pipeline.train.losses import WEIGHTS, Losses, Matches, compute_losses, match_people
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import Targets

FAMILY = "mahmr"
TERM_TOLERANCE = 2e-6  # of the recorded value
_LEAST_TERM = 1e-4  # smaller terms are compared as if they were this large: single precision


def check_loss_case(name: str, case: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> CaseResult:
    """One case: assignments of all layers, every term, the total.

    Args:
        name: of the case.
        case: its entry in the JSON.
        arrays: its arrays by name, without the case's.
    """
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    targets = recorded_targets(tensors, case["counts"], case.get("valid_3d"), case.get("detect_all_people"))
    groups = int(case.get("dn_groups", 0))
    predictions = _predictions(tensors, int(case["input_size"]), groups)
    config = loss_config(case["weights"])
    matches = match_people(predictions, targets)
    known = None
    if groups:
        body = torch.cat([tensors["tgt_poses"], tensors["tgt_betas"][:, :10]], dim=-1)
        known = Known(targets.image, len(case["counts"]), targets.boxes, body, groups)
    losses = compute_losses(predictions, targets, matches, config, known=known)
    recorded = {term: (value[0], value[1]) for term, value in case["terms"].items()}
    failures, errors = compare_terms(losses, recorded, float(case["total"]), TERM_TOLERANCE)
    failures += compare_matches(matches, targets, case["matching"])
    limits = dict.fromkeys(errors, TERM_TOLERANCE)
    return judge(FAMILY, f"loss/{name}", str(case.get("stage", "")), failures, errors, limits)


def recorded_targets(
    arrays: Mapping[str, torch.Tensor],
    counts: list[int],
    valid_3d: list[bool] | None = None,
    complete: list[bool] | None = None,
    img_size: torch.Tensor | None = None,
) -> Targets:
    """People of all images one after the other, as the files hold them (``tgt_*``); fields they lack are unknown."""
    image, images = image_numbers(counts), len(counts)
    joints = arrays["tgt_j2ds"].shape[1]
    people = len(image)

    def given(name: str, shape: tuple[int, ...], fill: float = 0.0) -> torch.Tensor:
        return arrays[f"tgt_{name}"] if f"tgt_{name}" in arrays else torch.full((people, *shape), fill)

    has_body = torch.tensor(valid_3d or [True] * images, dtype=torch.bool)[image] & ("tgt_poses" in arrays)
    betas, focals = given("betas", (11,)), given("focals", (1,))[:, 0].float()
    first = torch.tensor(np.cumsum([0, *counts])[:-1], dtype=torch.long)
    crowded = torch.tensor(counts) > 0
    image_focals = torch.where(crowded, torch.cat([focals, focals.new_zeros(1)])[first], 0.0)
    scale_map = arrays["tgt_scale_map"]
    lens = arrays["scale_map_lens"].tolist()
    size = arrays["img_size"] if img_size is None else img_size
    pelvis = given("depths", (2,))[:, 0]
    return Targets(
        image=image,
        has_body=has_body,
        boxes=given("boxes", (4,)),
        poses=given("poses", (72,)),
        betas=torch.nn.functional.pad(betas, (0, 11 - betas.shape[-1])),
        j3ds=given("j3ds", (joints, 3)),
        j2ds=arrays["tgt_j2ds"],
        j2ds_mask=given("j2ds_mask", (joints, 2), 1.0).bool(),
        num_joints=torch.full((people,), float(joints)),
        transl=torch.stack([torch.zeros_like(pelvis), torch.zeros_like(pelvis), pelvis], dim=-1),
        pelvis_z=pelvis,
        focals=focals,
        depth_layer=given("depth_ids", (), -1.0).long(),
        z_covariance=torch.zeros(0),
        scale_map=scale_map,
        cell_image=image_numbers(lens),
        complete=torch.tensor(complete or [True] * images, dtype=torch.bool),
        mapped=torch.ones(images, dtype=torch.bool),
        heights=size[:, 0].float(),
        image_focals=image_focals,
        intrinsics=torch.zeros(images, 3, 3),
    )


def loss_config(weights: Mapping[str, float]) -> LossConfig:
    """The preset `paper` with these weights by published name; terms that are not named weigh nothing."""
    unknown = sorted(set(weights) - set(WEIGHTS))
    if unknown:
        raise ValueError(f"no loss of this name: {', '.join(unknown)}")
    paper = load_train_config(None, ["loss.preset=paper"]).loss
    options = {option: float(weights.get(name, 0.0)) for name, option in WEIGHTS.items()}
    return LossConfig(**{**vars(paper), **options})


def compare_terms(
    losses: Losses, recorded: Mapping[str, tuple[float, float]], total: float, tolerance: float
) -> tuple[list[str], dict[str, float]]:
    """Sentences on terms that differ, and the worst relative difference of terms and total."""
    failures, worst = [], 0.0
    for name, (wanted, weight) in recorded.items():
        if name not in losses.terms and wanted == 0:
            continue  # the original lists a zero for what it does not compute
        if name not in losses.terms:
            failures.append(f"term {name} is recorded, but there is none")
            continue
        found = float(losses.terms[name].detach())
        error = abs(found - wanted) / max(abs(wanted), _LEAST_TERM)
        worst = max(worst, error)
        if not error <= tolerance:
            failures.append(f"term {name} is {found:.9g}, recorded {wanted:.9g}")
        if weight != losses.weights[name]:
            failures.append(f"weight of {name} is {losses.weights[name]}, recorded {weight}")
    extra = [
        name
        for name, value in losses.terms.items()
        if name not in recorded and losses.weights[name] * float(value.detach())
    ]
    failures += [f"term {name} is none of the recorded ones" for name in extra]
    return failures, {"terms": worst, "total": abs(float(losses.total.detach()) - total) / max(abs(total), _LEAST_TERM)}


def compare_matches(matches: Matches, targets: Targets, recorded: Mapping[str, list[list[int]]]) -> list[str]:
    """Sentences on layers whose assignment differs; recorded: layer or "final" -> [image, query, person of it]."""
    failures, layers = [], len(matches.query)
    within = number_within(targets.image, len(targets.heights))
    for layer, wanted in recorded.items():
        number = layers - 1 if layer == "final" else int(layer)
        if not 0 <= number < layers:
            failures.append(f"matching is recorded of layer {layer}, there are {layers}")
            continue
        rows = (matches.image[number], matches.query[number], within[matches.person[number]])
        found = sorted(zip(*(row.tolist() for row in rows), strict=True))
        if found != sorted(tuple(row) for row in wanted):
            failures.append(f"matching of layer {layer} is {found}, recorded {sorted(wanted)}")
    return failures


def _predictions(arrays: Mapping[str, torch.Tensor], side: int, groups: int) -> Predictions:
    def read(prefix: str, known: Predictions | None) -> Predictions:
        z = arrays[f"{prefix}depths"][..., 0]
        fields: dict[str, Any] = {
            name: arrays[f"{prefix}{name}"] for name in ("boxes", "poses", "betas", "depths", "j3ds", "j2ds")
        }
        return Predictions(
            confs=arrays[f"{prefix}confs"].squeeze(-1),
            **fields,
            transl=torch.stack([torch.zeros_like(z), torch.zeros_like(z), z], dim=-1),
            intrinsics=arrays["pred_intrinsics"],
            scale_map=arrays["pred_scale_map"],
            cells=None,
            input_size=side,
            known=known,
        )

    return read("pred_", read("dn_pred_", None) if groups else None)
