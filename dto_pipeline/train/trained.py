"""A checkpoint made ready to predict: network, body model and what a record of predictions names.

Knows checkpoints and body models; knows no picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch

from dto_pipeline.config import STAND_IN_BODY
from dto_pipeline.models.body import BodyModelError, load_body
from dto_pipeline.train.checkpoint import read_checkpoint, restore_network
from dto_pipeline.train.predict import Trained


def load_trained(path: str | Path, device: torch.device, body_path: str | Path | None = None) -> Trained:
    """Read a checkpoint to predict with.

    Args:
        path: checkpoint file, or a training's folder (its newest that can be read).
        device: where the network shall compute.
        body_path: the body model of the training where it lies now; None = as in the training's config.

    Raises:
        CheckpointError, TorchFileError: there is no checkpoint, or it cannot be read.
        BodyModelError: the body model cannot be read, or is another one than the network was trained with.
    """
    checkpoint = read_checkpoint(path)
    knobs = checkpoint.config.body
    if body_path is not None:
        knobs = dataclasses.replace(knobs, model_path=str(body_path))
    if not knobs.model_path:  # until 0.3.0 a training that named none had the stand-in
        knobs = dataclasses.replace(knobs, model_path=STAND_IN_BODY)
    body = load_body(knobs.model_path, knobs.kid_axis)
    if body.sha256 != checkpoint.body_sha256:
        found = f"sha256 {body.sha256[:16]}, the network was trained with {checkpoint.body_sha256[:16]}"
        raise BodyModelError(f"the body model has {found}; name the right one with --body")
    return Trained(
        network=restore_network(checkpoint, device),
        body=body,
        body_config=knobs,
        input_size=checkpoint.config.data.input_size,
        sha256=hash_weights(checkpoint.weights),
        device=device,
        origin=f"{checkpoint.path}, step {checkpoint.position.step}",
    )


def hash_weights(weights: dict[str, torch.Tensor]) -> str:
    """sha256 (hex) over names and values, the same wherever and however they were stored."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
