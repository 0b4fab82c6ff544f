"""Checkpoints: one file with everything needed to go on training or to predict, and released weights.

A released MA-HMR or SAT-HMR file is one flat dictionary name -> tensor (``.bin`` or ``.pth``), perhaps with ``module.``
before every name, perhaps within an entry ``state_dict`` or ``model``. Names and shapes are compared before a network
is built.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dto_pipeline import __version__
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.files import is_temporary
from dto_pipeline.data.torch_files import read_torch_file, write_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.models.network_input import stretch_positions
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.pretrained import check_weights, compare_weights, load_dinov2, name_weights
from dto_pipeline.train.config import PATCH, TrainConfig, train_config_from_dict
from dto_pipeline.train.model import MeshNetwork

FORMAT, FOLDER = "dto-checkpoint/2", "checkpoints"
# entries of a released file that are not weights of the network: arrays of the licensed body, and constants
IGNORED = re.compile(r"(human_model\..*|z_order_map|x_coords|y_coords|cam_intrinsics)$")
_WRAPPERS = ("state_dict", "model")  # entries under which other trainers save the weights
_KEPT = 2  # newest checkpoints of a training that are kept: one is spare, should the other be damaged
_KINDS: dict[str, type] = dict.fromkeys(("config", "init", "weights", "optimizer", "position", "versions"), dict)
_KINDS["body_sha256"] = str
_HEAD_WIDTH = 64  # features of an encoder's head, in every DINOv2
_DINOV2 = (  # names of a block in transformers (v4 or v5), and the published ones
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r"attn.\2."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
)
_BLOCK = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
VERSIONS = {name: version(name) for name in ("torch", "transformers", "numpy")} | {"dto_pipeline": __version__}
_LOG = logging.getLogger(__name__)


class TrainError(DtoError, RuntimeError):
    """A training that cannot start or go on."""


class CheckpointError(DtoError, ValueError):
    """A file of weights that cannot be used or could not be written, or a folder without any."""


@dataclass(frozen=True)
class Position:
    """Progress of a training."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # of the data
    batch: int = 0  # batches of this epoch done


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file; or the weights of a released file, with a config of the sizes in their shapes."""

    config: TrainConfig  # with the network's sizes
    init: dict[str, Any]  # record of the first weights, see `begin_network`
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    position: Position
    versions: dict[str, str]
    body_sha256: str  # of the training's body model; "" = a released file, which names none
    path: Path | None = None  # where it was read from

    def load_body(self, path: str) -> BodyModel:
        """The body model in a file, which must be that of the training. Raises: BodyModelError: it is another one."""
        body = load_body(path, self.config.body.kid_axis)
        if self.body_sha256 not in ("", body.sha256):
            found = f"sha256 {body.sha256[:16]}, the network was trained with {self.body_sha256[:16]}"
            raise BodyModelError(f"the body model {path} has {found}; name the right one (body.model_path, --body)")
        return body


def make_network(config: TrainConfig) -> MeshNetwork:
    """An untrained network of the sizes in a config."""
    return MeshNetwork(config.encoder, config.model, config.data.input_size)


def begin_network(config: TrainConfig) -> tuple[MeshNetwork, dict[str, Any]]:
    """A network before training, and the record of its first weights: those of `loop.init`, or else of the DINOv2
    `encoder.model`; others are random. Raises: ModelError, CheckpointError, TorchFileError: they cannot be used."""
    network, options = make_network(config), config.encoder
    if config.loop.init:
        weights = read_checkpoint(config.loop.init).weights
        differing = begin_from(network, weights, config.loop.init)
        if text := name_weights(differing):
            _LOG.warning("%s: %s", config.loop.init, text)
        return network, {"weights": config.loop.init, "sha256": hash_weights(weights), **differing}
    if not options.model:
        return network, {}
    state, heads = load_dinov2(ModelReference(options.model, options.revision, options.offline, option="encoder"))
    if heads != options.heads:
        raise CheckpointError(f"{options.model} has {heads} heads, encoder.heads is {options.heads}; set it to {heads}")
    weights = dinov2_weights(state, config)
    begin_from(network, weights, options.model)
    return network, {"encoder": options.model, "revision": options.revision, "sha256": hash_weights(weights)}


def begin_from(network: MeshNetwork, weights: Mapping[str, torch.Tensor], path: str) -> dict[str, list[str]]:
    """Put a file's weights into a network, as the published stages do, and return the names that only one of both has.
    A kid axis that the file lacks becomes zeros. Raises: CheckpointError: other shapes, or no name in common."""
    own, grown = network.state_dict(), dict(weights)
    for name, value in weights.items():
        if name.startswith(("mean_shape", "shape_head.")) and (len(value), len(own.get(name, ()))) == (10, 11):
            grown[name] = torch.cat([value, value.new_zeros(1, *value.shape[1:])])
    differing = compare_weights(own, grown)
    if other := name_weights({kind: differing.pop(kind) for kind in ["of another shape"]}):
        raise CheckpointError(f"{path}: weights {other}; is it a network of another size?")
    if len(differing["missing"]) == len(own):
        raise CheckpointError(f"{path} shares no name with the network; expected the weights of an MA-HMR or SAT-HMR")
    network.load_state_dict(grown, strict=False)
    return differing


def restore_network(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> MeshNetwork:
    """The trained network, ready to predict. It takes memory only once the names and shapes of all weights fit. Raises:
    CheckpointError: they do not."""
    where = str(checkpoint.path or "the checkpoint")
    try:
        weights = check_weights(checkpoint.weights, where)
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    with torch.device("meta"):
        own = make_network(checkpoint.config).state_dict()
    differing = compare_weights(own, weights)
    if not checkpoint.body_sha256 and (more := differing.pop("unexpected")):  # a released file may hold more weights
        _LOG.warning("%s: %s", where, name_weights({"unexpected": more}))
    if text := name_weights(differing):
        raise CheckpointError(f"{where} does not fit its own config: {text}")
    network = make_network(checkpoint.config)
    network.load_state_dict({name: weights[name] for name in own})
    return network.eval().to(device)


def sizes_to_begin_with(folder: Path, init: str) -> dict[str, dict[str, Any]]:
    """Sizes of a network as options of a config: those of the training in a folder, or else of the weights `init` that
    it begins with (`loop.init`); none if `init` is ""."""
    if not init:
        return {}
    tree = read_checkpoint(folder if list_checkpoints(folder) else init).config.to_dict()
    keys = {"encoder": ("width", "layers", "heads", "hidden", "additional"), "data": ("input_size",)}
    keys["model"] = ("queries", "width", "heads", "layers", "hidden")  # the others depend on the stage
    return {name: {key: tree[name][key] for key in own} for name, own in keys.items()}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoints/step-N.pt`` below a training's folder and drop all but the newest. Raises: CheckpointError:
    the disk is full or cannot be written; earlier checkpoints stay."""
    path = checkpoint_file(folder, checkpoint.position.step)
    plain = {"format": FORMAT, "config": checkpoint.config.to_dict(), "position": vars(checkpoint.position)}
    try:
        write_torch_file(path, {name: getattr(checkpoint, name) for name in _KINDS} | plain)
    except OSError as error:
        earlier = list_checkpoints(folder)
        after = f"go on from {earlier[-1].name}, which is whole" if earlier else "begin again: there is no earlier one"
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}; make room, or make it writable, and start again to {after}"
        ) from error
    left = [one for one in path.parent.glob(".step-*") if is_temporary(one.name)]  # of writers that were killed
    for old in [*list_checkpoints(folder)[:-_KEPT], *left]:
        old.unlink()
    return path


