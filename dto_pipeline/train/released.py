"""Weights that others made: released MA-HMR and SAT-HMR files, and the DINOv2 an encoder begins from.

A released file is one flat dictionary name -> tensor (accelerate's ``pytorch_model.bin``, a ``.pth``), perhaps with
``module.`` before every name. Everything is compared by name and shape before a network is built; what is no weight of
it (body model, fixed camera, order of cells) is ignored. Knows names and shapes; knows no training.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dto_pipeline.config_tree import ConfigError
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import ModelError
from dto_pipeline.models.stored_networks import plain_weights
from dto_pipeline.train.config import PATCH, TrainConfig, train_config_from_dict
from dto_pipeline.train.model import MeshNetwork

IGNORED = re.compile(r"(human_model\..*|z_order_map|x_coords|y_coords|cam_intrinsics)$")
"""Entries of a released file that are no weights of the network: licensed arrays of the body, and constants."""
_PREFIX = "module."
_SHAPE_ENDS = re.compile(r"shape_head\.\d+\.layers\.\d+\.(weight|bias)$")
_HEAD_WIDTH = 64  # features of an encoder's head, in every DINOv2
_MOST_NAMED = 8  # missing or unexpected names told one by one
_LOG = logging.getLogger(__name__)


class ReleasedError(DtoError, ValueError):
    """A file of weights that cannot be used; the message says what was found."""


@dataclass(frozen=True)
class Taken:
    """What became of a file's names."""

    missing: tuple[str, ...]  # the network has them, the file has not
    unexpected: tuple[str, ...]  # the other way round

    def describe(self) -> str:
        """One sentence; "" where everything was there."""
        parts = [
            f"{len(names)} {word}: {', '.join(names[:_MOST_NAMED])}{' ...' if len(names) > _MOST_NAMED else ''}"
            for word, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        return "; ".join(parts)


def clean_names(content: object, path: str) -> dict[str, torch.Tensor]:
    """The weights of a file that was read, by their published names, without what is no weight.

    Raises:
        ReleasedError: not a flat dictionary of finite tensors.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise ReleasedError(f"{path} is no dictionary of named tensors; expected accelerate's pytorch_model.bin")
    plain = {name.removeprefix(_PREFIX): value for name, value in content.items()}
    try:
        weights = plain_weights({name: value for name, value in plain.items() if not IGNORED.match(name)}, path)
    except ModelError as error:
        raise ReleasedError(str(error)) from error
    for name, value in weights.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ReleasedError(f"{path}: {name} says it is larger than what is stored")
    return weights


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over names and values, the same wherever and however they were stored."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_sizes(weights: Mapping[str, torch.Tensor], path: str, heads: int | None = None) -> dict[str, dict[str, Any]]:
    """The sizes that the shapes tell, as sections of a config.

    Args:
        weights: by their published names.
        path: their file, for messages.
        heads: of the encoder, which shapes do not tell; None = one per 64 features.

    Raises:
        ReleasedError: something is missing.
    """

    def size(name: str, axis: int = 0) -> int:
        if name not in weights or weights[name].dim() <= axis:
            raise ReleasedError(f"{path}: lacks {name}; expected the weights of an MA-HMR (pytorch_model.bin)")
        return weights[name].shape[axis]

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in weights if (match := re.match(pattern, name)) and len(match[1]) < 4]
        return max(found, default=-1) + 1

    width = size("encoder.norm.weight")
    return {
        "encoder": {
            "width": width,
            "layers": count(r"encoder\.blocks\.(\d+)\."),
            "heads": heads or max(1, width // _HEAD_WIDTH),
            "hidden": size("encoder.blocks.0.mlp.fc1.weight"),
            "additional": count(r"encoder\.additional_blocks\.(\d+)\."),
        },
        "model": {
            "width": size("feature_proj.weight"),
            "layers": count(r"decoder\.decoder\.layers\.(\d+)\."),
            "hidden": size("decoder.decoder.layers.0.linear1.weight"),
            "queries": size("tgt_embed.weight"),
            "betas": size("mean_shape"),
            "camera": "fov_head.layers.0.weight" in weights,
            "denoising": int("dn_enc.weight" in weights),
        },
        "data": {"input_size": size("encoder_pos_embeds") * PATCH},
    }


def build_released(
    weights: Mapping[str, torch.Tensor], path: str, heads: int | None = None
) -> tuple[MeshNetwork, TrainConfig]:
    """The network of a file, whole, built once names and shapes are known to be right, and its sizes as a config.

    Raises:
        ReleasedError: a name is missing, or a shape is another one.
    """
    try:
        config = train_config_from_dict(read_sizes(weights, path, heads))
    except ConfigError as error:
        raise ReleasedError(f"{path}: {error}") from error
    with torch.device("meta"):
        taken = _compare(make_network(config), weights, path)
    if taken.missing:
        raise ReleasedError(f"{path} is no whole network: {taken.describe()}")
    if taken.unexpected:
        _LOG.warning("%s: %s", path, taken.describe())
    network = make_network(config)
    network.load_state_dict(dict(weights), strict=False)
    return network, config


def make_network(config: TrainConfig) -> MeshNetwork:
    """Of the sizes that a config names, untrained."""
    return MeshNetwork(config.encoder, config.model, config.data.input_size)


def begin_from(network: MeshNetwork, weights: Mapping[str, torch.Tensor], path: str) -> Taken:
    """Put a file's weights into a network of a config, as the published stages do.

    Where the network predicts the kid axis and the file does not, a zero is appended to the shape heads' last layers
    and to the mean shape. Names that one side lacks are told and left as they are.

    Raises:
        ReleasedError: a weight of both has another shape, or they share none.
    """
    grown = {name: _with_kid_axis(name, value, network.sizes.betas) for name, value in weights.items()}
    taken = _compare(network, grown, path)
    network.load_state_dict(grown, strict=False)
    return taken


def dinov2_weights(state: Mapping[str, torch.Tensor], config: TrainConfig) -> dict[str, torch.Tensor]:
    """What a DINOv2 of transformers (names of v4 or v5) begins an encoder with.

    Both patch projections are its own, additional blocks copies of its first ones, the inner norm one of its last; the
    class token is the sum of class token and its position. Positions are enlarged as published: bicubic, coordinates by
    the factor (S / 14 + 0.1) / side, not by the sizes.

    Raises:
        ReleasedError: the names are not those of a DINOv2, or a size is another one.
    """
    found: dict[str, torch.Tensor] = {}
    try:
        position = state["embeddings.position_embeddings"][0].float()
        found["encoder_cr_token"] = state["embeddings.cls_token"][0].float() + position[:1]
        found["encoder_pos_embeds"] = enlarge_positions(position[1:], config.data.input_size // PATCH)
        for kind in ("weight", "bias"):
            patches = state[f"embeddings.patch_embeddings.projection.{kind}"]
            found |= {f"encoder_patch_proj.{number}.{kind}": patches for number in range(2)}
            found |= {f"{norm}.{kind}": state[f"layernorm.{kind}"] for norm in ("encoder.norm", "enc_inter_norm")}
        for layer in range(config.encoder.layers):
            block = _dinov2_block(state, f"encoder.layer.{layer}.")
            found |= {f"encoder.blocks.{layer}.{name}": value for name, value in block.items()}
            if layer < config.encoder.additional:
                found |= {f"encoder.additional_blocks.{layer}.{name}": value for name, value in block.items()}
    except KeyError as error:
        raise ReleasedError(
            f"the encoder lacks {error}; expected a DINOv2 of {config.encoder.layers} layers"
        ) from error
    return found


def enlarge_positions(position: torch.Tensor, side: int) -> torch.Tensor:
    """(n * n, C) of a square grid -> (side, side, C)."""
    own = round(len(position) ** 0.5)
    grid = position.unflatten(0, (own, own)).permute(2, 0, 1)[None]
    factor = (side + 0.1) / own
    return functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")[0].permute(1, 2, 0)


def _dinov2_block(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """One block under the published names."""
    is_old = f"{prefix}attention.attention.query.weight" in state
    query = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    query = query if is_old else [f"attention.{part}_proj" for part in "qkv"]
    names = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    names["attn.proj"] = "attention.output.dense" if is_old else "attention.o_proj"
    block = {
        f"{ours}.{kind}": state[f"{prefix}{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        block[f"attn.qkv.{kind}"] = torch.cat([state[f"{prefix}{part}.{kind}"] for part in query])
    return block | {f"ls{number}.gamma": state[f"{prefix}layer_scale{number}.lambda1"] for number in (1, 2)}


def _with_kid_axis(name: str, value: torch.Tensor, betas: int) -> torch.Tensor:
    if not (name == "mean_shape" or _SHAPE_ENDS.match(name)) or len(value) != 10 or betas != 11:
        return value
    return torch.cat([value, value.new_zeros(1, *value.shape[1:])])


def _compare(network: MeshNetwork, weights: Mapping[str, torch.Tensor], path: str) -> Taken:
    own = network.state_dict()
    other = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if other:
        name = other[0]
        found, wanted = tuple(weights[name].shape), tuple(own[name].shape)
        raise ReleasedError(f"{path}: {name} has shape {found}, expected {wanted} ({len(other)} such); another size?")
    taken = Taken(tuple(n for n in own if n not in weights), tuple(n for n in weights if n not in own))
    if len(taken.missing) == len(own):
        raise ReleasedError(f"{path} shares no name with the network; expected the weights of an MA-HMR or SAT-HMR")
    return taken
