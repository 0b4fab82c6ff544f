"""Recorded losses, outputs, gradients and starts of the published MA-HMR, against `train` with preset `paper`.

Knows `loss_cases`, `network_cases` and the tiny checkpoint. Loss terms agree to 2e-6 of their size, arrays to 1e-4 of
their largest value (poses as rotations), gradient norms to 1e-4 where they are above 1e-2; assignments and choices of
tokens are equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dto_pipeline.lab.golden import Case, run_case
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.network_input import stretch_positions
from dto_pipeline.train.augment import fit_size, resize
from dto_pipeline.train.blocks import Known, allowed_pairs, image_numbers, noisy_queries, number_within
from dto_pipeline.train.checkpoint import IGNORED
from dto_pipeline.train.config import EncoderConfig, LossConfig, ModelConfig, load_train_config
from dto_pipeline.train.losses import WEIGHTS, Losses, Matches, compute_losses, match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, shrink_positions, with_joints
from dto_pipeline.train.targets import Targets

Arrays = Mapping[str, torch.Tensor]
LOSS_TOLERANCE = 2e-6  # of a recorded term
_LEAST_TERM = 1e-4  # smaller terms are compared as if they were this large: single precision
TOLERANCE = 1e-4  # of the largest value of an array; of a term or gradient through the whole network
LEAST_GRADIENT = 1e-2
GREY_LEVELS = 1  # of resized pixels
_NO_GRADIENT = re.compile(r".*(k_proj|kcontent_proj|kpos_proj)\.bias$")  # truly zero: softmax does not see a shift
_VERTEX_STEP = 200
_EXACT = (
    *("token_level", "scale_map_y", "scale_map_x", "scale_map_lens", "token_lens", "tokens"),
    "self_attention_blocked",
)


def check_loss_case(said: Mapping[str, Any], arrays: Mapping[str, np.ndarray], case: Case) -> None:
    """Assignments of all layers, every term, the total."""
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    targets = _targets(tensors, said["counts"], said.get("valid_3d"), said.get("detect_all_people"))
    groups, known = int(said.get("dn_groups", 0)), None
    if groups:
        body = torch.cat([tensors["tgt_poses"], tensors["tgt_betas"][:, :10]], dim=-1)
        known = Known(targets.image, len(said["counts"]), targets.boxes, body, groups)
    predictions = _predictions(tensors, int(said["input_size"]), bool(groups))
    _compare_losses(case, said, predictions, targets, said["weights"], LOSS_TOLERANCE, known)


def _compare_losses(
    case: Case,
    said: Mapping[str, Any],
    predictions: Predictions,
    targets: Targets,
    weights: Mapping[str, float],
    tolerance: float,
    known: Known | None = None,
) -> Losses:
    """Weights by published name; terms that are not named weigh nothing. Recorded terms: value and weight."""
    if unknown := sorted(set(weights) - set(WEIGHTS)):
        raise ValueError(f"no loss of this name: {', '.join(unknown)}")
    options = {option: float(weights.get(name, 0.0)) for name, option in WEIGHTS.items()}
    config = LossConfig(**{**vars(load_train_config(None, ["loss.preset=paper"]).loss), **options})
    matches = match_people(predictions, targets)
    losses, worst = compute_losses(predictions, targets, matches, config, known=known), 0.0
    found = {name: float(value.detach()) for name, value in losses.terms.items()}
    for name, (wanted, weight, *_) in said["terms"].items():
        if name not in found:
            # the original lists a zero for what it does not compute
            case.failures += [f"term {name} is recorded, but there is none"] if wanted else []
            continue
        worst = max(worst, error := abs(found[name] - wanted) / max(abs(wanted), _LEAST_TERM))
        if not error <= tolerance:
            case.failures.append(f"term {name} is {found[name]:.9g}, recorded {wanted:.9g}")
        case.equal(f"weight of {name}", losses.weights[name], weight)
    extra = [name for name, value in found.items() if name not in said["terms"] and losses.weights[name] * value]
    case.failures += [f"term {name} is none of the recorded ones" for name in extra]
    case.near("terms", worst, tolerance)
    total = abs(float(losses.total.detach()) - said["total"]) / max(abs(said["total"]), _LEAST_TERM)
    case.near("total", total, tolerance)
    _compare_matches(case, matches, targets, said["matching"])
    return losses


def _compare_matches(case: Case, matches: Matches, targets: Targets, recorded: Mapping[str, list[list[int]]]) -> None:
    """Recorded: layer or "final" -> [image, query, person of it]."""
    within, layers = number_within(targets.image, len(targets.heights)), len(matches.query)
    for layer, wanted in recorded.items():
        number = layers - 1 if layer == "final" else int(layer)
        if not 0 <= number < layers:
            case.failures.append(f"matching is recorded of layer {layer}, there are {layers}")
            continue
        rows = (matches.image[number], matches.query[number], within[matches.person[number]])
        found = sorted(zip(*(row.tolist() for row in rows), strict=True))
        case.equal(f"matching of layer {layer}", found, sorted(tuple(row) for row in wanted))


def _targets(
    arrays: Arrays,
    counts: list[int],
    valid_3d: list[bool] | None = None,
    complete: list[bool] | None = None,
    img_size: torch.Tensor | None = None,
) -> Targets:
    """People of all images one after the other, as the files hold them (``tgt_*``); fields they lack are unknown."""
    image, images = image_numbers(counts), len(counts)
    people, joints = len(image), arrays["tgt_j2ds"].shape[1]

    def given(name: str, shape: tuple[int, ...], fill: float = 0.0) -> torch.Tensor:
        return arrays[f"tgt_{name}"] if f"tgt_{name}" in arrays else torch.full((people, *shape), fill)

    betas, focals = given("betas", (11,)), given("focals", (1,))[:, 0].float()
    first = torch.tensor(np.cumsum([0, *counts])[:-1], dtype=torch.long)
    size = arrays["img_size"] if img_size is None else img_size
    pelvis = given("depths", (2,))[:, 0]
    return Targets(
        image=image,
        has_body=torch.tensor(valid_3d or [True] * images)[image] & ("tgt_poses" in arrays),
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
        complete=torch.tensor(complete or [True] * images),
        mapped=torch.ones(images, dtype=torch.bool),
        heights=size[:, 0].float(),
        image_focals=torch.where(torch.tensor(counts) > 0, torch.cat([focals, focals.new_zeros(1)])[first], 0.0),
        intrinsics=torch.zeros(images, 3, 3),
    )


def _on_axis(z: torch.Tensor) -> torch.Tensor:
    """(..., 3) points this far on the camera's axis."""
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
    """What the files of the network hold."""

    said: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    weights: Arrays
    body: BodyModel
    regressor: torch.Tensor  # (9, V) J_regressor_extra

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """A group's arrays by their own names."""
        found = {key: value for key, value in self.arrays.items() if key.startswith(f"{name}/")}
        return {key.partition("/")[2]: torch.from_numpy(np.array(value)) for key, value in found.items()}

    @property
    def images(self) -> list[torch.Tensor]:
        """(3, h, w) uint8 each, in order of number."""
        numbers = sorted(int(key[6:]) for key in self.arrays if re.fullmatch(r"image_\d+", key))
        return [torch.from_numpy(self.arrays[f"image_{number}"]).permute(2, 0, 1) for number in numbers]

    def network(self, limits: Mapping[str, float] | None = None, **other: Any) -> MeshNetwork:
        """The recorded network, with other sizes where named; `limits`: thresholds of tokens that differ."""
        config = self.said["config"]
        sat, encoder, decoder = {**config["sat"], **(limits or {})}, config["encoder"], config["decoder"]
        sizes = EncoderConfig(
            width=encoder["embed_dim"],
            heads=encoder["num_heads"],
            layers=encoder["depth"],
            hidden=int(encoder["embed_dim"] * encoder["mlp_ratio"]),
            additional=encoder["extra_blocks"],
        )
        model = ModelConfig(
            width=decoder["hidden"],
            heads=decoder["heads"],
            layers=decoder["layers"],
            hidden=decoder["feed_forward"],
            queries=decoder["queries"],
            betas=11 if config["kid"] else 10,
            camera=bool(config["fov"]),
            as_published=True,
        )
        model = replace(model, **other)
        network = MeshNetwork(sizes, model, config["input_size"], (sat["conf_thresh"], sat["scale_thresh"]))
        own = network.state_dict()
        kept = {name: value for name, value in self.weights.items() if not IGNORED.match(name)}
        weights = {name: value[: len(own[name])] if name in own else value for name, value in kept.items()}
        found = network.load_state_dict(weights, strict=False)
        missing = [name for name in found.missing_keys if not name.startswith("dn_enc.")]
        unexpected = [name for name in found.unexpected_keys if model.camera or not name.startswith("fov_head.")]
        if missing or unexpected:
            raise ValueError(f"the checkpoint lacks {missing[:5]} and has {unexpected[:5]} too much")
        return network.eval()


