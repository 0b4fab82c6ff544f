"""Recorded losses, outputs and gradients of the published MA-HMR, against `train` with preset `paper`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from dto_pipeline.lab.golden import Case, sizes
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.network_input import stretch_positions
from dto_pipeline.train.augment import fit_size, resize
from dto_pipeline.train.blocks import Known, allowed_pairs, image_numbers, noisy_queries, number_within
from dto_pipeline.train.checkpoint import Checkpoint, begin_from, make_network, read_released
from dto_pipeline.train.config import LossConfig, load_train_config
from dto_pipeline.train.losses import WEIGHTS, Losses, compute_losses, match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, shrink_positions, with_joints
from dto_pipeline.train.targets import Targets

Arrays = Mapping[str, torch.Tensor]
Check = Callable[[Case], None]
LOSS_TOLERANCE = 2e-6  # of a recorded term
_LEAST_TERM = 1e-4  # smaller terms are compared as if they were this large, because of single precision
TOLERANCE = 1e-4  # of the largest value of an array; of a term or gradient through the whole network
LEAST_GRADIENT = 1e-2  # norms below this are not compared
GREY_LEVELS = 1  # of resized pixels
_NO_GRADIENT = re.compile(r".*(k_proj|kcontent_proj|kpos_proj)\.bias$")  # truly zero: softmax does not see a shift
_VERTEX_STEP = 200
_EXACT = (
    *("token_level", "scale_map_y", "scale_map_x", "scale_map_lens", "token_lens", "tokens"),
    "self_attention_blocked",
)


def failing(text: str) -> Check:
    """A check that fails with a sentence."""
    return lambda case: case.failures.append(text)


def take_group(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays ``name/...``, by what follows the slash."""
    return {key.removeprefix(f"{name}/"): values for key, values in arrays.items() if key.startswith(f"{name}/")}


def compare_arrays(
    case: Case,
    found: Mapping[str, Any],
    recorded: Mapping[str, Any],
    limit: float = TOLERANCE,
    exact: tuple[str, ...] = _EXACT,
) -> None:
    """Compare every recorded array: equal if named in `exact`, else within `limit` of its largest value.

    Poses are compared as rotation matrices, on the scale of half a turn.
    """
    for name in recorded:
        if name not in found:
            case.failures.append(f"{name} is recorded, but has no rule here")
            continue
        values, wanted = (torch.as_tensor(side[name]).detach().double() for side in (found, recorded))
        scale = max(float(wanted.abs().max()) if wanted.numel() else 0.0, 1e-9)
        if name.endswith("poses"):
            values, wanted = (axis_angle_to_matrix(pose.unflatten(-1, (24, 3))) for pose in (values, wanted))
            scale = math.pi
        case.near(name, values, wanted, 0 if name in exact else limit, scale)


def check_loss_case(recorded: Mapping[str, Any], arrays: Mapping[str, np.ndarray], case: Case) -> None:
    """Compare the assignments of all layers, every loss term and the total."""
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    targets, known = _targets(tensors, recorded), None
    if groups := int(recorded.get("dn_groups", 0)):
        body = torch.cat([tensors["tgt_poses"], tensors["tgt_betas"][:, :10]], dim=-1)
        known = Known(targets.image, len(recorded["counts"]), targets.boxes, body, groups)
    predictions = _predictions(tensors, int(recorded["input_size"]), bool(groups))
    _compare_losses(case, recorded, predictions, targets, recorded["weights"], LOSS_TOLERANCE, known)


def _compare_losses(
    case: Case,
    recorded: Mapping[str, Any],
    predictions: Predictions,
    targets: Targets,
    weights: Mapping[str, float],
    tolerance: float,
    known: Known | None = None,
) -> Losses:
    """Compare losses; `weights` by published name, 0 for other terms. Recorded of each term: value and weight."""
    if unknown := sorted(set(weights) - set(WEIGHTS)):
        raise ValueError(f"no loss of this name: {', '.join(unknown)}")
    options = {option: float(weights.get(name, 0.0)) for name, option in WEIGHTS.items()}
    config = LossConfig(**{**vars(load_train_config(None, ["loss.preset=paper"]).loss), **options})
    matches = match_people(predictions, targets)
    losses, terms = compute_losses(predictions, targets, matches, config, known=known), recorded["terms"]
    found = {name: float(value.detach()) for name, value in losses.terms.items()}
    # the original lists zeros for terms it does not compute, and leaves out terms without weight
    names = [name for name, (value, *_) in terms.items() if value or name in found]
    names += [name for name, value in found.items() if name not in terms and losses.weights[name] * value]
    wanted = [terms[name][0] if name in terms else math.nan for name in names]
    values = [found.get(name, math.nan) for name in names]
    case.near("terms", values, wanted, tolerance, sizes(wanted, _LEAST_TERM), names)
    for name in (name for name in names if name in terms and name in found):
        case.equal(f"weight of {name}", losses.weights[name], terms[name][1])
    total = recorded["total"]
    case.near("total", float(losses.total.detach()), total, tolerance, sizes(total, _LEAST_TERM))
    within, layers = number_within(targets.image, len(targets.heights)), len(matches.query)
    for layer, pairs in recorded["matching"].items():  # layer or "final" -> [image, query, person of it]
        number = layers - 1 if layer == "final" else int(layer)
        if not 0 <= number < layers:
            case.failures.append(f"matching is recorded of layer {layer}, there are {layers}")
            continue
        rows = (matches.image[number], matches.query[number], within[matches.person[number]])
        matched = sorted(zip(*(row.tolist() for row in rows), strict=True))
        case.equal(f"matching of layer {layer}", matched, sorted(tuple(row) for row in pairs))
    return losses


