"""Checkpoints: one file that holds everything needed to go on training or to predict, and how the newest is found.

Knows files and state dicts. A checkpoint appears under its name in one step, so a killed writer leaves none that is
half; it is read by an unpickler that runs nothing, and its checksums are compared. Where the newest cannot be
read, the one before it takes its place, and a sentence says so.
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
from dto_pipeline.config import ConfigError
from dto_pipeline.data.files import is_temporary
from dto_pipeline.data.torch_files import TorchFileError, read_torch_file, write_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.models.encoder import EncoderShape, build_encoder, load_encoder, restore_encoder
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.stored_networks import check_bounds, make_fitting, plain_weights
from dto_pipeline.train.config import TrainConfig, stored_config
from dto_pipeline.train.model import MeshNetwork

FORMAT = "dto-checkpoint/1"
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})\.pt")
DAMAGED = ".damaged"  # behind the name of a checkpoint that was set aside because it could not be read
_KEPT = 2  # newest checkpoints of a training: the one in use and the one before, should a disk fail
_BOUNDS = {"queries": (1, 10_000), "width": (8, 4096), "heads": (1, 128), "layers": (1, 100)}  # of a stored network
_KINDS = {"position": dict, "versions": dict, "optimizer": dict, "encoder": dict, "weights": dict, "body_sha256": str}
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

    config: TrainConfig
    encoder: dict[str, Any]  # architecture, see `Encoder.describe`
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    position: Position
    versions: dict[str, str]
    body_sha256: str  # of the body model trained with
    path: Path | None = None  # where it was read from


def build_network(config: TrainConfig) -> MeshNetwork:
    """A network before training; torch's global generator draws what is not loaded.

    Raises:
        ModelMissing, ModelError: the encoder cannot be had as the config says.
    """
    knobs = config.encoder
    if knobs.model:
        encoder = load_encoder(ModelReference(knobs.model, knobs.revision, knobs.offline, knob="encoder"))
    else:
        shape = EncoderShape(knobs.width, knobs.layers, knobs.heads, knobs.patch, config.data.input_size)
        encoder = build_encoder(shape)
    if config.data.input_size % encoder.patch:
        found = f"data.input_size is {config.data.input_size}"
        raise CheckpointError(f"{found}, no multiple of the encoder's patch of {encoder.patch} px; choose one")
    return MeshNetwork(config.model, encoder)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoints/step-N.pt`` below a training's folder and drop all but the newest.

    Raises:
        CheckpointError: the disk is full or cannot be written; the checkpoints that are there stay.
    """
    path = checkpoint_file(folder, checkpoint.position.step)
    content = {
        "format": FORMAT,
        "config": checkpoint.config.to_dict(),
        "encoder": checkpoint.encoder,
        "weights": checkpoint.weights,
        "optimizer": checkpoint.optimizer,
        "position": vars(checkpoint.position),
        "versions": checkpoint.versions,
        "body_sha256": checkpoint.body_sha256,
    }
    try:
        write_torch_file(path, content)
    except OSError as error:
        there = list_checkpoints(folder)
        after = f"go on from {there[-1].name}, which is whole" if there else "begin anew: there is no earlier one"
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}; make room, or make it writable, and start again to {after}"
        ) from error
    for old in list_checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return path