def check_network(record: Recording) -> list[Case]:
    """Every group of the files, and every group that should be there."""
    groups = sorted({key.partition("/")[0] for key in record.arrays if "/" in key})
    rules: dict[str, Callable[[Recording, Case], None]] = {
        **{name: partial(_check_outputs, name) for name in _OUTPUTS},
        "layers": _check_layers,
        "init": _check_init,
        "dn": _check_denoising,
        "step": _check_step,
        "preprocess": _check_preprocess,
    }
    results = []
    for name in [*groups, *(name for name in rules if name not in groups)]:
        case = Case("mahmr", f"network/{name}")
        if name in rules and name in groups:
            case = run_case(case, partial(rules[name], record))
        else:
            case.failures.append("is not in network_cases.npz" if name in rules else "no rule here knows this group")
        results.append(case)
    return results


# group -> which images, what differs from the recorded network
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
        network.fov_head.last.bias.copy_(torch.tensor([-0.5]))
    regressor = record.regressor[[3, 2]] if name == "joints14" else None
    seen = record.images[images]
    found = network(seen, given_map=recorded.pop("given_scale_map", None))
    found = with_joints(found, record.body, regressor)
    _compare(case, _outputs(found, len(seen), record.body), recorded)
    if (counts := record.said.get(f"{name}_tokens")) is not None:
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
    _compare(case, found, recorded)