def _targets(arrays: Arrays, facts: Mapping[str, Any]) -> Targets:
    """People of all images one after the other, as the files hold them (``tgt_*``); fields they lack are unknown."""
    counts = facts["counts"]
    image, images = image_numbers(counts), len(counts)
    people, joints = len(image), arrays["tgt_j2ds"].shape[1]

    def given(name: str, shape: tuple[int, ...], fill: float = 0.0) -> torch.Tensor:
        return arrays[f"tgt_{name}"] if f"tgt_{name}" in arrays else torch.full((people, *shape), fill)

    betas, focals = given("betas", (11,)), given("focals", (1,))[:, 0].float()
    first = torch.tensor(np.cumsum([0, *counts])[:-1], dtype=torch.long)
    pelvis = given("depths", (2,))[:, 0]
    return Targets(
        image=image,
        has_body=torch.tensor(facts.get("valid_3d") or [True] * images)[image] & ("tgt_poses" in arrays),
        boxes=given("boxes", (4,)),
        poses=given("poses", (72,)),
        betas=torch.nn.functional.pad(betas, (0, 11 - betas.shape[-1])),
        j3ds=given("j3ds", (joints, 3)),
        j2ds=arrays["tgt_j2ds"],
        j2ds_mask=given("j2ds_mask", (joints, 2), 1.0).bool(),
        num_joints=torch.full((people,), float(joints)),
        transl=_on_axis(pelvis),
        pelvis_z=pelvis,
        focals=focals,
        depth_layer=given("depth_ids", (), -1.0).long(),
        z_covariance=torch.zeros(0),
        scale_map=arrays["tgt_scale_map"],
        cell_image=image_numbers(arrays["scale_map_lens"].tolist()),
        complete=torch.tensor(facts.get("detect_all_people") or [True] * images),
        mapped=torch.ones(images, dtype=torch.bool),
        heights=arrays["img_size"][:, 0].float(),
        image_focals=torch.where(torch.tensor(counts) > 0, torch.cat([focals, focals.new_zeros(1)])[first], 0.0),
        intrinsics=torch.zeros(images, 3, 3),
    )


def _on_axis(z: torch.Tensor) -> torch.Tensor:
    """(..., 3) points on the camera's axis, at these distances."""
    return torch.stack([torch.zeros_like(z), torch.zeros_like(z), z], dim=-1)


def _predictions(arrays: Arrays, side: int, denoising: bool, prefix: str = "pred_") -> Predictions:
    names = ("boxes", "poses", "betas", "depths", "j3ds", "j2ds")
    fields: dict[str, Any] = {name: arrays[f"{prefix}{name}"] for name in names}
    return Predictions(
        confs=arrays[f"{prefix}confs"].squeeze(-1),
        **fields,
        transl=_on_axis(fields["depths"][..., 0]),
        intrinsics=arrays["pred_intrinsics"],
        scale_map=arrays["pred_scale_map"],
        cells=None,
        input_size=side,
        known=_predictions(arrays, side, False, "dn_pred_") if denoising else None,
    )


