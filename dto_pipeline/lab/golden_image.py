"""Recorded whole images (`image/`), and recorded maps of Depth Anything V2's own code (`depth/depth_cases.npz`).

Images: labels, masks and depth in, statuses and translations out. Steady cases are strict: every status, group and flag
equal, z within a few times max(z_wobble, 1e-4). The others stand or fall with a pixel of the rasteriser and are only
reported. Maps: the tiny network of the file is saved as transformers saves one and goes through `DepthNetwork` as any
other; input, positions and maps are compared. The files' READMEs list the arrays and propose the tolerances.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from dto_pipeline.axes import FAR, NUM_BETAS
from dto_pipeline.collate import collate_scenes, map_size
from dto_pipeline.config import STAND_IN_BODY, DepthConfig, PipelineConfig, config_from_dict
from dto_pipeline.lab.golden_case import CaseResult, check_case, differences, judge, read_arrays
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import METRES_PER_DEPTH
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import OUTCOMES, OptimizedScenes, Scene
from dto_pipeline.status import PersonStatus

WOBBLE_FACTOR = 3.0  # z may differ by this many times max(z_wobble, LEAST_WOBBLE), relative
LEAST_WOBBLE = 1e-4
DEVIATION_TOLERANCE = 0.02  # of the image's height deviation [sigma], on top of what z allows
_REMOVED, _UNCHANGED, _MOVED_NEAR, _MOVED_FAR = range(4)
LIMITS = {"network_input": 1e-4, "positions": 1e-5, "relative": 2e-5, "metric": 2e-5}
_LEAST_SHARE = 0.1  # of the mean: smaller values count as this much in relative errors
_KINDS = ("relative", "metric")


def check_image_cases(folder: Path, device: torch.device | str = "cpu") -> list[CaseResult]:
    """Run every case listed in `folder`/image/index.json with the body in `folder`/body; empty where there is none."""
    index = folder / "image" / "index.json"
    if not index.is_file():
        return []
    body_folder = folder / "body"
    chosen = body_folder if body_folder.is_dir() else STAND_IN_BODY
    bodies = {kid: load_body(chosen, kid_axis=kid, device=device) for kid in (False, True)}
    results = []
    for entry in json.loads(index.read_text()):
        options = {
            "prior": {"age_prior": entry["age_prior"], "gender_prior": entry["gender_prior"]},
            "solver": {"internal_constraint": entry["internal_constraint"]},
            "depth": {"unit": "published"},
        }
        optimizer = SceneOptimizer(bodies[bool(entry["kid_shape"])], config_from_dict(options))
        kind = f"{entry['scene']}/{entry['label_kind']}"
        check = partial(_check_image, index.parent / f"{entry['case']}.npz", entry, kind, optimizer)
        results.append(check_case("image", entry["case"], kind, check, entry.get("error")))
    return results


def load_image_case(path: Path, config: PipelineConfig) -> tuple[Scene, dict[str, np.ndarray]]:
    """One case as a scene, and its raw arrays."""
    case = read_arrays(path)
    height, width = (int(side) for side in case["image_size"])
    people = len(case["pose"])
    betas = np.zeros((people, NUM_BETAS), np.float32)
    betas[:, : case["betas"].shape[1]] = case["betas"]
    masks = np.unpackbits(case["masks_packed"], axis=1, count=height * width).reshape(-1, height, width).astype(bool)
    h, w = map_size(height, width, config.evidence.render_max_side)
    scene = Scene(
        image_id=f"golden/{path.stem}",
        subset="golden",
        image_path=path.stem,
        width=width,
        height=height,
        intrinsics=case["K"][0].astype(np.float64),
        pose=case["pose"],
        betas=betas,
        transl=case["trans"],
        age_years=case["age"],
        male_prob=case["male_prob"],
        source_row=np.arange(people),
        bbox_xyxy=case["bbox"],
        det_score=np.full(people, np.nan, np.float32),
        person_problem=[None] * people,
        masks=masks[:, np.arange(h) * height // h][:, :, np.arange(w) * width // w],  # at person-map size
        disparity=case["disparity"].astype(np.float32),
    )
    return scene, case


def _check_image(path: Path, entry: dict[str, Any], kind: str, optimizer: SceneOptimizer) -> CaseResult:
    scene, case = load_image_case(path, optimizer.config)
    found = optimizer(collate_scenes([scene], optimizer.body.faces.device))
    optimized = OptimizedScenes(**{name: part.to("cpu") for name, part in vars(found).items()})
    fits, group = optimized.people.fits, optimized.evidence.group[0].tolist()
    failures = differences(
        {
            "status": (_status(fits.outcome[0].tolist(), group), case["status"].tolist()),
            "group": (group, case["group"].tolist()),
            "is_optimized": (bool(fits.is_optimized[0]), bool(case["is_optimized"])),
            "used_ground_points": (bool(fits.used_ground[0]), bool(entry["used_ground_points"])),
        }
    )
    wobble = WOBBLE_FACTOR * max(float(entry["z_wobble"]), LEAST_WOBBLE)
    limits = {"z": wobble, "deviation": DEVIATION_TOLERANCE + 10 * wobble}
    result = judge("image", entry["case"], kind, failures, _number_errors(case, optimized), limits)
    return replace(result, strict=bool(entry["steady"]))


def _status(outcomes: list[int], groups: list[int]) -> list[int]:
    """Our outcomes in the cases' words: 0 removed, 1 unchanged, 2 moved near, 3 moved far."""
    words = {PersonStatus.TOO_SMALL: _REMOVED, PersonStatus.MOVED: _MOVED_NEAR}
    found = [words.get(OUTCOMES[code], _UNCHANGED) for code in outcomes]
    return [
        _MOVED_FAR if word == _MOVED_NEAR and group == FAR else word for word, group in zip(found, groups, strict=True)
    ]


def _number_errors(case: dict[str, np.ndarray], optimized: OptimizedScenes) -> dict[str, float]:
    """Relative error of z, absolute errors of translation [m], betas and the image's deviation [sigma]."""
    order = case["out_person"]
    transl = optimized.people.transl[0].numpy()[order]
    betas = optimized.people.betas[0].numpy()[order][:, : case["out_betas"].shape[1]]
    deviation = float(optimized.people.fits.deviation[0])
    return {
        "z": float(np.max(np.abs(transl[:, 2] / case["out_trans"][:, 2] - 1), initial=0.0)),
        "transl": float(np.max(np.abs(transl - case["out_trans"]), initial=0.0)),
        "betas": float(np.max(np.abs(betas - case["out_betas"]), initial=0.0)),
        "deviation": abs(deviation - float(case["height_deviation"])),
    }


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
            check_case("depth", f"{image}/{side}", "map", partial(_check_map, arrays, folders, image, int(side)))
            for image, side in sorted(recorded, key=lambda case: (case[0], int(case[1])))
        ]


def save_network(arrays: dict[str, np.ndarray], kind: str, folder: Path) -> Path:
    """The recorded network as a folder that transformers reads; the metric one differs in its last layer."""
    weights: dict[str, np.ndarray] = {}
    for part in dict.fromkeys(("relative", kind)):
        prefix = f"{part}/weights/"
        weights |= {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(str(arrays[f"{kind}/config"]))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _check_map(arrays: dict[str, np.ndarray], folders: dict[str, Path], image: str, side: int) -> CaseResult:
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