def _check_init(record: Recording, case: Case) -> None:
    recorded = record.group("init")
    position, class_token = recorded.pop("pos_embed")[0], recorded.pop("cls_token")[0]
    found = {"encoder_cr_token": class_token + position[:1]}
    for name in recorded:
        if match := re.fullmatch(r"encoder_pos_embeds_(\d+)x\1", name):
            found[name] = stretch_positions(position[1:], int(match[1]), int(match[1]))
        elif match := re.fullmatch(r"level1_of_(\d+)x\1", name):
            found[name] = shrink_positions(stretch_positions(position[1:], int(match[1]), int(match[1])))
    _compare(case, found, recorded)


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
    _compare(case, found, {name: value for name, value in recorded.items() if name in found})


def _check_step(record: Recording, case: Case) -> None:
    recorded, said, network = record.group("step"), record.said["step"], record.network()
    network.train()
    found = with_joints(network(record.images), record.body)
    assert found.cells is not None
    recorded["scale_map_lens"] = torch.tensor(found.cells[2])
    size = torch.tensor([image.shape[1:] for image in record.images])
    targets = _targets(recorded, recorded["counts"].tolist(), img_size=size)
    weights = {name.partition(".")[0]: weight for name, (_, weight) in said["terms"].items()}
    _compare_losses(case, said, found, targets, weights, TOLERANCE).total.backward()
    named, worst = dict(network.named_parameters(remove_duplicate=False)), 0.0
    for name, wanted in said["grad_norm"].items():
        if name not in named:
            case.failures.append(f"there is no weight {name}, whose gradient is recorded")
        elif wanted > LEAST_GRADIENT and not _NO_GRADIENT.match(name):
            gradient = named[name].grad
            norm = 0.0 if gradient is None else float(gradient.norm())
            worst = max(worst, abs(norm - wanted) / wanted)
            if not abs(norm - wanted) <= TOLERANCE * wanted:
                case.failures.append(f"the gradient of {name} has norm {norm:.7g}, recorded {wanted:.7g}")
    case.near("gradient_norms", worst, TOLERANCE)
    whole = float(torch.stack([w.grad.norm() for w in network.parameters() if w.grad is not None]).norm())
    case.near("total_gradient", abs(whole - said["total_grad_norm"]) / said["total_grad_norm"], TOLERANCE)


def _check_preprocess(record: Recording, case: Case) -> None:
    """Originals resized to S; pixels may differ by a grey level."""
    recorded, side, worst = record.group("preprocess"), record.said["config"]["input_size"], 0.0
    pairs = [(f"{name.removesuffix('_original')}_resized", name) for name in recorded if name.endswith("_original")]
    images = [(recorded[made].numpy(), recorded[name].numpy()) for made, name in pairs]
    originals = [key for key in record.arrays if re.fullmatch(r"original_\d+", key)]
    images += [(record.arrays[f"image_{key[9:]}"], record.arrays[key]) for key in originals]
    for wanted, original in images:
        found = resize(original, fit_size(original.shape[1], original.shape[0], side)[0])
        if found.shape != wanted.shape:
            case.failures.append(f"an image of {original.shape} becomes {found.shape}, recorded {wanted.shape}")
            continue
        worst = max(worst, float(np.abs(found.astype(int) - wanted.astype(int)).max()))
    case.near("pixels", worst, GREY_LEVELS)


def _outputs(found: Predictions, images: int, body: BodyModel) -> dict[str, torch.Tensor]:
    """Every quantity a group may hold, of the last layer."""
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


def _compare(case: Case, found: Mapping[str, Any], recorded: Arrays) -> None:
    def as_rotations(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {
            name: (
                axis_angle_to_matrix(values.double().unflatten(-1, (24, 3))) if name.endswith("poses") else values
            ).detach().numpy()
            for name, values in arrays.items()
            if name in recorded
        }  # fmt: skip

    case.arrays(as_rotations(found), as_rotations(recorded), TOLERANCE, _EXACT)