@dataclass(frozen=True)
class Recording:
    """The contents of the network's files."""

    facts: Mapping[str, Any]  # of the JSON
    arrays: Mapping[str, np.ndarray]
    released: Checkpoint  # the weights, read as a released file is
    body: BodyModel

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The arrays of a group, see `take_group`."""
        if not (found := take_group(self.arrays, name)):
            raise ValueError("is not in network_cases.npz")
        return {key: torch.from_numpy(np.array(value)) for key, value in found.items()}

    @property
    def images(self) -> list[torch.Tensor]:
        """(3, h, w) uint8 each, in order of number."""
        numbers = sorted(int(key[6:]) for key in self.arrays if re.fullmatch(r"image_\d+", key))
        return [torch.from_numpy(self.arrays[f"image_{number}"]).permute(2, 0, 1) for number in numbers]

    def network(self, limits: Mapping[str, float] | None = None, **other: Any) -> MeshNetwork:
        """The recorded network, with other options of `ModelConfig`, and with other `limits` (thresholds of tokens)."""
        recorded, config = self.facts["config"], self.released.config
        model = replace(config.model, heads=recorded["decoder"]["heads"], as_published=True, **other)
        network = make_network(replace(config, model=model))
        thresholds = {**recorded["sat"], **(limits or {})}
        network.limits = thresholds["conf_thresh"], thresholds["scale_thresh"]
        own = network.state_dict()
        weights = {
            name: value[: len(own[name])] if name in own else value  # ten shape coefficients of eleven
            for name, value in self.released.weights.items()
            if model.camera or not name.startswith("fov_head.")
        }
        differing = begin_from(network, weights, str(self.released.path))
        if names := [name for found in differing.values() for name in found if not name.startswith("dn_enc.")]:
            raise ValueError(f"network and checkpoint differ in {names[:5]}")
        return network.eval()


def read_network_cases(
    facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path, body: BodyModel
) -> dict[str, Check]:
    """A case per group of arrays, also for groups that are missing."""
    path = folder / "tiny_checkpoint.safetensors"
    released = read_released(load_file(path), path, facts["config"]["encoder"]["num_heads"])
    record = Recording(facts, arrays, released, body)
    groups = sorted({key.partition("/")[0] for key in arrays if "/" in key} | set(_RULES))
    return {
        f"network/{name}": partial(_RULES[name], record) if name in _RULES else failing("has no rule here")
        for name in groups
    }


# group -> which images, and how the network differs from the recorded one
_OUTPUTS: dict[str, tuple[slice, dict[str, Any]]] = {
    "batch": (slice(None), {}),
    "no_background": (slice(1, 2), {"limits": {"conf_thresh": -1.0}}),
    "no_small": (slice(1, 2), {"limits": {"scale_thresh": -1.0}}),
    "given_map": (slice(2, 3), {}),
    "mixed_batch": (slice(1, 3), {}),
    "mixed_alone": (slice(1, 2), {}),
    "no_fov_no_kid": (slice(1, 2), {"camera": False, "betas": 10}),
    "fov_limit": (slice(1, 2), {}),
    "joints14": (slice(1, 2), {}),
}


@torch.no_grad()
def _check_outputs(name: str, record: Recording, case: Case) -> None:
    recorded = record.group(name)
    images, other = _OUTPUTS[name]
    network = record.network(**other)
    if name == "fov_limit":
        network.get_parameter("fov_head.layers.3.bias").copy_(torch.tensor([-0.5]))
    regressor = None
    if name == "joints14":
        path = str(files("dto_pipeline.assets") / "J_regressor_extra.npy")
        regressor = torch.from_numpy(np.load(path, allow_pickle=False)).float()[[3, 2]]
    seen = record.images[images]
    found = with_joints(network(seen, given_map=recorded.pop("given_scale_map", None)), record.body, regressor)
    compare_arrays(case, _outputs(found, len(seen), record.body), recorded)
    if (counts := record.facts.get(f"{name}_tokens")) is not None:
        image, level = found.tokens["image"], found.tokens["level"]
        tokens = [[int(((image == b) & (level == k)).sum()) for k in range(3)] for b in range(len(seen))]
        case.equal("tokens", tokens, counts)


def _check_layers(record: Recording, case: Case) -> None:
    recorded, network = record.group("layers"), record.network()
    with torch.no_grad():
        predictions = with_joints(network(record.images), record.body)
    found = {name: getattr(predictions, name) for name in ("poses", "betas", "boxes", "depths", "confs")}
    found |= {"hs": predictions.states, "reference": predictions.references}
    assert predictions.j2ds is not None
    found["j2ds"] = predictions.j2ds[:, :, : recorded["j2ds"].shape[2]]
    compare_arrays(case, found, recorded)


def _check_init(record: Recording, case: Case) -> None:
    recorded = record.group("init")
    position, class_token = recorded.pop("pos_embed")[0], recorded.pop("cls_token")[0]
    found = {"encoder_cr_token": class_token + position[:1]}
    for name in recorded:
        if match := re.fullmatch(r"encoder_pos_embeds_(\d+)x\1", name):
            found[name] = stretch_positions(position[1:], int(match[1]), int(match[1]))
        elif match := re.fullmatch(r"level1_of_(\d+)x\1", name):
            found[name] = shrink_positions(stretch_positions(position[1:], int(match[1]), int(match[1])))
    compare_arrays(case, found, recorded)


@torch.no_grad()
def _check_denoising(record: Recording, case: Case) -> None:
    recorded, network = record.group("dn"), record.network(camera=False, betas=10, denoising=1)
    network.dn_enc.weight.copy_(recorded["weight"])
    network.dn_enc.bias.copy_(recorded["bias"])
    counts = recorded["counts"].tolist()
    body = torch.cat([recorded["tgt_poses"], recorded["tgt_betas"]], dim=-1)
    known = Known(image_numbers(counts), len(counts), recorded["tgt_boxes"], body, int(recorded["groups"]))
    sign = {name: recorded[f"{name}_sign01"].float() * 2 - 1 for name in ("box", "param")}
    noise = (sign["box"], recorded["box_rand"], sign["param"], recorded["param_rand"])
    content, logits = noisy_queries(known, network.dn_enc, noise)
    predictions = network(record.images[: len(counts)], known=known, noise=noise)
    found = {"query_content": content, "query_box_logit": logits}
    found["self_attention_blocked"] = ~allowed_pairs(known, network.sizes.queries)
    for name in ("boxes", "confs", "poses", "betas"):
        found |= {f"known_{name}": getattr(predictions.known, name)[-1], name: getattr(predictions, name)[-1]}
    compare_arrays(case, found, {name: value for name, value in recorded.items() if name in found})


def _check_step(record: Recording, case: Case) -> None:
    recorded, facts, network = record.group("step"), record.facts["step"], record.network()
    network.train()
    found = with_joints(network(record.images), record.body)
    assert found.cells is not None
    recorded["scale_map_lens"] = torch.tensor(found.cells[2])
    recorded["img_size"] = torch.tensor([image.shape[1:] for image in record.images])
    targets = _targets(recorded, {"counts": recorded["counts"].tolist()})
    weights = {name.partition(".")[0]: weight for name, (_, weight) in facts["terms"].items()}
    _compare_losses(case, facts, found, targets, weights, TOLERANCE).total.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters(remove_duplicate=False)}
    norms = {name: norm for name, norm in facts["grad_norm"].items() if norm > LEAST_GRADIENT}
    names = [name for name in norms if not _NO_GRADIENT.match(name)]
    values = [0.0 if (gradient := gradients.get(name)) is None else float(gradient.norm()) for name in names]
    wanted = [norms[name] for name in names]
    case.near("gradient_norms", values, wanted, TOLERANCE, wanted, names)
    whole = torch.stack([weight.grad.norm() for weight in network.parameters() if weight.grad is not None]).norm()
    case.near("total_gradient", whole, facts["total_grad_norm"], TOLERANCE, facts["total_grad_norm"])


def _check_preprocess(record: Recording, case: Case) -> None:
    """Compare pictures resized to the network's side; pixels may differ by one grey level."""
    recorded, side = record.group("preprocess"), record.facts["config"]["input_size"]
    images = {name: values.numpy() for name, values in recorded.items()} | dict(record.arrays)
    for name in [name for name in images if "original" in name and "/" not in name]:
        made = name.replace("original_", "image_") if name.startswith("original_") else name[:-8] + "resized"
        height, width, _ = images[name].shape
        found = resize(images[name], fit_size(width, height, side)[0])
        case.near("pixels", found, images[made], GREY_LEVELS)


