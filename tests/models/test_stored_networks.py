"""Networks that a file describes: nothing is built that its weights do not fill."""

from __future__ import annotations

import re
import time

import pytest
import torch
from torch import nn

from dto_pipeline.config_tree import ConfigError
from dto_pipeline.models.networks import ModelError
from dto_pipeline.models.stored_networks import make_fitting, plain_weights
from dto_pipeline.train.config import train_config_from_dict


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_weights_that_fit_come_back_in_the_network() -> None:
    weights = make().state_dict()
    again = make_fitting(make, weights, "x")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"0.bias": None}, "Missing keys (1): 0.bias"),
        ({"more": torch.ones(1)}, "unexpected keys (1): more"),
        ({"0.weight": torch.ones(4, 4)}, "other shapes (1): 0.weight (4, 4), expected (4, 3)"),
    ],
)
def test_weights_of_another_network_are_named(changes: dict[str, torch.Tensor | None], mentions: str) -> None:
    changed = {**make().state_dict(), **changes}
    weights = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(ModelError, match=re.escape(mentions)):
        make_fitting(make, weights, "a.pt")


def test_a_network_that_does_not_fit_takes_no_memory() -> None:
    def huge() -> nn.Module:
        return nn.Linear(1 << 20, 1 << 20)  # 4 TiB

    with pytest.raises(ModelError, match="other shapes"):
        make_fitting(huge, {"weight": torch.ones(1), "bias": torch.ones(1)}, "a.pt")


@pytest.mark.parametrize(
    "weights",
    [None, [1], {"a": 1}, {1: torch.ones(1)}, {"a": torch.eye(2).to_sparse()}, {"a": torch.tensor([float("nan")])}],
)
def test_what_is_no_dict_of_tensors_is_refused(weights: object) -> None:
    with pytest.raises(ModelError, match=r"a\.pt: "):
        plain_weights(weights, "a.pt")


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
