"""Recorded numbers of the published Metric-Aware HMR: network, training step, losses, labels, evaluation, weights.

Runs on any folder of that format (``state_dict.csv`` with ``golden/``, or the latter alone); what the files say decides
sizes, cases and weights. A missing file is a failure of its own, and so is a recorded group that no rule here knows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from dto_pipeline.lab.golden_case import CaseResult, check_case
from dto_pipeline.lab.golden_mahmr_data import check_augment_case, check_eval_cases
from dto_pipeline.lab.golden_mahmr_losses import check_loss_case
from dto_pipeline.lab.golden_mahmr_network import Recording, check_network
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.train.checkpoint import IGNORED
from dto_pipeline.train.config import EncoderConfig, ModelConfig
from dto_pipeline.train.model import MeshNetwork

FAMILY = "mahmr"
WEIGHTS, NAMES = "tiny_checkpoint.safetensors", "state_dict.csv"
CASES = ("network_cases", "loss_cases", "augment_cases", "eval_cases")
_SIDE = 1288  # S, as published [px]
_STAGES = {
    "stage1": ModelConfig(betas=10, camera=False, denoising=10),
    "stage2": ModelConfig(betas=10),
    "stage3": ModelConfig(betas=11),
}


def check_mahmr_cases(folder: Path) -> list[CaseResult]:
    """Every recorded case of a folder, none where it holds no file of this family."""
    inner = folder / "golden" if (folder / "golden").is_dir() and (folder / NAMES).exists() else folder
    needed = [WEIGHTS, *(f"{name}.{kind}" for name in CASES for kind in ("json", "npz"))]
    there = [name for name in needed if (inner / name).is_file()]
    names = next((place / NAMES for place in (folder, inner.parent) if (place / NAMES).is_file()), None)
    if not there and not (folder / NAMES).is_file():
        return []
    results = [
        CaseResult(
            FAMILY, f"files/{name}", "", (f"{inner / name} is missing; the family cannot be proven without it",), {}
        )
        for name in needed
        if name not in there
    ]
    if names is not None:
        results += [_case(f"names/{stage}", partial(_check_names, names, stage)) for stage in _STAGES]
    body = load_body(inner / "body" if (inner / "body").is_dir() else "demo")
    readers: dict[str, Callable[[dict, dict], list[CaseResult]]] = {
        "network_cases": lambda said, arrays: check_network(_recording(inner, said, arrays, body)),
        "loss_cases": lambda said, arrays: _each(said["cases"], arrays, "loss", check_loss_case),
        "augment_cases": lambda said, arrays: _each(
            said, arrays, "augment", lambda name, case, own: check_augment_case(name, case, own, body)
        ),
        "eval_cases": check_eval_cases,
    }
    for name, check in readers.items():
        wanted = {f"{name}.json", f"{name}.npz"} | ({WEIGHTS} if name == "network_cases" else set())
        if wanted <= set(there):
            results += _run(name, inner, check)
    return results


def _run(name: str, folder: Path, check: Callable[[dict, dict], list[CaseResult]]) -> list[CaseResult]:
    """The cases of a pair of files; files that cannot be understood are one failure."""
    try:
        said = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        return check(said, arrays)
    except Exception as error:  # the other files' results must stand
        return [CaseResult(FAMILY, name, "", (f"cannot be run: {type(error).__name__}: {error}",), {})]


def _each(
    cases: Mapping[str, Any], arrays: Mapping[str, np.ndarray], kind: str,
    check: Callable[[str, Mapping[str, Any], dict[str, np.ndarray]], CaseResult],
) -> list[CaseResult]:  # fmt: skip
    results = []
    for name, case in cases.items():
        own = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        results.append(_case(f"{kind}/{name}", partial(check, name, case, own)))
    strangers = sorted({key.partition("/")[0] for key in arrays} - set(cases))
    return results + [
        CaseResult(FAMILY, f"{kind}/{name}", "", ("has arrays, but no entry in the JSON",), {}) for name in strangers
    ]


def _case(name: str, check: Callable[[], CaseResult]) -> CaseResult:
    return check_case(FAMILY, name, "", check)


def _recording(folder: Path, said: dict[str, Any], arrays: dict[str, np.ndarray], body: BodyModel) -> Recording:
    weights = load_file(folder / WEIGHTS)
    regressor = np.load(str(files("dto_pipeline.assets") / "J_regressor_extra.npy"), allow_pickle=False)
    return Recording(said, arrays, weights, body, torch.from_numpy(regressor).float())


def _check_names(path: Path, stage: str) -> CaseResult:
    """Names and shapes of a full-size network against the list, but for what is no weight of it."""
    with torch.device("meta"):
        network = MeshNetwork(EncoderConfig(), _STAGES[stage], _SIDE)
    found = {name: "x".join(map(str, value.shape)) for name, value in network.state_dict().items()}
    recorded = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            shape = row.get(f"shape_{stage}") or row["shape_stage3"]
            if shape != "absent" and not IGNORED.match(row["name"]):
                recorded[row["name"]] = shape
    failures = [f"{name} is missing here" for name in recorded if name not in found]
    failures += [f"{name} is no recorded name" for name in found if name not in recorded]
    failures += [
        f"{name} has shape {found[name]}, recorded {shape}"
        for name, shape in recorded.items()
        if name in found and found[name] != shape
    ]
    return CaseResult(FAMILY, f"names/{stage}", "", tuple(failures), {})