def checkpoint_file(folder: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return folder / FOLDER / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training, oldest first."""
    return sorted((folder / FOLDER).glob(f"step-{'[0-9]' * 8}.pt"))


def read_checkpoint(path: str | Path, heads: int | None = None) -> Checkpoint:
    """A checkpoint, the newest readable one of a training's folder, or a released file (`heads`: of its encoder, see
    `read_sizes`); tensors on the CPU. Raises: CheckpointError, TorchFileError: it is none of these, or damaged."""
    path, damaged = Path(path), list[str]()
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint, a training's folder or a released file")
    if not path.is_dir():
        content = read_torch_file(path)
        is_ours = isinstance(content, dict) and "format" in content
        return _checkpoint_of(content, path) if is_ours else read_released(content, path, heads)
    for one in reversed(list_checkpoints(path)):
        try:
            checkpoint = _checkpoint_of(read_torch_file(one), one)
        except (DtoError, OSError) as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            _LOG.warning("%s; taking %s instead", reason, one)
        return checkpoint
    if damaged:
        raise CheckpointError(f"no checkpoint can be read: {'; '.join(damaged)}; to train anew name a new folder (-o)")
    raise CheckpointError(f"{path} holds no {FOLDER}/step-*.pt; give a training's folder or a checkpoint file")


def _checkpoint_of(content: Any, path: Path) -> Checkpoint:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} is {found!r:.80}, not {FORMAT}; use the version that wrote it, or a new folder")
    odd = [name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)]
    at, names = content.get("position", {}), sorted(field.name for field in fields(Position))
    if not odd and (sorted(at) != names or any(type(number) is not int or number < 0 for number in at.values())):
        odd = ["position"]
    if odd:
        raise CheckpointError(f"{path}: {', '.join(odd)} is missing or not of the type that a training writes")
    try:
        config = train_config_from_dict(content["config"])
    except (ConfigError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be used: {error}") from error
    own = {"config": config, "position": Position(**at), "path": path}
    return Checkpoint(**{name: content[name] for name in _KINDS} | own)


def read_released(content: object, path: Path, heads: int | None = None) -> Checkpoint:
    """The weights of a released file by their published names. Raises: CheckpointError: it is not a flat dictionary of
    finite tensors, or not of such a network."""
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} is neither a checkpoint nor a dictionary of named tensors (pytorch_model.bin)")
    plain = {name.removeprefix("module."): value for name, value in content.items()}
    try:
        weights = check_weights({name: value for name, value in plain.items() if not IGNORED.match(name)}, str(path))
        config = train_config_from_dict(read_sizes(weights, path, heads))
    except (ModelError, ConfigError) as error:
        raise CheckpointError(f"{path} is no released network: {error}; was it written by another program?") from error
    return Checkpoint(config, {}, weights, {}, Position(), {}, "", path)


def read_sizes(weights: Mapping[str, torch.Tensor], path: str | Path, heads: int | None) -> dict[str, dict[str, Any]]:
    """The sizes in the shapes of a file's weights, as sections of a config; `heads`: of the encoder, which is in no
    shape, None = one per 64 features. Raises: CheckpointError: a weight is missing."""

    def size(name: str, axis: int = 0) -> int:
        if name not in weights or weights[name].dim() <= axis:
            raise CheckpointError(f"{path}: lacks {name}; expected the weights of an MA-HMR (pytorch_model.bin)")
        return weights[name].shape[axis]

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in weights if (match := re.match(pattern, name)) and len(match[1]) < 4]
        return max(found, default=-1) + 1

    width = size("encoder.norm.weight")
    return {
        "encoder": {
            "width": width,
            "layers": count(r"encoder\.blocks\.(\d+)\."),
            "heads": heads or (width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else 1),
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


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) over names and values, independent of how they were stored."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def dinov2_weights(state: Mapping[str, torch.Tensor], config: TrainConfig) -> dict[str, torch.Tensor]:
    """First weights of an encoder from a DINOv2 of transformers (names of v4 or v5): its patch projection twice, its
    first blocks also as additional blocks, its last norm also as inner norm. Raises: CheckpointError: other names."""
    for theirs, ours in _DINOV2:
        state = {re.sub(theirs, ours, name): value for name, value in state.items()}
    try:
        position = state["embeddings.position_embeddings"][0].float()
        found = {"encoder_cr_token": state["embeddings.cls_token"][0].float() + position[:1]}
        side = config.data.input_size // PATCH
        found["encoder_pos_embeds"] = stretch_positions(position[1:], side, side)
        for kind in ("weight", "bias"):
            patches = state[f"embeddings.patch_embeddings.projection.{kind}"]
            found |= {f"encoder_patch_proj.{number}.{kind}": patches for number in range(2)}
            found |= {f"{norm}.{kind}": state[f"layernorm.{kind}"] for norm in ("encoder.norm", "enc_inter_norm")}
        for layer in range(config.encoder.layers):
            names = ["ls1.gamma", "ls2.gamma", *(f"{part}.{kind}" for part in _BLOCK for kind in ("weight", "bias"))]
            block = {name: state[f"encoder.layer.{layer}.{name}"] for name in names}
            for kind in ("weight", "bias"):
                parts = [state[f"encoder.layer.{layer}.attn.{letter}.{kind}"] for letter in "qkv"]
                block[f"attn.qkv.{kind}"] = torch.cat(parts)
            stacks = ["blocks", *(["additional_blocks"] if layer < config.encoder.additional else [])]
            found |= {f"encoder.{stack}.{layer}.{name}": v for stack in stacks for name, v in block.items()}
    except KeyError as error:
        raise CheckpointError(
            f"the encoder lacks {error}; expected a DINOv2 of {config.encoder.layers} layers"
        ) from error
    return found
