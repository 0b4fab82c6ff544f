"""Recorded maps of Depth Anything V2's own code (`depth/depth_cases.npz`): input, positions and maps, each compared.

The tiny network of the file is saved to a folder as transformers saves one and goes through `DepthNetwork`, as any
other. The file's README lists the arrays and proposes the tolerances.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.config import DepthConfig
from dto_pipeline.lab.golden_case import CaseResult, check_case
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.depth_kinds import METRES_PER_DEPTH
from dto_pipeline.models.depth_tiny import write_network

LIMITS = {"network_input": 1e-4, "positions": 1e-5, "relative": 2e-5, "metric": 2e-5}
_LEAST_SHARE = 0.1  # of the mean: smaller values count as this much in relative errors
_KINDS = ("relative", "metric")


def check_depth_cases(folder: Path) -> list[CaseResult]:
    """Run every image and size of `folder`/depth/depth_cases.npz; an empty list where there is none."""
    path = folder / "depth" / "depth_cases.npz"
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind: save_network(arrays, kind, Path(scratch) / kind) for kind in _KINDS}
        return [
            check_case("depth", f"{image}/{side}", "map", partial(_check, arrays, folders, image, side))
            for image, side in sorted({_split(name) for name in arrays if name.endswith("/network_size")})
        ]


def save_network(arrays: dict[str, np.ndarray], kind: str, folder: Path) -> Path:
    """The recorded network as a folder that transformers reads; the metric one differs in its last layer."""
    weights: dict[str, np.ndarray] = {}
    for part in dict.fromkeys(("relative", kind)):
        prefix = f"{part}/weights/"
        weights |= {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    write_network(folder, json.loads(str(arrays[f"{kind}/config"])), weights)
    return folder


def _check(arrays: dict[str, np.ndarray], folders: dict[str, Path], image: str, side: int) -> CaseResult:
    pixels, recorded = arrays[f"image/{image}"], f"{image}/{side}"
    networks = {
        kind: DepthNetwork(DepthConfig(source="model", model=str(folder), short_side=side))
        for kind, folder in folders.items()
    }
    network = networks["relative"]
    size = network.recipe.size(*pixels.shape[:2])
    failures = []
    if size != tuple(arrays[f"{recorded}/network_size"]):
        failures.append(f"the network sees {size}, recorded is {tuple(arrays[f'{recorded}/network_size'])}")
    found: dict[str, Any] = {"positions": network.positions_at(size)}
    if f"{recorded}/network_input" in arrays:
        found["network_input"] = network.recipe.prepare(torch.from_numpy(pixels)[None], size)[0].numpy()
    errors = {name: _largest(values, arrays[f"{recorded}/{name}"]) for name, values in found.items()}
    for kind in _KINDS:
        (disparity,) = networks[kind].estimate([pixels])
        assert isinstance(disparity, np.ndarray), disparity
        values = METRES_PER_DEPTH / disparity if kind == "metric" else disparity
        errors[kind] = _relative(values, arrays[f"{recorded}/{kind}"])
    failures += [f"{name} off by {error:.1e}" for name, error in errors.items() if not error <= LIMITS[name]]
    return CaseResult("depth", recorded, "map", tuple(failures), errors, {name: LIMITS[name] for name in errors})


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.maximum(expected, _LEAST_SHARE * expected.mean())).max())


def _split(name: str) -> tuple[str, int]:
    image, side, *_ = name.split("/")
    return image, int(side)
