"""One door for all networks: what its files lack is refused by name, for masks, ages and encoders as for depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from dto_pipeline.config import AttributeConfig, MaskConfig
from dto_pipeline.models.attribute_models import build_attribute_models
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.pretrained import load_dinov2
from dto_pipeline.models.segmentation import InstanceNetwork
from tests.tiny_models import save_classifier, save_mask2former


def save_encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=28)
    ).save_pretrained(folder)
    return folder


def load_masks(folder: Path) -> object:
    return InstanceNetwork(MaskConfig(source="model", model=str(folder)))


def load_ages(folder: Path) -> object:
    return build_attribute_models(AttributeConfig(source="model", model=str(folder)), "cpu")


def load_encoder_of(folder: Path) -> object:
    return load_dinov2(ModelReference(str(folder), option="model"))


KINDS = {
    "masks": (save_mask2former, load_masks, "class_predictor.weight"),
    "attributes": (lambda folder: save_classifier(folder, ("0-9", "20-29")), load_ages, "classifier.bias"),
    "encoder": (save_encoder, load_encoder_of, "encoder.layer.1.norm2.weight"),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_lost_or_renamed_weight_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    save, load, name = KINDS[kind]
    folder = save(tmp_path / kind)
    load(folder)
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop(name)
    for left in (weights, {**weights, f"other.{name}": lost}):
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"lacks {name}.*random numbers would stand in"):
            load(folder)


def test_a_head_of_another_task_is_no_harm_to_an_encoder(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = weights["encoder.layer.1.norm2.weight"].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder_of(folder)
