"""Tiny networks with random weights, saved to folders by transformers itself, for tests that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)


def save_depth_anything(folder: Path, metric: bool = False, seed: int = 0, layers: int = 4) -> Path:
    """Depth Anything with one attention head; its last bias is raised so that the output is above zero."""
    torch.manual_seed(seed)
    backbone: dict[str, Any] = {
        "image_size": 56, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 1,
        "out_indices": list(range(layers - 3, layers + 1)), "reshape_hidden_states": False,
    }  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**backbone), reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=4, head_hidden_size=4, depth_estimation_type="metric" if metric else "relative",
        max_depth=20 if metric else 1,
    )  # fmt: skip
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():  # larger than the tiny defaults, so that pixels matter
            if name.startswith(("head", "neck")) and weight.ndim > 1:
                weight.normal_(0, 0.3)
        list(network.head.conv3.parameters())[1].fill_(3.0)
    network.save_pretrained(folder)
    return folder


def save_depth_pro(folder: Path) -> Path:
    """Depth Pro whose patches are 32 px: it sees squares of 128 px."""
    torch.manual_seed(0)
    vit = {
        "model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 32,
        "patch_size": 8, "mlp_ratio": 2, "use_mask_token": False,
    }  # fmt: skip
    config = DepthProConfig(
        patch_size=32, fusion_hidden_size=8, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.25, 0.5, 1], scaled_images_overlap_ratios=[0.0, 0.5, 0.25],
        scaled_images_feature_dims=[8, 8, 8], use_fov_model=True, num_fov_head_layers=0,
        image_model_config=vit, patch_model_config=vit, fov_model_config=vit,
    )  # fmt: skip
    network = DepthProForDepthEstimation(config)
    network.save_pretrained(folder)
    return folder


def save_mask2former(folder: Path, labels: tuple[str, ...] = ("person", "dog")) -> Path:
    """Mask2Former with five queries."""
    torch.manual_seed(0)
    swin: dict[str, Any] = {
        "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**swin), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        num_queries=5,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: tuple[str, ...], seed: int = 0) -> Path:
    """A vision transformer that classifies images of 32 px."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    network = ViTForImageClassification(config)
    with torch.no_grad():
        next(iter(network.classifier.parameters())).normal_(0, 1.0)
    network.save_pretrained(folder)
    return folder
