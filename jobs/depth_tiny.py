"""Networks of Depth Anything's architecture, built from scratch: the demo's small one, and one as large as V2 Large.

Their output is disparity, larger is nearer, zero or more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, Dinov2Model

HIDDEN = 192  # width of the backbone
LAYERS = 6
_FIRST_OUTPUT = 0.5  # bias of the last layer, so that an untrained network's output is above zero


def build_tiny_network(hidden: int = HIDDEN, layers: int = LAYERS) -> DepthAnythingForDepthEstimation:
    """An untrained network; torch's global generator draws the weights.

    Args:
        hidden: width of the backbone, a multiple of 64 (one attention head each) or less than that (one head).
        layers: depth of the backbone, at least 4; features are taken after four of them.
    """
    neck = [hidden // 8, hidden // 4, hidden // 2, hidden // 2]
    outputs = [layers * quarter // 4 for quarter in range(1, 5)]
    return _build((224, hidden, layers, outputs), neck, fusion=32, head=16)


def build_large_network() -> DepthAnythingForDepthEstimation:
    """Depth Anything V2 Large, untrained."""
    return _build((518, 1024, 24, [5, 12, 18, 24]), [256, 512, 1024, 1024], fusion=256, head=32)


def _build(
    backbone: tuple[int, int, int, list[int]], neck: list[int], fusion: int, head: int
) -> DepthAnythingForDepthEstimation:
    """`backbone`: picture side [px], width, depth, and the layers after which features are taken."""
    side, hidden, layers, outputs = backbone
    dino: dict[str, Any] = {
        "image_size": side,
        "patch_size": 14,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 64),
        "out_indices": outputs,
        "reshape_hidden_states": False,
        "use_mask_token": False,
    }
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**dino),
        reassemble_hidden_size=hidden,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_hidden_size=head,
    )
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for bias in network.head.conv3.parameters():
            if bias.ndim == 1:
                bias.fill_(_FIRST_OUTPUT)
    return network


def save_tiny_network(network: DepthAnythingForDepthEstimation, folder: str | Path, output_scale: float = 1.0) -> None:
    """Write config.json and float16 model.safetensors.

    Args:
        network: as trained; its head is changed in place.
        folder: made if missing.
        output_scale: the saved network's output is this many times the trained one's.
    """
    with torch.no_grad():
        for part in network.head.conv3.parameters():
            part.mul_(output_scale)
    network.half().save_pretrained(folder)
    for file in Path(folder).iterdir():
        file.chmod(0o644)  # transformers writes weights for their owner only


def save_backbone(network: str | Path, folder: str | Path, layers: int = LAYERS) -> None:
    """Write the first layers of the DINOv2 inside a saved depth network as a network of its own, float32.

    Args:
        network: folder written by `save_tiny_network`.
        folder: made if missing.
        layers: how many; the last ones of a depth network hold more about depth than about people.
    """
    backbone = DepthAnythingForDepthEstimation.from_pretrained(network, dtype=torch.float32).backbone
    kept = backbone.config.to_dict() | {"num_hidden_layers": layers, "out_features": None, "out_indices": None}
    alone = Dinov2Model(Dinov2Config.from_dict(kept))
    wanted = alone.state_dict()
    alone.load_state_dict({name: weight for name, weight in backbone.state_dict().items() if name in wanted})
    alone.save_pretrained(folder)