def checkpoint_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / FOLDER / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training, oldest first."""
    return sorted(path for path in (folder / FOLDER).glob("step-*.pt") if _NAME.fullmatch(path.name))


def list_damaged(folder: Path) -> list[Path]:
    """Checkpoints of a training that were set aside by `take_up`."""
    return sorted((folder / FOLDER).glob(f"step-*.pt{DAMAGED}"))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or the newest of a training's folder that can be read; tensors are on the CPU.

    Raises:
        CheckpointError, TorchFileError: there is none, it is not one, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        checkpoint, damaged = _read_newest(path)
        for reason in damaged.values():
            _LOG.warning("%s; taking %s instead", reason, checkpoint.path)
        return checkpoint
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint, or the folder of a training")
    try:
        return _read_file(path)
    except TorchFileError as error:
        advice = "give the folder of its training to take the newest checkpoint that can be read"
        raise TorchFileError(f"{error}; {advice}") from error


def take_up(folder: Path) -> Checkpoint | None:
    """What a training goes on from: its newest checkpoint that can be read; None where there is none yet.

    Newer ones that cannot be read are set aside as ``step-N.pt.damaged``, and what killed writers left is removed: only
    the one process that writes checkpoints may call this.

    Raises:
        CheckpointError: there are checkpoints, but none can be read. They stay as they are.
    """
    for leftover in (folder / FOLDER).glob(".step-*"):
        if is_temporary(leftover.name):
            leftover.unlink()
    if not list_checkpoints(folder):
        return None
    checkpoint, damaged = _read_newest(folder)
    for path, reason in damaged.items():
        aside = path.with_name(path.name + DAMAGED)
        path.replace(aside)
        used = checkpoint_file(folder, checkpoint.position.step).name
        _LOG.warning("%s; it is kept as %s, and training goes on from %s instead", reason, aside.name, used)
    return checkpoint


def _read_newest(folder: Path) -> tuple[Checkpoint, dict[Path, str]]:
    """The newest checkpoint that can be read, and why newer ones cannot."""
    damaged: dict[Path, str] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            return _read_file(path), damaged
        except (DtoError, OSError) as error:
            damaged[path] = str(error)
    if not damaged:
        raise CheckpointError(f"{folder} holds no {FOLDER}/step-*.pt; give a training's folder or a checkpoint file")
    raise CheckpointError(f"no checkpoint can be read: {'; '.join(damaged.values())}; remove them to train anew")


def _read_file(path: Path) -> Checkpoint:
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not in the format {FORMAT}; was it written by another program or version?")
    missing = [field.name for field in fields(Checkpoint) if field.name not in (*content, "path")]
    if isinstance(position := content.get("position"), dict):
        missing += [f"position.{field.name}" for field in fields(Position) if field.name not in position]
    odd = [key for key, kind in _KINDS.items() if key in content and not isinstance(content[key], kind)]
    odd += [f"position.{key}" for key, value in _numbers(position) if type(value) is not int or value < 0]
    if odd:
        raise CheckpointError(f"{path}: {', '.join(odd)} is of no type that a training writes; is the file whole?")
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; was it written by another version?")
    try:
        config = stored_config(content["config"])
    except (ConfigError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its config cannot be used: {error}") from error
    return Checkpoint(
        config=config,
        encoder=content["encoder"],
        weights=content["weights"],
        optimizer=content["optimizer"],
        position=Position(**{field.name: content["position"][field.name] for field in fields(Position)}),
        versions=content["versions"],
        body_sha256=content["body_sha256"],
        path=path,
    )


def _numbers(position: Any) -> list[tuple[str, Any]]:
    return [(f.name, position[f.name]) for f in fields(Position) if isinstance(position, dict) and f.name in position]


def restore_network(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> MeshNetwork:
    """The trained network, ready to predict; needs no other file.

    Raises:
        CheckpointError: the weights are not those of the network that the checkpoint describes.
    """
    where, config = str(checkpoint.path or "the checkpoint"), checkpoint.config.model
    try:
        check_bounds(vars(config), _BOUNDS, f"{where}: its model")
        weights = plain_weights(checkpoint.weights, where)
        network = make_fitting(lambda: MeshNetwork(config, restore_encoder(checkpoint.encoder)), weights, where)
    except ModelError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(where) else f"{where}: {text}") from error
    return network.eval().to(device)


def library_versions() -> dict[str, str]:
    """What made a checkpoint."""
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"dto_pipeline": dto_pipeline.__version__} | libraries
