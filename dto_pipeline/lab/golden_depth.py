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
from dto_pipeline.lab.golden_case import CaseResult, check_case, differences, judge, read_arrays
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
    arrays = read_arrays(path)
    recorded = {tuple(name.split("/")[:2]) for name in arrays if name.endswith("/network_size")}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind: save_network(arrays, kind, Path(scratch) / kind) for kind in _KINDS}
        return [
            check_case("depth", f"{image}/{side}", "map", partial(_check, arrays, folders, image, int(side)))
            for image, side in sorted(recorded, key=lambda case: (case[0], int(case[1])))
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
    failures = differences({"network_size": (tuple(size), tuple(arrays[f"{recorded}/network_size"].tolist()))})
    found: dict[str, Any] = {"positions": network.positions_at(size)}
    if f"{recorded}/network_input" in arrays:
        found["network_input"] = network.recipe.prepare(torch.from_numpy(pixels)[None], size)[0].numpy()
    errors = {name: float(np.abs(values - arrays[f"{recorded}/{name}"]).max()) for name, values in found.items()}
    for kind in _KINDS:
        (disparity,) = networks[kind].estimate([pixels])
        assert isinstance(disparity, np.ndarray), disparity
        values = METRES_PER_DEPTH / disparity if kind == "metric" else disparity
        expected = arrays[f"{recorded}/{kind}"]
        least = np.maximum(expected, _LEAST_SHARE * expected.mean())
        errors[kind] = float((np.abs(values - expected) / least).max())
    return judge("depth", recorded, "map", failures, errors, {name: LIMITS[name] for name in errors})