def _outputs(found: Predictions, images: int, body: BodyModel) -> dict[str, torch.Tensor]:
    """All quantities that a group may hold, of the last layer."""
    assert found.cells is not None
    last = ("confs", "boxes", "poses", "betas", "transl", "depths", "j3ds", "j2ds")
    betas = torch.nn.functional.pad(found.betas[-1], (0, 11 - found.betas.shape[-1]))
    tokens = found.tokens
    level_side = 14 * 2.0 ** tokens["level"] / found.input_size
    return {
        **{name: getattr(found, name)[-1] for name in last},
        "intrinsics": found.intrinsics,
        "scale_map": found.scale_map,
        "scale_map_y": found.cells[0],
        "scale_map_x": found.cells[1],
        "scale_map_lens": torch.tensor(found.cells[2]),
        "token_lens": torch.bincount(tokens["image"], minlength=images),
        "token_level": tokens["level"],
        "token_y": (tokens["place"][:, 1] + 0.5) * level_side,
        "token_x": (tokens["place"][:, 0] + 0.5) * level_side,
        "verts_every_200": body.vertices(found.poses[-1], betas, found.transl[-1])[..., ::_VERTEX_STEP, :],
        "memory": tokens["memory"],
        "memory_pos": tokens["code"],
        **({} if found.fov is None else {"fov_raw": found.fov}),
    }


_RULES: dict[str, Callable[[Recording, Case], None]] = {
    **{name: partial(_check_outputs, name) for name in _OUTPUTS},
    "layers": _check_layers,
    "init": _check_init,
    "dn": _check_denoising,
    "step": _check_step,
    "preprocess": _check_preprocess,
}
