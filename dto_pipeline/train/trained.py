"""A checkpoint made ready to predict: network, body model and what a record of predictions names.

Knows checkpoints and body models; knows no picture.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from dto_pipeline.config import STAND_IN_BODY, BodyConfig
from dto_pipeline.data.torch_files import read_torch_file
from dto_pipeline.models.body import BodyModelError, load_body
from dto_pipeline.train.checkpoint import read_checkpoint, restore_network
from dto_pipeline.train.predict import Trained
from dto_pipeline.train.released import build_released, clean_names, hash_weights


def load_trained(
    path: str | Path, device: torch.device, body_path: str | Path | None = None, encoder_heads: int | None = None
) -> Trained:
    """Read weights to predict with.

    Args:
        path: checkpoint file, a training's folder (its newest that can be read), or a released file of weights.
        device: where the network shall compute.
        body_path: the body model of the training where it lies now; None = as in the training's config. A released
            file names none.
        encoder_heads: of a released file, whose shapes do not tell it; None = one per 64 features.

    Raises:
        CheckpointError, TorchFileError, ReleasedError: there are no weights, or they cannot be used.
        BodyModelError: the body model cannot be read, or is another one than the network was trained with.
    """
    content = None if Path(path).is_dir() or not Path(path).exists() else read_torch_file(Path(path))
    if isinstance(content, dict) and content and "format" not in content:
        return _load_released(clean_names(content, str(path)), str(path), device, body_path, encoder_heads)
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
        by_image=checkpoint.config.model.prune_by_image,
        origin=f"{checkpoint.path}, step {checkpoint.position.step}",
    )


def _load_released(
    weights: dict[str, torch.Tensor], path: str, device: torch.device, body_path: str | Path | None, heads: int | None
) -> Trained:
    """A released network; each image for itself, so that its people do not depend on its neighbours."""
    if body_path is None:
        raise BodyModelError(f"{path} is a released file, which names no body model; name its own with --body")
    network = build_released(weights, path, heads).eval().to(device)
    knobs = BodyConfig(model_path=str(body_path))
    size = network.size
    return Trained(
        network=network,
        body=load_body(knobs.model_path, knobs.kid_axis),
        body_config=knobs,
        input_size=size.input_size,
        sha256=hash_weights(weights),
        device=device,
        by_image=True,
        origin=(
            f"{path}: S {size.input_size}, encoder of {size.encoder_layers} layers, width {size.encoder_width}, "
            f"{size.encoder_heads} heads, {size.queries} queries, {size.betas} shape coefficients"
        ),
    )
