"""Networks that a file describes: compared with the weights' shapes before anything of them is made.

Knows no architecture and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from dto_pipeline.models.networks import ModelError

_Network = TypeVar("_Network", bound=nn.Module)
_SHOWN = 3  # differing weights that a message lists


def plain_weights(found: Any, where: str) -> dict[str, torch.Tensor]:
    """The same dict, if it maps names to dense tensors of finite numbers.

    Raises:
        ModelError: it holds something else, named.
    """
    if not isinstance(found, dict):
        raise ModelError(f"{where}: its weights are a {type(found).__name__}; expected names of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise ModelError(f"{where}: the weight {name!r:.80} is no dense tensor; is the file whole?")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{where}: the weight {name!r:.80} holds numbers that are not finite; take another one")
    return found


def make_fitting(make: Callable[[], _Network], weights: Mapping[str, torch.Tensor], where: str) -> _Network:
    """The network with these weights, made only where every name and shape is right.

    Args:
        make: builds the network untrained; called first without memory for its tensors (on torch's meta device).

    Raises:
        ModelError: the weights are not those of the network; the message names the first that differ.
    """
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    faults = {
        "Missing keys": [name for name in expected if name not in found],
        "unexpected keys": [name for name in found if name not in expected],
        "other shapes": [
            f"{name} {found[name]}, expected {expected[name]}"
            for name in expected.keys() & found.keys()
            if found[name] != expected[name]
        ],
    }
    if any(faults.values()):
        told = (
            f"{kind} ({len(names)}): {', '.join(sorted(names)[:_SHOWN])}" for kind, names in faults.items() if names
        )
        raise ModelError(f"{where} does not fit its own config: {'; '.join(told)}")
    network = make()
    network.load_state_dict(dict(weights))
    return network
