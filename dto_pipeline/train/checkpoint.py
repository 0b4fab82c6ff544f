"""Checkpoints: one file that holds everything needed to go on training or to predict, and how the newest is found.

Knows files and state dicts. A checkpoint appears under its name in one step, so a killed writer leaves none that is
half; it is read by an unpickler that runs nothing, and its checksums are compared. Where the newest cannot be
read, the one before it is taken, and a sentence says so; training writes the damaged one again.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dto_pipeline
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.files import is_temporary
from dto_pipeline.data.torch_files import TorchFileError, read_torch_file, write_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.stored_networks import make_fitting, plain_weights
from dto_pipeline.reading import IrregularFile, parse_json, read_regular
from dto_pipeline.train.config import TrainConfig, train_config_from_dict
from dto_pipeline.train.model import MeshNetwork
from dto_pipeline.train.released import begin_from, clean_names, dinov2_weights, hash_weights, make_network, read_sizes

FORMAT = "dto-checkpoint/2"
_BEFORE = "dto-checkpoint/1"  # of the network of version 0.3.0
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})\.pt")
_KEPT = 2  # newest checkpoints of a training: the one in use and the one before, should a disk fail
_KINDS: dict[str, type] = dict.fromkeys(("config", "init", "weights", "optimizer", "position", "versions"), dict)
_KINDS["body_sha256"] = str
_LOG = logging.getLogger(__name__)


class CheckpointError(DtoError, ValueError):
    """A file that is no checkpoint of this program or could not be written, or a folder without any."""


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # of the data
    batch: int = 0  # batches of this epoch done


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    config: TrainConfig  # the network's sizes too
    init: dict[str, Any]  # what the training began with, see `begin_network`
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    position: Position
    versions: dict[str, str]
    body_sha256: str  # of the body model trained with
    path: Path | None = None  # where it was read from


def begin_network(config: TrainConfig) -> tuple[MeshNetwork, dict[str, Any]]:
    """A network before training, and what it began with; torch's global generator draws what nothing gives.

    `loop.init` (a released file, or a checkpoint or folder of a training) comes before `encoder.model` (a DINOv2).

    Raises:
        ModelMissing, ModelError, ReleasedError, CheckpointError, TorchFileError: it cannot be had as the config says.
    """
    network, options = make_network(config), config.encoder
    if config.loop.init:
        weights = read_any_weights(Path(config.loop.init))
        taken = begin_from(network, weights, config.loop.init)
        if taken.describe():
            _LOG.warning("%s: %s", config.loop.init, taken.describe())
        told = {"missing": list(taken.missing), "unexpected": list(taken.unexpected)}
        return network, {"weights": config.loop.init, "sha256": hash_weights(weights), **told}
    if not options.model:
        return network, {}
    from dto_pipeline.models.pretrained import load_dinov2  # transformers costs seconds

    state, heads = load_dinov2(ModelReference(options.model, options.revision, options.offline, option="encoder"))
    if heads != options.heads:
        raise CheckpointError(f"{options.model} has {heads} heads, encoder.heads is {options.heads}; set it to {heads}")
    weights = dinov2_weights(state, config)
    begin_from(network, weights, options.model)
    return network, {"encoder": options.model, "revision": options.revision, "sha256": hash_weights(weights)}


def sizes_to_begin_with(folder: Path, init: str) -> dict[str, dict[str, Any]]:
    """Sizes of a network as options of a config: those a training has, or those of the weights it begins from.

    Args:
        folder: of the training.
        init: see `loop.init`; "" = none.
    """
    train_file = folder / "train.json"
    if not init:
        return {}
    try:
        if train_file.exists():
            tree = train_config_from_dict(parse_json(read_regular(train_file))["config"]).to_dict()
        else:
            tree = read_sizes(read_any_weights(Path(init)), init)
    except (ValueError, KeyError, TypeError, AttributeError, IrregularFile) as error:
        if isinstance(error, DtoError):
            raise
        raise CheckpointError(f"{train_file} cannot be used ({error}); choose another folder") from error
    stages_decide = {"betas", "camera", "denoising", "principal_point", "prune_by_image"}
    names = {"encoder": {"width", "layers", "heads", "hidden", "additional"}, "data": {"input_size"}}
    names["model"] = set(tree["model"]) - stages_decide
    return {name: {key: tree[name][key] for key in keys} for name, keys in names.items()}


def read_any_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a released file, or of a checkpoint or the newest one of a training's folder."""
    if path.is_dir():
        return read_checkpoint(path).weights
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a released file, a checkpoint, or the folder of a training")
    content = read_torch_file(path)
    if isinstance(content, dict) and "format" in content:
        return _checkpoint_of(content, path).weights
    return clean_names(content, str(path))


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoints/step-N.pt`` below a training's folder and drop all but the newest.

    Raises:
        CheckpointError: the disk is full or cannot be written; the checkpoints that are there stay.
    """
    path = checkpoint_file(folder, checkpoint.position.step)
    content = {name: value for name, value in vars(checkpoint).items() if name in _KINDS}
    content |= {"config": checkpoint.config.to_dict(), "position": vars(checkpoint.position)}
    try:
        write_torch_file(path, {"format": FORMAT, **content})
    except OSError as error:
        there = list_checkpoints(folder)
        after = f"go on from {there[-1].name}, which is whole" if there else "begin anew: there is no earlier one"
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}; make room, or make it writable, and start again to {after}"
        ) from error
    left = [one for one in path.parent.glob(".step-*") if is_temporary(one.name)]  # by killed writers
    for old in [*list_checkpoints(folder)[:-_KEPT], *left]:
        old.unlink()
    return path


def checkpoint_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / FOLDER / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training, oldest first."""
    return sorted(path for path in (folder / FOLDER).glob("step-*.pt") if _NAME.fullmatch(path.name))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or the newest of a training's folder that can be read; tensors are on the CPU.

    Raises:
        CheckpointError, TorchFileError: there is none, it is not one, or it is damaged.
    """
    path, damaged = Path(path), list[str]()
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give a checkpoint, or the folder of a training")
        try:
            return _checkpoint_of(read_torch_file(path), path)
        except TorchFileError as error:
            advice = "give the folder of its training to take the newest checkpoint that can be read"
            raise TorchFileError(f"{error}; {advice}") from error
    for one in reversed(list_checkpoints(path)):
        try:
            checkpoint = _checkpoint_of(read_torch_file(one), one)
        except (DtoError, OSError) as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            _LOG.warning("%s; taking %s instead", reason, one)
        return checkpoint
    if not damaged:
        raise CheckpointError(f"{path} holds no {FOLDER}/step-*.pt; give a training's folder or a checkpoint file")
    raise CheckpointError(f"no checkpoint can be read: {'; '.join(damaged)}; remove them to train anew")


def _checkpoint_of(content: Any, path: Path) -> Checkpoint:
    if isinstance(content, dict) and content.get("format") == _BEFORE:
        raise CheckpointError(
            f"{path} holds the network of version 0.3.0, which this one has not; train anew, or use 0.3.0"
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not in the format {FORMAT}; was it written by another program or version?")
    position = content.get("position")
    steps = [field.name for field in fields(Position)]
    told = position if isinstance(position, dict) else dict.fromkeys(steps, 0)
    missing = [name for name in _KINDS if name not in content]
    missing += [f"position.{name}" for name in steps if name not in told]
    odd = [key for key, kind in _KINDS.items() if key in content and not isinstance(content[key], kind)]
    odd += [f"position.{key}" for key in steps if key in told and (type(told[key]) is not int or told[key] < 0)]
    if odd:
        raise CheckpointError(f"{path}: {', '.join(odd)} is of no type that a training writes; is the file whole?")
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; was it written by another version?")
    try:
        config = train_config_from_dict(content["config"])
    except (ConfigError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be used: {error}") from error
    own = {"config": config, "position": Position(*(told[name] for name in steps)), "path": path}
    return Checkpoint(**{name: content[name] for name in _KINDS} | own)


def restore_network(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> MeshNetwork:
    """The trained network, ready to predict; needs no other file.

    Raises:
        CheckpointError: the weights are not those of the network that the checkpoint describes.
    """
    where = str(checkpoint.path or "the checkpoint")
    try:
        network = make_fitting(lambda: make_network(checkpoint.config), plain_weights(checkpoint.weights, where), where)
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    return network.eval().to(device)


def library_versions() -> dict[str, str]:
    """What made a checkpoint."""
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"dto_pipeline": dto_pipeline.__version__} | libraries
