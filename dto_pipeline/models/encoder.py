"""The image encoder of mesh networks: DINOv2 through transformers, from the hub, a folder, or untrained.

Knows transformers' configuration and weights; knows nothing of people. Images are (B, 3, H, W) in [0, 1], H and W
multiples of the patch; other sizes than the trained one interpolate the position embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Dinov2Config, Dinov2Model

from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.pretrained import load_pretrained
from dto_pipeline.models.stored_networks import check_bounds

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1], as DINOv2 was trained


_BOUNDS: dict[str, tuple[float, float]] = {  # of a stored architecture; the largest DINOv2 has 1536 x 40 x 24
    "hidden_size": (1, 4096),
    "num_hidden_layers": (1, 100),
    "num_attention_heads": (1, 128),
    "mlp_ratio": (1.0, 16.0),
    "patch_size": (1, 64),
    "image_size": (1, 4096),
    "num_channels": (3, 3),
    "layer_norm_eps": (0.0, 1.0),
    "layerscale_value": (-10.0, 10.0),
    "drop_path_rate": (0.0, 1.0),
    "hidden_dropout_prob": (0.0, 1.0),
    "attention_probs_dropout_prob": (0.0, 1.0),
    "initializer_range": (0.0, 10.0),
}
_SWITCHES = ("qkv_bias", "use_swiglu_ffn", "use_mask_token")


@dataclass(frozen=True)
class EncoderShape:
    """An untrained encoder."""

    width: int  # of tokens, a multiple of the heads
    layers: int
    heads: int
    patch: int  # side of a patch [px]
    image: int  # side of the image the position embeddings are made for [px]


class Encoder(nn.Module):
    """Image -> CLS token and a grid of patch tokens."""

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, network: Dinov2Model) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("_mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        return int(self.network.config.hidden_size)

    @property
    def patch(self) -> int:
        return self.network.config.patch_size  # type: ignore[return-value]  # one number in every DINOv2

    def describe(self) -> dict[str, Any]:
        """transformers' configuration; `restore_encoder` makes the same architecture of it without any file."""
        return self.network.config.to_dict()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) in [0, 1] -> CLS (B, C) and tokens (B, H / patch * W / patch, C), row by row."""
        tokens = self.network((image - self._mean) / self._std).last_hidden_state
        return tokens[:, 0], tokens[:, 1:]


def build_encoder(shape: EncoderShape) -> Encoder:
    """An untrained encoder; torch's global generator draws the weights."""
    config = Dinov2Config(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        patch_size=shape.patch,
        image_size=shape.image,
        use_mask_token=False,  # never used here, and a parameter without gradient stops DDP
    )
    return Encoder(Dinov2Model(config))


def load_encoder(reference: ModelReference) -> Encoder:
    """Published or local DINOv2 weights.

    Raises:
        ModelMissing, ModelError: see `load_pretrained`; also when the network is no DINOv2.
    """
    network, _ = load_pretrained(AutoModel, reference)
    if not isinstance(network, Dinov2Model):
        found = type(network).__name__
        raise ModelError(f"{reference.knob}.encoder {reference.name!r} is a {found}; expected a DINOv2 (Dinov2Model)")
    network.embeddings.mask_token = None
    network.config.use_mask_token = False
    return Encoder(network.train())


def restore_encoder(description: dict[str, Any]) -> Encoder:
    """The architecture that `Encoder.describe` told, untrained; weights come from a checkpoint.

    Only what says the architecture is taken: transformers' other keys can size tables and name code to fetch.

    Raises:
        ModelError: no such description, or numbers that no DINOv2 has.
    """
    if not isinstance(description, dict):
        raise ModelError(f"the encoder is described by a {type(description).__name__}, expected its config")
    check_bounds(description, _BOUNDS, "the encoder")
    told = {key: description[key] for key in (*_BOUNDS, *_SWITCHES) if key in description}
    for key in _SWITCHES:
        if not isinstance(told.get(key, False), bool):
            raise ModelError(f"the encoder: {key} is {told[key]!r:.80}, expected true or false")
    if description.get("hidden_act", "gelu") != "gelu":
        raise ModelError(f"the encoder: hidden_act is {description['hidden_act']!r:.80}, expected gelu, as DINOv2 has")
    config = Dinov2Config(**told)
    if config.hidden_size % config.num_attention_heads or told.get("image_size", 224) % told.get("patch_size", 14):
        raise ModelError("the encoder: its width is no multiple of its heads, or its image none of its patch")
    return Encoder(Dinov2Model(config))
