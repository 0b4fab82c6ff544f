"""Checkpoints: one file that holds everything needed to go on training or to predict, and how the newest is found.

Knows files and state dicts. A checkpoint appears under its name in one step, so a killed writer leaves none that is
half; it is read with `weights_only`, so it cannot run code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dto_pipeline
from dto_pipeline.data.files import commit_over, staged
from dto_pipeline.data.torch_files import read_torch_file
from dto_pipeline.errors import DtoError
from dto_pipeline.models.encoder import EncoderShape, build_encoder, load_encoder, restore_encoder
from dto_pipeline.models.networks import ModelReference
from dto_pipeline.train.config import TrainConfig, train_config_from_dict
from dto_pipeline.train.model import MeshNetwork

FORMAT = "dto-checkpoint/1"
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})\.pt")
_KEPT = 2  # newest checkpoints of a training: the one in use and the one before, should a disk fail


class CheckpointError(DtoError, ValueError):
    """A file that is no checkpoint of this program, or a folder without any."""


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
    """Write ``checkpoints/step-N.pt`` below a training's folder and drop all but the newest."""
    path = folder / FOLDER / f"step-{checkpoint.position.step:08d}.pt"
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
    with staged(path) as temporary:
        torch.save(content, temporary)
        commit_over(temporary, path)
    for old in list_checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training, oldest first."""
    return sorted(path for path in (folder / FOLDER).glob("step-*.pt") if _NAME.fullmatch(path.name))


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint file, or the newest of a training's folder.

    Raises:
        CheckpointError, TorchFileError: there is none, it is not one, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = list_checkpoints(path)
        if not found:
            raise CheckpointError(f"{path} holds no {FOLDER}/step-*.pt; give a training's folder or a checkpoint file")
        path = found[-1]
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint, or the folder of a training")
    content = read_torch_file(path, device)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not in the format {FORMAT}; was it written by another program or version?")
    return Checkpoint(
        config=train_config_from_dict(content["config"]),
        encoder=content["encoder"],
        weights=content["weights"],
        optimizer=content["optimizer"],
        position=Position(**content["position"]),
        versions=content["versions"],
        body_sha256=content["body_sha256"],
    )


def restore_network(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> MeshNetwork:
    """The trained network, ready to predict; needs no other file."""
    network = MeshNetwork(checkpoint.config.model, restore_encoder(checkpoint.encoder))
    network.load_state_dict(checkpoint.weights)
    return network.eval().to(device)


def library_versions() -> dict[str, str]:
    """What made a checkpoint."""
    libraries = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"dto_pipeline": dto_pipeline.__version__} | libraries
