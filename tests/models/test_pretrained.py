"""One loader for all networks: weights that do not fit are refused by name, for masks, ages, encoders and our own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from dto_pipeline.config import AttributeConfig, MaskConfig
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.models.networks import ModelError, ModelReference
from dto_pipeline.models.people_networks import InstanceNetwork, build_attribute_models
from dto_pipeline.models.pretrained import check_weights, load_dinov2
from dto_pipeline.train.config import train_config_from_dict
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
        with pytest.raises(ModelError, match=rf"missing \(1\): {name}.*random numbers would stand in"):
            load(folder)


def test_a_head_of_another_task_is_no_harm_to_an_encoder(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = weights["encoder.layer.1.norm2.weight"].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder_of(folder)


@pytest.mark.parametrize(
    "weights",
    [None, [1], {"a": 1}, {1: torch.ones(1)}, {"a": torch.eye(2).to_sparse()}, {"a": torch.tensor([float("nan")])}],
)
def test_what_is_no_dict_of_tensors_is_refused(weights: object) -> None:
    with pytest.raises(ModelError, match=r"a\.pt: "):
        check_weights(weights, "a.pt")


def test_a_description_of_ten_million_layers_costs_nothing() -> None:
    start = time.monotonic()
    for section, key, value in (
        ("encoder", "layers", 10_000_000),
        ("encoder", "width", 1 << 30),
        ("data", "input_size", 56 << 20),
        ("encoder", "heads", 0),
        ("model", "hidden", 1e9),
        ("model", "queries", [1] * 100_000),
        ("model", "camera", "yes"),
    ):
        with pytest.raises(ConfigError, match=key):
            train_config_from_dict({section: {key: value}})
    assert time.monotonic() - start < 10
