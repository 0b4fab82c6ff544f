"""DINOv2 weights through transformers, from the hub or a folder; what an encoder of `train.model` begins with."""

from __future__ import annotations

import torch
from transformers import AutoModel, Dinov2Model

from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.pretrained import load_pretrained


def load_dinov2(reference: ModelReference) -> tuple[dict[str, torch.Tensor], int]:
    """Weights by the names that the installed transformers gives them, and how many heads each layer has.

    Raises:
        ModelMissing, ModelError: see `load_pretrained`; also when the network is no DINOv2.
    """
    network, _ = load_pretrained(AutoModel, reference)
    if not isinstance(network, Dinov2Model):
        found = type(network).__name__
        raise ModelError(f"{reference.option}.encoder {reference.name!r} is a {found}; expected a DINOv2 (Dinov2Model)")
    return dict(network.state_dict()), int(network.config.num_attention_heads)
