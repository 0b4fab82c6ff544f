"""Recorded outputs, gradients and starts of the published MA-HMR network, against `train.model`.

Knows the files `network_cases` and the tiny checkpoint. Arrays agree to 1e-4 of their largest value (poses as
rotations), choices of tokens are equal, gradient norms agree to 1e-4 where they are above 1e-2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dto_pipeline.lab.golden_case import CaseResult, check_case, compare_arrays, judge
from dto_pipeline.lab.golden_mahmr_losses import compare_matches, compare_terms, loss_config, recorded_targets
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.augment import fit_size, resize
from dto_pipeline.train.blocks import Known, allowed_pairs, noisy_queries
from dto_pipeline.train.checkpoint import IGNORED, enlarge_positions
from dto_pipeline.train.config import EncoderConfig, ModelConfig
from dto_pipeline.train.losses import compute_losses, match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, shrink_positions, with_joints

FAMILY = "mahmr"
TOLERANCE = 1e-4  # of the largest value of an array
GRADIENT_TOLERANCE, LEAST_GRADIENT = 1e-4, 1e-2
TERM_TOLERANCE = 1e-4  # of a term of the training step: single precision through the whole network
GREY_LEVELS = 1  # of resized pixels
_NO_GRADIENT = re.compile(r".*(k_proj|kcontent_proj|kpos_proj)\.bias$")  # truly zero: softmax does not see a shift
_VERTEX_STEP = 200
_EXACT = ("token_level", "scale_map_y", "scale_map_x", "scale_map_lens", "token_lens", "tokens")


@dataclass(frozen=True)
class Recording:
    """What the files hold."""

    said: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    weights: Mapping[str, torch.Tensor]
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
        sat, (encoder, model) = {**self.said["config"]["sat"], **(limits or {})}, self._sizes()
        model, side = replace(model, **other), self.said["config"]["input_size"]
        network = MeshNetwork(encoder, model, side, (sat["conf_thresh"], sat["scale_thresh"]))
        own = network.state_dict()
        weights = {
            name: value[: len(own[name])] if name in own else value
            for name, value in self.weights.items()
            if not IGNORED.match(name)
        }
        found = network.load_state_dict(weights, strict=False)
        missing = [name for name in found.missing_keys if not name.startswith("dn_enc.")]
        unexpected = [name for name in found.unexpected_keys if model.camera or not name.startswith("fov_head.")]
        if missing or unexpected:
            raise ValueError(f"the checkpoint lacks {missing[:5]} and has {unexpected[:5]} too much")
        return network.eval()

    def _sizes(self) -> tuple[EncoderConfig, ModelConfig]:
        config = self.said["config"]
        encoder, decoder = config["encoder"], config["decoder"]
        return EncoderConfig(
            width=encoder["embed_dim"],
            heads=encoder["num_heads"],
            layers=encoder["depth"],
            hidden=int(encoder["embed_dim"] * encoder["mlp_ratio"]),
            additional=encoder["extra_blocks"],
        ), ModelConfig(
            width=decoder["hidden"],
            heads=decoder["heads"],
            layers=decoder["layers"],
            hidden=decoder["feed_forward"],
            queries=decoder["queries"],
            betas=11 if config["kid"] else 10,
            camera=bool(config["fov"]),
            as_published=True,
        )


def check_network(record: Recording) -> list[CaseResult]:
    """Every group of the files."""
    groups = sorted({key.partition("/")[0] for key in record.arrays if "/" in key})
    rules: dict[str, Callable[[Recording], CaseResult]] = {
        **{name: partial(_check_outputs, name=name) for name in _OUTPUTS},
        "layers": _check_layers,
        "init": _check_init,
        "dn": _check_denoising,
        "step": _check_step,
        "preprocess": _check_preprocess,
    }
    results = []
    for name in groups:
        if name not in rules:
            results.append(CaseResult(FAMILY, f"network/{name}", "", ("no rule here knows this group",)))
        else:
            results.append(check_case(FAMILY, f"network/{name}", "", partial(rules[name], record)))
    missing = [name for name in rules if name not in groups]
    return results + [CaseResult(FAMILY, f"network/{name}", "", ("is not in network_cases.npz",)) for name in missing]


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
def _check_outputs(record: Recording, name: str) -> CaseResult:
    recorded = record.group(name)
    images, other = _OUTPUTS[name]
    network = record.network(**other)
    if name == "fov_limit":
        network.fov_head.last.bias.copy_(torch.tensor([-0.5]))
    regressor = record.regressor[[3, 2]] if name == "joints14" else None
    seen = record.images[images]
    found = network(seen, given_map=recorded.pop("given_scale_map", None))
    found = with_joints(found, record.body, regressor)
    result = _compare(f"network/{name}", _outputs(found, network, seen, record.body), recorded)
    counts = record.said.get(f"{name}_tokens")
    if counts is not None and counts != _token_counts(found):
        result = replace(result, failures=(*result.failures, f"tokens {_token_counts(found)}, recorded {counts}"))
    return result


def _check_layers(record: Recording) -> CaseResult:
    recorded, network = record.group("layers"), record.network()
    with torch.no_grad():
        predictions = with_joints(network(record.images), record.body)
    assert predictions.j2ds is not None
    assert predictions.states is not None
    assert predictions.references is not None
    found = {name: getattr(predictions, name) for name in ("poses", "betas", "boxes", "depths", "confs")}
    found |= {"hs": predictions.states, "reference": predictions.references}
    found["j2ds"] = predictions.j2ds[:, :, : recorded["j2ds"].shape[2]]
    return _compare("network/layers", found, recorded)


def _check_init(record: Recording) -> CaseResult:
    recorded = record.group("init")
    position, found = recorded["pos_embed"][0], {}
    for name in recorded:
        if match := re.fullmatch(r"encoder_pos_embeds_(\d+)x\1", name):
            found[name] = enlarge_positions(position[1:], int(match[1]))
        elif match := re.fullmatch(r"level1_of_(\d+)x\1", name):
            found[name] = shrink_positions(enlarge_positions(position[1:], int(match[1])))
    found["encoder_cr_token"] = recorded["cls_token"][0] + position[:1]
    return _compare("network/init", found, {k: v for k, v in recorded.items() if k not in ("pos_embed", "cls_token")})


@torch.no_grad()
def _check_denoising(record: Recording) -> CaseResult:
    recorded = record.group("dn")
    network = record.network(camera=False, betas=10, denoising=1)
    network.dn_enc.weight.copy_(recorded["weight"])
    network.dn_enc.bias.copy_(recorded["bias"])
    counts = recorded["counts"].tolist()
    image = torch.repeat_interleave(torch.arange(len(counts)), recorded["counts"])
    body = torch.cat([recorded["tgt_poses"], recorded["tgt_betas"]], dim=-1)
    known = Known(image, len(counts), recorded["tgt_boxes"], body, int(recorded["groups"]))
    sign = {name: recorded[f"{name}_sign01"].float() * 2 - 1 for name in ("box", "param")}
    noise = (sign["box"], recorded["box_rand"], sign["param"], recorded["param_rand"])
    content, logits = noisy_queries(known, network.dn_enc, noise)
    blocked = ~allowed_pairs(known, network.sizes.queries)
    predictions = network(record.images[: len(counts)], known=known, noise=noise)
    assert predictions.known is not None
    found = {"query_content": content, "query_box_logit": logits, "self_attention_blocked": blocked}
    names = ("boxes", "confs", "poses", "betas")
    found |= {f"known_{name}": getattr(predictions.known, name)[-1] for name in names}
    found |= {name: getattr(predictions, name)[-1] for name in names}
    return _compare("network/dn", found, {name: value for name, value in recorded.items() if name in found})


def _check_step(record: Recording) -> CaseResult:
    recorded, said, network = record.group("step"), record.said["step"], record.network()
    network.train()
    found = with_joints(network(record.images), record.body)
    size = torch.tensor([image.shape[1:] for image in record.images])
    cells = found.cells
    assert cells is not None
    recorded["scale_map_lens"] = torch.tensor(cells[2])
    targets = recorded_targets(recorded, recorded["counts"].tolist(), img_size=size)
    weights = {name.partition(".")[0]: weight for name, (_, weight) in said["terms"].items()}
    matches = match_people(found, targets)
    losses = compute_losses(found, targets, matches, loss_config(weights))
    failures, errors = compare_terms(losses, said["terms"], said["total"], TERM_TOLERANCE)
    failures += compare_matches(matches, targets, said["matching"])
    losses.total.backward()
    wrong, errors["gradient_norms"] = _compare_gradients(network, said["grad_norm"])
    norms = [weight.grad.norm() for weight in network.parameters() if weight.grad is not None]
    whole = float(torch.stack(norms).norm())
    errors["total_gradient"] = abs(whole - said["total_grad_norm"]) / said["total_grad_norm"]
    limits = {"terms": TERM_TOLERANCE, "total": TERM_TOLERANCE}
    limits |= {"gradient_norms": GRADIENT_TOLERANCE, "total_gradient": GRADIENT_TOLERANCE}
    return judge(FAMILY, "network/step", "", [*failures, *wrong], errors, limits)


def _check_preprocess(record: Recording) -> CaseResult:
    """Originals resized to S; pixels may differ by a grey level."""
    recorded, side, failures, worst = record.group("preprocess"), record.said["config"]["input_size"], [], 0.0
    pairs = [(f"{name.removesuffix('_original')}_resized", name) for name in recorded if name.endswith("_original")]
    images = [(recorded[made].numpy(), recorded[name].numpy()) for made, name in pairs]
    for key in (key for key in record.arrays if re.fullmatch(r"original_\d+", key)):
        images.append((record.arrays[f"image_{key[9:]}"], record.arrays[key]))
    for wanted, original in images:
        found = resize(original, fit_size(original.shape[1], original.shape[0], side)[0])
        if found.shape != wanted.shape:
            failures.append(f"an image of {original.shape} becomes {found.shape}, recorded {wanted.shape}")
            continue
        worst = max(worst, float(np.abs(found.astype(int) - wanted.astype(int)).max()))
    return judge(FAMILY, "network/preprocess", "", failures, {"pixels": worst}, {"pixels": GREY_LEVELS})


def _compare_gradients(network: MeshNetwork, recorded: Mapping[str, float]) -> tuple[list[str], float]:
    weights = dict(network.named_parameters(remove_duplicate=False))
    failures, worst = [], 0.0
    for name, wanted in recorded.items():
        if name not in weights:
            failures.append(f"there is no weight {name}, whose gradient is recorded")
            continue
        gradient = weights[name].grad
        found = 0.0 if gradient is None else float(gradient.norm())
        if wanted <= LEAST_GRADIENT or _NO_GRADIENT.match(name):
            continue
        worst = max(worst, abs(found - wanted) / wanted)
        if not abs(found - wanted) <= GRADIENT_TOLERANCE * wanted:
            failures.append(f"the gradient of {name} has norm {found:.7g}, recorded {wanted:.7g}")
    return failures, worst


def _outputs(
    found: Predictions, network: MeshNetwork, images: list[torch.Tensor], body: BodyModel
) -> dict[str, torch.Tensor]:
    """Every quantity a group may hold, of the last layer."""
    assert found.cells is not None
    last = ("confs", "boxes", "poses", "betas", "transl", "depths", "j3ds", "j2ds")
    betas = torch.nn.functional.pad(found.betas[-1], (0, 11 - found.betas.shape[-1]))
    vertices = body.vertices(found.poses[-1], betas, found.transl[-1])
    tokens = found.tokens
    level_side = 14 * 2.0 ** tokens["level"] / found.input_size
    return {
        **{name: getattr(found, name)[-1] for name in last},
        "intrinsics": found.intrinsics,
        "scale_map": found.scale_map,
        "scale_map_y": found.cells[0],
        "scale_map_x": found.cells[1],
        "scale_map_lens": torch.tensor(found.cells[2]),
        "token_lens": torch.bincount(tokens["image"], minlength=len(images)),
        "token_level": tokens["level"],
        "token_y": (tokens["place"][:, 1] + 0.5) * level_side,
        "token_x": (tokens["place"][:, 0] + 0.5) * level_side,
        "verts_every_200": vertices[..., ::_VERTEX_STEP, :],
        "memory": tokens["memory"],
        "memory_pos": tokens["code"],
        **({} if found.fov is None else {"fov_raw": found.fov}),
    }


def _token_counts(found: Predictions) -> list[list[int]]:
    image, level = found.tokens["image"], found.tokens["level"]
    return [[int(((image == b) & (level == k)).sum()) for k in range(3)] for b in range(found.confs.shape[1])]


def _compare(name: str, found: Mapping[str, torch.Tensor], recorded: Mapping[str, torch.Tensor]) -> CaseResult:
    unknown = [key for key in recorded if key not in found]
    ours, theirs = {}, {}
    for key in (key for key in recorded if key in found):
        ours[key], theirs[key] = (
            axis_angle_to_matrix(values.double().unflatten(-1, (24, 3))).numpy()
            if key.endswith("poses")
            else values.numpy()
            for values in (found[key].detach(), recorded[key])
        )
    exact = (*_EXACT, "self_attention_blocked")
    failures, errors = compare_arrays(ours, theirs, exact)
    failures += [f"{key} is recorded, but no rule here knows it" for key in unknown]
    return judge(FAMILY, name, "", failures, errors, dict.fromkeys(errors, TOLERANCE))
